//! The agent's netlink module against the running kernel, in network namespaces that vanish with the test. Needs root.
use std::{
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    process::Command,
};

use cni_agent::netlink::{
    MissingIsDone, NetlinkError, Socket, addr,
    link::{self, End, Link},
    monitor::{Event, Monitor},
    names, neigh, netns,
    pod::{self, PodLink},
    route::{self, Route},
    rule::{self, Rule},
    tc::{self, Place},
};
use cni_common::net::Mac;

/// A MAC address that is not ours.
const POD_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 7]);
/// An interface index that nobody has.
const NOBODY: u32 = 999_999;

/// A network namespace without a name and a socket in it.
struct Net {
    netns: OwnedFd,
    socket: Socket,
}

impl Net {
    fn new() -> Self {
        let netns = netns::anonymous().expect("a network namespace (these tests need root)");
        let socket = Socket::open_in(netns.as_fd()).unwrap();
        Self { netns, socket }
    }

    fn link(&mut self, name: &str) -> Link {
        link::by_name(&mut self.socket, name).unwrap().unwrap_or_else(|| panic!("no device {name}"))
    }

    /// A veth pair within the namespace, both ends up; gives the first one's index.
    fn with_wire(&mut self) -> u32 {
        let (a, b) = (End { name: "a", ..End::default() }, End { name: "b", ..End::default() });
        self.socket.run(link::create_veth(&a, &b)).unwrap();
        let (a, b) = (self.link("a").index, self.link("b").index);
        self.socket.batch(vec![link::up(a), link::up(b)]).unwrap();
        a
    }

    /// What `ip` prints.
    fn ip(&self, args: &[&str]) -> String {
        let mut command = Command::new("ip");
        let out = netns::in_netns(self.netns.as_fd(), || command.args(args).output()).unwrap().unwrap();
        assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wire<'a>(host_name: &'a str, pod: &'a Net) -> PodLink<'a> {
    PodLink {
        host_ifindex: names::FIRST_IFINDEX + 5,
        host_name,
        pod_ifindex: names::FIRST_IFINDEX + 6,
        pod_ifname: "eth0",
        pod_mac: POD_MAC,
        mtu_device: 1500,
        route_mtu: 1450,
        addresses: vec![ip("10.244.1.9"), ip("fd10:244:1::9")],
        routes: vec![],
        block: names::BLOCK_INDEX,
        netns: pod.netns.as_fd(),
    }
}

#[test]
fn a_veth_pair_is_made_in_two_namespaces_under_final_names_indexes_macs_and_mtu() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    let end = End { name: "weft5", index: Some(70), mac: Some(Mac::WEFT), mtu: Some(1400), ..End::default() };
    let peer = End {
        name: "eth0",
        index: Some(71),
        mac: Some(POD_MAC),
        mtu: Some(1300),
        netns: Some(pod.netns.as_fd()),
        queues: Some(1),
    };
    node.socket.run(link::create_veth(&end, &peer)).unwrap();

    let host = node.link("weft5");
    assert_eq!((host.index, host.mac, host.mtu, host.up), (70, Some(Mac::WEFT), 1400, false));
    assert_eq!((host.kind.as_deref(), host.link), (Some("veth"), Some(71)));
    assert!(host.link_netns.is_some(), "the other end is in another namespace");
    let inside = pod.link("eth0");
    assert_eq!((inside.index, inside.mac, inside.mtu, inside.up), (71, Some(POD_MAC), 1300, false));
    assert!(pod.ip(&["-d", "link", "show", "eth0"]).contains("numtxqueues 1 numrxqueues 1"));
}

#[test]
fn loopback_has_no_mac_address_though_the_kernel_tells_six_zeros() {
    let mut net = Net::new();
    net.with_wire();
    assert_eq!(net.link("lo").mac, None);
    assert!(net.link("a").mac.is_some());
}

#[test]
fn a_refused_request_names_its_place_in_the_batch_what_it_was_and_the_kernels_words() {
    let mut net = Net::new();
    let index = net.with_wire();
    let batch = vec![link::up(link::LOOPBACK), link::set_mtu(index, 3), link::up(NOBODY)];
    let refused = net.socket.batch(batch).unwrap_err();
    assert_eq!(refused.index(), Some(1), "the first refusal counts, not the last");
    assert_eq!(
        refused.to_string(),
        format!("set the MTU of device {index} to 3: Invalid argument (mtu less than device minimum)")
    );
    assert!(net.link("lo").up, "what stands before it was done");
    // The socket is in step again: nothing of the batch is left in it.
    assert_eq!(link::list(&mut net.socket).unwrap().len(), 3);
}

#[test]
fn what_is_missing_and_what_exists_are_told_apart() {
    let mut net = Net::new();
    let index = net.with_wire();
    let taken = net.socket.run(link::create_bridge("a")).unwrap_err();
    assert!(taken.is_exists() && !taken.is_missing(), "{taken}");
    net.socket.run(addr::add(index, "10.1.1.1/24".parse().unwrap())).unwrap();
    let mut missing = |request| {
        let e: NetlinkError = net.socket.run(request).unwrap_err();
        assert!(e.is_missing() && !e.is_exists(), "{e}");
        Err(e).missing_is_done().unwrap();
    };
    missing(link::delete(NOBODY));
    missing(addr::delete(index, "10.1.1.2/24".parse().unwrap()));
    missing(route::delete(&Route::through(ip("10.1.1.2"), "10.2.0.0/16".parse().unwrap(), index)));
    missing(neigh::delete(index, ip("10.1.1.2")));
    missing(tc::delete_clsact(NOBODY));
    assert_eq!(link::by_name(&mut net.socket, "nobody").unwrap(), None);
    assert_eq!(link::by_index(&mut net.socket, NOBODY).unwrap(), None);
}

#[test]
fn a_pods_wire_is_whole_after_two_sends() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    let wired = wire("weft9", &pod).wire(&mut node.socket).unwrap();
    assert_eq!((wired.steps.len(), wired.own_table), (4, false));
    for address in ["10.244.1.9", "fd10:244:1::9"] {
        let way = route::lookup(&mut pod.socket, ip(address)).unwrap();
        assert!(way.is_some_and(|w| w.local), "packets to {address} must be taken in when the wire is whole");
    }

