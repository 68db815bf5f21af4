//! Frames as a pod receives them: whether their checksums are right.
use std::{collections::BTreeMap, net::IpAddr};

use cni_common::wire::{ICMP, ICMP6, SCTP, TCP, UDP};
use cni_ebpf::fake::frame::{checksum, crc32c};
use serde::{Deserialize, Serialize};

/// Fragment header (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;

/// What a pod's device has received.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Packets with right checksums, by family and protocol: `4/6` is TCP over IPv4.
    pub right: BTreeMap<String, u64>,
    /// What is wrong with the others.
    pub wrong: Vec<String>,
    /// Fragments, whose transport's checksum is the whole's.
    pub fragments: u64,
}

/// An IP packet.
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    fragment: bool,
    body: &'a [u8],
}

impl Heard {
    /// Takes note of a frame, if it is to one of these addresses.
    pub fn frame(&mut self, frame: &[u8], to: &[IpAddr]) {
        let packet = match frame.get(12..14) {
            Some([0x08, 0x00]) => v4(&frame[14..]),
            Some([0x86, 0xdd]) => v6(&frame[14..]),
            _ => return,
        };
        let Some(packet) = packet else { return self.wrong.push(format!("a header: {frame:02x?}")) };
        if !to.contains(&packet.to) {
            return;
        }
        if packet.fragment {
            self.fragments += 1;
        } else if packet.is_right() {
            let family = if packet.to.is_ipv4() { 4 } else { 6 };
            *self.right.entry(format!("{family}/{}", packet.proto)).or_default() += 1;
        } else {
            self.wrong.push(format!("{} bytes of protocol {} from {}", packet.body.len(), packet.proto, packet.from));
        }
    }
}

fn v4(ip: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(ip.first()? & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let part = u16::from_be_bytes(ip.get(6..8)?.try_into().ok()?);
    (checksum(ip.get(..header)?) == 0).then_some(Packet {
        from: address(12)?,
        to: address(16)?,
        proto: *ip.get(9)?,
        fragment: part & 0x3fff != 0,
        body: ip.get(header..length)?,
    })
}

fn v6(ip: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
    let proto = *ip.get(6)?;
    Some(Packet {
        from: address(8)?,
        to: address(24)?,
        proto,
        fragment: proto == FRAGMENT,
        body: ip.get(40..40 + length)?,
    })
}

impl Packet<'_> {
    /// The whole transport checksum stands in the packet, and is right: nobody is asked to believe or to finish it.
    fn is_right(&self) -> bool {
        let body = self.body;
        match self.proto {
            ICMP => checksum(body) == 0,
            // RFC 9260 section 6.8: over the packet with the field zeroed, least significant byte first.
            SCTP => {
                body.len() >= 12 && crc32c(&[&body[..8], &[0; 4], &body[12..]].concat()).to_le_bytes() == body[8..12]
            }
            // Over IPv4 a datagram may have none; a pod's always has.
            UDP if body.get(6..8) == Some(&[0, 0]) => false,
            TCP | UDP | ICMP6 => checksum(&[&self.pseudo_header()[..], body].concat()) == 0,
            _ => false,
        }
    }

    fn pseudo_header(&self) -> Vec<u8> {
        let mut pseudo = match (self.from, self.to) {
            (IpAddr::V4(s), IpAddr::V4(d)) => [s.octets(), d.octets()].concat(),
            (IpAddr::V6(s), IpAddr::V6(d)) => [s.octets(), d.octets()].concat(),
            _ => unreachable!("read from one header"),
        };
        pseudo.extend((self.body.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.proto]);
        pseudo
    }
}
