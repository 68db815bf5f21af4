//! Probes: does a packet get from here to there, and back, and how fast?
//!
//! Both ends are sockets of this process, opened inside the namespaces. So a probe needs no program in the pod, and what it
//! measures is the way between the two.
mod asked;
mod datagram;
pub mod load;
mod paced;
mod ping;
mod stream;
mod wire;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
pub use asked::Asked;
use cni_agent::netlink::netns;
pub use datagram::{Arrived, Datagrams, set_ttl};
pub use paced::while_sending;
pub use ping::{Pinger, ping};
pub use stream::{Flow, tcp};
pub use wire::Wire;

/// A packet that has not come back by then is lost.
pub const LIMIT: Duration = Duration::from_millis(800);

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The address that stands for all of the host's.
    #[must_use]
    pub const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An end of a probe: a pod or a node.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it is called.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    netns: Arc<OwnedFd>,
}

impl Place {
    /// What is called `name` and lives in the network namespace called `netns`.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn new(name: &str, netns: &str, addresses: Vec<IpAddr>) -> Result<Self> {
        let fd = netns::open(netns::path_of(netns)).with_context(|| format!("open the network namespace of {name}"))?;
        Ok(Self { name: name.to_owned(), addresses, netns: Arc::new(fd) })
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Its address of this family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let of_family = |a: &&IpAddr| a.is_ipv4() == (family == Family::V4);
        self.addresses.iter().find(of_family).copied().with_context(|| format!("{} has no {family} address", self.name))
    }

    /// Runs `work` inside its network namespace.
    ///
    /// # Errors
    /// When that can not be entered, or what `work` says.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let what = || format!("work in the network namespace of {}", self.name);
        netns::in_netns(self.netns(), work).with_context(what)?.with_context(what)
    }
}

/// The packet came back.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// From the first packet sent to the answer's arrival.
    pub took: Duration,
    /// Whom the other end saw; none for echo requests, which its kernel answers.
    pub seen: Option<IpAddr>,
}

/// A datagram there and back.
///
/// # Errors
/// When it does not come back within [`LIMIT`]; the text says how far it came.
pub fn udp(from: &Place, to: &Place, family: Family) -> Result<Reply> {
    ask((from, family.any()), (to, family.any()), to.address(family)?)
}

/// A datagram there and back, asked from the address `source` (or whichever the stack takes, if it is the unspecified one) and answered
/// by a socket that is bound to the address `target`.
///
/// # Errors
/// As [`udp`], and when one of the addresses is not there.
pub fn udp_bound(from: &Place, source: IpAddr, to: &Place, target: IpAddr) -> Result<Reply> {
    ask((from, source), (to, target), target)
}

/// Between two sockets, each at a place and bound to an address.
fn ask((from, source): (&Place, IpAddr), (to, bound): (&Place, IpAddr), target: IpAddr) -> Result<Reply> {
    const ASK: &[u8] = b"weft asks";
    const ANSWER: &[u8] = b"weft answers";
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    let what = || format!("UDP {family} {} → {}", from.name, to.name);
    let bind = |place: &Place, address: IpAddr| {
        place.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(socket)
        })
    };
    let (client, server) = (bind(from, source).with_context(what)?, bind(to, bound).with_context(what)?);
    let target = SocketAddr::new(target, server.local_addr().with_context(what)?.port());
    client.connect(target).with_context(what)?;
    let mut buffer = [0; 64];
    let begin = Instant::now();
    client.send(ASK).with_context(what)?;
    let (length, peer) =
        server.recv_from(&mut buffer).with_context(|| format!("{}: the datagram did not arrive", what()))?;
    if buffer.get(..length) != Some(ASK) {
        bail!("{}: it arrived with other contents", what());
    }
    server.send_to(ANSWER, peer).with_context(what)?;
    let length = client.recv(&mut buffer).with_context(|| format!("{}: the answer did not come back", what()))?;
    if buffer.get(..length) != Some(ANSWER) {
        bail!("{}: the answer came back with other contents", what());
    }
    Ok(Reply { took: begin.elapsed(), seen: Some(peer.ip()) })
}
