//! What an entry holds, and what a packet makes of it.
use core::mem::offset_of;

use cni_common::{
    maps::{CT_HI_ALLOWED, CT_HI_BY_HOST, CT_HI_OPENED, CT_LO_ALLOWED, CT_LO_BY_HOST, CtConfig, CtEntry},
    shared::Shared,
};

use super::{
    key::Rest,
    lifetime::lifetime,
    signal::{ANSWER, DATA, END, OPEN, RESET},
};

/// [`CtEntry`] in a map, where several CPUs write it at a time.
#[repr(C)]
#[cfg_attr(not(target_arch = "bpf"), derive(Clone, Debug))]
pub struct Flow {
    /// See [`CtEntry::moved`].
    #[cfg(feature = "test-layout")]
    pub moved: Shared<u64>,
    /// See [`CtEntry::verdicts`].
    pub verdicts: Shared<u64>,
    /// See [`CtEntry::seen`].
    pub seen: Shared<u64>,
    /// See [`CtEntry::lifetime`].
    pub lifetime: Shared<u32>,
    /// See [`CtEntry::charged`].
    pub charged: Shared<u32>,
    /// See [`CtEntry::lo_sent`].
    pub lo_sent: Shared<u8>,
    /// See [`CtEntry::hi_sent`].
    pub hi_sent: Shared<u8>,
    /// 0.
    pub pad: Shared<[u8; 6]>,
}
const _: () = assert!(
    size_of::<Flow>() == size_of::<CtEntry>()
        && align_of::<Flow>() == align_of::<CtEntry>()
        && offset_of!(Flow, verdicts) == offset_of!(CtEntry, verdicts)
        && offset_of!(Flow, seen) == offset_of!(CtEntry, seen)
        && offset_of!(Flow, lifetime) == offset_of!(CtEntry, lifetime)
        && offset_of!(Flow, charged) == offset_of!(CtEntry, charged)
        && offset_of!(Flow, lo_sent) == offset_of!(CtEntry, lo_sent)
        && offset_of!(Flow, hi_sent) == offset_of!(CtEntry, hi_sent)
);

/// How far a flow has come. Protocols without a handshake are established by the first reply.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Stage {
    /// Not both ends have spoken, or no more than SYN and SYN-ACK.
    Handshake = 0,
    /// Both ends speak.
    Established = 1,
    /// One end will send no more.
    Closing = 2,
    /// Both will not, or one has reset it.
    Closed = 3,
}

/// From what the two ends have sent, in either order.
#[inline(always)]
pub fn stage(a: u32, b: u32) -> Stage {
    if (a | b) & RESET != 0 || a & b & END != 0 {
        Stage::Closed
    } else if (a | b) & END != 0 {
        Stage::Closing
    } else if a != 0 && b != 0 && ((a | b) & DATA != 0 || a & b & ANSWER != 0) {
        // Two SYN-ACKs: a simultaneous open (RFC 9293 section 3.5).
        Stage::Established
    } else {
        Stage::Handshake
    }
}

/// Whether a packet that says this may begin a flow. What answers, ends or resets belongs to one that is not known, or no more.
#[inline(always)]
pub fn begins(said: u32) -> bool {
    said & (OPEN | DATA) != 0 && said & (END | RESET) == 0
}

/// Both are times in jiffies, and `seen` may be another CPU's, a little later than `now`.
#[inline(always)]
pub fn is_within(now: u64, seen: u64, ticks: u32) -> bool {
    (now.wrapping_sub(seen) as i64) < i64::from(ticks)
}

/// The bit that says that the end is allowed.
#[inline(always)]
pub const fn allowed(hi: bool) -> u64 {
    if hi { CT_HI_ALLOWED } else { CT_LO_ALLOWED }
}

/// How far the bit that says that an end's packets come out of the node's stack is from that of `lo`.
const BY_HOST: u32 = CT_LO_BY_HOST.trailing_zeros();
const _: () = assert!(CT_HI_BY_HOST == CT_LO_BY_HOST << 1);

