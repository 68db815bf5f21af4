//! The opening packet of a flow, as a whole frame.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_common::{
    net::Mac,
    wire::{ICMP, ICMP6, SCTP, TCP, UDP, icmp, icmp6},
};

/// Of the sender; who answers policy's questions does not look at it.
const SOURCE_PORT: u16 = 40_000;
/// Of TCP's header.
const SYN: u8 = 0x02;
/// INIT, of SCTP.
const INIT: u8 = 1;
/// `I`, of VXLAN's flags: there is a VNI.
const VNI_VALID: u8 = 0x08;

/// From `src` to `dst`, of this protocol, to this port. Sums of what it carries are left out: only who receives it looks at them.
pub fn opening(src: IpAddr, dst: IpAddr, proto: u8, port: u16) -> Vec<u8> {
    let ports = [SOURCE_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    let body = match proto {
        TCP => [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        UDP => [&ports[..], &[0, 8, 0, 0]].concat(),
        SCTP => [&ports[..], &[0; 8], &[INIT, 0, 0, 20], &[0; 16]].concat(),
        ICMP => vec![icmp::ECHO, 0, 0, 0, 0, 7, 0, 1],
        ICMP6 => vec![icmp6::ECHO, 0, 0, 0, 0, 7, 0, 1],
        _ => ports,
    };
    packet(src, dst, proto, &body)
}

/// A packet between pods' gateways and pods, in Ethernet.
pub fn ethernet(src: Mac, dst: Mac, packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|b| b >> 4 == 6) { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&dst.bytes[..], &src.bytes, &ethertype, packet].concat()
}

/// A packet to a pod, in a tunnel between two nodes.
pub fn tunnelled((src, dst): (IpAddr, IpAddr), port: u16, inner: &[u8]) -> Vec<u8> {
    let inner = ethernet(Mac::OVERLAY, Mac::WEFT, inner);
    // Header of UDP and of VXLAN are 8 bytes each.
    let len = u16::try_from(inner.len() + 16).unwrap_or(u16::MAX);
    let udp = [SOURCE_PORT.to_be_bytes(), port.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    packet(src, dst, UDP, &[&udp[..], &[VNI_VALID, 0, 0, 0, 0, 0, 0, 0], &inner].concat())
}

fn packet(src: IpAddr, dst: IpAddr, proto: u8, body: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [&ip4(src, dst, proto, body.len())[..], body].concat(),
        (src, dst) => {
            let six = |a: IpAddr| match a {
                IpAddr::V4(a) => a.to_ipv6_mapped(),
                IpAddr::V6(a) => a,
            };
            [&ip6(six(src), six(dst), proto, body.len())[..], body].concat()
        }
    }
}

fn ip4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, len: usize) -> Vec<u8> {
    let [a, b] = u16::try_from(20 + len).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x45, 0, a, b, 0, 7, 0, 0, 64, proto, 0, 0];
    header.extend(src.octets());
    header.extend(dst.octets());
    // RFC 1071.
    let sum: u32 = header.chunks_exact(2).map(|c| c.iter().fold(0, |n, b| n << 8 | u32::from(*b))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header.splice(10..12, sum.to_be_bytes());
    header
}

fn ip6(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, len: usize) -> Vec<u8> {
    let [a, b] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, a, b, proto, 64];
    header.extend(src.octets());
    header.extend(dst.octets());
    header
}
