//! Shared with whom: fields that several CPUs write at a time, and types that user space sees as bytes.
use core::cell::UnsafeCell;

/// A field of a map's value that programs on several CPUs read and write at a time: each access is one load or one store
/// (`READ_ONCE` and `WRITE_ONCE`). There is no atomic type of its sizes on BPF, nor an instruction that fetches before Linux 5.12.
#[repr(transparent)]
pub struct Shared<T> {
    cell: UnsafeCell<T>,
}

#[expect(unsafe_code, reason = "field guide, rule 11: the cell that keeps the packet path's logic free of it")]
impl<T: bytemuck::Pod> Shared<T> {
    /// Holds a value.
    #[inline(always)]
    pub const fn new(v: T) -> Self {
        Self { cell: UnsafeCell::new(v) }
    }
    /// Loads it once.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the cell is valid for as long as it is borrowed, and any bytes are a value of `T`. It is not `Sync`: on a host one thread
        // has it. In a program other CPUs store words whole, and a volatile load of a word reads it whole.
        unsafe { self.cell.get().read_volatile() }
    }
    /// Stores it once.
    #[inline(always)]
    pub fn set(&self, v: T) {
        // SAFETY: as in `get`; nothing can hold a reference to what is inside.
        unsafe { self.cell.get().write_volatile(v) }
    }
}

#[cfg(any(test, feature = "std"))]
impl<T: bytemuck::Pod> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}
#[cfg(any(test, feature = "std"))]
impl<T: bytemuck::Pod + core::fmt::Debug> core::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

/// Declares that a shared type may be handed to aya. It demands `bytemuck::Pod`, whose derive refuses hidden padding and
/// invalid bit patterns, so aya's blanket promise is one that the compiler has checked.
#[cfg(feature = "user")]
#[macro_export]
macro_rules! user_pod {
    ($($t:ty),* $(,)?) => { $(
        const _: () = { const fn plain<T: ::bytemuck::Pod>() {} plain::<$t>() };
        // SAFETY: `bytemuck::Pod`, demanded in the line above, promises the same: any bytes are valid, none is padding.
        #[expect(unsafe_code, reason = "the one place of the field guide's rule 11 for aya::Pod")]
        unsafe impl ::aya::Pod for $t {}
    )* };
}

#[cfg(feature = "user")]
mod impls {
    use crate::{drop::Count, event::*, maps::*, net::*, policy::*};
    user_pod!(
        Be16,
        Be32,
        Ip4,
        Ip6,
        Mac,
        Config,
        Endpoint,
        Local,
        Remote,
        Cidr,
        Tunnel,
        Count,
        CtKey4,
        CtKey6,
        CtEntry,
        CtConfig,
        Identity,
        PeerKey,
        PeerRules,
        RuleKey,
        Rule,
        HitKey,
        Blame,
        Told,
        DropEvent,
        EventBudget
    );
}
