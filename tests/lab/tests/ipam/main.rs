//! The node's own allocator of addresses, and the audit of what it has given. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
mod audit;
mod ranges;

use std::time::{Duration, Instant};

use ipnet::IpNet;
use lab::{
    Lab, LabConfig, Node, PodSpec,
    hostile::Hostile,
    probe::{self, Family, Place},
};
use serde_json::Value;

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ranges by the node's number.
type PodCidrs = fn(u8) -> Vec<IpNet>;

fn lab_of(nodes: u8, pod_cidrs: PodCidrs) -> Lab {
    let config = LabConfig { pod_cidrs, hostile: Hostile::Nobody, ..LabConfig::with_nodes(nodes) };
    let lab = Lab::up(config).expect("a lab");
    lab.nodes().iter().for_each(await_settled);
    lab
}

fn nets(list: &[String]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn pod(lab: &mut Lab, node: &str, name: &str) -> Place {
    lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap()
}

fn refused(lab: &mut Lab, node: &str, name: &str) -> String {
    format!("{:#}", lab.pod_add(node, &PodSpec::named(name)).unwrap_err())
}

fn ranges(node: &Node) -> Vec<Value> {
    node.ask("/v1/status").unwrap()["addresses"].as_array().unwrap().clone()
}

/// Waits until no address is held back: the devices of former pods are gone.
fn await_settled(node: &Node) {
    await_ranges(node, |all| all.iter().all(|range| range["quarantined"] == 0));
}

fn await_ranges(node: &Node, wanted: impl Fn(&[Value]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !wanted(&ranges(node)) {
        assert!(Instant::now() < deadline, "{:?}\n{}", ranges(node), node.log_tail());
        lab::pause();
    }
}

fn assert_talk(from: &Place, to: &Place, families: &[Family]) {
    for family in families {
        probe::udp(from, to, *family).unwrap();
        probe::tcp(from, to, *family).unwrap();
        probe::ping(from, to, *family).unwrap();
    }
}
