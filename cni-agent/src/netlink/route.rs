//! Routes, and which way the kernel would go.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
};

use super::{NetlinkError, Request, Socket, names::ROUTE_PROTOCOL, read};

/// `RTM_NEWROUTE`.
pub(super) const NEW: u16 = 24;
/// `RTM_DELROUTE`.
pub(super) const DEL: u16 = 25;
/// Length of `struct rtmsg`.
const HEADER: usize = 12;

// Attributes, from include/uapi/linux/rtnetlink.h.
const DST: u16 = 1;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFSRC: u16 = 7;
const METRICS: u16 = 8;
const TABLE: u16 = 15;
const VIA: u16 = 18;
const METRIC_MTU: u16 = 2;

/// A unicast route with one next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Out of which device.
    pub index: u32,
    /// Through which next hop; none if the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link although no route says so.
    pub onlink: bool,
    /// Source address that the stack takes when the application has chosen none.
    pub source: Option<IpAddr>,
    /// MTU of this route, instead of the device's.
    pub mtu: Option<u32>,
    /// Who made it. Ours have [`ROUTE_PROTOCOL`].
    pub protocol: u8,
    /// Metric: the lowest wins. None is 0 for IPv4 and 1024 for IPv6.
    pub priority: Option<u32>,
    /// Number of its table; [`MAIN`] is the one that is asked without a rule.
    pub table: u32,
}

/// The main table.
pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

impl Route {
    /// One of ours through a link-local gateway: IPv4 says `onlink`, IPv6 needs not to.
    #[must_use]
    pub const fn through(gateway: IpAddr, dst: IpNet, index: u32) -> Self {
        Self {
            dst,
            index,
            gateway: Some(gateway),
            onlink: gateway.is_ipv4(),
            source: None,
            mtu: None,
            protocol: ROUTE_PROTOCOL,
            priority: None,
            table: MAIN,
        }
    }

    /// The default route of the gateway's family.
    #[must_use]
    pub fn default_through(gateway: IpAddr, index: u32) -> Self {
        Self::through(gateway, whole_family(gateway), index)
    }

    /// From the body of an `RTM_NEWROUTE` or `RTM_DELROUTE` message; none for other tables than the main one, and other kinds.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        Self::parse_any(payload).filter(|route| route.table == MAIN)
    }

    fn parse_any(payload: &[u8]) -> Option<Self> {
        let header = RouteHeader::parse(payload).ok()?;
        let mut route = Self::through(whole_of(header.address_family)?.addr(), whole_of(header.address_family)?, 0);
        route.gateway = None;
        route.onlink = header.flags.contains(RouteFlags::Onlink);
        route.protocol = u8::from(header.protocol);
        route.table = u32::from(header.table);
        let mut dst = route.dst.addr();
        for (kind, value) in read::attributes(payload, HEADER) {
            match kind {
                DST => dst = read::address(value)?,
                OIF => route.index = read::number(value)?,
                GATEWAY => route.gateway = read::address(value),
                PRIORITY => route.priority = read::number(value),
                PREFSRC => route.source = read::address(value),
                TABLE => route.table = read::number(value)?,
                METRICS => {
                    route.mtu = read::nested(value).find(|(k, _)| *k == METRIC_MTU).and_then(|(_, v)| read::number(v));
                }
                _ => {}
            }
        }
        route.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
        (header.kind == RouteType::Unicast).then_some(route)
    }
}

/// The way to one address, as the kernel would take it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Out of which device.
    pub index: u32,
    /// Next hop; none if the address itself is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address.
    pub source: Option<IpAddr>,
    /// MTU of the route; none if it is the device's.
    pub mtu: Option<u32>,
    /// The address is one of the node's own.
    pub local: bool,
}

