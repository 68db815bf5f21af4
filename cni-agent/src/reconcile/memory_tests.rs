//! What a pod of another node costs the agent, in all that it keeps of it: its row, what is wanted of the maps and what was written, and what policies see.
//! And what a large cluster does.
use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use ipnet::IpNet;
use serde_json::json;

use super::{
    delta::{Delta, Target},
    desired::Desired,
    policy::Policies,
};
use crate::{
    compile::{
        Entry, EntryKey, Heard, InForce, NodeNumbers,
        fixtures::{facts, hop, node},
    },
    memory,
    policy::objects::{self, Read},
    tables::{Endpoint, NamedPort, Namespace, Node, Phase, Pod, Protocol, Tables, Terms},
};

/// For a pod of another node.
const BYTES: f64 = 512.0;
/// For a large cluster's objects, resident, so with the holes in the heap: an agent without pods has 15, and the goal is 60.
const MIB: f64 = 45.0;
/// Pods of a large cluster, those of this node among them.
const LARGE: usize = 50_000;
const LOCAL: usize = 100;
const POLICIES: usize = 2000;
/// Objects that come in while the reconciler is at work.
const BURST: usize = 500;
const PODS: usize = 20_000;
/// Each has a pod of a template at most, as the scheduler spreads them.
const NODES: usize = 1000;
/// Pods of one template, as a Deployment makes them.
const REPLICAS: usize = 10;
/// Says to a process that it is the one that measures.
const MEASURES: &str = "WEFT_TEST_MEASURES";

/// Maps that take everything, and are in the kernel.
struct Kernel;
impl Target for Kernel {
    fn dump(&mut self) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn upsert(&mut self, _: &EntryKey, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn delete(&mut self, _: &EntryKey) -> io::Result<()> {
        Ok(())
    }
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}
fn address(n: usize) -> IpAddr {
    Ipv4Addr::from(u32::try_from(n).unwrap()).into()
}
fn other_node(n: usize) -> Node {
    let ip = address(0xc0a8_0000 + n);
    Node {
        name: node_name(n),
        pod_cidrs: vec![IpNet::new(address(0x0a00_0000 + 256 * n), 24).unwrap()],
        internal_ips: vec![ip],
        labels: BTreeMap::new(),
        addresses: BTreeSet::from([ip]),
    }
}
fn pod(n: usize) -> Pod {
    let app = n / REPLICAS;
    let hash = format!("{:08x}", app.wrapping_mul(0x9e37_79b9) % 0xffff_ffff);
    let label = |key: &str, value: String| (key.to_owned(), value);
    Pod {
        namespace: format!("team-{}", app % 100),
        name: format!("app-{app}-{hash}-{:05x}", n % REPLICAS * 77_777),
        node: Some(node_name(n % NODES)),
        labels: BTreeMap::from([
            label("app", format!("app-{}", app % 200)),
            label("app.kubernetes.io/version", format!("v{}", app % 30)),
            label("pod-template-hash", hash),
            label("tier", format!("tier-{}", app % 4)),
        ]),
        ips: vec![address(0x0a00_0001 + 256 * (n % NODES) + n / NODES)],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::from([NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }]),
    }
}

/// A policy of a namespace, of one of the kinds that are usual.
fn policy(n: usize, namespaces: usize) -> Read {
    let app = |a: usize| json!({"matchLabels": {"app": format!("app-{}", a % 200)}});
    let tier = |n: usize| json!({"matchLabels": {"tier": format!("tier-{}", n % 4)}});
    let group = json!({"matchLabels": {"group": format!("g{}", n % 10)}});
    let spec = match n / namespaces % 4 {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        1 => json!({"podSelector": tier(n), "ingress": [{"from": [{"podSelector": app(n)}],
            "ports": [{"port": "http"}, {"port": 9000, "endPort": 9100}]}]}),
        2 => json!({"podSelector": {}, "ingress": [{"from": [
            {"namespaceSelector": group, "podSelector": tier(1)},
            {"ipBlock": {"cidr": format!("172.{}.0.0/16", 16 + n % 16)}}], "ports": [{"port": 443}]}]}),
        _ => json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [{"podSelector": app(n + 7)}], "ports": [{"port": "http"}]}]}),
    };
    let name = json!({"namespace": format!("team-{}", n % namespaces), "name": format!("policy-{n}")});
    objects::network_policy(json!({"metadata": name, "spec": spec})).unwrap()
}
fn endpoint(n: usize, pod: &Pod) -> Endpoint {
    let IpAddr::V4(ip) = pod.ips[0] else { unreachable!("{pod:?}") };
    Endpoint {
        id: u16::try_from(n).unwrap() + 1,
        container_id: format!("{n:064x}"),
        ifname: "eth0".into(),
        namespace: pod.namespace.clone(),
        pod_name: pod.name.clone(),
        netns: format!("/run/netns/{n}"),
        ifindex: 100 + u32::try_from(n).unwrap(),
        device: format!("weft{n:x}"),
        mac: cni_common::net::Mac::new([10, 1, 2, 3, 4, 5]),
        ipv4: Some(ip),
        ipv6: None,
        mtu: 1450,
        terms: Terms::default(),
    }
}
/// Resident memory of this process without that of its code, KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// All that an agent keeps of the cluster.
struct Agent {
    tables: Tables,
    desired: Desired,
    policies: Policies,
}
impl Agent {
    fn new() -> Self {
        let heard = Heard { policies: false, ..Heard::EVERYTHING };
        let desired = Desired::new(facts(), NodeNumbers::default(), Delta::default(), InForce::default(), heard);
        let agent = Self { tables: Tables::new(), desired, policies: Policies::adopt(&facts(), &mut Kernel).unwrap() };
        agent.tables.set_node(node("here", 1));
        for n in 0..NODES {
            agent.tables.set_node(other_node(n));
            agent.tables.set_next_hop(address(0xc0a8_0000 + n), hop(true));
        }
        agent
    }
    /// As the reconciler goes through what has changed.
    fn pass(&mut self) {
        let (revision, mut rows) = self.tables.wait_dirty(Duration::ZERO);
        assert!(self.policies.follow(&rows, true, (&self.tables, &mut self.desired), &mut Kernel).is_empty());
        assert!(self.desired.follow(&self.tables.read(), &mut rows).is_empty());
        assert!(self.desired.delta.flush(&mut Kernel).is_empty());
        self.tables.applied(revision);
    }
    fn pack(&mut self) {
        self.tables.pack();
        self.desired.delta.pack(true);
        self.policies.pack();
        memory::give_back();
    }
}

