//! Masquerade's maps, the node's sockets and its routes behind the traits of the logic.
use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ANY, BPF_F_CURRENT_NETNS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_FRAG_NEEDED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST, bpf_fib_lookup as FibParams, bpf_sock_tuple,
    },
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_csum_update, bpf_fib_lookup, bpf_l4_csum_replace, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
    },
};
use cni_common::{
    maps::NatConfig,
    wire::{TCP, UDP},
};
use cni_ebpf::{
    DropReason as D, Env, Packet, Res,
    ct::{Ask, Ends},
    family::{Family, L3, V4, V6},
    nat::{
        Entered, Leave, Masquerade, Mend, NatEnv, NatFamily, Sockets, Step, Translations, Ways,
        port::{Try, Wanted},
        rewrite::Cover,
        way,
    },
};

use super::{Kernel, Skb, flows::EEXIST, maps::*};

impl Mend for Skb {
    #[inline(always)]
    fn mend(&mut self, at: usize, diff: u32, cover: Cover) -> Res<()> {
        let pseudo = if cover.is_pseudo() { BPF_F_PSEUDO_HDR } else { 0 };
        let absent = if cover.may_be_absent() { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: `ctx` is the program's context; pointers into the packet are made anew at every access.
        let rc = unsafe { bpf_l4_csum_replace(self.context(), at as u32, 0, diff.into(), (pseudo | absent).into()) };
        if rc != 0 {
            return Err(D::Short);
        }
        if cover.is_pseudo6() {
            // SAFETY: as above; a packet without a sum of all its bytes stays as it is.
            unsafe { bpf_csum_update(self.context(), diff) };
        }
        Ok(())
    }
}

impl NatEnv for Kernel {
    #[inline(always)]
    fn nat_config(&self) -> Option<&NatConfig> {
        NAT_CONFIG.get(0)
    }
    #[inline(always)]
    fn fence(&self) {
        let mut word = 0_u64;
        // SAFETY: adds nothing to a word of the stack.
        unsafe {
            asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut word, in(reg) 0_u64, options(nostack));
        }
    }
}

#[inline(always)]
fn entered(done: Result<(), i32>) -> Entered {
    match done {
        Ok(()) => Entered::Done,
        Err(EEXIST) => Entered::Other,
        Err(_) => Entered::Full,
    }
}

