use std::collections::{BTreeMap, BTreeSet};

use bytemuck::bytes_of;
use cni_common::{
    maps::{Cidr, Endpoint as EndpointValue, Local},
    net::Mac,
    schema::{self, MapSpec, MapType},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    compile::SET_ISOLATED,
    compile::fixtures::node,
    policy::{Change, engine::EndpointSets, explain::text, objects},
    tables::{Contents, Endpoint, Phase, Pod, Terms},
};

/// The maps of `here` in memory; a trie answers as the kernel's does.
#[derive(Default)]
struct Memory {
    entries: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
    broken: bool,
}
impl Memory {
    fn put(&mut self, map: &MapSpec, key: &[u8], value: &[u8]) {
        assert_eq!((key.len(), value.len()), (map.key_size as usize, map.value_size as usize), "{}", map.name);
        self.entries.insert((map.id, key.to_vec()), value.to_vec());
    }
}
impl Kernel for Memory {
    fn lookup(&self, map: &MapSpec, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if self.broken {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        assert_eq!(key.len(), map.key_size as usize, "{}", map.name);
        if map.kind != MapType::LpmTrie {
            return Ok(self.entries.get(&(map.id, key.to_vec())).cloned());
        }
        let bits = |key: &[u8]| u32::from_ne_bytes(*key.first_chunk().unwrap());
        let bit = |key: &[u8], n: u32| key[4 + n as usize / 8] & (0x80 >> (n % 8));
        let all = self.entries.iter().filter(|((id, _), _)| *id == map.id);
        let holds = |k: &[u8]| bits(k) <= bits(key) && (0..bits(k)).all(|n| bit(k, n) == bit(key, n));
        Ok(all.filter(|((_, k), _)| holds(k)).max_by_key(|((_, k), _)| bits(k)).map(|(_, v)| v.clone()))
    }
}

/// `web` and `near` on `here`, `far` on `there`.
struct Rig {
    contents: Contents,
    engine: Engine,
    kernel: Memory,
}
impl Rig {
    fn new(policies: Vec<Value>) -> Self {
        let mut contents = Contents::default();
        let mut engine = Engine::new("here");
        let mut kernel = Memory::default();
        engine.store.apply_namespace("shop", &BTreeMap::new());
        for (name, n) in [("here", 1), ("there", 2)] {
            let node = node(name, n);
            engine.store.apply_node(name, &node.labels, node.addresses.clone());
            kernel.put(
                &schema::CIDR4,
                &[&24_u32.to_ne_bytes()[..], &[10, 244, n, 0]].concat(),
                bytes_of(&Cidr { node: 1 }),
            );
            contents.nodes.insert(name.into(), node);
        }
        kernel.put(&schema::OWN4, &[192, 0, 2, 1], &1_u32.to_ne_bytes());
        for (name, on, ip) in
            [("web", "here", "10.244.1.9"), ("near", "here", "10.244.1.10"), ("far", "there", "10.244.2.5")]
        {
            let pod = pod(name, on, ip);
            engine.store.apply_pod(&pod.key(), &pod);
            contents.pods.set(&pod);
        }
        for policy in policies {
            let read = match policy["kind"].as_str() {
                Some("ClusterNetworkPolicy") => objects::cluster_policy(policy),
                _ => objects::network_policy(policy),
            };
            engine.store.apply_policy(read.unwrap().policy);
        }
        let mut sets = BTreeMap::new();
        for change in engine.compile() {
            match change {
                Change::Entry { map, key, value: Some(value) } => kernel.put(map.spec(), &key, &value),
                Change::Entry { .. } => panic!("there was nothing"),
                Change::Endpoint { pod, sets: new } => drop(sets.insert(pod, new.unwrap())),
            }
        }
        let mut rig = Self { contents, engine, kernel };
        for (name, id) in [("web", 9), ("near", 10)] {
            rig.wire(endpoint(name, id), sets.get(&PodKey::new("shop", name)).copied().unwrap_or_default());
        }
        rig
    }
    /// Gives an interface its entries.
    fn wire(&mut self, e: Endpoint, EndpointSets { set_in, set_out }: EndpointSets) {
        let local =
            Local { ifindex: e.ifindex, id: e.id.into(), set_in, set_out, mac: e.mac, ..bytemuck::Zeroable::zeroed() };
        let value = EndpointValue { id: e.id.into(), set_in, set_out, ..bytemuck::Zeroable::zeroed() };
        self.kernel.put(&schema::LOCAL4, &e.ipv4.unwrap().octets(), bytes_of(&local));
        self.kernel.put(&schema::ENDPOINTS, &e.ifindex.to_ne_bytes(), bytes_of(&value));
        self.contents.endpoints.insert(e.id, e);
    }
    fn ask(&self, from: &str, to: &str, probe: &str) -> io::Result<ExplainedFlow> {
        let party = |word| parties(&self.contents, "here", word).unwrap();
        let pairs = flows(&party(from), &party(to));
        explain(&self.engine, &self.kernel, "here", &pairs[0], probe.parse().unwrap())
    }
    fn text(&self, from: &str, to: &str, probe: &str) -> String {
        let flow = self.ask(from, to, probe).unwrap();
        text(&format!("{} -> {} {probe}", flow.from, flow.to), &flow.sides)
    }
}

fn pod(name: &str, node: &str, ip: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        node: Some(node.into()),
        labels: BTreeMap::from([("app".into(), name.into()), ("pod-template-hash".into(), "5c".into())]),
        ips: vec![ip.parse().unwrap()],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::new(),
    }
}
fn endpoint(pod: &str, id: u8) -> Endpoint {
    Endpoint {
        id: id.into(),
        container_id: pod.into(),
        ifname: "eth0".into(),
        namespace: if pod.is_empty() { "" } else { "shop" }.into(),
        pod_name: pod.into(),
        netns: format!("/run/netns/{pod}"),
        ifindex: 70 + u32::from(id),
        device: format!("weft{id}"),
        mac: Mac::new([10, 1, 2, 3, 4, id]),
        ipv4: Some([10, 244, 1, id].into()),
        ipv6: None,
        mtu: 1450,
        terms: Terms::default(),
    }
}
/// `web` lets in whom these rules name.
fn into_web(rules: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules}})
}
fn from_near() -> Value {
    json!([{"from": [{"podSelector": {"matchLabels": {"app": "near"}}}], "ports": [{"port": 80}]}])
}

