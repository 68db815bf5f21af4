//! `weft-bench scale`: what a large cluster is to the agent of one of its nodes: how soon it holds all of it, how soon a change of it is in the kernel, and memory.
//!
//! The agent, its programs and its pods are real; the other nodes, their pods and the policies are objects in its manifest directory. A change is over when the loaded
//! programs read it: the policy epoch has moved, or the pod's address has another identity.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cni_agent::datapath::{RawMap, map::Contents, pins};
use cni_common::schema::{self, CT_CONFIG, IDENTITY4, MapSpec};
use lab::{Ending, Lab, Node, PodSpec};
use serde_json::{Value, json};

use crate::path::progress;
use crate::{agent, interrupt, map_memory, stats};

/// The longest that an agent may take to be ready which begins with all objects there, milliseconds.
pub const READY_MS: f64 = 3000.0;
/// The longest from a change of an object to the maps, of 99 in 100 changes, milliseconds.
pub const CHANGE_MS: f64 = 10.0;
/// The most resident memory, MiB.
pub const RSS_MIB: f64 = 60.0;

const NODES: usize = 1000;
const PODS: usize = 50_000;
const POLICIES: usize = 2000;
/// Of the pods those on the node whose agent is measured.
const HERE: usize = 100;
/// Four policies are in each.
const NAMESPACES: usize = POLICIES / 4;
/// Pods of one template, as a Deployment makes them.
const REPLICAS: usize = 10;
/// Objects in a file that never changes.
const TOGETHER: usize = 1000;
/// Namespaces with policies, and pods elsewhere, that change: each in a file of its own.
const CHANGING: usize = 50;
/// For a change that does not come.
const LIMIT: Duration = Duration::from_secs(20);

/// Builds a lab of one node, shows its agent the cluster, changes objects `rounds` times of each kind, and takes the lab down. Answers with the figures by name.
///
/// # Errors
/// When the lab cannot be built, a change does not come to the maps, or a signal has asked for the end.
pub fn measure(rounds: u32) -> Result<BTreeMap<String, f64>> {
    agent::in_lab(1, |lab| run(lab, rounds))
}

fn run(lab: &mut Lab, rounds: u32) -> Result<BTreeMap<String, f64>> {
    let name = lab.nodes().first().context("the lab has a node")?.name().to_owned();
    for n in 0..HERE {
        interrupt::check()?;
        progress(&format!("pod {} of {HERE}", n + 1));
        lab.pod_add(&name, &local_pod(n))?;
    }
    progress("writing the objects");
    let directory = lab.node(&name)?.paths().manifests();
    write_cluster(&directory)?;
    progress("starting the agent with all of it there");
    let ready = lab.restart_agent(&name, Ending::Killed)?;
    let node = lab.node(&name)?;
    settle(node)?;
    let mut figures = BTreeMap::from([
        ("ready_ms".to_owned(), ready.as_secs_f64() * 1e3),
        ("rss_begin_mib".to_owned(), resident(node)?),
    ]);
    for (name, value) in maps(node)? {
        figures.insert(name, value);
    }
    let epoch = open(node, &CT_CONFIG)?;
    let times = timed(rounds, |n| {
        progress(&format!("policy {} of {rounds}", n + 1));
        let policy = n % CHANGING * 4 + 1 + n / CHANGING % 2;
        let mut object = policy_object(policy);
        object["spec"]["ingress"] = json!([{"from": [{"podSelector": {}}], "ports": [{"port": 10_000 + n}]}]);
        let before = epoch.lookup(&[0; 4])?;
        let began = Instant::now();
        write(&directory, &format!("policy-{policy}"), &object)?;
        wait("a changed policy", || Ok(epoch.lookup(&[0; 4])? != before))?;
        Ok(began.elapsed())
    })?;
    figures.extend(quantiles("policy", &times)?);
    let identities = open(node, &IDENTITY4)?;
    let times = timed(rounds, |n| {
        progress(&format!("label {} of {rounds}", n + 1));
        let pod = HERE + n % CHANGING;
        let mut object = pod_object(pod);
        object["metadata"]["labels"]["tier"] = json!(format!("tier-{}", n / CHANGING + 4));
        let address = address(pod).octets();
        let before = identities.lookup(&address)?;
        let began = Instant::now();
        write(&directory, &format!("pod-{pod}"), &object)?;
        wait("a changed label", || Ok(identities.lookup(&address)? != before))?;
        Ok(began.elapsed())
    })?;
    figures.extend(quantiles("label", &times)?);
    settle(node)?;
    figures.insert("rss_mib".to_owned(), resident(node)?);
    Ok(figures.into_iter().map(|(name, value)| (format!("scale {name}"), value)).collect())
}

