//! A small cluster that tests of compilers and reconciler share: this node, `here`, and another, `there`.
use std::collections::BTreeMap;

use cni_common::net::Mac;

use super::{Facts, Masquerade};
use crate::{
    settings::Underlay,
    tables::{NextHop, Node},
};

/// MAC of the next hop to `there`.
pub(crate) const HOP_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 2]);

/// What the agent on `here` knows.
pub(crate) fn facts() -> Facts {
    Facts {
        node: "here".into(),
        underlay: Underlay::Auto,
        tunnel_port: 8472,
        cluster_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        mtu: 0,
        event_rate: 100,
        weft_host: 3,
        weft_vxlan: 4,
        encap_l2_eth: true,
        hz: 250,
        objects_are_all: false,
        masquerade: Some(Masquerade {
            ports: "61000-65535".parse().expect("a range"),
            spared: vec!["172.16.0.0/12".parse().expect("a CIDR"), "2001:db8::/32".parse().expect("a CIDR")],
        }),
    }
}

/// Node number `n`, dual-stack.
pub(crate) fn node(name: &str, n: u8) -> Node {
    Node {
        name: name.into(),
        pod_cidrs: [format!("10.244.{n}.0/24"), format!("fd10:{n}::/64")].map(|c| c.parse().expect("a CIDR")).into(),
        internal_ips: [format!("192.0.2.{n}"), format!("fd00::{n}")].map(|a| a.parse().expect("an address")).into(),
        labels: BTreeMap::new(),
        addresses: [format!("192.0.2.{n}"), format!("fd00::{n}")].map(|a| a.parse().expect("an address")).into(),
    }
}

/// The way to another node.
pub(crate) fn hop(resolved: bool) -> NextHop {
    NextHop {
        ifindex: 7,
        source_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        next_hop_mac: resolved.then_some(HOP_MAC),
        mtu: 1500,
        ethernet: true,
    }
}
