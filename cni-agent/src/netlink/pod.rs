//! A pod's wire: the two sends of CNI ADD.
//!
//! The order is what keeps ADD fast and closed. The pair is made in its final places, the qdisc joins the shared block while
//! the device is down, and the pod's end comes up last: nothing can pass before the program sees it.
use std::{
    net::IpAddr,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use cni_common::net::Mac;
use ipnet::IpNet;

use super::{
    NetlinkError, Request, Socket, addr,
    link::{self, End},
    names::gateway_for,
    neigh,
    route::{self, Route},
    tc,
};

/// A pod's wire as it should be.
#[derive(Debug, Clone)]
pub struct PodLink<'a> {
    /// Interface index of the node's end: chosen by the caller from [`FIRST_IFINDEX`](super::names::FIRST_IFINDEX) up, where
    /// the kernel gives none, and free. The whole wire fits one send because nobody has to ask for it.
    pub host_ifindex: u32,
    /// Name of the node's end; [`pod_device`](super::names::pod_device) makes it.
    pub host_name: &'a str,
    /// Interface index of the pod's end, in the pod's namespace.
    pub pod_ifindex: u32,
    /// Name of the pod's end, as the runtime asks for it: `eth0`.
    pub pod_ifname: &'a str,
    /// MAC address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of both ends.
    pub mtu_device: u32,
    /// MTU of the pod's routes: less than the device's by what a tunnel needs.
    pub route_mtu: u32,
    /// The pod's addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// The shared tc block to join.
    pub block: u32,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
}

/// A step of wiring, for those who watch.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was done, message by message.
    pub what: Vec<String>,
    /// How long the send took, with the kernel's work in it.
    pub took: Duration,
}

impl PodLink<'_> {
    /// Makes the pair, lets the node's end join the block and sets it up: one send on a socket of the node's namespace.
    ///
    /// # Errors
    /// [`NetlinkError::is_exists`] with index 0 when a name or an index is taken; otherwise what the kernel says. Nothing is
    /// left behind except when the deletion of a half-made pair fails too.
    pub fn create_host_side(&self, host: &mut Socket) -> Result<Step, NetlinkError> {
        let end = End {
            name: self.host_name,
            index: Some(self.host_ifindex),
            mac: Some(Mac::WEFT),
            mtu: Some(self.mtu_device),
            netns: None,
        };
        let peer = End {
            name: self.pod_ifname,
            index: Some(self.pod_ifindex),
            mac: Some(self.pod_mac),
            mtu: Some(self.mtu_device),
            netns: Some(self.netns),
        };
        let result = timed(
            host,
            vec![
                link::create_veth(&end, &peer),
                tc::add_clsact(self.host_ifindex, Some(self.block)),
                link::up(self.host_ifindex),
            ],
        );
        if let Err(e) = &result
            && e.index().is_some_and(|i| i > 0)
        {
            // The pair is ours, as its creation succeeded. The first error is the one to report.
            drop(host.run(link::delete(self.host_ifindex)));
        }
        result
    }

    /// Configures the pod's end and sets it up: one send on a socket of the pod's namespace.
    ///
    /// # Errors
    /// What the kernel says. The caller deletes the node's end, and with it everything made here.
    pub fn configure_pod_side(&self, pod: &mut Socket) -> Result<Step, NetlinkError> {
        let index = self.pod_ifindex;
        let mut batch = vec![
            // Runtimes leave loopback to the network; setting it up twice does no harm.
            link::up(link::LOOPBACK),
            link::no_link_local(index),
            link::up(index),
        ];
        batch.extend(self.addresses.iter().map(|a| addr::add(index, IpNet::from(*a))));
        let gateways = || self.addresses.iter().map(|a| gateway_for(*a));
        batch.extend(gateways().map(|g| neigh::set_permanent(index, g, Mac::WEFT)));
        batch.extend(
            gateways().map(|g| route::add(&Route { mtu: Some(self.route_mtu), ..Route::default_through(g, index) })),
        );
        timed(pod, batch)
    }

    /// Both sides, for those who do not share a socket between pods.
    ///
    /// # Errors
    /// As the two parts; after an error no device is left.
    pub fn wire(&self, host: &mut Socket) -> Result<Vec<Step>, NetlinkError> {
        let first = self.create_host_side(host)?;
        let second = (|| {
            let begin = Instant::now();
            let mut pod = Socket::open_in(self.netns)?;
            let open = Step { what: vec!["open a socket in the pod's namespace".into()], took: begin.elapsed() };
            Ok([open, self.configure_pod_side(&mut pod)?])
        })();
        match second {
            Ok([open, configured]) => Ok(vec![first, open, configured]),
            Err(e) => {
                // The first error is the one to report.
                drop(host.run(link::delete(self.host_ifindex)));
                Err(e)
            }
        }
    }
}

fn timed(socket: &mut Socket, batch: Vec<Request>) -> Result<Step, NetlinkError> {
    let what = batch.iter().map(|r| r.what().to_owned()).collect();
    let begin = Instant::now();
    socket.batch(batch)?;
    Ok(Step { what, took: begin.elapsed() })
}