/// 1 if an end's packets come out of the node's stack, else 0; `hi`: 1 for the end that comes last. Without a branch, as the next two.
#[inline(always)]
pub const fn by_host(verdicts: u64, hi: u64) -> u64 {
    verdicts >> BY_HOST >> (hi & 1) & 1
}

/// The verdict word, with `is` in the place of that.
#[inline(always)]
pub const fn with_by_host(verdicts: u64, hi: u64, is: u64) -> u64 {
    verdicts & !(1 << BY_HOST << (hi & 1)) | (is & 1) << BY_HOST << (hi & 1)
}

/// 1 if that end opened the flow, else 0.
#[inline(always)]
pub const fn opened_by(verdicts: u64, hi: u64) -> u64 {
    (verdicts >> CT_HI_OPENED.trailing_zeros() ^ hi ^ 1) & 1
}

/// A verdict word as it was judged.
#[inline(always)]
pub const fn verdicts(epoch: u32, allowed: u64, hi_opened: bool) -> u64 {
    epoch as u64 | allowed | if hi_opened { CT_HI_OPENED } else { 0 }
}

/// Whether it holds a verdict of this epoch for all that is needed.
#[inline(always)]
pub const fn is_judged(verdicts: u64, epoch: u32, needed: u64) -> bool {
    verdicts & (0xffff_ffff | needed) == epoch as u64 | needed
}

/// Fields of an entry, in the order in which they are loaded and stored.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug, PartialOrd, Ord))]
pub enum Field {
    /// The verdict word.
    Verdicts,
    /// When a packet was seen.
    Seen,
    /// How long it lives.
    Lifetime,
    /// What the packet's sender has sent.
    Own,
    /// What its receiver has.
    Other,
}

/// An entry as one packet found it, seen from its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct View {
    /// The verdict word.
    pub verdicts: u64,
    /// When a packet was seen.
    pub seen: u64,
    /// How long it lives.
    pub lifetime: u32,
    /// What the sender has sent.
    pub own: u32,
    /// What the receiver has.
    pub other: u32,
}

/// What a packet is to an entry.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Place {
    /// One of its packets.
    Within = 0,
    /// The first of a new flow, whose entry takes the place of this one.
    First = 1,
    /// Of no flow that is known: judged, and not remembered. The flow is over, or alive and this is the other end's attempt to open one of its own,
    /// which that flow's end will refuse.
    Aside = 2,
}

impl View {
    /// Loads each field once.
    #[inline(always)]
    pub fn load(mut get: impl FnMut(Field) -> u64) -> Self {
        Self {
            verdicts: get(Field::Verdicts),
            seen: get(Field::Seen),
            lifetime: get(Field::Lifetime) as u32,
            own: get(Field::Own) as u32,
            other: get(Field::Other) as u32,
        }
    }

    /// Stores what is different from `before`.
    #[inline(always)]
    pub fn store(&self, before: &Self, mut put: impl FnMut(Field, u64)) {
        if self.verdicts != before.verdicts {
            put(Field::Verdicts, self.verdicts);
        }
        if self.seen != before.seen {
            put(Field::Seen, self.seen);
        }
        if self.lifetime != before.lifetime {
            put(Field::Lifetime, self.lifetime.into());
        }
        if self.own != before.own {
            put(Field::Own, self.own.into());
        }
    }

    /// How far the flow has come.
    #[inline(always)]
    pub fn stage(&self) -> Stage {
        stage(self.own, self.other)
    }

    /// Whether both ends have spoken, and none has reset it.
    #[inline(always)]
    pub fn is_answered(&self) -> bool {
        self.other != 0 && (self.own | self.other) & RESET == 0
    }

    /// Whether a packet that left this said something new, or renewed the entry.
    #[inline(always)]
    pub fn is_news(&self, before: &Self) -> bool {
        u64::from(self.own ^ before.own) | (self.seen ^ before.seen) != 0
    }