fn timed(rounds: u32, mut change: impl FnMut(usize) -> Result<Duration>) -> Result<Vec<f64>> {
    (0..rounds as usize)
        .map(|n| {
            interrupt::check()?;
            Ok(change(n)?.as_secs_f64() * 1e3)
        })
        .collect()
}

fn quantiles(what: &str, times: &[f64]) -> Result<[(String, f64); 2]> {
    let quantile = |q| stats::quantile(times, q).context("nothing was timed");
    Ok([(format!("{what}_p50_ms"), quantile(0.5)?), (format!("{what}_p99_ms"), quantile(0.99)?)])
}

/// Waits for what the kernel holds, by looking: whoever sleeps measures its sleep.
fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > LIMIT {
            bail!("{what} was not in the maps after {LIMIT:?}");
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Waits until the agent has written all that it knows.
fn settle(node: &Node) -> Result<()> {
    wait("what the agent knows", || {
        let reconciler = &node.ask("/v1/status")?["reconciler"];
        Ok(reconciler["pending"] == 0 && reconciler["applied"] == reconciler["revision"])
    })
}

fn open(node: &Node, spec: &MapSpec) -> Result<RawMap> {
    let pins = node.paths().bpf().join("weft");
    pins::open(&pins, spec)?.with_context(|| format!("no map {} in {}", spec.name, pins.display()))
}

fn resident(node: &Node) -> Result<f64> {
    agent::resident_of(node.agent_pid().context("the agent does not run")?)
}

/// Entries of the maps of policy, and what they and all others take of the kernel's memory, by what it says.
fn maps(node: &Node) -> Result<[(String, f64); 3]> {
    let (mut entries, mut policy, mut all) = (0, 0, 0);
    for spec in schema::ALL {
        let Some(map) = pins::open(&node.paths().bpf().join("weft"), spec)? else { continue };
        let bytes = map_memory::memory(&map)?;
        all += bytes;
        if spec.name.starts_with("policy_") {
            policy += bytes;
            entries += map.dump().as_ref().map_or(0, Contents::len);
        }
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok([
        ("policy_entries".to_owned(), entries as f64),
        ("policy_mib".to_owned(), mib(policy)),
        ("maps_mib".to_owned(), mib(all)),
    ])
}

fn write(directory: &Path, name: &str, object: &Value) -> Result<()> {
    // A name that begins so is passed over.
    let (whole, unfinished) = (directory.join(format!("scale.{name}.json")), directory.join(format!(".{name}.new")));
    fs::write(&unfinished, serde_json::to_vec(object).context("write an object")?)
        .and_then(|()| fs::rename(&unfinished, &whole))
        .with_context(|| format!("write {}", whole.display()))
}

fn write_cluster(directory: &Path) -> Result<()> {
    let namespaces = (0..NAMESPACES).map(|n| {
        let labels = json!({"group": format!("g{}", n % 10)});
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("team-{n}"), "labels": labels}})
    });
    let still = (HERE + CHANGING..PODS).map(pod_object);
    let policies = (CHANGING * 4..POLICIES).map(policy_object);
    // The lab has written the object of the first node.
    let all = namespaces.chain((1..NODES).map(node_object)).chain(still).chain(policies).collect::<Vec<Value>>();
    for (n, objects) in all.chunks(TOGETHER).enumerate() {
        write(directory, &format!("list-{n}"), &json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
    }
    (HERE..HERE + CHANGING).try_for_each(|n| write(directory, &format!("pod-{n}"), &pod_object(n)))?;
    (0..CHANGING * 4).try_for_each(|n| write(directory, &format!("policy-{n}"), &policy_object(n)))
}

/// Nodes' addresses and pods' are out of these, which no lab has.
fn node_object(n: usize) -> Value {
    let [high, low] = [n / 256, n % 256];
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("crowd-{n}")},
        "spec": {"podCIDRs": [format!("10.{}.{low}.0/24", 32 + high)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.20.{high}.{low}")}]},
    })
}
fn node_of(pod: usize) -> usize {
    1 + pod % (NODES - 1)
}
fn address(pod: usize) -> Ipv4Addr {
    let node = u32::try_from(node_of(pod)).unwrap_or_default();
    let host = u32::try_from(2 + pod / (NODES - 1)).unwrap_or_default();
    Ipv4Addr::from(0x0a20_0000 + (node << 8) + host)
}

