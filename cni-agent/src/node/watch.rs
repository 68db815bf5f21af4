//! What the kernel knows, as rows: this node's addresses, the devices that lead to other nodes, and the next hop to each of them.
//!
//! A source like any other: it changes tables only. Its one wish to the kernel is to resolve a neighbour that nobody has asked for yet.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tracing::{error, warn};

use super::{
    choose::Choice,
    next_hops::{Link, NextHops},
    path_mtu,
};
use crate::{
    compile::Facts,
    endpoint::Gone,
    error_chain,
    netlink::{
        NetlinkError, Socket, addr, link,
        monitor::{Event, Monitor, Stop},
        names, route,
    },
    tables::{Source, Tables},
};

/// How often next hops are confirmed: packets that bypass the stack do not keep its neighbours fresh.
const CONFIRM_EVERY: Duration = Duration::from_secs(30);
/// How long a burst of events is collected before it is worked on.
const GATHER: Duration = Duration::from_millis(5);
/// How long a burst is collected at most.
const GATHER_AT_MOST: Duration = Duration::from_millis(50);

/// Why to look again.
enum Wake {
    /// The kernel's configuration changed, in whatever way.
    Kernel,
    /// Only this neighbour did.
    Neighbour(Link),
    /// A packet to this address was too big for somebody on the way.
    Path(IpAddr),
    /// Nodes came, went or moved.
    Nodes,
}

/// What an event of the kernel is a reason for.
fn wake_of(event: &Event) -> Option<Wake> {
    match event {
        Event::Neighbour(n) | Event::NeighbourGone(n) => Some(Wake::Neighbour((n.index, n.addr))),
        // Pods come and go all the time, and nothing of the node's own depends on their devices: to look at everything for each of
        // them would make every ADD slower by every pod that is there.
        Event::Link(l) | Event::LinkGone(l) if names::endpoint_of(&l.name).is_some() => None,
        _ => Some(Wake::Kernel),
    }
}

/// What an event says of pods' devices.
fn gone_of(event: &Event) -> Option<Gone> {
    match event {
        Event::LinkGone(l) if names::endpoint_of(&l.name).is_some() => Some(Gone::Device(l.index)),
        Event::Overrun => Some(Gone::Unknown),
        _ => None,
    }
}

/// Starts the threads. They end with the process, or when the answer is dropped and the next event comes. `gone` is told which pods'
/// devices are gone.
pub fn start(
    tables: Arc<Tables>,
    facts: Facts,
    devices: Vec<String>,
    gone: mpsc::Sender<Gone>,
) -> Result<Stop, StartError> {
    // Before the first listing, so that nothing is missed between.
    let (monitor, stop) = Monitor::open()?;
    let hops = NextHops::new(Arc::clone(&tables));
    let mut watch = Watch {
        socket: Socket::open()?,
        hops,
        tables: Arc::clone(&tables),
        facts: facts.clone(),
        devices,
        chosen: false,
    };
    let (tx, rx) = mpsc::channel();
    let from_kernel = tx.clone();
    thread::Builder::new().name("netlink-events".into()).spawn(move || {
        for event in monitor {
            let wake = match event {
                Ok(event) => {
                    if let Some(which) = gone_of(&event) {
                        // Nobody is to be told while the agent stops.
                        let _told = gone.send(which);
                    }
                    wake_of(&event)
                }
                Err(e) => {
                    error!(error = %error_chain(&e), "the kernel's events cannot be read; looking every {CONFIRM_EVERY:?}");
                    return;
                }
            };
            let Some(wake) = wake else { continue };
            if from_kernel.send(wake).is_err() {
                return;
            }
        }
    })?;
    for v6 in [false, true] {
        listen(v6, tx.clone())?;
    }
    thread::Builder::new().name("node-changes".into()).spawn(move || {
        let mut last = None;
        loop {
            let now = tables.wait_for(Duration::MAX, |c| (Some(&c.nodes) != last.as_ref()).then(|| c.nodes.clone()));
            if now.is_some() {
                last = now;
            }
            if tx.send(Wake::Nodes).is_err() {
                return;
            }
        }
    })?;
    thread::Builder::new().name("node-watch".into()).spawn(move || watch.run(&rx))?;
    Ok(stop)
}

/// Hears of smaller path MTUs. Without, which a kernel without IPv6 is, they are noticed by the regular look.
fn listen(v6: bool, wakes: mpsc::Sender<Wake>) -> io::Result<()> {
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut listener = match path_mtu::Listener::open(v6) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, family, "cannot hear of smaller path MTUs; looking every {CONFIRM_EVERY:?}");
            return Ok(());
        }
    };
    let heard = move || loop {
        match listener.next() {
            Ok(Some(to)) if wakes.send(Wake::Path(to)).is_err() => return,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                error!(%error, family, "smaller path MTUs are no longer heard of; looking every {CONFIRM_EVERY:?}");
                return;
            }
        }
    };
    thread::Builder::new().name(format!("path-mtu-{family}")).spawn(heard).map(drop)
}

