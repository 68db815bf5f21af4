//! Counters and events: what is told of every packet, and of every drop.
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
};
use bytemuck::Zeroable;
use cni_common::{
    drop::{Outcome, Point, slot},
    event::{Blame, DropEvent, EventBudget},
};
use cni_ebpf::{DropReason, Env, event};

use super::{Kernel, Skb, maps::*};

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
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the event would stand on BPF's small stack twice"
)]
pub extern "C" fn drop_report(ctx: *mut __sk_buff, point: u32, reason: u32) -> i32 {
    let Some(at) = Point::from_number(point as u8) else { return 0 };
    if let Some(cfg) = Kernel.config()
        && !within(BUDGET.get_ptr_mut(0), cfg.hz, cfg.event_rate)
    {
        count(at, Outcome::EventLimited as u64, 0);
        return 0;
    }
    let mut e = DropEvent::zeroed();
    let said = BLAME.get_ptr(0).map_or(Blame { at: 0, cookie: 0 }, |b| {
        // SAFETY: as in `count`; policy has written it in this run, if that is who drops the packet.
        unsafe { *b }
    });
    event::describe(&Skb::new(ctx), point as u8, reason as u8, said, &mut e);
    // SAFETY: a helper without arguments.
    e.time = unsafe { bpf_ktime_get_ns() };
    e.endpoint = Kernel.endpoint(e.ifindex).map_or(0, |ep| ep.id);
    // One call that copies inside the kernel; reserving would copy by a loop in here.
    if EVENTS.output(&e, 0).is_err() {
        count(at, Outcome::EventLost as u64, 0);
    }
    0
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
