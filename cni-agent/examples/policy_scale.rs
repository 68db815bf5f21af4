//! What policies cost one node's agent in a large cluster: first compile, single changes, memory. For people: `cargo run --release -p
//! cni-agent --example policy_scale [NODES PODS POLICIES]`, by default 1000 50000 2000.
#![expect(clippy::print_stdout, reason = "its figures are what it is for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use cni_agent::{
    policy::{Change, Engine, objects, store::Event},
    tables::{NamedPort, Phase, Pod, PodKey, Protocol},
};
use serde_json::{Value, json};

/// The node whose agent this is.
const HERE: &str = "node-0";
/// Pods that are alike.
const REPLICAS: usize = 10;
/// Single changes of each kind.
const CHANGES: usize = 300;

struct Cluster {
    nodes: usize,
    namespaces: usize,
}

impl Cluster {
    fn namespace(&self, n: usize) -> String {
        format!("team-{}", n / REPLICAS % self.namespaces)
    }
    fn pod(&self, n: usize) -> Pod {
        let app = n / REPLICAS;
        let text = |s: &str| s.to_owned();
        Pod {
            namespace: self.namespace(n),
            name: format!("app-{app}-{:08x}-{n}", app.wrapping_mul(0x9e37_79b9)),
            node: Some(format!("node-{}", n % self.nodes)),
            labels: BTreeMap::from([
                (text("app"), format!("app-{}", app % 200)),
                (text("tier"), format!("tier-{}", app % 4)),
                (text("pod-template-hash"), format!("{:08x}", app.wrapping_mul(0x9e37_79b9))),
                (text("app.kubernetes.io/version"), format!("v{}", app % 30)),
            ]),
            ips: vec![address(n)],
            phase: Phase::Running,
            host_network: false,
            ports: BTreeSet::from([NamedPort { name: text("http"), protocol: Protocol::Tcp, port: 8080 }]),
        }
    }
    fn pod_event(&self, n: usize) -> Event {
        let pod = self.pod(n);
        Event::Pod(pod.key(), Some(pod))
    }
    /// Policies of a namespace: isolated; from one app of its own; from another team's tier and an outside block; egress.
    fn policy(&self, n: usize) -> Value {
        let namespace = format!("team-{}", n % self.namespaces);
        let app = |a: usize| json!({"matchLabels": {"app": format!("app-{}", a % 200)}});
        let spec = match n / self.namespaces % 4 {
            0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            1 => json!({
                "podSelector": {"matchLabels": {"tier": format!("tier-{}", n % 4)}},
                "ingress": [{"from": [{"podSelector": app(n)}], "ports": [{"port": "http"}, {"port": 9000, "endPort": 9100}]}],
            }),
            2 => json!({"podSelector": {}, "ingress": [{
                "from": [
                    {"namespaceSelector": {"matchLabels": {"group": format!("g{}", n % 10)}}, "podSelector": {"matchLabels": {"tier": "tier-1"}}},
                    {"ipBlock": {"cidr": format!("172.{}.0.0/16", 16 + n % 16), "except": [format!("172.{}.{}.0/24", 16 + n % 16, n % 256)]}},
                ],
                "ports": [{"port": 443}],
            }]}),
            _ => json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]},
                {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]},
                {"to": [{"podSelector": app(n + 7)}], "ports": [{"port": "http"}]},
            ]}),
        };
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": format!("policy-{n}")}, "spec": spec,
        })
    }
}

fn address(n: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap_or(u32::MAX)).into()
}
fn policy_event(object: Value) -> Event {
    match objects::network_policy(object) {
        Ok(read) => Event::Policy(read.policy.name.clone(), Some(read.policy)),
        Err(broken) => panic!("{broken}"),
    }
}
/// Resident memory, KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn main() {
    let sizes: Vec<usize> = env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [nodes, pods, policies] = sizes[..] else { return run(1000, 50_000, 2000) };
    run(nodes, pods, policies);
}

