//! Names, numbers and places of the lab's parts.
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Everything that the lab writes stands here.
pub const ROOT: &str = "/run/weft-lab";
/// Name of the namespace that joins the nodes.
pub const UNDERLAY: &str = "weft-underlay";
/// The bridge in it.
pub const BRIDGE: &str = "underlay";
/// A node's device to the underlay.
pub const NODE_DEVICE: &str = "eth0";
/// MTU of the underlay.
pub const UNDERLAY_MTU: u32 = 1500;
/// As many nodes as the addresses reach for.
pub const MAX_NODES: u8 = 99;

const NODE_NETNS: &str = "weft-node-";
const POD_NETNS: &str = "weft-pod-";

/// What node `number`, from 1, is called.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The network namespace of node `number`.
#[must_use]
pub fn node_netns(number: u8) -> String {
    format!("{NODE_NETNS}{number}")
}

/// The network namespace of the pod called `name`.
#[must_use]
pub fn pod_netns(name: &str) -> String {
    format!("{POD_NETNS}{name}")
}

/// The network namespace called `name` is one of the lab's.
#[must_use]
pub fn is_ours(netns: &str) -> bool {
    netns == UNDERLAY || netns.starts_with(NODE_NETNS) || netns.starts_with(POD_NETNS)
}

/// Underlay addresses of node `number`, IPv4 first.
#[must_use]
pub fn node_addresses(number: u8) -> [IpNet; 2] {
    let v6 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, spelled(number));
    [IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 99, 0, number), 24)), IpNet::V6(Ipv6Net::new_assert(v6, 64))]
}

/// Pod CIDRs of node `number`, IPv4 first.
#[must_use]
pub fn pod_cidrs(number: u8) -> [IpNet; 2] {
    let v6 = Ipv6Addr::new(0xfd10, 0x244, spelled(number), 0, 0, 0, 0, 0);
    [IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)), IpNet::V6(Ipv6Net::new_assert(v6, 64))]
}

/// The hexadecimal number that looks like `number`: node 10's address ends in `::10`.
fn spelled(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

/// Directories and files of a node.
#[derive(Debug, Clone)]
pub struct NodePaths {
    root: PathBuf,
}

impl NodePaths {
    /// Of the node called `name`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self { root: Path::new(ROOT).join(name) }
    }

    /// Its BPF file system.
    #[must_use]
    pub fn bpf(&self) -> PathBuf {
        self.root.join("bpf")
    }

    /// Its agent's sockets.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Its agent's endpoint records.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The cluster's objects, as this node sees them.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// What its agents have said.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// Number of its agent's process.
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.root.join("agent.pid")
    }

    /// Where the CNI plugin connects.
    #[must_use]
    pub fn cni_socket(&self) -> PathBuf {
        self.run().join("cni.sock")
    }

    /// Where the `weft` command connects.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run().join("api.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_number_is_read_from_its_addresses() {
        assert_eq!(node_addresses(12).map(|a| a.to_string()), ["10.99.0.12/24", "fd99::12/64"]);
        assert_eq!(pod_cidrs(12).map(|a| a.to_string()), ["10.244.12.0/24", "fd10:244:12::/64"]);
    }

    #[test]
    fn only_the_labs_namespaces_are_the_labs() {
        for ours in [UNDERLAY, &node_netns(1), &pod_netns("web")] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["weft-test-1", "weft", "cni-1234", "node-1"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
