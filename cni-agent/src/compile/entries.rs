//! Map entries of single rows.
use std::{collections::BTreeSet, net::IpAddr};

use bytemuck::{Pod as Plain, Zeroable, bytes_of};
use cni_common::{
    maps::{
        CONFIG_ENCAP_L2_ETH, CONFIG_READY, Cidr, Config, Endpoint as EndpointValue, Local, NODE_SELF, OWN,
        OWN_ANNOUNCED, REMOTE_NODE, Remote, TUNNEL_BY_MAC, TUNNEL_BY_NEIGHBOUR, TUNNEL_BY_STACK, Tunnel,
    },
    net::{Be16, Ip4, Ip6, Mac},
    schema::{self, MapSpec},
};
use cni_ebpf::ct::lifetime;
use ipnet::IpNet;

use super::{Entry, EntryKey, Facts, NodeNumbers, TooManyNodes, masquerade};
use crate::{
    identity,
    policy::engine::EndpointSets,
    tables::{Contents, Endpoint, Node, Pod},
};

pub(super) fn entry<V: Plain>(map: &MapSpec, key: Vec<u8>, value: &V) -> Entry {
    debug_assert_eq!((key.len(), size_of::<V>()), (map.key_size as usize, map.value_size as usize), "{}", map.name);
    // Every map named in this file is in ORDER; the test `every_map_has_its_place_in_the_order` holds that.
    let key = EntryKey::new(map, key).unwrap_or_else(|| unreachable!("map {} has no place in the order", map.name));
    (key, bytes_of(value).to_vec())
}

/// An entry under an address, in the map of its family.
fn by_address<V: Plain>(v4: &MapSpec, v6: &MapSpec, a: IpAddr, value: &V) -> Entry {
    match a {
        IpAddr::V4(a) => entry(v4, a.octets().to_vec(), value),
        IpAddr::V6(a) => entry(v6, a.octets().to_vec(), value),
    }
}

/// An entry under a prefix, in the map of its family: length in host order, then the address (`struct bpf_lpm_trie_key`).
pub(super) fn by_prefix<V: Plain>(v4: &MapSpec, v6: &MapSpec, cidr: IpNet, value: &V) -> Entry {
    let (map, octets) = match cidr.network() {
        IpAddr::V4(a) => (v4, a.octets().to_vec()),
        IpAddr::V6(a) => (v6, a.octets().to_vec()),
    };
    let mut key = u32::from(cidr.prefix_len()).to_ne_bytes().to_vec();
    key.extend(octets);
    entry(map, key, value)
}

fn pod_cidr(cidr: IpNet, node: u32) -> Entry {
    by_prefix(&schema::CIDR4, &schema::CIDR6, cidr, &Cidr { node })
}

/// This node: its pod CIDRs and the configuration.
pub(super) fn own_node(node: &Node, contents: &Contents, facts: &Facts, epoch: u32) -> Vec<Entry> {
    let mut all: Vec<Entry> = node.pod_cidrs.iter().map(|c| pod_cidr(*c, NODE_SELF)).collect();
    let mut config = Config {
        flags: CONFIG_READY | if facts.encap_l2_eth { CONFIG_ENCAP_L2_ETH } else { 0 },
        weft_host: facts.weft_host,
        weft_vxlan: facts.weft_vxlan,
        hz: facts.hz,
        event_rate: facts.event_rate,
        tunnel_port: Be16::from_host(facts.tunnel_port),
        ..Config::zeroed()
    };
    // The first of each family; the hint serves most packets, and the maps all of them.
    for cidr in node.pod_cidrs.iter().rev() {
        match cidr {
            IpNet::V4(c) => (config.pods4, config.mask4) = (c.network().into(), c.netmask().into()),
            IpNet::V6(c) => (config.pods6, config.mask6) = (c.network().into(), c.netmask().into()),
        }
    }
    for address in node.internal_ips.iter().rev() {
        match address {
            IpAddr::V4(a) => config.node4 = (*a).into(),
            IpAddr::V6(a) => config.node6 = (*a).into(),
        }
    }
    match facts.underlay.tunnel_address(&node.internal_ips) {
        Some(IpAddr::V4(a)) => config.tunnel4 = a.into(),
        Some(IpAddr::V6(a)) => config.tunnel6 = a.into(),
        None => {}
    }
    all.push(entry(&schema::CT_CONFIG, 0_u32.to_ne_bytes().to_vec(), &lifetime::config(epoch, facts.hz)));
    all.push(entry(&schema::CONFIG, 0_u32.to_ne_bytes().to_vec(), &config));
    all.extend(masquerade::fixed(contents, facts));
    all
}

