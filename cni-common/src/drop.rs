//! Why a packet was dropped, where, and the counters that say how often.
use bytemuck::{Pod, Zeroable};

/// A number, a name and a sentence for each; numbers are appended, never reused.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $n:literal, $text:literal;)*) => {
        /// Why a packet was dropped.
        ///
        /// Numbers stand in counters, events and other people's dashboards: they are appended, never reused.
        // `u64` because it travels in a `Result`: with a narrower type LLVM masks the register that, on the other path, holds a pointer.
        #[repr(u64)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "std"), derive(Debug))]
        pub enum DropReason { $($(#[doc = $doc])+ $name = $n,)* }

        impl DropReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name),*];

            /// The name that people and dashboards see.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
            /// One sentence: what it means and where to look.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
            /// The reason with this number, if there is one.
            pub const fn from_number(n: u8) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
        }
    };
}
drop_reasons! {
    /// The frame ends before a header that it announces.
    Short = 1, "the frame ends inside a header that it announces; a truncated or forged packet";
    /// Neither IPv4 nor IPv6.
    UnknownL3 = 2, "neither IPv4, IPv6 nor ARP";
    /// IP version or header length do not fit.
    BadHeader = 3, "the IP version or header length is not valid; a forged packet";
    /// More IPv6 extension headers than honest traffic has.
    ExtHdrLimit = 4, "more than four IPv6 extension headers; honest traffic has fewer";
    /// The device has no endpoint entry.
    NoEndpoint = 5, "the pod's device has no endpoint entry: the pod is being added or deleted; `weft endpoint list` shows the entries";
    /// The source MAC is not the endpoint's.
    SourceMac = 6, "the source MAC is not the one given to the pod";
    /// The source address is not the endpoint's.
    SourceAddress = 7, "the source address is not one given to the pod";
    /// Multicast and broadcast stay inside the pod.
    Multicast = 8, "multicast and broadcast are not forwarded";
    /// TTL or hop limit used up.
    TtlExceeded = 9, "the TTL or hop limit is used up; a routing loop, or a traceroute";
    /// From a pod to a node's tunnel port.
    TunnelPort = 10, "UDP from a pod, or out of the tunnel, to a node's tunnel port: only nodes speak to the overlay";
    /// The agent has not written the configuration yet.
    NoConfig = 11, "the agent has not written its configuration yet; `weft status` says what it waits for";
    /// The other node is not known.
    UnknownNode = 12, "no Node object has this tunnel address; `weft node list` shows what is known";
    /// The inner source does not belong to the sending node.
    InnerSource = 13, "a tunnelled packet whose inner source does not belong to the node that sent it";
    /// Larger than what the way can carry.
    TooBig = 14, "larger than the underlay's MTU less the tunnel's overhead; the pod's route carries the right MTU";
    /// The kernel refused to make room for the outer headers.
    AdjustRoom = 15, "the kernel refused to make room for the tunnel's headers, and to hand the packet to weft_vxlan";
    /// VXLAN without a valid VNI.
    BadTunnel = 16, "a packet on the tunnel port that is not VXLAN (RFC 7348: the I flag must be set)";
    /// From outside, but with an address of this node or of its pods.
    HostAddress = 17, "a packet from outside that carries an address of this node, or of one of its pods, as its source";
    /// In a pod CIDR, but no pod has this address.
    NoPod = 18, "the destination is in a pod CIDR, but no pod has this address here; it may just have been deleted";
    /// A VLAN tag from a pod.
    Vlan = 19, "a VLAN-tagged frame; pods have no VLANs";
    /// To the tunnel port, but not to the tunnel address.
    TunnelAddress = 20, "a tunnelled packet to an address of this node that is not its tunnel address";
    /// RFC 6040: congestion marked outside, inner not ECN-capable.
    EcnNotCapable = 21, "marked congested on the underlay, but the inner packet is not ECN-capable (RFC 6040 section 4.2 drops it)";
    /// ARP or neighbour discovery that is not a question for the gateway.
    NotGateway = 22, "ARP or neighbour discovery that does not ask, from the pod's own address, for its gateway 169.254.1.1 or fe80::1; nothing else is answered";
    /// From a pod to an address that is never forwarded.
    Unroutable = 23, "to a loopback, unspecified or IPv6 link-local address, or to the gateway's own: such packets never leave the pod";
    /// From this node to another one's pod, under a source that the other node would refuse.
    ForeignSource = 24, "sent or forwarded by this node to a pod of another node, but the source is neither an InternalIP of this node's Node object nor a pod of it, so the other node would refuse it; masquerade it, or send from an InternalIP";
    /// Masquerade: no port of the node is free towards this destination.
    NatExhausted = 25, "every port that was tried for a masqueraded flow (the pod's own, then some of the range) is in use towards this destination; SCTP and protocols without ports can have no other than their own";
    /// Masquerade: the table is full.
    NatFull = 26, "the table of masqueraded flows is full";
    /// Masquerade: one half of a translation without the other, or without its flow.
    NatOrphan = 27, "to be masqueraded, or translated back, but its flow is not known or has another translation by now: a late packet, or an error about one";
    /// Masquerade: the pod has its share of the table.
    NatQuota = 28, "the pod has its share of the table of masqueraded flows, which no other pod can do without; those that are over count until the agent takes them out";
    /// A later fragment whose first one was not seen.
    FragmentOrder = 29, "to be masqueraded, but a fragment that came before the first one of its datagram, or long after it: only that one has the ports";
    /// Policy: the opener's, on its node.
    PolicyEgress = 30, "no policy that isolates the sender for egress allows the flow, or one denies it; weft explain names them";
    /// Policy: the other end's, on its node.
    PolicyIngress = 31, "no policy that isolates the receiver for ingress allows the flow, or one denies it; weft explain names them";
    /// Policy: a peer in a pod CIDR, of which no pod is known.
    PolicyUnknown = 32, "the other end has an address of a pod CIDR, but of which pod is not known (yet), and the pod here is isolated";
    /// To a Service's address, and nothing in the node's stack has translated it.
    NoService = 33, "to an address of --service-cidr, but the node's stack has not translated it: there is no such Service, or what serves Services (kube-proxy) does not run or does not know it yet";
}

