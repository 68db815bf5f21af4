//! The steps of translation: see [`Masquerade`](super::Masquerade).
use cni_common::{drop::Point, wire::ETH_LEN};

use super::{
    entry::{self, Known, Pair},
    family::NatFamily,
    icmp::{error_back, error_forth},
    port::{self, Try, Wanted},
    rewrite::{Mend, Side, rewrite},
    table::{NatNode, Step},
};
use crate::{
    DropReason as D, Packet, Res,
    ct::{Ask, Ends, signal},
    encap,
    family::{self, L3},
};

/// As much of the transport header as translation reads.
const L4_WANT: u32 = 8;

/// The device by which a pod's packet leaves under the node's address, or 0.
#[inline(always)]
pub fn way<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask) -> u32 {
    let Ok(ip) = ask.header::<F, P>(p) else { return 0 };
    if s.own(&ip.dst) != 0 || s.is_spared(&ip.dst) {
        return 0;
    }
    let by = s.device(p, &ip);
    if by == 0 || s.leave(by).is_none() { 0 } else { by }
}

/// The MTU of the device by which a pod's packet would leave, 0 if there is none.
#[inline(always)]
pub fn mtu<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S) -> u32 {
    let Ok(ip) = F::l3(p, ETH_LEN) else { return 0 };
    let by = s.device(p, &ip);
    s.leave(by).map_or(0, |leave| leave.mtu)
}

/// Gives a pod's packet, which was tracked, the node's end.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan), [`FragmentOrder`](D::FragmentOrder), [`TooBig`](D::TooBig), [`TtlExceeded`](D::TtlExceeded).
#[inline(always)]
pub fn translate<F: NatFamily, P: Mend, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask, by: u32) -> Res<Step> {
    let ip = ask.header::<F, P>(p)?;
    let Some(signal) = signal::of(ask.heard)? else { return unknown::<F, P>(p, &ip) };
    let Some(leave) = s.leave(by) else { return Ok(Step::Itself) };
    let pair = Pair::<F>::sent(&ip.src, &ip.dst, signal.rest);
    match entry::forth(s, &pair, &leave.addr)? {
        Known::Itself => Ok(Step::Itself),
        Known::Nothing => Ok(Step::Choose),
        Known::As(_) if encap::size(p, ip.l4, ip.proto) > leave.mtu => Err(D::TooBig),
        Known::As(end) => {
            F::dec_ttl(p, ask.l3())?;
            rewrite(p, ask.l3(), &ip, Side::SOURCE, &end)?;
            Ok(Step::Done)
        }
    }
}

/// What is of no flow can be an ICMP error. Nothing else has an address to leave under.
#[inline(always)]
fn unknown<F: NatFamily, P: Packet>(p: &P, ip: &L3<F>) -> Res<Step> {
    if ip.part.is_later() {
        return Err(D::FragmentOrder);
    }
    if F::is_icmp_error(p, ip) { Ok(Step::Error) } else { Err(D::NatOrphan) }
}

/// Gives an ICMP error of a pod's the form that the world knows.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan), [`TtlExceeded`](D::TtlExceeded).
#[inline(always)]
pub fn translate_error<F: NatFamily, P: Mend, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask) -> Res<Step> {
    let ip = ask.header::<F, P>(p)?;
    let step = error_forth(p, s, ask.l3(), &ip)?;
    if step == Step::Done {
        F::dec_ttl(p, ask.l3())?;
    }
    Ok(step)
}

/// A pod's packet as a pair, and the node's address by that device.
#[inline(always)]
fn pair<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask, by: u32) -> Res<(Pair<F>, F::Addr)> {
    let Some(leave) = s.leave(by) else { return Err(D::NatOrphan) };
    Ok((sent(p, ask)?, leave.addr))
}

#[inline(always)]
fn sent<F: NatFamily, P: Packet>(p: &P, ask: &Ask) -> Res<Pair<F>> {
    let Some(signal) = signal::of(ask.heard)? else { return Err(D::NatOrphan) };
    let (src, dst) = F::addresses(p, ask.l3())?;
    Ok(Pair::sent(&src, &dst, signal.rest))
}

