//! Maps that are too small for what policies ask.
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    moments::{tell, verdicts},
    naive::Objects,
    properties::event,
    random::{self, Dice, NODES},
};
use crate::{
    policy::{
        Engine, Image,
        change::Map,
        engine::{EndpointSets, Room},
        objects,
        rulesets::MANY_PORTS,
        store::Event,
        verdicts::{case::Op, world::Agent},
    },
    tables::{Phase, Pod, PodKey},
};

fn agent(room: Option<Room>) -> Agent {
    let mut engine = Engine::new(NODES[0]);
    room.into_iter().for_each(|room| engine.set_room(room));
    Agent { engine, image: Image::default() }
}

/// Follows events with so much room; how often something did not fit.
fn check(seed: u64, events: usize, room: Room) -> Result<usize, TestCaseError> {
    let mut d = Dice::new(seed);
    let mut o = Objects::default();
    let (mut small, mut ample) = (agent(Some(room)), agent(None));
    let mut refusals = 0;
    for n in 0..NODES.len() + events {
        let op = match NODES.get(n) {
            Some(name) => {
                o.nodes.insert((*name).into(), random::node(&mut d, n));
                json!({"op": "apply", "kind": "Node", "name": name, "object": o.nodes[*name]})
            }
            None => event(&mut d, &mut o),
        };
        let op: Op = serde_json::from_value(op).unwrap();
        tell(&mut small, &op);
        tell(&mut ample, &op);
        ample.engine.compile().into_iter().for_each(|c| ample.image.apply(c));
        let had: BTreeMap<PodKey, EndpointSets> = small.image.endpoints.clone();
        for change in small.engine.compile() {
            small.image.apply(change);
            let [peers, rules, ports] = [Map::Peers, Map::Rules, Map::Ports].map(|map| small.image.len_of(map));
            let used = Room { peers, rules, ports };
            prop_assert!(peers <= room.peers && rules <= room.rules && ports <= room.ports, "{:?} of {:?}", used, room);
        }
        let mut anew = Image::default();
        small.engine.contents().for_each(|c| anew.apply(c));
        prop_assert_eq!(&anew, &small.image);
        let (waiting, withheld) = (small.engine.waiting().clone(), small.engine.withheld().clone());
        refusals += waiting.len() + withheld.len();
        for pod in &waiting {
            prop_assert_eq!(small.image.endpoints.get(pod), had.get(pod), "{} waits with what it had", pod);
        }
        for pod in ample.image.endpoints.keys() {
            prop_assert!(waiting.contains(pod) || small.image.endpoints.contains_key(pod));
        }
        let right: BTreeMap<_, _> = verdicts(&ample, &o).into_iter().collect();
        for (flow, may) in verdicts(&small, &o) {
            let (pod, direction, (own, peer), _) = &flow;
            if waiting.contains(pod) {
                continue;
            }
            let is_known = !withheld.iter().any(|i| small.engine.has(*i, *peer));
            let sets = small.image.endpoints[pod];
            let is_isolated = match direction {
                objects::Direction::Ingress => sets.set_in != 0,
                objects::Direction::Egress => sets.set_out != 0,
            };
            let want = if is_known || !is_isolated || own == peer { right[&flow] } else { false };
            prop_assert_eq!(may, want, "{:?}, known: {}", flow, is_known);
        }
    }
    small.engine.set_room(Room::of_maps());
    small.engine.compile().into_iter().for_each(|c| small.image.apply(c));
    prop_assert!(small.engine.waiting().is_empty() && small.engine.withheld().is_empty());
    prop_assert_eq!(verdicts(&small, &o), verdicts(&ample, &o));
    prop_assert_eq!(small.engine.sizes(), ample.engine.sizes());
    Ok(refusals)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 8, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_does_not_fit_changes_nothing_else(seed in any::<u64>(), events in 1_usize..60, peers in 1_usize..60, rules in 1_usize..120, ports in 0_usize..200) {
        check(seed, events, Room { peers, rules, ports })?;
    }
}