/// Namespace and labels of a template's pods.
fn template(app: usize) -> (String, [(&'static str, String); 4]) {
    let hash = format!("{:08x}", (app as u32).wrapping_mul(0x9e37_79b9));
    let labels = [
        ("app", format!("app-{}", app % 200)),
        ("tier", format!("tier-{}", app % 4)),
        ("pod-template-hash", hash),
        ("app.kubernetes.io/version", format!("v{}", app % 30)),
    ];
    (format!("team-{}", app % NAMESPACES), labels)
}

fn pod_object(n: usize) -> Value {
    let (namespace, labels) = template(n / REPLICAS);
    let labels: BTreeMap<&str, String> = labels.into_iter().collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("pod-{n}"), "labels": labels, "uid": format!("uid-{n}")},
        "spec": {
            "nodeName": format!("crowd-{}", node_of(n)),
            "containers": [{"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": address(n), "podIPs": [{"ip": address(n)}]},
    })
}

/// Two in each of the namespaces whose policies change.
fn local_pod(n: usize) -> PodSpec {
    let (namespace, labels) = template(n % CHANGING);
    let named = PodSpec { namespace, ..PodSpec::named(&format!("here-{n}")) };
    labels.into_iter().fold(named, |pod, (key, value)| pod.label(key, &value))
}

/// A namespace's four: all isolated; two from one app of its own; from another team's tier and a block of addresses; egress.
fn policy_object(n: usize) -> Value {
    let team = n / 4;
    let app = |a: usize| json!({"matchLabels": {"app": format!("app-{}", a % 200)}});
    let spec = match n % 4 {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        1 => json!({
            "podSelector": {"matchLabels": {"tier": format!("tier-{}", team % 4)}},
            "ingress": [{"from": [{"podSelector": app(team)}], "ports": [{"port": "http"}, {"port": 9000, "endPort": 9100}]}],
        }),
        2 => json!({"podSelector": {}, "ingress": [{
            "from": [
                {"namespaceSelector": {"matchLabels": {"group": format!("g{}", team % 10)}}, "podSelector": {"matchLabels": {"tier": "tier-1"}}},
                {"ipBlock": {"cidr": format!("172.{}.0.0/16", 21 + team % 10), "except": [format!("172.{}.{}.0/24", 21 + team % 10, team % 256)]}},
            ],
            "ports": [{"port": 443}],
        }]}),
        _ => json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]},
            {"to": [{"podSelector": app(team + 7)}], "ports": [{"port": "http"}]},
        ]}),
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("team-{team}"), "name": format!("policy-{n}")}, "spec": spec,
    })
}

/// Whether a budget is broken, as a sentence.
pub fn broken(figures: &BTreeMap<String, f64>) -> Option<String> {
    let budgets = [
        ("scale ready_ms", READY_MS),
        ("scale policy_p99_ms", CHANGE_MS),
        ("scale label_p99_ms", CHANGE_MS),
        ("scale rss_begin_mib", RSS_MIB),
        ("scale rss_mib", RSS_MIB),
    ];
    budgets.into_iter().find_map(|(name, budget)| match figures.get(name) {
        Some(value) if *value <= budget => None,
        Some(value) => Some(format!("{name} {value:.1}, budget <= {budget}")),
        None => Some(format!("{name} was not measured")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_as_large_as_said_and_no_address_is_there_twice() {
        let addresses: std::collections::BTreeSet<Ipv4Addr> = (0..PODS).map(address).collect();
        assert_eq!(addresses.len(), PODS);
        for pod in [HERE, PODS - 1] {
            let cidr = node_object(node_of(pod))["spec"]["podCIDRs"][0].as_str().unwrap().to_owned();
            assert_eq!(cidr.rsplit_once('.').unwrap().0, address(pod).to_string().rsplit_once('.').unwrap().0);
        }
    }

    #[test]
    fn pods_here_are_selected_by_the_policies_that_change() {
        for n in 0..HERE {
            let team = local_pod(n).namespace;
            let changing = (0..CHANGING * 4).map(policy_object).filter(|p| p["metadata"]["namespace"] == team.as_str());
            assert_eq!(changing.count(), 4, "{team}");
        }
    }

    #[test]
    fn a_budget_that_is_broken_or_missing_is_named() {
        assert!(broken(&BTreeMap::new()).unwrap().contains("not measured"));
        let all = ["ready_ms", "policy_p99_ms", "label_p99_ms", "rss_begin_mib", "rss_mib"];
        let mut figures: BTreeMap<String, f64> = all.map(|name| (format!("scale {name}"), 1.0)).into();
        assert_eq!(broken(&figures), None);
        figures.insert("scale label_p99_ms".to_owned(), 10.5);
        assert!(broken(&figures).unwrap().contains("label_p99_ms 10.5"));
    }
}
