//! A pod's wire: the two sends of CNI ADD.
//!
//! The order is what keeps ADD fast and closed. The pair is made in its final places, the qdisc joins the shared block while
//! the device is down, and the pod's end comes up last: nothing can pass before the program sees it.
use std::{
    io::ErrorKind,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use cni_common::net::Mac;
use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    MissingIsDone as _, NetlinkError, Request, Socket, addr,
    link::{self, End},
    monitor::Monitor,
    names::gateway_for,
    neigh, netns,
    route::{self, Route},
    rule::{self, Rule},
    tc,
};
use crate::fault::{self, Point};

/// The step of [`PodLink::configure_pod_side`].
const POD_SIDE: &str = "pod-side";
/// Queues of both ends. veth has no transmit lock and hands packets to the CPU that sends, so more of them serve nobody, but each
/// is an object in sysfs: with the two of a machine of two CPUs, creating the pair takes a quarter longer (measured on 6.18).
const QUEUES: u32 = 1;
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
    /// Destinations of the pod's routes and their metrics, all through the gateway of their family; without any, a default
    /// route for each family that there is an address of.
    pub routes: Vec<(IpNet, Option<u32>)>,
    /// The shared tc block to join.
    pub block: u32,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
}

/// How a wire came out.
#[derive(Debug, Clone)]
pub struct Wired {
    /// What was done.
    pub steps: Vec<Step>,
    /// The pod had a default route before, so this interface's stand in a table of its own ([`PodLink::own_table`]).
    pub own_table: bool,
}

/// The families of which a pod has a default route, by another interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Defaults {
    /// Looks, for the families that these addresses are of.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(pod: &mut Socket, addresses: &[IpAddr]) -> Result<Self, NetlinkError> {
        let there: Vec<Route> = route::list(pod)?.into_iter().filter(|r| r.dst.prefix_len() == 0).collect();
        let has =
            |v4| addresses.iter().any(|a| a.is_ipv4() == v4) && there.iter().any(|r| r.dst.addr().is_ipv4() == v4);
        Ok(Self { v4: has(true), v6: has(false) })
    }

    fn of(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }

    fn any(self) -> bool {
        self.v4 || self.v6
    }
}

