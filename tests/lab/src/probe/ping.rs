//! Echo requests.
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

use super::{Family, LIMIT, Place, Reply};

/// Tells our answers from others': raw sockets see them all.
static NEXT: AtomicU16 = AtomicU16::new(1);

/// An echo request and its answer.
///
/// # Errors
/// When no answer comes within [`LIMIT`].
pub fn ping(from: &Place, to: &Place, family: Family) -> Result<Reply> {
    Pinger::open(from, to, family)?.ask()
}

/// Sends echo requests under one identifier: one flow.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    family: Family,
    to: IpAddr,
    id: u16,
    number: u16,
    what: String,
}

impl Pinger {
    /// Opens its socket.
    ///
    /// # Errors
    /// When the kernel refuses, or `to` has no address of this family.
    pub fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let what = format!("ping {family} {} → {}", from.name, to.name);
        let address = to.address(family)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        // A raw socket, as root may have one: the socket for unprivileged pings would need a sysctl in the pod.
        let socket = from.run(|| open(family).map_err(io::Error::from)).with_context(|| what.clone())?;
        Ok(Self { socket, family, to: address, id, number: 0, what })
    }

    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The next request and its answer.
    ///
    /// # Errors
    /// When no answer comes within [`LIMIT`].
    pub fn ask(&mut self) -> Result<Reply> {
        self.number = self.number.wrapping_add(1);
        let what = || format!("{} number {}", self.what, self.number);
        let begin = Instant::now();
        let target = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        let packet = request(self.family, self.id, self.number);
        sendto(self.socket.as_raw_fd(), &packet, &target, MsgFlags::empty()).with_context(what)?;
        self.await_answer().with_context(|| format!("{}: no answer", what()))?;
        Ok(Reply { took: begin.elapsed(), seen: None })
    }

    fn await_answer(&self) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 1500];
        while deadline.saturating_duration_since(Instant::now()) > Duration::ZERO {
            match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(sender))) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    if is_answer(packet, self.family, self.id, self.number) && ip_of(&sender) == Some(self.to) {
                        return Ok(());
                    }
                }
                Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn open(family: Family) -> nix::Result<OwnedFd> {
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::Inet, SockProtocol::Icmp),
        Family::V6 => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // Packets of others wake us too; they are counted against the deadline below.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, 20_000))?;
    Ok(socket)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}

/// Echo request. The kernel writes the checksum of IPv6.
fn request(family: Family, id: u16, number: u16) -> Vec<u8> {
    let kind = match family {
        Family::V4 => 8,
        Family::V6 => 128,
    };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend(b"weft lab ping: does it come back");
    if family == Family::V4 {
        let [high, low] = checksum(&packet).to_be_bytes();
        if let [_, _, a, b, ..] = packet.as_mut_slice() {
            (*a, *b) = (high, low);
        }
    }
    packet
}

fn is_answer(packet: &[u8], family: Family, id: u16, number: u16) -> bool {
    // The raw socket of IPv4 gives the IP header too.
    let (message, kind) = match family {
        Family::V4 => {
            let header = packet.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
            (packet.get(header..).unwrap_or_default(), 0)
        }
        Family::V6 => (packet, 129),
    };
    let [id, number] = [id, number].map(u16::to_be_bytes);
    message.first() == Some(&kind) && message.get(4..6) == Some(&id) && message.get(6..8) == Some(&number)
}

/// Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|w| w.iter().fold(0, |a, b| (a << 8) | u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_up_to_zero() {
        assert_eq!(checksum(&request(Family::V4, 0x1234, 1)), 0);
    }

    #[test]
    fn only_the_answer_to_our_request_is_taken() {
        let mut answer = request(Family::V6, 7, 2);
        assert!(!is_answer(&answer, Family::V6, 7, 2), "the request itself, on loopback");
        answer[0] = 129;
        assert!(is_answer(&answer, Family::V6, 7, 2));
        assert!(!is_answer(&answer, Family::V6, 8, 2));
        assert!(!is_answer(&answer, Family::V6, 7, 1), "an answer to a former one");
        assert!(!is_answer(&[], Family::V4, 7, 2));
    }
}