/// Another node: the way to it, its addresses and its pod CIDRs. While it has no address of the tunnel's family it is only spared from masquerade.
pub(super) fn other_node(
    node: &Node,
    contents: &Contents,
    facts: &Facts,
    numbers: &mut NodeNumbers,
) -> Result<Vec<Entry>, TooManyNodes> {
    let Some(to) = facts.tunnel_to(contents, &node.internal_ips) else {
        return Ok(if facts.masquerade.is_some() { masquerade::spared_node(node) } else { Vec::new() });
    };
    let number = numbers.number(to)?;
    let hop = contents.next_hops.get(&to);
    let tunnel = Tunnel {
        addr4: if let IpAddr::V4(a) = to { a.into() } else { Ip4::zeroed() },
        addr6: if let IpAddr::V6(a) = to { a.into() } else { Ip6::zeroed() },
        ifindex: hop.map_or(0, |h| h.ifindex),
        mtu: match hop {
            Some(h) if facts.mtu == 0 => h.mtu,
            _ => facts.device_mtu(contents).unwrap_or(ETHERNET_MTU),
        },
        dmac: hop.and_then(|h| h.next_hop_mac).unwrap_or(Mac::ZERO),
        smac: hop.map_or(Mac::ZERO, |h| h.source_mac),
        family: if to.is_ipv4() { 4 } else { 6 },
        ready: match hop {
            Some(h) if h.ethernet && h.next_hop_mac.is_some() => TUNNEL_BY_MAC,
            Some(h) if h.ethernet => TUNNEL_BY_NEIGHBOUR,
            // No route that we know of, or one through a device that takes no Ethernet frames: the kernel looks, packet by packet.
            _ => TUNNEL_BY_STACK,
        },
        ..Tunnel::zeroed()
    };
    let mut all = vec![
        entry(&schema::TUNNELS, number.to_ne_bytes().to_vec(), &tunnel),
        by_address(&schema::NODES4, &schema::NODES6, to, &number),
    ];
    let remote = Remote { identity: 0, node: number, flags: REMOTE_NODE };
    all.extend(node.internal_ips.iter().map(|a| by_address(&schema::REMOTE4, &schema::REMOTE6, *a, &remote)));
    all.extend(node.pod_cidrs.iter().map(|c| pod_cidr(*c, number)));
    Ok(all)
}

/// A pod of another node: its addresses. One of this node has an endpoint instead.
pub(super) fn pod(pod: &Pod, contents: &Contents, facts: &Facts, numbers: &NodeNumbers) -> Vec<Entry> {
    let node = pod.node.as_ref().filter(|n| **n != facts.node).and_then(|n| contents.nodes.get(n));
    let number = node.and_then(|n| numbers.known(facts.tunnel_to(contents, &n.internal_ips)?));
    let Some(number) = number.filter(|_| !pod.host_network && !pod.phase.is_over()) else { return Vec::new() };
    let remote = Remote { identity: 0, node: number, flags: 0 };
    pod.ips.iter().map(|a| by_address(&schema::REMOTE4, &schema::REMOTE6, *a, &remote)).collect()
}

/// A pod's interface on this node.
pub(super) fn endpoint(e: &Endpoint, contents: &Contents, sets: EndpointSets) -> Vec<Entry> {
    let vni = contents.pods.get(&e.pod()).map_or(0, |p| identity::label_class(&p.namespace, &p.labels));
    let id = u32::from(e.id);
    let local = Local { ifindex: e.ifindex, id, set_in: sets.set_in, set_out: sets.set_out, mac: e.mac, pad: 0 };
    let value = EndpointValue {
        addr4: e.ipv4.map_or(Ip4::zeroed(), Ip4::from),
        addr6: e.ipv6.map_or(Ip6::zeroed(), Ip6::from),
        id,
        set_in: sets.set_in,
        set_out: sets.set_out,
        vni,
        mac: e.mac,
        ..EndpointValue::zeroed()
    };
    e.ips()
        .map(|a| by_address(&schema::LOCAL4, &schema::LOCAL6, a, &local))
        .chain([entry(&schema::ENDPOINTS, e.ifindex.to_ne_bytes().to_vec(), &value)])
        .collect()
}

/// This node's own addresses; those that other nodes read in its Node object are marked.
pub(super) fn node_addresses(addresses: &BTreeSet<IpAddr>, announced: &[IpAddr]) -> Vec<Entry> {
    let flags = |a: &IpAddr| if announced.contains(a) { OWN | OWN_ANNOUNCED } else { OWN };
    addresses.iter().map(|a| by_address(&schema::OWN4, &schema::OWN6, *a, &flags(a))).collect()
}

/// MTU of the way to a node while nothing is known of it, bytes: that of Ethernet (RFC 894).
const ETHERNET_MTU: u32 = 1500;