/// The source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Netlink fails.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread.
    #[error("start a thread")]
    Thread(#[from] io::Error),
}

struct Watch {
    socket: Socket,
    hops: NextHops,
    tables: Arc<Tables>,
    facts: Facts,
    /// `--device`; empty: those with the node's addresses.
    devices: Vec<String>,
    /// Devices have been chosen by what the Node object says.
    chosen: bool,
}

impl Watch {
    fn run(&mut self, wakes: &mpsc::Receiver<Wake>) {
        let mut look = Look { all: true, ..Look::default() };
        loop {
            match self.look(&look) {
                Err(e) => {
                    warn!(error = %e, "cannot read the kernel's network configuration; trying again at the next change");
                }
                // Until then it has not said by which devices pods leave.
                Ok(()) if look.all && self.chosen => self.tables.mark_synced(Source::Netlink),
                Ok(()) => {}
            }
            look = Look::default();
            match wakes.recv_timeout(CONFIRM_EVERY) {
                Ok(wake) => look.add(wake),
                Err(mpsc::RecvTimeoutError::Timeout) => look = Look { all: true, confirm: true, ..look },
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            // A stream of events without a gap must not keep it from looking: others can send some.
            let enough = Instant::now() + GATHER_AT_MOST;
            while Instant::now() < enough
                && let Ok(wake) = wakes.recv_timeout(GATHER)
            {
                look.add(wake);
            }
        }
    }

    fn look(&mut self, look: &Look) -> Result<(), NetlinkError> {
        if look.all {
            self.addresses()?;
        }
        let targets: BTreeSet<IpAddr> = {
            let contents = self.tables.read();
            self.facts.tunnels(&contents).into_iter().collect()
        };
        let led = self.devices_of_hops();
        let hops = &mut self.hops;
        hops.keep_only(&targets);
        let concerned = if look.all { targets } else { &hops.behind(&look.neighbours) | &(&targets & &look.paths) };
        // One that cannot be read keeps no other from being read.
        let mut result = Ok(());
        for to in concerned {
            result = result.and(hops.follow(&mut self.socket, to, look.confirm));
        }
        // The choice of devices depends on them.
        if self.devices_of_hops() != led {
            result = result.and(self.addresses());
        }
        result
    }

    /// Devices by which other nodes are reached.
    fn devices_of_hops(&self) -> BTreeSet<u32> {
        self.tables.read().next_hops.values().map(|hop| hop.ifindex).collect()
    }

    /// Own addresses, and the devices that carry those of the Node object.
    fn addresses(&mut self) -> Result<(), NetlinkError> {
        let links = link::list(&mut self.socket)?;
        let addresses = addr::list(&mut self.socket)?;
        let global = |a: &IpAddr| match a {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
            IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
        };
        let own: BTreeSet<IpAddr> = addresses.iter().map(|a| a.net.addr()).filter(global).collect();
        let routes = route::list(&mut self.socket)?;
        let (internal, next_hops) = {
            let contents = self.tables.read();
            let internal = contents.nodes.get(&self.facts.node).map(|n| n.internal_ips.clone()).unwrap_or_default();
            (internal, contents.next_hops.values().map(|hop| hop.ifindex).collect())
        };
        let choice = Choice {
            links: &links,
            addresses: &addresses,
            routes: &routes,
            internal: &internal,
            next_hops: &next_hops,
            named: &self.devices,
        };
        // While the Node object is not known nobody can say where other nodes are.
        let devices = if internal.is_empty() && self.devices.is_empty() { BTreeMap::new() } else { choice.devices() };
        self.tables.set_node_addresses(own);
        self.tables.set_devices(devices);
        self.chosen = !internal.is_empty();
        Ok(())
    }
}

/// What to look at.
#[derive(Default)]
struct Look {
    all: bool,
    confirm: bool,
    neighbours: BTreeSet<Link>,
    paths: BTreeSet<IpAddr>,
}
impl Look {
    fn add(&mut self, wake: Wake) {
        match wake {
            Wake::Kernel | Wake::Nodes => self.all = true,
            Wake::Neighbour(link) => drop(self.neighbours.insert(link)),
            Wake::Path(to) => drop(self.paths.insert(to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_device_is_no_reason_to_look_at_the_node() {
        let link = |name: &str| crate::netlink::link::Link {
            index: 7,
            name: name.into(),
            mac: None,
            mtu: 1500,
            kind: Some("veth".into()),
            up: true,
            carrier: true,
            link: None,
            link_netns: None,
            master: None,
            alias: None,
            vxlan_port: None,
        };
        assert!(wake_of(&Event::Link(link("weft2a"))).is_none());
        assert!(wake_of(&Event::LinkGone(link("weft2a"))).is_none());
        for name in [names::HOST, names::VXLAN, "eth0", "docker0"] {
            assert!(matches!(wake_of(&Event::Link(link(name))), Some(Wake::Kernel)), "{name}");
        }
        assert!(matches!(wake_of(&Event::Overrun), Some(Wake::Kernel)));
    }
}