    let host = node.link("weft9");
    assert!(host.up && host.carrier, "{host:?}");
    assert_eq!(host.mac, Some(Mac::WEFT));
    assert_eq!(addr::list(&mut node.socket).unwrap(), [], "no link-local address on the node's end");
    let qdiscs = tc::qdiscs(&mut node.socket).unwrap();
    let joined: Vec<_> = qdiscs.iter().filter(|q| q.ingress_block == Some(names::BLOCK_INDEX)).collect();
    assert_eq!(joined.iter().map(|q| (q.index, q.kind.as_str())).collect::<Vec<_>>(), [(host.index, "clsact")]);

    let eth0 = pod.link("eth0");
    assert_eq!((eth0.index, eth0.mac, eth0.mtu, eth0.up), (names::FIRST_IFINDEX + 6, Some(POD_MAC), 1500, true));
    assert!(pod.link("lo").up);
    let addresses = addr::list(&mut pod.socket).unwrap();
    let of_eth0: Vec<_> = addresses.iter().filter(|a| a.index == eth0.index).map(|a| a.net.to_string()).collect();
    assert_eq!(of_eth0, ["10.244.1.9/32", "fd10:244:1::9/128"], "no link-local address beside them");
    assert!(addresses.iter().all(|a| !a.flags.contains(addr::Flags::Tentative)), "all usable at once: {addresses:?}");

    let routes = route::list(&mut pod.socket).unwrap();
    for (dst, gateway) in [("0.0.0.0/0", "169.254.1.1"), ("::/0", "fe80::1")] {
        let default = routes.iter().find(|r| r.dst.to_string() == dst).unwrap_or_else(|| panic!("no route to {dst}"));
        assert_eq!(default.gateway, Some(ip(gateway)));
        assert_eq!((default.index, default.mtu, default.protocol), (eth0.index, Some(1450), 87));
    }
    let gateways = neigh::list(&mut pod.socket).unwrap();
    for gateway in [ip("169.254.1.1"), ip("fe80::1")] {
        let entry = gateways.iter().find(|n| n.addr == gateway).unwrap_or_else(|| panic!("no neighbour {gateway}"));
        assert_eq!((entry.state, entry.usable()), (neigh::State::Permanent, Some(Mac::WEFT)));
    }
}

