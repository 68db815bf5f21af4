//! Frames, put together layer by layer from the inside out.
use std::net::{IpAddr, Ipv6Addr};

use cni_common::{
    net::Mac,
    wire::{ICMP, ICMP6, SCTP, TCP, UDP},
};

/// A UDP datagram.
pub fn udp(sport: u16, dport: u16, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut d = [sport.to_be_bytes(), dport.to_be_bytes(), ((payload.len() + 8) as u16).to_be_bytes(), [0, 0]].concat();
    d.extend(payload);
    (UDP, d)
}

/// A TCP segment without options.
pub fn tcp(sport: u16, dport: u16, flags: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut d = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    d.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    d.extend(payload);
    (TCP, d)
}

/// CRC32c (RFC 9260 appendix A), which SCTP has instead of the Internet checksum.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let divide = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), divide))
}

/// An SCTP packet that opens an association (RFC 9260 section 3.3.2), with its checksum.
pub fn sctp(sport: u16, dport: u16) -> (u8, Vec<u8>) {
    // Common header without tag and checksum; INIT of 20 bytes: tag, window, 10 streams each way, first number.
    let mut d = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    d.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0xde, 0xad, 0xbe, 0xef, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
    let sum = crc32c(&d).to_le_bytes();
    d[8..12].copy_from_slice(&sum);
    (SCTP, d)
}

/// An echo request of the family.
pub fn ping(v6: bool) -> (u8, Vec<u8>) {
    if v6 { (ICMP6, vec![128, 0, 0, 0, 0, 7, 0, 1]) } else { (ICMP, vec![8, 0, 0, 0, 0, 7, 0, 1]) }
}

/// An ARP message of the sender: a whole frame to everybody.
pub fn arp(op: u16, mac: Mac, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(op.to_be_bytes());
    body.extend([&mac.bytes[..], &sender, &[0; 6], &target].concat());
    eth(mac, Mac::new([0xff; 6]), (0x0806, body))
}

/// A neighbour solicitation, with the sender's MAC unless it is a probe for duplicates: a whole frame to the target's group.
pub fn solicitation(mac: Mac, src: Ipv6Addr, target: Ipv6Addr, hops: u8) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    if !src.is_unspecified() {
        body.extend([1, 1]);
        body.extend(mac.bytes);
    }
    let packet = Ip { ttl: hops, ..Ip::default() }.packet(src.into(), group.into(), (ICMP6, body));
    eth(mac, Mac::new([0x33, 0x33, 0xff, x, y, z]), packet)
}

/// What may be odd about an IP header.
#[derive(Clone, Debug)]
pub struct Ip {
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4 options, a multiple of 4 bytes, or IPv6 extension headers: (type, body), the body a multiple of 8 with its first two bytes
    /// filled in here.
    pub options: Vec<u8>,
    /// See `options`.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4's flags and fragment offset.
    pub frag: u16,
}
impl Default for Ip {
    fn default() -> Self {
        Self { ttl: 64, tos: 0, options: Vec::new(), extensions: Vec::new(), frag: 0 }
    }
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo header of an L4 checksum (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            [&s.octets()[..], &d.octets(), &[0, proto], &(len as u16).to_be_bytes()].concat()
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            [&s.octets()[..], &d.octets(), &(len as u32).to_be_bytes(), &[0, 0, 0, proto]].concat()
        }
        _ => panic!("{src} and {dst} are of different families"),
    }
}

/// Where the protocol has its Internet checksum.
pub fn checksum_at(proto: u8) -> Option<usize> {
    match proto {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMP6 => Some(2),
        _ => None,
    }
}

/// The L4 checksum of a whole packet, from scratch; `partial`: what stands in its place when the NIC is to make it.
pub fn l4_checksum(src: IpAddr, dst: IpAddr, proto: u8, body: &[u8], partial: bool) -> u16 {
    let pseudo = if proto == ICMP { Vec::new() } else { pseudo_header(src, dst, proto, body.len()) };
    if partial {
        return !checksum(&pseudo);
    }
    let mut all = [pseudo, body.to_vec()].concat();
    if let Some(at) = checksum_at(proto) {
        let at = all.len() - body.len() + at;
        all[at..at + 2].fill(0);
    }
    match checksum(&all) {
        0 if proto == UDP => 0xffff,
        sum => sum,
    }
}

/// The same packet with that checksum in its place.
pub fn summed(src: IpAddr, dst: IpAddr, (proto, mut body): (u8, Vec<u8>), partial: bool) -> (u8, Vec<u8>) {
    if let Some(at) = checksum_at(proto) {
        let sum = l4_checksum(src, dst, proto, &body, partial);
        body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    (proto, body)
}

impl Ip {
    /// A packet from `src` to `dst`, whose families must agree.
    pub fn packet(&self, src: IpAddr, dst: IpAddr, (proto, body): (u8, Vec<u8>)) -> (u16, Vec<u8>) {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let ihl = 20 + self.options.len();
                let mut h = vec![0x40 | (ihl / 4) as u8, self.tos];
                h.extend(((ihl + body.len()) as u16).to_be_bytes());
                h.extend([0, 7]);
                h.extend(self.frag.to_be_bytes());
                h.extend([self.ttl, proto, 0, 0]);
                h.extend(s.octets());
                h.extend(d.octets());
                h.extend(&self.options);
                let sum = checksum(&h);
                h[10..12].copy_from_slice(&sum.to_be_bytes());
                h.extend(body);
                (0x0800, h)
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut tail = Vec::new();
                let kinds: Vec<u8> = self.extensions.iter().map(|(k, _)| *k).chain([proto]).collect();
                for ((kind, content), next) in self.extensions.iter().zip(&kinds[1..]) {
                    let mut e = content.clone();
                    e[0] = *next;
                    // A fragment header has no length; all others count words of 8 bytes after the first.
                    e[1] = if *kind == 44 { 0 } else { (e.len() / 8 - 1) as u8 };
                    tail.extend(e);
                }
                tail.extend(body);
                let mut h = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                h.extend((tail.len() as u16).to_be_bytes());
                h.extend([kinds[0], self.ttl]);
                h.extend(s.octets());
                h.extend(d.octets());
                h.extend(tail);
                (0x86dd, h)
            }
            _ => panic!("{src} and {dst} are of different families"),
        }
    }
}

/// An Ethernet frame.
pub fn eth(src: Mac, dst: Mac, (proto, body): (u16, Vec<u8>)) -> Vec<u8> {
    let mut f = [dst.bytes, src.bytes].concat();
    f.extend(proto.to_be_bytes());
    f.extend(body);
    f
}

/// VXLAN around a frame: the payload of a UDP datagram to `port`.
pub fn vxlan(port: u16, vni: u32, inner: &[u8]) -> (u8, Vec<u8>) {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    udp(0xc123, port, &payload)
}
