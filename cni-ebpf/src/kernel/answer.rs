//! ICMP errors to who sent a packet that was dropped.
use aya_ebpf::bindings::__sk_buff;
use cni_common::drop::Point;
use cni_ebpf::{DropReason as D, Verdict, icmp};

use super::{Kernel, Skb};

/// Nothing is answered.
const NOTHING: i64 = -1;
/// The answer goes into the stack. No device has index 0.
const HOST: i64 = 0;

/// [`icmp::answer`], out of the programs' way.
#[inline(always)]
pub fn answer(p: &mut Skb, point: Point, reason: D) -> Option<Verdict> {
    match icmp_answer(p.context(), point as u32, reason as u32) {
        NOTHING => None,
        HOST => Some(Verdict::Host),
        ifindex => Some(Verdict::Answer(ifindex as u32)),
    }
}

/// The same as a function of the kernel's, verified once: numbers of one of its points and of one of its two reasons; answers the device,
/// [`HOST`] or [`NOTHING`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn icmp_answer(ctx: *mut __sk_buff, point: u32, reason: u32) -> i64 {
    let point = if point == Point::FromPod as u32 { Point::FromPod } else { Point::FromHost };
    let reason = if reason == D::TooBig as u32 { D::TooBig } else { D::TtlExceeded };
    match icmp::answer(&mut Skb::new(ctx), &Kernel, point, reason) {
        Some(Verdict::Answer(ifindex)) => ifindex.into(),
        Some(_) => HOST,
        None => NOTHING,
    }
}
