//! The layouts that are measured side by side.

mod bridge;
mod direct;
mod flannel;
mod weft;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::netns::Netns;

pub use bridge::Bridge;
pub use direct::Direct;
pub(crate) use direct::forwarding;
pub use flannel::Flannel;
pub use weft::{Cluster, Weft};

/// An address family that a path is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The name in tables, figures and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// The two ends of a path.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Where the client's sockets are made.
    pub client: Arc<Netns>,
    /// Where the server's sockets are made.
    pub server: Arc<Netns>,
    /// The device of the server that the packets arrive at.
    pub device: String,
    /// The server's address in IPv4.
    pub v4: Ipv4Addr,
    /// The server's address in IPv6.
    pub v6: Ipv6Addr,
}

impl Ends {
    /// The server's address in `family`.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.v4.into(),
            Family::Ipv6 => self.v6.into(),
        }
    }
}

/// One way from a client to a server, built out of namespaces.
pub trait Layout {
    /// What it is.
    fn name(&self) -> LayoutName;

    /// Builds it. After an error, `down` removes what was there already.
    fn up(&mut self) -> Result<()>;

    /// The two ends; an error before `up`.
    fn ends(&self) -> Result<Ends>;

    /// Each end of the wire between the nodes, as namespace and device. Empty where there is no such wire.
    fn wire(&self) -> Result<Vec<(Arc<Netns>, String)>>;

    /// Removes it. Does nothing when it is not there.
    fn down(&mut self) -> Result<()>;
}

/// The names of the layouts, in the order in which they are measured and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayoutName {
    /// One veth pair between two pods, MTU 1500: the limit on one node.
    Veth,
    /// Two pods on the bridge of the reference plugin, with its masquerade rules and br_netfilter.
    Bridge,
    /// Two pods on one node of a Weft lab.
    WeftSame,
    /// A process of a Weft node itself, as a kubelet is, to a pod of the node.
    WeftNode,
    /// A pod of a Weft node to a process of the node itself.
    WeftToNode,
    /// One veth pair between two nodes, MTU 1500, from host to host: the limit across nodes.
    Node,
    /// Two pods on two nodes, bridges and kernel VXLAN as Flannel sets them up, with its masquerade rules.
    Flannel,
    /// Two pods on two nodes of a Weft lab, VXLAN.
    WeftVxlan,
    /// `node` over an underlay without segmentation offload, a stream only.
    NodeNotso,
    /// `flannel` over an underlay without segmentation offload, a stream only.
    FlannelNotso,
    /// `weft-vxlan` over an underlay without segmentation offload, a stream only.
    WeftVxlanNotso,
}

impl LayoutName {
    /// The layouts of `only` (all when empty) and the limits of each, in their order.
    pub fn with_limits(only: &[Self]) -> BTreeSet<Self> {
        let asked = if only.is_empty() { Self::value_variants() } else { only };
        asked.iter().flat_map(|layout| [*layout, layout.limit()]).collect()
    }

    /// What is built for it: for the layouts without segmentation offload, the one whose wire is changed.
    pub fn built_as(self) -> Self {
        match self {
            Self::NodeNotso => Self::Node,
            Self::FlannelNotso => Self::Flannel,
            Self::WeftVxlanNotso => Self::WeftVxlan,
            other => other,
        }
    }

    /// Whether it is measured over an underlay without segmentation offload.
    pub fn is_without_tso(self) -> bool {
        self.built_as() != self
    }

    /// The name on the command line, in tables, figures and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::WeftSame => "weft-same",
            Self::WeftNode => "weft-node",
            Self::WeftToNode => "weft-to-node",
            Self::Node => "node",
            Self::Flannel => "flannel",
            Self::WeftVxlan => "weft-vxlan",
            Self::NodeNotso => "node-notso",
            Self::FlannelNotso => "flannel-notso",
            Self::WeftVxlanNotso => "weft-vxlan-notso",
        }
    }

    /// The layout that is the limit for this one.
    pub fn limit(self) -> Self {
        match self {
            Self::Veth | Self::Bridge | Self::WeftSame | Self::WeftNode | Self::WeftToNode => Self::Veth,
            Self::Node | Self::Flannel | Self::WeftVxlan => Self::Node,
            Self::NodeNotso | Self::FlannelNotso | Self::WeftVxlanNotso => Self::NodeNotso,
        }
    }

    /// What exactly is built, for the report.
    pub fn description(self) -> &'static str {
        match self {
            Self::Veth => "two pods joined by one veth pair, MTU 1500, no netfilter",
            Self::Bridge => {
                "two pods on cni0 of one node (gateway on the bridge, hairpin off), iptables-nft nat chain per pod and address with MASQUERADE \
                 (conntrack on), bridge-nf-call-iptables and -ip6tables 1, forwarding on, MTU 1500"
            }
            Self::WeftSame => "two pods on one node of a Weft lab, real agent and CNI calls",
            Self::WeftNode => {
                "a process of a Weft node to a pod of the node: by route into weft_host, back by redirect"
            }
            Self::WeftToNode => "a pod of a Weft node to a process of the node, to the node's address",
            Self::Node => "two nodes joined by one veth pair, MTU 1500, host to host, forwarding on, no netfilter",
            Self::Flannel => {
                "a pod on cni0 of each of two nodes, flannel.1 (VNI 1, port 8472, nolearning) over IPv4 for IPv4 and flannel-v6.1 over IPv6 for IPv6, \
                 permanent FDB and neighbour entries, onlink routes, FLANNEL-POSTRTG and FLANNEL-FWD chains (conntrack on), bridge-nf-call-* 1, pod MTU 1450 \
                 (IPv6 routes 1430), one veth pair as underlay"
            }
            Self::WeftVxlan => {
                "a pod on each of two nodes of a Weft lab joined by one veth pair, real agents and CNI calls, VXLAN over IPv4"
            }
            Self::NodeNotso => "node, TSO and tunnel segmentation off and GRO on at both ends of the wire",
            Self::FlannelNotso => "flannel, TSO and tunnel segmentation off and GRO on at both ends of the wire",
            Self::WeftVxlanNotso => "weft-vxlan, TSO and tunnel segmentation off and GRO on at both ends of the wire",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_layout_brings_its_limit_along() {
        let chosen = LayoutName::with_limits(&[LayoutName::WeftSame, LayoutName::FlannelNotso]);
        assert_eq!(
            chosen.into_iter().collect::<Vec<_>>(),
            [LayoutName::Veth, LayoutName::WeftSame, LayoutName::NodeNotso, LayoutName::FlannelNotso]
        );
    }

    #[test]
    fn names_on_the_command_line_are_those_of_the_report() {
        for layout in LayoutName::value_variants() {
            assert_eq!(layout.to_possible_value().unwrap().get_name(), layout.as_str());
        }
    }
}