/// A step of wiring, for those who watch.
#[derive(Debug, Clone)]
pub struct Step {
    /// In one word.
    pub name: &'static str,
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
            queues: Some(QUEUES),
        };
        let peer = End {
            name: self.pod_ifname,
            index: Some(self.pod_ifindex),
            mac: Some(self.pod_mac),
            mtu: Some(self.mtu_device),
            netns: Some(self.netns),
            queues: Some(QUEUES),
        };
        let result = timed(
            "host-side",
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
    pub fn configure_pod_side(&self, pod: &mut Socket, before: Defaults) -> Result<Step, NetlinkError> {
        let index = self.pod_ifindex;
        let mut batch = vec![
            // Runtimes leave loopback to the network; setting it up twice does no harm.
            link::up(link::LOOPBACK),
            link::no_link_local(index),
            link::up(index),
        ];
        batch.extend(self.addressing(&self.addresses, before));
        let begin = Instant::now();
        match timed(POD_SIDE, pod, batch) {
            Err(e) if e.errno() == Some(Errno::EACCES) => {
                let key = format!("ipv6/conf/{}/disable_ipv6", self.pod_ifname);
                netns::set_sysctl(self.netns, &key, "0")
                    .map_err(NetlinkError::socket(format!("turn IPv6 on in the pod (sysctl net/{key})")))?;
                let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = self.addresses.iter().partition(|a| a.is_ipv6());
                // The kernel went on behind the refusal, but told of the first alone: what it did refuses to be done again.
                for request in self.addressing(&v4, before) {
                    match pod.run(request) {
                        Err(e) if !e.is_exists() => return Err(e),
                        Ok(()) | Err(_) => {}
                    }
                }
                let again = timed(POD_SIDE, pod, self.addressing(&v6, before))?;
                Ok(Step { took: begin.elapsed(), ..again })
            }
            result => result,
        }
    }

    /// Addresses, gateways and routes.
    fn addressing(&self, addresses: &[IpAddr], before: Defaults) -> Vec<Request> {
        let index = self.pod_ifindex;
        let mut batch: Vec<Request> = addresses.iter().map(|a| addr::add(index, IpNet::from(*a))).collect();
        batch.extend(addresses.iter().map(|a| neigh::set_permanent(index, gateway_for(*a), Mac::WEFT)));
        batch.extend(addresses.iter().flat_map(|a| self.routes_of(*a, before)).map(|r| route::add(&r)));
        batch
    }

    /// The routes of an address's family.
    fn routes_of(&self, address: IpAddr, before: Defaults) -> Vec<Route> {
        let gateway = gateway_for(address);
        let default = Route { mtu: Some(self.route_mtu), ..Route::default_through(gateway, self.pod_ifindex) };
        let own = Route { table: self.own_table(), ..default.clone() };
        let asked = self.routes.iter().filter(|(dst, _)| dst.addr().is_ipv4() == address.is_ipv4());
        let mut routes: Vec<Route> =
            asked.map(|(dst, priority)| Route { dst: *dst, priority: *priority, ..default.clone() }).collect();
        if self.routes.is_empty() {
            routes.push(default);
        }
        if before.of(address) {
            routes.retain(|r| r.dst.prefix_len() > 0);
        }
        if before.any() {
            // Even if the IPAM plugin asked for none: an answer must leave by the interface whose address it carries.
            routes.push(own);
        }
        routes
    }

    /// Number of the table for the interface's own routes: one that nobody else takes.
    #[must_use]
    pub fn own_table(&self) -> u32 {
        self.pod_ifindex
    }

    /// What each address sends goes by the table of its own.
    fn set_rules(&self, pod: &mut Socket) -> Result<Step, NetlinkError> {
        let table = self.own_table();
        timed("rules", pod, self.addresses.iter().map(|from| rule::add(Rule { from: *from, table })).collect())
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
        Ok(Step { name: "usable", what: vec!["see that the pod's addresses are usable".into()], took: begin.elapsed() })
    }

    /// Both sides, for those who do not share a socket between pods.
    ///
    /// # Errors
    /// As the two parts; after an error neither device nor rule is left.
    pub fn wire(&self, host: &mut Socket) -> Result<Wired, NetlinkError> {
        let mut steps = vec![self.create_host_side(host)?];
        fault::pass(Point::AddHostSide);
        let second = (|| {
            let begin = Instant::now();
            let mut pod = Socket::open_in(self.netns)?;
            let before = Defaults::look(&mut pod, &self.addresses)?;
            let what = vec!["open a socket in the pod's namespace and look for a default route".into()];
            steps.push(Step { name: "pod-socket", what, took: begin.elapsed() });
            let mut configure = || {
                steps.push(self.configure_pod_side(&mut pod, before)?);
                fault::pass(Point::AddPodSide);
                if before.any() {
                    steps.push(self.set_rules(&mut pod)?);
                    fault::pass(Point::AddRules);
                }
                steps.push(self.await_usable(&mut pod)?);
                Ok(before.any())
            };
            let done = configure();
            if done.is_err() && before.any() {
                // Rules do not go with the device. The first error is the one to report.
                drop(delete_rules(&mut pod, self.own_table()));
            }
            done
        })();
        match second {
            Ok(own_table) => Ok(Wired { steps, own_table }),
            Err(e) => {
                // The first error is the one to report.
                drop(host.run(link::delete(self.host_ifindex)));
                Err(e)
            }
        }
    }
}

/// A socket in the network namespace that `path` leads to; none when it is gone: what was mounted there leaves a plain file.
///
/// # Errors
/// What the kernel says.
pub fn socket_at(path: &str) -> Result<Option<Socket>, NetlinkError> {
    let target = match netns::open(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        // A lack of file descriptors is no sign that the pod has gone.
        other => other.map_err(NetlinkError::socket(format!("open the network namespace {path}")))?,
    };
    match Socket::open_in(target.as_fd()) {
        Err(e) if e.errno() == Some(Errno::EINVAL) => Ok(None),
        other => other.map(Some),
    }
}

/// Deletes our rules that lead to a table, in the namespace of the socket. They outlive the device whose table it is.
///
/// # Errors
/// What the kernel says; rules that are gone are no error.
pub fn delete_rules(pod: &mut Socket, table: u32) -> Result<(), NetlinkError> {
    let ours = rule::list(pod)?.into_iter().filter(|r| r.table == table);
    ours.map(|r| pod.run(rule::delete(r)).missing_is_done()).fold(Ok(()), Result::and)
}

fn timed(name: &'static str, socket: &mut Socket, batch: Vec<Request>) -> Result<Step, NetlinkError> {
    let what = batch.iter().map(|r| r.what().to_owned()).collect();
    let begin = Instant::now();
    socket.batch(batch)?;
    Ok(Step { name, what, took: begin.elapsed() })
}
