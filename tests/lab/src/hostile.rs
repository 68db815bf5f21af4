//! The hostile node: what nodes in the world have, and what stands in a CNI's way.
//!
//! It has Docker's bridge with a container behind it, FORWARD policy DROP in both families, a second NIC with a host behind it, somebody
//! else's tc filters before and after ours, and its IPv6 address comes from a router advertisement. All of it is there before its agent
//! starts. (`rp_filter=1` is on all nodes.)
mod advert;
mod foreign;
mod message;
mod nft;

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
};
use ipnet::IpNet;

pub use advert::Advertisement;
pub use foreign::{Direction, Foreign, Side};
pub use nft::Policy;

use crate::{
    cable::{self, index_of, way},
    layout::{self, DOCKER, DOCKER_NETS, NODE_DEVICE, SECOND_DEVICE},
    probe::Place,
    state::NodeState,
    underlay::Router,
};

/// An address that is not there by then does not come.
const ADDRESS_LIMIT: Duration = Duration::from_secs(20);
/// Between two advertisements of a router that begins.
const ADVERTISED_EVERY: Duration = Duration::from_secs(2);

/// Which node of a lab is hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hostile {
    /// The last one if there are several.
    #[default]
    LastOfSeveral,
    /// The last one, even if it is the only one.
    Last,
    /// None: for measurements.
    Nobody,
}

impl Hostile {
    /// Whether it is node `number` of `nodes`.
    pub(crate) const fn is(self, number: u8, nodes: u8) -> bool {
        match self {
            Self::LastOfSeveral => number == nodes && nodes > 1,
            Self::Last => number == nodes,
            Self::Nobody => false,
        }
    }
}

/// What a hostile node has beside an ordinary one.
#[derive(Debug)]
pub struct HostileNode {
    number: u8,
    netns: OwnedFd,
    addresses: Vec<IpNet>,
    router: Router,
    /// Somebody else's programs at the ingress and at the egress of its device to the underlay. None if this process
    /// did not build the lab.
    foreign: Option<[Foreign; 2]>,
}

impl HostileNode {
    /// Of a node that is there already.
    pub(crate) fn open(node: &NodeState, router: Router) -> Result<Self> {
        let netns = netns::open(netns::path_of(&layout::node_netns(node.number)))
            .with_context(|| format!("open the network namespace of {}", node.name))?;
        let addresses = node.addresses.clone();
        Ok(Self { number: node.number, netns, addresses, router, foreign: None })
    }

    /// Makes everything. The node's namespace and its device to the underlay are there already.
    pub(crate) fn build(&mut self) -> Result<()> {
        self.docker().context("make Docker's bridge and a container")?;
        self.second_nic().context("make a second NIC and a host behind it")?;
        self.set_forward(Policy::Drop)?;
        let device = index_of(&mut Socket::open_in(self.netns.as_fd())?, NODE_DEVICE)?;
        let put = |direction| -> Result<Foreign> {
            let foreign = Foreign::load()?;
            for side in Side::BOTH {
                foreign.attach(self.netns.as_fd(), device, direction, side)?;
            }
            Ok(foreign)
        };
        self.foreign = Some([put(Direction::Ingress)?, put(Direction::Egress)?]);
        self.advertise_own()
    }