macro_rules! translations {
    ($family:ty, $back:ident, $forth:ident, $held:ident) => {
        impl Translations<$family> for Kernel {
            #[inline(always)]
            fn back(&self, key: &<$family as NatFamily>::Key) -> Option<<$family as NatFamily>::Back> {
                // SAFETY: an entry is replaced by another one, never written in place, and freed after an RCU grace period.
                unsafe { $back.get(key) }.copied()
            }
            #[inline(always)]
            fn enter(&self, key: &<$family as NatFamily>::Key, back: &<$family as NatFamily>::Back) -> Entered {
                entered($back.insert(key, back, u64::from(BPF_NOEXIST)))
            }
            #[inline(always)]
            fn exchange(&self, key: &<$family as NatFamily>::Key, back: &<$family as NatFamily>::Back) -> bool {
                $back.insert(key, back, u64::from(BPF_ANY)).is_ok()
            }
            #[inline(always)]
            fn release(&self, hold: &<$family as NatFamily>::Key) {
                // Nobody else takes it out but the agent, after a program that never came back.
                $back.remove(hold).unwrap_or(());
            }
            #[inline(always)]
            fn forth(&self, flow: &<$family as Family>::CtKey) -> Option<<$family as NatFamily>::Forth> {
                // SAFETY: as above.
                unsafe { $forth.get(flow) }.copied()
            }
            #[inline(always)]
            fn enter_forth(&self, flow: &<$family as Family>::CtKey, forth: &<$family as NatFamily>::Forth) -> Entered {
                entered($forth.insert(flow, forth, u64::from(BPF_NOEXIST)))
            }
            #[inline(always)]
            fn replace_forth(&self, flow: &<$family as Family>::CtKey, forth: &<$family as NatFamily>::Forth) -> bool {
                $forth.insert(flow, forth, u64::from(BPF_ANY)).is_ok()
            }
            #[inline(always)]
            fn translated(&self, endpoint: u32) -> u64 {
                // SAFETY: a word that is read whole; entries are deleted by the agent alone.
                unsafe { $held.get(endpoint) }.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn count_translated(&self, endpoint: u32) {
                match $held.get_ptr_mut(endpoint) {
                    Some(n) => super::flows::add_one(n),
                    // Two first flows on two CPUs may count as one.
                    None => $held.insert(endpoint, 1_u64, u64::from(BPF_ANY)).unwrap_or(()),
                }
            }
        }
    };
}
translations!(V4, NAT_BACK4, NAT_FORTH4, NAT_HELD4);
translations!(V6, NAT_BACK6, NAT_FORTH6, NAT_HELD6);

/// The socket of the node's namespace that would receive this. A key begins as `struct bpf_sock_tuple` does: addresses and ports, the remote
/// ones first; `len` is the length of one of that one's forms.
#[inline(always)]
fn socket<K>(p: &Skb, key: &K, len: u32, proto: u32) -> Found {
    const TCP_: u32 = TCP as u32;
    const UDP_: u32 = UDP as u32;
    let at = core::ptr::from_ref(key).cast_mut().cast::<bpf_sock_tuple>();
    let netns = BPF_F_CURRENT_NETNS as u64;
    let sock = match proto {
        // SAFETY: a key is longer than `len`, which the helper reads and does not write.
        TCP_ => unsafe { bpf_sk_lookup_tcp(p.context().cast(), at, len, netns, 0) },
        // SAFETY: as above.
        UDP_ => unsafe { bpf_sk_lookup_udp(p.context().cast(), at, len, netns, 0) },
        _ => return Found::Nothing,
    };
    if sock.is_null() {
        return Found::Nothing;
    }
    // SAFETY: a socket that is there; the verifier turns the field into the kernel's own.
    let state = unsafe { (*sock).state };
    // SAFETY: a socket that the helper handed out, and that is given back once.
    unsafe { bpf_sk_release(sock.cast()) };
    if state == TCP_LISTEN { Found::Listening } else { Found::Using }
}

/// A socket of the node.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing = 0,
    Listening = 1,
    Using = 2,
}
/// Of `include/net/tcp_states.h`; no socket of UDP has this state.
const TCP_LISTEN: u32 = 10;

/// Device, or 0, by which the stack would forward what `weft_host` receives.
#[inline(always)]
fn device(p: &Skb, family: u32, proto: u32, src: [u32; 4], dst: [u32; 4]) -> u32 {
    let Some(cfg) = Kernel.config() else { return 0 };
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src, dst);
    // Family and protocol, ports, device, class, addresses, and 16 bytes for the answer.
    // Zeros that the compiler does not know of: it would call memset.
    let o = p.blur(0) as u32;
    let mut params = [family | proto << 8, o, cfg.weft_host, o, s0, s1, s2, s3, d0, d1, d2, d3, o, o, o, o];
    // SAFETY: `params` has the size and the layout of `struct bpf_fib_lookup` (asserted below).
    let rc =
        unsafe { bpf_fib_lookup(p.context().cast(), params.as_mut_ptr().cast(), size_of::<FibParams>() as i32, 0) };
    let by = params[2];
    let is_way = rc == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
        || rc == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
        || rc == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED);
    // A kernel that does not say by which device, without a neighbour (before commit d1c362e1dd68), leaves ours.
    if is_way && by != cfg.weft_host { by } else { 0 }
}
const _: () = assert!(
    size_of::<FibParams>() == 64
        && core::mem::offset_of!(FibParams, ifindex) == 8
        && core::mem::offset_of!(FibParams, __bindgen_anon_3) == 16
        && core::mem::offset_of!(FibParams, __bindgen_anon_4) == 32
);

/// `AF_INET`.
const INET: u32 = 2;
/// `AF_INET6`.
const INET6: u32 = 10;

#[inline(always)]
fn words4(a: &<V4 as Family>::Addr) -> [u32; 4] {
    [a.raw(), 0, 0, 0]
}
#[inline(always)]
fn words6(a: &<V6 as Family>::Addr) -> [u32; 4] {
    let [hi, lo] = a.raw();
    [hi as u32, (hi >> 32) as u32, lo as u32, (lo >> 32) as u32]
}