#[test]
fn a_pod_without_ipv6_gets_it_with_its_address() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    for which in ["all", "default"] {
        netns::set_sysctl(&pod.netns, &format!("ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    }
    wire("weft9", &pod).wire(&mut node.socket).unwrap();
    let nets: Vec<_> = addr::list(&mut pod.socket).unwrap().into_iter().map(|a| a.net.to_string()).collect();
    assert!(nets.contains(&"10.244.1.9/32".into()) && nets.contains(&"fd10:244:1::9/128".into()), "{nets:?}");
    let defaults = route::list(&mut pod.socket).unwrap().into_iter().filter(|r| r.dst.prefix_len() == 0).count();
    assert_eq!(defaults, 2);
}

#[test]
fn a_pods_wire_of_one_family_leaves_the_other_alone() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    let mut link = wire("weft9", &pod);
    link.addresses = vec![ip("fd10:244:1::9")];
    link.wire(&mut node.socket).unwrap();
    let defaults: Vec<_> = route::list(&mut pod.socket)
        .unwrap()
        .into_iter()
        .filter(|r| r.dst.prefix_len() == 0)
        .map(|r| r.gateway)
        .collect();
    assert_eq!(defaults, [Some(ip("fe80::1"))]);
}

#[test]
fn a_wire_that_fails_half_way_leaves_no_device() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    let mut link = wire("weft9", &pod);
    // The pod's side refuses the same address twice.
    link.addresses = vec![ip("10.244.1.9"), ip("10.244.1.9")];
    let refused = link.wire(&mut node.socket).unwrap_err();
    assert!(refused.is_exists(), "{refused}");
    let devices = |net: &mut Net| link::list(&mut net.socket).unwrap().into_iter().map(|l| l.name).collect::<Vec<_>>();
    assert_eq!(devices(&mut node), ["lo"]);
    assert_eq!(devices(&mut pod), ["lo"]);
}

/// Interface index of the pod's end of its second wire, and so the number of its table.
const SECOND: u32 = names::FIRST_IFINDEX + 8;

/// The second wire of a pod: other names, indexes and addresses.
fn second<'a>(host_name: &'a str, pod: &'a Net) -> PodLink<'a> {
    PodLink {
        host_ifindex: names::FIRST_IFINDEX + 7,
        pod_ifindex: SECOND,
        pod_ifname: "net1",
        addresses: vec![ip("10.244.1.10"), ip("fd10:244:1::a")],
        ..wire(host_name, pod)
    }
}

fn rules(pod: &mut Net) -> Vec<(IpAddr, u32)> {
    let mut all: Vec<_> = rule::list(&mut pod.socket).unwrap().into_iter().map(|r| (r.from, r.table)).collect();
    all.sort();
    all
}

#[test]
fn a_second_wire_of_a_pod_has_a_table_of_its_own_and_a_rule_for_each_address() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    wire("weft9", &pod).wire(&mut node.socket).unwrap();
    assert!(second("wefta", &pod).wire(&mut node.socket).unwrap().own_table);
    let (index, table) = (SECOND, SECOND);
    assert_eq!(rules(&mut pod), [(ip("10.244.1.10"), table), (ip("fd10:244:1::a"), table)]);
    let shown = pod.ip(&["rule", "show"]);
    assert!(shown.contains(&format!("from 10.244.1.10 lookup {table} proto 87")), "{shown}");

    let ways = |all: Vec<Route>| all.into_iter().map(|r| (r.dst.to_string(), r.index, r.mtu)).collect::<Vec<_>>();
    let of = |dst: &str, index| (dst.to_owned(), index, Some(1450));
    let own = ways(route::list_table(&mut pod.socket, table).unwrap());
    assert_eq!(own, [of("0.0.0.0/0", index), of("::/0", index)]);
    let first = names::FIRST_IFINDEX + 6;
    let main = ways(route::list(&mut pod.socket).unwrap());
    let defaults: Vec<_> = main.into_iter().filter(|(dst, ..)| dst.ends_with("/0")).collect();
    assert_eq!(defaults, [of("0.0.0.0/0", first), of("::/0", first)], "the pod's way out is as before");

    let host = node.link("wefta").index;
    node.socket.run(link::delete(host)).unwrap();
    assert_eq!(rules(&mut pod).len(), 2, "rules do not go with a device");
    pod::delete_rules(&mut pod.socket, table).unwrap();
    pod::delete_rules(&mut pod.socket, table).unwrap();
    assert_eq!(rules(&mut pod), []);
}

