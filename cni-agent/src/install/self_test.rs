//! The self-test: a network namespace of our own, wired like a pod, through which packets go.
//!
//! For each family that the node has pods and an InternalIP of: the probe forgets its gateway's MAC address, so that it has to ask
//! and [`from_pod`](crate::datapath::object::FROM_POD) to answer; a datagram goes from the node to the probe and one back; and
//! the probe answers an echo request. Nothing of it stays: the probe is disconnected before the test ends, whatever it came to, and
//! what a killed agent left is disconnected before the next one begins.
use std::{
    fmt,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use cni_plugin::{
    protocol::{PROTOCOL, Request, Verb},
    spec::CniError,
};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use crate::{
    cni::CniHandler,
    compile::Facts,
    endpoint::EndpointManager,
    ipam::Family,
    netlink::{self, NetlinkError, link, names::gateway_for, neigh, netns},
    tables::Tables,
};

/// The probe's container id: what a runtime gives is never this.
pub const CONTAINER: &str = "weft-self-test";
/// Its interface.
const IFNAME: &str = "eth0";
/// How long all packets of a test have.
const WITHIN: Duration = Duration::from_secs(2);
/// Tells our packets from others'.
const MARK: &[u8] = b"weft self-test";

/// What a test came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    /// The families that packets went through in.
    pub families: Vec<Family>,
    /// How long it took, wiring included.
    pub took: Duration,
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families: Vec<String> = self.families.iter().map(Family::to_string).collect();
        let went = if families.is_empty() {
            "wired".to_owned()
        } else {
            format!("packets went in {}", families.join(" and "))
        };
        write!(f, "{went}, {:.1} ms", self.took.as_secs_f64() * 1000.0)
    }
}

/// Why packets cannot be shown to go.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// There is no namespace to wire.
    #[error("make a network namespace for the self-test")]
    Namespace(#[source] io::Error),
    /// The probe could not be wired.
    #[error("wire the probe of the self-test: {0}")]
    Wire(CniError),
    /// The probe could not be disconnected.
    #[error("disconnect the probe of the self-test: {0}")]
    Unwire(CniError),
    /// The probe could not be looked into.
    #[error("look into the probe of the self-test")]
    Probe(#[source] NetlinkError),
    /// A packet was lost.
    #[error(
        "{what} did not arrive in {family} (self-test, {} s): `weft drops` says what Weft dropped, `weft doctor` what else may \
         have taken it", WITHIN.as_secs()
    )]
    Lost {
        /// Which.
        what: &'static str,
        /// Its family.
        family: Family,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
}

/// Shows that a pod on this node would have a network.
pub trait Probe: Send {
    /// Removes what a killed agent left of its probe.
    fn clear(&self);

    /// Tests.
    ///
    /// # Errors
    /// [`SelfTestError`]; nothing of the probe is left.
    fn run(&self) -> Result<Tested, SelfTestError>;
}

/// The test through the endpoint manager.
pub struct SelfTest {
    /// Wires the probe.
    pub endpoints: Arc<EndpointManager>,
    /// The Node object's source.
    pub tables: Arc<Tables>,
    /// Which node.
    pub facts: Facts,
}

impl Probe for SelfTest {
    fn clear(&self) {
        if let Err(e) = self.endpoints.del(&request(Verb::Del, String::new())) {
            warn!(error = %e, "cannot remove what an earlier self-test left; the next one tries again");
        }
    }

    fn run(&self) -> Result<Tested, SelfTestError> {
        let begin = Instant::now();
        let netns = netns::anonymous().map_err(SelfTestError::Namespace)?;
        // A path for the time of the test: the namespace goes with the file.
        let path = format!("/proc/{}/fd/{}", process::id(), netns.as_raw_fd());
        self.clear();
        let added = self.endpoints.add(&request(Verb::Add, path.clone())).map_err(SelfTestError::Wire)?;
        let addresses = added.ips.iter().map(|ip| ip.address.addr());
        let tested = self.packets(&netns, addresses);
        // Before anything is said of the test: it leaves nothing.
        self.endpoints.del(&request(Verb::Del, path.clone())).map_err(SelfTestError::Unwire)?;
        // Its addresses may be all that the node has.
        if !self.endpoints.await_deleted(&path, IFNAME, WITHIN) {
            warn!("the self-test's device is not deleted yet; its addresses are held back until it is");
        }
        Ok(Tested { families: tested?, took: begin.elapsed() })
    }
}