fn run(nodes: usize, pods: usize, policies: usize) {
    let c = Cluster { nodes, namespaces: (policies / 4).max(1) };
    let before = resident();
    let mut e = Engine::new(HERE);
    let began = Instant::now();
    for n in 0..c.namespaces {
        let labels = BTreeMap::from([("group".to_owned(), format!("g{}", n % 10))]);
        e.store.handle(&Event::Namespace(format!("team-{n}"), Some(labels)));
    }
    for n in 0..nodes {
        let ip = Ipv4Addr::from(0xc000_0200 + u32::try_from(n).unwrap_or_default());
        e.store.handle(&Event::Node(format!("node-{n}"), Some((BTreeMap::new(), BTreeSet::from([ip.into()])))));
    }
    (0..pods).for_each(|n| e.store.handle(&c.pod_event(n)));
    (0..policies).for_each(|n| e.store.handle(&policy_event(c.policy(n))));
    let told = began.elapsed();
    let writes = e.compile().len();
    println!("{nodes} nodes, {pods} pods, {policies} policies, {} namespaces", c.namespaces);
    let compiled = (began.elapsed() - told).as_secs_f64() * 1e3;
    println!("objects taken over in {told:.2?}, first compile {compiled:.2}ms, {writes} writes");
    println!("{:?}", e.sizes());
    println!("memory {} MiB more than at the start", (resident() - before) / 1024);
    let here: Vec<usize> = (0..pods).filter(|n| n % nodes == 0).collect();
    println!("pods here: {}", here.len());
    type Make<'a> = Box<dyn Fn(usize) -> Vec<Event> + 'a>;
    let kinds: [(&str, Make<'_>); 9] = [
        ("a pod elsewhere comes", Box::new(|i| vec![c.pod_event(pods + i * nodes + 1)])),
        ("a pod elsewhere goes", Box::new(|i| vec![Event::Pod(c.pod(pods + i * nodes + 1).key(), None)])),
        ("a pod here comes", Box::new(|i| vec![c.pod_event((pods / nodes + 1 + i) * nodes)])),
        ("a pod here goes", Box::new(|i| vec![Event::Pod(c.pod((pods / nodes + 1 + i) * nodes).key(), None)])),
        (
            "a pod's label changes",
            Box::new(|i| {
                let mut p = c.pod(i * 37 % pods);
                p.labels.insert("app".into(), format!("app-{}", (i * 13) % 400));
                vec![Event::Pod(p.key(), Some(p))]
            }),
        ),
        (
            "a policy here is changed",
            Box::new(|i| {
                let of = here[i % here.len()] / REPLICAS % c.namespaces;
                let mut p = c.policy(of + c.namespaces * (1 + i % 2));
                p["spec"]["ingress"][0]["ports"] = json!([{"port": 1000 + i}]);
                vec![policy_event(p)]
            }),
        ),
        (
            "a policy here with a new label",
            Box::new(|i| {
                let of = here[i % here.len()] / REPLICAS % c.namespaces;
                let mut p = c.policy(of + c.namespaces);
                p["spec"]["ingress"][0]["from"] = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/version": format!("v{}", i % 60)}}}]);
                vec![policy_event(p)]
            }),
        ),
        (
            "a policy here with a new block",
            Box::new(|i| {
                let of = here[i % here.len()] / REPLICAS % c.namespaces;
                let mut p = c.policy(of + c.namespaces);
                p["spec"]["ingress"][0]["from"] =
                    json!([{"ipBlock": {"cidr": format!("10.{}.0.0/{}", i % 2, 8 + i % 16)}}]);
                vec![policy_event(p)]
            }),
        ),
        (
            "a namespace's labels change",
            Box::new(|i| {
                let labels = BTreeMap::from([("group".to_owned(), format!("g{}", i % 11))]);
                vec![Event::Namespace(format!("team-{}", i * 31 % c.namespaces), Some(labels))]
            }),
        ),
    ];
    for (name, make) in kinds {
        let mut times = Vec::new();
        let mut writes = 0;
        for i in 0..CHANGES {
            let events = make(i);
            let began = Instant::now();
            events.iter().for_each(|event| e.store.handle(event));
            let changes: Vec<Change> = e.compile();
            times.push(began.elapsed());
            writes += changes.len();
        }
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let worst = times.last().copied().unwrap_or(Duration::ZERO);
        println!(
            "{name:32} p50 {:>9.1?} p99 {:>9.1?} max {worst:>9.1?}, {} writes on average",
            at(50),
            at(99),
            writes / CHANGES
        );
    }
    println!("memory {} MiB more than at the start", (resident() - before) / 1024);
    let gone: Vec<PodKey> = (0..pods).map(|n| c.pod(n).key()).collect();
    gone.into_iter().for_each(|key| e.store.handle(&Event::Pod(key, None)));
    e.compile();
    println!("{:?} without the first pods", e.sizes());
}