#[test]
fn a_second_wire_gives_the_pod_the_default_route_of_a_family_that_it_has_none_of() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    PodLink { addresses: vec![ip("10.244.1.9")], ..wire("weft9", &pod) }.wire(&mut node.socket).unwrap();
    assert!(second("wefta", &pod).wire(&mut node.socket).unwrap().own_table);
    let defaults = route::list(&mut pod.socket).unwrap().into_iter().filter(|r| r.dst.prefix_len() == 0);
    let defaults: Vec<_> = defaults.map(|r| (r.dst.to_string(), r.index)).collect();
    let first = names::FIRST_IFINDEX + 6;
    assert_eq!(defaults, [("0.0.0.0/0".to_owned(), first), ("::/0".to_owned(), SECOND)]);
    assert_eq!(route::list_table(&mut pod.socket, SECOND).unwrap().len(), 2);
}

#[test]
fn the_routes_of_a_wire_are_those_that_were_asked_for() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    let mut link = wire("weft9", &pod);
    link.routes = vec![("10.0.0.0/8".parse().unwrap(), None), ("fd00::/8".parse().unwrap(), Some(7))];
    assert!(!link.wire(&mut node.socket).unwrap().own_table);
    let ours = route::list(&mut pod.socket).unwrap().into_iter().filter(|r| r.protocol == names::ROUTE_PROTOCOL);
    let ours: Vec<_> = ours.map(|r| (r.dst.to_string(), r.gateway, r.priority)).collect();
    let expected = [("10.0.0.0/8", "169.254.1.1", None), ("fd00::/8", "fe80::1", Some(7))];
    assert_eq!(ours, expected.map(|(dst, gateway, metric)| (dst.to_owned(), Some(ip(gateway)), metric)));
}

#[test]
fn a_second_wire_that_fails_half_way_leaves_no_rule() {
    let (mut node, mut pod) = (Net::new(), Net::new());
    wire("weft9", &pod).wire(&mut node.socket).unwrap();
    // Somebody's rule of the very same kind is in the way of the second one.
    let taken = Rule { from: ip("fd10:244:1::a"), table: SECOND };
    pod.socket.run(rule::add(taken)).unwrap();
    let refused = second("wefta", &pod).wire(&mut node.socket).unwrap_err();
    assert!(refused.is_exists() && refused.to_string().contains("rule from fd10:244:1::a"), "{refused}");
    assert_eq!(rules(&mut pod), []);
    let devices: Vec<_> = link::list(&mut pod.socket).unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(devices, ["lo", "eth0"]);
}

#[test]
fn a_wire_whose_name_is_taken_changes_nothing_of_the_other() {
    let (mut node, pod) = (Net::new(), Net::new());
    node.socket.run(link::create_bridge("weft9")).unwrap();
    let refused = wire("weft9", &pod).wire(&mut node.socket).unwrap_err();
    assert!(refused.is_exists() && refused.index() == Some(0), "{refused}");
    let bridge = node.link("weft9");
    assert_eq!((bridge.kind.as_deref(), bridge.up), (Some("bridge"), false));
}

