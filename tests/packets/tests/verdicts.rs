//! `weft policy verdicts --lookup bpf`: the loaded programs say of every flow of a scenario what the look-up says natively.
use std::collections::BTreeSet;

use cni_agent::policy::verdicts::{Case, Matrix, Mode, Programs, judge, judge_by};

/// Two nodes, pods of both families, somebody outside, and policies of each kind of peer and port.
const SHOP: &str = r#"{"schema": "netpol-verdict-case/1", "id": "shop", "external": ["203.0.113.9", "203.0.113.77", "2001:db8::9"],
"probes": ["TCP/80", "TCP/5432", "TCP/5433", "UDP/53", "UDP/8472", "SCTP/80", "ICMP/0"],
"cluster": {
  "namespaces": {"shop": {}, "ops": {"labels": {"team": "ops"}}},
  "nodes": [{"name": "n1", "ips": ["192.0.2.1", "2001:db8:1::1"]}, {"name": "n2", "ips": ["192.0.2.2", "2001:db8:1::2"]}],
  "pods": [
    {"namespace": "shop", "name": "web", "labels": {"app": "web"}, "node": "n1", "ips": ["10.1.0.5", "fd10::5"]},
    {"namespace": "shop", "name": "db", "labels": {"app": "db"}, "node": "n1", "ips": ["10.1.0.6", "fd10::6"],
     "ports": [{"port": 5432, "protocol": "TCP", "name": "sql"}]},
    {"namespace": "shop", "name": "cache", "labels": {"app": "web"}, "node": "n2", "ips": ["10.1.1.5"]},
    {"namespace": "ops", "name": "probe", "labels": {}, "node": "n2", "ips": ["10.1.1.6", "fd10::1:6"]}],
  "policies": [
    {"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "db"}, "spec": {
      "podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Egress"],
      "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "sql"}, {"protocol": "SCTP", "port": 80}]},
                  {"from": [{"namespaceSelector": {"matchLabels": {"team": "ops"}}}]},
                  {"from": [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.64/26"]}}], "ports": [{"port": 5432, "endPort": 5433}]}],
      "egress": [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}, {"ports": [{"protocol": "UDP", "port": 53}]}]}},
    {"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "web"}, "spec": {
      "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
      "ingress": [{"ports": [{"port": 80}]}],
      "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 5400, "endPort": 5433}]},
                 {"to": [{"ipBlock": {"cidr": "2001:db8::/32"}}]}]}}]},
"steps": [{"ops": []},
  {"ops": [{"op": "apply", "kind": "Namespace", "name": "ops", "object": {"labels": {"team": "dev"}}},
           {"op": "apply", "kind": "Pod", "namespace": "shop", "name": "late", "object":
             {"labels": {"app": "web"}, "node": "n1", "ips": ["10.1.0.7"]}}]},
  {"ops": [{"op": "delete", "kind": "NetworkPolicy", "namespace": "shop", "name": "web"},
           {"op": "delete", "kind": "Pod", "namespace": "shop", "name": "cache"},
           {"op": "apply", "kind": "Node", "name": "n3", "object": {"ips": ["10.1.1.5"]}}]},
  {"ops": [{"op": "delete", "kind": "Namespace", "name": "shop"}]}]}"#;

