//! A packet put to policy.
use cni_common::{
    drop::Point,
    net::Be16,
    policy::{SET_NONE, only_audits},
    wire::{MARK_ANSWER, SCTP, TCP, UDP},
};

use super::{Blame, Flow, Identities, Judged, Question, Rules, Ruling, Why, egress_of, ingress_of, said};
use crate::{
    DropReason as D, Packet, Res,
    ct::{Ask, Direction, EndSets, Flows, signal},
    family::Family,
};

/// Whether the policies of both ends allow the packet's flow, or that of the packet which it quotes: always asked as its opener would. What is of no flow
/// has no ports. `sender` and `receiver`: policy sets of the packet that was met. In the answer is the label class under which the opener was judged, 0 for none: a flow
/// that is remembered under it is judged again as it was, also by what is sent to the opener.
///
/// Reasons are [`PolicyEgress`](D::PolicyEgress), [`PolicyIngress`](D::PolicyIngress), [`PolicyUnknown`](D::PolicyUnknown), [`Short`](D::Short), and
/// [`FragmentOrder`](D::FragmentOrder) of a fragment whose ports nobody knows.
#[inline(always)]
pub fn judge<F: Family, P: Packet, S: Rules + Identities<F> + Flows<F> + Blame>(
    p: &P,
    s: &S,
    met: Ask,
    question: Question,
    sender: EndSets,
    receiver: EndSets,
) -> Judged {
    let passes = Judged::PASS;
    if question.is_none() {
        return passes;
    }
    let (ask, direction) = (question.packet(met), question.direction());
    // A quoted packet was sent by who gets this one.
    let (from, to) = if question.is_quoted() { (receiver, sender) } else { (sender, receiver) };
    let sets = sets(direction, from, to);
    // Who is isolated in the other direction alone is not asked.
    if sets.egress | sets.ingress == SET_NONE {
        return passes;
    }
    if ask.part().is_later() && question == Question::ITSELF {
        if !binds(sets.egress) && !binds(sets.ingress) {
            return passes;
        }
        s.blame(met.l3() as u32, 0, 0);
        return passes.dropped(D::FragmentOrder);
    }
    let flow = match opened::<F, P>(p, &ask, direction) {
        Ok(flow) => Flow { port: Be16::new((s.blur(flow.port.raw().into()) as u16).to_ne_bytes()), ..flow },
        Err(reason) => return passes.dropped(reason),
    };
    // A flow that is known has come in as its opener's packets do: none that came from elsewhere has an address of the node as source.
    let from_stack = direction == Direction::Back || question.is_quoted() || ask.point() == Some(Point::FromHost);
    let from_stack = s.blur(from_stack.into()) != 0;
    // Of a Service a judged pod has answered, or somebody whom no program of ours has seen, as the node itself: then the Service's address counts as any other.
    let asks = s.blur(u64::from(direction == Direction::Forth && !question.is_quoted())) & 1;
    let by_backend = s.blur(asks | u64::from((p.mark() / MARK_ANSWER) & 1)) & 1 != 0;
    let ruling = Ruling::from_word(s.blur(egress_of(s, sets.egress, &flow, by_backend).word()));
    let opener = (sets.egress, ruling);
    if !ruling.is_allowed() {
        s.ruled(opener, (SET_NONE, Ruling::allowed(Why::NotIsolated)));
        return passes.hit().dropped(refused(s, &met, ruling, 0, D::PolicyEgress));
    }
    let passes = Judged::from_word(s.blur(passes.later_if(ruling, asks).word()));
    let class = if sets.ingress == SET_NONE {
        0
    } else if direction == Direction::Back || question.is_quoted() {
        said::of_flow(s, &flow, ask.heard, direction)
    } else {
        said::of_packet(p, &met)
    };
    let judged = passes.with_egress(ruling);
    let class = s.blur(class.into()) as u32;
    let ruling = Ruling::from_word(s.blur(ingress_of(s, sets.ingress, from_stack, &flow, class).word()));
    s.ruled(opener, (sets.ingress, ruling));
    let judged = judged.hit();
    if !ruling.is_allowed() {
        return judged.dropped(refused(s, &met, ruling, class, D::PolicyIngress));
    }
    if ruling.is_audited() {
        s.blame(met.l3() as u32, ruling.cookie(), class);
    }
    judged.with_ingress(ruling).under(class)
}

/// The policy sets of a flow's ends that count.
#[derive(Clone, Copy)]
struct Sets {
    /// Of who opens it.
    egress: u32,
    /// Of the other end.
    ingress: u32,
}

/// Whether it may deny something.
#[inline(always)]
const fn binds(set: u32) -> bool {
    set != SET_NONE && !only_audits(set)
}

#[inline(always)]
fn sets(direction: Direction, sender: EndSets, receiver: EndSets) -> Sets {
    match direction {
        Direction::Forth => Sets { egress: sender.egress, ingress: receiver.ingress },
        Direction::Back => Sets { egress: receiver.egress, ingress: sender.ingress },
    }
}

/// The packet's flow, as its opener sees it.
#[inline(always)]
fn opened<F: Family, P: Packet>(p: &P, ask: &Ask, direction: Direction) -> Res<Flow<F>> {
    let (sender, receiver) = F::addresses(p, ask.l3())?;
    let (proto, (_, _, ports)) = (ask.proto(), signal::split(ask.heard));
    Ok(match direction {
        Direction::Forth => Flow { src: sender, dst: receiver, proto, port: port(proto, ports.dst()) },
        Direction::Back => Flow { src: receiver, dst: sender, proto, port: port(proto, ports.src()) },
    })
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
fn refused<S: Blame>(s: &S, met: &Ask, ruling: Ruling, class: u32, reason: D) -> D {
    s.blame(met.l3() as u32, ruling.cookie(), class);
    if ruling.is_unknown() { D::PolicyUnknown } else { reason }
}
