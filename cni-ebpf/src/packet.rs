//! A frame, as the logic sees it.
use bytemuck::Pod;
use cni_common::net::{Ip4, Ip6};

use crate::Res;

/// Which outer headers [`Packet::grow`] makes room for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Room {
    /// VXLAN on an IPv4 underlay.
    Vxlan4,
    /// VXLAN on an IPv6 underlay.
    Vxlan6,
}

/// The other end of a tunnel of the kernel's own VXLAN device.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum TunnelEnd {
    /// IPv4 underlay.
    V4(Ip4),
    /// IPv6 underlay.
    V6(Ip6),
}

/// One frame. Every access is checked; there is no slice over packet memory, as the verifier could not follow its length.
///
/// Offsets count from the Ethernet header. [`crate::DropReason::Short`] answers what lies outside of the frame or, in the kernel, outside
/// of its linear part.
#[expect(clippy::len_without_is_empty, reason = "a frame has at least an Ethernet header")]
pub trait Packet {
    /// Length of the frame, bytes, with Ethernet header.
    fn len(&self) -> u32;
    /// The device on whose ingress it is.
    fn ifindex(&self) -> u32;
    /// Payload bytes of a segment, when the frame is one that is yet to be segmented; else 0.
    fn gso_size(&self) -> u32;
    /// Identification for an outer IPv4 header: another number for each packet, as a router may have to fragment it (RFC 6864,
    /// section 4.3), and fragments of two packets with one number would be put together.
    fn identification(&self) -> u16;
    /// Whether a VLAN tag stands beside the frame (the kernel takes it out of the bytes).
    fn has_vlan(&self) -> bool;
    /// `n` again, of which neither the compiler nor the verifier knows any more what it is. Else the verifier would walk all that follows once for
    /// each value that a branch has left.
    fn blur(&self, n: u64) -> u64;
    /// Makes the first `want` bytes readable, as far as the frame has them.
    fn linear(&mut self, want: u32);
    /// Reads at `off`.
    fn read<T: Pod>(&self, off: usize) -> Res<T>;
    /// Writes at `off`.
    fn write<T: Pod>(&mut self, off: usize, v: T) -> Res<()>;
    /// Sum of the `N` bytes at `off`, a multiple of 4, as words in memory order: what a checksum (RFC 1071) is made of.
    fn sum<const N: usize>(&self, off: usize) -> Res<u64>;
    /// Makes room behind the Ethernet header; `l2` marks an inner Ethernet header for the NIC's offloads (Linux 5.13).
    fn grow(&mut self, room: Room, l2: bool) -> Res<()>;
    /// Takes `bytes` out behind the Ethernet header; `inner` names the family (4 or 6) that now follows, if it is another one.
    /// An error leaves the frame as it was.
    fn shrink(&mut self, bytes: u32, inner: Option<u8>) -> Res<()>;
    /// Cuts the frame off, or lengthens it by zeros, to `len` bytes; all of it is linear then and no longer a super-packet. Slow.
    fn resize(&mut self, len: u32) -> Res<()>;
    /// Makes room for `bytes` of a header of the frame's own family behind the Ethernet header.
    fn push(&mut self, bytes: u32) -> Res<()>;
    /// Tells the kernel's VXLAN device where to send the frame, under which VNI (24 bits) and DSCP.
    fn set_tunnel(&mut self, to: TunnelEnd, vni: u32, tos: u32) -> Res<()>;
    /// Marks it as addressed to this host: `bpf_redirect_peer` keeps the old mark, and the pod would drop a foreign one.
    fn for_this_host(&mut self);
    /// The mark that the kernel keeps beside the frame, on its way through one network namespace.
    fn mark(&self) -> u32;
    /// Gives it another one.
    fn set_mark(&mut self, mark: u32);
    /// The outer source that the VXLAN device recorded.
    fn tunnel_source(&self) -> Option<TunnelEnd>;
    /// The VNI that it recorded, 24 bits; 0: none.
    fn tunnel_class(&self) -> u32;
}
