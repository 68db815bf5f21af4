//! The hooks.
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use cni_common::drop::{Outcome, Point};
use cni_ebpf::{DropReason, Env, Packet, Res, Verdict, decap, flow, icmp};

use crate::kernel::{Kernel, Skb, answer, count, redirect};

/// tc ingress of a pod's host-side veth.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let mut p = Skb::new(ctx.skb.skb);
    let r = flow::from_pod(&mut p, &Kernel);
    finish(&mut p, Point::FromPod, r)
}

/// tc ingress of `weft_net`.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    let mut p = Skb::new(ctx.skb.skb);
    let r = flow::from_host(&mut p, &Kernel);
    finish(&mut p, Point::FromHost, r)
}

/// tc ingress of the node's devices.
#[classifier]
pub fn from_netdev(ctx: TcContext) -> i32 {
    let mut p = Skb::new(ctx.skb.skb);
    let r = decap::from_netdev(&mut p, &Kernel);
    finish(&mut p, Point::FromNetdev, r)
}

/// tc ingress of `weft_vxlan`.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    let mut p = Skb::new(ctx.skb.skb);
    let r = decap::from_overlay(&mut p, &Kernel);
    finish(&mut p, Point::FromOverlay, r)
}

/// The one place where a decision becomes a return code.
#[inline(always)]
fn finish(p: &mut Skb, point: Point, r: Res<Verdict>) -> i32 {
    let what = match r {
        Ok(Verdict::Pass) => Outcome::Pass as u64,
        Ok(Verdict::Host) => Outcome::Host as u64,
        Ok(Verdict::Peer(_)) => Outcome::Peer as u64,
        Ok(Verdict::Device(_)) => Outcome::Device as u64,
        Ok(Verdict::Neigh(_)) => Outcome::Neigh as u64,
        Ok(Verdict::Overlay(_)) => Outcome::Overlay as u64,
        Ok(Verdict::Answer(_)) => Outcome::Answer as u64,
        Err(reason) => reason as u64,
    };
    count::count(point, what, p.len());
    #[cfg(feature = "log")]
    log(p, point as u32, what);
    match r {
        Ok(verdict) => carry_out(verdict),
        Err(reason) if icmp::concerns_sender(point, reason) => tell_sender(p, point, reason),
        Err(reason) => {
            count::report(p, point, reason);
            TC_ACT_SHOT
        }
    }
}

/// The drop is told of as it was; what goes back to the sender is another packet.
#[inline(always)]
fn tell_sender(p: &mut Skb, point: Point, reason: DropReason) -> i32 {
    count::report(p, point, reason);
    match answer::answer(p, point, reason) {
        Some(verdict) => {
            count::count(point, Outcome::Answer as u64, p.len());
            carry_out(verdict)
        }
        None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn carry_out(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Host => redirect::into(Kernel.config().map_or(0, |c| c.weft_host)),
        Verdict::Peer(ifindex) | Verdict::Answer(ifindex) => redirect::into_peer_of(ifindex),
        Verdict::Device(ifindex) | Verdict::Overlay(ifindex) => redirect::out_of(ifindex),
        Verdict::Neigh(ifindex) => redirect::out_by_neighbour(ifindex),
    }
}

/// Numbers of [`Point`] and of outcome or drop reason. Out of line: its code is larger than a program.
#[cfg(feature = "log")]
#[inline(never)]
fn log(p: &Skb, point: u32, what: u64) {
    let ctx = TcContext::new(p.context());
    aya_log_ebpf::debug!(&ctx, "point {}: device {}, {} bytes, outcome {}", point, p.ifindex(), p.len(), what);
}
