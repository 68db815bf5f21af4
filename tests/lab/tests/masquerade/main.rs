//! Pods speak to the world under an address of their node. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
mod ends;
mod errors;
mod fragments;
mod hops;
#[path = "../support/hops.rs"]
mod hops_said;
mod lives;
mod mtu;
mod own_address;
mod ports;
mod sctp;
mod ways;
mod world;

use std::net::IpAddr;

use lab::{
    Lab, LabConfig, PodSpec,
    probe::{Family, Place},
};

/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 2 * 1024 * 1024;
/// A host's device to the router, and the router's to the nodes.
const DEVICE: &str = "eth0";
/// The agent's word for: pods keep their addresses.
const OFF: &[&str] = &["--masquerade=false"];

/// A node with two pods.
struct Side {
    node: Place,
    pods: [Place; 2],
}

impl Side {
    /// The node's address, under which its pods appear.
    fn address(&self, family: Family) -> IpAddr {
        self.node.address(family).unwrap()
    }
}

/// An ordinary node and a hostile one, each with two pods, and the world.
struct Rig {
    lab: Lab,
    sides: [Side; 2],
    router: Place,
    near: Place,
    narrow: Place,
}

impl Rig {
    fn new(agent_args: &[&str]) -> Self {
        let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
        let mut lab = Lab::up(LabConfig { agent_args, ..LabConfig::with_world() }).expect("a lab with a world");
        let sides = ["node-1", "node-2"].map(|node| {
            let pods = ["a", "b"].map(|letter| {
                let spec = PodSpec::named(&format!("{letter}-{node}").replace("-node-", ""));
                lab.pod_add(node, &spec).expect("a pod").pod.place().unwrap()
            });
            Side { node: lab.place(node).unwrap(), pods }
        });
        assert!(lab.node("node-2").unwrap().is_hostile() && !lab.node("node-1").unwrap().is_hostile());
        let [router, near, narrow] = lab.world().unwrap().places().unwrap();
        Self { lab, sides, router, near, narrow }
    }

    /// Does it in both families with each node's first pod.
    fn each(&self, mut test: impl FnMut(&Side, &Place, Family)) {
        for side in &self.sides {
            Family::BOTH.into_iter().for_each(|family| test(side, &side.pods[0], family));
        }
    }
}

/// The option of a tool for this family.
const fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}
