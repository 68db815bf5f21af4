//! ICMP errors: who sent a packet that could not go on hears why (RFC 792 and 1191, RFC 4443). They make ping, traceroute and path MTU
//! discovery tell the truth. All of it is off the fast path: only a drop comes here.
//!
//! An IPv4 packet that may be cut (no DF) is answered too: the sender's kernel then cuts it itself, where the node's stack would do so only if its
//! FORWARD chain lets it (on a node with Docker it does not), and packet by packet.
use cni_common::{drop::Point, maps::Tunnel, net::Mac, wire::*};

use crate::{
    DropReason as D, Env, Packet, Res, System, Tables, Verdict,
    family::{Family, V4, V6},
    flow::way_to,
};

/// Bytes of the packet that an error quotes at most. Enough for the headers, with options, of a TCP segment in a pod's own tunnel; a multiple
/// of 8.
const QUOTE: u32 = 128;

/// An error to send.
pub struct Error<F: Family> {
    /// The packet was too big; else it had no hop left.
    pub is_too_big: bool,
    /// What would have fitted, bytes, when it was too big.
    pub mtu: u32,
    /// Under which address.
    pub src: F::Addr,
    /// To whom.
    pub dst: F::Addr,
}

/// Whether a drop is one of which the sender must hear. No other programs measure a packet or count its hops.
#[inline(always)]
pub fn concerns_sender(point: Point, reason: D) -> bool {
    matches!((point, reason), (Point::FromPod | Point::FromHost, D::TooBig) | (Point::FromPod, D::TtlExceeded))
}

/// What becomes of a dropped frame: turned into an error to its sender, if it is one of which the sender must hear. `None`: nothing.
#[inline(always)]
pub fn answer<P: Packet, S: System<P>>(p: &mut P, s: &S, point: Point, reason: D) -> Option<Verdict> {
    if !concerns_sender(point, reason) {
        return None;
    }
    match p.read::<Eth>(0).ok()?.proto {
        ETH_IP4 => Back::verdict(about::<V4, P, S>(p, s, cause(p, point, reason))),
        ETH_IP6 => Back::verdict(about::<V6, P, S>(p, s, cause(p, point, reason))),
        _ => None,
    }
}

/// Where an answer goes, in one register: a subprogram of BPF returns one.
#[derive(Clone, Copy)]
struct Back {
    packed: u64,
}
impl Back {
    const NOWHERE: Self = Self { packed: 0 };
    const HOST: Self = Self { packed: u64::MAX };

    /// No device has index 0.
    #[inline(always)]
    fn pod(ifindex: u32) -> Self {
        Self { packed: u64::from(ifindex) }
    }
    #[inline(always)]
    fn verdict(self) -> Option<Verdict> {
        match self.packed {
            0 => None,
            u64::MAX => Some(Verdict::Host),
            ifindex => Some(Verdict::Answer(ifindex as u32)),
        }
    }
}

/// Where, and why: bits of which the verifier knows nothing, as it would walk all that follows once for each pair.
#[derive(Clone, Copy)]
struct Cause {
    bits: u64,
}
impl Cause {
    const POD: u64 = 1;
    const TOO_BIG: u64 = 2;

    /// Dropped in `from_pod`, else in `from_host`.
    #[inline(always)]
    fn is_a_pods(self) -> bool {
        self.bits & Self::POD != 0
    }
    /// Too big, else without a hop left.
    #[inline(always)]
    fn is_too_big(self) -> bool {
        self.bits & Self::TOO_BIG != 0
    }
}

#[inline(always)]
fn cause<P: Packet>(p: &P, point: Point, reason: D) -> Cause {
    let point = if point as u8 == Point::FromPod as u8 { Cause::POD } else { 0 };
    let reason = if reason == D::TooBig { Cause::TOO_BIG } else { 0 };
    Cause { bits: p.blur(point | reason) }
}

#[inline(never)]
fn about<F: Family, P: Packet, S: Env + Tables<F>>(p: &mut P, s: &S, cause: Cause) -> Back {
    turn::<F, P, S>(p, s, cause).unwrap_or(Back::NOWHERE)
}

#[inline(always)]
fn turn<F: Family, P: Packet, S: Env + Tables<F>>(p: &mut P, s: &S, cause: Cause) -> Option<Back> {
    let cfg = s.config()?;
    let ip = F::l3(p, ETH_LEN).ok()?;
    // An error about an error would have no end; a later fragment says not of which flow it is.
    if ip.part.is_later() || F::is_icmp_error(p, &ip) {
        return None;
    }
    let mtu = if cause.is_too_big() { inner_mtu(s.tunnel(way_to::<F, S>(s, &ip.dst)?.0)?) } else { 0 };
    if !s.may_answer() {
        return None;
    }
    let sender: Eth = p.read(0).ok()?;
    let (src, mac, back) = if cause.is_a_pods() {
        (F::node(cfg), sender.src, Back::pod(p.ifindex()))
    } else {
        // What the stack sent came from a pod here, from the node itself or from whom it forwards for. The stack believes only a source
        // that lies behind `weft_host`: that of the packet's destination.
        match s.local(&ip.src) {
            Some(l) => (ip.dst, l.mac, Back::pod(l.ifindex)),
            None => (ip.dst, Mac::WEFT, Back::HOST),
        }
    };
    write(p, &Error::<F> { is_too_big: cause.is_too_big(), mtu, src, dst: ip.src }).ok()?;
    p.write(0, Eth { dst: mac, src: Mac::WEFT, proto: F::ETHERTYPE }).ok()?;
    p.for_this_host();
    Some(back)
}

/// What a packet may have that goes this way, bytes without the outer headers.
#[inline(always)]
fn inner_mtu(tun: &Tunnel) -> u32 {
    tun.mtu.saturating_sub(if tun.family == 4 { OVERHEAD4 } else { OVERHEAD6 })
}

/// Turns the frame into the error. When it fails, the frame is nobody's any more.
#[inline(always)]
fn write<F: Family, P: Packet>(p: &mut P, e: &Error<F>) -> Res<()> {
    let whole = p.len() - ETH_LEN as u32;
    let quote = if whole < QUOTE { whole } else { QUOTE };
    // A short packet is lengthened by zeros, which change no sum, and cut off again: a sum over a length that varies would be a
    // state of the verifier for each length.
    p.resize(ETH_LEN as u32 + QUOTE)?;
    let sum = p.sum::<{ QUOTE as usize }>(ETH_LEN)?;
    p.resize(ETH_LEN as u32 + quote)?;
    p.push(F::HEADER + size_of::<Icmp>() as u32)?;
    F::write_icmp_error(p, e, quote, sum)
}
