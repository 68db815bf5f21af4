//! Whatever the cluster, and in whatever order it comes about: by increments, rebuilt, and by the objects alone, every verdict is the same.
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    naive::{Flow, Objects, addresses},
    random::{self, Dice, NAMESPACES, NODES, OUTSIDE, PROBES},
};
use crate::policy::verdicts::{Case, Mode, judge};

const POD_NAMES: [&str; 4] = ["p0", "p1", "p2", "p3"];
const POLICY_NAMES: [&str; 3] = ["x", "y", "z"];

/// A random event, done to the objects; the operation that says so.
pub fn event(d: &mut Dice, o: &mut Objects) -> Value {
    let namespace = d.one(&NAMESPACES);
    match d.below(100) {
        0..7 => {
            o.namespaces.insert(namespace.into(), random::namespace(d));
            json!({"op": "apply", "kind": "Namespace", "name": namespace, "object": o.namespaces[namespace]})
        }
        7..9 => {
            o.namespaces.remove(namespace);
            o.pods.retain(|_, p| p["namespace"] != namespace);
            o.policies.retain(|_, p| {
                p["kind"] != "NetworkPolicy" || p["metadata"]["namespace"].as_str().unwrap_or("default") != namespace
            });
            json!({"op": "delete", "kind": "Namespace", "name": namespace})
        }
        9..34 => {
            let name = d.one(&POD_NAMES);
            let key = format!("{namespace}/{name}");
            let others = o.pods.iter().filter(|(k, p)| **k != key && !p["hostNetwork"].as_bool().unwrap_or_default());
            let live = others.filter(|(_, p)| !matches!(p["phase"].as_str(), Some("Succeeded" | "Failed")));
            let taken: Vec<Value> = live.flat_map(|(_, p)| p["ips"].as_array().cloned().unwrap_or_default()).collect();
            let pod = random::pod(d, namespace, name, &taken);
            o.pods.insert(key, pod.clone());
            json!({"op": "apply", "kind": "Pod", "namespace": namespace, "name": name, "object": pod})
        }
        34..40 => {
            let name = d.one(&POD_NAMES);
            o.pods.remove(&format!("{namespace}/{name}"));
            json!({"op": "delete", "kind": "Pod", "namespace": namespace, "name": name})
        }
        40..46 => {
            let n = d.below(3) as usize;
            let node = random::node(d, n);
            o.nodes.insert(NODES[n].into(), node.clone());
            json!({"op": "apply", "kind": "Node", "name": NODES[n], "object": node})
        }
        46..48 => {
            let name = d.one(&NODES);
            o.nodes.remove(name);
            json!({"op": "delete", "kind": "Node", "name": name})
        }
        48..66 => {
            let name = d.one(&POLICY_NAMES);
            let policy = random::network_policy(d, namespace, name);
            o.policies.insert(format!("n/{namespace}/{name}"), policy.clone());
            json!({"op": "apply", "kind": "NetworkPolicy", "namespace": namespace, "name": name, "object": policy})
        }
        66..72 => {
            let name = d.one(&POLICY_NAMES);
            o.policies.remove(&format!("n/{namespace}/{name}"));
            json!({"op": "delete", "kind": "NetworkPolicy", "namespace": namespace, "name": name})
        }
        72..84 => {
            let name = d.one(&POLICY_NAMES);
            let policy = random::cluster_policy(d, name);
            o.policies.insert(format!("c/{name}"), policy.clone());
            json!({"op": "apply", "kind": "ClusterNetworkPolicy", "name": name, "object": policy})
        }
        84..90 => {
            let name = d.one(&POLICY_NAMES);
            o.policies.remove(&format!("c/{name}"));
            json!({"op": "delete", "kind": "ClusterNetworkPolicy", "name": name})
        }
        90..97 => {
            let (name, ips) = random::dns(d);
            o.dns.insert(name.clone(), ips.clone());
            json!({"op": "apply", "kind": "DNS", "name": name, "object": ips})
        }
        _ => {
            let (name, _) = random::dns(d);
            o.dns.remove(&name);
            json!({"op": "delete", "kind": "DNS", "name": name})
        }
    }
}

