//! From changed rows to pending entries: everything of the reconciler that needs neither kernel nor thread.
use std::collections::{BTreeMap, BTreeSet};

use super::delta::Delta;
use crate::{
    compile::{self, Facts, Heard, InForce, NodeNumbers},
    tables::{Contents, Row},
};

/// What the maps should hold, and the numbers given to nodes.
pub struct Desired {
    pub(super) facts: Facts,
    pub(super) numbers: NodeNumbers,
    pub(super) delta: Delta,
    /// What of policy is in the maps.
    pub(super) in_force: InForce,
    /// How far the agent has heard what there is.
    pub(super) heard: Heard,
    /// Rows that were compiled from less than all.
    partial: BTreeSet<Row>,
    /// How far the agent had heard when they were.
    compiled_by: Heard,
    /// Devices that carry `from_netdev`: by no other one do masqueraded pods leave, as nothing would translate the answers back.
    hooked: BTreeSet<u32>,
}

impl Desired {
    /// Of an agent that has read no row yet.
    pub fn new(facts: Facts, numbers: NodeNumbers, delta: Delta, in_force: InForce, heard: Heard) -> Self {
        let (partial, hooked) = (BTreeSet::new(), BTreeSet::new());
        Self { facts, numbers, delta, in_force, heard, partial, compiled_by: heard, hooked }
    }

    /// Takes over which devices carry `from_netdev`; whether they are others than before, so that their row is to be compiled again.
    pub fn note_hooked(&mut self, hooked: BTreeSet<u32>) -> bool {
        let changed = self.hooked != hooked;
        self.hooked = hooked;
        changed
    }

    /// Compiles the rows, and those that depend on them, which are added to the set. What cannot be compiled is in the answer.
    pub fn follow(&mut self, contents: &Contents, rows: &mut BTreeSet<Row>) -> BTreeMap<Row, String> {
        let own = Row::Node(self.facts.node.clone());
        // The tunnel's family follows the own node: all others hang on it.
        if rows.contains(&own) {
            rows.extend(contents.nodes.keys().cloned().map(Row::Node));
        }
        let mut found: Vec<Row> = rows.iter().cloned().collect();
        while !found.is_empty() {
            found = compile::dependents(&found, contents, &self.facts);
            found.retain(|row| rows.insert(row.clone()));
        }
        // What another row tells of these is found above, by that row. Who depends on them reads the tables, which are as they were.
        if self.compiled_by != self.heard {
            rows.append(&mut self.partial);
            self.compiled_by = self.heard;
        }
        let mut failures = BTreeMap::new();
        // Nodes before pods, as their numbers are in the pods' entries: `Row` sorts so.
        for row in rows.iter() {
            self.partial.remove(row);
            match compile::row(row, contents, &self.facts, &self.in_force, &mut self.numbers) {
                Ok(mut entries) => {
                    entries.retain(|(key, _)| compile::leaves_by(key).is_none_or(|index| self.hooked.contains(&index)));
                    self.delta.set_row(row, entries);
                    let whole = compile::is_whole(row, contents, &self.facts, self.heard);
                    self.delta.hold(row, !whole);
                    if !whole {
                        self.partial.insert(row.clone());
                    }
                }
                Err(e) => drop(failures.insert(row.clone(), e)),
            }
        }
        failures
    }

    /// Raises the policy epoch, after what may revoke something is in the maps: flows are judged again from now on.
    pub fn raise_epoch(&mut self, contents: &Contents) {
        self.in_force.epoch = self.in_force.epoch.wrapping_add(1);
        let own = Row::Node(self.facts.node.clone());
        if let Ok(entries) = compile::row(&own, contents, &self.facts, &self.in_force, &mut self.numbers) {
            self.delta.set_row(&own, entries);
        }
    }

    /// Lets go of the numbers of nodes that are no more. Not before all sources are in sync: a node may not have been read yet.
    pub fn forget_nodes(&mut self, contents: &Contents) {
        if self.facts.tunnel_address(contents).is_some() {
            self.numbers.retain(&self.facts.tunnels(contents));
        }
    }
}

