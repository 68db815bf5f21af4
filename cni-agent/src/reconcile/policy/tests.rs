//! Rows in, writes out: what an event costs, and that at every moment the old policies hold or the new ones.
use std::{collections::BTreeMap, io, net::Ipv4Addr, time::Duration};

use bytemuck::pod_read_unaligned;
use cni_common::{
    maps::Local,
    net::{Be16, Ip4, Mac},
    policy::RuleKey,
    schema,
};
use cni_ebpf::{
    family::V4,
    policy::{Flow, ingress},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    compile::{
        Entry, Heard, InForce, NodeNumbers, SET_ISOLATED,
        fixtures::{facts, node},
    },
    datapath::hits::Hits,
    policy::{Image, objects, rulesets::MANY_PORTS},
    reconcile::delta::Delta,
    tables::{Endpoint, Namespace, Phase, Pod, Terms},
};

/// Maps in memory, with all writes in their order.
#[derive(Clone, Default)]
struct Memory {
    entries: BTreeMap<EntryKey, Vec<u8>>,
    log: Vec<(EntryKey, Option<Vec<u8>>)>,
    /// So many writes are taken, and no more.
    left: Option<usize>,
}
impl Memory {
    fn of(&self, policy: bool) -> Vec<Entry> {
        let is_policy = |k: &EntryKey| Map::ALL.iter().any(|m| m.spec().id == k.map().id);
        self.entries.clone().into_iter().filter(|(k, _)| is_policy(k) == policy).collect()
    }
    fn write(&mut self, key: &EntryKey, value: Option<&[u8]>) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
        }
        self.log.push((key.clone(), value.map(<[u8]>::to_vec)));
        match value {
            Some(value) => drop(self.entries.insert(key.clone(), value.to_vec())),
            None => drop(self.entries.remove(key)),
        }
        Ok(())
    }
}
impl Target for Memory {
    fn dump(&mut self) -> io::Result<Vec<Entry>> {
        Ok(self.of(false))
    }
    fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
        Ok(self.of(true))
    }
    fn upsert(&mut self, key: &EntryKey, value: &[u8]) -> io::Result<()> {
        self.write(key, Some(value))
    }
    fn delete(&mut self, key: &EntryKey) -> io::Result<()> {
        self.write(key, None)
    }
}

/// An agent: its tables, and the part of the reconciler that writes maps.
struct Rig {
    tables: Tables,
    desired: Desired,
    policies: Policies,
    kernel: Memory,
}
impl Rig {
    fn on(mut kernel: Memory) -> Self {
        kernel.log.clear();
        let mut delta = Delta::default();
        delta.adopt(&mut kernel).unwrap();
        let epoch = kernel.entries.iter().find(|(k, _)| k.map().id == schema::CT_CONFIG.id);
        let epoch = epoch.map_or(1, |(_, v)| pod_read_unaligned(&v[..4]));
        let in_force = InForce { epoch, ..InForce::default() };
        let heard = Heard { policies: false, ..Heard::EVERYTHING };
        let desired = Desired::new(facts(), NodeNumbers::default(), delta, in_force, heard);
        let policies = Policies::adopt(&facts(), &mut kernel).unwrap();
        Self { tables: Tables::new(), desired, policies, kernel }
    }
    /// As the reconciler goes through changed rows; the writes to maps of policy.
    fn pass(&mut self) -> u64 {
        let (_, mut rows) = self.tables.wait_dirty(Duration::ZERO);
        let before = self.policies.writes;
        self.desired.heard.policies = self.policies.have_begun();
        self.policies.follow(&rows, true, (&self.tables, &mut self.desired), &mut self.kernel);
        self.desired.follow(&self.tables.read(), &mut rows);
        self.desired.delta.flush(&mut self.kernel);
        self.policies.writes - before
    }
    fn policy(&self, object: Value) {
        self.tables.set_policy(objects::network_policy(object).unwrap());
    }
    fn cluster(&self) {
        self.tables.set_node(node("here", 1));
        self.tables.set_node(node("there", 2));
        self.tables.set_pod(pod("web", "here", &[]));
        self.tables.set_endpoint(endpoint(9, "web"));
        self.tables.set_pod(pod("near", "here", &[]));
        self.tables.set_endpoint(endpoint(10, "near"));
        self.tables.set_pod(pod("far", "there", &["10.244.2.5"]));
    }
    /// The policy sets of `web` for ingress.
    fn set(&self) -> u32 {
        set_of(&self.kernel.entries)
    }
    fn epoch(&self) -> u32 {
        self.desired.in_force.epoch
    }
}

