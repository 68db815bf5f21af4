//! What conntrack asks of maps and of its callers.
use cni_common::{
    drop::{Outcome, Point},
    maps::{CT_CLASS, CT_CLASS_SHIFT, CtConfig, CtEntry, Fragments},
    schema::MAX_HELD,
};

use super::Flow;
use crate::{family::Family, policy::LATER};

/// Which way a packet goes, seen from the end that opened its flow: policy is always asked in the opener's direction.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Direction {
    /// Its sender opened the flow.
    Forth = 0,
    /// Its receiver did.
    Back = 1,
}

/// Endpoint ids of a packet's two ends; 0: that end is elsewhere, and not judged here.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Ends {
    /// The sender.
    pub from: u32,
    /// The receiver.
    pub to: u32,
}

/// What became of a flow that was to move to the large table.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Promotion {
    /// It is there now.
    Done = 0,
    /// Another CPU was faster.
    Other = 1,
    /// There is no room; the flow stays where it is.
    Full = 2,
}

/// What does not depend on the address family.
pub trait CtEnv {
    /// What the agent says; all zero until it has written it: then nothing is remembered for longer than a moment.
    fn ct_config(&self) -> Option<&CtConfig>;
    /// Time, in jiffies: lifetimes are in them.
    fn jiffies(&self) -> u64;
    /// `n` again, of which neither the compiler nor the verifier knows any more what it is: `unknown`, a number that no branch has been made of, is
    /// added and taken away. Else the verifier would walk all that follows once for each value that a branch has left.
    fn blur(&self, n: u64, unknown: u64) -> u64;
    /// Counts what happened beside the packet's own fate.
    fn note(&self, point: Point, what: Outcome);
    /// Of a family's table of flows, and of that of translations, what one endpoint may have: a quarter of the smallest.
    #[inline(always)]
    fn share(&self) -> u64 {
        MAX_HELD.into()
    }
}

/// The tables of one family. An entry that was looked up stays readable while the packet is handled, even if it is deleted meanwhile.
pub trait Flows<F: Family> {
    /// A flow that both ends have spoken in: of the table that only expiry empties.
    fn flow(&self, key: &F::CtKey) -> Option<&Flow>;
    /// A flow that waits for the other end, or found no room: of the small table that forgets the least recently used.
    fn new_flow(&self, key: &F::CtKey) -> Option<&Flow>;
    /// Enters a flow into the small table, in the place of what is there.
    fn begin(&self, key: &F::CtKey, entry: &CtEntry);
    /// Enters one into the large table, in the place of what is there: a flow that takes over the ports of one that is over.
    fn replace(&self, key: &F::CtKey, entry: &CtEntry);
    /// Copies a flow into the large table, unless it is there.
    fn promote(&self, key: &F::CtKey, entry: &CtEntry) -> Promotion;
    /// Takes it out of the small one.
    fn forget(&self, key: &F::CtKey);
    /// What the first fragment of a datagram has said.
    fn fragments(&self, key: &F::FragKey) -> Option<Fragments>;
    /// Remembers that, in the place of what is there. The oldest are forgotten.
    fn remember(&self, key: &F::FragKey, said: &Fragments);
    /// Flows in the large table on an endpoint's account. Several CPUs count at a time, so it may be a few off.
    fn held(&self, endpoint: u32) -> u64;
    /// One more.
    fn hold(&self, endpoint: u32);
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Tracked {
    /// It may pass.
    Known,
    /// It may pass, and goes by the node's stack, which the other end's packets come out of.
    ByHost,
    /// It is to be judged, this way round; if every end on this node allows it, it is tracked once more, as granted.
    Judge(Direction),
}

/// That a packet was judged and may pass, and by which policy: the epoch that was read before the first look at it. Else a change in between would be
/// taken for one that was obeyed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Granted {
    packed: u64,
}
impl Granted {
    /// It was not judged.
    pub const NO: Self = Self { packed: 0 };
    const YES: u64 = 1 << 32;
    const LATER: u32 = 33;

    /// By policy of this epoch.
    #[inline(always)]
    pub const fn by(epoch: u32) -> Self {
        Self { packed: epoch as u64 | Self::YES }
    }
    /// From what [`packed`](Self::packed) gives.
    #[inline(always)]
    pub const fn of(packed: u64) -> Self {
        Self { packed }
    }
    /// As a number.
    #[inline(always)]
    pub const fn packed(self) -> u64 {
        self.packed
    }
    /// The same, with what policy said beside: the label class under which the flow's opener was judged, 0 for none, and [`LATER`](crate::policy::LATER).
    #[inline(always)]
    pub const fn under(self, said: u32) -> Self {
        let later = ((said / LATER) & 1) as u64;
        Self { packed: self.packed | (said as u64) << CT_CLASS_SHIFT | later << Self::LATER }
    }
    /// Of these bits of a verdict word those that are remembered: none of a flow that is judged by its answer.
    #[inline(always)]
    pub const fn remembers(self, allowed: u64) -> u64 {
        allowed & (self.packed >> Self::LATER & 1).wrapping_sub(1)
    }
    /// That class, where the verdict word has it.
    #[inline(always)]
    pub const fn class(self) -> u64 {
        self.packed & CT_CLASS
    }
    /// Whether it was judged.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.packed & Self::YES != 0
    }
    /// The epoch; 0 if it was not.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        self.packed as u32
    }
    /// What becomes of a packet that is to be judged this way round, and that nobody remembers.
    #[inline(always)]
    pub(super) fn or(self, direction: Direction) -> Tracked {
        if self.is_some() { Tracked::Known } else { Tracked::Judge(direction) }
    }
}
