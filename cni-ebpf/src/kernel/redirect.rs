//! How a program hands a packet on. Each answers the return code to end with.
use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};

/// Into the stack, as if this device had received it.
#[inline(always)]
pub fn into(ifindex: u32) -> i32 {
    // SAFETY: a helper that takes plain numbers.
    (unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) }) as i32
}

/// Out of this device.
#[inline(always)]
pub fn out_of(ifindex: u32) -> i32 {
    // SAFETY: a helper that takes plain numbers.
    (unsafe { bpf_redirect(ifindex, 0) }) as i32
}

/// Out of this device, to the next hop that the kernel looks up.
#[inline(always)]
pub fn out_by_neighbour(ifindex: u32) -> i32 {
    // SAFETY: without parameters (a null pointer of length 0) the helper takes the next hop from a route look-up.
    (unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }) as i32
}

/// Into the namespace at the other end of this veth.
#[inline(always)]
pub fn into_peer_of(ifindex: u32) -> i32 {
    // SAFETY: a helper that takes plain numbers.
    (unsafe { bpf_redirect_peer(ifindex, 0) }) as i32
}
