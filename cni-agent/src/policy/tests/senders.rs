//! Pods of other nodes, as the tunnel names them: by node, label class and where the address is.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::random::Dice;
use crate::{
    identity::label_class,
    policy::{
        Change, Engine,
        change::Map,
        classes::Class,
        objects,
        senders::{Sender, Way},
        store::Event,
    },
    tables::{NamedPort, Phase, Pod, PodKey, Protocol},
};

const HERE: &str = "here";
const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn cidr(node: usize) -> IpNet {
    format!("10.0.{node}.0/24").parse().unwrap()
}
fn way(node: usize) -> Option<Way> {
    let v6 = format!("fd00:{node}::/64").parse().unwrap();
    Some(Way { number: u32::try_from(node).unwrap() + 10, cidrs: vec![cidr(node), v6] })
}
fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
/// A pod whose object has no address yet.
fn pod(name: &str, node: &str, labels: BTreeMap<String, String>) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        node: Some(node.into()),
        labels,
        ips: Vec::new(),
        phase: Phase::Pending,
        host_network: false,
        ports: BTreeSet::new(),
    }
}
fn set(engine: &mut Engine, pod: Pod) {
    engine.store.handle(&Event::Pod(pod.key(), Some(pod)));
}
fn remove(engine: &mut Engine, name: &str) {
    engine.store.handle(&Event::Pod(PodKey::new("shop", name), None));
}
/// All pods of the namespace, of which one is here, let in whom this rule names.
fn policy(engine: &mut Engine, from: Value) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"from": [from]}]},
    });
    let policy = objects::network_policy(object).unwrap().policy;
    engine.store.handle(&Event::Policy(policy.name.clone(), Some(policy)));
}
/// Of a node with a pod of its own and two others.
fn cluster() -> Engine {
    let mut engine = Engine::new(HERE);
    set(&mut engine, pod("own", HERE, labels(&[])));
    engine.store.senders.apply_way("n1", way(1));
    engine.store.senders.apply_way("n2", way(2));
    policy(&mut engine, json!({"podSelector": {"matchLabels": {"app": "a"}}}));
    engine.compile();
    engine
}
#[test]
fn who_sends_is_told_by_the_label_class_unless_the_address_says_the_same() {
    let mut engine = cluster();
    let a = labels(&[("app", "a")]);
    let class = label_class("shop", &a);
    set(&mut engine, pod("new", "n1", a.clone()));
    let (there, elsewhere): (IpAddr, IpAddr) = ("10.0.1.9".parse().unwrap(), "10.0.2.9".parse().unwrap());
    let named = |e: &Engine, address, class| e.sends_as(address, class).map(|pods| pods.labels.clone());
    assert!(named(&engine, there, class).is_some_and(|labels| labels.iter().count() == 1));
    assert_eq!(named(&engine, elsewhere, class), None, "the node has no pods of the class");
    assert_eq!((named(&engine, there, 0), named(&engine, there, class + 1)), (None, None));
    // The address was another pod's, and then is the new one's.
    set(&mut engine, Pod { ips: vec![there], ..pod("old", "n1", labels(&[])) });
    assert!(named(&engine, there, class).is_some());
    set(&mut engine, Pod { ips: vec![there], ..pod("old", "n1", a) });
    assert_eq!(named(&engine, there, class), None);
}

fn of_senders(plan: &[Change]) -> Vec<bool> {
    let entries = plan.iter().filter_map(|c| match c {
        Change::Entry { map: Map::Senders, value, .. } => Some(value.is_some()),
        _ => None,
    });
    entries.collect()
}
/// What the maps say, by what it means.
fn meant(engine: &Engine) -> BTreeMap<Sender, Class> {
    engine.senders().map(|(sender, id)| (sender, Class::clone(engine.class(id).expect("is in use")))).collect()
}

