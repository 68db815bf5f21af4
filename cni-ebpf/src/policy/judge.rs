//! A packet put to policy.
use cni_common::{
    drop::Point,
    net::Be16,
    wire::{SCTP, TCP, UDP},
};

use super::{Flow, Identities, Rules, Ruling, egress, ingress};
use crate::{
    DropReason as D, Packet, Res,
    ct::{Ask, Direction, Sets, signal},
    family::Family,
};

/// Whether the policies of both ends allow the packet's flow: always asked as its opener would. What is of no flow (an ICMP message that is no echo) has no
/// ports.
///
/// # Errors
/// [`PolicyEgress`](D::PolicyEgress), [`PolicyIngress`](D::PolicyIngress), [`PolicyUnknown`](D::PolicyUnknown); [`FragmentOrder`](D::FragmentOrder) of a
/// fragment whose ports nobody knows.
#[inline(always)]
pub fn judge<F: Family, P: Packet, S: Rules + Identities<F>>(
    p: &P,
    s: &S,
    ask: &Ask,
    direction: Direction,
    sets: Sets,
) -> Res<()> {
    if ask.part().is_later() && ask.heard == signal::NOTHING {
        return Err(D::FragmentOrder);
    }
    let (sender, receiver) = F::addresses(p, ask.l3())?;
    let (_, _, ports) = signal::split(ask.heard);
    let flow = match direction {
        Direction::Forth => {
            Flow { src: sender, dst: receiver, proto: ask.proto(), port: port(ask.proto(), ports.dst()) }
        }
        Direction::Back => {
            Flow { src: receiver, dst: sender, proto: ask.proto(), port: port(ask.proto(), ports.src()) }
        }
    };
    refused(egress(s, sets.egress, &flow), D::PolicyEgress)?;
    let from_stack = direction == Direction::Forth && ask.point() == Some(Point::FromHost);
    refused(ingress(s, sets.ingress, from_stack, &flow), D::PolicyIngress)
}

/// Of an echo, the identifier stands where others have ports.
#[inline(always)]
fn port(proto: u32, port: Be16) -> Be16 {
    const TCP_: u32 = TCP as u32;
    const UDP_: u32 = UDP as u32;
    const SCTP_: u32 = SCTP as u32;
    match proto {
        TCP_ | UDP_ | SCTP_ => port,
        _ => Be16::ZERO,
    }
}

#[inline(always)]
fn refused(ruling: Ruling, reason: D) -> Res<()> {
    if ruling.is_allowed() { Ok(()) } else { Err(if ruling.is_unknown() { D::PolicyUnknown } else { reason }) }
}