#[test]
fn devices_change_as_told() {
    let mut net = Net::new();
    let index = net.with_wire();
    net.socket.run(link::create_bridge("br")).unwrap();
    let bridge = net.link("br").index;
    net.socket
        .batch(vec![
            link::set_mtu(index, 1234),
            link::set_master(index, Some(bridge)),
            link::set_alias(index, "weft: x"),
        ])
        .unwrap();
    let a = net.link("a");
    assert_eq!((a.mtu, a.master, a.alias.as_deref()), (1234, Some(bridge), Some("weft: x")));
    net.socket.batch(vec![link::set_master(index, None), link::down(index)]).unwrap();
    let a = net.link("a");
    assert_eq!((a.master, a.up), (None, false));
    net.socket.run(link::delete(index)).unwrap();
    let left: Vec<_> = link::list(&mut net.socket).unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(left, ["lo", "br"], "the other end goes with it");
}

#[test]
fn the_vxlan_device_takes_tunnels_from_metadata_and_wants_no_checksums() {
    let mut net = Net::new();
    net.socket.run(link::create_vxlan(names::VXLAN, names::VXLAN_PORT, Mac::WEFT, Some(1450))).unwrap();
    let device = net.link(names::VXLAN);
    assert_eq!((device.kind.as_deref(), device.mac, device.mtu), (Some("vxlan"), Some(Mac::WEFT), 1450));
    let shown = net.ip(&["-d", "link", "show", "dev", names::VXLAN]);
    for word in ["external", "dstport 8472", "nolearning", "udp6zerocsumtx", "udp6zerocsumrx"] {
        assert!(shown.contains(word) && !shown.contains(&format!("no{word}")), "`{word}` in {shown}");
    }
}

#[test]
fn link_local_addresses_stay_off_where_told() {
    let mut net = Net::new();
    let (a, b) = (End { name: "a", ..End::default() }, End { name: "b", ..End::default() });
    net.socket.run(link::create_veth(&a, &b)).unwrap();
    let (quiet, usual) = (net.link("a").index, net.link("b").index);
    let (mut monitor, _stop) = Monitor::open_in(net.netns.as_fd()).unwrap();
    net.socket.batch(vec![link::no_link_local(quiet), link::up(quiet), link::up(usual)]).unwrap();
    // The kernel gives it some time after the device is up.
    assert!(monitor.any(|e| matches!(e.unwrap(), Event::Address(a) if a.index == usual)));
    let with_address: Vec<_> = addr::list(&mut net.socket).unwrap().into_iter().map(|a| a.index).collect();
    assert_eq!(with_address, [usual]);
}

#[test]
fn the_way_to_an_address_is_the_kernels() {
    let mut net = Net::new();
    let (mut monitor, _stop) = Monitor::open_in(net.netns.as_fd()).unwrap();
    let index = net.with_wire();
    for (own, gateway, far, near) in [
        ("10.99.0.1/24", "10.99.0.9", "10.244.0.0/16", "10.99.0.7"),
        ("fd99::1/64", "fd99::9", "fd10:244::/48", "fd99::7"),
    ] {
        let own: ipnet::IpNet = own.parse().unwrap();
        net.socket.run(addr::add(index, own)).unwrap();
        let far: ipnet::IpNet = far.parse().unwrap();
        assert_eq!(route::lookup(&mut net.socket, far.addr()).unwrap(), None, "no route yet");
        let route = Route {
            mtu: Some(1400),
            source: Some(own.addr()),
            onlink: false,
            ..Route::through(ip(gateway), far, index)
        };
        net.socket.run(route::add(&route)).unwrap();
        assert!(net.socket.run(route::add(&route)).unwrap_err().is_exists());
        net.socket.run(route::replace(&Route { mtu: Some(1300), ..route.clone() })).unwrap();

        let way = route::lookup(&mut net.socket, far.addr()).unwrap().expect("a way");
        assert_eq!(
            (way.index, way.gateway, way.source, way.local),
            (index, Some(ip(gateway)), Some(own.addr()), false)
        );
        assert_eq!(way.mtu, Some(1300));
        let way = route::lookup(&mut net.socket, ip(near)).unwrap().expect("a way");
        assert_eq!((way.index, way.gateway, way.source), (index, None, Some(own.addr())));
        // IPv6 becomes local a moment after the address is there.
        while !route::lookup(&mut net.socket, own.addr()).unwrap().expect("a way").local {
            monitor.next().unwrap().unwrap();
        }

        let ours = |net: &mut Net| {
            let all = route::list(&mut net.socket).unwrap();
            all.into_iter()
                .filter(|r| r.protocol == names::ROUTE_PROTOCOL && r.dst == far)
                .map(|r| r.mtu)
                .collect::<Vec<_>>()
        };
        assert_eq!(ours(&mut net), [Some(1300)], "replaced, not added");
        net.socket.run(route::delete(&route)).unwrap();
        assert_eq!(ours(&mut net), []);
    }
}