const WEB: [u8; 4] = [10, 244, 1, 9];
const NEAR: [u8; 4] = [10, 244, 1, 10];
const FAR: [u8; 4] = [10, 244, 2, 5];

fn pod(name: &str, node: &str, ips: &[&str]) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        node: Some(node.into()),
        labels: BTreeMap::from([("app".into(), name.into())]),
        ips: ips.iter().map(|a| a.parse().unwrap()).collect(),
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::new(),
    }
}
fn endpoint(id: u16, pod: &str) -> Endpoint {
    Endpoint {
        id,
        container_id: pod.into(),
        ifname: "eth0".into(),
        namespace: "shop".into(),
        pod_name: pod.into(),
        netns: format!("/run/netns/{pod}"),
        ifindex: 70 + u32::from(id),
        device: format!("weft{id}"),
        mac: Mac::new([10, 1, 2, 3, 4, id as u8]),
        ipv4: Some(Ipv4Addr::from([10, 244, 1, id as u8])),
        ipv6: None,
        mtu: 1450,
        terms: Terms::default(),
    }
}
fn into_web(from: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": "web"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from, "ports": [{"port": 80}]}]}})
}
fn of(app: &str) -> Value {
    json!([{"podSelector": {"matchLabels": {"app": app}}}])
}
fn set_of(entries: &BTreeMap<EntryKey, Vec<u8>>) -> u32 {
    let key = EntryKey::new(&schema::LOCAL4, WEB).unwrap();
    entries.get(&key).map_or(0, |v| pod_read_unaligned::<Local>(v).set_in)
}
/// Whether the maps let somebody in to port 80 of `web`.
fn allows(entries: &BTreeMap<EntryKey, Vec<u8>>, from: [u8; 4]) -> bool {
    let mut image = Image::default();
    for (key, value) in entries {
        if let Some(map) = Map::ALL.into_iter().find(|m| m.spec().id == key.map().id) {
            image.apply(Change::Entry { map, key: key.key.to_vec(), value: Some(value.clone()) });
        }
    }
    let flow = Flow::<V4> { src: Ip4::new(from), dst: Ip4::new(WEB), proto: 6, port: Be16::from_host(80) };
    ingress(&image, set_of(entries), false, &flow).is_allowed()
}
/// What is allowed before the logged writes, and after each.
fn moments(before: &Memory, after: &Memory, from: [u8; 4]) -> Vec<bool> {
    let mut entries = before.entries.clone();
    let mut all = vec![allows(&entries, from)];
    for (key, value) in &after.log {
        match value {
            Some(value) => drop(entries.insert(key.clone(), value.clone())),
            None => drop(entries.remove(key)),
        }
        all.push(allows(&entries, from));
    }
    all
}

#[test]
fn a_pod_is_isolated_until_the_objects_are_heard_and_policies_reach_it_with_few_writes() {
    let mut rig = Rig::on(Memory::default());
    rig.desired.heard.objects = false;
    rig.cluster();
    rig.pass();
    assert_eq!(rig.set(), SET_ISOLATED);
    rig.desired.heard.objects = true;
    rig.pass();
    assert_eq!(rig.set(), 0, "no policy holds for it");
    let epoch = rig.epoch();
    rig.policy(into_web(of("near")));
    // Default and one peer, one rule, and the address of `near`, which is told apart now; the others stay who they are.
    assert_eq!(rig.pass(), 4);
    assert_eq!(rig.epoch(), epoch + 1);
    assert!(allows(&rig.kernel.entries, NEAR) && !allows(&rig.kernel.entries, FAR));
    assert_eq!(rig.pass(), 0);
    rig.policy(into_web(of("near")));
    assert_eq!((rig.pass(), rig.epoch()), (0, epoch + 1), "the same again");
    rig.tables.remove_policy(&objects::network_name(&into_web(json!([]))).unwrap());
    rig.pass();
    assert_eq!(rig.set(), 0);
    assert!(allows(&rig.kernel.entries, FAR));
}

