//! What joins the nodes, and the nodes' network namespaces.
use std::{fs, os::fd::AsFd as _};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
};
use serde::{Deserialize, Serialize};

use crate::{
    layout::{self, BRIDGE, NODE_DEVICE, UNDERLAY, UNDERLAY_MTU, node_netns},
    state::NodeState,
};

/// What joins the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Underlay {
    /// A bridge in a namespace of its own, for any number of nodes.
    #[default]
    Bridge,
    /// One veth pair between exactly two nodes: no bridge code in what is measured.
    Direct,
}

/// Makes the nodes' namespaces and joins them.
pub(crate) fn build(kind: Underlay, nodes: &[NodeState]) -> Result<()> {
    for node in nodes {
        make_node(node).with_context(|| format!("make the namespace of {}", node.name))?;
    }
    match (kind, nodes) {
        (Underlay::Bridge, _) => bridge(nodes).context("join the nodes by a bridge"),
        (Underlay::Direct, [one, two]) => direct(one, two).context("join the nodes by a wire"),
        (Underlay::Direct, _) => bail!("a direct wire joins two nodes, not {}: take a bridge", nodes.len()),
    }
}

fn make_node(node: &NodeState) -> Result<()> {
    let netns = netns::create(&node_netns(node.number))?;
    Socket::open_in(netns.as_fd())?.run(link::up(link::LOOPBACK))?;
    netns::in_netns(netns.as_fd(), || {
        // As on any Kubernetes node; the strict source check because it must not be in the way.
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
            // A node that has just booted looks for duplicates of its link-local address for a second, and without one sends no neighbour
            // solicitation of its own: the first packet would wait that long.
            ("ipv6/conf/default/accept_dad", "0"),
        ] {
            fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("set the sysctl net/{key}"))?;
        }
        Ok(())
    })?
}

fn bridge(nodes: &[NodeState]) -> Result<()> {
    let netns = netns::create(UNDERLAY)?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    socket.batch(vec![link::up(link::LOOPBACK), link::create_bridge(BRIDGE)])?;
    let bridge = index_of(&mut socket, BRIDGE)?;
    socket.batch(vec![link::no_link_local(bridge), link::up(bridge)])?;
    for node in nodes {
        let inside = netns::open(netns::path_of(&node_netns(node.number)))?;
        let port = End { name: &node.name, mtu: Some(UNDERLAY_MTU), ..End::default() };
        let device = End { name: NODE_DEVICE, mtu: Some(UNDERLAY_MTU), netns: Some(inside.as_fd()), ..End::default() };
        socket.run(link::create_veth(&port, &device))?;
        let port = index_of(&mut socket, &node.name)?;
        socket.batch(vec![link::no_link_local(port), link::set_master(port, Some(bridge)), link::up(port)])?;
        address(node)?;
    }
    Ok(())
}

fn direct(one: &NodeState, two: &NodeState) -> Result<()> {
    let open = |node: &NodeState| netns::open(netns::path_of(&node_netns(node.number)));
    let (first, second) = (open(one)?, open(two)?);
    let end = End { name: NODE_DEVICE, mtu: Some(UNDERLAY_MTU), ..End::default() };
    let peer = End { netns: Some(second.as_fd()), ..end };
    Socket::open_in(first.as_fd())?.run(link::create_veth(&end, &peer))?;
    address(one)?;
    address(two)
}

/// Gives the node's device its addresses and sets it up.
fn address(node: &NodeState) -> Result<()> {
    let netns = netns::open(netns::path_of(&node_netns(node.number)))?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    let device = index_of(&mut socket, NODE_DEVICE)?;
    let mut batch: Vec<_> = node.addresses.iter().map(|net| addr::add(device, *net)).collect();
    batch.insert(0, link::up(device));
    socket.batch(batch)?;
    Ok(())
}

fn index_of(socket: &mut Socket, name: &str) -> Result<u32> {
    Ok(link::by_name(socket, name)?.with_context(|| format!("device {name} has vanished"))?.index)
}

/// A node as it will be.
pub(crate) fn plan(number: u8) -> NodeState {
    NodeState {
        number,
        name: layout::node_name(number),
        addresses: layout::node_addresses(number).into(),
        pod_cidrs: layout::pod_cidrs(number).into(),
        agent: None,
    }
}
