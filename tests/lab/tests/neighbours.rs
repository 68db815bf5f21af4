//! The way to another node follows the kernel's neighbours and routes, and the Node objects. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::net::IpAddr;

use cni_agent::netlink::{Socket, addr, link, neigh, netns};
use cni_common::net::Mac;
use lab::{
    Node,
    hostile::Advertisement,
    layout::NODE_DEVICE,
    pair::{Pair, until},
    probe::{self, Family},
};
use serde_json::Value;

/// A MAC that no device of the lab has.
const OTHER: Mac = Mac::new([2, 0, 0, 0, 0xbb, 1]);
/// Both underlays: the agents' arguments.
const UNDERLAYS: [&[&str]; 2] = [&[], &["--underlay", "ipv6"]];

/// A netlink socket on the node, and the index of its device to the others.
fn device(node: &Node) -> (Socket, u32) {
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let index = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap().index;
    (socket, index)
}

/// What `node` knows about the way to `other`; null when it does not know such a node.
fn seen(node: &Node, other: &str) -> Value {
    let nodes = node.ask("/v1/nodes").unwrap();
    nodes.as_array().expect("a list").iter().find(|n| n["name"] == other).cloned().unwrap_or_default()
}

/// Where `node` sends packets for the pods of `other`.
fn tunnel_address(node: &Node, other: &str) -> IpAddr {
    seen(node, other)["tunnel_address"].as_str().expect("a tunnel address").parse().unwrap()
}

/// Packets that a node has dropped for this reason.
fn drops(node: &Node, reason: &str) -> u64 {
    let counted = node.ask("/v1/drops").unwrap();
    let of_kind = counted["drops"].as_array().expect("a list").iter().filter(|d| d["reason"] == reason);
    of_kind.map(|d| d["packets"].as_u64().expect("a count")).sum()
}

#[test]
fn connections_live_on_when_the_other_node_changes_its_mac() {
    for underlay in UNDERLAYS {
        let mut rig = Pair::with_agents(underlay).unwrap();
        rig.exchange("before").unwrap();
        let far = rig.node("node-2").unwrap();
        // As a failover does: who has another MAC tells everybody.
        for key in ["ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify"] {
            netns::set_sysctl(far.place().unwrap().netns(), key, "1").unwrap();
        }
        let (mut there, index) = device(far);
        there.run(link::set_mac(index, OTHER)).unwrap();
        until("node-1 sends to the new MAC", || {
            seen(rig.node("node-1").unwrap(), "node-2")["next_hop"]["mac"] == OTHER.to_string()
        })
        .unwrap();
        rig.exchange("after the other node has changed its MAC").unwrap();
        rig.lab.down().unwrap();
    }
}

#[test]
fn a_forgotten_or_failed_neighbour_is_found_again_and_nothing_stops() {
    for underlay in UNDERLAYS {
        let mut rig = Pair::with_agents(underlay).unwrap();
        let to = tunnel_address(rig.node("node-1").unwrap(), "node-2");
        let (mut here, index) = device(rig.node("node-1").unwrap());
        for round in 0..3 {
            // It may be gone already: the kernel forgets too.
            drop(here.run(neigh::delete(index, to)));
            rig.exchange(&format!("neighbour deleted, round {round}")).unwrap();
        }
        until("the MAC is known again", || seen(rig.node("node-1").unwrap(), "node-2")["next_hop"]["mac"].is_string())
            .unwrap();
        rig.lab.down().unwrap();
    }
}

