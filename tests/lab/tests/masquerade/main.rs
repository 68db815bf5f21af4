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

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
};

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

/// Cases by name: functions of a [`Rig`].
macro_rules! cases {
    ($($case:path),+ $(,)?) => { &[$((stringify!($case), $case as $crate::Case)),+] };
}
pub(crate) use cases;

/// Panics where something is not as it should be.
type Case = fn(&Rig);

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

    /// Runs one case after the other in this lab, also behind one that fails, and takes the lab down: in an emulated machine a lab of each
    /// one's own would cost most of the time.
    fn run(self, cases: &[(&str, Case)]) {
        let mut failed = Vec::new();
        for (name, case) in cases {
            if catch_unwind(AssertUnwindSafe(|| case(&self))).is_err() {
                eprintln!("that was {name}");
                failed.push(*name);
            }
        }
        assert!(failed.is_empty(), "{} of {} failed: {}", failed.len(), cases.len(), failed.join(", "));
        self.lab.down().unwrap();
    }

    /// Does it in both families with each node's first pod.
    fn each(&self, mut test: impl FnMut(&Side, &Place, Family)) {
        for side in &self.sides {
            for family in Family::BOTH {
                let _with = With(&side.pods[0], family);
                test(side, &side.pods[0], family);
            }
        }
    }
}

/// Tells with whom a test has failed.
struct With<'a>(&'a Place, Family);

impl Drop for With<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with {} over {}", self.0.name, self.1);
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
