//! Conntrack's maps behind the traits of the logic.
use core::arch::asm;

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::bpf_jiffies64,
};
use cni_common::{
    drop::{Outcome, Point},
    maps::{CtConfig, CtEntry, Fragments},
    schema::MAX_HELD,
};
use cni_ebpf::{
    DropReason as D, Res,
    ct::{self, Ask, CtEnv, Direction, EndSets, Ends, Flow, Flows, Granted, Promotion, Track, Tracked},
    family::{Family, V4, V6},
    policy::{self, Judged, Question},
};

use super::{Kernel, Skb, count, maps::*};

/// What an endpoint may have of a table, as the agent has made them. The verifier knows it, so it costs nothing.
#[unsafe(no_mangle)]
static FLOW_SHARE: Global<u32> = Global::new(MAX_HELD);

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
    #[inline(always)]
    fn share(&self) -> u64 {
        FLOW_SHARE.load().into()
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

/// What became of a packet, as a function of the kernel's answers.
#[inline(always)]
fn code(r: Res<Tracked>) -> i32 {
    match r {
        Ok(Tracked::Known) => 0,
        Ok(Tracked::Judge(Direction::Forth)) => 1,
        Ok(Tracked::Judge(Direction::Back)) => 2,
        Ok(Tracked::ByHost) => 3,
        Err(_) => -1,
    }
}
#[inline(always)]
fn tracked(code: i32) -> Res<Tracked> {
    match code {
        0 => Ok(Tracked::Known),
        1 => Ok(Tracked::Judge(Direction::Forth)),
        2 => Ok(Tracked::Judge(Direction::Back)),
        3 => Ok(Tracked::ByHost),
        _ => Err(D::Short),
    }
}

/// Of both ends, in one register.
#[inline(always)]
fn ends(packed: u64) -> Ends {
    Ends { from: packed as u32, to: (packed >> 32) as u32 }
}
#[inline(always)]
fn packed(of: Ends) -> u64 {
    u64::from(of.from) | u64::from(of.to) << 32
}

/// Both sets in one register.
#[inline(always)]
fn packed_sets(sets: EndSets) -> u64 {
    u64::from(sets.ingress) | u64::from(sets.egress) << 32
}
#[inline(always)]
fn end_sets(packed: u64) -> EndSets {
    EndSets { ingress: packed as u32, egress: (packed >> 32) as u32 }
}

/// Nobody: what is about the packet alone.
const NOBODY: Ends = Ends { from: 0, to: 0 };

macro_rules! track {
    ($family:ty, $track:ident, $hear:ident, $about:ident, $judge:ident) => {
        /// [`ct::track`] as a function of the kernel's: the members of [`Ask`], and [`Granted::packed`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $track(ctx: *mut __sk_buff, what: u64, heard: u64, of: u64, granted: u64) -> i32 {
            let ask = Ask { what, heard, ends: ends(of) };
            code(ct::track::<$family, _, _>(&mut Skb::new(ctx), &Kernel, ask, Granted::of(granted)))
        }
        /// [`ct::fragment::heard`] as a function of the kernel's. Argument: [`Ask::what`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $hear(ctx: *mut __sk_buff, what: u64) -> u64 {
            let ask = Ask { what, heard: 0, ends: NOBODY };
            ct::fragment::heard::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &ask)
        }
        /// [`policy::about`] as a function of the kernel's: [`Ask::what`], and both ends.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $about(ctx: *mut __sk_buff, what: u64, of: u64) -> u64 {
            policy::about::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &Ask { what, heard: 0, ends: ends(of) }).word()
        }
        /// [`policy::judge`] as a function of the kernel's: [`Judged::word`]. Arguments: [`Ask::what`], [`Question::word`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $judge(ctx: *mut __sk_buff, what: u64, question: u64, sender: u64, receiver: u64) -> u64 {
            let (ask, question) = (Ask { what, heard: 0, ends: NOBODY }, Question::from_word(question));
            let (sender, receiver) = (end_sets(sender), end_sets(receiver));
            policy::judge::<$family, _, _>(&Skb::new(ctx), &Kernel, ask, question, sender, receiver).word()
        }
        impl Track<Skb, $family> for Kernel {
            #[inline(always)]
            fn track(&self, p: &mut Skb, ask: Ask, granted: Granted) -> Res<Tracked> {
                tracked($track(p.context(), ask.what, ask.heard, packed(ask.ends), granted.packed()))
            }
            #[inline(always)]
            fn hear(&self, p: &mut Skb, ask: Ask) -> u64 {
                $hear(p.context(), ask.what)
            }
            #[inline(always)]
            fn about(&self, p: &mut Skb, ask: Ask) -> Question {
                Question::from_word($about(p.context(), ask.what, packed(ask.ends)))
            }
            #[inline(always)]
            fn judge(&self, p: &mut Skb, ask: Ask, question: Question, sender: EndSets, receiver: EndSets) -> Res<u32> {
                let (sender, receiver) = (packed_sets(sender), packed_sets(receiver));
                let judged = Judged::from_word($judge(p.context(), ask.what, question.word(), sender, receiver));
                if judged.is_hit() {
                    count::policy_hits();
                }
                if judged.is_audited() {
                    count::audit_report(p.context(), ask.what, judged.word(), 1);
                    count::audit_report(p.context(), ask.what, judged.word(), 0);
                }
                judged.result()
            }
        }
    };
}
track!(V4, ct_track4, ct_hear4, policy_about4, policy_judge4);
track!(V6, ct_track6, ct_hear6, policy_about6, policy_judge6);
