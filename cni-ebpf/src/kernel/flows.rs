//! Conntrack's maps behind the traits of the logic.
use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::bpf_jiffies64,
};
use cni_common::{
    drop::{Outcome, Point},
    maps::{CtConfig, CtEntry, Fragments},
};
use cni_ebpf::{
    DropReason,
    ct::{self, Ask, CtEnv, Ends, Flow, Flows, Judged, Promotion, Track},
    family::{Family, V4, V6},
};

use super::{Kernel, Skb, count, maps::*};

/// The map has the key already (`linux/errno.h`).
pub const EEXIST: i32 = -17;

impl CtEnv for Kernel {
    #[inline(always)]
    fn ct_config(&self) -> Option<&CtConfig> {
        CT_CONFIG.get(0)
    }
    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_jiffies64() }
    }
    #[inline(always)]
    fn blur(&self, n: u64, unknown: u64) -> u64 {
        let mut n = n;
        // SAFETY: two instructions on registers.
        unsafe {
            asm!("{0} += {1}", "{0} -= {1}", "goto +0", inout(reg) n, in(reg) unknown, options(nomem, nostack));
        }
        n
    }
    #[inline(always)]
    fn note(&self, point: Point, what: Outcome) {
        count::count(point, what as u64, 0);
    }
}

/// An entry as cells.
#[inline(always)]
fn flow<'a>(entry: Option<*mut CtEntry>) -> Option<&'a Flow> {
    // SAFETY: layouts are asserted equal beside `Flow`; its fields are cells, so that other CPUs may write them. The map's memory stays mapped
    // while the program runs, also of an entry that is deleted meanwhile (see `cni_ebpf::ct`).
    entry.map(|e| unsafe { &*e.cast::<Flow>() })
}

/// One more, by an instruction that no other CPU comes between. Without the old value, as 5.10 has it.
#[inline(always)]
pub fn add_one(n: *mut u64) {
    // SAFETY: `n` is a value of a map, 8 bytes and aligned; the instruction changes nothing else.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) n, in(reg) 1_u64, options(nostack));
    }
}

macro_rules! flows {
    ($family:ty, $flows:ident, $new:ident, $held:ident, $frags:ident) => {
        impl Flows<$family> for Kernel {
            #[inline(always)]
            fn flow(&self, key: &<$family as Family>::CtKey) -> Option<&Flow> {
                flow($flows.get_ptr_mut(key))
            }
            #[inline(always)]
            fn new_flow(&self, key: &<$family as Family>::CtKey) -> Option<&Flow> {
                flow($new.get_ptr_mut(key))
            }
            #[inline(always)]
            fn begin(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) {
                // A map that forgets has room; if the kernel has none to spare at all, the next packet is judged again.
                $new.insert(key, entry, u64::from(BPF_ANY)).unwrap_or(());
            }
            #[inline(always)]
            fn replace(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) {
                // As above.
                $flows.insert(key, entry, u64::from(BPF_ANY)).unwrap_or(());
            }
            #[inline(always)]
            fn promote(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) -> Promotion {
                match $flows.insert(key, entry, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Promotion::Done,
                    Err(EEXIST) => Promotion::Other,
                    Err(_) => Promotion::Full,
                }
            }
            #[inline(always)]
            fn forget(&self, key: &<$family as Family>::CtKey) {
                // Whoever was faster did the same.
                $new.remove(key).unwrap_or(());
            }
            #[inline(always)]
            fn fragments(&self, key: &<$family as Family>::FragKey) -> Option<Fragments> {
                // SAFETY: the map hands the memory of what it forgets on; a torn value names a wrong flow, which policy judges like any other.
                unsafe { $frags.get(key) }.copied()
            }
            #[inline(always)]
            fn remember(&self, key: &<$family as Family>::FragKey, said: &Fragments) {
                // As of a flow that begins.
                $frags.insert(key, said, u64::from(BPF_ANY)).unwrap_or(());
            }
            #[inline(always)]
            fn held(&self, endpoint: u32) -> u64 {
                // SAFETY: a word that is read whole; entries are deleted by the agent alone.
                unsafe { $held.get(endpoint) }.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn hold(&self, endpoint: u32) {
                match $held.get_ptr_mut(endpoint) {
                    Some(n) => add_one(n),
                    // Two first flows on two CPUs may count as one.
                    None => $held.insert(endpoint, 1_u64, u64::from(BPF_ANY)).unwrap_or(()),
                }
            }
        }
    };
}
flows!(V4, CT4, CT_NEW4, CT_HELD4, FRAGS4);
flows!(V6, CT6, CT_NEW6, CT_HELD6, FRAGS6);

/// `0`, or the packet is refused.
#[inline(always)]
fn answered(code: i32) -> Judged {
    // Nothing is refused yet but what cannot be read.
    if code == 0 { Ok(()) } else { Err(DropReason::Short) }
}

macro_rules! track {
    ($family:ty, $function:ident, $hear:ident, $about:literal) => {
        #[doc = $about]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $function(ctx: *mut __sk_buff, what: u64, heard: u64, from: u32, to: u32) -> i32 {
            let ask = Ask { what, heard, ends: Ends { from, to } };
            match ct::track::<$family, _, _, _>(&mut Skb::new(ctx), &Kernel, ask, &ct::allow) {
                Ok(()) => 0,
                Err(reason) => reason as i32,
            }
        }
        /// [`ct::fragment::heard`] as a function of the kernel's. Argument: [`Ask::what`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $hear(ctx: *mut __sk_buff, what: u64) -> u64 {
            let ask = Ask { what, heard: 0, ends: Ends { from: 0, to: 0 } };
            ct::fragment::heard::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &ask)
        }
        impl Track<Skb, $family> for Kernel {
            #[inline(always)]
            fn track(&self, p: &mut Skb, ask: Ask) -> Judged {
                answered($function(p.context(), ask.what, ask.heard, ask.ends.from, ask.ends.to))
            }
            #[inline(always)]
            fn hear(&self, p: &mut Skb, ask: Ask) -> u64 {
                $hear(p.context(), ask.what)
            }
        }
    };
}
track!(
    V4,
    ct_track4,
    ct_hear4,
    "Looks after the flow of an IPv4 packet. Arguments: [`Ask`]. Answers 0, or why the packet is refused."
);
track!(V6, ct_track6, ct_hear6, "The same of an IPv6 packet.");
