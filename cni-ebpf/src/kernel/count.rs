//! Counters and events: what is told of every packet, and of every drop.
use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
};
use bytemuck::Zeroable;
use cni_common::{
    drop::{Outcome, Point, slot},
    event::{Blame, DropEvent, EventBudget, WOULD_BE},
    policy::HitKey,
};
use cni_ebpf::{
    DropReason, Env, Packet as _,
    ct::{Ask, Ends},
    event,
    policy::{Judged, Ruling},
};

use super::{Kernel, Skb, flows::add_one, maps::*};

/// Counts a packet once, at the end: a later step may still drop what an earlier one allowed.
#[inline(always)]
pub fn count(point: Point, what: u64, bytes: u32) {
    if let Some(c) = COUNTS.get_ptr_mut(slot(point, what)) {
        // SAFETY: the slot is this CPU's own, and a program is not preempted by another run of itself on it.
        let c = unsafe { &mut *c };
        c.packets += 1;
        c.bytes += u64::from(bytes);
    }
}

/// Reports a drop, at most [`Config::event_rate`](cni_common::maps::Config::event_rate) a second on each CPU.
#[inline(always)]
pub fn report(p: &Skb, point: Point, reason: DropReason) {
    drop_report(p.context(), point as u32, reason as u32);
}

/// [`report`], of numbers, as a function of the kernel's: verified once, not once for each reason. Answers 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn drop_report(ctx: *mut __sk_buff, point: u32, reason: u32) -> i32 {
    let Some(at) = Point::from_number(point as u8) else { return 0 };
    // SAFETY: as in `count`; policy has written it in this run, if that is who drops the packet.
    let Some(told) = TOLD.get_ptr(0).map(|told| unsafe { &*told }) else { return 0 };
    send(ctx, at, reason as u8, told.blame);
    0
}

/// Counts, and reports like a drop, what a packet passes for only because policies are in audit mode at one of its flow's ends, as a function of the kernel's. Arguments:
/// [`Ask::what`], [`Judged::word`], whether it is the opener's end. Answers 0.
///
/// Called where drops are reported, and not by what judges: on 5.10 all frames of a chain of calls share 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn audit_report(ctx: *mut __sk_buff, what: u64, judged: u64, of_opener: u32) -> i32 {
    let met = Ask { what, heard: 0, ends: Ends { from: 0, to: 0 } };
    let (Some(point), judged) = (met.point(), Judged::from_word(judged)) else { return 0 };
    // SAFETY: as in `count`; policy has written it in this run, if the other end is in audit mode.
    let blamed = TOLD.get_ptr(0).map_or(0, |told| unsafe { (*told).blame.cookie });
    if let Some((outcome, reason, cookie)) = judged.audited(of_opener != 0, blamed) {
        count(point, outcome as u64, Skb::new(ctx).len());
        send(ctx, point, reason as u8 | WOULD_BE, Blame { at: met.l3() as u32, cookie, class: judged.class() });
    }
    0
}

/// Counts which rules, or policy sets, have decided about the packet that was judged last, as a function of the kernel's. Answers 0.
///
/// Called beside `audit_report`, for the same reason. Without arguments: the compiler leaves one away that nobody reads, and the verifier misses it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_hits() -> i32 {
    // SAFETY: as in `count`; policy has written it in this run.
    let Some(told) = TOLD.get_ptr(0).map(|told| unsafe { &*told }) else { return 0 };
    hit(Ruling::from_word(told.egress).hit(told.egress_set));
    hit(Ruling::from_word(told.ingress).hit(told.ingress_set));
    0
}

#[inline(always)]
fn hit(number: u64) {
    if number == 0 {
        return;
    }
    let key = HitKey::from_number(number);
    match HITS.get_ptr_mut(key) {
        // An entry that another CPU gives away at this moment counts one for the wrong rule.
        Some(n) => add_one(n),
        // Two first ones on two CPUs may count as one; a map that forgets has room.
        None => HITS.insert(key, 1_u64, u64::from(BPF_ANY)).unwrap_or(()),
    }
}

/// Sends an event, within the rate.
#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the event would stand on BPF's small stack twice"
)]
fn send(ctx: *mut __sk_buff, at: Point, reason: u8, said: Blame) {
    if let Some(cfg) = Kernel.config()
        && !within(BUDGET.get_ptr_mut(0), cfg.hz, cfg.event_rate)
    {
        count(at, Outcome::EventLimited as u64, 0);
        return;
    }
    let mut e = DropEvent::zeroed();
    event::describe(&Skb::new(ctx), at as u8, reason, said, &mut e);
    // SAFETY: a helper without arguments.
    e.time = unsafe { bpf_ktime_get_ns() };
    e.endpoint = Kernel.endpoint(e.ifindex).map_or(0, |ep| ep.id);
    // One call that copies inside the kernel; reserving would copy by a loop in here.
    if EVENTS.output(&e, 0).is_err() {
        count(at, Outcome::EventLost as u64, 0);
    }
}

/// Takes one from this CPU's budget of `rate` in `hz` jiffies.
#[inline(always)]
pub fn within(budget: Option<*mut EventBudget>, hz: u32, rate: u32) -> bool {
    let Some(b) = budget else { return true };
    // SAFETY: the slot is this CPU's own.
    let b = unsafe { &mut *b };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() };
    if now.wrapping_sub(b.since) >= u64::from(hz) {
        b.since = now;
        b.sent = 0;
    }
    b.sent += 1;
    b.sent <= u64::from(rate)
}
