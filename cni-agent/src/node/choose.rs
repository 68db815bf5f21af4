//! Which devices `from_netdev` watches. Pure.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::leave::Leave;
use crate::{
    netlink::{
        addr::Address,
        link::{self, Link},
        names,
        route::Route,
    },
    tables::Device,
};

/// What the choice is made from.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// All devices of the node.
    pub links: &'a [Link],
    /// Their addresses.
    pub addresses: &'a [Address],
    /// The main table.
    pub routes: &'a [Route],
    /// The InternalIPs of this node's Node object.
    pub internal: &'a [IpAddr],
    /// Devices that next hops to other nodes are behind.
    pub next_hops: &'a BTreeSet<u32>,
    /// `--device`; empty: the agent chooses.
    pub named: &'a [String],
}

impl Choice<'_> {
    /// The devices by index. What other nodes or the outside send to this one comes in through one of them: they carry an InternalIP or
    /// a default route, or lead to another node. Those that were named are taken as they are, unless they are our own.
    pub fn devices(&self) -> BTreeMap<u32, Device> {
        self.links
            .iter()
            .filter(|l| l.index != link::LOOPBACK && !is_own(&l.name))
            .filter(|l| {
                if self.named.is_empty() {
                    self.may_lead(l) && self.is_used(l.index)
                } else {
                    self.named.contains(&l.name)
                }
            })
            .map(|l| (l.index, self.device(l)))
            .collect()
    }

    fn device(&self, l: &Link) -> Device {
        let leave = Leave { addresses: self.addresses, routes: self.routes, internal: self.internal };
        Device {
            name: l.name.clone(),
            mtu: l.mtu,
            leads: self.carries_internal(l.index),
            leave4: leave.v4(l.index),
            leave6: leave.v6(l.index),
        }
    }

    /// Packets for the node itself come in through it: a port's belong to its bridge or bond, and the program reads an Ethernet header.
    fn may_lead(&self, l: &Link) -> bool {
        l.master.is_none() && l.mac.is_some()
    }

    fn is_used(&self, index: u32) -> bool {
        self.carries_internal(index)
            || self.next_hops.contains(&index)
            || self.routes.iter().any(|r| r.index == index && r.dst.prefix_len() == 0)
    }

    fn carries_internal(&self, index: u32) -> bool {
        self.addresses.iter().any(|a| a.index == index && self.internal.contains(&a.net.addr()))
    }
}

/// A device of ours: the node's, or a pod's.
fn is_own(name: &str) -> bool {
    names::is_node_device(name) || names::endpoint_of(name).is_some()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use cni_common::net::Mac;

    use super::*;
    use crate::netlink::addr::{Flags, Scope};

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            kind: None,
            up: true,
            carrier: true,
            link: None,
            link_netns: None,
            master: None,
            alias: None,
            vxlan_port: None,
        }
    }
    fn at(index: u32, net: &str) -> Address {
        Address { index, net: net.parse().unwrap(), scope: Scope::Universe, flags: Flags::empty() }
    }
    static INTERNAL: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))];
    static NOWHERE: BTreeSet<u32> = BTreeSet::new();
    /// Names of the chosen, those that lead to nodes with a star.
    fn chosen<'a>(links: &'a [Link], addresses: &'a [Address], change: impl FnOnce(&mut Choice<'a>)) -> Vec<String> {
        let mut choice = Choice { links, addresses, routes: &[], internal: &INTERNAL, next_hops: &NOWHERE, named: &[] };
        change(&mut choice);
        choice.devices().into_values().map(|d| format!("{}{}", d.name, if d.leads { "*" } else { "" })).collect()
    }

    #[test]
    fn devices_with_an_internal_ip_a_default_route_or_a_next_hop_are_chosen() {
        let links = [link(2, "eth0"), link(3, "eth1"), link(4, "eth2"), link(5, "docker0")];
        let addresses = [at(2, "10.0.0.1/24"), at(3, "192.0.2.7/24"), at(5, "172.17.0.1/16")];
        assert_eq!(chosen(&links, &addresses, |_| {}), ["eth0*"]);
        let routes = [Route::default_through("192.0.2.1".parse().unwrap(), 3)];
        assert_eq!(chosen(&links, &addresses, |c| c.routes = &routes), ["eth0*", "eth1"]);
        let hops = [4].into();
        assert_eq!(chosen(&links, &addresses, |c| c.next_hops = &hops), ["eth0*", "eth2"]);
    }

    #[test]
    fn of_a_bridge_and_its_port_only_the_bridge_is_chosen() {
        let links = [Link { master: Some(3), ..link(2, "eth0") }, link(3, "br0")];
        let both = [at(2, "10.0.0.1/24"), at(3, "fd00::1/64")];
        assert_eq!(chosen(&links, &both, |_| {}), ["br0*"]);
    }

    #[test]
    fn loopback_our_own_devices_and_those_without_ethernet_are_never_chosen() {
        let mut links = vec![link(1, "lo"), Link { mac: None, ..link(2, "wg0") }];
        links.extend(["weft_host", "weft_net", "weft_vxlan", "weft_block", "weft2a"].map(|name| link(9, name)));
        let addresses = [at(1, "10.0.0.1/32"), at(2, "10.0.0.1/24"), at(9, "fd00::1/64")];
        assert_eq!(chosen(&links, &addresses, |_| {}), [""; 0]);
    }

    #[test]
    fn devices_that_are_named_replace_the_choice() {
        let links = [link(2, "eth0"), link(3, "eth1")];
        let named = ["eth1".to_owned()];
        assert_eq!(chosen(&links, &[at(2, "10.0.0.1/24")], |c| c.named = &named), ["eth1"]);
    }
}
