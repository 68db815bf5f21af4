use serde_json::{Value, json};

use super::{
    Action, Direction, Domain, Flaw, Mode, Peers, PortMatch, Ports, Read, Rule, cluster_policy, model, network_policy,
};
use crate::tables::Protocol;

fn network(spec: Value) -> Read {
    let metadata = json!({"namespace": "shop", "name": "p"});
    network_policy(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}),
    )
    .unwrap()
}
fn cluster(spec: Value) -> Result<Read, String> {
    let mut whole = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    cluster_policy(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"}, "spec": whole,
    }))
    .map_err(|e| e.to_string())
}
fn holds(spec: Value) -> (bool, bool) {
    let policy = network(spec).policy;
    (policy.rules(Direction::Ingress).is_some(), policy.rules(Direction::Egress).is_some())
}
fn flaws(read: &Read) -> Vec<String> {
    read.flaws.iter().map(ToString::to_string).collect()
}

#[test]
fn directions_follow_from_policy_types_or_else_from_the_sections() {
    assert_eq!(holds(json!({})), (true, false));
    assert_eq!(holds(json!({"policyTypes": [], "egress": []})), (true, false));
    assert_eq!(holds(json!({"egress": [{}]})), (true, true));
    assert_eq!(holds(json!({"policyTypes": ["Egress"], "ingress": [{}]})), (false, true));
    assert_eq!(holds(json!({"policyTypes": ["Ingress"], "egress": [{}]})), (true, false));
}

#[test]
fn absent_and_empty_lists_are_all_of_them() {
    let all = Rule { action: Action::Accept, peers: Peers::Any, ports: Ports::All };
    let rules = json!([{}, {"from": [], "ports": []}, {"from": null, "ports": null}]);
    assert_eq!(network(json!({ "ingress": rules })).policy.ingress, Some(vec![all.clone(), all.clone(), all]));
}

#[test]
fn an_empty_port_is_all_of_tcp() {
    let rule = network(json!({"ingress": [{"ports": [{}]}]})).policy.ingress.unwrap().remove(0);
    assert_eq!(rule.ports, Ports::Of(vec![PortMatch::Range { protocol: Protocol::Tcp, first: 0, last: u16::MAX }]));
}

#[test]
fn what_the_api_refuses_matches_nothing_and_is_named() {
    let read = network(json!({"ingress": [{
        "from": [
            {}, {"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}, {"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}},
            {"ipBlock": {"cidr": "ten"}},
        ],
        "ports": [
            {"endPort": 5}, {"port": "web", "endPort": 5}, {"port": 9, "endPort": 5}, {"port": 0}, {"port": 65536},
            {"protocol": "ICMP"}, {"port": ""},
        ],
    }]}));
    assert_eq!(
        read.policy.ingress,
        Some(vec![Rule { action: Action::Accept, peers: Peers::Of(vec![]), ports: Ports::Of(vec![]) }])
    );
    let flaws = flaws(&read);
    assert_eq!(flaws.len(), 13, "{flaws:#?}");
    assert!(flaws[0].starts_with("spec.ingress[0].from[0]: it names nobody"), "{flaws:#?}");
    assert!(flaws[8].starts_with("spec.ingress[0].ports[2].endPort: 5 is below the port, 9"), "{flaws:#?}");
}

#[test]
fn a_part_that_is_refused_leaves_the_rest_of_the_policy() {
    let read = network(json!({"ingress": [{"from": [{}, {"podSelector": {}}]}, {}]}));
    let Some([first, second]) = read.policy.ingress.as_deref() else { panic!("{read:?}") };
    assert!(matches!(&first.peers, Peers::Of(list) if list.len() == 1) && second.peers == Peers::Any);
}

#[test]
fn a_broken_network_policy_is_named_by_its_field() {
    let read = |metadata: Value, spec: Value| {
        let object =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec});
        network_policy(object).unwrap_err().to_string()
    };
    let named = json!({"name": "p"});
    assert_eq!(
        read(named.clone(), json!({"ingress": [{"ports": [{"port": true}]}]})).split(':').next(),
        Some("NetworkPolicy default/p, field spec.ingress[0].ports[0].port")
    );
    let selector = json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Of"}]}});
    assert!(
        read(named, selector)
            .starts_with("NetworkPolicy default/p, field spec.podSelector.matchExpressions[0].operator")
    );
    assert!(read(json!({}), json!({})).contains("metadata.name"));
}

