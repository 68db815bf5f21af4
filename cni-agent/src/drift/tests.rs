use std::net::IpAddr;

use cni_common::net::Mac;

use super::{
    Kind,
    compare::{Cure, Device, Hook, Seen, Wanted, compare},
};
use crate::{
    compile::ClusterRoute,
    datapath::attach::How,
    netlink::{
        addr::{Address, Flags, Scope},
        link::Link,
        names,
        neigh::{Neighbour, State},
        nftables::own::{Rule as StackRule, Table},
        rule::Rule,
        tc::Qdisc,
    },
};

fn device(name: &str, index: u32) -> Device {
    let joins = name == "weft7" || name == names::BLOCK;
    Device {
        name: name.into(),
        index,
        is_pods: name == "weft7",
        up: name != names::BLOCK,
        mtu: Some(1500),
        joins,
        port: (name == names::VXLAN).then_some(8472),
        no_link_local: name == names::HOST,
    }
}
fn link(d: &Device) -> Link {
    Link {
        index: d.index,
        name: d.name.clone(),
        mac: Some(Mac::WEFT),
        mtu: 1500,
        kind: None,
        up: d.up,
        carrier: true,
        link: None,
        link_netns: None,
        master: None,
        alias: None,
        vxlan_port: d.port,
    }
}
fn gateway() -> IpAddr {
    names::GATEWAY4.into()
}
fn route() -> ClusterRoute {
    ClusterRoute { to: "10.1.0.0/16".parse().unwrap(), source: None, mtu: 1450 }
}
fn rule() -> Rule {
    Rule { from: "10.1.0.9".parse().unwrap(), table: 7 }
}
fn table() -> Table {
    Table::of(&[StackRule::Keep { to: "192.0.2.0/24".parse().unwrap() }])
}

/// A node on which all is as it should be.
fn node() -> (Wanted, Seen) {
    let devices: Vec<Device> =
        [(names::HOST, 3), (names::VXLAN, 4), (names::BLOCK, 5), ("weft7", 7)].map(|(n, i)| device(n, i)).into();
    let hook =
        |program, device: &str, index, how, id| Hook { program, device: device.into(), index, how, id: Some(id) };
    let hooks = vec![
        hook("from_pod", names::BLOCK, 0, None, 11),
        hook("from_overlay", names::VXLAN, 4, Some(How::Tcx), 12),
        hook("from_netdev", "eth0", 2, Some(How::Clsact), 13),
    ];
    let clsact = |index| Qdisc { index, kind: "clsact".into(), ingress_block: Some(names::BLOCK_INDEX) };
    let eth0 = Link { mac: Some(Mac::new([2, 0, 0, 0, 0, 1])), ..link(&device("eth0", 2)) };
    let seen = Seen {
        links: devices.iter().map(|d| (d.index, link(d))).chain([(2, eth0)]).collect(),
        no_link_local: [(names::HOST.to_owned(), true)].into(),
        qdiscs: vec![clsact(5), clsact(7)],
        addresses: Vec::new(),
        neighbours: vec![Neighbour { index: 3, addr: gateway(), mac: Some(Mac::WEFT), state: State::Permanent }],
        hooks: hooks.iter().map(|h| h.id).collect(),
        routes: [route()].into(),
        rules: [("/run/netns/a".to_owned(), vec![rule()])].into(),
        table: Some(table()),
    };
    let wanted = Wanted {
        devices,
        neighbours: vec![(3, gateway())],
        hooks,
        routes: [route()].into(),
        routes_are_all: true,
        rules: vec![("/run/netns/a".into(), rule())],
        table: Some(table()),
    };
    (wanted, seen)
}

type Break = fn(&mut Seen);
type Cures = fn(&Cure) -> bool;

#[test]
fn nothing_is_found_where_all_is_as_it_should_be() {
    let (wanted, seen) = node();
    assert_eq!(compare(&wanted, &seen), []);
}