/// What a matrix should hold for two of its ends.
fn expected(o: &Objects, src: &str, dst: &str, probe: &str) -> char {
    let ip = |id: &str| -> IpAddr {
        id.rsplit(['@', ':']).next().and_then(|t| t.parse().ok()).unwrap_or_else(|| address(id))
    };
    let (a, b) = (ip(src), ip(dst));
    let pod = |id: &str| id.strip_prefix("pod:").and_then(|t| t.split('@').next()).map(|key| &o.pods[key]);
    if a.is_ipv4() != b.is_ipv4() || pod(src).is_none() && pod(dst).is_none() {
        return '-';
    }
    let (name, port) = probe.split_once('/').unwrap();
    let proto = ["TCP", "UDP", "SCTP"].into_iter().find(|p| *p == name);
    let port = port.parse().unwrap();
    let flow = |from_node| Flow { src: a, dst: b, proto, port, from_node };
    let egress = pod(src).is_none_or(|p| o.allows(p, false, flow(false)));
    let ingress = pod(dst).is_none_or(|p| {
        let own = format!("node:{}@", p["node"].as_str().unwrap());
        o.allows(p, true, flow(src.starts_with(&own)))
    });
    match (egress, ingress) {
        (true, true) => '.',
        (false, true) => 'E',
        (true, false) => 'I',
        (false, false) => 'B',
    }
}
fn address(id: &str) -> IpAddr {
    id.split_once('@').map_or_else(|| id.trim_start_matches("ext:"), |(_, ip)| ip).parse().unwrap()
}

/// A story of `steps` steps with up to `events` events each; all three ways through it.
fn check(seed: u64, steps: usize, events: u64) -> Result<usize, TestCaseError> {
    let mut d = Dice::new(seed);
    let mut o = Objects::default();
    for (n, name) in NODES.into_iter().enumerate() {
        o.nodes.insert(name.into(), random::node(&mut d, n));
    }
    let nodes: Vec<Value> = o.nodes.values().cloned().collect();
    let mut told = Vec::new();
    let mut states = Vec::new();
    for n in 0..steps {
        // Something is there before the story begins.
        let crowd = if n == 0 { 40 } else { 0 };
        let ops: Vec<Value> = (0..=d.below(events) + crowd).map(|_| event(&mut d, &mut o)).collect();
        told.push(json!({ "ops": ops }));
        states.push(o.clone());
    }
    let case = json!({
        "schema": "netpol-verdict-case/1", "id": "random", "cluster": {"nodes": nodes},
        "external": OUTSIDE, "probes": PROBES, "steps": told,
    });
    let case: Case = case.to_string().parse().expect("a case");
    let incremental = judge(&case, Mode::Incremental).expect("an answer");
    let rebuilt = judge(&case, Mode::Rebuild).expect("an answer");
    prop_assert_eq!(&incremental.steps, &rebuilt.steps, "by increments, and rebuilt");
    // Nothing is left behind that a new agent would not have.
    prop_assert_eq!(incremental.stats, rebuilt.stats);
    let mut isolated = 0;
    for (n, (matrix, state)) in incremental.steps.iter().zip(&states).enumerate() {
        let live: usize = state.pods.values().filter(|p| is_judged(p)).map(|p| addresses(&p["ips"]).len()).sum();
        let pods = matrix.endpoints.iter().filter(|e| e.starts_with("pod:")).count();
        prop_assert_eq!(pods, live);
        for group in &matrix.verdicts {
            for (src, row) in matrix.endpoints.iter().zip(&group.rows) {
                for (dst, letter) in matrix.endpoints.iter().zip(row.chars()) {
                    for probe in &group.probes {
                        let want = expected(state, src, dst, probe);
                        isolated += usize::from(!matches!(want, '.' | '-'));
                        prop_assert_eq!(letter, want, "step {}: {} -> {} {}\n{:#?}", n, src, dst, probe, told);
                    }
                }
            }
        }
    }
    Ok(isolated)
}
fn is_judged(pod: &Value) -> bool {
    !pod["hostNetwork"].as_bool().unwrap_or_default() && !matches!(pod["phase"].as_str(), Some("Succeeded" | "Failed"))
}

proptest! {
    // A story is many flows: fewer of them than proptest's 256, but as many more as PROPTEST_CASES says.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 6, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_way_to_a_verdict_gives_the_same(seed in any::<u64>(), steps in 1_usize..8, events in 1_u64..16) {
        check(seed, steps, events)?;
    }
}

#[test]
fn the_stories_are_about_something() {
    let denied: usize = (0..20).map(|seed| check(seed, 6, 14).unwrap()).sum();
    assert!(denied > 10_000, "{denied}");
}