#[test]
fn both_sides_of_a_flow_between_pods_of_the_node_are_judged_by_the_maps() {
    let rig = Rig::new(vec![into_web(from_near())]);
    let text = rig.text("shop/near", "shop/web", "TCP/80");
    for line in [
        "pod:shop/near@10.244.1.10 -> pod:shop/web@10.244.1.9 TCP/80: allowed",
        "egress of shop/near: allowed: no policy selects the pod",
        "ingress of shop/web: allowed: NetworkPolicy shop/web, ingress rule 0 decides",
        "  NetworkPolicy: NetworkPolicy shop/web, ingress rule 0 (Accept) matches",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let flow = rig.ask("shop/near", "10.244.1.9", "TCP/80").unwrap();
    assert_eq!(flow.allowed, Some(true));
    let asked = flow.sides[1].asked.as_ref().unwrap();
    assert!(asked.rules[0].decides && asked.isolated_by == ["NetworkPolicy shop/web"], "{asked:?}");
    // The map is asked, and not what was compiled.
    let mut emptied = Rig::new(vec![into_web(from_near())]);
    emptied.kernel.entries.retain(|(id, _), _| *id != schema::POLICY_RULE.id);
    assert_eq!(emptied.ask("shop/near", "shop/web", "TCP/80").unwrap().allowed, Some(false));
}

#[test]
fn a_denied_flow_is_told_with_the_rule_that_it_lacks() {
    let rig = Rig::new(vec![into_web(from_near())]);
    let text = rig.text("shop/near", "shop/web", "TCP/81");
    for line in [
        "ingress of shop/web: denied: policies isolate the pod, and none of their rules allows it (dropped as PolicyIngress)",
        "  NetworkPolicy: NetworkPolicy shop/web, ingress rule 0 (Accept) is not about the port",
        "  NetworkPolicy: NetworkPolicy shop/web isolates the pod",
        "  to allow it: NetworkPolicy shop/web, or another NetworkPolicy that selects the pod, needs this rule in spec.ingress",
        r#"    - {"from":[{"podSelector":{"matchLabels":{"app":"near"}}}],"ports":[{"port":81,"protocol":"TCP"}]}"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    // With that rule it passes.
    for (from, probe) in
        [("shop/near", "TCP/81"), ("shop/far", "UDP/53"), ("203.0.113.9", "TCP/80"), ("there", "ICMP/0")]
    {
        let denied = rig.ask(from, "shop/web", probe).unwrap();
        assert_eq!(denied.allowed, Some(false), "{from}");
        let rule = denied.sides[1].missing.as_ref().unwrap().rule.clone().unwrap();
        let better = Rig::new(vec![into_web(json!([rule]))]);
        let side = better.ask(from, "shop/web", probe).unwrap().sides[1].clone();
        assert_eq!(side.allowed, Some(true), "{from} {probe}: {rule}");
        assert_eq!(side.missing, None);
    }
}

#[test]
fn a_denial_without_a_name_is_what_no_rule_allows() {
    // The two ports that are left are written as entries of their own.
    let rig = Rig::new(vec![into_web(json!([{"ports": [{"port": 1, "endPort": 65534}]}]))]);
    assert_eq!(rig.engine.rule_of(0), None);
    let text = rig.text("shop/near", "shop/web", "TCP/65535");
    assert!(text.contains("ingress of shop/web: denied: no rule allows it (dropped as PolicyIngress)\n"), "{text}");
    assert!(text.contains("needs this rule in spec.ingress\n"), "{text}");
    assert_eq!(rig.ask("shop/near", "shop/web", "TCP/65534").unwrap().allowed, Some(true));
}

#[test]
fn what_a_tier_denies_no_network_policy_allows() {
    let deny = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "never"},
        "spec": {"tier": "Admin", "priority": 10, "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "near"}}}},
            "egress": [{"action": "Deny", "to": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}}]}]},
    });
    let rig = Rig::new(vec![deny]);
    let text = rig.text("shop/near", "shop/web", "TCP/80");
    for part in [
        "egress of shop/near: denied: ClusterNetworkPolicy never, egress rule 0 decides (dropped as PolicyEgress)\n",
        "  Admin tier: ClusterNetworkPolicy never, egress rule 0 (Deny) matches\n",
        "  to allow it: no NetworkPolicy can: the Admin tier comes first. egress rule 0 of ClusterNetworkPolicy never",
        "a priority below 10\n",
        "ingress of shop/web: allowed: no policy selects the pod\n",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn an_end_of_another_node_is_asked_there_and_one_that_is_no_pod_nowhere() {
    let rig = Rig::new(vec![into_web(from_near())]);
    let to_far = rig.ask("shop/web", "shop/far", "TCP/80").unwrap();
    assert_eq!((to_far.allowed, to_far.sides[1].ask.as_deref()), (None, Some("there")));
    let text = rig.text("shop/web", "shop/far", "TCP/80");
    assert!(text.contains("TCP/80: allowed as far as this node judges it\n"), "{text}");
    assert!(text.contains("ingress: shop/far is judged on node there: ask there\n"), "{text}");
    // What is denied here is denied, whatever others say.
    assert_eq!(rig.ask("shop/far", "shop/web", "TCP/80").unwrap().allowed, Some(false));
    let out = rig.ask("shop/web", "203.0.113.9", "TCP/80").unwrap();
    assert_eq!((out.allowed, out.sides[1].allowed), (Some(true), None));
    assert!(
        rig.text("shop/web", "203.0.113.9", "TCP/80").contains("ingress: ext:203.0.113.9 is no pod, nothing to say\n")
    );
}

#[test]
fn the_own_node_gets_in_and_another_one_does_not() {
    let rig = Rig::new(vec![into_web(from_near())]);
    assert!(rig.text("here", "shop/web", "TCP/9").contains("allowed: the pod's own node always gets in\n"));
    assert!(rig.text("192.0.2.1", "shop/web", "TCP/9").starts_with("node:here@192.0.2.1 -> pod:shop/web@10.244.1.9"));
    assert_eq!(rig.ask("there", "shop/web", "TCP/9").unwrap().allowed, Some(false));
}

#[test]
fn what_is_not_known_is_told_as_that() {
    let mut rig = Rig::new(vec![into_web(from_near())]);
    // An address of a pod CIDR that no pod is known to have.
    let text = rig.text("10.244.2.99", "shop/web", "TCP/80");
    assert!(text.contains("no pod is known to have its address (dropped as PolicyUnknown)\n"), "{text}");
    let isolated = EndpointSets { set_in: SET_ISOLATED, set_out: SET_ISOLATED };
    rig.wire(endpoint("web", 9), isolated);
    let text = rig.text("shop/near", "shop/web", "TCP/80");
    assert!(text.contains("it is not known yet which policies hold for the pod"), "{text}");
    assert!(text.contains("  to allow it: the agent must hear of the pod"), "{text}");
    // A container that is no pod of Kubernetes has no policies.
    rig.wire(endpoint("", 20), EndpointSets::default());
    assert_eq!(rig.ask("10.244.1.20", "shop/near", "TCP/80").unwrap().allowed, Some(true));
    rig.kernel.entries.retain(|(id, _), _| *id != schema::ENDPOINTS.id);
    let text = rig.text("shop/near", "203.0.113.9", "TCP/80");
    assert!(text.contains("or leaves it (dropped as NoEndpoint)\n"), "{text}");
    rig.kernel.broken = true;
    assert_eq!(rig.ask("shop/near", "shop/web", "TCP/80").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn ends_are_found_by_name_and_address_and_what_is_none_is_named() {
    let mut rig = Rig::new(vec![]);
    let mut daemon = pod("daemon", "there", "192.0.2.2");
    daemon.host_network = true;
    let mut over = pod("over", "there", "10.244.2.7");
    over.phase = Phase::Succeeded;
    for pod in [daemon, over] {
        rig.contents.pods.set(&pod);
    }
    let called = |word| -> Result<Vec<String>, ExplainError> {
        Ok(parties(&rig.contents, "here", word)?.iter().map(|p| p.end.to_string()).collect())
    };
    assert_eq!(called("shop/web"), Ok(vec!["pod:shop/web@10.244.1.9".to_owned()]));
    assert_eq!(called("10.244.2.5"), Ok(vec!["pod:shop/far@10.244.2.5".to_owned()]));
    assert_eq!(called("there"), Ok(vec!["node:there@192.0.2.2".to_owned(), "node:there@fd00::2".to_owned()]));
    assert_eq!(called("shop/daemon"), called("there"));
    assert_eq!(called("10.244.2.7"), Ok(vec!["ext:10.244.2.7".to_owned()]), "its address may be another pod's");
    assert_eq!(called("shop/over"), Err(ExplainError::NoAddress("shop/over".into())));
    assert_eq!(called("shop/nobody"), Err(ExplainError::NoSuchPod("shop/nobody".into())));
    assert_eq!(called("nowhere"), Err(ExplainError::NoSuchNode("nowhere".into())));
    let [web, there] = ["shop/web", "there"].map(|w| parties(&rig.contents, "here", w).unwrap());
    assert_eq!(flows(&web, &there).len(), 1, "`web` has no IPv6");
    assert!(flows(&web, &parties(&rig.contents, "here", "fd00::2").unwrap()).is_empty());
}

/// The same policy, in audit mode.
fn in_audit(mut policy: Value) -> Value {
    policy["metadata"]["annotations"] = json!({"weft.dev/mode": "audit"});
    policy
}

#[test]
fn what_policies_in_audit_mode_would_deny_is_allowed_and_told_with_the_rule_that_it_lacks() {
    let mut rig = Rig::new(vec![in_audit(into_web(from_near()))]);
    let text = rig.text("shop/near", "shop/web", "TCP/81");
    for line in [
        "pod:shop/near@10.244.1.10 -> pod:shop/web@10.244.1.9 TCP/81: allowed, and would be denied if no policy were in audit mode",
        "ingress of shop/web: allowed: no rule allows it, and what would isolate the pod is in audit mode (would be dropped as PolicyIngress)",
        "  NetworkPolicy: NetworkPolicy shop/web, ingress rule 0 (Accept, audit) is not about the port",
        "  NetworkPolicy: NetworkPolicy shop/web would isolate the pod, and is in audit mode",
        "  to allow it once that is enforced: NetworkPolicy shop/web, or another NetworkPolicy that selects the pod, needs this rule in spec.ingress",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let told = rig.ask("shop/near", "shop/web", "TCP/81").unwrap();
    assert_eq!((told.allowed, told.audited, told.sides[1].audited), (Some(true), true, true));
    let fine = rig.ask("shop/near", "shop/web", "TCP/80").unwrap();
    assert_eq!((fine.allowed, fine.audited, fine.sides[1].missing.as_ref()), (Some(true), false, None));
    // An address that must be a pod's, and maps that lack the set: nothing is denied.
    let unknown = rig.ask("10.244.2.99", "shop/web", "TCP/80").unwrap();
    assert_eq!((unknown.allowed, unknown.sides[1].reason.as_deref()), (Some(true), Some("PolicyUnknown")));
    rig.kernel.entries.retain(|(id, _), _| *id != schema::POLICY_PEER.id);
    assert_eq!(rig.ask("shop/near", "shop/web", "TCP/80").unwrap().allowed, Some(true));
    // What is denied anyway is no matter of audit.
    let both = Rig::new(vec![in_audit(into_web(json!([]))), {
        let mut enforced = into_web(json!([]));
        enforced["metadata"]["name"] = json!("too");
        enforced
    }]);
    let denied = both.ask("shop/near", "shop/web", "TCP/80").unwrap();
    assert_eq!((denied.allowed, denied.audited), (Some(false), false));
}
