//! What policy says of a flow, and of a packet, each in one register.
use cni_common::{
    drop::Outcome,
    policy::{HitKey, Rule, VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_DENY},
};

use crate::{DropReason, Res};

/// Why a flow may pass or not.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Why {
    /// No policy selects the pod in this direction.
    NotIsolated = 1,
    /// Both ends are one address: a pod always reaches itself.
    Itself = 2,
    /// It comes from the node that the pod runs on.
    OwnNode = 3,
    /// The set's entry for the peer says so for all that goes between them.
    Whole = 4,
    /// A rule's entry says so; its cookie names the policy's rule.
    Entry = 5,
    /// The rule set has no entry for the protocol and port: what no policy allows is denied.
    NoEntry = 6,
    /// The address is a pod's, but of which pod is not known: denied.
    UnknownPeer = 7,
    /// The maps do not hold the pod's policy set: denied.
    NoSet = 8,
    /// It is to a Service's address: what the node's stack makes of it is asked about.
    Service = 9,
}

/// May a flow pass, why, and whose rule says so. One word, as it travels in a register: bit 0 is set if it may pass, bit 1 too if it only may because policies
/// are in audit mode, bits 8 to 15 are [`Why`], the upper half is the cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Ruling {
    word: u64,
}

impl Ruling {
    /// It may pass.
    #[inline(always)]
    pub const fn allowed(why: Why) -> Self {
        Self { word: 1 | (why as u64) << 8 }
    }
    /// It may not.
    #[inline(always)]
    pub const fn denied(why: Why) -> Self {
        Self { word: (why as u64) << 8 }
    }
    /// What an entry says. A verdict that is none denies.
    #[inline(always)]
    pub fn of_entry(rule: &Rule) -> Self {
        let audited = (rule.verdict == VERDICT_AUDIT) as u64;
        let may = (rule.verdict == VERDICT_ALLOW) as u64 | audited;
        Self { word: may | audited << 1 | (Why::Entry as u64) << 8 | (rule.cookie as u64) << 32 }
    }
    /// From what [`word`](Self::word) gives.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }
    /// As a number.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.word
    }
    /// Whether it may pass.
    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.word & 1 != 0
    }
    /// The same of policies that are all in audit mode: what they deny may pass.
    #[inline(always)]
    pub const fn in_audit(self) -> Self {
        if self.is_allowed() { self } else { Self { word: self.word | 3 } }
    }
    /// Whether it may pass only because policies are in audit mode.
    #[inline(always)]
    pub const fn is_audited(self) -> bool {
        self.word & 2 != 0
    }
    /// Whether it denies, or would, and not because only a pod can have the address.
    #[inline(always)]
    pub const fn may_wait(self) -> bool {
        self.word & 3 != 1 && !self.is_unknown()
    }
    /// Whether what the node's stack makes of it is asked about, or who answers.
    #[inline(always)]
    pub const fn is_later(self) -> bool {
        self.word >> 8 & 0xff == Why::Service as u64
    }
    /// Whether it is denied because nobody knows who the peer is.
    #[inline(always)]
    pub const fn is_unknown(self) -> bool {
        self.word >> 8 & 0xff == Why::UnknownPeer as u64
    }
    /// Names the policy's rule that decides; 0 when it is none.
    #[inline(always)]
    pub const fn cookie(self) -> u32 {
        (self.word >> 32) as u32
    }
    /// Under what it is counted at the pod that has this policy set: [`HitKey::number`], 0 for nothing, which is what passes without a rule that says so.
    #[inline(always)]
    pub const fn hit(self, set: u32) -> u64 {
        const { assert!(VERDICT_ALLOW == 1 && VERDICT_DENY == 2 && VERDICT_AUDIT == 3) };
        let verdict = self.word as u32 & 3 | (!self.word as u32 & 1) << 1;
        if self.cookie() != 0 {
            HitKey::of_rule(self.cookie(), verdict).number()
        } else if verdict != VERDICT_ALLOW {
            HitKey::of_set(set, verdict).number()
        } else {
            0
        }
    }
    /// Why.
    #[cfg(not(target_arch = "bpf"))]
    pub fn why(self) -> Why {
        let all = [
            Why::NotIsolated,
            Why::Itself,
            Why::OwnNode,
            Why::Whole,
            Why::Entry,
            Why::NoEntry,
            Why::UnknownPeer,
            Why::Service,
        ];
        all.into_iter().find(|w| *w as u64 == self.word >> 8 & 0xff).unwrap_or(Why::NoSet)
    }
}

/// Beside the label class under which policy has judged: the flow is to a Service's address, so it is not remembered as one that may go on, until somebody has answered whom
/// policy has judged.
pub const LATER: u32 = 1 << 24;