/// Which program saw the packet.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Point {
    /// tc ingress of a pod's host-side veth.
    FromPod = 0,
    /// tc ingress of `weft_net`: what the node's own stack sends.
    FromHost = 1,
    /// tc ingress of the node's devices.
    FromNetdev = 2,
    /// tc ingress of `weft_vxlan`.
    FromOverlay = 3,
}
impl Point {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::FromHost, Self::FromNetdev, Self::FromOverlay];

    /// The program's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromHost => "from_host",
            Self::FromNetdev => "from_netdev",
            Self::FromOverlay => "from_overlay",
        }
    }
    /// The point with this number, if there is one.
    pub const fn from_number(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::FromPod),
            1 => Some(Self::FromHost),
            2 => Some(Self::FromNetdev),
            3 => Some(Self::FromOverlay),
            _ => None,
        }
    }
}

/// What became of a packet that was not dropped, and what became of events; counted beside the drop reasons.
#[repr(u64)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Outcome {
    /// Not ours, or left to `weft_vxlan`: the packet went on where it was.
    Pass = 48,
    /// To the node's own stack, through `weft_host`.
    Host = 49,
    /// Straight into a local pod.
    Peer = 50,
    /// Out of a device, the next hop's MAC being known.
    Device = 51,
    /// Out of a device by way of the kernel's neighbour table.
    Neigh = 52,
    /// Out of the kernel's own VXLAN device, which makes the outer headers and looks up the way.
    Overlay = 53,
    /// An answer to the pod itself: ARP, neighbour discovery, or, beside the drop that it is about, an ICMP error.
    Answer = 54,
    /// A drop event found the ring buffer full.
    EventLost = 56,
    /// A drop event was not sent, because the rate limit was reached.
    EventLimited = 57,
    /// The table of flows was full: one that both ends have spoken in stays among the new ones, which may be forgotten.
    CtFull = 58,
    /// The same, because the endpoint has its share of the table.
    CtQuota = 59,
    /// Policies in audit mode would have kept the sender from opening the flow: counted, as the next one, when a flow is judged, beside what becomes of the packet.
    AuditEgress = 60,
    /// Policies in audit mode would have kept the flow from the receiver.
    AuditIngress = 61,
}
impl Outcome {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Pass,
        Self::Host,
        Self::Peer,
        Self::Device,
        Self::Neigh,
        Self::Overlay,
        Self::Answer,
        Self::EventLost,
        Self::EventLimited,
        Self::CtFull,
        Self::CtQuota,
        Self::AuditEgress,
        Self::AuditIngress,
    ];

    /// The name that people see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Host => "host",
            Self::Peer => "peer",
            Self::Device => "device",
            Self::Neigh => "neigh",
            Self::Overlay => "overlay",
            Self::Answer => "answer",
            Self::EventLost => "event-lost",
            Self::EventLimited => "event-limited",
            Self::CtFull => "ct-full",
            Self::CtQuota => "ct-quota",
            Self::AuditEgress => "audit-egress",
            Self::AuditIngress => "audit-ingress",
        }
    }
}

/// Slots that each [`Point`] has in the counters: drop reasons below 48, [`Outcome`]s above.
pub const SLOTS: u32 = 64;
/// Entries of the counters map.
pub const COUNTERS: u32 = SLOTS * Point::ALL.len() as u32;

/// The index in the counters map.
#[inline(always)]
pub const fn slot(point: Point, reason_or_outcome: u64) -> u32 {
    point as u32 * SLOTS + (reason_or_outcome & 63) as u32
}

/// One counter.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(any(test, feature = "std"), derive(Debug, Default))]
#[cfg_attr(feature = "user", derive(serde::Serialize))]
pub struct Count {
    /// 0: a field that only this layout has.
    #[cfg(feature = "test-layout")]
    pub added: u64,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, with Ethernet header, as the program left the packet: with the outer headers that it wrote, without those that it took off.
    pub bytes: u64,
}
impl Count {
    /// Names, offsets and sizes of the fields, for the schema's fingerprint.
    pub const LAYOUT: &'static [crate::schema::Field] = &[
        #[cfg(feature = "test-layout")]
        ("added", core::mem::offset_of!(Self, added), 8),
        ("packets", core::mem::offset_of!(Self, packets), 8),
        ("bytes", core::mem::offset_of!(Self, bytes), 8),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_number_and_stays_below_the_outcomes() {
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i + 1, "{} left a gap", r.name());
            assert_eq!(DropReason::from_number(*r as u8), Some(*r));
            assert!((*r as u64) < Outcome::Pass as u64);
        }
        assert_eq!(DropReason::from_number(0), None);
    }

    #[test]
    fn slots_of_different_points_do_not_meet() {
        let mut seen = std::collections::BTreeSet::new();
        for p in Point::ALL {
            for n in DropReason::ALL.iter().map(|r| *r as u64).chain(Outcome::ALL.map(|o| o as u64)) {
                assert!(slot(p, n) < COUNTERS && seen.insert(slot(p, n)));
            }
            assert_eq!(Point::from_number(p as u8), Some(p));
        }
    }
}