/// What the packet's flow is to get.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan).
#[inline(always)]
pub fn wanted<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask) -> Res<Wanted> {
    entry::wanted(s, &sent(p, ask)?)
}

/// See [`port::attempt`].
///
/// # Errors
/// As there, and [`NatOrphan`](D::NatOrphan).
#[inline(always)]
pub fn attempt<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask, by: u32, w: Wanted) -> Res<Try> {
    let (pair, node) = pair(p, s, ask, by)?;
    port::attempt(p, s, &pair, &node, w)
}

/// See [`port::take_over`].
///
/// # Errors
/// As there, and [`NatOrphan`](D::NatOrphan).
#[inline(always)]
pub fn take_over<F: NatFamily, P: Packet, S: NatNode<P, F>>(
    p: &mut P,
    s: &S,
    ask: &Ask,
    by: u32,
    w: Wanted,
) -> Res<Try> {
    let (pair, node) = pair(p, s, ask, by)?;
    port::take_over(s, &pair, &node, w)
}

/// See [`port::settle`].
///
/// # Errors
/// As there, and [`NatOrphan`](D::NatOrphan).
#[inline(always)]
pub fn settle<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S, ask: &Ask, by: u32, w: Wanted) -> Res<Try> {
    let (pair, node) = pair(p, s, ask, by)?;
    port::settle(p, s, &pair, &node, w)
}

/// Gives what the world sends to the node the pod's end, if it is a pod's. What cannot be read is the stack's: the node is never cut off.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan), [`TtlExceeded`](D::TtlExceeded).
#[inline(always)]
pub fn arrive<F: NatFamily, P: Mend, S: NatNode<P, F>>(p: &mut P, s: &S) -> Res<Step> {
    let Some((ask, ip)) = for_the_node::<F, P, S>(p, s) else { return Ok(Step::Itself) };
    let Ok(Some(signal)) = signal::of(ask.heard) else {
        // The ports of a later fragment whose first one was not seen nobody knows: it may be the node's.
        return Ok(if !ip.part.is_later() && F::is_icmp_error(p, &ip) { Step::Error } else { Step::Itself });
    };
    let Some(pod) = entry::receiver(p, s, &ip.src, &ip.dst, signal.rest)? else { return Ok(Step::Itself) };
    F::dec_ttl(p, ETH_LEN)?;
    rewrite(p, ETH_LEN, &ip, Side::DESTINATION, &pod)?;
    Ok(Step::Done)
}

/// The same of an ICMP error.
///
/// # Errors
/// As of [`arrive`].
#[inline(always)]
pub fn arrive_error<F: NatFamily, P: Mend, S: NatNode<P, F>>(p: &mut P, s: &S) -> Res<Step> {
    let Some((_, ip)) = for_the_node::<F, P, S>(p, s) else { return Ok(Step::Itself) };
    if error_back(p, s, ETH_LEN, &ip)?.is_none() {
        return Ok(Step::Itself);
    }
    F::dec_ttl(p, ETH_LEN)?;
    Ok(Step::Done)
}

/// The header of a packet to an address of the node, if there is any translation.
#[inline(always)]
fn for_the_node<F: NatFamily, P: Packet, S: NatNode<P, F>>(p: &mut P, s: &S) -> Option<(Ask, L3<F>)> {
    if s.nat_config()?.first_port == 0 {
        return None;
    }
    let (_, dst) = F::addresses(p, ETH_LEN).ok()?;
    if s.own(&dst) == 0 {
        return None;
    }
    let ip = family::parse::<F, P>(p, ETH_LEN, L4_WANT).ok()?;
    let ask = Ask::new(Point::FromNetdev, ETH_LEN, &ip, Ends { from: 0, to: 0 });
    // What the verifier has learnt of the header it need not carry through all that follows.
    let ask = Ask { what: s.blur(ask.what, s.jiffies()), ..ask };
    let ask = Ask { heard: s.hear(p, ask), ..ask };
    Some((ask, ask.header(p).ok()?))
}
