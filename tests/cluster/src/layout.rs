//! Names, numbers and places of the cluster's parts.
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

/// Everything that the cluster writes on the machine stands here.
pub const ROOT: &str = "/run/weft-cluster";
/// The network namespace of the control plane, with the bridge that joins the nodes.
pub const CONTROL_PLANE: &str = "weft-cluster";
/// A node's device to the others.
pub const NODE_DEVICE: &str = "eth0";
/// Where the API server listens, at the control plane's addresses.
pub const API_PORT: u16 = 6443;
/// Services' addresses, of either family.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// All pods' addresses; of them each node gets a /24 and a /64.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
/// Where pods look for the cluster's DNS.
pub const DNS: &str = "10.96.0.10";
/// As many nodes as the addresses reach for.
pub const MAX_NODES: u8 = 99;
/// Weft's own image, as `cargo xtask image` names it.
pub const WEFT_IMAGE: &str = concat!("weft.test/weft:", env!("CARGO_PKG_VERSION"));
/// What every pod's first container is.
pub const PAUSE_IMAGE: &str = "weft.test/pause:1";
/// Upstream's program for tests of networks.
pub const AGNHOST_IMAGE: &str = "weft.test/agnhost:1";

/// What node `number`, from 1, is called.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The network namespace of node `number`.
#[must_use]
pub fn node_netns(number: u8) -> String {
    format!("{CONTROL_PLANE}-{number}")
}

/// Whether a network namespace of this name is the cluster's.
#[must_use]
pub fn is_ours(netns: &str) -> bool {
    netns.strip_prefix(CONTROL_PLANE).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n > 0))
    })
}

/// The control plane's addresses.
#[must_use]
pub fn control_plane_addresses() -> (Ipv4Addr, Ipv6Addr) {
    addresses(1)
}

/// Where the API server is.
#[must_use]
pub fn api_server() -> String {
    match Families::of_cluster().first(control_plane_addresses()) {
        IpAddr::V4(a) => format!("https://{a}:{API_PORT}"),
        IpAddr::V6(a) => format!("https://[{a}]:{API_PORT}"),
    }
}

/// Families of addresses that nodes, pods and Services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Families {
    /// IPv4 alone
    Ipv4,
    /// IPv6 alone
    Ipv6,
    /// Both, IPv4 first
    #[default]
    Dual,
}

impl Families {
    /// Those of the cluster that is up, or comes up; every part of it asks. Both, if nothing is noted.
    #[must_use]
    pub fn of_cluster() -> Self {
        match fs::read_to_string(note()).unwrap_or_default().as_str() {
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            _ => Self::Dual,
        }
    }

    /// Notes that the cluster has these.
    pub(crate) fn keep(self) -> io::Result<()> {
        let name = match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        };
        fs::write(note(), name)
    }

    /// Whether IPv4 is among them.
    #[must_use]
    pub fn v4(self) -> bool {
        self != Self::Ipv6
    }

    /// Whether IPv6 is among them.
    #[must_use]
    pub fn v6(self) -> bool {
        self != Self::Ipv4
    }

    /// Of two, one of each family, those that the cluster has.
    #[must_use]
    pub fn of<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        [self.v4().then_some(v4), self.v6().then_some(v6)].into_iter().flatten().collect()
    }

    /// Of a unit's addresses, those that the cluster has, as texts.
    #[must_use]
    pub fn texts(self, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Vec<String> {
        self.of([v4.to_string(), v6.to_string()])
    }

    /// Of a unit's addresses, that of the first family.
    #[must_use]
    pub fn first(self, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> IpAddr {
        if self.v4() { v4.into() } else { v6.into() }
    }
}

fn note() -> PathBuf {
    PathBuf::from(ROOT).join("families")
}

/// Who gives nodes their ranges of pods' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ranges {
    /// The controllers, as soon as there is a Node object.
    #[default]
    Controllers,
    /// [`Cluster::give_ranges`](crate::Cluster::give_ranges): of the nodes that there are from the start `up` calls it, of those that come
    /// later whoever brings them.
    ByHand,
}

impl Ranges {
    /// Of the cluster that is up, or comes up.
    pub(crate) fn of_cluster() -> Self {
        if by_hand().exists() { Self::ByHand } else { Self::Controllers }
    }

    /// Notes it for the control plane.
    pub(crate) fn keep(self) -> io::Result<()> {
        if self == Self::ByHand { fs::write(by_hand(), "") } else { Ok(()) }
    }
}

fn by_hand() -> PathBuf {
    PathBuf::from(ROOT).join("ranges-by-hand")
}

/// The ranges of a node's pods, one of each family of the cluster, where the controllers give none.
#[must_use]
pub fn ranges(number: u8) -> Vec<String> {
    Families::of_cluster().of([format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")])
}

/// A node's addresses.
#[must_use]
pub fn node_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    addresses(10 + number)
}

/// A node's addresses once it has got others.
#[must_use]
pub fn moved_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    addresses(110 + number)
}

fn addresses(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(172, 31, 0, host), Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, u16::from(host)))
}

/// The directory of a node or of the control plane.
#[must_use]
pub fn directory(unit: &str) -> PathBuf {
    PathBuf::from(ROOT).join(unit)
}

/// The kubeconfig of this user.
#[must_use]
pub fn kubeconfig(user: &str) -> PathBuf {
    directory("kubeconfig").join(user)
}

/// Where the programs wrote what they had to say: of `unit`, by program.
#[must_use]
pub fn logs(unit: &str) -> PathBuf {
    directory(unit).join("log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_others_are_not_ours() {
        assert!(is_ours(CONTROL_PLANE) && is_ours(&node_netns(1)) && is_ours(&node_netns(MAX_NODES)));
        assert!(
            !is_ours("weft-cluster-") && !is_ours("weft-cluster-old") && !is_ours("weft-node-1") && !is_ours("weft")
        );
    }
}