macro_rules! node {
    ($family:ty, $inet:ident, $bits:literal, $leave:ident, $spared:ident, $tuple:literal, $words:ident) => {
        impl Sockets<Skb, $family> for Kernel {
            #[inline(always)]
            fn has_socket(&self, p: &mut Skb, key: &<$family as NatFamily>::Key) -> bool {
                socket(p, key, $tuple, u32::from(key.proto)) != Found::Nothing
            }
            #[inline(always)]
            fn is_used(&self, p: &mut Skb, key: &<$family as NatFamily>::Key) -> bool {
                socket(p, key, $tuple, u32::from(key.proto)) == Found::Using
            }
        }
        impl Ways<Skb, $family> for Kernel {
            #[inline(always)]
            fn device(&self, p: &mut Skb, ip: &L3<$family>) -> u32 {
                device(p, $inet, ip.proto, $words(&ip.src), $words(&ip.dst))
            }
            #[inline(always)]
            fn leave(&self, ifindex: u32) -> Option<Leave<$family>> {
                // SAFETY: programs only read this map, and entries are freed after an RCU grace period.
                unsafe { $leave.get(ifindex) }.map(|l| Leave { addr: l.addr, mtu: l.mtu })
            }
            #[inline(always)]
            fn is_spared(&self, a: &<$family as Family>::Addr) -> bool {
                $spared.get(&Key::new($bits, *a)).is_some()
            }
        }
    };
}
node!(V4, INET, 32, LEAVE4, SPARED4, 12, words4);
node!(V6, INET6, 128, LEAVE6, SPARED6, 36, words6);

/// A step or, below zero, the reason to drop the packet.
#[inline(always)]
fn code(r: Res<Step>) -> i32 {
    match r {
        Ok(step) => step as i32,
        Err(reason) => -(reason as i32),
    }
}

#[inline(always)]
fn step(code: i32) -> Res<Step> {
    match code {
        0 => Ok(Step::Itself),
        1 => Ok(Step::Done),
        2 => Ok(Step::Choose),
        3 => Ok(Step::Error),
        _ => Err(reason(code)),
    }
}

#[inline(always)]
fn tried(r: Res<Try>) -> i32 {
    match r {
        Ok(what) => what as i32,
        Err(reason) => -(reason as i32),
    }
}

#[inline(always)]
fn attempted(code: i32) -> Res<Try> {
    match code {
        0 => Ok(Try::Done),
        1 => Ok(Try::Taken),
        2 => Ok(Try::Entered),
        3 => Ok(Try::Over),
        _ => Err(reason(code)),
    }
}

/// Reasons that translation gives, from their numbers.
#[inline(always)]
fn reason(code: i32) -> D {
    const EXHAUSTED: i32 = -(D::NatExhausted as i32);
    const FULL: i32 = -(D::NatFull as i32);
    const QUOTA: i32 = -(D::NatQuota as i32);
    const BIG: i32 = -(D::TooBig as i32);
    const TTL: i32 = -(D::TtlExceeded as i32);
    const ORDER: i32 = -(D::FragmentOrder as i32);
    const ORPHAN: i32 = -(D::NatOrphan as i32);
    match code {
        EXHAUSTED => D::NatExhausted,
        FULL => D::NatFull,
        QUOTA => D::NatQuota,
        BIG => D::TooBig,
        TTL => D::TtlExceeded,
        ORPHAN => D::NatOrphan,
        ORDER => D::FragmentOrder,
        _ => D::Short,
    }
}

/// No endpoints: translation is not about them.
#[inline(always)]
fn asked(what: u64, heard: u64) -> Ask {
    Ask { what, heard, ends: Ends { from: 0, to: 0 } }
}