#[test]
fn each_change_is_found_alone_by_its_kind_and_name_with_its_cure() {
    let breaks: [(Kind, &str, Break, Cures); 20] = [
        (Kind::Device, "weft_host", |s| s.links.get_mut(&3).unwrap().up = false, |c| *c == Cure::Up(3, true)),
        (Kind::Device, "weft_block", |s| s.links.get_mut(&5).unwrap().up = true, |c| *c == Cure::Up(5, false)),
        (Kind::Device, "weft_host", |s| s.links.get_mut(&3).unwrap().mtu = 1400, |c| *c == Cure::Mtu(3, 1500)),
        (Kind::Device, "weft_vxlan", |s| s.links.get_mut(&4).unwrap().mac = None, |c| *c == Cure::Mac(4)),
        (
            Kind::Device,
            "weft_vxlan",
            |s| s.links.get_mut(&4).unwrap().vxlan_port = Some(1),
            |c| matches!(c, Cure::MakeAnew(_)),
        ),
        (Kind::Device, "weft_vxlan", |s| _ = s.links.remove(&4), |c| matches!(c, Cure::Make(d) if d.index == 4)),
        (
            Kind::Device,
            "weft_host",
            |s| _ = s.no_link_local.insert(names::HOST.into(), false),
            |c| *c == Cure::NoLinkLocal(3),
        ),
        (
            Kind::Device,
            "weft_host",
            |s| {
                let (net, scope) = ("192.0.2.1/32".parse().unwrap(), Scope::Universe);
                s.addresses.push(Address { index: 3, net, scope, flags: Flags::empty() });
            },
            |c| matches!(c, Cure::NoAddress(3, _)),
        ),
        (Kind::PodDevice, "weft7", |s| s.links.get_mut(&7).unwrap().up = false, |c| *c == Cure::Up(7, true)),
        (Kind::PodDevice, "weft7", |s| s.links.get_mut(&7).unwrap().mtu = 9000, |c| *c == Cure::Mtu(7, 1500)),
        (Kind::PodDevice, "weft7", |s| _ = s.qdiscs.pop(), |c| *c == Cure::Join(7, false)),
        (Kind::PodDevice, "weft7", |s| s.qdiscs[1].ingress_block = None, |c| *c == Cure::Join(7, true)),
        (
            Kind::Neighbour,
            "169.254.1.1 on weft_host",
            |s| s.neighbours.clear(),
            |c| *c == Cure::Neighbour(3, gateway()),
        ),
        (
            Kind::Neighbour,
            "169.254.1.1 on weft_host",
            |s| s.neighbours[0].state = State::Stale,
            |c| *c == Cure::Neighbour(3, gateway()),
        ),
        (Kind::Hook, "from_pod on weft_block", |s| s.hooks[0] = None, |c| matches!(c, Cure::Attach(_))),
        (Kind::Hook, "from_netdev on eth0", |s| s.hooks[2] = Some(99), |c| matches!(c, Cure::Attach(_))),
        (Kind::Route, "10.1.0.0/16 on weft_host", |s| s.routes.clear(), |c| *c == Cure::Routes),
        (
            Kind::Rule,
            "from 10.1.0.9 in /run/netns/a",
            |s| s.rules.values_mut().for_each(Vec::clear),
            |c| matches!(c, Cure::Rule(..)),
        ),
        (Kind::Nftables, "inet weft", |s| s.table = None, |c| *c == Cure::Table),
        (Kind::Nftables, "inet weft", |s| s.table = Some(Table::of(&[])), |c| *c == Cure::Table),
    ];
    for (kind, name, break_it, cures) in breaks {
        let (wanted, mut seen) = node();
        break_it(&mut seen);
        let found = compare(&wanted, &seen);
        assert!(found.len() == 1 && found[0].item.was != found[0].item.should, "{name}: {found:#?}");
        assert_eq!((found[0].item.kind, found[0].item.name.as_str()), (kind, name));
        assert!(cures(&found[0].cure), "{found:#?}");
    }
}

#[test]
fn a_route_of_another_mtu_or_of_nobodys_wish_is_named() {
    let (mut wanted, mut seen) = node();
    seen.routes = [ClusterRoute { mtu: 9000, ..route() }].into();
    let found = compare(&wanted, &seen);
    assert!(found.len() == 1 && found[0].item.was.contains("MTU 9000"), "{found:#?}");
    seen.routes.insert(ClusterRoute { to: "10.9.0.0/16".parse().unwrap(), ..route() });
    assert_eq!(compare(&wanted, &seen).len(), 2);
    wanted.routes_are_all = false;
    assert_eq!(compare(&wanted, &seen).len(), 1, "it may be one that nobody has read yet");
}

#[test]
fn what_goes_by_itself_is_no_drift() {
    // A pod's device, its namespace, and somebody else's device that was watched.
    let (wanted, mut seen) = node();
    seen.links.remove(&7);
    seen.links.remove(&2);
    seen.hooks[2] = None;
    seen.qdiscs.pop();
    seen.rules.clear();
    assert_eq!(compare(&wanted, &seen), []);
}