/// Tiers: a cluster's policies before and behind those of namespaces.
const TIERS: &str = r#"{"schema": "netpol-verdict-case/1", "id": "tiers", "external": ["198.51.100.7"], "probes": ["TCP/80", "TCP/443", "UDP/80", "ICMP/0"],
"cluster": {
  "namespaces": {"a": {"labels": {"tier": "front"}}, "b": {"labels": {"tier": "back"}}},
  "nodes": [{"name": "n1", "ips": ["192.0.2.1"]}, {"name": "n2", "ips": ["192.0.2.2"]}],
  "pods": [
    {"namespace": "a", "name": "one", "node": "n1", "ips": ["10.1.0.5"]},
    {"namespace": "b", "name": "one", "node": "n1", "ips": ["10.1.0.6"]},
    {"namespace": "b", "name": "two", "node": "n2", "ips": ["10.1.1.6"]}],
  "policies": [
    {"kind": "ClusterNetworkPolicy", "metadata": {"name": "first"}, "spec": {"tier": "Admin", "priority": 1,
      "subject": {"namespaces": {"matchLabels": {"tier": "back"}}},
      "ingress": [{"name": "in", "action": "Accept", "from": [{"namespaces": {"matchLabels": {"tier": "front"}}}],
                   "protocols": [{"tcp": {"destinationPort": {"number": 443}}}]},
                  {"name": "out", "action": "Deny", "from": [{"namespaces": {"matchLabels": {"tier": "front"}}}]}]}},
    {"kind": "ClusterNetworkPolicy", "metadata": {"name": "last"}, "spec": {"tier": "Baseline", "priority": 1,
      "subject": {"namespaces": {}},
      "egress": [{"action": "Deny", "to": [{"networks": ["198.51.100.0/24"]}]}]}},
    {"kind": "NetworkPolicy", "metadata": {"namespace": "b", "name": "own"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}]},
"steps": [{"ops": []}, {"ops": [{"op": "delete", "kind": "ClusterNetworkPolicy", "name": "first"}]}]}"#;

/// Rule sets with many single ports that lie apart, and with ranges and what is denied among them: of the ports probed the first is one of many, the second between
/// them, the third in a range, the fourth denied.
fn ports() -> String {
    let ports: Vec<String> = (0..200).map(|n| format!("{{\"port\": {}}}", 1000 + 2 * n)).collect();
    let denied: Vec<String> =
        (0..40).map(|n| format!("{{\"tcp\": {{\"destinationPort\": {{\"number\": {}}}}}}}", 3001 + 2 * n)).collect();
    let (ports, denied) = (ports.join(", "), denied.join(", "));
    format!(
        r#"{{"schema": "netpol-verdict-case/1", "id": "ports", "external": ["203.0.113.9"],
"probes": ["TCP/1100", "TCP/1101", "TCP/3000", "TCP/3001", "UDP/1100", "ICMP/0"],
"cluster": {{
  "namespaces": {{"shop": {{}}}}, "nodes": [{{"name": "n1", "ips": ["192.0.2.1"]}}, {{"name": "n2", "ips": ["192.0.2.2"]}}],
  "pods": [
    {{"namespace": "shop", "name": "web", "labels": {{"app": "web"}}, "node": "n1", "ips": ["10.1.0.5", "fd10::5"]}},
    {{"namespace": "shop", "name": "db", "labels": {{"app": "db"}}, "node": "n1", "ips": ["10.1.0.6", "fd10::6"]}},
    {{"namespace": "shop", "name": "far", "labels": {{"app": "web"}}, "node": "n2", "ips": ["10.1.1.5"]}}],
  "policies": [
    {{"kind": "NetworkPolicy", "metadata": {{"namespace": "shop", "name": "db"}}, "spec": {{
      "podSelector": {{"matchLabels": {{"app": "db"}}}}, "policyTypes": ["Ingress"],
      "ingress": [{{"from": [{{"podSelector": {{"matchLabels": {{"app": "web"}}}}}}], "ports": [{ports}, {{"port": 3000, "endPort": 3999}}]}}]}}}},
    {{"kind": "ClusterNetworkPolicy", "metadata": {{"name": "first"}}, "spec": {{"tier": "Admin", "priority": 1,
      "subject": {{"namespaces": {{}}}},
      "egress": [{{"action": "Deny", "to": [{{"namespaces": {{}}}}], "protocols": [{denied}]}}]}}}}]}},
"steps": [{{"ops": []}}, {{"ops": [{{"op": "delete", "kind": "ClusterNetworkPolicy", "name": "first"}}]}}]}}"#
    )
}

fn letters(steps: &[Matrix]) -> BTreeSet<char> {
    steps.iter().flat_map(|m| &m.verdicts).flat_map(|v| &v.rows).flat_map(|r| r.chars()).collect()
}