#[test]
fn a_neighbour_is_resolved_when_asked_for() {
    let (mut one, mut two) = (Net::new(), Net::new());
    let end = End { name: "eth0", mac: Some(POD_MAC), ..End::default() };
    let peer = End { netns: Some(one.netns.as_fd()), mac: None, ..end };
    two.socket.run(link::create_veth(&end, &peer)).unwrap();
    let (i, j) = (one.link("eth0").index, two.link("eth0").index);
    one.socket.batch(vec![link::up(i), addr::add(i, "10.99.0.1/24".parse().unwrap())]).unwrap();
    two.socket.batch(vec![link::up(j), addr::add(j, "10.99.0.2/24".parse().unwrap())]).unwrap();
    let (monitor, _stop) = Monitor::open_in(one.netns.as_fd()).unwrap();

    let peer = ip("10.99.0.2");
    assert_eq!(neigh::lookup(&mut one.socket, i, peer).unwrap(), None);
    one.socket.run(neigh::resolve(i, peer)).unwrap();
    let mac = monitor.map(Result::unwrap).find_map(|event| match event {
        Event::Neighbour(n) if n.addr == peer => n.usable(),
        _ => None,
    });
    assert_eq!(mac, Some(POD_MAC));
    assert_eq!(neigh::lookup(&mut one.socket, i, peer).unwrap().and_then(|n| n.usable()), Some(POD_MAC));
}

#[test]
fn clsact_that_is_there_already_is_success() {
    let mut net = Net::new();
    let index = net.with_wire();
    assert!(tc::ensure_clsact(&mut net.socket, index).unwrap(), "it was new");
    assert!(!tc::ensure_clsact(&mut net.socket, index).unwrap(), "it was there");
    assert!(net.socket.run(tc::add_clsact(index, None)).unwrap_err().is_exists());
    net.socket.run(tc::delete_clsact(index)).unwrap();
    let kinds: Vec<_> = tc::qdiscs(&mut net.socket).unwrap().into_iter().filter(|q| q.index == index).collect();
    assert!(kinds.iter().all(|q| q.kind != "clsact"), "{kinds:?}");
}

#[test]
fn foreign_filters_are_listed_and_are_not_ours() {
    let mut net = Net::new();
    let index = net.with_wire();
    assert_eq!(tc::filters(&mut net.socket, Place::Ingress(index)).unwrap(), [], "no clsact, no filter");
    tc::ensure_clsact(&mut net.socket, index).unwrap();
    let mut command = Command::new("tc");
    command.args("filter add dev a ingress prio 9 handle 3 bpf bytecode".split(' ')).args(["1,6 0 0 4294967295", "da"]);
    assert!(netns::in_netns(net.netns.as_fd(), || command.status()).unwrap().unwrap().success());
    let filters = tc::filters(&mut net.socket, Place::Ingress(index)).unwrap();
    assert_eq!(
        filters.iter().map(|f| (f.kind.as_str(), f.priority, f.handle, f.is_ours())).collect::<Vec<_>>(),
        [("bpf", 9, 3, false)]
    );
    assert_eq!(tc::filters(&mut net.socket, Place::Egress(index)).unwrap(), []);
    assert_eq!(tc::filters(&mut net.socket, Place::Block(77)).unwrap(), [], "no such block");
}

