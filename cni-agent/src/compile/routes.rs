//! The routes by which the node's own stack reaches pods, all into `weft_host`: one for each cluster CIDR, one for each
//! address of a pod here that another IPAM plugin gave and no cluster CIDR holds, and one for each Services' CIDR: what the stack does not translate must not leave the node
//! by its default route.
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
    cluster_cidrs(contents, facts)
        .into_iter()
        .chain(host_addresses(contents, facts).into_iter().map(IpNet::from))
        .chain(facts.services(contents))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|to| ClusterRoute {
            to,
            source: own.internal_ips.iter().copied().find(|a| a.is_ipv4() == to.addr().is_ipv4()),
            mtu,
        })
        .collect()
}

/// Addresses of pods here that no cluster CIDR holds, so that each needs a route.
pub fn host_addresses(contents: &Contents, facts: &Facts) -> BTreeSet<IpAddr> {
    let given = || contents.endpoints.values().filter(|e| e.terms.delegated).flat_map(|e| e.ips());
    // Nearly always there are none, and this is asked at every ADD.
    if given().next().is_none() {
        return BTreeSet::new();
    }
    let cidrs = cluster_cidrs(contents, facts);
    given().filter(|a| !cidrs.iter().any(|cidr| cidr.contains(a))).collect()
}

fn cluster_cidrs(contents: &Contents, facts: &Facts) -> BTreeSet<IpNet> {
    if facts.cluster_cidrs.is_empty() {
        contents.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied()).collect()
    } else {
        facts.cluster_cidrs.iter().copied().collect()
    }
}