/// Adds a route; `EEXIST` if there is one to that destination with that metric.
pub fn add(route: &Route) -> Request {
    change("add", route, NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds a route, or puts it in the place of the one to that destination with that metric.
pub fn replace(route: &Route) -> Request {
    change("set", route, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Deletes a route, whatever its MTU: the kernel would compare that too.
pub fn delete(route: &Route) -> Request {
    let message = message(&Route { mtu: None, ..route.clone() });
    Request::new(format!("delete {}", text(route)), RouteNetlinkMessage::DelRoute(message), 0)
}

/// The main table's unicast routes, both families.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list(socket: &mut Socket) -> Result<Vec<Route>, NetlinkError> {
    list_table(socket, MAIN)
}

/// A table's unicast routes, both families. A table that is not there has none.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list_table(socket: &mut Socket, table: u32) -> Result<Vec<Route>, NetlinkError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let request = Request::new("list the routes", RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP);
        let parse = |kind, payload: &[u8]| (kind == NEW).then(|| Route::parse_any(payload)).flatten();
        routes.extend(socket.dump(&request, |kind, payload| parse(kind, payload).filter(|r| r.table == table))?);
    }
    Ok(routes)
}

/// Which way the kernel would go to `to`; none if it has no route there.
///
/// # Errors
/// As [`Socket`]'s.
pub fn lookup(socket: &mut Socket, to: IpAddr) -> Result<Option<Way>, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = IpNet::from(to).max_prefix_len();
    message.attributes.push(RouteAttribute::Destination(to.into()));
    let request = Request::new(format!("look the way to {to} up"), RouteNetlinkMessage::GetRoute(message), 0);
    match socket.get(&request, |kind, payload| (kind == NEW).then(|| parse_way(payload)).flatten()) {
        Ok(way) => Ok(Some(way)),
        Err(e) if e.is_missing() || e.errno() == Some(nix::errno::Errno::ENETUNREACH) => Ok(None),
        Err(e) if e.errno() == Some(nix::errno::Errno::EHOSTUNREACH) => Ok(None),
        Err(e) => Err(e),
    }
}

fn parse_way(payload: &[u8]) -> Option<Way> {
    let header = RouteHeader::parse(payload).ok()?;
    let mut way = Way { index: 0, gateway: None, source: None, mtu: None, local: header.kind == RouteType::Local };
    for (kind, value) in read::attributes(payload, HEADER) {
        match kind {
            OIF => way.index = read::number(value)?,
            GATEWAY => way.gateway = read::address(value),
            // An IPv4 route through an IPv6 neighbour: two bytes of family before the address.
            VIA => way.gateway = value.get(2..).and_then(read::address),
            PREFSRC => way.source = read::address(value),
            METRICS => {
                way.mtu = read::nested(value).find(|(k, _)| *k == METRIC_MTU).and_then(|(_, v)| read::number(v));
            }
            _ => {}
        }
    }
    Some(way)
}

fn change(verb: &str, route: &Route, flags: u16) -> Request {
    Request::new(format!("{verb} {}", text(route)), RouteNetlinkMessage::NewRoute(message(route)), flags)
}

fn text(route: &Route) -> String {
    let via = route.gateway.map(|g| format!(" through {g}")).unwrap_or_default();
    let table = if route.table == MAIN { String::new() } else { format!(" in table {}", route.table) };
    format!("the route to {}{via} on device {}{table}", route.dst, route.index)
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.addr());
    header.destination_prefix_length = route.dst.prefix_len();
    // The header has a byte for it; an attribute tells larger ones.
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = RouteProtocol::from(route.protocol);
    // IPv6 knows no scopes. An IPv4 route without a gateway reaches the link only.
    let on_link = route.gateway.is_none() && route.dst.addr().is_ipv4();
    header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    header.kind = RouteType::Unicast;
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.dst.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.dst.network().into()));
    }
    attributes.extend(route.gateway.map(|g| RouteAttribute::Gateway(g.into())));
    attributes.push(RouteAttribute::Oif(route.index));
    attributes.extend(route.source.map(|s| RouteAttribute::PrefSource(s.into())));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    attributes.extend((route.table > u8::MAX.into()).then_some(RouteAttribute::Table(route.table)));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

const fn family(addr: IpAddr) -> AddressFamily {
    match addr {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn whole_of(family: AddressFamily) -> Option<IpNet> {
    match family {
        AddressFamily::Inet => Some(whole_family(Ipv4Addr::UNSPECIFIED.into())),
        AddressFamily::Inet6 => Some(whole_family(Ipv6Addr::UNSPECIFIED.into())),
        _ => None,
    }
}

/// All addresses of the family of `addr`.
fn whole_family(addr: IpAddr) -> IpNet {
    match addr {
        IpAddr::V4(_) => ipnet::Ipv4Net::default().into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::default().into(),
    }
}
