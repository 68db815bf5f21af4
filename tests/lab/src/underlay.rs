//! What joins the nodes, and the nodes' network namespaces.
use std::{fs, net::Ipv6Addr, os::fd::AsFd as _};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
    route::{self, Route},
};
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    cable::index_of,
    layout::{self, BRIDGE, NODE_DEVICE, UNDERLAY, UNDERLAY_MTU, node_netns},
    state::NodeState,
};

/// Address of the router on the bridge. It routes nothing.
const ROUTER: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99), 64));

/// What joins the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Underlay {
    /// A bridge in a namespace of its own, for any number of nodes.
    #[default]
    Bridge,
    /// One veth pair between exactly two nodes: no bridge code in what is measured.
    Direct,
    /// A router in a namespace of its own, with a link and a subnet for each node. No node is hostile.
    Routed,
}

/// Who sends router advertisements to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Router {
    /// Its network namespace.
    pub(crate) netns: String,
    /// Its device to the node.
    pub(crate) device: String,
}

impl Router {
    /// On the link of node `number`: the bridge itself, or the node at the other end of the wire.
    pub(crate) fn of(kind: Underlay, number: u8) -> Self {
        match kind {
            Underlay::Bridge => Self { netns: UNDERLAY.into(), device: BRIDGE.into() },
            Underlay::Direct => Self { netns: node_netns(if number == 1 { 2 } else { 1 }), device: NODE_DEVICE.into() },
            Underlay::Routed => Self { netns: UNDERLAY.into(), device: layout::node_name(number) },
        }
    }
}

/// Makes the nodes' namespaces and joins them.
pub(crate) fn build(kind: Underlay, nodes: &[NodeState]) -> Result<()> {
    for node in nodes {
        make_node(node).with_context(|| format!("make the namespace of {}", node.name))?;
    }
    match (kind, nodes) {
        (Underlay::Bridge, _) => bridge(nodes).context("join the nodes by a bridge"),
        (Underlay::Direct, [one, two]) => direct(one, two).context("join the nodes by a wire"),
        (Underlay::Routed, _) => routed(nodes).context("join the nodes by a router"),
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
    // The router's address, for its advertisements; and a neighbour that does not forward is no router.
    netns::set_sysctl(&netns, &format!("ipv6/conf/{BRIDGE}/forwarding"), "1")?;
    socket.batch(vec![link::no_link_local(bridge), link::up(bridge), addr::add(bridge, ROUTER)])?;
    for node in nodes {
        let inside = netns::open(netns::path_of(&node_netns(node.number)))?;
        let port = End { name: &node.name, mtu: Some(UNDERLAY_MTU), ..End::default() };
        let device = End { netns: Some(inside.as_fd()), ..end_of(node) };
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
    let peer = End { netns: Some(second.as_fd()), ..end_of(two) };
    Socket::open_in(first.as_fd())?.run(link::create_veth(&end_of(one), &peer))?;
    address(one)?;
    address(two)
}

fn routed(nodes: &[NodeState]) -> Result<()> {
    let netns = netns::create(UNDERLAY)?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    socket.run(link::up(link::LOOPBACK))?;
    let sysctls = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/ip_forward_use_pmtu", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
    ];
    for (key, value) in sysctls {
        netns::set_sysctl(&netns, key, value).with_context(|| format!("set the router's sysctl net/{key}"))?;
    }
    for node in nodes {
        let inside = netns::open(netns::path_of(&node_netns(node.number)))?;
        let port = End { name: &node.name, mtu: Some(UNDERLAY_MTU), ..End::default() };
        socket.run(link::create_veth(&port, &End { netns: Some(inside.as_fd()), ..end_of(node) }))?;
        let port = index_of(&mut socket, &node.name)?;
        let routers = layout::router_addresses(node.number);
        // It keeps its link-local address: from it the kernel asks for the neighbours to which it forwards.
        socket.run(link::up(port))?;
        socket.batch(routers.iter().map(|net| addr::add(port, *net)).collect())?;
        address(node)?;
        let mut node = Socket::open_in(inside.as_fd())?;
        let device = index_of(&mut node, NODE_DEVICE)?;
        let by_router = |net: &IpNet| Route { onlink: false, ..Route::default_through(net.addr(), device) };
        node.batch(routers.iter().map(|net| route::add(&by_router(net))).collect())?;
    }
    Ok(())
}

/// From now on the router sends no packet to a node that is larger than `mtu`, though its devices would take it. An IPv6 packet's
/// sender is told so; an IPv4 packet is fragmented unless that is forbidden.
pub(crate) fn set_path_mtu(nodes: &[NodeState], mtu: u32) -> Result<()> {
    let netns = netns::open(netns::path_of(UNDERLAY))?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    for node in nodes {
        netns::set_sysctl(&netns, &format!("ipv6/conf/{}/mtu", node.name), &mtu.to_string())?;
        let port = index_of(&mut socket, &node.name)?;
        let all = route::list(&mut socket)?;
        let connected = all.into_iter().filter(|r| r.index == port && r.dst.addr().is_ipv4());
        socket.batch(connected.map(|r| route::replace(&Route { mtu: Some(mtu), ..r })).collect())?;
    }
    Ok(())
}

/// The node's device, to be made.
fn end_of(node: &NodeState) -> End<'static> {
    let mac = node.hostile.then(|| layout::hostile_mac(node.number));
    End { name: NODE_DEVICE, mtu: Some(UNDERLAY_MTU), mac, ..End::default() }
}

/// Gives the node's device its addresses and sets it up. Its IPv6 address a hostile node gets from a router.
fn address(node: &NodeState) -> Result<()> {
    let netns = netns::open(netns::path_of(&node_netns(node.number)))?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    let device = index_of(&mut socket, NODE_DEVICE)?;
    if node.hostile {
        // 2: although it forwards.
        netns::set_sysctl(&netns, &format!("ipv6/conf/{NODE_DEVICE}/accept_ra"), "2")?;
    }
    let here = node.addresses.iter().filter(|net| !node.hostile || net.addr().is_ipv4());
    let mut batch: Vec<_> = here.map(|net| addr::add(device, *net)).collect();
    batch.insert(0, link::up(device));
    socket.batch(batch)?;
    Ok(())
}

/// A node as it will be.
pub(crate) fn plan(kind: Underlay, number: u8, hostile: bool) -> NodeState {
    let addresses = match kind {
        Underlay::Routed => layout::routed_addresses(number),
        _ if hostile => layout::hostile_addresses(number),
        _ => layout::node_addresses(number),
    };
    NodeState {
        number,
        name: layout::node_name(number),
        addresses: addresses.into(),
        listed: Vec::new(),
        hostile,
        pod_cidrs: layout::pod_cidrs(number).into(),
        agent: None,
    }
}
