//! What changes: devices, neighbours, addresses and routes, as the kernel reports it.
use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        setsockopt,
        sockopt::{RcvBuf, RcvBufForce},
    },
};

use super::{
    NetlinkError,
    addr::{self, Address},
    link::{self, Link},
    neigh::{self, Neighbour},
    netns,
    route::{self, Route},
    socket::{bodies, read_datagram},
};

/// Multicast groups (`RTNLGRP_…`): links, neighbours, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
const GROUPS: [u32; 6] = [1, 3, 5, 9, 7, 11];
/// Room for bursts: the kernel drops reports, and says so, when more than this waits to be read.
const KERNEL_BUFFER: usize = 4 * 1024 * 1024;

/// What is attempted, for errors.
const READ: &str = "read changes of the network configuration";

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A device is new or another than before.
    Link(Link),
    /// A device is gone.
    LinkGone(Link),
    /// A neighbour is new or another than before.
    Neighbour(Neighbour),
    /// A neighbour is gone.
    NeighbourGone(Neighbour),
    /// An address is new or another than before.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route of the main table is new or another than before.
    Route(Route),
    /// A route of the main table is gone.
    RouteGone(Route),
    /// Reports were lost, nobody knows which: list everything again.
    Overrun,
}

/// A blocking iterator of events; it ends when its [`Stop`] is dropped. Open it *before* listing what there is, or what changes
/// in between is missed.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
    stop: UnixStream,
    buffer: Vec<u8>,
    waiting: VecDeque<Event>,
}

/// Ends a [`Monitor`] when dropped.
#[derive(Debug)]
pub struct Stop {
    // Its end closes the other side, which poll sees.
    _hold: UnixStream,
}

impl Monitor {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// When the sockets can not be made.
    pub fn open() -> Result<(Self, Stop), NetlinkError> {
        Self::with_buffer(KERNEL_BUFFER)
    }

    /// With room for `bytes` of unread reports.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_buffer(bytes: usize) -> Result<(Self, Stop), NetlinkError> {
        let open = || -> io::Result<_> {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            // Root may have more than net.core.rmem_max; others get what that allows.
            setsockopt(&socket, RcvBufForce, &bytes).or_else(|_| setsockopt(&socket, RcvBuf, &bytes))?;
            socket.set_non_blocking(true)?;
            let (stop, hold) = UnixStream::pair()?;
            Ok((socket, stop, hold))
        };
        let (socket, stop, hold) = open().map_err(NetlinkError::socket("watch the network configuration"))?;
        let buffer = Vec::with_capacity(64 * 1024);
        Ok((Self { socket, stop, buffer, waiting: VecDeque::new() }, Stop { _hold: hold }))
    }

    /// In the network namespace behind `netns`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when it can not be entered.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<(Self, Stop), NetlinkError> {
        netns::in_netns(netns, Self::open).map_err(NetlinkError::socket("enter the network namespace"))?
    }

    /// The next event; none when none comes within `limit`, or it was stopped.
    ///
    /// # Errors
    /// What the socket says.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Event>, NetlinkError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last part of a millisecond is waited for and not polled away.
            let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            if !self.fill(left).map_err(NetlinkError::socket(READ))? {
                return Ok(None);
            }
        }
    }

    /// Reads one datagram into the queue. False when it was stopped or the time is up.
    fn fill(&mut self, limit: PollTimeout) -> io::Result<bool> {
        if !self.readable(limit)? {
            return Ok(false);
        }
        match read_datagram(&self.socket, &mut self.buffer) {
            Ok(_) => self.waiting.extend(bodies(&self.buffer).filter_map(|(kind, payload)| event(kind, payload))),
            Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.waiting.push_back(Event::Overrun),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    /// Waits until there is something to read. False when it was stopped or the time is up.
    fn readable(&self, limit: PollTimeout) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            // Nothing is ever written here: the other side's end shows as a hang-up.
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut fds, limit) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
                Ok(0) => return Ok(false),
                Ok(_) => {
                    let [_, stop] = &fds;
                    return Ok(!stop.any().unwrap_or(false));
                }
            }
        }
    }
}

impl Iterator for Monitor {
    type Item = Result<Event, NetlinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(Ok(event));
            }
            match self.fill(PollTimeout::NONE) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => return Some(Err(NetlinkError::socket(READ)(e))),
            }
        }
    }
}

fn event(kind: u16, payload: &[u8]) -> Option<Event> {
    match kind {
        link::NEW => Link::parse(payload).map(Event::Link),
        link::DEL => Link::parse(payload).map(Event::LinkGone),
        neigh::NEW => Neighbour::parse(payload).map(Event::Neighbour),
        neigh::DEL => Neighbour::parse(payload).map(Event::NeighbourGone),
        addr::NEW => Address::parse(payload).map(Event::Address),
        addr::DEL => Address::parse(payload).map(Event::AddressGone),
        route::NEW => Route::parse(payload).map(Event::Route),
        route::DEL => Route::parse(payload).map(Event::RouteGone),
        _ => None,
    }
}
