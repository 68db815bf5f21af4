//! What a program asks of conntrack, in numbers.
//!
//! The kernel verifies a function of global linkage once, for any arguments, and its callers as if it could answer anything: so conntrack
//! costs each program the verifier's work of a call, not that of all ways through it. Linux 5.10 hands such a function the context and scalars only; the
//! addresses are read once more.
use cni_common::drop::Point;

use super::{Ends, Granted, Tracked, signal::NOTHING};
use crate::{
    Packet, Res,
    family::{Family, L3, Part},
    policy::Question,
};

/// A packet, as conntrack needs to know it: numbers, of which none says more than a few bits' range to the verifier.
#[derive(Clone, Copy)]
pub struct Ask {
    /// Where the headers are, and what they are: see the accessors.
    pub what: u64,
    /// What it says, as [`signal`](super::signal) writes it.
    pub heard: u64,
    /// Endpoints.
    pub ends: Ends,
}

const L4: u32 = 8;
const PART: u32 = 24;
const L3_AT: u32 = 32;
const POINT: u32 = 40;
const FRAG: u32 = 48;
/// Of two bits that count points, FromHost alone has the lower one without the upper.
const _: () = assert!(
    Point::FromPod as u8 == 0
        && Point::FromHost as u8 == 1
        && Point::FromNetdev as u8 == 2
        && Point::FromOverlay as u8 == 3
        && Point::ALL.len() == 4
);

impl Ask {
    /// Of the packet whose network header is at `at`, below 256.
    #[inline(always)]
    pub fn new<F: Family>(point: Point, at: usize, ip: &L3<F>, ends: Ends) -> Self {
        let what = u64::from(ip.proto & 0xff)
            | (ip.l4 as u64) << L4
            | u64::from(ip.part.bits()) << PART
            | (at as u64) << L3_AT
            | (point as u64) << POINT
            | (ip.frag as u64) << FRAG;
        Self { what, heard: 0, ends }
    }
    /// The same, and what it says.
    #[inline(always)]
    pub fn of<F: Family, P, S: Track<P, F>>(p: &mut P, s: &S, point: Point, at: usize, ip: &L3<F>, ends: Ends) -> Self {
        let ask = Self::new(point, at, ip, ends);
        Self { heard: s.hear(p, ask), ..ask }
    }
    /// Of the packet that this one quotes, with its network header at `at`: one of a flow that is known.
    #[inline(always)]
    pub fn quoted(&self, at: u32, heard: u64) -> Self {
        let point = self.what & 0xff << POINT;
        let what = heard >> 16 & 0xff | u64::from(at & 0xff) << L3_AT | point;
        Self { what, heard, ends: self.ends }
    }
    /// Offset of the fragment header; 0: there is none, as in IPv4.
    #[inline(always)]
    pub fn frag(&self) -> usize {
        (self.what >> FRAG) as usize & 0x3fff
    }
    /// IP protocol.
    #[inline(always)]
    pub fn proto(&self) -> u32 {
        self.what as u32 & 0xff
    }
    /// Offset of the transport header. Before 6.12 the verifier learns no packet range from a mask of 16 bits.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        (self.what >> L4) as usize & 0x3fff
    }
    /// Which part of a datagram it is.
    #[inline(always)]
    pub fn part(&self) -> Part {
        Part::of_bits((self.what >> PART) as u32 & 3)
    }
    /// Offset of the network header.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        (self.what >> L3_AT) as usize & 0xff
    }
    /// The network header again.
    ///
    /// # Errors
    /// [`Short`](crate::DropReason::Short).
    #[inline(always)]
    pub fn header<F: Family, P: Packet>(&self, p: &P) -> Res<L3<F>> {
        let (src, dst) = F::addresses(p, self.l3())?;
        Ok(L3 { src, dst, tos: 0, proto: self.proto(), l4: self.l4(), part: self.part(), frag: self.frag() })
    }
    /// 1 if it came out of the node's stack, else 0. Without a branch: the verifier would walk all that follows once for each outcome.
    #[inline(always)]
    pub fn is_from_host(&self) -> u64 {
        let point = self.what >> POINT;
        point & !(point >> 1) & 1
    }
    /// Where it was met.
    #[inline(always)]
    pub fn point(&self) -> Option<Point> {
        Point::from_number((self.what >> POINT) as u8)
    }
}

/// Both directions' policy sets of an end of a packet; all 0 of one that is elsewhere.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct EndSets {
    /// For what comes to it.
    pub ingress: u32,
    /// For what it opens.
    pub egress: u32,
}