#[cfg(test)]
mod tests {
    //! Each kind of event, and the map writes that it causes: no more than it must.
    use std::{collections::BTreeMap, io};

    use super::*;
    use crate::{
        compile::{
            Entry, EntryKey,
            fixtures::{facts, hop, node},
        },
        reconcile::delta::Target,
        tables::{Endpoint, Phase, Pod, PodKey, Tables},
    };

    #[derive(Default)]
    struct Memory(BTreeMap<EntryKey, Vec<u8>>);
    impl Target for Memory {
        fn dump(&mut self) -> io::Result<Vec<Entry>> {
            Ok(self.0.clone().into_iter().collect())
        }
        fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
            Ok(Vec::new())
        }
        fn upsert(&mut self, key: &EntryKey, value: &[u8]) -> io::Result<()> {
            self.0.insert(key.clone(), value.to_vec());
            Ok(())
        }
        fn delete(&mut self, key: &EntryKey) -> io::Result<()> {
            self.0.remove(key);
            Ok(())
        }
    }

    struct Rig {
        tables: Tables,
        desired: Desired,
        kernel: Memory,
        written: u64,
    }
    impl Rig {
        fn new() -> Self {
            let desired =
                Desired::new(facts(), NodeNumbers::default(), Delta::default(), InForce::default(), Heard::EVERYTHING);
            let mut rig = Self { tables: Tables::new(), desired, kernel: Memory::default(), written: 0 };
            rig.tables.set_node(node("here", 1));
            rig.tables.set_node(node("there", 2));
            rig.tables.set_next_hop("192.0.2.2".parse().expect("an address"), hop(true));
            rig.writes();
            rig
        }
        /// Rows that are compiled for what has changed since the last call.
        fn compiled(&mut self) -> BTreeSet<Row> {
            let (_, mut rows) = self.tables.wait_dirty(std::time::Duration::ZERO);
            assert!(self.desired.follow(&self.tables.read(), &mut rows).is_empty());
            rows
        }
        /// Map writes of what has changed since the last call.
        fn writes(&mut self) -> u64 {
            self.compiled();
            assert!(self.desired.delta.flush(&mut self.kernel).is_empty());
            let before = std::mem::replace(&mut self.written, self.desired.delta.writes());
            self.written - before
        }
    }

    fn pod(name: &str, node: &str, ips: &[&str]) -> Pod {
        Pod {
            namespace: "default".into(),
            name: name.into(),
            node: Some(node.into()),
            labels: BTreeMap::from([("app".into(), name.into())]),
            ips: ips.iter().map(|a| a.parse().expect("an address")).collect(),
            phase: Phase::Running,
            host_network: false,
            ports: BTreeSet::new(),
        }
    }
    fn endpoint(pod: &str) -> Endpoint {
        Endpoint {
            id: 9,
            container_id: "c".into(),
            ifname: "eth0".into(),
            namespace: "default".into(),
            pod_name: pod.into(),
            netns: "/run/netns/c".into(),
            ifindex: 77,
            device: "weft9".into(),
            mac: cni_common::net::Mac::new([10, 1, 2, 3, 4, 5]),
            ipv4: Some([10, 244, 1, 5].into()),
            ipv6: Some("fd10:1::5".parse().expect("an address")),
            mtu: 1450,
            terms: crate::tables::Terms::default(),
        }
    }

    #[test]
    fn what_a_start_has_not_heard_of_yet_replaces_nothing_of_a_former_agent() {
        let mut former = Rig::new();
        former.tables.set_endpoint(endpoint("web"));
        former.tables.set_pod(pod("web", "here", &[]));
        former.tables.set_node_addresses(["192.0.2.1".parse().expect("an address")].into());
        former.writes();
        let left = former.kernel.0.clone();

        // The next one knows its records and its addresses at once, the objects one by one, and the ways to nodes last.
        let mut next = Rig { tables: Tables::new(), kernel: former.kernel, ..Rig::new() };
        next.desired.delta = Delta::default();
        next.desired.delta.adopt(&mut next.kernel).expect("adopts");
        next.written = 0;
        next.desired.heard = Heard { objects: false, ways: false, policies: false };
        next.tables.set_endpoint(endpoint("web"));
        next.tables.set_node_addresses(["192.0.2.1".parse().expect("an address")].into());
        assert_eq!(next.writes(), 0, "no Pod object, no Node object");
        next.tables.set_node(node("here", 1));
        next.tables.set_node(node("there", 2));
        assert_eq!(next.writes(), 0, "no way to the other node");
        let mut late = endpoint("late");
        (late.id, late.ifindex, late.ipv4, late.ipv6) = (10, 78, Some([10, 244, 1, 6].into()), None);
        next.tables.set_endpoint(late);
        assert_eq!(next.writes(), 2, "a pod that comes meanwhile is served");
        next.tables.remove_endpoint(10);
        assert_eq!(next.writes(), 2);
        next.tables.set_pod(pod("web", "here", &[]));
        next.tables.set_next_hop("192.0.2.2".parse().expect("an address"), hop(true));
        assert_eq!(next.writes(), 0, "all as it was");
        assert_eq!(next.kernel.0, left);

        // What is heard last counts: the pod has lost its labels while nobody looked, and its object is gone.
        next.tables.remove_pod(&PodKey::new("default", "web"));
        assert_eq!(next.writes(), 0);
        next.desired.heard = Heard::EVERYTHING;
        assert_eq!(next.writes(), 1, "now it is known that it has none");
    }

    #[test]
    fn nodes_whose_ways_are_not_known_yet_cost_a_pass_over_others_nothing() {
        let mut rig = Rig::new();
        rig.desired.heard.ways = false;
        let rows = |names: &[&str]| names.iter().map(|n| Row::Node((*n).into())).collect::<BTreeSet<_>>();
        let db = Row::Pod(PodKey::new("default", "db"));
        rig.tables.set_node(node("far", 3));
        rig.tables.set_node(node("farther", 4));
        rig.tables.set_pod(pod("db", "far", &["10.244.3.5"]));
        assert_eq!(rig.compiled(), &rows(&["far", "farther"]) | &BTreeSet::from([db.clone()]));
        rig.tables.set_endpoint(endpoint("web"));
        assert_eq!(rig.compiled(), BTreeSet::from([Row::Endpoint(9)]));

        let way = "192.0.2.3".parse().expect("an address");
        rig.tables.set_next_hop(way, hop(true));
        let found = &rows(&["far"]) | &BTreeSet::from([db, Row::NextHop(Box::new(way))]);
        assert_eq!(rig.compiled(), found, "its own way is found");
        rig.desired.heard.ways = true;
        assert_eq!(rig.compiled(), rows(&["farther"]), "nobody waits any longer");
        assert!(rig.compiled().is_empty());
    }

    #[test]
    fn a_start_leaves_what_pods_are_let_out_under_until_its_programs_are_on_the_devices() {
        let eth0 = || {
            let (leave4, leave6) = (Some([192, 0, 2, 1].into()), Some("fd00::1".parse().expect("an address")));
            let device = crate::tables::Device { name: "eth0".into(), mtu: 1500, leads: true, leave4, leave6 };
            BTreeMap::from([(7, device)])
        };
        let mut former = Rig::new();
        former.tables.set_devices(eth0());
        former.desired.note_hooked(BTreeSet::from([7]));
        assert_eq!(former.writes(), 2);
        let left = former.kernel.0.clone();

        let mut next = Rig { tables: Tables::new(), kernel: former.kernel, ..Rig::new() };
        next.desired.delta = Delta::default();
        next.desired.delta.adopt(&mut next.kernel).expect("adopts");
        next.written = 0;
        next.desired.heard = Heard { objects: false, ways: false, policies: false };
        // The kernel is read before the Node object says which devices are meant.
        next.tables.set_devices(BTreeMap::new());
        next.tables.mark_dirty(Row::Devices);
        assert_eq!(next.writes(), 0);
        next.tables.set_node(node("here", 1));
        next.tables.set_devices(eth0());
        assert_eq!(next.writes(), 0, "no program yet");
        next.desired.heard = Heard::EVERYTHING;
        next.desired.note_hooked(BTreeSet::from([7]));
        next.tables.mark_dirty(Row::Devices);
        assert_eq!(next.writes(), 0, "as it was");
        assert_eq!(next.kernel.0, left);
    }

    #[test]
    fn a_pod_of_this_node_costs_an_entry_an_address_and_one_for_its_device() {
        let mut rig = Rig::new();
        rig.tables.set_endpoint(endpoint("web"));
        assert_eq!(rig.writes(), 3);
        rig.tables.set_endpoint(endpoint("web"));
        assert_eq!(rig.writes(), 0, "set again");
        rig.tables.remove_endpoint(9);
        assert_eq!(rig.writes(), 3);
    }

    #[test]
    fn what_was_agreed_with_cni_costs_no_write() {
        let mut rig = Rig::new();
        let mut second = endpoint("web");
        (second.id, second.ifindex, second.ipv4) = (10, 78, Some([172, 30, 0, 9].into()));
        second.ipv6 = None;
        second.terms = crate::tables::Terms {
            network: "another".into(),
            delegated: true,
            own_table: true,
            ..crate::tables::Terms::default()
        };
        rig.tables.set_endpoint(endpoint("web"));
        rig.tables.set_endpoint(second.clone());
        assert_eq!(rig.writes(), 5, "of two families and of one, like any other");
        second.terms = crate::tables::Terms::default();
        rig.tables.set_endpoint(second);
        assert_eq!(rig.writes(), 0);
        rig.tables.remove_endpoint(10);
        assert_eq!(rig.writes(), 2);
    }

    #[test]
    fn a_pod_object_of_this_node_costs_one_write_when_its_endpoint_is_there_and_none_before() {
        let mut rig = Rig::new();
        rig.tables.set_pod(pod("web", "here", &[]));
        assert_eq!(rig.writes(), 0);
        rig.tables.set_endpoint(endpoint("web"));
        assert_eq!(rig.writes(), 3);
        let mut relabelled = pod("web", "here", &["10.244.1.5"]);
        rig.tables.set_pod(relabelled.clone());
        assert_eq!(rig.writes(), 0, "an address changes nothing that the maps hold");
        relabelled.labels.clear();
        rig.tables.set_pod(relabelled);
        assert_eq!(rig.writes(), 1, "its label class does");
    }

    #[test]
    fn a_pod_of_another_node_costs_an_entry_an_address() {
        let mut rig = Rig::new();
        rig.tables.set_pod(pod("db", "there", &[]));
        assert_eq!(rig.writes(), 0);
        rig.tables.set_pod(pod("db", "there", &["10.244.2.5", "fd10:2::5"]));
        assert_eq!(rig.writes(), 2);
        rig.tables.remove_pod(&PodKey::new("default", "db"));
        assert_eq!(rig.writes(), 2);
    }

    #[test]
    fn another_node_costs_its_tunnel_its_addresses_and_its_cidrs() {
        let mut rig = Rig::new();
        rig.tables.set_node(node("third", 3));
        // Tunnel, tunnel address, two addresses, two CIDRs.
        assert_eq!(rig.writes(), 6);
        rig.tables.set_next_hop("192.0.2.3".parse().expect("an address"), hop(false));
        assert_eq!(rig.writes(), 1);
        rig.tables.remove_node("third");
        assert_eq!(rig.writes(), 6);
    }

    #[test]
    fn a_next_hop_that_changes_its_mac_costs_one_write_however_many_pods_there_are() {
        let mut rig = Rig::new();
        for n in 1..100 {
            rig.tables.set_pod(pod(&format!("p{n}"), "there", &[&format!("10.244.2.{n}")]));
        }
        rig.writes();
        rig.tables.set_next_hop("192.0.2.2".parse().expect("an address"), hop(false));
        assert_eq!(rig.writes(), 1);
    }

    #[test]
    fn own_addresses_cost_one_write_each_way() {
        let mut rig = Rig::new();
        rig.tables.set_node_addresses(["192.0.2.1".parse().expect("an address")].into());
        assert_eq!(rig.writes(), 1);
        rig.tables.set_node_addresses(["192.0.2.1", "fd00::1"].map(|a| a.parse().expect("an address")).into());
        assert_eq!(rig.writes(), 1);
        rig.tables.set_devices(BTreeMap::from([(
            7,
            crate::tables::Device { name: "eth0".into(), mtu: 1500, leads: true, ..Default::default() },
        )]));
        assert_eq!(rig.writes(), 0, "devices are no map entries");
    }

    #[test]
    fn a_device_is_left_by_while_it_carries_the_program_that_translates_back_and_follows_its_addresses() {
        let mut rig = Rig::new();
        let device = |v4: Option<[u8; 4]>, v6: Option<&str>| crate::tables::Device {
            name: "eth0".into(),
            mtu: 1500,
            leads: true,
            leave4: v4.map(Into::into),
            leave6: v6.map(|a| a.parse().expect("an address")),
        };
        let eth0 = device(Some([192, 0, 2, 1]), Some("fd00::1"));
        rig.tables.set_devices(BTreeMap::from([(7, eth0.clone()), (8, eth0)]));
        assert_eq!(rig.writes(), 0, "no program yet");
        assert!(rig.desired.note_hooked(BTreeSet::from([7])) && !rig.desired.note_hooked(BTreeSet::from([7])));
        rig.tables.mark_dirty(Row::Devices);
        assert_eq!(rig.writes(), 2);
        rig.tables.set_devices(BTreeMap::from([(7, device(Some([192, 0, 2, 9]), None))]));
        assert_eq!(rig.writes(), 2, "another address, and one less");
        rig.desired.note_hooked(BTreeSet::new());
        rig.tables.mark_dirty(Row::Devices);
        assert_eq!(rig.writes(), 1);
    }

    #[test]
    fn a_way_that_is_not_known_is_as_wide_as_the_devices_and_costs_a_write_when_they_change() {
        let mut rig = Rig::new();
        let devices = |mtu| {
            BTreeMap::from([(7, crate::tables::Device { name: "eth0".into(), mtu, leads: true, ..Default::default() })])
        };
        rig.tables.set_devices(devices(1500));
        rig.writes();
        rig.tables.set_devices(devices(1400));
        assert_eq!(rig.writes(), 0, "the next hop tells its own");
        rig.tables.remove_next_hop("192.0.2.2".parse().expect("an address"));
        rig.writes();
        rig.tables.set_devices(devices(1300));
        assert_eq!(rig.writes(), 1);
    }

    #[test]
    fn a_services_range_costs_one_write_however_many_nodes_there_are() {
        let mut rig = Rig::new();
        for n in 3..100 {
            rig.tables.set_node(node(&format!("n{n}"), n));
        }
        rig.writes();
        let of = |cidrs: &[&str]| crate::tables::ServiceCidr {
            name: "kubernetes".into(),
            cidrs: cidrs.iter().map(|c| c.parse().expect("a CIDR")).collect(),
        };
        rig.tables.set_service_cidr(of(&["10.96.0.0/16"]));
        assert_eq!(rig.compiled().len(), 3, "it, this node and its addresses");
        assert_eq!(rig.writes(), 1);
        rig.tables.set_service_cidr(of(&["10.96.0.0/16", "fd96::/112"]));
        assert_eq!(rig.writes(), 1);
        rig.tables.remove_service_cidr("kubernetes");
        assert_eq!(rig.writes(), 2);
    }

    #[test]
    fn a_pod_read_before_its_node_is_reachable_as_soon_as_the_node_is_read() {
        let mut rig = Rig::new();
        rig.tables.set_pod(pod("early", "later", &["10.244.5.5"]));
        assert_eq!(rig.writes(), 0);
        rig.tables.set_node(node("later", 5));
        assert_eq!(rig.writes(), 7);
    }
}
