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
use nix::errno::Errno;

use super::{
    NetlinkError, Request, Socket, addr,
    link::{self, End},
    monitor::Monitor,
    names::gateway_for,
    neigh, netns,
    route::{self, Route},
    tc,
};

/// An address that is not usable by then never will be.
const USABLE_WITHIN: Duration = Duration::from_secs(5);

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
                link::no_link_local(self.host_ifindex),
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

    /// Configures the pod's end and sets it up: one send on a socket of the pod's namespace. Some runtimes make namespaces with
    /// IPv6 turned off; if the pod has an IPv6 address, it is turned on for the pod's end.
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
        batch.extend(self.addressing(&self.addresses));
        let begin = Instant::now();
        match timed(pod, batch) {
            Err(e) if e.errno() == Some(Errno::EACCES) => {
                let key = format!("ipv6/conf/{}/disable_ipv6", self.pod_ifname);
                netns::set_sysctl(self.netns, &key, "0")
                    .map_err(NetlinkError::socket(format!("turn IPv6 on in the pod (sysctl net/{key})")))?;
                // Everything else of the batch was done.
                let v6: Vec<IpAddr> = self.addresses.iter().copied().filter(IpAddr::is_ipv6).collect();
                let again = timed(pod, self.addressing(&v6))?;
                Ok(Step { took: begin.elapsed(), ..again })
            }
            result => result,
        }
    }

    /// Addresses, gateways and default routes.
    fn addressing(&self, addresses: &[IpAddr]) -> Vec<Request> {
        let index = self.pod_ifindex;
        let gateways = || addresses.iter().map(|a| gateway_for(*a));
        let route = |g| route::add(&Route { mtu: Some(self.route_mtu), ..Route::default_through(g, index) });
        let mut batch: Vec<Request> = addresses.iter().map(|a| addr::add(index, IpNet::from(*a))).collect();
        batch.extend(gateways().map(|g| neigh::set_permanent(index, g, Mac::WEFT)));
        batch.extend(gateways().map(route));
        batch
    }

    /// Waits until packets to the pod's IPv6 address are taken in. The kernel makes the local route in a work queue, a moment
    /// after it has acknowledged the address, and under a burst of calls that moment can outlast ADD. Mostly it is over.
    ///
    /// # Errors
    /// What the kernel says, or that it has not happened in five seconds.
    pub fn await_usable(&self, pod: &mut Socket) -> Result<Step, NetlinkError> {
        let begin = Instant::now();
        for addr in self.addresses.iter().filter(|a| a.is_ipv6()) {
            let mut usable = || Ok(route::lookup(pod, *addr)?.is_some_and(|way| way.local));
            if usable()? {
                continue;
            }
            let (mut monitor, _stop) = Monitor::open_in(self.netns)?;
            // Once more, as it may have happened before the monitor was there.
            while !usable()? {
                let left = USABLE_WITHIN.saturating_sub(begin.elapsed());
                if monitor.next_within(left)?.is_none() {
                    return Err(NetlinkError::TimedOut {
                        what: format!("wait for the pod's address {addr} to be usable"),
                    });
                }
            }
        }
        Ok(Step { what: vec!["see that the pod's addresses are usable".into()], took: begin.elapsed() })
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
            Ok([open, self.configure_pod_side(&mut pod)?, self.await_usable(&mut pod)?])
        })();
        match second {
            Ok(rest) => Ok([first].into_iter().chain(rest).collect()),
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