#[test]
fn a_cidr_with_host_bits_is_the_network_that_it_lies_in() {
    assert_eq!(model::cidr("10.1.2.3/16").unwrap(), "10.1.0.0/16".parse().unwrap());
    assert!(model::cidr("::ffff:0:0/96").is_err() && model::cidr("::/0").is_ok());
}

#[test]
fn a_cluster_policy_without_rules_does_nothing_in_a_direction() {
    let policy = cluster(json!({"ingress": []})).unwrap().policy;
    assert_eq!((policy.ingress, policy.egress), (None, None));
}

#[test]
fn a_rule_with_an_unknown_peer_fails_closed_whole() {
    let rules = |peers: Value, protocols: Value| {
        let rule = |action: &str| json!({"action": action, "to": peers.clone(), "protocols": protocols.clone()});
        let read = cluster(json!({"egress": [rule("Accept"), rule("Deny"), rule("Pass")]})).unwrap();
        assert!(!read.flaws.is_empty());
        read.policy.egress.unwrap()
    };
    let nothing = Rule { action: Action::Accept, peers: Peers::Of(vec![]), ports: Ports::All };
    let deny = Rule { action: Action::Deny, peers: Peers::Any, ports: Ports::All };
    let closed = [nothing, deny.clone(), deny];
    let some = json!([{"namespaces": {}}]);
    assert_eq!(rules(json!([{}, {"namespaces": {}}]), json!([{"tcp": {}}])), closed);
    assert_eq!(rules(json!([{"later": {}}]), json!(null)), closed);
    assert_eq!(rules(json!([{"namespaces": {}, "pods": {}}]), json!(null)), closed);
    assert_eq!(rules(json!([]), json!(null)), closed);
    assert_eq!(rules(some, json!([{"tcp": {}}, {"later": {}}])), closed);
}

#[test]
fn peers_of_egress_are_unknown_to_ingress() {
    let read = cluster(json!({"ingress": [{"action": "Deny", "from": [{"nodes": {}}]}]})).unwrap();
    assert_eq!((read.flaws.len(), &read.policy.ingress.unwrap()[0].peers), (1, &Peers::Any));
}

