//! What policy says of a flow, in one register.
use cni_common::policy::{Rule, VERDICT_ALLOW};

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
}

/// May a flow pass, why, and whose rule says so. One word, as it travels in a register: bit 0 is set if it may pass, bits 8 to 15 are [`Why`],
/// the upper half is the cookie.
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
        let may = (rule.verdict == VERDICT_ALLOW) as u64;
        Self { word: may | (Why::Entry as u64) << 8 | (rule.cookie as u64) << 32 }
    }
    /// Whether it may pass.
    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.word & 1 != 0
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
    /// Why.
    #[cfg(not(target_arch = "bpf"))]
    pub fn why(self) -> Why {
        let all = [Why::NotIsolated, Why::Itself, Why::OwnNode, Why::Whole, Why::Entry, Why::NoEntry, Why::UnknownPeer];
        all.into_iter().find(|w| *w as u64 == self.word >> 8 & 0xff).unwrap_or(Why::NoSet)
    }
}