#[test]
fn small_maps_do_not_hold_all_policies() {
    let refusals: usize = (0..6).map(|seed| check(seed, 60, Room { peers: 8, rules: 12, ports: 40 }).unwrap()).sum();
    assert!(refusals > 80, "{refusals}");
}

fn pod(name: &str, app: &str, n: u8) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        node: Some(NODES[0].into()),
        labels: BTreeMap::from([("app".into(), app.into())]),
        ips: vec![[10, 0, 0, n].into()],
        phase: Phase::Running,
        host_network: false,
        ports: std::collections::BTreeSet::new(),
    }
}
/// Pods of this app are reached from the apps named, on so many ports that lie apart.
fn policy(app: &str, from: &[&str], ports: u16) -> Event {
    let ports: Vec<Value> = (0..ports).map(|n| json!({"port": 1 + 2 * n})).collect();
    let from: Vec<Value> = from.iter().map(|app| json!({"podSelector": {"matchLabels": {"app": app}}})).collect();
    let object = json!({"metadata": {"namespace": "shop", "name": app}, "spec": {
        "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]}});
    let policy = objects::network_policy(object).unwrap().policy;
    Event::Policy(policy.name.clone(), Some(policy))
}
struct Rig {
    engine: Engine,
    image: Image,
}
impl Rig {
    fn with(room: Room) -> Self {
        let Agent { engine, image } = agent(Some(room));
        Self { engine, image }
    }
    fn tell(&mut self, events: impl IntoIterator<Item = Event>) -> usize {
        events.into_iter().for_each(|e| self.engine.store.handle(&e));
        let changes = self.engine.compile();
        let n = changes.len();
        changes.into_iter().for_each(|c| self.image.apply(c));
        n
    }
    fn pod(&mut self, name: &str, app: &str, n: u8) {
        let pod = pod(name, app, n);
        self.tell([Event::Pod(pod.key(), Some(pod))]);
    }
    fn set(&self, name: &str) -> Option<u32> {
        self.image.endpoints.get(&PodKey::new("shop", name)).map(|sets| sets.set_in)
    }
    fn waiting(&self) -> Vec<String> {
        self.engine.waiting().iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_set_that_does_not_fit_leaves_its_pod_the_old_one_and_others_theirs_until_there_is_room() {
    let mut rig = Rig::with(Room { peers: 100, rules: 20, ports: 0 });
    rig.pod("web", "web", 1);
    rig.pod("db", "db", 2);
    rig.tell([policy("web", &["db"], 3)]);
    let old = rig.set("web").unwrap();
    assert!(old != 0 && rig.waiting().is_empty());
    rig.tell([policy("web", &["db"], 30)]);
    assert_eq!((rig.set("web"), rig.waiting()), (Some(old), vec!["shop/web".to_owned()]));
    // Whoever needs less gets it, and one that is new is isolated.
    rig.tell([policy("db", &["web"], 5)]);
    assert_ne!(rig.set("db"), Some(0));
    rig.pod("late", "web", 3);
    assert_eq!((rig.set("late"), rig.waiting().len()), (None, 2));
    // What it has is followed: another pod of that app is let in by the old set, too.
    rig.pod("db2", "db", 4);
    assert_eq!(rig.engine.set(old).unwrap().peers.len(), 1);
    assert_eq!(rig.tell([]), 0, "what does not fit costs no write");
    rig.tell([policy("web", &["db"], 10)]);
    assert!(rig.waiting().is_empty() && rig.set("web") != Some(old) && rig.set("late") == rig.set("web"));
    assert!(rig.engine.set(old).is_none());
}

#[test]
fn single_ports_have_room_of_their_own_from_so_many_on() {
    let few = u16::try_from(MANY_PORTS).unwrap() - 1;
    let mut rig = Rig::with(Room { peers: 100, rules: MANY_PORTS - 1, ports: 2 * MANY_PORTS + 1 });
    rig.pod("web", "web", 1);
    rig.pod("db", "db", 2);
    rig.tell([policy("web", &["db"], few)]);
    assert_eq!((rig.image.len_of(Map::Rules), rig.image.len_of(Map::Ports)), (MANY_PORTS - 1, 0));
    rig.tell([policy("web", &["db"], few + 1)]);
    assert_eq!((rig.image.len_of(Map::Rules), rig.image.len_of(Map::Ports)), (0, MANY_PORTS));
    let set = rig.set("web");
    // Beside what is there it has no room, neither there nor in the map of rules, and without it it had.
    rig.tell([policy("web", &["db"], few + 3)]);
    assert_eq!((rig.set("web"), rig.waiting()), (set, vec!["shop/web".to_owned()]));
    assert_eq!(rig.image.len_of(Map::Ports), MANY_PORTS);
    rig.tell([policy("web", &["db"], 1)]);
    assert!(rig.waiting().is_empty() && rig.image.len_of(Map::Ports) == 0);
    rig.tell([policy("web", &["db"], few + 3)]);
    assert!(rig.waiting().is_empty() && rig.image.len_of(Map::Ports) == MANY_PORTS + 2);
}

#[test]
fn many_ports_without_room_of_their_own_are_in_the_map_of_rules_as_few_are() {
    let many = u16::try_from(MANY_PORTS).unwrap();
    let mut rig = Rig::with(Room { peers: 100, rules: 100, ports: 2 * MANY_PORTS - 1 });
    for (app, n) in [("web", 1), ("db", 2), ("cache", 3)] {
        rig.pod(app, app, n);
    }
    rig.tell([policy("web", &["db"], many)]);
    rig.tell([policy("db", &["web"], many + 1)]);
    assert_eq!((rig.image.len_of(Map::Ports), rig.image.len_of(Map::Rules)), (MANY_PORTS, MANY_PORTS + 1));
    // The next one finds the room that the first one leaves, and what is there stays where it is.
    rig.tell([policy("web", &["db"], 1)]);
    rig.tell([policy("cache", &["db"], many + 2)]);
    assert_eq!((rig.image.len_of(Map::Ports), rig.image.len_of(Map::Rules)), (MANY_PORTS + 2, MANY_PORTS + 2));
    assert!(rig.waiting().is_empty());
}

#[test]
fn what_waits_comes_into_force_when_another_set_goes() {
    let mut rig = Rig::with(Room { peers: 100, rules: 20, ports: 0 });
    rig.pod("web", "web", 1);
    rig.pod("db", "db", 2);
    rig.tell([policy("db", &["web"], 15)]);
    rig.tell([policy("web", &["db"], 10)]);
    assert_eq!((rig.set("web"), rig.waiting().len()), (Some(0), 1));
    rig.tell([policy("db", &["web"], 2)]);
    assert!(rig.waiting().is_empty() && rig.set("web") != Some(0));
}

#[test]
fn a_peer_whose_entries_do_not_fit_is_unknown_to_isolated_pods_until_they_do() {
    let mut rig = Rig::with(Room { peers: 4, rules: 20, ports: 0 });
    rig.pod("web", "web", 1);
    rig.tell([policy("web", &["a", "b"], 1)]);
    rig.pod("a", "a", 2);
    assert!(rig.engine.withheld().is_empty());
    // A second set takes what is left.
    rig.pod("db", "db", 3);
    rig.tell([policy("db", &["a"], 1)]);
    assert!(rig.waiting().is_empty());
    rig.pod("b", "b", 4);
    assert_eq!(rig.engine.withheld().len(), 1);
    assert_eq!(rig.engine.identity_of([10, 0, 0, 4].into()), cni_common::policy::IDENTITY_UNKNOWN);
    rig.tell([Event::Pod(PodKey::new("shop", "db"), None)]);
    assert!(rig.engine.withheld().is_empty());
    assert_ne!(rig.engine.identity_of([10, 0, 0, 4].into()), cni_common::policy::IDENTITY_UNKNOWN);
}