/// What becomes of a packet, which ends let it pass only because their policies are in audit mode, and under which label class its opener was judged. One word: two
/// bits for each end, then three for the reason to drop it, 0 if there is none, or for [`LATER`], then one if something is to be counted; bits 8 to 31 are the class, the upper half
/// is the cookie that the sender's audit rests on.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Judged {
    word: u64,
}

impl Judged {
    /// Both ends let it pass.
    pub const PASS: Self = Self { word: 0 };
    const EGRESS: u64 = 1 << 0;
    const INGRESS: u64 = 1 << 1;
    /// Beside each of them: nobody knows who the other end is.
    const UNKNOWN: u32 = 2;
    const REASON: u32 = 4;
    /// In the place of a reason: it passes, and is not remembered.
    const IS_LATER: u64 = 5;
    const HIT: u64 = 1 << 7;
    const CLASS: u32 = 8;

    /// From what [`word`](Self::word) gives.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }
    /// As a number.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.word
    }
    /// The same, and it is dropped, for one of the reasons that [`judge`](super::judge()) has.
    #[inline(always)]
    pub const fn dropped(self, reason: DropReason) -> Self {
        let number = match reason {
            DropReason::PolicyEgress => 1,
            DropReason::PolicyIngress => 2,
            DropReason::PolicyUnknown => 3,
            DropReason::FragmentOrder => 4,
            _ => 6,
        };
        Self { word: self.word & !(7 << Self::REASON) | number << Self::REASON }
    }
    /// The same, and there is something to be counted.
    #[inline(always)]
    pub const fn hit(self) -> Self {
        Self { word: self.word | Self::HIT }
    }
    /// Whether [`Blame::ruled`](super::Blame::ruled) was told what is to be counted.
    #[inline(always)]
    pub const fn is_hit(self) -> bool {
        self.word & Self::HIT != 0
    }
    /// The same, and the opener was judged under this label class of 24 bits; 0: under none.
    #[inline(always)]
    pub const fn under(self, class: u32) -> Self {
        Self { word: self.word | ((class & 0xff_ffff) as u64) << Self::CLASS }
    }
    /// The same, and it is not remembered if the ruling leaves it for later: see [`LATER`].
    #[inline(always)]
    pub const fn later_if(self, ruling: Ruling, asks: u64) -> Self {
        Self { word: self.word | ((ruling.is_later() as u64 & asks) * (Self::IS_LATER << Self::REASON)) }
    }
    /// The same, and this is what the opener's policies say.
    #[inline(always)]
    pub const fn with_egress(self, ruling: Ruling) -> Self {
        if ruling.is_audited() {
            Self { word: self.word | Self::bits(Self::EGRESS, ruling) | (ruling.cookie() as u64) << 32 }
        } else {
            self
        }
    }
    /// The same, and this is what those of the other end say.
    #[inline(always)]
    pub const fn with_ingress(self, ruling: Ruling) -> Self {
        if ruling.is_audited() { Self { word: self.word | Self::bits(Self::INGRESS, ruling) } } else { self }
    }
    #[inline(always)]
    const fn bits(end: u64, ruling: Ruling) -> u64 {
        if ruling.is_unknown() { end | end << Self::UNKNOWN } else { end }
    }
    /// Whether it passes, at one end or both, only because policies are in audit mode.
    #[inline(always)]
    pub const fn is_audited(self) -> bool {
        self.word & (Self::EGRESS | Self::INGRESS) != 0
    }
    /// What is counted and reported of an end, of the opener or else of the other one: with the reason for which it would deny the flow, and the cookie. `blamed`:
    /// what was said last by [`Blame`](super::Blame).
    #[inline(always)]
    pub const fn audited(self, of_opener: bool, blamed: u32) -> Option<(Outcome, DropReason, u32)> {
        let (end, outcome, reason, cookie) = if of_opener {
            (Self::EGRESS, Outcome::AuditEgress, DropReason::PolicyEgress, (self.word >> 32) as u32)
        } else {
            (Self::INGRESS, Outcome::AuditIngress, DropReason::PolicyIngress, blamed)
        };
        if self.word & end == 0 {
            return None;
        }
        let unknown = self.word & end << Self::UNKNOWN != 0;
        Some((outcome, if unknown { DropReason::PolicyUnknown } else { reason }, cookie))
    }
    /// The label class under which the opener was judged; 0: under none.
    #[inline(always)]
    pub const fn class(self) -> u32 {
        (self.word >> Self::CLASS) as u32 & 0xff_ffff
    }
    /// Whether it passes, and the label class under which the opener was judged, with [`LATER`].
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline(always)]
    pub const fn result(self) -> Res<u32> {
        match self.word >> Self::REASON & 7 {
            0 => Ok(self.class()),
            Self::IS_LATER => Ok(self.class() | LATER),
            1 => Err(DropReason::PolicyEgress),
            2 => Err(DropReason::PolicyIngress),
            3 => Err(DropReason::PolicyUnknown),
            4 => Err(DropReason::FragmentOrder),
            _ => Err(DropReason::Short),
        }
    }
}