/// Of a flow at a step.
fn letter(steps: &[Matrix], step: usize, from: &str, to: &str, probe: &str) -> char {
    let m = &steps[step];
    let at = |id: &str| m.endpoints.iter().position(|e| e == id).unwrap_or_else(|| panic!("no {id}"));
    let all = m.verdicts.iter().find(|v| v.probes.iter().any(|p| p == probe)).expect("is probed");
    all.rows[at(from)].chars().nth(at(to)).expect("has a column")
}

#[test]
fn the_programs_say_of_each_flow_what_the_look_up_says() {
    let mut programs = Programs::default();
    for text in [SHOP, TIERS, &ports()] {
        let case: Case = text.parse().unwrap_or_else(|e| panic!("{e}"));
        let native = judge(&case, Mode::Incremental).expect("is a case");
        assert_eq!(native.problems, [""; 0]);
        for mode in [Mode::Incremental, Mode::Rebuild] {
            let by = judge_by(&mut programs, &case, mode).unwrap_or_else(|e| panic!("{}", cni_agent::error_chain(&e)));
            assert_eq!(by.steps, native.steps, "{} {mode:?}", case.id);
        }
        let seen = letters(&native.steps);
        assert!(['.', 'E', 'I', '-'].iter().all(|c| seen.contains(c)), "{seen:?}");
    }
}

#[test]
fn rule_sets_with_many_single_ports_are_asked_by_port_and_then_by_range() {
    let case: Case = ports().parse().expect("is a case");
    let steps = judge_by(&mut Programs::default(), &case, Mode::Incremental).expect("is judged").steps;
    let (web, db, far) = ("pod:shop/web@10.1.0.5", "pod:shop/db@10.1.0.6", "pod:shop/far@10.1.1.5");
    for (what, first, then) in [
        ("TCP/1100", '.', '.'),
        ("TCP/1101", 'I', 'I'),
        ("TCP/3000", '.', '.'),
        ("TCP/3001", 'E', '.'),
        ("UDP/1100", 'I', 'I'),
        ("ICMP/0", 'I', 'I'),
    ] {
        for from in [web, far] {
            assert_eq!([0, 1].map(|n| letter(&steps, n, from, db, what)), [first, then], "{from} {what}");
        }
        // Nobody is asked on its way in there.
        assert_eq!(letter(&steps, 0, db, web, what), if first == 'E' { 'E' } else { '.' }, "{what}");
    }
}

#[test]
fn both_sides_are_told_apart_and_the_own_node_gets_in() {
    let case: Case = SHOP.parse().expect("is a case");
    let steps = judge_by(&mut Programs::default(), &case, Mode::Incremental).expect("is judged").steps;
    let (web, db, cache, probe) =
        ("pod:shop/web@10.1.0.5", "pod:shop/db@10.1.0.6", "pod:shop/cache@10.1.1.5", "pod:ops/probe@10.1.1.6");
    for (from, to, what, verdict) in [
        (web, db, "TCP/5432", '.'),
        // On one node, and from another one.
        (web, db, "TCP/5433", 'I'),
        (cache, db, "TCP/5433", 'I'),
        (web, db, "SCTP/80", 'E'),
        (web, db, "TCP/80", 'B'),
        (cache, db, "TCP/80", 'B'),
        (db, web, "TCP/80", 'E'),
        (probe, db, "UDP/8472", '.'),
        ("node:n1@192.0.2.1", db, "TCP/80", '.'),
        ("node:n2@192.0.2.2", db, "TCP/80", 'I'),
        ("ext:203.0.113.9", db, "TCP/5433", '.'),
        ("ext:203.0.113.77", db, "TCP/5433", 'I'),
        (db, "ext:203.0.113.77", "ICMP/0", '.'),
    ] {
        assert_eq!(letter(&steps, 0, from, to, what), verdict, "{from} {to} {what}");
    }
    assert_eq!(letter(&steps, 1, probe, db, "UDP/8472"), 'I');
    assert!(letters(&steps[3..]).iter().all(|c| ".-".contains(*c)), "nobody is isolated any more");
}
