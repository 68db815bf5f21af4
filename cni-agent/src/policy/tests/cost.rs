//! An event costs what it changes, and not what the cluster has.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use serde_json::{Value, json};

use crate::{
    policy::{Change, Engine, objects, store::Event},
    tables::{Phase, Pod, PodKey},
};

const HERE: &str = "n0";

fn address(n: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap()).into()
}
fn pod(n: usize, namespaces: usize, app: &str) -> Pod {
    Pod {
        namespace: format!("ns{}", n % namespaces),
        name: format!("p{n}"),
        node: Some(format!("n{}", n / namespaces)),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned()), ("pod".to_owned(), n.to_string())]),
        ips: vec![address(n)],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::new(),
    }
}
fn app(n: usize) -> String {
    format!("a{}", n / 7 % 5)
}
fn policy(name: &str, rule: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "ns0", "name": name},
        "spec": {"podSelector": {}, "ingress": [rule]},
    })
}
fn from_app(app: &str) -> Value {
    policy("p", json!({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}]}))
}

/// A node's agent of a cluster with so many pods; one in each namespace is here.
fn cluster(pods: usize, namespaces: usize) -> Engine {
    let mut engine = Engine::new(HERE);
    for n in 0..pods {
        let pod = pod(n, namespaces, &app(n));
        engine.store.handle(&Event::Pod(pod.key(), Some(pod)));
    }
    apply(&mut engine, from_app("a1"));
    engine.compile();
    engine
}
fn apply(engine: &mut Engine, policy: Value) {
    let policy = objects::network_policy(policy).unwrap().policy;
    engine.store.handle(&Event::Policy(policy.name.clone(), Some(policy)));
}
fn writes(engine: &mut Engine, event: Event) -> usize {
    engine.store.handle(&event);
    engine.compile().len()
}

/// Writes of some events in a cluster of that size.
fn costs(pods: usize) -> Vec<usize> {
    let namespaces = 20;
    let mut e = cluster(pods, namespaces);
    let known = |n: usize, app: &str| Event::Pod(pod(n, namespaces, app).key(), Some(pod(n, namespaces, app)));
    vec![
        // A pod like others appears: its address.
        writes(&mut e, known(pods + 5, "a1")),
        // It changes to what others are as well.
        writes(&mut e, known(pods + 5, "a2")),
        // It changes in nothing that a policy looks at: the tunnel names another label class.
        writes(&mut e, {
            let mut p = pod(pods + 5, namespaces, "a2");
            p.labels.insert("pod".into(), "other".into());
            Event::Pod(p.key(), Some(p))
        }),
        // It goes.
        writes(
            &mut e,
            Event::Pod(PodKey::new(format!("ns{}", (pods + 5) % namespaces), format!("p{}", pods + 5)), None),
        ),
        // A policy of a namespace that has no pod here.
        writes(&mut e, {
            let mut p = from_app("a3");
            p["metadata"]["namespace"] = json!("elsewhere");
            let p = objects::network_policy(p).unwrap().policy;
            Event::Policy(p.name.clone(), Some(p))
        }),
        // The same object again.
        writes(&mut e, {
            let p = objects::network_policy(from_app("a1")).unwrap().policy;
            Event::Policy(p.name.clone(), Some(p))
        }),
        // A policy that looks at nothing new: a set, its default, its peers by namespace, its user, and the old one's end.
        writes(&mut e, {
            let ports = json!([{"port": 80}]);
            let mut p = from_app("a1");
            p["spec"]["ingress"][0]["ports"] = ports;
            let p = objects::network_policy(p).unwrap().policy;
            Event::Policy(p.name.clone(), Some(p))
        }),
        // Labels of a namespace that nobody looks at.
        writes(&mut e, Event::Namespace("ns3".into(), Some(BTreeMap::from([("x".into(), "y".into())])))),
        // A node.
        writes(&mut e, Event::Node("n9".into(), Some((BTreeMap::new(), BTreeSet::from([[192, 0, 2, 9].into()]))))),
    ]
}

#[test]
fn an_event_costs_the_same_in_a_cluster_of_any_size() {
    let small = costs(700);
    assert_eq!(small, costs(7000));
    assert_eq!(small[..6], [1, 1, 1, 1, 0, 0]);
    // 20 namespaces have pods with that label: 20 entries come and 20 go, with a rule, two defaults and the pod's own.
    assert_eq!(small[6..], [45, 0, 0]);
}

#[test]
fn a_first_block_that_holds_all_pods_moves_none_of_them() {
    let mut e = Engine::new(HERE);
    for n in 0..700 {
        let mut p = pod(n, 20, &app(n));
        p.ips.push(format!("fd00::{n:x}").parse().unwrap());
        e.store.handle(&Event::Pod(p.key(), Some(p)));
    }
    apply(&mut e, from_app("a1"));
    e.compile();
    let wide = json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]});
    // Two prefixes, the set's default, the peers in it (the classes of a1, and the prefix that is not excepted) and the pod; the old set
    // goes with its default and as many peers.
    apply(&mut e, policy("q", wide.clone()));
    assert_eq!(e.compile().len(), 2 + 1 + 41 + 1 + 1 + 40 + 1);
    let q = objects::network_policy(policy("q", wide)).unwrap().policy;
    e.store.handle(&Event::Policy(q.name, None));
    assert_eq!(e.compile().len(), 1 + 40 + 1 + 1 + 41 + 2 + 1);
}

#[test]
fn nothing_is_left_when_the_last_policy_goes() {
    let mut e = cluster(700, 20);
    apply(
        &mut e,
        policy(
            "q",
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]}}], "ports": [{"port": 1, "endPort": 9}]}),
        ),
    );
    e.compile();
    assert!(e.sizes().entries > 740);
    for name in ["p", "q"] {
        let p = objects::network_policy(policy(name, json!({}))).unwrap().policy;
        e.store.handle(&Event::Policy(p.name, None));
    }
    e.compile();
    // Every pod's address is still somebody's: one class for each namespace.
    assert_eq!((e.sizes().entries, e.sizes().identities, e.sizes().most_of_endpoint), (700, 20, 0));
}

#[test]
fn the_pods_of_one_workload_share_their_set_and_rules() {
    let mut e = Engine::new(HERE);
    for n in 0..30 {
        let mut p = pod(n, 1, "web");
        p.node = Some(HERE.into());
        e.store.handle(&Event::Pod(p.key(), Some(p)));
    }
    apply(&mut e, from_app("web"));
    let changes = e.compile();
    let endpoints = changes.iter().filter(|c| matches!(c, Change::Endpoint { .. })).count();
    // 30 addresses, 30 endpoints, one default and one peer.
    assert_eq!((endpoints, changes.len()), (30, 63));
    let sets: BTreeSet<u32> =
        (0..30).map(|n| e.sets_of(&PodKey::new("ns0", format!("p{n}"))).unwrap().set_in).collect();
    assert_eq!(sets.len(), 1);
}

#[test]
fn what_no_rule_allows_is_nobodys_rule() {
    let mut engine = cluster(4, 2);
    assert!(engine.rule_of(0).is_none());
    apply(&mut engine, policy("p", from_app("a")));
    drop(engine.compile());
    assert!(engine.rule_of(0).is_none());
}
