//! Large packets, checksums and congestion marks through the tunnel, with real traffic. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
#[path = "../support/checksum.rs"]
mod checksum;
mod checksums;
mod ecn;
mod frames;
mod own_tunnel;
mod segments;

use std::net::IpAddr;

use ipnet::IpNet;
use lab::{
    Lab, LabConfig, PodSpec, Underlay,
    layout::NODE_DEVICE,
    offload,
    probe::{Family, Place, Wire},
};

/// Two nodes joined by a wire, with a pod each.
struct Rig {
    lab: Lab,
    /// The pod on `node-1`.
    web: Place,
    /// The pod on `node-2`.
    client: Place,
    /// Both nodes.
    nodes: [Place; 2],
    /// The family of the tunnel.
    underlay: Family,
}

impl Rig {
    fn new(underlay: Family) -> Self {
        let agent_args = match underlay {
            Family::V4 => Vec::new(),
            Family::V6 => ["--underlay", "ipv6"].map(str::to_owned).to_vec(),
        };
        let config = LabConfig { underlay: Underlay::Direct, agent_args, ..LabConfig::default() };
        let mut lab = Lab::up(config).expect("a lab of two nodes");
        let [web, client] = [("node-1", "web"), ("node-2", "client")].map(|(node, name)| {
            let added = lab.pod_add(node, &PodSpec::named(name)).expect("a pod");
            added.pod.place().unwrap()
        });
        let nodes = ["node-1", "node-2"].map(|name| lab.place(name).unwrap());
        Self { lab, web, client, nodes, underlay }
    }

    /// An address of node-2's pods that none of them has.
    fn nobody(&self, family: Family) -> IpAddr {
        match self.lab.nodes()[1].pod_cidrs()[usize::from(family == Family::V6)] {
            IpNet::V4(net) => (u32::from(net.network()) + 200).to_be_bytes().into(),
            IpNet::V6(net) => (u128::from(net.network()) + 200).to_be_bytes().into(),
        }
    }

    /// The nodes' wire, seen from this node.
    fn wire(&self, node: usize) -> Wire {
        Wire::open(&self.nodes[node], NODE_DEVICE).unwrap()
    }

    /// Makes the wire like that between real NICs. Tells whether its ends can coalesce what they receive.
    fn without_segmentation(&self) -> bool {
        let coalesces = offload::veth_can_coalesce(&self.nodes[0], NODE_DEVICE).unwrap();
        for node in &self.nodes {
            offload::without_segmentation(node, NODE_DEVICE).unwrap();
        }
        coalesces
    }

    /// Packets of pods that the programs have left to the kernel's own VXLAN device, on both nodes.
    fn by_the_kernels_device(&self) -> u64 {
        let of = |node: &lab::Node| {
            let counted = node.ask("/v1/drops").unwrap();
            let verdicts = counted["verdicts"].as_array().expect("a list");
            let left = verdicts.iter().filter(|v| v["point"] == "from_pod" && v["verdict"] == "overlay");
            left.map(|v| v["packets"].as_u64().expect("a count")).sum::<u64>()
        };
        self.lab.nodes().iter().map(of).sum()
    }

    /// Packets that a node has dropped for this reason in this program.
    fn drops(&self, node: usize, point: &str, reason: &str) -> u64 {
        let drops = self.lab.nodes()[node].ask("/v1/drops").unwrap();
        let drops = drops["drops"].as_array().expect("a list");
        let of_kind = drops.iter().filter(|d| d["point"] == point && d["reason"] == reason);
        of_kind.map(|d| d["packets"].as_u64().expect("a count")).sum()
    }
}