#[test]
fn a_pod_without_an_address_costs_an_entry_a_range_of_its_node_and_another_one_like_it_none() {
    let mut e = cluster();
    set(&mut e, pod("first", "n1", labels(&[("app", "a"), ("n", "1")])));
    let plan = e.compile();
    assert_eq!(of_senders(&plan), [true, true]);
    let at = |wanted: Map| plan.iter().position(|c| matches!(c, Change::Entry { map, .. } if *map == wanted));
    assert!(at(Map::Peers) < at(Map::Senders), "what sets say of an identity is there before anybody has it: {plan:?}");
    set(&mut e, pod("second", "n1", labels(&[("app", "a"), ("n", "1")])));
    assert_eq!(e.compile(), []);
    set(&mut e, pod("third", "n1", labels(&[("app", "a"), ("n", "2")])));
    assert_eq!(of_senders(&e.compile()), [true, true]);
    remove(&mut e, "first");
    assert_eq!(e.compile(), []);
    remove(&mut e, "second");
    assert_eq!(of_senders(&e.compile()), [false, false]);
    // A node that is not known yet, no node, and this one.
    set(&mut e, pod("early", "n3", labels(&[])));
    set(&mut e, Pod { node: None, ..pod("pending", "", labels(&[])) });
    set(&mut e, pod("local", HERE, labels(&[])));
    assert_eq!(of_senders(&e.compile()), [] as [bool; 0]);
    e.store.senders.apply_way("n3", way(3));
    assert_eq!(of_senders(&e.compile()), [true, true]);
    // Another number in the maps.
    e.store.senders.apply_way("n3", way(3).map(|w| Way { number: 99, ..w }));
    assert_eq!(of_senders(&e.compile()).len(), 4);
    assert!(e.senders().all(|(s, _)| s.node != 13) && e.senders().any(|(s, _)| s.node == 99));
    e.store.senders.apply_way("n3", None);
    assert_eq!(of_senders(&e.compile()), [false, false]);
}

#[test]
fn two_classes_of_a_node_with_one_hash_have_none_and_ports_make_no_class() {
    let mut seen = BTreeMap::new();
    let (one, other) = (0..)
        .find_map(|n: u32| seen.insert(label_class("shop", &labels(&[("n", &n.to_string())])), n).map(|m| (m, n)))
        .expect("24 bits are not many");
    let numbered = |n: u32| labels(&[("n", &n.to_string())]);
    let mut e = cluster();
    set(&mut e, pod("one", "n1", numbered(one)));
    set(&mut e, pod("elsewhere", "n2", numbered(other)));
    assert_eq!(of_senders(&e.compile()), [true; 4], "on two nodes");
    set(&mut e, pod("other", "n1", numbered(other)));
    assert_eq!(of_senders(&e.compile()), [false, false]);
    remove(&mut e, "one");
    assert_eq!(of_senders(&e.compile()), [true, true]);
    let http = NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 };
    set(&mut e, Pod { ports: BTreeSet::from([http]), ..pod("ports", "n1", numbered(other)) });
    assert_eq!(of_senders(&e.compile()), [] as [bool; 0]);
}

#[test]
fn a_block_inside_of_a_nodes_range_has_entries_there_and_one_around_it_costs_none() {
    let mut e = cluster();
    set(&mut e, pod("p", "n1", labels(&[("app", "a")])));
    e.compile();
    policy(&mut e, json!({"ipBlock": {"cidr": "10.0.0.0/8"}}));
    assert_eq!(of_senders(&e.compile()), [] as [bool; 0], "both ranges keep their identities");
    policy(&mut e, json!({"ipBlock": {"cidr": "10.0.1.128/25"}}));
    e.compile();
    let inside: IpNet = "10.0.1.128/25".parse().unwrap();
    let class = label_class("shop", &labels(&[("app", "a")]));
    let found = meant(&e);
    assert_eq!(found[&Sender { node: 11, class, prefix: inside }].block, Some(inside));
    assert_eq!(found[&Sender { node: 11, class, prefix: cidr(1) }].block, None);
    assert_eq!(found.len(), 3);
    policy(&mut e, json!({"podSelector": {}}));
    e.compile();
    assert_eq!(meant(&e).len(), 2);
}

