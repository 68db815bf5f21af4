//! The world: what is outside of the cluster, behind a router on the underlay.
//!
//! ```text
//! nodes ── bridge ── router ── near
//!                           └─ narrow (the router sends nothing larger than NARROW_MTU there)
//! ```
//!
//! Every node has its default route by the router. The router and both hosts know the nodes' subnet and no pod CIDR: whom a pod speaks to
//! under its own address cannot answer, until [`World::learn_pods`].
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
    route::{self, Route},
};

use crate::{
    cable::{self, index_of, way},
    layout::{self, BRIDGE, NARROW_MTU, NODE_DEVICE, UNDERLAY, UNDERLAY_MTU, WORLD, node_netns},
    node::Node,
    probe::Place,
    state::NodeState,
};

/// A port of the underlay's bridge, and both hosts' names and the router's devices to them.
const PORT: &str = "world";
const NEAR: &str = "near";
const NARROW: &str = "narrow";
/// The nodes' metric of the way there: better than what router advertisements bring.
const METRIC: u32 = 100;

/// The world of a lab. Its hosts are called `near` and `narrow`.
#[derive(Debug)]
pub struct World {
    router: OwnedFd,
}

impl World {
    /// Of a lab that has one already.
    pub(crate) fn open() -> Result<Self> {
        let router = netns::open(netns::path_of(WORLD)).context("open the network namespace of the world's router")?;
        Ok(Self { router })
    }

    /// Makes it. The underlay's bridge and the nodes' devices are there already.
    pub(crate) fn build(nodes: &[NodeState]) -> Result<Self> {
        let underlay = netns::open(netns::path_of(UNDERLAY))?;
        let mut socket = Socket::open_in(underlay.as_fd())?;
        let bridge = index_of(&mut socket, BRIDGE)?;
        let port = End { name: PORT, mtu: Some(UNDERLAY_MTU), ..End::default() };
        let port = cable::lay(&mut socket, &port, WORLD, &layout::world_router(), |_| Vec::new())?;
        socket.batch(vec![link::no_link_local(port), link::set_master(port, Some(bridge))])?;
        let world = Self::open()?;
        let sysctls = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            // The route's MTU is what the way takes, though the device takes more.
            ("ipv4/ip_forward_use_pmtu", "1"),
        ];
        for (key, value) in sysctls {
            netns::set_sysctl(&world.router, key, value)
                .with_context(|| format!("set the router's sysctl net/{key}"))?;
        }
        unlimited(&world.router)?;
        for host in [NEAR, NARROW] {
            world.host(host).with_context(|| format!("make the host {host}"))?;
        }
        world.narrow_down().context("make the way to a host narrow")?;
        for node in nodes {
            way_out(node).with_context(|| format!("give {} its default routes", node.name))?;
        }
        Ok(world)
    }

    fn host(&self, name: &str) -> Result<()> {
        let mut socket = Socket::open_in(self.router.as_fd())?;
        let (routers, own) = layout::world_link(name == NARROW);
        let end = End { name, mtu: Some(UNDERLAY_MTU), ..End::default() };
        let routes = |device| routers.iter().map(|net| way(net.addr(), None, device)).collect();
        let netns = layout::world_netns(name);
        let device = cable::lay(&mut socket, &end, &netns, &own, routes)?;
        socket.batch(routers.map(|net| addr::add(device, net)).into())?;
        unlimited(&netns::open(netns::path_of(&netns))?)
    }

    fn narrow_down(&self) -> Result<()> {
        let mut socket = Socket::open_in(self.router.as_fd())?;
        let device = index_of(&mut socket, NARROW)?;
        netns::set_sysctl(&self.router, &format!("ipv6/conf/{NARROW}/mtu"), &NARROW_MTU.to_string())?;
        let all = route::list(&mut socket)?;
        let connected = all.into_iter().filter(|r| r.index == device && r.dst.addr().is_ipv4());
        socket.batch(connected.map(|r| route::replace(&Route { mtu: Some(NARROW_MTU), ..r })).collect())?;
        Ok(())
    }

    /// The host to which the way is as wide as the underlay.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn near(&self) -> Result<Place> {
        Self::host_place(NEAR)
    }

    /// The host to which packets of more than [`NARROW_MTU`] bytes do not get: the router says so to their sender, or cuts them if they
    /// allow it. What it sends itself may be larger.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn narrow(&self) -> Result<Place> {
        Self::host_place(NARROW)
    }

    fn host_place(name: &str) -> Result<Place> {
        let (_, own) = layout::world_link(name == NARROW);
        Place::new(name, &layout::world_netns(name), own.map(|net| net.addr()).into())
    }

    /// The router, under its addresses on the underlay.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn router(&self) -> Result<Place> {
        Place::new("router", WORLD, layout::world_router().map(|net| net.addr()).into())
    }

    /// Router and hosts.
    ///
    /// # Errors
    /// When a namespace is gone.
    pub fn places(&self) -> Result<[Place; 3]> {
        Ok([self.router()?, self.near()?, self.narrow()?])
    }

    /// Gives the world routes to the pods of a node by that node, as the routers of a network have them that knows pods: it answers pods under
    /// their own addresses, and opens flows to them.
    ///
    /// # Errors
    /// When the router has them already.
    pub fn learn_pods(&self, node: &Node) -> Result<()> {
        self.change_ways(node, route::add)
    }

    /// Takes them back.
    ///
    /// # Errors
    /// When the router does not have them.
    pub fn forget_pods(&self, node: &Node) -> Result<()> {
        self.change_ways(node, route::delete)
    }

    fn change_ways(&self, node: &Node, change: impl Fn(&Route) -> cni_agent::netlink::Request) -> Result<()> {
        let mut socket = Socket::open_in(self.router.as_fd())?;
        let device = index_of(&mut socket, cable::DEVICE)?;
        let addresses = node.addresses();
        let mut batch = Vec::new();
        for cidr in node.pod_cidrs() {
            let via = addresses.iter().find(|a| a.is_ipv4() == cidr.addr().is_ipv4());
            batch.push(change(&way(*via.context("the node lacks an address of this family")?, Some(*cidr), device)));
        }
        socket.batch(batch).with_context(|| format!("change the world's ways to the pods of {}", node.name()))?;
        Ok(())
    }
}

/// It answers every packet that it cannot send on: a traceroute must not depend on the one before. For IPv4 by the mask of what is limited: a
/// limit of 0 would take from each host what another limit, that of packets without a route (`ip_error` of the kernel), counts for it.
fn unlimited(netns: &OwnedFd) -> Result<()> {
    for key in ["ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"] {
        netns::set_sysctl(netns, key, "0").with_context(|| format!("set the sysctl net/{key}"))?;
    }
    Ok(())
}

fn way_out(node: &NodeState) -> Result<()> {
    let netns = netns::open(netns::path_of(&node_netns(node.number)))?;
    let mut socket = Socket::open_in(netns.as_fd())?;
    let device = index_of(&mut socket, NODE_DEVICE)?;
    let by_router = |net: ipnet::IpNet| Route { priority: Some(METRIC), ..way(net.addr(), None, device) };
    socket.batch(layout::world_router().map(|net| route::add(&by_router(net))).into())?;
    Ok(())
}
