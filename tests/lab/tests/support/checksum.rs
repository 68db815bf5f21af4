//! Checksums of transport headers that are built by hand.
use std::net::IpAddr;

use cni_common::wire::{ICMP6, TCP, UDP};
use cni_ebpf::fake::frame;

/// Fills in the checksum of a UDP, TCP or ICMPv6 header (RFC 9293 section 3.1, RFC 8200 section 8.1). Bytes of the frame that are
/// changed afterwards no longer fit it.
pub fn with_checksum((src, dst): (IpAddr, IpAddr), (proto, mut body): (u8, Vec<u8>)) -> (u8, Vec<u8>) {
    let mut pseudo = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => [s.octets(), d.octets()].concat(),
        (IpAddr::V6(s), IpAddr::V6(d)) => [s.octets(), d.octets()].concat(),
        _ => panic!("{src} and {dst} are of different families"),
    };
    pseudo.extend((body.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, proto]);
    let at = match proto {
        UDP => 6,
        TCP => 16,
        ICMP6 => 2,
        other => panic!("no checksum is known for protocol {other}"),
    };
    pseudo.extend(&body);
    let sum = frame::checksum(&pseudo);
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    (proto, body)
}