impl SelfTest {
    fn packets(&self, probe: &OwnedFd, addresses: impl Iterator<Item = IpAddr>) -> Result<Vec<Family>, SelfTestError> {
        let deadline = Instant::now() + WITHIN;
        let internal: Vec<IpAddr> =
            self.tables.read().nodes.get(&self.facts.node).map(|n| n.internal_ips.clone()).unwrap_or_default();
        let mut tested = Vec::new();
        for address in addresses {
            let family = Family::of(address);
            // Without an address of its own the node has nothing to send by; `weft doctor` names that.
            if !internal.iter().any(|own| Family::of(*own) == family) {
                continue;
            }
            forget_gateway(probe.as_fd(), address).map_err(SelfTestError::Probe)?;
            let lost = |what| move |source| SelfTestError::Lost { what, family, source };
            datagrams(probe.as_fd(), address, deadline).map_err(|(what, e)| lost(what)(e))?;
            echo(address, deadline).map_err(lost("the probe's answer to an echo request"))?;
            tested.push(family);
        }
        Ok(tested)
    }
}

fn request(command: Verb, netns: String) -> Request {
    Request {
        protocol: PROTOCOL,
        command,
        container_id: CONTAINER.into(),
        netns,
        ifname: IFNAME.into(),
        args: [].into(),
        // A network of its own: a runtime's GC is not about it.
        config: json!({"cniVersion": "1.1.0", "name": CONTAINER, "type": super::configs::PLUGIN}),
        ipam: None,
    }
}

/// A pod has its gateway's MAC address without asking. With that, its packets could reach the node past our program.
fn forget_gateway(probe: BorrowedFd<'_>, address: IpAddr) -> Result<(), NetlinkError> {
    let mut socket = netlink::Socket::open_in(probe)?;
    match link::by_name(&mut socket, IFNAME)? {
        Some(device) => socket.run(neigh::delete(device.index, gateway_for(address))),
        None => Ok(()),
    }
}

fn left(deadline: Instant) -> Option<Duration> {
    // Zero would mean: for ever.
    Some(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))
}

/// A datagram from the node to the probe, and one back. The error says which was lost.
fn datagrams(probe: BorrowedFd<'_>, address: IpAddr, deadline: Instant) -> Result<(), (&'static str, io::Error)> {
    const THERE: &str = "a datagram from the node to the probe";
    const BACK: &str = "a datagram from the probe to the node";
    let any = |address: IpAddr| SocketAddr::new(if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }, 0);
    let there = || {
        let server = netns::in_netns(probe, || UdpSocket::bind(SocketAddr::new(address, 0)))??;
        let client = UdpSocket::bind(any(address))?;
        client.connect(server.local_addr()?)?;
        client.send(MARK)?;
        Ok((receive(&server, deadline)?, server, client))
    };
    let back = |(from, server, client): (SocketAddr, UdpSocket, UdpSocket)| {
        server.send_to(MARK, from)?;
        receive(&client, deadline)
    };
    there().map_err(|e| (THERE, e)).and_then(|there| back(there).map_err(|e| (BACK, e))).map(drop)
}

/// A socket says "try again" when its time is over.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn receive(socket: &UdpSocket, deadline: Instant) -> io::Result<SocketAddr> {
    let mut buffer = [0; 64];
    loop {
        socket.set_read_timeout(left(deadline))?;
        let (length, from) = socket.recv_from(&mut buffer).map_err(late)?;
        if buffer.get(..length) == Some(MARK) {
            return Ok(from);
        }
    }
}

/// An echo request from the node, and the answer of the probe's kernel.
fn echo(address: IpAddr, deadline: Instant) -> io::Result<()> {
    let (domain, protocol, ask, answer, header) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // Connected: a raw socket sees all packets of its protocol, but then only those from there.
    socket.connect(&SocketAddr::new(address, 0).into())?;
    socket.send(&echo_request(ask))?;
    let mut buffer = [0; 128];
    loop {
        socket.set_read_timeout(left(deadline))?;
        let length = socket.read(&mut buffer).map_err(late)?;
        // Over IPv4 the IP header stands in front (raw(7)), without options in what a kernel answers.
        let message = buffer.get(header..length).unwrap_or_default();
        if message.first() == Some(&answer) && message.ends_with(MARK) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// The kernel writes the checksum of ICMPv6 (RFC 3542 section 3.1), not that of ICMP.
fn echo_request(kind: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    message.extend(MARK);
    let words = message.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16));
    message.splice(2..4, [(checksum >> 8) as u8, checksum as u8]);
    message
}
