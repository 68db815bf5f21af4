//! Whole frames: what a device sends and receives, and frames that no honest stack would build.
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
            socket,
            sockopt::{RcvBufForce, ReceiveTimeout},
        },
        time::TimeVal,
    },
};

use super::Place;

/// Room for all that a test lets pass between two looks, bytes.
const BACKLOG: usize = 8 << 20;
/// The largest frame that a device hands on: a GSO packet and its headers.
const LARGEST: usize = 66_000;

/// A device, seen from below: it hears every frame from now on, both ways, and sends whole frames.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    device: LinkAddr,
    what: String,
}

impl Wire {
    /// Opens `device` in the network namespace of `place`.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn open(place: &Place, device: &str) -> Result<Self> {
        let what = format!("device {device} of {}", place.name);
        let (socket, device) = place
            .run(|| {
                let find = || {
                    getifaddrs()?
                        .filter(|i| i.interface_name == device)
                        .find_map(|i| i.address?.as_link_addr().copied())
                        .ok_or(Errno::ENODEV)
                };
                let address = find()?;
                let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
                setsockopt(&raw, RcvBufForce, &BACKLOG)?;
                // Frames of others wake us too; they are counted against the caller's deadline.
                setsockopt(&raw, ReceiveTimeout, &TimeVal::new(0, 20_000))?;
                bind(raw.as_raw_fd(), &address)?;
                Ok((raw, address))
            })
            .with_context(|| format!("open {what}"))?;
        Ok(Self { socket, device, what })
    }

    /// Its MAC.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.device.addr().unwrap_or_default()
    }

    /// Sends a frame. When this returns, a veth's other end has had it.
    ///
    /// # Errors
    /// When the device refuses it, as one longer than its MTU.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let what = || format!("send a frame of {} bytes on {}", frame.len(), self.what);
        sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty()).with_context(what).map(drop)
    }

    /// What `choose` makes of the first frame that it does not refuse, of those since the last call.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn hear<T>(&self, limit: Duration, mut choose: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let what = || format!("wait for a frame on {}", self.what);
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; LARGEST];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(chosen) = choose(buffer.get(..length).unwrap_or_default()) {
                        return Ok(chosen);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => return Err(e).with_context(what),
            }
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut)).with_context(what);
            }
        }
    }

    /// Hands over every frame since the last call.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&self, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = vec![0; LARGEST];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => take(buffer.get(..length).unwrap_or_default()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(e) => return Err(e).with_context(|| format!("take the frames of {}", self.what)),
            }
        }
    }
}