/// Which way a packet goes that may pass.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Way {
    /// By that which its destination has.
    Straight = 0,
    /// By the node's stack, which may have translated the packets that it answers.
    Host = 1,
}

/// Lets a packet pass that its flow's verdict covers, or that policy allows. `sender` and `receiver`: their policy sets, which were looked up
/// after `epoch` was read: else a flow that they let pass would count as judged by the policy that isolates them.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn admit<F: Family, P, S: Track<P, F>>(
    p: &mut P,
    s: &S,
    epoch: u32,
    ask: Ask,
    sender: EndSets,
    receiver: EndSets,
) -> Res<Way> {
    // Where nobody is isolated, nobody need be asked.
    let isolated = sender.ingress | sender.egress | receiver.ingress | receiver.egress;
    let question = if ask.heard == NOTHING {
        // What is heard of an ICMP error is what it quotes. Asked at each place, for the stack: what is needed behind a call is kept there meanwhile.
        if isolated == 0 {
            return Ok(s.about(p, ask).way());
        }
        s.about(p, ask)
    } else {
        let granted = if isolated == 0 { Granted::by(epoch) } else { Granted::NO };
        match s.track(p, ask, granted)? {
            Tracked::Judge(direction) => Question::of(ask.heard, direction),
            Tracked::Known => return Ok(Way::Straight),
            Tracked::ByHost => return Ok(Way::Host),
        }
    };
    let class = s.judge(p, ask, question, sender, receiver)?;
    if ask.heard == NOTHING {
        return Ok(s.about(p, ask).way());
    }
    match s.track(p, ask, Granted::by(epoch).under(class))? {
        Tracked::ByHost => Ok(Way::Host),
        Tracked::Known | Tracked::Judge(_) => Ok(Way::Straight),
    }
}

/// Who looks after the flows of one family's packets: [`track`](super::track()), in the kernel by way of a global function.
pub trait Track<P, F: Family> {
    /// Finds or begins the packet's flow.
    ///
    /// # Errors
    /// [`Short`](crate::DropReason::Short).
    fn track(&self, p: &mut P, ask: Ask, granted: Granted) -> Res<Tracked>;
    /// Which flow an ICMP error is about: see [`policy::about`](crate::policy::about()).
    fn about(&self, p: &mut P, ask: Ask) -> Question;
    /// Asks the policies of the ends that are pods of this node about a packet of a flow that is not known, or not judged by them: see
    /// [`policy::judge`](crate::policy::judge()), which has the answer.
    ///
    /// # Errors
    /// Which refuses it.
    fn judge(&self, p: &mut P, ask: Ask, question: Question, sender: EndSets, receiver: EndSets) -> Res<u32>;
    /// What a packet says: see [`fragment::heard`](super::fragment::heard).
    fn hear(&self, p: &mut P, ask: Ask) -> u64;
}

#[cfg(test)]
mod tests {
    use cni_common::drop::Point;

    use super::*;
    use crate::family::{V4, V6};

    fn there_and_back<F: Family>(src: F::Addr) {
        for point in Point::ALL {
            for (at, l4, proto, later) in [(14, 34, 17, false), (64, 104, 6, true), (84, 0x3fff, 255, false)] {
                let part = if later { Part::of_fragment(185, 1) } else { Part::of_fragment(0, 1) };
                let ip = L3::<F> { src, dst: src, tos: 0xff, proto, l4, part, frag: l4 - 8 };
                let ask = Ask::new(point, at, &ip, Ends { from: 1, to: 2 });
                assert_eq!((ask.point(), ask.l3(), ask.l4()), (Some(point), at, l4));
                assert_eq!((ask.proto(), ask.part(), ask.frag()), (proto, part, l4 - 8));
            }
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        there_and_back::<V4>(bytemuck::Zeroable::zeroed());
        there_and_back::<V6>(bytemuck::Zeroable::zeroed());
    }

    #[test]
    fn of_a_quoted_packet_the_rest_is_its_own() {
        let ip = L3::<V4> {
            src: bytemuck::Zeroable::zeroed(),
            dst: bytemuck::Zeroable::zeroed(),
            tos: 0,
            proto: 1,
            l4: 34,
            part: Part::WHOLE,
            frag: 0,
        };
        let ask = Ask::new(Point::FromNetdev, 14, &ip, Ends { from: 1, to: 2 });
        let quoted = ask.quoted(
            42,
            super::super::signal::heard(4, super::super::key::Asker::NONE, 17, cni_common::net::Ports::NONE),
        );
        assert_eq!(
            (quoted.point(), quoted.l3(), quoted.proto(), quoted.part()),
            (Some(Point::FromNetdev), 42, 17, Part::WHOLE)
        );
    }
}