/// All objects, and an engine that has followed them.
#[derive(Default)]
struct Objects {
    pods: BTreeMap<PodKey, Pod>,
    ways: BTreeMap<usize, Way>,
    rules: Option<Value>,
}
fn step(d: &mut Dice, o: &mut Objects, e: &mut Engine) {
    let n = d.below(3) as usize + 1;
    match d.below(10) {
        0..5 => {
            let name = format!("p{}", d.below(6));
            let labels = labels(&[("app", d.one(&["a", "b", "c"]))]);
            let ips =
                if d.below(2) == 0 { vec![] } else { vec![IpAddr::from(Ipv4Addr::new(10, 0, 1, d.below(256) as u8))] };
            let pod = Pod { ips, ..pod(&name, d.one(&["n1", "n2", "n3", HERE]), labels) };
            o.pods.insert(pod.key(), pod.clone());
            set(e, pod);
        }
        5..6 => {
            let name = format!("p{}", d.below(6));
            o.pods.remove(&PodKey::new("shop", &*name));
            remove(e, &name);
        }
        6..8 => {
            let way = if d.below(3) == 0 {
                None
            } else {
                way(n).map(|w| Way { number: w.number + d.below(2) as u32 * 10, ..w })
            };
            match &way {
                Some(way) => drop(o.ways.insert(n, way.clone())),
                None => drop(o.ways.remove(&n)),
            }
            e.store.senders.apply_way(NODES[n - 1], way);
        }
        _ => {
            let rules = [
                json!({"podSelector": {"matchLabels": {"app": "a"}}}),
                json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}),
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.1.64/26"]}}),
                json!({"ipBlock": {"cidr": "10.0.1.0/24"}}),
                json!({"ipBlock": {"cidr": "10.0.2.7/32"}}),
                json!({"ipBlock": {"cidr": "::/0", "except": ["fd00:1::/65"]}}),
            ];
            let rule = rules[d.below(6) as usize].clone();
            o.rules = Some(rule.clone());
            policy(e, rule);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Whatever happened, the entries are those of an engine that meets the objects all at once, and mean the same; nothing is left in the maps.
    #[test]
    fn increments_end_where_a_new_agent_would_begin(seed: u64, steps in 1_usize..40) {
        let mut d = Dice::new(seed);
        let (mut o, mut e) = (Objects::default(), Engine::new(HERE));
        let mut image = crate::policy::Image::default();
        for n in 0..steps {
            step(&mut d, &mut o, &mut e);
            if n % 3 != 2 {
                e.compile().into_iter().for_each(|change| image.apply(change));
            }
        }
        e.compile().into_iter().for_each(|change| image.apply(change));
        let mut new = Engine::new(HERE);
        o.pods.values().for_each(|pod| set(&mut new, pod.clone()));
        o.ways.iter().for_each(|(n, way)| new.store.senders.apply_way(NODES[n - 1], Some(way.clone())));
        o.rules.into_iter().for_each(|rule| policy(&mut new, rule));
        new.compile();
        let text = |e: &Engine| meant(e).into_iter().map(|(s, c)| format!("{s:?} {}", describe(&c))).collect::<Vec<_>>();
        prop_assert_eq!(text(&e), text(&new));
        prop_assert_eq!(e.sizes(), new.sizes());
        prop_assert_eq!(image.len_of(Map::Senders), e.senders().count());
        // Another engine's image, entry for entry.
        let mut again = crate::policy::Image::default();
        e.contents().for_each(|change| again.apply(change));
        prop_assert_eq!(again.len(), image.len());
    }
}
/// A class without the numbers that an engine gives.
fn describe(c: &Class) -> String {
    format!("{:?} {:?}", c.pod(), c.block)
}