    /// Whether the sender opened the flow.
    #[inline(always)]
    pub fn is_opener(&self, from_hi: bool) -> bool {
        (self.verdicts & CT_HI_OPENED != 0) == from_hi
    }

    /// What a packet is to this entry.
    #[inline(always)]
    pub fn place(&self, said: u32, from_hi: bool, now: u64) -> Place {
        if !is_within(now, self.seen, self.lifetime) {
            return if begins(said) { Place::First } else { Place::Aside };
        }
        if said & OPEN == 0 {
            return Place::Within;
        }
        match self.stage() {
            Stage::Closed => Place::First,
            // Sent again, or by an end that has forgotten the flow: the other end answers with what it knows (RFC 5961 section 4).
            _ if self.is_opener(from_hi) => Place::Within,
            // A simultaneous open (RFC 9293 section 3.5).
            Stage::Handshake if self.own & !OPEN == 0 => Place::Within,
            _ => Place::Aside,
        }
    }

    /// After a packet of its own.
    #[inline(always)]
    pub fn after(&self, cfg: &CtConfig, rest: Rest, said: u32, now: u64, blur: impl Fn(u32) -> u32) -> Self {
        let own = if said == ANSWER && self.other & !OPEN == 0 {
            // What a late packet of the flow before has left.
            self.own & OPEN | ANSWER
        } else if said & RESET == 0 {
            // Who has reset it says nothing more; this one goes on, so the reset was none of the flow's.
            self.own & !RESET | said
        } else {
            self.own | said
        };
        let lifetime = lifetime(cfg, rest, stage(own, self.other), blur);
        let renew = lifetime != self.lifetime || !is_within(now, self.seen, cfg.second);
        Self { seen: if renew { now } else { self.seen }, lifetime, own, ..*self }
    }

    /// After the first packet of a flow, with the verdict word of that.
    #[inline(always)]
    pub fn first(cfg: &CtConfig, rest: Rest, said: u32, now: u64, verdicts: u64, blur: impl Fn(u32) -> u32) -> Self {
        Self { verdicts, seen: now, lifetime: lifetime(cfg, rest, stage(said, 0), blur), own: said, other: 0 }
    }
}

impl Flow {
    /// What a packet of this end finds.
    #[inline(always)]
    pub fn view(&self, from_hi: bool) -> View {
        View::load(|field| match field {
            Field::Verdicts => self.verdicts.get(),
            Field::Seen => self.seen.get(),
            Field::Lifetime => self.lifetime.get().into(),
            Field::Own => self.sent(from_hi).get().into(),
            Field::Other => self.sent(!from_hi).get().into(),
        })
    }

    /// What it leaves.
    #[inline(always)]
    pub fn write(&self, from_hi: bool, before: &View, after: &View) {
        after.store(before, |field, value| match field {
            Field::Verdicts => self.verdicts.set(value),
            Field::Seen => self.seen.set(value),
            Field::Lifetime => self.lifetime.set(value as u32),
            Field::Own => self.sent(from_hi).set(value as u8),
            // It is the other end's to write.
            Field::Other => {}
        });
    }

    /// What an end has sent.
    #[inline(always)]
    pub fn sent(&self, hi: bool) -> &Shared<u8> {
        if hi { &self.hi_sent } else { &self.lo_sent }
    }
}

/// An entry to insert. Made of words: six bytes of zeros are a call of memset.
#[inline(always)]
pub fn entry(view: &View, from_hi: bool, charged: u32) -> CtEntry {
    let (lo, hi) = if from_hi { (view.other, view.own) } else { (view.own, view.other) };
    let life = u64::from(view.lifetime) | u64::from(charged) << 32;
    bytemuck::must_cast([
        #[cfg(feature = "test-layout")]
        0,
        view.verdicts,
        view.seen,
        life,
        u64::from(lo & 0xff | (hi & 0xff) << 8),
    ])
}
