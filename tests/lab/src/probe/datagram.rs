//! UDP datagrams with what only some applications ask for: segmentation by the kernel, and a traffic class.
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
        sockopt::{IpRecvTos, Ipv4Tos, Ipv6RecvTClass, Ipv6TClass, Ipv6Ttl},
    },
};

use super::{Family, LIMIT, Place};

/// A UDP socket and the one that it sends to, both in this process.
#[derive(Debug)]
pub struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
    family: Family,
    what: String,
}

/// A datagram that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Its contents.
    pub payload: Vec<u8>,
    /// DSCP and ECN of its IP header.
    pub tos: Option<u8>,
}

impl Datagrams {
    /// Sockets at `from` and `to`.
    ///
    /// # Errors
    /// When one of them can not be opened.
    pub fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let what = format!("UDP {family} {} → {}", from.name, to.name);
        let address = to.address(family)?;
        let bound = |place: &Place| place.run(|| UdpSocket::bind(SocketAddr::new(family.any(), 0)));
        let (client, server) = (bound(from)?, bound(to)?);
        let ready = || -> io::Result<()> {
            server.set_read_timeout(Some(LIMIT))?;
            match family {
                Family::V4 => setsockopt(&server, IpRecvTos, &true)?,
                Family::V6 => setsockopt(&server, Ipv6RecvTClass, &true)?,
            }
            client.connect(SocketAddr::new(address, server.local_addr()?.port()))
        };
        ready().with_context(|| what.clone())?;
        Ok(Self { client, server, family, what })
    }

    /// Where the server listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn port(&self) -> Result<u16> {
        Ok(self.server.local_addr().with_context(|| self.what.clone())?.port())
    }

    /// Sends with these DSCP and ECN bits from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_tos(&self, tos: u8) -> Result<()> {
        let tos = i32::from(tos);
        match self.family {
            Family::V4 => setsockopt(&self.client, Ipv4Tos, &tos),
            Family::V6 => setsockopt(&self.client, Ipv6TClass, &tos),
        }
        .with_context(|| format!("{}: set the traffic class to {tos:#x}", self.what))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, payload: &[u8]) -> Result<()> {
        self.client.send(payload).with_context(|| self.what.clone()).map(drop)
    }

    /// Hands the kernel all of `payload` in one call, to be sent as datagrams of `size` bytes (UDP_SEGMENT), as QUIC does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send_segmented(&self, payload: &[u8], size: u16) -> Result<()> {
        let (data, ask) = ([IoSlice::new(payload)], [ControlMessage::UdpGsoSegments(&size)]);
        sendmsg::<SockaddrStorage>(self.client.as_raw_fd(), &data, &ask, MsgFlags::empty(), None)
            .with_context(|| format!("{}: {} bytes in segments of {size}", self.what, payload.len()))
            .map(drop)
    }

    /// The next datagram; none when [`LIMIT`] passes without one.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn receive(&self) -> Result<Option<Arrived>> {
        self.take(MsgFlags::empty())
    }

    /// The next datagram if it is there already.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn pending(&self) -> Result<Option<Arrived>> {
        self.take(MsgFlags::MSG_DONTWAIT)
    }

    fn take(&self, flags: MsgFlags) -> Result<Option<Arrived>> {
        let (mut buffer, mut control) = (vec![0; 65_536], cmsg_space!(i32));
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let (length, tos) =
            match recvmsg::<SockaddrStorage>(self.server.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(e) => return Err(e).with_context(|| self.what.clone()),
                Ok(message) => {
                    let tos = message.cmsgs().with_context(|| self.what.clone())?.find_map(|m| match m {
                        ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
                        ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
                        _ => None,
                    });
                    (message.bytes, tos)
                }
            };
        buffer.truncate(length);
        Ok(Some(Arrived { payload: buffer, tos }))
    }
}

/// Makes a socket's packets live for so many hops.
///
/// # Errors
/// When the kernel refuses.
pub fn set_ttl(socket: &UdpSocket, family: Family, ttl: u8) -> io::Result<()> {
    match family {
        Family::V4 => socket.set_ttl(u32::from(ttl)),
        Family::V6 => Ok(setsockopt(socket, Ipv6Ttl, &i32::from(ttl))?),
    }
}
