//! What comes from other nodes: VXLAN in, decapsulated here or by the kernel's device.
use cni_common::{drop::Point, maps::Config, net::Mac, wire::*};

use crate::{
    DropReason as D, Env, Of, Packet, Res, System, Tables, Verdict,
    ct::{self, Ask, EndSets, Ends},
    ecn,
    family::{self, Family, L3, Outer, V4, V6},
    flow::{L4_WANT, by, sets, to_local, way_to},
    nat,
    packet::TunnelEnd,
};

/// From the outer IP header to the inner one, without the former.
const TAIL: u32 = size_of::<OuterTail>() as u32;

/// A frame from a device of the node. What is not ours, or not understood, belongs to the stack: the node is never cut off.
#[inline(always)]
pub fn from_netdev<P: Packet, S: System<P>>(p: &mut P, s: &S) -> Res<Verdict> {
    let Some(cfg) = s.config() else { return Ok(Verdict::Pass) };
    // Tagged: it belongs to a VLAN device above this one, which has a hook of its own if it is a node's device.
    if p.has_vlan() {
        return Ok(Verdict::Pass);
    }
    let Ok(eth) = p.read::<Eth>(0) else { return Ok(Verdict::Pass) };
    match eth.proto {
        ETH_IP4 => netdev::<V4, P, S>(p, s, cfg),
        ETH_IP6 => netdev::<V6, P, S>(p, s, cfg),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn netdev<U: Family, P: Packet, S: System<P> + Of<P, U>>(p: &mut P, s: &S, cfg: &Config) -> Res<Verdict> {
    p.linear(ETH_LEN as u32 + U::HEADER + TAIL);
    let Some(ip) = tunnel::<U, P, S>(p, s, cfg)? else { return from_world::<U, P, S>(p, s) };
    let tail: OuterTail = p.read(ETH_LEN + U::HEADER as usize)?;
    if tail.vxlan.flags.bytes[0] & VXLAN_VNI_VALID.bytes[0] == 0 {
        return Err(D::BadTunnel);
    }
    match tail.eth.proto {
        ETH_IP4 => tunnelled::<U, V4, P, S>(p, s, &ip),
        ETH_IP6 => tunnelled::<U, V6, P, S>(p, s, &ip),
        _ => Err(D::UnknownL3),
    }
}

/// The outer header of what comes by the node's tunnel; `None`: it does not.
#[inline(always)]
fn tunnel<U: Family, P: Packet, S: Env + Tables<U>>(p: &P, s: &S, cfg: &Config) -> Res<Option<Outer<U>>> {
    let Some(ip) = U::outer(p, ETH_LEN) else { return Ok(None) };
    let to_tunnel_port = ip.proto == u32::from(UDP)
        && p.read::<Udp>(ETH_LEN + U::HEADER as usize).is_ok_and(|udp| udp.dport.raw() == cfg.tunnel_port.raw());
    if to_tunnel_port && U::is_tunnel_address(cfg, &ip.dst) {
        return Ok(Some(ip));
    }
    // A tunnelled packet needs no look at these: its source must be a known node.
    if U::is_probably_here(cfg, &ip.src) || s.own(&ip.src) != 0 {
        return Err(D::HostAddress);
    }
    if to_tunnel_port && s.own(&ip.dst) != 0 {
        return Err(D::TunnelAddress);
    }
    Ok(None)
}

/// What no node sent: perhaps an answer to a masqueraded pod.
#[inline(always)]
fn from_world<F: Family, P: Packet, S: Env + Of<P, F>>(p: &mut P, s: &S) -> Res<Verdict> {
    if !nat::arrive::<F, P, S>(p, s)? {
        return Ok(Verdict::Pass);
    }
    let ip = family::parse::<F, P>(p, ETH_LEN, L4_WANT)?;
    let epoch = s.epoch();
    let l = s.local(&ip.dst).ok_or(D::NoPod)?;
    to_local(p, s, epoch, Point::FromNetdev, &ip, l)
}

#[inline(always)]
fn tunnelled<U: Family, F: Family, P: Packet, S: System<P> + Of<P, U> + Of<P, F>>(
    p: &mut P,
    s: &S,
    outer: &Outer<U>,
) -> Res<Verdict> {
    let at = ETH_LEN + (U::HEADER + TAIL) as usize;
    let ip = family::parse::<F, P>(p, at, 0)?;
    sent_by::<U, F, S>(s, &outer.src, &ip)?;
    // The kernel's tunnel GSO marks outlive our decapsulation, and a socket would take the packet for a tunnel's: what is not TCP
    // goes through the device. So does what is not for a pod here.
    if p.gso_size() != 0 && ip.proto != u32::from(TCP) {
        return Ok(Verdict::Pass);
    }
    let epoch = s.epoch();
    let Some(l) = <S as Tables<F>>::local(s, &ip.dst) else { return Ok(Verdict::Pass) };
    let ask = Ask::of::<F, P, S>(p, s, Point::FromNetdev, at, &ip, Ends { from: 0, to: l.id });
    let way = ct::admit::<F, P, S>(p, s, epoch, ask, EndSets::default(), sets(l))?;
    let (outer_ecn, inner_ecn) = (ecn::bits(outer.tos), ecn::bits(ip.tos));
    if outer_ecn != ecn::NOT_ECT && outer_ecn != inner_ecn {
        ecn::carry::<F, P>(p, at, outer_ecn, inner_ecn)?;
    }
    let other = (F::NUMBER != U::NUMBER).then_some(F::NUMBER);
    // Before 6.3 the kernel cannot change the family here, nor make a short packet out of a long outer header: its device can.
    if p.shrink(U::HEADER + TAIL, other).is_err() {
        return Ok(Verdict::Pass);
    }
    by(p, way, l, F::ETHERTYPE)
}

/// The inner source must be an address or in a pod CIDR of the very node that sent the packet: the node behind the inner source has the outer
/// source as its tunnel address. That way an honest packet costs no look-up of its node; which reason a dishonest one has is found out
/// afterwards.
#[inline(always)]
fn sent_by<U: Family, F: Family, S: Env + Tables<U> + Tables<F>>(s: &S, outer: &U::Addr, inner: &L3<F>) -> Res<()> {
    if let Some((node, _)) = way_to::<F, S>(s, &inner.src)
        && s.tunnel(node).is_some_and(|tun| U::is_end_of(tun, outer))
    {
        return Ok(());
    }
    match <S as Tables<U>>::node_of(s, outer) {
        Some(_) => Err(D::InnerSource),
        None => Err(D::UnknownNode),
    }
}

/// A frame that the kernel's VXLAN device decapsulated, because `from_netdev` left it to it.
#[inline(always)]
pub fn from_overlay<P: Packet, S: System<P>>(p: &mut P, s: &S) -> Res<Verdict> {
    let cfg = s.config().ok_or(D::NoConfig)?;
    let source = p.tunnel_source().ok_or(D::UnknownNode)?;
    let eth: Eth = p.read(0)?;
    match eth.proto {
        ETH_IP4 => overlay::<V4, P, S>(p, s, cfg, source),
        ETH_IP6 => overlay::<V6, P, S>(p, s, cfg, source),
        _ => Err(D::UnknownL3),
    }
}

#[inline(always)]
fn overlay<F: Family, P: Packet, S: System<P> + Of<P, F>>(
    p: &mut P,
    s: &S,
    cfg: &Config,
    source: TunnelEnd,
) -> Res<Verdict> {
    let ip = family::parse::<F, P>(p, ETH_LEN, L4_WANT)?;
    match source {
        TunnelEnd::V4(a) => sent_by::<V4, F, S>(s, &a, &ip)?,
        TunnelEnd::V6(a) => sent_by::<V6, F, S>(s, &a, &ip)?,
    }
    let epoch = s.epoch();
    if let Some(l) = <S as Tables<F>>::local(s, &ip.dst) {
        let ask = Ask::of::<F, P, S>(p, s, Point::FromOverlay, ETH_LEN, &ip, Ends { from: 0, to: l.id });
        let way = ct::admit::<F, P, S>(p, s, epoch, ask, EndSets::default(), sets(l))?;
        return by(p, way, l, F::ETHERTYPE);
    }
    if <S as Tables<F>>::own(s, &ip.dst) == 0 {
        return Err(D::NoPod);
    }
    // A tunnel in the tunnel would be taken off by the same device, and its content believed once more.
    if ip.proto == u32::from(UDP) && family::ports(p, &ip)?.dst().raw() == cfg.tunnel_port.raw() {
        return Err(D::TunnelPort);
    }
    // A redirect into `weft_host` with another destination MAC is lost.
    p.write(0, Eth { dst: Mac::WEFT, src: Mac::WEFT, proto: F::ETHERTYPE })?;
    Ok(Verdict::Host)
}
