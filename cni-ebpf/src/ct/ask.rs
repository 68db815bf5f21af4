//! What a program asks of conntrack, in numbers.
//!
//! The kernel verifies a function of global linkage once, for any arguments, and its callers as if it could answer anything: so conntrack
//! costs each program the verifier's work of a call, not that of all ways through it. Linux 5.10 hands such a function the context and scalars only; the
//! addresses are read once more.
use cni_common::drop::Point;

use super::{Direction, Ends, Granted, Tracked, signal::NOTHING};
use crate::{
    Packet, Res,
    family::{Family, L3, Part},
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
    /// Where it was met.
    #[inline(always)]
    pub fn point(&self) -> Option<Point> {
        Point::from_number((self.what >> POINT) as u8)
    }
}

/// Policy sets of a flow's ends, 0 for an end that is not isolated, or elsewhere.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Sets {
    /// Of who opens it, for egress.
    pub egress: u32,
    /// Of the other end, for ingress.
    pub ingress: u32,
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

/// Lets a packet pass that its flow's verdict covers, or that policy allows. `sender` and `receiver`: their policy sets.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn admit<F: Family, P, S: Track<P, F>>(p: &mut P, s: &S, ask: Ask, sender: EndSets, receiver: EndSets) -> Res<()> {
    let epoch = s.epoch();
    // Where nobody is isolated, nobody need be asked.
    let isolated = sender.ingress | sender.egress | receiver.ingress | receiver.egress;
    let granted = if isolated == 0 { Granted::by(epoch) } else { Granted::NO };
    let Tracked::Judge(direction) = s.track(p, ask, granted)? else { return Ok(()) };
    let sets = match direction {
        Direction::Forth => Sets { egress: sender.egress, ingress: receiver.ingress },
        Direction::Back => Sets { egress: receiver.egress, ingress: sender.ingress },
    };
    if ask.heard == NOTHING && s.is_related(p, ask) {
        return Ok(());
    }
    s.judge(p, ask, direction, sets)?;
    s.track(p, ask, Granted::by(epoch))?;
    Ok(())
}

/// Who looks after the flows of one family's packets: [`track`](super::track()), in the kernel by way of a global function.
pub trait Track<P, F: Family> {
    /// Finds or begins the packet's flow.
    ///
    /// # Errors
    /// [`Short`](crate::DropReason::Short).
    fn track(&self, p: &mut P, ask: Ask, granted: Granted) -> Res<Tracked>;
    /// Whether it is an ICMP error about a flow that lives, to who sent the packet that it quotes.
    fn is_related(&self, p: &mut P, ask: Ask) -> bool;
    /// The policy epoch, to be read before any look at policy.
    fn epoch(&self) -> u32;
    /// Asks the policies of the ends that are pods of this node about a packet of a flow that is not known, or not judged by them. `sets`: of the
    /// flow's opener for egress, of the other end for ingress.
    ///
    /// # Errors
    /// Which refuses it.
    fn judge(&self, p: &mut P, ask: Ask, direction: Direction, sets: Sets) -> Res<()>;
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
}
