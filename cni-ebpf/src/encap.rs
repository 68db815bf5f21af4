//! VXLAN out: outer headers in front of the frame, and the device to send it to.
use bytemuck::Zeroable;
use cni_common::{
    maps::{CONFIG_ENCAP_L2_ETH, Config, TUNNEL_BY_NEIGHBOUR, TUNNEL_BY_STACK, Tunnel},
    net::{Be16, Be32, Ip4, Mac},
    wire::*,
};

use crate::{DropReason as D, Env, Packet, Res, Room, Verdict, packet::TunnelEnd};

/// Outer TTL and hop limit.
pub const OUTER_TTL: u8 = 64;

/// What the outer headers take from the inner packet.
pub struct Inner {
    /// [`flow_hash`].
    pub hash: u32,
    /// 24 bits.
    pub vni: u32,
    /// DSCP and ECN, copied to the outer header (RFC 6040 section 4.1, normal mode; RFC 2983, uniform model).
    pub tos: u32,
    /// EtherType.
    pub proto: Be16,
    /// Offset of the transport header: a GSO packet is cut behind that.
    pub l4: usize,
    /// Protocol of the transport.
    pub l4_proto: u32,
}

/// Mixes addresses, ports and protocol of a flow: the underlay spreads flows by the source port made of it.
#[inline(always)]
pub fn flow_hash(src: u32, dst: u32, rest: u32) -> u32 {
    // Multiplier and shifts of MurmurHash3's finaliser; commutative, so both directions take one way.
    let mut h = src ^ dst ^ rest ^ rest.rotate_left(16);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^ (h >> 13)
}

/// Encapsulates towards a node.
#[inline(always)]
pub fn to_node<P: Packet, S: Env>(p: &mut P, s: &S, cfg: &Config, node: u32, inner: &Inner) -> Res<Verdict> {
    let tun = s.tunnel(node).ok_or(D::UnknownNode)?;
    let len = p.len(); // with its Ethernet header, which becomes the inner one
    let l2 = cfg.flags & CONFIG_ENCAP_L2_ETH != 0;
    let udp_len = Be16::from_host((len + 16) as u16);
    let tail = OuterTail {
        udp: Udp {
            // 49152 and up: the dynamic range (RFC 7348 section 5 recommends it).
            sport: Be16::from_host(0xc000 | (inner.hash & 0x3fff) as u16),
            dport: cfg.tunnel_port,
            len: udp_len,
            csum: Be16::ZERO,
        },
        vxlan: Vxlan { flags: VXLAN_VNI_VALID, vni: Be32::from_host(inner.vni << 8) },
        eth: Eth { dst: Mac::WEFT, src: Mac::OVERLAY, proto: inner.proto },
    };
    let outer_proto = match tun.family {
        4 => {
            fits(p, tun, inner, OVERHEAD4)?;
            if tun.ready == TUNNEL_BY_STACK || p.grow(Room::Vxlan4, l2).is_err() {
                return by_stack(p, cfg, TunnelEnd::V4(tun.addr4), inner);
            }
            let mut ip = Ipv4 {
                ver_ihl: 0x45,
                tos: inner.tos as u8,
                len: Be16::from_host((len + 36) as u16),
                id: Be16::from_host(p.identification()),
                ttl: OUTER_TTL,
                proto: UDP,
                src: cfg.tunnel4,
                dst: tun.addr4,
                ..Ipv4::zeroed()
            };
            ip.csum = header_checksum(&ip);
            p.write(ETH_LEN, ip)?;
            p.write(ETH_LEN + size_of::<Ipv4>(), tail)?;
            ETH_IP4
        }
        6 => {
            fits(p, tun, inner, OVERHEAD6)?;
            if tun.ready == TUNNEL_BY_STACK || p.grow(Room::Vxlan6, l2).is_err() {
                return by_stack(p, cfg, TunnelEnd::V6(tun.addr6), inner);
            }
            let ip = Ipv6 {
                ver_tc_flow: Be32::from_host(0x6000_0000 | inner.tos << 20),
                len: udp_len,
                next: UDP,
                hops: OUTER_TTL,
                src: cfg.tunnel6,
                dst: tun.addr6,
            };
            p.write(ETH_LEN, ip)?;
            p.write(ETH_LEN + size_of::<Ipv6>(), tail)?;
            ETH_IP6
        }
        // An array look-up never misses: a slot that nobody wrote is all zero.
        _ => return Err(D::UnknownNode),
    };
    if tun.ready == TUNNEL_BY_NEIGHBOUR {
        p.write(12, outer_proto)?;
        return Ok(Verdict::Neigh(tun.ifindex));
    }
    p.write(0, Eth { dst: tun.dmac, src: tun.smac, proto: outer_proto })?;
    Ok(Verdict::Device(tun.ifindex))
}

/// Leaves the outer headers, and the way, to the kernel's own VXLAN device. It is slower and can all: routes through devices without
/// Ethernet, and packets that are a tunnel's already, in which the kernel makes no room for another one's headers.
#[inline(always)]
fn by_stack<P: Packet>(p: &mut P, cfg: &Config, to: TunnelEnd, inner: &Inner) -> Res<Verdict> {
    p.write(0, Eth { dst: Mac::WEFT, src: Mac::OVERLAY, proto: inner.proto })?;
    // The device copies the ECN bits itself.
    p.set_tunnel(to, inner.vni, inner.tos & 0xfc)?;
    Ok(Verdict::Overlay(cfg.weft_vxlan))
}

/// In place of a size: the segments have sizes of their own, which SCTP has chosen by the path's MTU (linux/skbuff.h).
const GSO_BY_FRAGS: u32 = 0xffff;

#[inline(always)]
fn fits<P: Packet>(p: &P, tun: &Tunnel, inner: &Inner, overhead: u32) -> Res<()> {
    if size(p, inner.l4, inner.l4_proto) + overhead > tun.mtu { Err(D::TooBig) } else { Ok(()) }
}

/// Bytes that must fit into an MTU: of a GSO packet those of a segment, of any other one all, without the Ethernet header. `l4`: offset of the
/// transport header.
#[inline(always)]
pub(crate) fn size<P: Packet>(p: &P, l4: usize, l4_proto: u32) -> u32 {
    const TCP_: u32 = TCP as u32;
    let gso = p.gso_size();
    match (gso, l4_proto) {
        (0, _) => p.len() - ETH_LEN as u32,
        (GSO_BY_FRAGS, _) => 0,
        // The upper half of byte 12 counts words of the TCP header (RFC 9293 section 3.1).
        (_, TCP_) => {
            let words = p.read::<u8>(l4 + 12).unwrap_or(0x50);
            gso + (l4 - ETH_LEN) as u32 + u32::from(words >> 4) * 4
        }
        _ => gso + (l4 - ETH_LEN) as u32 + size_of::<Udp>() as u32,
    }
}

/// Of a header without options whose checksum field is 0 (RFC 1071).
#[inline(always)]
pub(crate) fn header_checksum(h: &Ipv4) -> Be16 {
    let halves = |a: Ip4| (a.raw() & 0xffff) + (a.raw() >> 16);
    let mut c = u32::from(u16::from_ne_bytes([h.ver_ihl, h.tos]))
        + u32::from(h.len.raw())
        + u32::from(h.id.raw())
        + u32::from(h.frag.raw())
        + u32::from(u16::from_ne_bytes([h.ttl, h.proto]))
        + halves(h.src)
        + halves(h.dst);
    c = (c & 0xffff) + (c >> 16);
    c = (c & 0xffff) + (c >> 16);
    Be16::new((!(c as u16)).to_ne_bytes())
}
