//! Network devices.
use std::{
    num::NonZeroU32,
    os::fd::{AsRawFd, BorrowedFd},
};

use cni_common::net::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
        LinkHeader, LinkInfo, LinkLayerType, LinkMessage,
    },
};

use super::{NetlinkError, Request, Socket, read};

/// The loopback device has this index in every network namespace.
pub const LOOPBACK: u32 = 1;

/// `RTM_NEWLINK`.
pub(super) const NEW: u16 = 16;
/// `RTM_DELLINK`.
pub(super) const DEL: u16 = 17;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name, unique in its network namespace.
    pub name: String,
    /// MAC address; none if it is no Ethernet device.
    pub mac: Option<Mac>,
    /// Bytes above the Ethernet header.
    pub mtu: u32,
    /// Kind of virtual device ("veth", "vxlan", "bridge"); none for hardware and loopback.
    pub kind: Option<String>,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// The device below, or a veth's other end: an index in the namespace that [`link_netns`](Self::link_netns) names.
    pub link: Option<u32>,
    /// Number by which this namespace knows that of [`link`](Self::link); none if it is this one.
    pub link_netns: Option<i32>,
    /// Index of the bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// Free text (`ip link set alias`).
    pub alias: Option<String>,
    /// UDP port of a VXLAN device.
    pub vxlan_port: Option<u16>,
}

impl Link {
    /// From the body of an `RTM_NEWLINK` or `RTM_DELLINK` message.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        // From include/uapi/linux/if_link.h.
        const ADDRESS: u16 = 1;
        const IFNAME: u16 = 3;
        const MTU: u16 = 4;
        const LINK: u16 = 5;
        const MASTER: u16 = 10;
        const LINKINFO: u16 = 18;
        const IFALIAS: u16 = 20;
        const LINK_NETNSID: u16 = 37;
        const INFO_KIND: u16 = 1;
        const INFO_DATA: u16 = 2;
        const VXLAN_PORT: u16 = 15;

        let header = LinkHeader::parse(payload).ok()?;
        // The bridge code reports its ports in messages of its own family; a DELLINK of those is no device's end.
        if header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let mut link = Self {
            index: header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            kind: None,
            up: header.flags.contains(LinkFlags::Up),
            carrier: header.flags.contains(LinkFlags::LowerUp),
            link: None,
            link_netns: None,
            master: None,
            alias: None,
            vxlan_port: None,
        };
        for (kind, value) in read::attributes(payload, HEADER) {
            match kind {
                // Loopback has an address of that length too, and is none.
                ADDRESS if header.link_layer_type == LinkLayerType::Ether => link.mac = read::mac(value),
                IFNAME => link.name = read::text(value),
                MTU => link.mtu = read::number(value)?,
                LINK => link.link = read::number(value),
                MASTER => link.master = read::number(value),
                LINKINFO => {
                    let info = |wanted| read::nested(value).find(|(k, _)| *k == wanted).map(|(_, v)| v);
                    link.kind = info(INFO_KIND).map(read::text);
                    if link.kind.as_deref() == Some("vxlan") {
                        let port = read::nested(info(INFO_DATA).unwrap_or_default()).find(|(k, _)| *k == VXLAN_PORT);
                        link.vxlan_port = port.and_then(|(_, v)| Some(u16::from_be_bytes(v.try_into().ok()?)));
                    }
                }
                IFALIAS => link.alias = Some(read::text(value)),
                LINK_NETNSID => link.link_netns = read::number(value).map(u32::cast_signed),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// One end of a veth pair to make. It comes down.
#[derive(Debug, Clone, Copy, Default)]
pub struct End<'a> {
    /// Name; at most 15 bytes.
    pub name: &'a str,
    /// Interface index; the kernel chooses if none.
    pub index: Option<u32>,
    /// MAC address; random if none.
    pub mac: Option<Mac>,
    /// MTU; 1500 if none.
    pub mtu: Option<u32>,
    /// Network namespace; the socket's if none.
    pub netns: Option<BorrowedFd<'a>>,
    /// Queues in each direction; the kernel's choice if none, which is as many as there may be CPUs.
    pub queues: Option<u32>,
}

impl End<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index.unwrap_or(0);
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.bytes.to_vec())));
        message.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        if let Some(queues) = self.queues {
            message.attributes.extend([LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)]);
        }
        message.attributes.extend(self.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        message
    }
}

/// Makes a veth pair, both ends in their final places under their final names: a move or a rename later would cost a grace
/// period of RCU.
pub fn create_veth(end: &End<'_>, peer: &End<'_>) -> Request {
    let mut message = end.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.message()))),
    ]));
    create(format!("create the veth pair {} and {}", end.name, peer.name), message)
}

/// Makes a VXLAN device that takes tunnel and VNI from each packet's metadata ("external") and checks no UDP checksums over
/// IPv6, which the programs do not write. It learns nothing. It comes down.
pub fn create_vxlan(name: &str, port: u16, mac: Mac, mtu: Option<u32>) -> Request {
    create_vxlan_at(None, name, port, mac, mtu)
}