/// In the order in which the API server lists them.
fn listed(count: usize) -> Vec<usize> {
    let mut pods: Vec<usize> = (0..count).collect();
    pods.sort_by_cached_key(|n| pod(*n).key());
    pods
}

/// Prints what a pod of another node takes of the heap.
fn measure_a_pod() {
    let mut agent = Agent::new();
    for n in 0..100 {
        agent.tables.set_namespace(Namespace { name: format!("team-{n}"), labels: BTreeMap::new() });
    }
    let figure = |agent: &mut Agent| {
        agent.pass();
        agent.pack();
        memory::in_use()
    };
    let before = figure(&mut agent);
    assert!(before > 0);
    for n in listed(PODS) {
        agent.tables.set_pod(pod(n));
    }
    let after = figure(&mut agent);
    println!("figure bytes_a_remote_pod {}", (after - before) / PODS);
}

/// Prints how much more memory a process has with a large cluster's objects, taken over as they come in.
fn measure_a_cluster() {
    let before = resident();
    let mut agent = Agent::new();
    agent.desired.heard.objects = false;
    for n in 0..100 {
        let labels = BTreeMap::from([("group".to_owned(), format!("g{}", n % 10))]);
        agent.tables.set_namespace(Namespace { name: format!("team-{n}"), labels });
    }
    (0..POLICIES).for_each(|n| _ = agent.tables.set_policy(policy(n, 100)));
    // Whoever lists keeps the names until the list is whole.
    let mut seen = BTreeSet::new();
    for (i, n) in listed(LARGE).into_iter().enumerate() {
        let mut pod = pod(n);
        seen.insert((pod.namespace.clone(), pod.name.clone()));
        if n.is_multiple_of(LARGE / LOCAL) {
            pod.node = Some("here".to_owned());
            agent.tables.set_endpoint(endpoint(n / (LARGE / LOCAL), &pod));
        }
        agent.tables.set_pod(pod);
        if i.is_multiple_of(BURST) {
            agent.pass();
        }
    }
    drop(seen);
    agent.pack();
    agent.desired.heard.objects = true;
    agent.pass();
    agent.pack();
    println!("figure heap_mib_of_a_cluster {:.1}", memory::in_use() as f64 / 1_048_576.0);
    println!("figure anon_mib_of_a_cluster {:.1}", (resident() - before) as f64 / 1024.0);
    println!("{:?}", agent.policies.engine.sizes());
}

/// Runs a test in a process of its own, as the heap is the whole process', and gives the figure that it prints.
fn alone(test: &str, figure: &str) -> f64 {
    let name = format!("reconcile::memory_tests::{test}");
    let mut alone = Command::new(env::current_exe().unwrap());
    // As the agent itself has it: `memory::one_heap`.
    alone
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .envs([(MEASURES, "1"), ("MALLOC_ARENA_MAX", "1")]);
    let done = alone.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    print!("{said}");
    let mut words = said.split_ascii_whitespace().skip_while(|word| *word != figure);
    let found = words.nth(1).filter(|_| done.status.success()).and_then(|figure| figure.parse().ok());
    found.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&done.stderr)))
}

#[test]
fn a_pod_of_another_node_costs_less_than_half_a_kibibyte() {
    if env::var_os(MEASURES).is_some() {
        return measure_a_pod();
    }
    let bytes = alone("a_pod_of_another_node_costs_less_than_half_a_kibibyte", "bytes_a_remote_pod");
    assert!(bytes > 0.0 && bytes <= BYTES, "{bytes} bytes");
}

#[test]
fn fifty_thousand_pods_and_two_thousand_policies_leave_an_agent_below_sixty_mebibytes() {
    if env::var_os(MEASURES).is_some() {
        return measure_a_cluster();
    }
    let test = "fifty_thousand_pods_and_two_thousand_policies_leave_an_agent_below_sixty_mebibytes";
    let mib = alone(test, "anon_mib_of_a_cluster");
    assert!(mib > 0.0 && mib <= MIB, "{mib} MiB");
}