#[test]
fn an_endpoint_without_a_pod_of_kubernetes_is_not_isolated_and_one_without_an_object_has_no_labels() {
    let mut rig = Rig::on(Memory::default());
    rig.tables.set_node(node("here", 1));
    rig.policy(json!({"metadata": {"namespace": "shop", "name": "all"}, "spec": {"podSelector": {}}}));
    rig.tables.set_endpoint(Endpoint { namespace: String::new(), ..endpoint(9, "web") });
    rig.pass();
    assert_eq!(rig.set(), 0);
    rig.tables.set_endpoint(endpoint(9, "web"));
    rig.pass();
    assert!(rig.set() != 0 && rig.set() != SET_ISOLATED, "a policy of its namespace selects all pods");
    // Where every pod has an object, it is not known yet; nor is its namespace.
    let mut rig = Rig::on(Memory::default());
    rig.desired.facts.objects_are_all = true;
    rig.policies = Policies::adopt(&rig.desired.facts, &mut rig.kernel).unwrap();
    rig.tables.set_node(node("here", 1));
    rig.tables.set_endpoint(endpoint(9, "web"));
    rig.pass();
    assert_eq!(rig.set(), SET_ISOLATED);
    rig.tables.set_pod(pod("web", "here", &[]));
    rig.pass();
    assert_eq!(rig.set(), SET_ISOLATED, "its namespace is not known");
    rig.tables.set_namespace(Namespace { name: "shop".into(), labels: BTreeMap::new() });
    rig.pass();
    assert_eq!(rig.set(), 0);
}

/// A pod that no policy names, with a device of its own, under the endpoint id and the address of another one.
fn heir_of(id: u16) -> (Pod, Endpoint) {
    (pod("heir", "here", &[]), Endpoint { ifindex: HEIR, ..endpoint(id, "heir") })
}
const HEIR: u32 = 99;

/// What the entries of the heir's address have said: how many writes were before, and its set for ingress.
fn written_of_heir(log: &[(EntryKey, Option<Vec<u8>>)]) -> Vec<(usize, u32)> {
    let local = |(n, (key, value)): (usize, &(EntryKey, Option<Vec<u8>>))| {
        let value = value.as_ref().filter(|_| key.map().id == schema::LOCAL4.id)?;
        let Local { ifindex, set_in, .. } = pod_read_unaligned(value);
        (ifindex == HEIR).then_some((n, set_in))
    };
    log.iter().enumerate().filter_map(local).collect()
}

#[test]
fn a_pod_under_the_endpoint_id_and_the_address_of_a_deleted_one_has_nothing_of_it() {
    for (id, former) in [(9, "web"), (10, "near")] {
        for at_once in [true, false] {
            let mut rig = Rig::on(Memory::default());
            rig.cluster();
            rig.policy(into_web(of("near")));
            rig.pass();
            assert!(allows(&rig.kernel.entries, NEAR) && rig.set() != 0);
            rig.kernel.log.clear();
            let before = rig.kernel.clone();
            rig.tables.remove_endpoint(id);
            rig.tables.remove_pod(&PodKey::new("shop", former));
            if !at_once {
                rig.pass();
            }
            let (pod, endpoint) = heir_of(id);
            rig.tables.set_pod(pod);
            rig.tables.set_endpoint(endpoint);
            rig.pass();
            let written = written_of_heir(&rig.kernel.log);
            let (first, _) = written[0];
            assert!(written.iter().all(|(_, set)| [0, SET_ISOLATED].contains(set)), "{former}'s set: {written:?}");
            assert_eq!(written.last().map(|(_, set)| *set), Some(0), "no policy selects it");
            if former == "near" {
                let moments = moments(&before, &rig.kernel, NEAR);
                assert!(moments[first + 1..].iter().all(|m| !*m), "{former}'s identity: {moments:?} from {first}");
            }
            let named = |address: [u8; 4]| {
                let mut event = crate::api::types::DropEvent {
                    src: Some(FAR.into()),
                    dst: Some(address.into()),
                    ..crate::api::tests::event("PolicyIngress")
                };
                rig.policies.explain(&mut event, 0, 0);
                (event.ends.unwrap()[1].clone(), event.policies)
            };
            assert_eq!(named([10, 244, 1, id as u8]), (Some("shop/heir".to_owned()), vec![]));
        }
    }
}

