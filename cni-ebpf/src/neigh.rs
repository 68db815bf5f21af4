//! Who is the gateway? ARP and neighbour discovery from pods: a permanent entry answers before they ask, but a pod may flush it.
use cni_common::{
    maps::Endpoint,
    net::{Be16, Be32, GATEWAY4, GATEWAY6, Mac},
    wire::*,
};

use crate::{
    DropReason as D, Packet, Res, Verdict,
    family::{Family, V4, V6},
};

/// Router, solicited, override (RFC 4861 section 4.4).
const FLAGS: u32 = 0xe000_0000;

/// A frame to a group: ARP's broadcast and a neighbour solicitation are questions, everything else is not forwarded.
#[inline(always)]
pub fn to_group<P: Packet>(p: &mut P, ep: &Endpoint, proto: Be16) -> Res<Verdict> {
    match proto {
        ETH_ARP => arp(p, ep),
        ETH_IP6 if asks(p) => neighbour(p, ep),
        _ => Err(D::Multicast),
    }
}

/// Whether it looks like a neighbour solicitation; [`solicitation`] looks closer.
#[inline(always)]
fn asks<P: Packet>(p: &mut P) -> bool {
    p.linear((ETH_LEN + size_of::<Ipv6>() + size_of::<Solicitation>()) as u32);
    let next = p.read::<Ipv6>(ETH_LEN).map(|ip| ip.next);
    let kind = p.read::<u8>(ETH_LEN + size_of::<Ipv6>());
    next == Ok(ICMP6) && kind == Ok(icmp6::SOLICITATION)
}

/// A packet to an address that is never forwarded: perhaps a solicitation that confirms an old entry, else dropped.
#[inline(always)]
pub fn unroutable<F: Family, P: Packet>(p: &mut P, ep: &Endpoint) -> Res<Verdict> {
    if F::NUMBER == V6::NUMBER && asks(p) { neighbour(p, ep) } else { Err(D::Unroutable) }
}

/// Answers ARP.
#[inline(always)]
pub fn arp<P: Packet>(p: &mut P, ep: &Endpoint) -> Res<Verdict> {
    request(p, ep)?;
    p.for_this_host();
    Ok(Verdict::Answer(p.ifindex()))
}

#[inline(always)]
fn neighbour<P: Packet>(p: &mut P, ep: &Endpoint) -> Res<Verdict> {
    solicitation(p, ep)?;
    p.for_this_host();
    Ok(Verdict::Answer(p.ifindex()))
}

/// Answers a request for the gateway from the pod's own address, so never a probe for duplicates, whose sender is 0.0.0.0 (RFC 5227).
#[inline(never)]
fn request<P: Packet>(p: &mut P, ep: &Endpoint) -> Res<()> {
    p.linear((ETH_LEN + size_of::<Arp>()) as u32);
    let q: Arp = p.read(ETH_LEN)?;
    let gateway = Be32 { bytes: GATEWAY4.bytes };
    let asks = q.kinds == Arp::IPV4 && q.op == Arp::REQUEST && q.target == gateway && q.sender_mac == ep.mac;
    if !asks || !V4::is_source(ep, &cni_common::net::Ip4::new(q.sender.bytes)) {
        return Err(D::NotGateway);
    }
    p.write(0, Eth { dst: ep.mac, src: Mac::WEFT, proto: ETH_ARP })?;
    p.write(
        ETH_LEN,
        Arp {
            op: Arp::REPLY,
            sender_mac: Mac::WEFT,
            sender: gateway,
            target_mac: ep.mac,
            target: q.sender,
            kinds: Arp::IPV4,
        },
    )
}

/// Answers a solicitation of the gateway from the pod's own address, so never a probe for duplicates, whose source is `::`
/// (RFC 4862 section 5.4.2).
#[inline(never)]
fn solicitation<P: Packet>(p: &mut P, ep: &Endpoint) -> Res<()> {
    let at = ETH_LEN + size_of::<Ipv6>();
    let ip: Ipv6 = p.read(ETH_LEN)?;
    let q: Solicitation = p.read(at)?;
    // Of another hop limit it came through a router (RFC 4861 section 7.1.1).
    let sound = ip.ver_tc_flow.bytes[0] >> 4 == 6 && ip.hops == 255 && q.icmp.code == 0;
    if !sound || q.target.raw() != GATEWAY6.raw() || !V6::is_source(ep, &ip.src) {
        return Err(D::NotGateway);
    }
    let len = Be16::from_host(size_of::<Advertisement>() as u16);
    p.resize((at + size_of::<Advertisement>()) as u32)?;
    p.write(0, Eth { dst: ep.mac, src: Mac::WEFT, proto: ETH_IP6 })?;
    let header =
        Ipv6 { ver_tc_flow: Be32::from_host(0x6000_0000), len, next: ICMP6, hops: 255, src: GATEWAY6, dst: ip.src };
    p.write(ETH_LEN, header)?;
    let mut a = Advertisement {
        icmp: Icmp { kind: icmp6::ADVERTISEMENT, code: 0, csum: Be16::ZERO, rest: Be32::from_host(FLAGS) },
        target: GATEWAY6,
        option: 2,
        words: 1,
        mac: Mac::WEFT,
    };
    let words: [u32; 8] = bytemuck::must_cast(a);
    let sum = words.iter().fold(0, |s, w| s + u64::from(*w));
    a.icmp.csum = V6::icmp_checksum(&header.src, &header.dst, len, sum);
    p.write(at, a)
}
