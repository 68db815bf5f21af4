//! Router advertisements (RFC 4861 section 4.2): how a hostile node comes to its IPv6 address.
use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result};
use cni_agent::netlink::netns;
use ipnet::Ipv6Net;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt::Ipv6Ttl,
};

/// What a router says. Routers of the world say the like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// On the link, and to make an address from.
    pub prefix: Ipv6Net,
    /// Seconds that the prefix is valid; 0 takes the on-link route away (and an address after two hours at the earliest).
    pub valid: u32,
    /// Seconds that the sender is a default router; 0: it is none.
    pub router: u16,
}

impl Advertisement {
    /// Of a prefix, for a month, by somebody who is a default router for the longest time that there is.
    #[must_use]
    pub const fn of(prefix: Ipv6Net) -> Self {
        Self { prefix, valid: 30 * 24 * 3600, router: 9000 }
    }

    /// The ICMPv6 message. The kernel writes its checksum.
    fn message(&self) -> Vec<u8> {
        // Type 134, hop limit 64, no flags.
        let mut message = vec![134, 0, 0, 0, 64, 0];
        message.extend(self.router.to_be_bytes());
        // Reachable and retransmission times are the host's own business.
        message.extend([0; 8]);
        // Prefix information: 4 times 8 bytes, on the link (L) and for addresses (A).
        message.extend([3, 4, self.prefix.prefix_len(), 0xc0]);
        message.extend(self.valid.to_be_bytes());
        message.extend(self.valid.to_be_bytes());
        message.extend([0; 4]);
        message.extend(self.prefix.network().octets());
        message
    }

    /// Sends it out of a device to one host, by its link-local address. The device needs a link-local address of its own.
    pub(super) fn send(&self, netns: BorrowedFd<'_>, device: u32, to: Ipv6Addr) -> Result<()> {
        let send = || -> io::Result<()> {
            let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
            // A host believes it only from a neighbour, which nobody further away can pretend to be (RFC 4861 section 6.1.2).
            setsockopt(&socket, Ipv6Ttl, &255)?;
            let target = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, device));
            sendto(socket.as_raw_fd(), &self.message(), &target, MsgFlags::empty())?;
            Ok(())
        };
        let what = || format!("send a router advertisement of {} to {to}", self.prefix);
        netns::in_netns(netns, send).and_then(|sent| sent).with_context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_prefix_where_rfc_4861_wants_it() {
        let message = Advertisement::of("fd99::/64".parse().unwrap()).message();
        assert_eq!(message.len(), 16 + 32);
        assert_eq!((message[0], message[16], message[17], message[18]), (134, 3, 4, 64));
        assert_eq!(message[32..34], [0xfd, 0x99]);
    }
}
