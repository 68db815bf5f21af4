//! Tunnelled packets built by hand, as a node would send them.
use std::net::IpAddr;

use cni_common::net::Mac;
use cni_ebpf::fake::frame::{self, Ip};
use lab::probe::Family;

use crate::{Rig, checksum::with_checksum};

/// The agent's default tunnel port.
const PORT: u16 = 8472;
/// Flag of IPv4. Packets without it are coalesced only if their identification counts up.
const DONT_FRAGMENT: u16 = 0x4000;
/// Outer UDP, VXLAN and inner Ethernet headers, bytes.
const BETWEEN: usize = 8 + 8 + 14;

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy)]
pub struct Tunnelled {
    /// Outer MACs, source first.
    pub macs: ([u8; 6], [u8; 6]),
    /// Outer addresses, source first.
    pub outer: (IpAddr, IpAddr),
    /// DSCP and ECN of the outer header.
    pub outer_tos: u8,
    /// Inner addresses, source first.
    pub inner: (IpAddr, IpAddr),
    /// DSCP and ECN of the inner header.
    pub inner_tos: u8,
}

impl Tunnelled {
    /// From `client`, as its node would send it, to `web`.
    pub fn by_client(rig: &Rig, family: Family) -> Self {
        let [to, from] = [&rig.nodes[0], &rig.nodes[1]].map(|node| node.address(rig.underlay).unwrap());
        Self {
            macs: (rig.wire(1).mac(), rig.wire(0).mac()),
            outer: (from, to),
            outer_tos: 0,
            inner: (rig.client.address(family).unwrap(), rig.web.address(family).unwrap()),
            inner_tos: 0,
        }
    }

    /// The whole frame around a transport header and its payload, whose checksum is filled in.
    pub fn frame(&self, transport: (u8, Vec<u8>)) -> Vec<u8> {
        let (src, dst) = self.inner;
        let body = with_checksum(self.inner, transport);
        let inner = Ip { tos: self.inner_tos, frag: DONT_FRAGMENT, ..Ip::default() }.packet(src, dst, body);
        let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, inner);
        let outer = Ip { tos: self.outer_tos, frag: DONT_FRAGMENT, ..Ip::default() };
        let outer = outer.packet(self.outer.0, self.outer.1, frame::vxlan(PORT, 0, &inner));
        let (from, to) = self.macs;
        frame::eth(Mac::new(from), Mac::new(to), outer)
    }

    /// Around a UDP datagram.
    pub fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        self.frame(frame::udp(sport, dport, payload))
    }
}

/// DSCP and ECN of a tunnelled frame: of the outer and of the inner header.
pub fn both_tos(bytes: &[u8]) -> Option<(u8, u8)> {
    let (outer, inner, _) = headers(bytes)?;
    let tos = |ip: &[u8]| match ip.first()? >> 4 {
        4 => ip.get(1).copied(),
        _ => Some(ip[0] << 4 | *ip.get(1)? >> 4),
    };
    Some((tos(outer)?, tos(inner)?))
}

/// What is asked of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
}

/// The TCP segment in a tunnelled frame, if it goes to this port.
pub fn segment_to(port: u16, bytes: &[u8]) -> Option<Segment> {
    let (_, _, tcp) = headers(bytes)?;
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let ours = tcp.get(2..4)? == port.to_be_bytes();
    ours.then_some(Segment { seq: word(4)?, ack: word(8)?, flags: *tcp.get(13)? })
}

/// Outer header, inner header and inner transport header of a tunnelled frame, each with all that follows.
fn headers(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let length = |ip: &[u8]| match ip.first()? >> 4 {
        4 => Some(20),
        6 => Some(40),
        _ => None,
    };
    let outer = bytes.get(14..)?;
    let inner = outer.get(length(outer)? + BETWEEN..)?;
    Some((outer, inner, inner.get(length(inner)?..)?))
}

/// A segment of TCP, without its checksum.
pub fn tcp((sport, dport): (u16, u16), segment: Segment, payload: &[u8]) -> (u8, Vec<u8>) {
    let (proto, mut bytes) = frame::tcp(sport, dport, segment.flags, payload);
    bytes[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    bytes[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    (proto, bytes)
}