#[test]
fn an_agent_that_begins_gives_a_pod_nothing_of_the_one_that_had_its_endpoint_id_and_address() {
    for (id, former) in [(9, "web"), (10, "near")] {
        let mut earlier = Rig::on(Memory::default());
        earlier.cluster();
        earlier.policy(into_web(of("near")));
        earlier.pass();
        // The pod went, and the other came, while the agent began.
        let mut next = Rig::on(earlier.kernel.clone());
        next.cluster();
        next.policy(into_web(of("near")));
        next.tables.remove_endpoint(id);
        next.tables.remove_pod(&PodKey::new("shop", former));
        let (pod, endpoint) = heir_of(id);
        next.tables.set_pod(pod);
        next.tables.set_endpoint(endpoint);
        next.pass();
        let written = written_of_heir(&next.kernel.log);
        assert_eq!(written.last().map(|(_, set)| *set), Some(0), "{former}");
        assert!(written.iter().all(|(_, set)| [0, SET_ISOLATED].contains(set)), "{former}'s set: {written:?}");
        if former == "near" {
            let moments = moments(&earlier.kernel, &next.kernel, NEAR);
            assert!(moments[written[0].0 + 1..].iter().all(|m| !*m), "{former}'s identity: {moments:?}");
        }
    }
}

#[test]
fn a_change_of_policy_is_the_old_one_or_the_new_one_at_each_write() {
    let mut rig = Rig::on(Memory::default());
    rig.cluster();
    rig.policy(into_web(json!([of("near")[0], of("far")[0]])));
    rig.pass();
    let before = rig.kernel.clone();
    rig.kernel.log.clear();
    rig.policy(into_web(json!([of("near")[0], {"ipBlock": {"cidr": "192.0.2.0/24"}}])));
    rig.pass();
    assert!(moments(&before, &rig.kernel, NEAR).iter().all(|m| *m), "allowed by both");
    assert!(moments(&before, &rig.kernel, [203, 0, 113, 1]).iter().all(|m| !*m), "allowed by neither");
    let revoked = moments(&before, &rig.kernel, FAR);
    assert_eq!(revoked.windows(2).filter(|w| w[0] != w[1]).count(), 1, "one moment: {revoked:?}");
}

/// The same on so many ports, that of `allows` among them, that they have a map of their own.
fn on_many_ports(mut policy: Value) -> Value {
    policy["spec"]["ingress"][0]["ports"] = (0..PORTS).map(|n| json!({"port": 80 + 2 * n})).collect();
    policy
}
const PORTS: usize = MANY_PORTS;

/// Rule sets that the map of single ports has entries of.
fn by_port(entries: &BTreeMap<EntryKey, Vec<u8>>) -> BTreeSet<u32> {
    let keys = entries.keys().filter(|k| k.map().id == schema::POLICY_PORT.id);
    keys.map(|k| pod_read_unaligned::<RuleKey>(&k.key).rules).collect()
}

#[test]
fn many_ports_change_and_are_taken_over_whole_and_their_numbers_mean_nothing_else() {
    let mut rig = Rig::on(Memory::default());
    rig.cluster();
    rig.policy(into_web(of("near")));
    rig.pass();
    assert_eq!(by_port(&rig.kernel.entries), BTreeSet::new());
    let mut met = BTreeSet::new();
    for (from, near, far) in [("near", true, false), ("far", false, true), ("near", true, false)] {
        let before = rig.kernel.clone();
        rig.kernel.log.clear();
        rig.policy(on_many_ports(into_web(of(from))));
        rig.pass();
        for (who, may) in [(NEAR, near), (FAR, far)] {
            let moments = moments(&before, &rig.kernel, who);
            assert_eq!(moments.last(), Some(&may), "{from}");
            assert!(moments.windows(2).filter(|w| w[0] != w[1]).count() <= 1, "{from}: one moment: {moments:?}");
        }
        let of_port = rig.kernel.entries.keys().filter(|k| k.map().id == schema::POLICY_PORT.id);
        assert_eq!(of_port.count(), PORTS);
        met.extend(by_port(&rig.kernel.entries));
    }
    let before = rig.kernel.clone();
    let mut next = Rig::on(before.clone());
    next.cluster();
    next.policy(on_many_ports(into_web(of("near"))));
    next.pass();
    assert!(moments(&before, &next.kernel, NEAR).iter().all(|m| *m));
    assert!(moments(&before, &next.kernel, FAR).iter().all(|m| !*m));
    assert_eq!(next.kernel.of(true).len(), before.of(true).len(), "nothing of the former one is left");
    assert_eq!((by_port(&next.kernel.entries).len(), by_port(&before.entries).len()), (1, 1));
    assert!(by_port(&next.kernel.entries).first() > met.last(), "{met:?}");
    // Where they have no room beside what is there, they are with the other rules; and where they have none there either, the old ones stay whole.
    for (rules, fits) in [(PORTS, true), (PORTS - 1, false)] {
        let (mut full, set) = (Rig::on(next.kernel.clone()), next.set());
        full.policies.room = Room { peers: 100, rules, ports: 2 * PORTS - 1 };
        full.cluster();
        full.policy(on_many_ports(into_web(of("far"))));
        full.pass();
        assert_eq!((full.set() != set, by_port(&full.kernel.entries).is_empty()), (fits, fits));
        assert_eq!([NEAR, FAR].map(|who| allows(&full.kernel.entries, who)), [!fits, fits]);
        assert_eq!(full.policies.summary().problem.is_some_and(|p| p.contains("no room")), !fits);
    }
}

