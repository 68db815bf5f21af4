//! Smaller path MTUs, when the kernel learns them.
//!
//! The kernel makes a route exception of an ICMP "too big", but tells nobody over netlink. The ICMP messages themselves are what can be
//! heard: raw sockets get copies, and a filter in the kernel lets nothing else through. What they say is not believed; they are only
//! the reason to ask the kernel for its route again.
use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Enough of a message to hold all headers up to the address in it.
const READ: usize = 256;

/// Who listens to one family's messages.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    v6: bool,
}

impl Listener {
    /// Opens the socket in the thread's namespace.
    pub(super) fn open(v6: bool) -> io::Result<Self> {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.attach_filter(if v6 { &V6 } else { &V4 })?;
        Ok(Self { socket, v6 })
    }

    /// Blocks until a packet to somebody was too big, and says to whom; none if the message does not say.
    pub(super) fn next(&mut self) -> io::Result<Option<IpAddr>> {
        let mut buffer = [0; READ];
        let length = self.socket.read(&mut buffer)?;
        let message = buffer.get(..length).unwrap_or_default();
        Ok(if self.v6 { destination_v6(message) } else { destination_v4(message) })
    }
}

// The codes of classic BPF, as in include/uapi/linux/bpf_common.h.
/// Index register = length of the IPv4 header at the constant.
const HEADER_LENGTH: u16 = 0xb1;
/// Load the byte at index register + constant.
const BYTE_INDEXED: u16 = 0x50;
/// Load the byte at the constant.
const BYTE: u16 = 0x30;
/// Compare what was loaded.
const IS: u16 = 0x15;
/// End; the constant says how much of the packet to keep.
const RETURN: u16 = 0x06;

/// Type 3 "unreachable", code 4 "fragmentation needed"; an IPv4 raw socket's packets begin with the IP header.
static V4: [SockFilter; 7] = [
    SockFilter::new(HEADER_LENGTH, 0, 0, 0),
    SockFilter::new(BYTE_INDEXED, 0, 0, 0),
    SockFilter::new(IS, 0, 3, 3),
    SockFilter::new(BYTE_INDEXED, 0, 0, 1),
    SockFilter::new(IS, 0, 1, 4),
    SockFilter::new(RETURN, 0, 0, u32::MAX),
    SockFilter::new(RETURN, 0, 0, 0),
];
/// Type 2 "packet too big"; an IPv6 raw socket's packets begin after the IP header.
static V6: [SockFilter; 4] = [
    SockFilter::new(BYTE, 0, 0, 0),
    SockFilter::new(IS, 0, 1, 2),
    SockFilter::new(RETURN, 0, 0, u32::MAX),
    SockFilter::new(RETURN, 0, 0, 0),
];

/// Destination of the packet that an IPv4 message with its IP header quotes.
fn destination_v4(message: &[u8]) -> Option<IpAddr> {
    let quoted = usize::from(message.first()? & 0xf) * 4 + 8;
    let address: [u8; 4] = message.get(quoted + 16..quoted + 20)?.try_into().ok()?;
    Some(Ipv4Addr::from(address).into())
}

/// Destination of the packet that an ICMPv6 message quotes.
fn destination_v6(message: &[u8]) -> Option<IpAddr> {
    let address: [u8; 16] = message.get(8 + 24..8 + 40)?.try_into().ok()?;
    Some(Ipv6Addr::from(address).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_of_the_quoted_packet_is_found_behind_ip_options_too() {
        for options in [0, 4, 40] {
            let mut message = vec![0; 20 + options + 8 + 20];
            message[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
            let end = message.len();
            message[end - 4..].copy_from_slice(&[192, 0, 2, 7]);
            assert_eq!(destination_v4(&message), Some([192, 0, 2, 7].into()));
            assert_eq!(destination_v4(&message[..end - 1]), None, "cut short");
        }
        let to: Ipv6Addr = "fd99::2".parse().unwrap();
        let mut message = vec![0; 48];
        message[32..].copy_from_slice(&to.octets());
        assert_eq!(destination_v6(&message), Some(to.into()));
        assert_eq!(destination_v6(&message[..47]), None, "cut short");
        assert_eq!(destination_v4(&[]), None);
    }
}