#[test]
fn what_is_no_program_is_refused_by_name() {
    let mut net = Net::new();
    let index = net.with_wire();
    tc::ensure_clsact(&mut net.socket, index).unwrap();
    let no_program = std::fs::File::open("/dev/null").unwrap();
    let refused = net.socket.run(tc::set_filter(Place::Ingress(index), no_program.as_fd(), "from_netdev")).unwrap_err();
    assert!(
        refused.to_string().starts_with(&format!("put the program from_netdev at the ingress of device {index}: ")),
        "{refused}"
    );
}

#[test]
fn changes_are_reported_until_stopped() {
    let mut net = Net::new();
    let (mut monitor, stop) = Monitor::open_in(net.netns.as_fd()).unwrap();
    let index = net.with_wire();
    net.socket.run(addr::add(index, "10.1.1.1/24".parse().unwrap())).unwrap();
    net.socket.run(route::add(&Route::through(ip("10.1.1.2"), "10.2.0.0/16".parse().unwrap(), index))).unwrap();
    net.socket.run(link::delete(index)).unwrap();
    let mut wait_for = |what: &str, wanted: &dyn Fn(&Event) -> bool| {
        assert!(monitor.by_ref().map(Result::unwrap).any(|e| wanted(&e)), "{what}");
    };
    wait_for("device", &|e| matches!(e, Event::Link(l) if l.name == "a"));
    wait_for("address", &|e| matches!(e, Event::Address(a) if a.net.to_string() == "10.1.1.1/24"));
    wait_for("route", &|e| matches!(e, Event::Route(r) if r.dst.to_string() == "10.2.0.0/16"));
    wait_for("end of the device", &|e| matches!(e, Event::LinkGone(l) if l.name == "a"));

    let watcher = std::thread::spawn(move || monitor.filter(|e| e.is_err()).count());
    drop(stop);
    assert_eq!(watcher.join().unwrap(), 0, "it ends without an error");
}

#[test]
fn lost_reports_are_said_to_be_lost() {
    let mut net = Net::new();
    let (mut monitor, _stop) = netns::in_netns(net.netns.as_fd(), || Monitor::with_buffer(1)).unwrap().unwrap();
    let index = net.with_wire();
    for i in 0..100 {
        net.socket.run(link::set_mtu(index, 1000 + i)).unwrap();
    }
    assert!(monitor.any(|e| e.unwrap() == Event::Overrun));
}

#[test]
fn work_in_a_namespace_leaves_the_callers_thread_where_it_is() {
    let inode = |path: &str| std::fs::read_link(path).unwrap();
    let before = inode("/proc/thread-self/ns/net");
    let other = netns::anonymous().unwrap();
    let inside = netns::in_netns(other.as_fd(), || inode("/proc/thread-self/ns/net")).unwrap();
    assert_ne!(inside, before);
    assert_eq!(inode("/proc/thread-self/ns/net"), before);
    let panics = std::panic::catch_unwind(|| netns::in_netns(other.as_fd(), || panic!("inside")));
    assert_eq!(panics.unwrap_err().downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(inode("/proc/thread-self/ns/net"), before);
}

#[test]
fn a_child_runs_in_the_namespace_and_sysctls_are_set_there_only() {
    let net = Net::new();
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let before = read();
    netns::set_sysctl(&net.netns, "ipv4/ip_forward", "1").unwrap();
    assert_eq!(netns::in_netns(net.netns.as_fd(), read).unwrap(), "1\n");
    assert_eq!(read(), before);
    let mut child = netns::spawn_in(
        net.netns.as_fd(),
        Command::new("ip").args(["-br", "link"]).stdout(std::process::Stdio::piped()),
    )
    .unwrap();
    let out = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(out.lines().count(), 1, "loopback only: {out}");
}

#[test]
fn a_named_namespace_comes_and_goes() {
    let name = format!("weft-test-{}", std::process::id());
    let netns = netns::create(&name).unwrap();
    assert!(netns::names().unwrap().contains(&name));
    assert_eq!(netns::create(&name).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    let by_path = netns::open(netns::path_of(&name)).unwrap();
    let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&by_path), inode(&netns));
    netns::delete(&name).unwrap();
    assert!(!netns::names().unwrap().contains(&name));
    netns::delete(&name).unwrap();
}