#[test]
fn an_agent_that_begins_takes_over_without_a_moment_between_and_leaves_nothing() {
    let mut former = Rig::on(Memory::default());
    former.cluster();
    former
        .policy(into_web(json!([of("near")[0], {"ipBlock": {"cidr": "10.244.2.0/24", "except": ["10.244.2.8/30"]}}])));
    former.pass();
    let (set, epoch, count) = (former.set(), former.epoch(), former.kernel.of(true).len());
    let before = former.kernel.clone();

    let mut next = Rig::on(before.clone());
    next.desired.heard.objects = false;
    next.tables.set_endpoint(endpoint(9, "web"));
    next.tables.set_endpoint(endpoint(10, "near"));
    next.pass();
    assert_eq!(next.set(), set, "it knows of no policy yet, and changes none");
    next.cluster();
    next.policy(into_web(json!([of("near")[0], {"ipBlock": {"cidr": "10.244.2.0/24", "except": ["10.244.2.8/30"]}}])));
    next.desired.heard.objects = true;
    next.pass();
    assert!(next.set() > set && next.epoch() > epoch);
    assert_eq!(next.kernel.of(true).len(), count, "nothing of the former one is left");
    for (from, allowed) in [(NEAR, true), (FAR, true), ([10, 244, 2, 9], false), ([203, 0, 113, 1], false)] {
        assert!(moments(&before, &next.kernel, from).iter().all(|m| *m == allowed), "{from:?}");
    }
}

#[test]
fn an_agent_that_begins_has_flows_judged_again_only_where_a_policy_is_or_was() {
    let mut former = Rig::on(Memory::default());
    former.cluster();
    former.pass();
    let begin = |kernel: &Memory| {
        let mut next = Rig::on(kernel.clone());
        next.cluster();
        next.pass();
        next
    };
    let next = begin(&former.kernel);
    assert_eq!(next.epoch(), former.epoch(), "nobody was isolated, and nobody is");
    assert!(next.kernel.log.iter().all(|(key, _)| key.map().id != schema::CT_CONFIG.id));

    former.policy(into_web(of("near")));
    former.pass();
    let next = begin(&former.kernel);
    assert!(next.epoch() > former.epoch(), "the policy went while no agent looked");
}

#[test]
fn what_cannot_be_written_leaves_the_old_policy_whole_and_new_pods_isolated_until_it_can() {
    let mut rig = Rig::on(Memory::default());
    rig.cluster();
    rig.policy(into_web(of("near")));
    rig.pass();
    let (before, set) = (rig.kernel.of(true), rig.set());
    rig.kernel.left = Some(1);
    rig.policy(into_web(of("far")));
    rig.pass();
    assert!(!rig.policies.are_in_force() && rig.policies.summary().problem.is_some_and(|p| p.contains("is full")));
    rig.kernel.left = None;
    assert_eq!(rig.set(), set);
    assert!(allows(&rig.kernel.entries, NEAR) && !allows(&rig.kernel.entries, FAR));
    for (key, value) in before {
        assert_eq!(rig.kernel.entries.get(&key), Some(&value));
    }
    rig.tables.set_pod(pod("late", "here", &[]));
    rig.pass();
    assert!(rig.policies.are_in_force() && rig.policies.summary().problem.is_none());
    assert!(!allows(&rig.kernel.entries, NEAR) && allows(&rig.kernel.entries, FAR));
}