    /// A process in a container on Docker's bridge.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn container(&self) -> Result<Place> {
        let [v4, v6] = DOCKER_NETS.map(|net| host_in(net, 2).addr());
        Place::new("container", &layout::container_netns(self.number), vec![v4, v6])
    }

    /// A host behind the second NIC. It is not of the cluster, and knows the way to this node's pods.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn outside(&self) -> Result<Place> {
        let addresses = layout::outside_addresses().map(|net| net.addr());
        Place::new("outside", &layout::outside_netns(self.number), addresses.into())
    }

    /// The node under the addresses of its second NIC.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn on_second_nic(&self) -> Result<Place> {
        let addresses = layout::second_addresses(self.number).map(|net| net.addr());
        let name = format!("{} ({SECOND_DEVICE})", layout::node_name(self.number));
        Place::new(&name, &layout::node_netns(self.number), addresses.into())
    }

    /// Sets the policy of the FORWARD chains of both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_forward(&self, policy: Policy) -> Result<()> {
        nft::set_forward(self.netns.as_fd(), policy)
    }

    /// Gives what containers send to others an address of the node, as Docker does, or stops that. It is the first address of the device
    /// that they leave by, or, as with ours, of the first device that has one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_masquerade(&self, on: bool) -> Result<()> {
        if !on {
            return nft::no_masquerade(self.netns.as_fd());
        }
        DOCKER_NETS.iter().try_for_each(|net| nft::masquerade(self.netns.as_fd(), net.trunc(), DOCKER))
    }

    /// Somebody else's programs on its device to the underlay.
    ///
    /// # Errors
    /// When this process did not build the lab.
    pub fn foreign(&self, direction: Direction) -> Result<&Foreign> {
        let [ingress, egress] = self.foreign.as_ref().context("this process did not build the hostile node")?;
        Ok(match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        })
    }

    /// Lets the router on the underlay send it an advertisement.
    ///
    /// # Errors
    /// When it can not be sent.
    pub fn advertise(&self, what: &Advertisement) -> Result<()> {
        let router = netns::open(netns::path_of(&self.router.netns)).context("open the router's network namespace")?;
        let device = index_of(&mut Socket::open_in(router.as_fd())?, &self.router.device)?;
        what.send(router.as_fd(), device, layout::hostile_link_local(self.number))
    }

    /// Sends the advertisement that its address comes from until it has the address. A router says it several times when it begins (RFC 4861
    /// section 6.2.4), as the link or the router's own address may not be ready when it does so first.
    fn advertise_own(&self) -> Result<()> {
        let own = self.addresses.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
        let own = own.context("the hostile node has no IPv6 address in the plan")?;
        let mut socket = Socket::open_in(self.netns.as_fd())?;
        // Before it has one it can not be told anything: the message would wait for a neighbour that does not answer.
        self.await_address(&mut socket, layout::hostile_link_local(self.number), ADDRESS_LIMIT)?;
        let deadline = Instant::now() + ADDRESS_LIMIT;
        loop {
            self.advertise(&Advertisement::of(own.trunc()))?;
            match self.await_address(&mut socket, own.addr(), ADVERTISED_EVERY) {
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    fn await_address(&self, socket: &mut Socket, address: Ipv6Addr, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !addr::list(socket)?.iter().any(|a| a.net.addr() == IpAddr::V6(address)) {
            if Instant::now() > deadline {
                bail!("node {} did not get the address {address} in {} s", self.number, limit.as_secs());
            }
            crate::machine::pause();
        }
        Ok(())
    }

    /// Bridge, container, and the container's way out.
    fn docker(&self) -> Result<()> {
        let mut socket = Socket::open_in(self.netns.as_fd())?;
        socket.run(link::create_bridge(DOCKER))?;
        let bridge = index_of(&mut socket, DOCKER)?;
        socket.batch(DOCKER_NETS.map(|net| addr::add(bridge, net)).into())?;
        let addresses = DOCKER_NETS.map(|net| host_in(net, 2));
        let port = End { name: "veth_docker", ..End::default() };
        let routes = |device| DOCKER_NETS.map(|net| way(net.addr(), None, device)).into();
        let port = cable::lay(&mut socket, &port, &layout::container_netns(self.number), &addresses, routes)?;
        socket.batch(vec![link::set_master(port, Some(bridge)), link::up(bridge)])?;
        Ok(())
    }

    /// The NIC, a host, and the host's way to the node's pods.
    fn second_nic(&self) -> Result<()> {
        let mut socket = Socket::open_in(self.netns.as_fd())?;
        let own = layout::second_addresses(self.number);
        let nic = End { name: SECOND_DEVICE, ..End::default() };
        let cidrs = layout::pod_cidrs(self.number);
        let routes = |device| own.iter().zip(cidrs).map(|(via, to)| way(via.addr(), Some(to), device)).collect();
        let outside = layout::outside_netns(self.number);
        let nic = cable::lay(&mut socket, &nic, &outside, &layout::outside_addresses(), routes)?;
        socket.batch(own.map(|net| addr::add(nic, net)).into())?;
        Ok(())
    }

    /// The node's network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Address number `n` of the network that `net` is in.
fn host_in(net: IpNet, n: u8) -> IpNet {
    match net {
        IpNet::V4(net) => layout::v4(net.network(), n, net.prefix_len()),
        IpNet::V6(net) => layout::v6(net.network(), n, net.prefix_len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_alone_is_hostile_only_when_asked() {
        assert!(!Hostile::LastOfSeveral.is(1, 1) && Hostile::Last.is(1, 1));
        assert_eq!([1, 2, 3].map(|n| Hostile::LastOfSeveral.is(n, 3)), [false, false, true]);
        assert!(!Hostile::Nobody.is(2, 2));
    }
}
