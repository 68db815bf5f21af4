//! What a pod learns about its way when it asks as people do, and what it can make the programs answer. Needs root and
//! `cargo xtask build`; run it with `cargo xtask test --suite lab`.
#[path = "../support/checksum.rs"]
mod checksum;
mod gateway;
mod hops;
#[path = "../support/hops.rs"]
mod hops_said;
mod limit;
mod size;

use lab::{
    Lab, LabConfig, PodSpec,
    probe::{Family, Place},
};

/// Two nodes: the pod `client` with a neighbour on its own node, and one on the other.
struct Rig {
    lab: Lab,
    client: Place,
    /// A pod on the client's node.
    near: Place,
    /// A pod on the other node.
    far: Place,
    near_node: Place,
    far_node: Place,
    /// What fits into the tunnel, bytes with the IP header.
    mtu: u32,
}

impl Rig {
    fn new(underlay: Family) -> Self {
        let (agent_args, mtu) = match underlay {
            Family::V4 => (Vec::new(), 1450),
            Family::V6 => (["--underlay", "ipv6"].map(str::to_owned).to_vec(), 1430),
        };
        let mut lab = Lab::up(LabConfig { agent_args, ..LabConfig::default() }).expect("a lab of two nodes");
        let [client, near, far] = [("node-1", "client"), ("node-1", "near"), ("node-2", "far")].map(|(node, name)| {
            let added = lab.pod_add(node, &PodSpec::named(name)).expect("a pod");
            added.pod.place().unwrap()
        });
        let [near_node, far_node] = ["node-1", "node-2"].map(|name| lab.place(name).unwrap());
        Self { lab, client, near, far, near_node, far_node, mtu }
    }

    /// Packets that the client's node has dropped for this reason on their way from a pod.
    fn drops(&self, reason: &str) -> u64 {
        let drops = self.lab.node("node-1").unwrap().ask("/v1/drops").unwrap();
        let drops = drops["drops"].as_array().expect("a list");
        let of_kind = drops.iter().filter(|d| d["point"] == "from_pod" && d["reason"] == reason);
        of_kind.map(|d| d["packets"].as_u64().expect("a count")).sum()
    }
}

/// The option of a tool for this family.
fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}
