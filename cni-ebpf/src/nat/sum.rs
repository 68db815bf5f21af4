//! What a change of words does to a checksum that covers them (RFC 1624).
use cni_common::net::Be16;

/// New words and the complements of the old ones, added up in memory order: the sum of one's complement grows by it.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Diff {
    sum: u64,
}

impl Diff {
    /// Nothing has changed.
    pub const NONE: Self = Self { sum: 0 };

    /// From what [`folded`](Self::folded) gives.
    #[inline(always)]
    pub const fn of(folded: u32) -> Self {
        Self { sum: folded as u64 }
    }
    /// And two bytes at an even offset.
    #[inline(always)]
    pub fn half(self, old: Be16, new: Be16) -> Self {
        Self { sum: self.sum + u64::from(!old.raw()) + u64::from(new.raw()) }
    }
    /// And four.
    #[inline(always)]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self { sum: self.sum + u64::from(!old) + u64::from(new) }
    }
    /// And eight.
    #[inline(always)]
    pub fn long(self, old: u64, new: u64) -> Self {
        self.word(old as u32, new as u32).word((old >> 32) as u32, (new >> 32) as u32)
    }
    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum }
    }
    /// In 16 bits, as the kernel's helpers take it.
    #[inline(always)]
    pub fn folded(self) -> u32 {
        let sum = (self.sum & 0xffff_ffff) + (self.sum >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u32
    }
    /// The checksum after the change (RFC 1624 equation 3). One that was made of what it covers never comes out as 0xffff.
    #[inline(always)]
    pub fn apply(self, csum: Be16) -> Be16 {
        let sum = Self { sum: self.sum + u64::from(!csum.raw()) }.folded();
        Be16::new((!(sum as u16)).to_ne_bytes())
    }
    /// A sum that is not complemented, as that of a pseudo header, after the change.
    #[inline(always)]
    pub fn add_to(self, sum: Be16) -> Be16 {
        let sum = Self { sum: self.sum + u64::from(sum.raw()) }.folded();
        Be16::new((sum as u16).to_ne_bytes())
    }
}