/// As [`create_vxlan`], under this interface index.
pub fn create_vxlan_at(index: Option<u32>, name: &str, port: u16, mac: Mac, mtu: Option<u32>) -> Request {
    let mut message = End { name, index, mac: Some(mac), mtu, ..End::default() }.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vec![
            InfoVxlan::CollectMetadata(true),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(port),
            InfoVxlan::UDPZeroCsumTX(true),
            InfoVxlan::UDPZeroCsumRX(true),
        ])),
    ]));
    create(format!("create the VXLAN device {name} on UDP port {port}"), message)
}

/// Asks for a device of a kind that the kernel must refuse, because its address is nobody's: `EADDRNOTAVAIL` by a kernel that has
/// the kind, `EOPNOTSUPP` by one that has not.
pub fn try_kind(kind: InfoKind) -> Request {
    let mut message = End { name: "weft_probe", mac: Some(Mac::new([0; 6])), ..End::default() }.message();
    let what = format!("try whether there are {kind:?} devices");
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    create(what, message)
}

/// Makes a bridge. It comes down.
pub fn create_bridge(name: &str) -> Request {
    let mut message = End { name, ..End::default() }.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    create(format!("create the bridge {name}"), message)
}

/// Sets a device up.
pub fn up(index: u32) -> Request {
    let mut message = at(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    set(format!("set device {index} up"), message)
}

/// Sets a device down.
pub fn down(index: u32) -> Request {
    let mut message = at(index);
    message.header.change_mask = LinkFlags::Up;
    set(format!("set device {index} down"), message)
}

/// Sets a device's MTU.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    set(format!("set the MTU of device {index} to {mtu}"), message)
}

/// Sets a device's MAC address.
pub fn set_mac(index: u32, mac: Mac) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::Address(mac.bytes.to_vec()));
    set(format!("set the MAC address of device {index} to {mac}"), message)
}

/// Makes a device a port of a bridge, or takes it out (none).
pub fn set_master(index: u32, master: Option<u32>) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::Controller(master.unwrap_or(0)));
    set(
        format!("make device {index} a port of {}", master.map_or_else(|| "none".into(), |m| format!("device {m}"))),
        message,
    )
}

/// Writes a text on a device, at most 255 bytes: whose it is. The kernel does not take it in the message that creates one.
pub fn set_alias(index: u32, alias: &str) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    set(format!("set the alias of device {index} to `{alias}`"), message)
}

/// Keeps the kernel from giving a device an IPv6 link-local address when it comes up. It must stand in a message *before* the
/// one that sets it up; in the same one it comes too late.
pub fn no_link_local(index: u32) -> Request {
    let mut message = at(index);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    set(format!("turn link-local addresses of device {index} off"), message)
}

/// Deletes a device, and of a veth pair the other end with it. The caller waits some 20 ms for RCU.
pub fn delete(index: u32) -> Request {
    Request::new(format!("delete device {index}"), RouteNetlinkMessage::DelLink(at(index)), 0)
}

/// Puts a device into a group (`ip link set group`). Not 0: all devices begin there.
pub fn set_group(index: u32, group: NonZeroU32) -> Request {
    let mut message = at(index);
    message.attributes.push(LinkAttribute::Group(group.get()));
    set(format!("put device {index} into group {group:#x}"), message)
}

/// Deletes every device of a group at once: the caller waits for RCU once, not once a device. Nothing is deleted if one of them
/// can not be, and none there is an error ([`NetlinkError::is_missing`]).
pub fn delete_group(group: NonZeroU32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group.get()));
    Request::new(format!("delete the devices of group {group:#x}"), RouteNetlinkMessage::DelLink(message), 0)
}

/// Every device of the socket's namespace.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let request = Request::new("list the devices", RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP);
    socket.dump(&request, parse_new)
}

/// The device called `name`; none if there is none.
///
/// # Errors
/// As [`Socket`]'s.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    one(socket, format!("look device {name} up"), message)
}

/// The device with this index; none if there is none.
///
/// # Errors
/// As [`Socket`]'s.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, NetlinkError> {
    one(socket, format!("look device {index} up"), at(index))
}

fn one(socket: &mut Socket, what: String, message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
    match socket.get(&Request::new(what, RouteNetlinkMessage::GetLink(message), 0), parse_new) {
        Ok(link) => Ok(Some(link)),
        Err(e) if e.is_missing() => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_new(kind: u16, payload: &[u8]) -> Option<Link> {
    (kind == NEW).then(|| Link::parse(payload)).flatten()
}

fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn create(what: String, message: LinkMessage) -> Request {
    Request::new(what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn set(what: String, message: LinkMessage) -> Request {
    Request::new(what, RouteNetlinkMessage::SetLink(message), 0)
}