#[test]
fn a_broken_cluster_policy_is_named_by_its_field() {
    let rule = |rule: Value| json!({ "egress": [rule] });
    let to = json!([{"namespaces": {}}]);
    let cases = [
        (json!({"tier": "Network"}), "ClusterNetworkPolicy c, field spec.tier: unknown variant"),
        (json!({"priority": 1001}), "spec.priority: 1001 is above 1000"),
        (json!({"priority": -1}), "spec.priority: invalid value"),
        (json!({"subject": {}}), "spec.subject: it selects nobody"),
        (json!({"subject": {"namespaces": {}, "pods": {}}}), "spec.subject: it has both"),
        (json!({"egres": []}), "spec.egres: unknown field"),
        (rule(json!({"to": to})), "spec.egress[0]: missing field `action`"),
        (rule(json!({"action": "Allow", "to": to})), "spec.egress[0].action: unknown variant"),
        (rule(json!({"action": "Accept"})), "spec.egress[0]: missing field `to`"),
        (rule(json!({"action": "Accept", "to": to, "ports": []})), "spec.egress[0].ports: unknown field"),
    ];
    for (spec, text) in cases {
        let error = cluster(spec).unwrap_err();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
}

#[test]
fn a_rule_with_a_peer_or_protocol_that_the_definition_refuses_fails_closed_and_the_others_hold() {
    let to = json!([{"namespaces": {}}]);
    let range = |start: u32, end: u32| json!([{"tcp": {"destinationPort": {"range": {"start": start, "end": end}}}}]);
    let cases = [
        (json!([{"networks": ["10.0.0.0/8", "x"]}]), json!([]), "to[0].networks[1]: `x` is not a network"),
        (json!([{"networks": ["::ffff:0:0/96"]}]), json!([]), "to[0].networks[0]: `::ffff:0:0/96` is an IPv4"),
        (json!([{"networks": "10.0.0.0/8"}]), json!([]), "to[0].networks: invalid type"),
        (json!([{"domainNames": ["*"]}]), json!([]), "to[0].domainNames"),
        (
            json!([{"pods": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}]),
            json!([]),
            "to[0].pods.podSelector.matchExpressions[0].values: In needs at least one",
        ),
        (to.clone(), range(9, 9), "protocols[0].tcp.destinationPort: 9 to 9 is not a range"),
        (to.clone(), json!([{"udp": {"destinationPort": {"number": 0}}}]), "destinationPort: 0 is not a port"),
        (to.clone(), json!([{"udp": {"destinationPort": {"number": 70000}}}]), "destinationPort.number: invalid value"),
    ];
    let whole = Rule { action: Action::Deny, peers: Peers::Any, ports: Ports::All };
    for (peers, protocols, text) in cases {
        let rule = |action: &str| json!({"action": action, "to": peers, "protocols": protocols});
        let last = json!({"action": "Pass", "to": to});
        let read = cluster(json!({"egress": [rule("Accept"), rule("Deny"), rule("Pass"), last]})).unwrap();
        let rules = read.policy.egress.unwrap();
        assert_eq!((&rules[0].action, &rules[0].peers), (&Action::Accept, &Peers::Of(vec![])), "{text}");
        assert!(rules[1] == whole && rules[2] == whole && rules[3].action == Action::Pass, "{text}: {rules:?}");
        let told: Vec<String> = read.flaws.iter().map(Flaw::in_full).collect();
        let effects = ["the rule matches nothing", "the rule denies all", "the rule denies all"];
        assert_eq!(told.len(), 3, "{told:?}");
        for ((n, flaw), effect) in told.iter().enumerate().zip(effects) {
            let is_it = flaw.starts_with(&format!("spec.egress[{n}].")) && flaw.contains(text);
            assert!(is_it && flaw.ends_with(&format!("; {effect}")), "{flaw}");
        }
    }
    let deny = json!({"egress": [{"action": "Deny", "to": [{"domainNames": ["a.b"]}]}]});
    assert!(cluster(deny).unwrap().flaws[0].to_string().contains("names are for Accept rules only"));
}

#[test]
fn a_domain_covers_names_by_whole_labels() {
    let covers = |pattern: &str, name: &str| Domain::read(pattern).unwrap().covers(&model::normal(name));
    assert!(covers("Kube.Test.", "kube.test") && covers("kube.test", "KUBE.TEST."));
    assert!(covers("*.kube.test", "www.kube.test") && covers("*.kube.test", "a.b.kube.test"));
    for name in ["kube.test", "mykube.test", ".kube.test", "kube.test.evil"] {
        assert!(!covers("*.kube.test", name), "{name}");
    }
    for bad in ["*", "", "*.", "a..b", "a.*.b", "**.a"] {
        assert_eq!(Domain::read(bad), None, "{bad}");
    }
}

#[test]
fn an_annotation_says_that_a_policy_is_not_obeyed_and_of_another_word_it_is_told() {
    let network = |annotations: Value| {
        let metadata = json!({"namespace": "shop", "name": "p", "annotations": annotations});
        network_policy(
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": {}}),
        )
        .unwrap()
    };
    let cluster = |annotations: Value| {
        let spec = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}});
        let metadata = json!({"name": "c", "annotations": annotations});
        let version = "policy.networking.k8s.io/v1alpha2";
        cluster_policy(
            json!({"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": metadata, "spec": spec}),
        )
        .unwrap()
    };
    for (annotations, mode) in [
        (json!(null), Mode::Enforce),
        (json!({"other": "audit"}), Mode::Enforce),
        (json!({"weft.dev/mode": "enforce"}), Mode::Enforce),
        (json!({"weft.dev/mode": "audit"}), Mode::Audit),
    ] {
        for read in [network(annotations.clone()), cluster(annotations.clone())] {
            assert_eq!((read.policy.mode, read.flaws), (mode, vec![]), "{annotations}");
        }
    }
    for read in ["Audit", "", "log"]
        .map(|word| json!({"weft.dev/mode": word}))
        .map(|a| [network(a.clone()), cluster(a)])
        .concat()
    {
        assert_eq!(read.policy.mode, Mode::Enforce);
        let text = read.flaws[0].in_full();
        assert!(
            text.starts_with("metadata.annotations[weft.dev/mode]: it is `")
                && text.ends_with("; the policy is enforced"),
            "{text}"
        );
    }
}
