//! Rows in, entries and routes out.
use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;
use cni_common::{
    maps::{
        CONFIG_READY, Config, Endpoint as EndpointValue, Leave4, Leave6, NODE_SELF, NatConfig, OWN, OWN_ANNOUNCED,
        REMOTE_NODE, Remote, TUNNEL_BY_MAC, TUNNEL_BY_NEIGHBOUR, TUNNEL_BY_STACK, Tunnel,
    },
    net::Mac,
    schema,
};

use super::{
    fixtures::{HOP_MAC, facts, hop, node},
    *,
};
use crate::tables::{Device, Endpoint, NextHop, Phase, Pod, Tables};

const POD_MAC: Mac = Mac::new([10, 1, 2, 3, 4, 5]);

fn cluster() -> Tables {
    let t = Tables::new();
    t.set_node(node("here", 1));
    t.set_node(node("there", 2));
    t.set_devices(BTreeMap::from([(7, Device { name: "eth0".into(), mtu: 1500, leads: true, ..Default::default() })]));
    t.set_next_hop("192.0.2.2".parse().expect("an address"), hop(true));
    t.set_pod(Pod {
        namespace: "default".into(),
        name: "web".into(),
        node: Some("there".into()),
        labels: BTreeMap::from([("app".into(), "web".into())]),
        ips: vec!["10.244.2.5".parse().expect("an address")],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::new(),
    });
    t.set_endpoint(Endpoint {
        id: 9,
        container_id: "c".into(),
        ifname: "eth0".into(),
        namespace: "default".into(),
        pod_name: "api".into(),
        netns: "/run/netns/c".into(),
        ifindex: 77,
        device: "weft9".into(),
        mac: POD_MAC,
        ipv4: Some([10, 244, 1, 5].into()),
        ipv6: None,
        mtu: 1450,
        terms: crate::tables::Terms::default(),
    });
    t
}
/// Entries of a row, by map and key.
fn compiled(t: &Tables, which: &Row) -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
    let mut numbers = NodeNumbers::default();
    // Nodes come first in the order of rows, as they do in the reconciler.
    row(&Row::Node("there".into()), &t.read(), &facts(), &InForce::default(), &mut numbers).expect("numbers are left");
    let entries = row(which, &t.read(), &facts(), &InForce::default(), &mut numbers).expect("numbers are left");
    entries.into_iter().map(|(k, v)| ((k.map().name, k.key.to_vec()), v)).collect()
}
fn value<T: bytemuck::Pod>(entries: &BTreeMap<(&'static str, Vec<u8>), Vec<u8>>, map: &MapSpec, key: &[u8]) -> T {
    bytemuck::pod_read_unaligned(&entries[&(map.name, key.to_vec())])
}

#[test]
fn no_key_is_too_long() {
    let policy = crate::policy::change::Map::ALL.into_iter().map(|m| m.spec());
    for map in maps().chain(policy) {
        assert!(map.key_size as usize <= LONGEST_KEY, "{}", map.name);
    }
}

#[test]
fn no_value_of_policy_is_too_long() {
    for map in Map::ALL.into_iter().map(Map::spec) {
        assert!(map.value_size as usize <= bytes::LONGEST_OF_POLICY, "{}", map.name);
    }
}

#[test]
fn every_map_has_its_place_in_the_order() {
    let ordered: BTreeSet<u32> = maps().map(|m| m.id).collect();
    for m in schema::ALL {
        let of_policy = Map::ALL.iter().any(|map| map.spec().id == m.id);
        assert_eq!(ordered.contains(&m.id), m.role == schema::Role::Derived && !of_policy, "{}", m.name);
    }
    assert_eq!(maps().last().map(|m| m.id), Some(schema::ENDPOINTS.id));
}

#[test]
fn another_node_becomes_tunnel_addresses_and_pod_cidrs() {
    let entries = compiled(&cluster(), &Row::Node("there".into()));
    let number = 1_u32;
    let tunnel: Tunnel = value(&entries, &schema::TUNNELS, &number.to_ne_bytes());
    assert_eq!((tunnel.family, tunnel.ready, tunnel.dmac, tunnel.mtu, tunnel.ifindex), (4, 1, HOP_MAC, 1500, 7));
    assert_eq!(tunnel.addr4.bytes, [192, 0, 2, 2]);
    assert_eq!(value::<u32>(&entries, &schema::NODES4, &[192, 0, 2, 2]), number);
    let remote: Remote = value(&entries, &schema::REMOTE4, &[192, 0, 2, 2]);
    assert_eq!((remote.node, remote.flags), (number, REMOTE_NODE));
    let mut prefix = 24_u32.to_ne_bytes().to_vec();
    prefix.extend([10, 244, 2, 0]);
    assert_eq!(value::<u32>(&entries, &schema::CIDR4, &prefix), number);
    // Its IPv6 address is an address of the node, not one of the tunnel: the underlay is IPv4.
    assert!(entries.keys().any(|(map, _)| *map == schema::REMOTE6.name));
    assert!(!entries.keys().any(|(map, _)| *map == schema::NODES6.name));
}

#[test]
fn the_way_to_a_node_is_by_mac_by_neighbour_or_left_to_the_stack() {
    let t = cluster();
    t.remove_next_hop("192.0.2.2".parse().expect("an address"));
    let entries = compiled(&t, &Row::Node("there".into()));
    let tunnel: Tunnel = value(&entries, &schema::TUNNELS, &1_u32.to_ne_bytes());
    assert_eq!((tunnel.family, tunnel.ready, tunnel.mtu), (4, TUNNEL_BY_STACK, 1500), "no way known");
    for (hop, ready) in [
        (hop(true), TUNNEL_BY_MAC),
        (hop(false), TUNNEL_BY_NEIGHBOUR),
        (NextHop { ethernet: false, ..hop(true) }, TUNNEL_BY_STACK),
    ] {
        t.set_next_hop("192.0.2.2".parse().expect("an address"), hop);
        let entries = compiled(&t, &Row::Node("there".into()));
        let tunnel: Tunnel = value(&entries, &schema::TUNNELS, &1_u32.to_ne_bytes());
        assert_eq!((tunnel.family, tunnel.ready), (4, ready));
    }
}

#[test]
fn own_addresses_that_other_nodes_can_read_are_marked() {
    let t = cluster();
    t.set_node_addresses(["192.0.2.1", "172.17.0.1"].map(|a| a.parse().expect("an address")).into());
    let entries = compiled(&t, &Row::NodeAddresses);
    assert_eq!(value::<u32>(&entries, &schema::OWN4, &[192, 0, 2, 1]), OWN | OWN_ANNOUNCED);
    assert_eq!(value::<u32>(&entries, &schema::OWN4, &[172, 17, 0, 1]), OWN);
}

#[test]
fn the_own_node_becomes_configuration_and_own_cidrs() {
    let entries = compiled(&cluster(), &Row::Node("here".into()));
    let config: Config = value(&entries, &schema::CONFIG, &[0; 4]);
    assert_eq!((config.tunnel4.bytes, config.node4.bytes), ([192, 0, 2, 1], [192, 0, 2, 1]));
    assert_eq!((config.tunnel6.bytes, config.node6.bytes[0]), ([0; 16], 0xfd), "no tunnel, but an address");
    assert_eq!((config.pods4.bytes, config.mask4.bytes), ([10, 244, 1, 0], [255, 255, 255, 0]));
    assert_eq!(config.pods6.bytes[..4], [0xfd, 0x10, 0, 1]);
    assert_eq!(config.mask6.bytes, [255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config.tunnel6, cni_common::net::Ip6::zeroed());
    assert_ne!(config.flags & CONFIG_READY, 0);
    assert!(entries.iter().filter(|((m, _), _)| m.starts_with("cidr")).all(|(_, v)| *v == NODE_SELF.to_ne_bytes()));
}

#[test]
fn pods_of_other_nodes_are_remote_until_they_are_over() {
    let t = cluster();
    let key = PodKey::new("default", "web");
    let entries = compiled(&t, &Row::Pod(key.clone()));
    assert_eq!(value::<Remote>(&entries, &schema::REMOTE4, &[10, 244, 2, 5]).node, 1);
    let mut pod = t.read().pods.get(&key).unwrap();
    for change in [
        |p: &mut Pod| p.phase = Phase::Succeeded,
        |p: &mut Pod| p.host_network = true,
        |p: &mut Pod| p.node = Some("here".into()),
        |p: &mut Pod| p.node = None,
    ] {
        let before = pod.clone();
        change(&mut pod);
        t.set_pod(std::mem::replace(&mut pod, before));
        assert!(compiled(&t, &Row::Pod(key.clone())).is_empty());
    }
}

#[test]
fn an_endpoint_carries_its_label_class_once_the_pod_object_is_known() {
    let t = cluster();
    let endpoint = |t: &Tables| -> EndpointValue {
        value(&compiled(t, &Row::Endpoint(9)), &schema::ENDPOINTS, &77_u32.to_ne_bytes())
    };
    assert_eq!((endpoint(&t).vni, endpoint(&t).mac), (0, POD_MAC));
    let mut pod = t.read().pods.get(&PodKey::new("default", "web")).unwrap();
    pod.name = "api".into();
    pod.node = Some("here".into());
    t.set_pod(pod.clone());
    assert_eq!(endpoint(&t).vni, crate::identity::label_class("default", &pod.labels));
    assert_eq!(dependents(&[Row::Pod(pod.key())], &t.read(), &facts()), [Row::Endpoint(9)]);
}

#[test]
fn dependents_of_many_rows_are_those_of_each() {
    let t = cluster();
    let rows: Vec<Row> = ["here", "there"].map(|name| Row::Node(name.into())).into_iter().collect();
    let pods = t.read().pods.keys().cloned().map(Row::Pod).collect::<Vec<_>>();
    let others = [Row::Devices, Row::NodeAddresses, Row::Endpoint(9), Row::Namespace("default".into())];
    let all: Vec<Row> = rows.into_iter().chain(pods).chain(others).collect();
    let of = |rows: &[Row]| dependents(rows, &t.read(), &facts()).into_iter().collect::<BTreeSet<Row>>();
    let each: BTreeSet<Row> = all.iter().flat_map(|row| of(std::slice::from_ref(row))).collect();
    assert_eq!(of(&all), each);
    assert!(each.contains(&Row::NodeAddresses) && each.iter().any(|row| matches!(row, Row::Pod(_))), "{each:?}");
    assert_eq!(of(&[]), BTreeSet::new());
}

fn prefix(length: u32, address: &[u8]) -> Vec<u8> {
    [&length.to_ne_bytes()[..], address].concat()
}

#[test]
fn what_masquerade_is_told_stands_with_the_own_node_and_nothing_when_it_is_off() {
    let t = cluster();
    let facts = Facts { cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a CIDR")], ..facts() };
    let entries = |facts: &Facts| -> BTreeMap<(&'static str, Vec<u8>), Vec<u8>> {
        let all = row(&Row::Node("here".into()), &t.read(), facts, &InForce::default(), &mut NodeNumbers::default())
            .expect("compiles");
        all.into_iter().map(|(k, v)| ((k.map().name, k.key.to_vec()), v)).collect()
    };
    let on = entries(&facts);
    let config: NatConfig = value(&on, &schema::NAT_CONFIG, &[0; 4]);
    assert_eq!((config.first_port, config.ports), (61_000, 4536));
    for (map, key) in [
        (&schema::SPARED4, prefix(16, &[169, 254, 0, 0])),
        (&schema::SPARED4, prefix(16, &[10, 244, 0, 0])),
        (&schema::SPARED4, prefix(12, &[172, 16, 0, 0])),
        (&schema::SPARED6, prefix(10, &[&[0xfe, 0x80][..], &[0; 14]].concat())),
        (&schema::SPARED6, prefix(32, &[&[0x20, 1, 0x0d, 0xb8][..], &[0; 12]].concat())),
    ] {
        assert_eq!(value::<u32>(&on, map, &key), 1, "{} {key:?}", map.name);
    }
    let of_nat = |(map, _): &(&str, Vec<u8>)| map.starts_with("spared") || map.starts_with("nat_");
    assert_eq!(on.keys().filter(|key| of_nat(key)).count(), 6);
    let off = entries(&Facts { masquerade: None, ..facts });
    assert_eq!(off.keys().filter(|key| of_nat(key)).count(), 0);
    assert_eq!(off.len(), on.len() - 6, "all else as before");
}

#[test]
fn services_addresses_are_marked_and_routed_also_without_masquerade() {
    let t = cluster();
    let services: [IpNet; 2] = ["10.96.0.0/12", "172.20.0.0/16"].map(|c| c.parse().expect("a CIDR"));
    let facts = Facts { service_cidrs: services.into(), ..facts() };
    for facts in [Facts { masquerade: None, ..facts.clone() }, facts.clone()] {
        let all = row(&Row::Node("here".into()), &t.read(), &facts, &InForce::default(), &mut NodeNumbers::default());
        let flags = |length, address: [u8; 4]| {
            let key = EntryKey::new(&schema::SPARED4, prefix(length, &address)).expect("a key");
            all.as_ref().expect("compiles").iter().find(|(k, _)| *k == key).map(|(_, v)| v[0])
        };
        // The latter also lies in what keeps its pods' addresses by another setting.
        assert_eq!((flags(12, [10, 96, 0, 0]), flags(16, [172, 20, 0, 0])), (Some(3), Some(3)));
        assert_eq!(flags(12, [172, 16, 0, 0]), facts.masquerade.is_some().then_some(1));
    }
    let routes = cluster_routes(&t.read(), &facts);
    for cidr in services {
        let route = routes.iter().find(|r| r.to == cidr).expect("a route");
        assert!(route.source.is_some_and(|s| s.is_ipv4()), "{route:?}");
    }
    assert_eq!(routes.len(), 6);
}

#[test]
fn pods_leave_by_each_device_under_its_address_unless_masquerade_is_off() {
    let t = cluster();
    let eth0 = Device {
        name: "eth0".into(),
        mtu: 1400,
        leave4: Some([192, 0, 2, 1].into()),
        leave6: Some("fd00::1".parse().expect("an address")),
        ..Device::default()
    };
    t.set_devices(BTreeMap::from([(7, Device { leave6: None, ..eth0.clone() }), (8, eth0), (9, Device::default())]));
    let entries = compiled(&t, &Row::Devices);
    assert_eq!(entries.len(), 3);
    for index in [7_u32, 8] {
        let leave: Leave4 = value(&entries, &schema::LEAVE4, &index.to_ne_bytes());
        assert_eq!((leave.addr.bytes, leave.mtu), ([192, 0, 2, 1], 1400));
    }
    let leave: Leave6 = value(&entries, &schema::LEAVE6, &8_u32.to_ne_bytes());
    assert_eq!((&leave.addr.bytes[..2], leave.mtu), (&[0xfd, 0][..], 1400));
    let off = Facts { masquerade: None, ..facts() };
    assert!(
        row(&Row::Devices, &t.read(), &off, &InForce::default(), &mut NodeNumbers::default())
            .expect("compiles")
            .is_empty()
    );
    let by = |map, key: u32| leaves_by(&EntryKey::new(map, key.to_ne_bytes()).expect("in order"));
    assert_eq!((by(&schema::LEAVE6, 8), by(&schema::ENDPOINTS, 8)), (Some(8), None));
}

#[test]
fn masquerade_begins_when_it_is_known_what_is_spared_and_ends_first() {
    let place = |map: &MapSpec| maps().position(|m| m.id == map.id).expect("in order");
    for before in
        [&schema::NAT_CONFIG, &schema::OWN4, &schema::OWN6, &schema::CIDR6, &schema::REMOTE6, &schema::SPARED6]
    {
        assert!(place(before) < place(&schema::LEAVE4), "{}", before.name);
    }
    assert!(place(&schema::LEAVE6) < place(&schema::ENDPOINTS));
}

#[test]
fn a_node_to_which_no_tunnel_leads_is_spared_until_one_does() {
    let t = cluster();
    let mut there = node("there", 2);
    there.internal_ips.retain(|a| a.is_ipv6());
    t.set_node(there);
    let entries = compiled(&t, &Row::Node("there".into()));
    let names: BTreeSet<_> = entries.keys().map(|(map, _)| *map).collect();
    assert_eq!(names, BTreeSet::from([schema::SPARED4.name, schema::SPARED6.name]));
    assert!(entries.contains_key(&(schema::SPARED4.name, prefix(24, &[10, 244, 2, 0]))));
    t.set_node(node("there", 2));
    assert!(!compiled(&t, &Row::Node("there".into())).keys().any(|(map, _)| map.starts_with("spared")));
}

#[test]
fn routes_cover_the_nodes_cidrs_or_the_settings_with_the_nodes_address_as_source() {
    let t = cluster();
    let routes = cluster_routes(&t.read(), &facts());
    assert_eq!(routes.len(), 4);
    assert!(routes.iter().all(|r| r.mtu == 1450 && r.source.is_some_and(|s| s.is_ipv4() == r.to.addr().is_ipv4())));
    let wide = Facts { cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a CIDR")], mtu: 9000, ..facts() };
    let routes: Vec<_> = cluster_routes(&t.read(), &wide).into_iter().collect();
    assert_eq!((routes.len(), routes[0].mtu), (1, 8950));
    t.remove_node("here");
    assert!(cluster_routes(&t.read(), &facts()).is_empty());
}

#[test]
fn an_address_of_another_ipam_plugin_outside_the_clusters_cidrs_gets_a_route_of_its_own() {
    let t = cluster();
    let set = |ipv4: [u8; 4], delegated| {
        let mut e = t.read().endpoints[&9].clone();
        (e.ipv4, e.terms.delegated) = (Some(ipv4.into()), delegated);
        t.set_endpoint(e);
    };
    let extra = |facts: &Facts| {
        let hosts = host_addresses(&t.read(), facts);
        let routes = cluster_routes(&t.read(), facts);
        assert!(hosts.iter().all(|a| routes.iter().any(|r| r.to == ipnet::IpNet::from(*a) && r.mtu == 1450)));
        hosts.into_iter().map(|a| a.to_string()).collect::<Vec<_>>()
    };
    set([10, 244, 1, 9], true);
    assert!(extra(&facts()).is_empty(), "inside");
    set([172, 30, 0, 9], true);
    assert_eq!(extra(&facts()), ["172.30.0.9"]);
    let wide =
        Facts { cluster_cidrs: ["172.30.0.0/16", "fd10::/16"].map(|c| c.parse().expect("a CIDR")).into(), ..facts() };
    assert!(extra(&wide).is_empty(), "inside what the settings name");
    set([172, 30, 0, 9], false);
    assert!(extra(&facts()).is_empty(), "of a range that the node had before");
}

#[test]
fn numbers_of_nodes_come_again_only_after_all_others() {
    let mut numbers = NodeNumbers::default();
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(n));
    numbers.adopt(address(1), 5);
    assert_eq!((numbers.number(address(1)), numbers.number(address(2))), (Ok(5), Ok(6)));
    numbers.retain(&BTreeSet::from([address(2)]));
    assert_eq!((numbers.number(address(3)), numbers.known(address(1))), (Ok(7), None));
    for n in 4..cni_common::maps::MAX_NODES + 1 {
        numbers.number(address(n)).expect("one is left");
    }
    assert_eq!(numbers.number(address(0)), Err(TooManyNodes));
}
