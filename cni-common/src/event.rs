//! What the programs report through the ring buffer.
use bytemuck::{Pod, Zeroable};

use crate::net::{Be16, Ip6};

/// A drop, or a packet that passed and that policies in audit mode would have dropped. One cache line.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
#[cfg_attr(feature = "user", derive(serde::Serialize))]
pub struct DropEvent {
    /// Source; IPv4 as `::ffff:a.b.c.d`, all zero when no IP header was read.
    pub src: Ip6,
    /// Destination, likewise.
    pub dst: Ip6,
    /// `CLOCK_MONOTONIC`, nanoseconds, host order.
    pub time: u64,
    /// Where the packet came in.
    pub ifindex: u32,
    /// The endpoint's id, 0 when there is none.
    pub endpoint: u32,
    /// Length of the frame in bytes.
    pub len: u32,
    /// L4 source port, 0 when none was read.
    pub sport: Be16,
    /// L4 destination port, 0 when none was read.
    pub dport: Be16,
    /// IP protocol, 0 when no IP header was read.
    pub proto: u8,
    /// 4, 6, or 0 when no IP header was read.
    pub family: u8,
    /// [`crate::drop::DropReason`] as a number; with [`WOULD_BE`], the packet has passed.
    pub reason: u8,
    /// [`crate::drop::Point`] as a number.
    pub point: u8,
    /// Names the policy's rule that decided, when policy dropped it, node-local; 0 when none did: no rule of the policies that isolate the pod allows it.
    pub cookie: u32,
}
const _: () = assert!(size_of::<DropEvent>() == 64);

/// In [`DropEvent::reason`]: for this the packet would be dropped if no policy were in audit mode.
pub const WOULD_BE: u8 = 0x80;

/// What policy says last of a packet that it drops, for the event about it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
#[cfg_attr(feature = "user", derive(serde::Serialize))]
pub struct Blame {
    /// Offset of the network header that was judged.
    pub at: u32,
    /// As [`DropEvent::cookie`].
    pub cookie: u32,
}

/// ICMP errors that one CPU may send in a second, as Linux' own `icmp_msgs_per_sec` has it for the host.
pub const ANSWER_RATE: u32 = 1000;

/// How many events, or ICMP errors, a CPU has sent in the running window.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
#[cfg_attr(feature = "user", derive(serde::Serialize))]
pub struct EventBudget {
    /// When the window began, jiffies (`bpf_jiffies64`).
    pub since: u64,
    /// Sent since then.
    pub sent: u64,
}