#[test]
fn policies_that_do_not_fit_wait_by_name_and_freeze_no_others() {
    let mut rig = Rig::on(Memory::default());
    rig.policies.room = Room { peers: 100, rules: 12, ports: 0 };
    rig.cluster();
    rig.policy(into_web(of("near")));
    rig.pass();
    let (set, epoch) = (rig.set(), rig.epoch());
    let mut wide = into_web(of("far"));
    wide["spec"]["ingress"][0]["ports"] = (0..20).map(|n| json!({"port": 80 + 2 * n})).collect();
    rig.policy(wide.clone());
    assert_eq!((rig.pass(), rig.set(), rig.epoch()), (0, set, epoch));
    assert!(allows(&rig.kernel.entries, NEAR) && !allows(&rig.kernel.entries, FAR));
    let summary = rig.policies.summary();
    assert_eq!((summary.in_force, summary.waiting, summary.withheld), (false, 1, 0));
    assert!(summary.problem.is_some_and(|p| p.contains("policy_rule_v2") && p.contains("shop/web")));
    assert!(rig.policies.are_in_force(), "it is nothing that a further try would change");
    let shown =
        rig.policies.describe(&objects::network_policy(wide.clone()).unwrap(), "in force".into(), &Hits::default());
    assert_eq!((shown.pods, shown.waiting), (vec!["shop/web".to_owned()], vec!["shop/web".to_owned()]));
    // Another pod's policy changes meanwhile.
    rig.policy(json!({"metadata": {"namespace": "shop", "name": "near"}, "spec": {"podSelector": {"matchLabels": {"app": "near"}}}}));
    assert!(rig.pass() > 0);
    assert_eq!(rig.policies.summary().waiting, 1);
    let near = rig.policies.engine.sets_of(&PodKey::new("shop", "near")).unwrap();
    assert_ne!(near.set_in, 0);
    // An agent that begins leaves what it cannot write beside.
    let mut next = Rig::on(rig.kernel.clone());
    next.policies.room = rig.policies.room;
    next.cluster();
    next.policy(wide);
    next.pass();
    assert_eq!(next.set(), set);
    assert!(!next.policies.are_in_force() && next.policies.summary().problem.is_some());
    // Room again.
    rig.policy(into_web(of("far")));
    rig.pass();
    assert!(rig.policies.summary().in_force && rig.policies.summary().problem.is_none());
    assert!(!allows(&rig.kernel.entries, NEAR) && allows(&rig.kernel.entries, FAR));
}

#[test]
fn a_denied_packet_is_told_with_its_ends_and_the_policies_that_isolate() {
    let mut rig = Rig::on(Memory::default());
    rig.cluster();
    rig.policy(into_web(of("near")));
    rig.pass();
    let event = |reason: &str| crate::api::types::DropEvent {
        src: Some(FAR.into()),
        dst: Some(WEB.into()),
        ..crate::api::tests::event(reason)
    };
    let mut denied = event("PolicyIngress");
    rig.policies.explain(&mut denied, 0, 0);
    assert_eq!(denied.ends, Some([Some("shop/far".to_owned()), Some("shop/web".to_owned())]));
    assert_eq!(denied.policies, ["NetworkPolicy shop/web"]);
    let mut other = event("PolicyEgress");
    rig.policies.explain(&mut other, 0, 0);
    assert!(other.policies.is_empty(), "nothing isolates the sender");
}

#[test]
fn what_others_change_is_found_and_made_right() {
    let mut rig = Rig::on(Memory::default());
    rig.cluster();
    rig.policy(into_web(of("near")));
    rig.pass();
    let right = rig.kernel.entries.clone();
    assert_eq!(rig.policies.verify(&mut rig.kernel).unwrap(), (Vec::new(), String::new()));
    let key = rig.kernel.of(true)[0].0.clone();
    rig.kernel.entries.remove(&key);
    let (drifted, failed) = rig.policies.verify(&mut rig.kernel).unwrap();
    assert_eq!((drifted.len(), failed.as_str()), (1, ""));
    assert_eq!(rig.kernel.entries, right);
}
