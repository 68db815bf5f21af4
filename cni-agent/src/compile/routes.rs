//! The routes by which the node's own stack reaches pods: one for each cluster CIDR, all into `weft_host`.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::Facts;
use crate::tables::Contents;

/// A route through `weft_host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterRoute {
    /// Where to.
    pub to: IpNet,
    /// The node's InternalIP of the family: without it the kernel takes the address of whatever device comes first.
    pub source: Option<IpAddr>,
    /// Bytes; the devices' MTU less the tunnel's overhead.
    pub mtu: u32,
}

/// The routes that should be; none before the own Node object and the devices are known.
pub fn cluster_routes(contents: &Contents, facts: &Facts) -> BTreeSet<ClusterRoute> {
    let Some(own) = contents.nodes.get(&facts.node) else { return BTreeSet::new() };
    let Some(mtu) = facts.route_mtu(contents) else { return BTreeSet::new() };
    let cidrs: BTreeSet<IpNet> = if facts.cluster_cidrs.is_empty() {
        contents.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied()).collect()
    } else {
        facts.cluster_cidrs.iter().copied().collect()
    };
    cidrs
        .into_iter()
        .map(|to| ClusterRoute {
            to,
            source: own.internal_ips.iter().copied().find(|a| a.is_ipv4() == to.addr().is_ipv4()),
            mtu,
        })
        .collect()
}
