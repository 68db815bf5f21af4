//! Two pods on a node reach each other and the node. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use lab::{
    Lab, LabConfig, PodSpec,
    probe::{self, Family, Flow, Place},
};

/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 8 * 1024 * 1024;

/// A lab of one node with two pods, and the three as ends of probes.
fn two_pods() -> (Lab, [Place; 2], Place) {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let pods = ["web", "client"].map(|name| {
        let added = lab.pod_add("node-1", &PodSpec::named(name)).expect("a pod");
        added.pod.place().unwrap()
    });
    let node = lab.node("node-1").unwrap().place().unwrap();
    (lab, pods, node)
}

/// Every protocol gets from one to the other and back, and the other sees who it is.
fn assert_reaches(from: &Place, to: &Place, family: Family) {
    let sender = Some(from.address(family).unwrap());
    assert_eq!(probe::udp(from, to, family).unwrap().seen, sender, "nobody may translate {}'s address", from.name);
    assert_eq!(probe::tcp(from, to, family).unwrap().seen, sender, "nobody may translate {}'s address", from.name);
    probe::ping(from, to, family).unwrap();
}

fn reach_each_other_and_their_node(family: Family) {
    let (lab, [web, client], node) = two_pods();
    for (a, b) in [(&web, &client), (&client, &web), (&web, &node), (&node, &web), (&client, &node), (&node, &client)] {
        assert_reaches(a, b, family);
    }
    Flow::open(&client, &web, family).unwrap().exchange(MUCH).unwrap();
    Flow::open(&node, &web, family).unwrap().exchange(MUCH).unwrap();
    lab.down().unwrap();
}

#[test]
fn two_pods_on_a_node_reach_each_other_and_it_over_ipv4() {
    reach_each_other_and_their_node(Family::V4);
}

#[test]
fn two_pods_on_a_node_reach_each_other_and_it_over_ipv6() {
    reach_each_other_and_their_node(Family::V6);
}
