//! Addresses of devices.
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeader, AddressHeaderFlags, AddressMessage},
};

pub use netlink_packet_route::address::{AddressFlags as Flags, AddressScope as Scope};

use super::{NetlinkError, Request, Socket, read};

/// `RTM_NEWADDR`.
pub(super) const NEW: u16 = 20;
/// `RTM_DELADDR`.
pub(super) const DEL: u16 = 21;
/// Length of `struct ifaddrmsg`.
const HEADER: usize = 8;

/// An address of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The device's interface index.
    pub index: u32,
    /// The address, with the length of its network's prefix.
    pub net: IpNet,
    /// How far it is valid.
    pub scope: Scope,
    /// `IFA_F_…`: permanent, tentative, deprecated …
    pub flags: Flags,
}

impl Address {
    /// From the body of an `RTM_NEWADDR` or `RTM_DELADDR` message.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        // From include/uapi/linux/if_addr.h.
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const FLAGS: u16 = 8;

        let header = AddressHeader::parse(payload).ok()?;
        let (mut address, mut local) = (None, None);
        let mut flags = Flags::from_bits_retain(header.flags.bits().into());
        for (kind, value) in read::attributes(payload, HEADER) {
            match kind {
                ADDRESS => address = read::address(value),
                LOCAL => local = read::address(value),
                FLAGS => flags = Flags::from_bits_retain(read::number(value)?),
                _ => {}
            }
        }
        // They differ on point-to-point links, where ADDRESS is the other side's.
        let net = IpNet::new(local.or(address)?, header.prefix_len).ok()?;
        Some(Self { index: header.index, net, scope: header.scope, flags })
    }
}

/// Gives a device an address. An IPv6 address is usable at once: duplicate detection is off for it.
pub fn add(index: u32, net: IpNet) -> Request {
    let message = RouteNetlinkMessage::NewAddress(message(index, net));
    Request::new(format!("add the address {net} to device {index}"), message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Takes an address from a device.
pub fn delete(index: u32, net: IpNet) -> Request {
    let message = RouteNetlinkMessage::DelAddress(message(index, net));
    Request::new(format!("delete the address {net} from device {index}"), message, 0)
}

/// All addresses of the socket's namespace, both families.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list(socket: &mut Socket) -> Result<Vec<Address>, NetlinkError> {
    let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let request = Request::new("list the addresses", message, NLM_F_DUMP);
    socket.dump(&request, |kind, payload| (kind == NEW).then(|| Address::parse(payload)).flatten())
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net.addr() {
        IpAddr::V4(_) => message.header.family = AddressFamily::Inet,
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
    }
    message
}
