//! Names, numbers and places of the lab's parts.
use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use cni_common::net::Mac;
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
/// A hostile node's second device.
pub const SECOND_DEVICE: &str = "eth1";
/// A hostile node's bridge.
pub const DOCKER: &str = "docker0";
/// The bridge's addresses: Docker's own, and one of ours.
pub const DOCKER_NETS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 1), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 1), 64)),
];
/// The router between the underlay and the world, and its network namespace.
pub const WORLD: &str = "weft-world";
/// MTU of the way to the world's narrow host, behind the router: more than the least of IPv6 (1280), less than what fits into a tunnel.
pub const NARROW_MTU: u32 = 1300;
/// As many nodes as the addresses reach for.
pub const MAX_NODES: u8 = 99;

const UNDERLAY6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0);
const SECOND4: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 0);
const SECOND6: Ipv6Addr = Ipv6Addr::new(0xfd98, 0, 0, 0, 0, 0, 0, 0);
/// Number of the router on the link of a node behind it.
const ROUTER: u8 = 254;
const NODE_NETNS: &str = "weft-node-";
const POD_NETNS: &str = "weft-pod-";
const CONTAINER_NETNS: &str = "weft-docker-";
const OUTSIDE_NETNS: &str = "weft-outside-";
/// Number of the host behind a hostile node's second device.
const OUTSIDE: u8 = 99;
/// Number of the world's router on the underlay; nodes' numbers end at 99.
const WORLD_ROUTER: u8 = 200;
/// Number of a host in its part of the world, where the router is number 1.
const WORLD_HOST: u8 = 10;

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

/// The network namespace of the container on Docker's bridge of node `number`.
#[must_use]
pub fn container_netns(number: u8) -> String {
    format!("{CONTAINER_NETNS}{number}")
}

/// The network namespace of the host behind the second device of node `number`.
#[must_use]
pub fn outside_netns(number: u8) -> String {
    format!("{OUTSIDE_NETNS}{number}")
}

/// The network namespace called `name` is one of the lab's.
#[must_use]
pub fn is_ours(netns: &str) -> bool {
    let beginnings = [NODE_NETNS, POD_NETNS, CONTAINER_NETNS, OUTSIDE_NETNS, WORLD];
    netns == UNDERLAY || beginnings.iter().any(|b| netns.starts_with(b))
}

/// Underlay addresses of an ordinary node `number`, IPv4 first.
#[must_use]
pub fn node_addresses(number: u8) -> [IpNet; 2] {
    [v4(Ipv4Addr::new(10, 99, 0, 0), number, 24), v6(UNDERLAY6, number, 64)]
}

/// Underlay addresses of node `number` that is a virtual machine, IPv4 first. The machine's init has given them to its device.
#[must_use]
pub fn machine_addresses(number: u8) -> [IpNet; 2] {
    let v6_net = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0);
    [v4(Ipv4Addr::new(192, 168, 77, 0), number, 24), v6(v6_net, number, 64)]
}

/// Underlay addresses of node `number` behind a router, IPv4 first: its link is a subnet of its own.
#[must_use]
pub fn routed_addresses(number: u8) -> [IpNet; 2] {
    on_routed_link(number, number)
}

/// The router's addresses on that link.
#[must_use]
pub fn router_addresses(number: u8) -> [IpNet; 2] {
    on_routed_link(number, ROUTER)
}

fn on_routed_link(link: u8, number: u8) -> [IpNet; 2] {
    let subnet = Ipv6Addr::new(0xfd97, 0, 0, spelled(link), 0, 0, 0, 0);
    [v4(Ipv4Addr::new(10, 97, link, 0), number, 24), v6(subnet, number, 64)]
}

/// Underlay addresses of a hostile node `number`, IPv4 first. The other one it makes itself, of the prefix that a router tells
/// and [`hostile_mac`].
#[must_use]
pub fn hostile_addresses(number: u8) -> [IpNet; 2] {
    let [prefix, own] = [UNDERLAY6, hostile_link_local(number)].map(|a| a.segments());
    let mut both = prefix;
    for (to, from) in both.iter_mut().zip(own).skip(4) {
        *to = from;
    }
    [node_addresses(number)[0], IpNet::V6(Ipv6Net::new_assert(both.into(), 64))]
}

/// MAC address of a hostile node's device to the underlay.
#[must_use]
pub const fn hostile_mac(number: u8) -> Mac {
    Mac::new([0x02, 0, 0x63, 0, 0, number])
}

/// Link-local address of that device: modified EUI-64 (RFC 4291 appendix A).
#[must_use]
pub fn hostile_link_local(number: u8) -> Ipv6Addr {
    let [a, b, c, d, e, f] = hostile_mac(number).bytes;
    let two = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, two(a ^ 2, b), two(c, 0xff), two(0xfe, d), two(e, f))
}

/// Addresses of the second device of node `number`, IPv4 first.
#[must_use]
pub fn second_addresses(number: u8) -> [IpNet; 2] {
    [v4(SECOND4, number, 24), v6(SECOND6, number, 64)]
}

