//! What a node does to an agent: disks that are full or read-only, maps without room, a BPF file system that is unmounted, events that come too fast.
//! Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
mod bpffs;
mod disk;
mod full;
mod overrun;

use std::fs;

use lab::{
    Ending, Lab, LabConfig, Node, PodSpec,
    pair::until,
    probe::{self, Family, Place},
};

fn lab() -> Lab {
    let agent_args = ["--cni-install", "no"].map(str::to_owned).to_vec();
    Lab::up(LabConfig { agent_args, ..LabConfig::with_nodes(1) }).expect("a lab of one node")
}

fn node(lab: &Lab) -> &Node {
    lab.node("node-1").unwrap()
}

fn pod(lab: &mut Lab, name: &str) -> Place {
    lab.pod_add("node-1", &PodSpec::named(name)).unwrap_or_else(|e| panic!("{name}: {e:#}")).pod.place().unwrap()
}

/// Why a pod cannot be connected.
fn refused(lab: &mut Lab, name: &str) -> String {
    match lab.pod_add("node-1", &PodSpec::named(name)) {
        Ok(_) => panic!("{name} was connected"),
        Err(e) => format!("{e:#}"),
    }
}

fn assert_reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::udp(from, to, family).unwrap();
        probe::tcp(from, to, family).unwrap();
        probe::ping(from, to, family).unwrap();
    }
}

/// How many endpoints, addresses in use and records a node has.
fn counts(node: &Node) -> [u64; 3] {
    let status = node.ask("/v1/status").unwrap();
    let used = status["addresses"].as_array().unwrap().iter().filter_map(|a| a["used"].as_u64()).sum();
    let endpoints = node.ask("/v1/endpoints").unwrap().as_array().unwrap().len();
    let records = fs::read_dir(node.paths().state())
        .unwrap()
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().ends_with(":eth0.json")));
    [endpoints as u64, used, records.count() as u64]
}