macro_rules! steps {
    ($family:ty, $way:ident, $mtu:ident, $translate:ident, $translate_error:ident, $wanted:ident, $attempt:ident, $take_over:ident, $settle:ident, $arrive:ident, $arrive_error:ident) => {
        #[doc = "[`way::way`] as a function of the kernel's; arguments: [`Ask`], device."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $way(ctx: *mut __sk_buff, what: u64) -> i32 {
            way::way::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, 0)) as i32
        }
        #[doc = "[`way::mtu`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $mtu(ctx: *mut __sk_buff) -> i32 {
            way::mtu::<$family, _, _>(&mut Skb::new(ctx), &Kernel) as i32
        }
        #[doc = "[`way::translate`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $translate(ctx: *mut __sk_buff, what: u64, heard: u64, by: u32) -> i32 {
            code(way::translate::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, heard), by))
        }
        #[doc = "[`way::translate_error`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $translate_error(ctx: *mut __sk_buff, what: u64) -> i32 {
            code(way::translate_error::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, 0)))
        }
        #[doc = "[`way::wanted`] as a function of the kernel's: what is wanted, or below zero the reason to drop the packet."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $wanted(ctx: *mut __sk_buff, what: u64, heard: u64) -> i64 {
            match way::wanted::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, heard)) {
                Ok(w) => w.packed() as i64,
                Err(reason) => -(reason as i64),
            }
        }
        #[doc = "[`way::attempt`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $attempt(ctx: *mut __sk_buff, what: u64, heard: u64, by: u32, w: u64) -> i32 {
            tried(way::attempt::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, heard), by, Wanted::of(w)))
        }
        #[doc = "[`way::take_over`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $take_over(ctx: *mut __sk_buff, what: u64, heard: u64, by: u32, w: u64) -> i32 {
            tried(way::take_over::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, heard), by, Wanted::of(w)))
        }
        #[doc = "[`way::settle`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $settle(ctx: *mut __sk_buff, what: u64, heard: u64, by: u32, w: u64) -> i32 {
            tried(way::settle::<$family, _, _>(&mut Skb::new(ctx), &Kernel, &asked(what, heard), by, Wanted::of(w)))
        }
        #[doc = "[`way::arrive`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $arrive(ctx: *mut __sk_buff) -> i32 {
            code(way::arrive::<$family, _, _>(&mut Skb::new(ctx), &Kernel))
        }
        #[doc = "[`way::arrive_error`] as a function of the kernel's."]
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $arrive_error(ctx: *mut __sk_buff) -> i32 {
            code(way::arrive_error::<$family, _, _>(&mut Skb::new(ctx), &Kernel))
        }
        impl Masquerade<Skb, $family> for Kernel {
            #[inline(always)]
            fn way(&self, p: &mut Skb, ask: Ask) -> u32 {
                $way(p.context(), ask.what) as u32
            }
            #[inline(always)]
            fn mtu(&self, p: &mut Skb) -> u32 {
                $mtu(p.context()) as u32
            }
            #[inline(always)]
            fn translate(&self, p: &mut Skb, ask: Ask, by: u32) -> Res<Step> {
                step($translate(p.context(), ask.what, ask.heard, by))
            }
            #[inline(always)]
            fn translate_error(&self, p: &mut Skb, ask: Ask) -> Res<Step> {
                step($translate_error(p.context(), ask.what))
            }
            #[inline(always)]
            fn wanted(&self, p: &mut Skb, ask: Ask) -> Res<Wanted> {
                match $wanted(p.context(), ask.what, ask.heard) {
                    w if w >= 0 => Ok(Wanted::of(w as u64)),
                    code => Err(reason(code as i32)),
                }
            }
            #[inline(always)]
            fn attempt(&self, p: &mut Skb, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                attempted($attempt(p.context(), ask.what, ask.heard, by, w.packed()))
            }
            #[inline(always)]
            fn take_over(&self, p: &mut Skb, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                attempted($take_over(p.context(), ask.what, ask.heard, by, w.packed()))
            }
            #[inline(always)]
            fn settle(&self, p: &mut Skb, ask: Ask, by: u32, w: Wanted) -> Res<Try> {
                attempted($settle(p.context(), ask.what, ask.heard, by, w.packed()))
            }
            #[inline(always)]
            fn arrive(&self, p: &mut Skb) -> Res<Step> {
                step($arrive(p.context()))
            }
            #[inline(always)]
            fn arrive_error(&self, p: &mut Skb) -> Res<Step> {
                step($arrive_error(p.context()))
            }
        }
    };
}
steps!(
    V4,
    nat_way4,
    nat_mtu4,
    nat_forth4,
    nat_error_forth4,
    nat_wanted4,
    nat_attempt4,
    nat_take_over4,
    nat_settle4,
    nat_back4,
    nat_error_back4
);
steps!(
    V6,
    nat_way6,
    nat_mtu6,
    nat_forth6,
    nat_error_forth6,
    nat_wanted6,
    nat_attempt6,
    nat_take_over6,
    nat_settle6,
    nat_back6,
    nat_error_back6
);