/// Addresses of the host behind such a device.
#[must_use]
pub fn outside_addresses() -> [IpNet; 2] {
    second_addresses(OUTSIDE)
}

/// The network namespace of a host of the world.
#[must_use]
pub fn world_netns(host: &str) -> String {
    format!("{WORLD}-{host}")
}

/// Addresses of the world's router on the underlay, IPv4 first.
#[must_use]
pub fn world_router() -> [IpNet; 2] {
    node_addresses(WORLD_ROUTER)
}

/// Networks of the world, from those for documentation (RFC 5737, RFC 3849): that of the near host, then that of the narrow one. Gives the
/// router's addresses in it and the host's, IPv4 first.
#[must_use]
pub fn world_link(narrow: bool) -> ([IpNet; 2], [IpNet; 2]) {
    let (v4_net, subnet) =
        if narrow { (Ipv4Addr::new(203, 0, 113, 0), 0x113) } else { (Ipv4Addr::new(198, 51, 100, 0), 0x51) };
    let v6_net = Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, 0);
    let number = |n| [v4(v4_net, n, 24), v6(v6_net, n, 64)];
    (number(1), number(WORLD_HOST))
}

/// Address `number` of an IPv4 network.
pub(crate) fn v4(network: Ipv4Addr, number: u8, length: u8) -> IpNet {
    let [a, b, c, _] = network.octets();
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, number), length))
}

/// Address `number`, spelled in decimal digits, of an IPv6 network.
pub(crate) fn v6(network: Ipv6Addr, number: u8, length: u8) -> IpNet {
    let mut segments = network.segments();
    segments[7] = spelled(number);
    IpNet::V6(Ipv6Net::new_assert(segments.into(), length))
}

/// Pod CIDRs of node `number`, IPv4 first.
#[must_use]
pub fn pod_cidrs(number: u8) -> [IpNet; 2] {
    let v6 = Ipv6Addr::new(0xfd10, 0x244, spelled(number), 0, 0, 0, 0, 0);
    [IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)), IpNet::V6(Ipv6Net::new_assert(v6, 64))]
}

/// Pod CIDRs of node `number` for more pods than the 253 of [`pod_cidrs`], IPv4 first: 65,533. No underlay of the lab lies in them.
#[must_use]
pub fn wide_pod_cidrs(number: u8) -> Vec<IpNet> {
    let [_, v6] = pod_cidrs(number);
    // Node numbers end at 99, and the underlays have 10.97 to 10.99.
    let second = number.saturating_add(100);
    vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16)), v6]
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

    /// What its agent notes: endpoint records, and the ports that it has reserved.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The endpoint records that are there, in the order of their names.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn records(&self) -> io::Result<Vec<PathBuf>> {
        let all: Vec<PathBuf> = fs::read_dir(self.state())?.map(|e| Ok(e?.path())).collect::<io::Result<_>>()?;
        let mut records: Vec<_> =
            all.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
        records.sort();
        Ok(records)
    }

    /// The cluster's objects, as this node sees them.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Where its agent puts the CNI plugin.
    #[must_use]
    pub fn cni_bin(&self) -> PathBuf {
        self.root.join("cni/bin")
    }

    /// Where its agent puts the network configuration.
    #[must_use]
    pub fn cni_conf(&self) -> PathBuf {
        self.root.join("cni/net.d")
    }

    /// The network configuration, as its agent writes it.
    #[must_use]
    pub fn conflist(&self) -> PathBuf {
        self.cni_conf().join("05-weft.conflist")
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
        assert_eq!(hostile_addresses(2).map(|a| a.to_string()), ["10.99.0.2/24", "fd99::63ff:fe00:2/64"]);
        assert_eq!(routed_addresses(12).map(|a| a.to_string()), ["10.97.12.12/24", "fd97:0:0:12::12/64"]);
        assert_eq!(router_addresses(12).map(|a| a.to_string()), ["10.97.12.254/24", "fd97:0:0:12::254/64"]);
        assert_eq!(second_addresses(12).map(|a| a.to_string()), ["10.98.0.12/24", "fd98::12/64"]);
        assert_eq!(pod_cidrs(12).map(|a| a.to_string()), ["10.244.12.0/24", "fd10:244:12::/64"]);
        assert_eq!(world_router().map(|a| a.to_string()), ["10.99.0.200/24", "fd99::200/64"]);
        let (router, host) = world_link(true);
        assert_eq!(router.map(|a| a.to_string()), ["203.0.113.1/24", "2001:db8:113::1/64"]);
        assert_eq!(host.map(|a| a.to_string()), ["203.0.113.10/24", "2001:db8:113::10/64"]);
        let wide: Vec<_> = wide_pod_cidrs(12).iter().map(ToString::to_string).collect();
        assert_eq!(wide, ["10.112.0.0/16", "fd10:244:12::/64"]);
    }

    #[test]
    fn only_the_labs_namespaces_are_the_labs() {
        let world = world_netns("near");
        for ours in [UNDERLAY, &node_netns(1), &pod_netns("web"), &container_netns(2), &outside_netns(2), WORLD, &world]
        {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["weft-test-1", "weft", "cni-1234", "node-1"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
