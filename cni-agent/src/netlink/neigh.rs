//! Neighbours: which MAC address an address on the link has.
use std::net::IpAddr;

use cni_common::net::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage},
};

pub use netlink_packet_route::neighbour::NeighbourState as State;

use super::{NetlinkError, Request, Socket, read};

/// `RTM_NEWNEIGH`.
pub(super) const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
pub(super) const DEL: u16 = 29;
/// Length of `struct ndmsg`.
const HEADER: usize = 12;

/// A neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The device's interface index.
    pub index: u32,
    /// The neighbour's address.
    pub addr: IpAddr,
    /// Its MAC address; none while it is not known.
    pub mac: Option<Mac>,
    /// How much that is worth.
    pub state: State,
}

impl Neighbour {
    /// The MAC address, unless the state says that it is not to be used.
    #[must_use]
    pub fn usable(&self) -> Option<Mac> {
        match self.state {
            State::Permanent | State::Noarp | State::Reachable | State::Probe | State::Stale | State::Delay => self.mac,
            _ => None,
        }
    }

    /// From the body of an `RTM_NEWNEIGH` or `RTM_DELNEIGH` message; none for bridge entries.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        // From include/uapi/linux/neighbour.h.
        const DST: u16 = 1;
        const LLADDR: u16 = 2;

        let header = NeighbourHeader::parse(payload).ok()?;
        if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
            return None;
        }
        let (mut addr, mut mac) = (None, None);
        for (kind, value) in read::attributes(payload, HEADER) {
            match kind {
                DST => addr = read::address(value),
                LLADDR => mac = read::mac(value),
                _ => {}
            }
        }
        Some(Self { index: header.ifindex, addr: addr?, mac, state: header.state })
    }
}

/// Writes an entry that never expires and is never asked for on the link.
pub fn set_permanent(index: u32, addr: IpAddr, mac: Mac) -> Request {
    let mut message = message(index, addr);
    message.header.state = State::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.bytes.to_vec()));
    let what = format!("set the permanent neighbour {addr} of device {index} to {mac}");
    Request::new(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Makes the kernel ask for the neighbour's MAC address, as if a packet were to be sent to it.
pub fn resolve(index: u32, addr: IpAddr) -> Request {
    let mut message = message(index, addr);
    message.header.flags = NeighbourFlags::Use;
    let what = format!("resolve the neighbour {addr} of device {index}");
    Request::new(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

/// Deletes an entry.
pub fn delete(index: u32, addr: IpAddr) -> Request {
    let what = format!("delete the neighbour {addr} of device {index}");
    Request::new(what, RouteNetlinkMessage::DelNeighbour(message(index, addr)), 0)
}

/// All entries of the socket's namespace, both families.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list(socket: &mut Socket) -> Result<Vec<Neighbour>, NetlinkError> {
    let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let request = Request::new("list the neighbours", message, NLM_F_DUMP);
    socket.dump(&request, parse_new)
}

/// One entry; none if there is none.
///
/// # Errors
/// As [`Socket`]'s.
pub fn lookup(socket: &mut Socket, index: u32, addr: IpAddr) -> Result<Option<Neighbour>, NetlinkError> {
    let what = format!("look the neighbour {addr} of device {index} up");
    match socket.get(&Request::new(what, RouteNetlinkMessage::GetNeighbour(message(index, addr)), 0), parse_new) {
        Ok(neighbour) => Ok(Some(neighbour)),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_new(kind: u16, payload: &[u8]) -> Option<Neighbour> {
    (kind == NEW).then(|| Neighbour::parse(payload)).flatten()
}

fn message(index: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    let (family, destination) = match addr {
        IpAddr::V4(a) => (AddressFamily::Inet, NeighbourAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, NeighbourAddress::Inet6(a)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}
