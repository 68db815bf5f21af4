//! A node that gets other addresses, or loses one for a moment. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use cni_agent::netlink::{
    Socket, addr, link,
    names::ROUTE_PROTOCOL,
    route::{self, Route},
};
use ipnet::IpNet;
use lab::{
    Ending, Node,
    layout::NODE_DEVICE,
    pair::{Pair, until},
    probe::{self, Family},
    tool,
};
use serde_json::Value;

/// What node-1 has on the underlay, and gets instead.
const OLD: [&str; 2] = ["10.99.0.1/24", "fd99::1/64"];
const NEW: [&str; 2] = ["10.99.0.77/24", "fd99::77/64"];

/// What `node` knows of the other one.
fn other(node: &Node) -> Option<Value> {
    let nodes = node.ask("/v1/nodes").unwrap();
    nodes.as_array().expect("a list of nodes").iter().find(|n| n["own"] == false).cloned()
}

fn entries(node: &Node, map: &str) -> Vec<Value> {
    node.ask(&format!("/v1/maps/{map}")).unwrap().as_array().expect("entries").clone()
}

fn survives_a_readdressed_node(agent_args: &[&str], tunnel: &str) {
    let mut rig = Pair::with_agents(agent_args).unwrap();
    rig.exchange("before").unwrap();
    let node = rig.node("node-1").unwrap();
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap().index;
    let [old, new] = [OLD, NEW].map(|nets| nets.map(|net| net.parse::<IpNet>().unwrap()));
    for (old, new) in old.iter().zip(new) {
        // In this order: the kernel takes the others of a subnet away with its first address.
        socket.run(addr::delete(device, *old)).unwrap();
        socket.run(addr::add(device, new)).unwrap();
    }
    rig.lab.readdress("node-1", &new).unwrap();
    until("node-1 has its new tunnel address", || {
        rig.node("node-1").unwrap().ask("/v1/status").unwrap()["datapath"]["tunnel_address"] == tunnel
    })
    .unwrap();
    until("node-2 sends there", || {
        let one = other(rig.node("node-2").unwrap()).expect("node-1");
        one["tunnel_address"] == tunnel && one["next_hop"]["mac"].is_string()
    })
    .unwrap();
    rig.exchange("after node-1 has got other addresses").unwrap();
    // The node itself too, under the new address.
    let moved = rig.lab.place("node-1").unwrap();
    for family in Family::BOTH {
        let client = &rig.pods[1];
        assert_eq!(probe::tcp(&moved, client, family).unwrap().seen, Some(moved.address(family).unwrap()));
        assert_eq!(probe::tcp(client, &moved, family).unwrap().seen, Some(client.address(family).unwrap()));
    }
    rig.lab.down().unwrap();
}

#[test]
fn connections_live_on_when_a_node_gets_other_addresses() {
    survives_a_readdressed_node(&[], "10.99.0.77");
}

#[test]
fn connections_live_on_over_ipv6_when_a_node_gets_other_addresses() {
    survives_a_readdressed_node(&["--underlay", "ipv6"], "fd99::77");
}

#[test]
fn a_node_whose_address_was_gone_for_a_moment_reaches_pods_as_before() {
    let mut rig = Pair::with_agents(&[]).unwrap();
    let node = rig.node("node-1").unwrap();
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap().index;
    let routes = |socket: &mut Socket| -> Vec<_> {
        let ours = |r: &Route| r.protocol == ROUTE_PROTOCOL;
        let mut all: Vec<_> =
            route::list(socket).unwrap().into_iter().filter(ours).map(|r| (r.dst, r.source)).collect();
        all.sort();
        all
    };
    let before = routes(&mut socket);
    assert_eq!(before.len(), 4, "a route for each pod CIDR: {before:?}");
    // The other family's address stays, and the device with it one that leads to other nodes.
    let own: IpNet = OLD[0].parse().unwrap();
    let known = || entries(node, "own4").iter().any(|e| e["key"] == own.addr().to_string());
    socket.run(addr::delete(device, own)).unwrap();
    until("the agent knows that the address is gone", || !known()).unwrap();
    assert_ne!(routes(&mut socket), before, "the kernel takes routes along, or this test shows nothing");
    socket.run(addr::add(device, own)).unwrap();
    until("the agent knows the address", known).unwrap();
    until("the routes are there again", || routes(&mut socket) == before).unwrap();
    until("the other node is found again", || other(node).is_some_and(|n| n["next_hop"]["mac"].is_string())).unwrap();
    let (node, client) = (node.place().unwrap(), &rig.pods[1]);
    for family in Family::BOTH {
        assert_eq!(probe::tcp(&node, client, family).unwrap().seen, Some(node.address(family).unwrap()));
    }
    rig.exchange("after the address is back").unwrap();
    rig.lab.down().unwrap();
}

/// As a VLAN's device has, which tests/vlan.rs has where the kernel can make one. A bpffs takes no names with dots.
#[test]
fn connections_live_on_when_a_nodes_device_gets_a_name_with_a_dot() {
    let mut rig = Pair::with_agents(&[]).unwrap();
    rig.exchange("before").unwrap();
    let lines = format!(
        "ip link set eth0 down
         ip link set eth0 name eth0.100
         ip link set eth0.100 up
         ip address replace {} dev eth0.100 nodad",
        OLD[1]
    );
    tool::script(&rig.lab.place("node-1").unwrap(), &lines).unwrap();
    rig.lab.restart_agent("node-1", Ending::Killed).unwrap();
    until("the agent watches it", || {
        let status = rig.node("node-1").unwrap().ask("/v1/status").unwrap();
        status["datapath"]["programs"].to_string().contains("eth0.100")
    })
    .unwrap();
    rig.exchange("under the new name").unwrap();
    rig.lab.down().unwrap();
}