/// Of a busy link: a router that repeats itself, and neighbours that no way to a node leads over.
#[test]
fn what_others_do_on_the_link_changes_nothing_that_the_agent_has_read() {
    let rig = Pair::with_agents(&[]).unwrap();
    let node = rig.node("node-2").unwrap();
    until("the way is known", || seen(node, "node-1")["next_hop"]["mac"].is_string()).unwrap();
    let revision = || node.ask("/v1/status").unwrap()["reconciler"]["revision"].as_u64().expect("a number");
    let before = revision();
    let hostile = rig.lab.hostile().unwrap();
    for n in 0..20 {
        let again = Advertisement::of("fd99::/64".parse().unwrap());
        hostile.advertise(&Advertisement { valid: again.valid - n, ..again }).unwrap();
    }
    let (mut socket, index) = device(node);
    for n in 100..150 {
        let stranger = IpAddr::from([10, 99, 0, n]);
        socket.run(neigh::set_permanent(index, stranger, OTHER)).unwrap();
        socket.run(neigh::delete(index, stranger)).unwrap();
    }
    // Read after all of that, as the kernel tells in order: an address that the node did not have.
    socket.run(addr::add(index, "10.99.0.200/32".parse().unwrap())).unwrap();
    until("the new address is read", || revision() > before).unwrap();
    assert_eq!(revision(), before + 1, "more has changed than that address");
    rig.lab.down().unwrap();
}

#[test]
fn a_node_that_cannot_be_reached_for_a_while_is_reached_again() {
    let mut rig = Pair::with_agents(&[]).unwrap();
    let (mut here, index) = device(rig.node("node-1").unwrap());
    let (mut there, far_index) = device(rig.node("node-2").unwrap());
    let to = tunnel_address(rig.node("node-2").unwrap(), "node-1");
    here.run(link::down(index)).unwrap();
    until("no next hop", || seen(rig.node("node-1").unwrap(), "node-2")["next_hop"].is_null()).unwrap();
    // The other one asks for it anew, and in vain.
    there.run(neigh::delete(far_index, to)).unwrap();
    there.run(neigh::resolve(far_index, to)).unwrap();
    until("node-2's neighbour has failed", || {
        neigh::lookup(&mut there, far_index, to).unwrap().is_some_and(|n| n.state == neigh::State::Failed)
    })
    .unwrap();
    assert!(seen(rig.node("node-2").unwrap(), "node-1")["next_hop"]["mac"].is_null(), "a failed neighbour has no MAC");
    here.run(link::up(index)).unwrap();
    until("a next hop again", || seen(rig.node("node-1").unwrap(), "node-2")["next_hop"]["ifindex"] == index).unwrap();
    rig.exchange("after the device is back").unwrap();
    rig.lab.down().unwrap();
}

#[test]
fn a_node_whose_object_is_gone_is_a_stranger_until_it_comes_back() {
    let mut rig = Pair::with_agents(&[]).unwrap();
    rig.exchange("before").unwrap();
    rig.lab.show_node("node-2", false).unwrap();
    until("node-1 forgets it", || seen(rig.node("node-1").unwrap(), "node-2").is_null()).unwrap();
    // The other one goes on without its object as it was: what it sends is a stranger's now.
    let before = drops(rig.node("node-1").unwrap(), "UnknownNode");
    for family in Family::BOTH {
        let lost = probe::udp(&rig.pods[1], &rig.pods[0], family).unwrap_err();
        assert!(format!("{lost:#}").contains("did not arrive"), "{lost:#}");
    }
    assert!(drops(rig.node("node-1").unwrap(), "UnknownNode") > before, "no drop under its name");
    for map in ["tunnels", "cidr4", "cidr6", "nodes4"] {
        let entries = rig.node("node-1").unwrap().ask(&format!("/v1/maps/{map}")).unwrap().to_string();
        let theirs = ["10.244.2.0", "fd10:244:2::", "10.99.0.2"];
        assert!(!theirs.iter().any(|a| entries.contains(a)), "{map}: {entries}");
    }
    rig.lab.show_node("node-2", true).unwrap();
    until("it is back", || seen(rig.node("node-1").unwrap(), "node-2")["next_hop"]["mac"].is_string()).unwrap();
    rig.exchange("after it is back").unwrap();
    rig.lab.down().unwrap();
}
