//! What the programs report through the ring buffer.
use bytemuck::{Pod, Zeroable};

use crate::net::{Be16, Ip6};

/// A drop, or a packet that passed and that policies in audit mode would have dropped.
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
    /// The label class of 24 bits under which policy judged who opens the flow, as the tunnel named it; 0: it named none, or policy has not dropped it.
    pub class: u32,
    /// 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<DropEvent>() == 72);

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
    /// As [`DropEvent::class`].
    pub class: u32,
}

/// What policy says of a packet besides its verdict, to what counts and reports it in the same run.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
#[cfg_attr(feature = "user", derive(serde::Serialize))]
pub struct Told {
    /// For the event, if it is dropped or passes for audit.
    pub blame: Blame,
    /// 0.
    pub pad: u32,
    /// What the opener's policies say, in the form of the programs.
    pub egress: u64,
    /// The same of the other end's.
    pub ingress: u64,
    /// The opener's policy set.
    pub egress_set: u32,
    /// The other end's.
    pub ingress_set: u32,
}
impl Told {
    /// Names, offsets and sizes of its fields.
    pub const LAYOUT: &[crate::schema::Field] = &[
        ("at", 0, 4),
        ("cookie", 4, 4),
        ("class", 8, 4),
        ("pad", 12, 4),
        ("egress", 16, 8),
        ("ingress", 24, 8),
        ("egress_set", 32, 4),
        ("ingress_set", 36, 4),
    ];
}
const _: () = assert!(size_of::<Told>() == 40);

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
