//! Map entries of masquerade: by which address pods leave, and towards whom they do not.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cni_common::{
    maps::{Leave4, Leave6, NatConfig, SPARED, SPARED_SERVICE},
    schema,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Entry, Facts,
    entries::{by_prefix, entry},
};
use crate::tables::{Contents, Device, Node};

/// Addresses of one link (RFC 3927, RFC 4291 section 2.5.6): nobody behind a router could answer.
const LINK_LOCAL: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
];

/// What the settings say, and of Services the cluster. Pods and nodes of the cluster are not among the spared, as the programs know them by other maps; what
/// `--cluster-cidr` names is, as it may be wider.
pub(super) fn fixed(contents: &Contents, facts: &Facts) -> Vec<Entry> {
    let services = &facts.services(contents);
    let is_service = |cidr: &IpNet| services.iter().any(|service| service.contains(cidr));
    let spared: BTreeSet<IpNet> = match &facts.masquerade {
        Some(m) => LINK_LOCAL.iter().chain(&facts.cluster_cidrs).chain(&m.spared).chain(services).copied().collect(),
        None => services.iter().copied().collect(),
    };
    let spared = spared.into_iter().map(|c| spare(c, SPARED | if is_service(&c) { SPARED_SERVICE } else { 0 }));
    let config = facts.masquerade.as_ref().map(|m| {
        let config = NatConfig { first_port: m.ports.first().into(), ports: m.ports.len() };
        entry(&schema::NAT_CONFIG, 0_u32.to_ne_bytes().to_vec(), &config)
    });
    spared.chain(config).collect()
}

/// Another node to which no tunnel leads: no other map tells that it is of the cluster.
pub(super) fn spared_node(node: &Node) -> Vec<Entry> {
    let addresses = node.internal_ips.iter().map(|a: &IpAddr| IpNet::from(*a));
    node.pod_cidrs.iter().copied().chain(addresses).map(|c| spare(c, SPARED)).collect()
}

/// The addresses under which pods leave, by device.
pub(super) fn leaves(devices: &BTreeMap<u32, Device>) -> Vec<Entry> {
    let of_device = |(index, d): (&u32, &Device)| {
        let key = || index.to_ne_bytes().to_vec();
        let v4 = d.leave4.map(|a| entry(&schema::LEAVE4, key(), &Leave4 { addr: a.into(), mtu: d.mtu }));
        let v6 = d.leave6.map(|a| entry(&schema::LEAVE6, key(), &Leave6 { addr: a.into(), mtu: d.mtu, pad: 0 }));
        v4.into_iter().chain(v6)
    };
    devices.iter().flat_map(of_device).collect()
}

fn spare(cidr: IpNet, flags: u32) -> Entry {
    by_prefix(&schema::SPARED4, &schema::SPARED6, cidr, &flags)
}
