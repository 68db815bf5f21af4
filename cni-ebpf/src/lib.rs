//! The packet path as pure logic: what becomes of a frame, decided by generic functions over small traits.
//!
//! The same functions are compiled for BPF (`main.rs`, with [`Packet`], [`Env`] and [`Tables`] implemented in `kernel/`)
//! and for the host, where tests, the differential corpus and `weft explain` run them over frames and maps in memory
//! (`fake`). No aya in here, and no `unsafe`.
//!
//! | entry | hook |
//! |---|---|
//! | [`flow::from_pod`] | tc ingress of a pod's host-side veth |
//! | [`flow::from_host`] | tc ingress of `weft_net` |
//! | [`decap::from_netdev`] | tc ingress of the node's devices |
//! | [`decap::from_overlay`] | tc ingress of `weft_vxlan` |
//! | [`icmp::answer`] | after a drop, wherever it was |
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod ct;
pub mod decap;
pub mod ecn;
pub mod encap;
pub mod event;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod family;
pub mod flow;
pub mod icmp;
pub mod nat;
pub mod neigh;
pub mod packet;
pub mod policy;
pub mod tables;

pub use cni_common::drop::DropReason;
pub use packet::{Packet, Room};
pub use tables::{Env, Of, System, Tables};

/// What becomes of a frame that is not dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Verdict {
    /// Not ours, or left to `weft_vxlan`: it goes on where it is, and foreign programs and filters still see it.
    Pass,
    /// Ours, for the node's stack: into `weft_host`.
    Host,
    /// Into the pod behind this host-side veth.
    Peer(u32),
    /// Out of this device; the MACs are written.
    Device(u32),
    /// Out of this device; the kernel's neighbour table has the MACs.
    Neigh(u32),
    /// Out of this device, the kernel's own for VXLAN; the tunnel key is set.
    Overlay(u32),
    /// An answer, into the pod behind this host-side veth.
    Answer(u32),
}

/// The result of every step: a value, or the reason to drop the frame.
pub type Res<T> = Result<T, DropReason>;
