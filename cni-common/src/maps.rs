//! Keys and values of the maps that the agent writes and the programs read, and of those that the programs write.
//!
//! Plain `repr(C)`, no hidden padding, no enum, no bool. Numbers are in host order unless their type says otherwise.
//! Never extend one in place: a field of another meaning is another [`crate::schema`] version.
use bytemuck::{Pod, Zeroable};

use crate::net::{Be16, Be32, Ip4, Ip6, Mac};

macro_rules! map_types {
    ($($(#[doc = $doc:literal])+ pub struct $name:ident { $($(#[doc = $fdoc:literal])+ $(#[cfg($($when:tt)+)])? pub $field:ident: $t:ty,)* })*) => {
        $(
            $(#[doc = $doc])+
            #[repr(C)]
            #[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
            #[cfg_attr(any(test, feature = "std"), derive(Debug))]
            #[cfg_attr(feature = "user", derive(serde::Serialize))]
            pub struct $name { $($(#[doc = $fdoc])+ $(#[cfg($($when)+)])? pub $field: $t,)* }

            impl $name {
                /// Names, offsets and sizes of the fields, for the schema's fingerprint.
                pub const LAYOUT: &'static [crate::schema::Field] =
                    &[$($(#[cfg($($when)+)])? (stringify!($field), core::mem::offset_of!($name, $field), size_of::<$t>())),*];
            }
        )*
    };
}
pub(crate) use map_types;

map_types! {
    /// What the agent tells all programs. One entry, at index 0.
    pub struct Config {
        /// This node's tunnel address on an IPv6 underlay; zero when it has none.
        pub tunnel6: Ip6,
        /// The first pod CIDR of this node, IPv6: the address…
        pub pods6: Ip6,
        /// …and its mask; all zero when there is none.
        pub mask6: Ip6,
        /// This node's first InternalIP, IPv6: under it the node answers pods; zero when there is none.
        pub node6: Ip6,
        /// This node's tunnel address on an IPv4 underlay; zero when it has none.
        pub tunnel4: Ip4,
        /// The first pod CIDR of this node, IPv4: the address…
        pub pods4: Ip4,
        /// …and its mask; all zero when there is none.
        pub mask4: Ip4,
        /// This node's first InternalIP, IPv4: under it the node answers pods; zero when there is none.
        pub node4: Ip4,
        /// `CONFIG_*` bits. An array slot that nobody wrote is all zero, so readiness is a bit of its own.
        pub flags: u32,
        /// Interface index of `weft_host`.
        pub weft_host: u32,
        /// Interface index of `weft_vxlan`.
        pub weft_vxlan: u32,
        /// Jiffies in a second (`bpf_jiffies64`): the window of the event limit.
        pub hz: u32,
        /// Drop events that one CPU may send in a second.
        pub event_rate: u32,
        /// UDP port of the tunnel.
        pub tunnel_port: Be16,
        /// 0.
        pub pad: u16,
    }

    /// A pod's interface, by the interface index of its host-side veth.
    pub struct Endpoint {
        /// 0: moves all that follows, so that another build's entries cannot be read as these.
        #[cfg(feature = "test-layout")]
        pub moved: u64,
        /// The pod's IPv6 address; zero when it has none.
        pub addr6: Ip6,
        /// The pod's IPv4 address; zero when it has none.
        pub addr4: Ip4,
        /// Endpoint id, unique on this node.
        pub id: u32,
        /// Node-local identity; 0 until policies are compiled.
        pub identity: u32,
        /// Policy set of the ingress direction; 0 means "not isolated".
        pub set_in: u32,
        /// Policy set of the egress direction; 0 means "not isolated".
        pub set_out: u32,
        /// Hash of the pod's label class, 24 bits, sent as VNI; 0 when the Pod object is not known.
        pub vni: u32,
        /// The pod's own MAC.
        pub mac: Mac,
        /// 0.
        pub pad: u16,
    }

    /// How to reach a pod of this node, by its address.
    pub struct Local {
        /// Interface index of the pod's host-side veth.
        pub ifindex: u32,
        /// Endpoint id.
        pub id: u32,
        /// As in [`Endpoint`].
        pub set_in: u32,
        /// As in [`Endpoint`].
        pub set_out: u32,
        /// The pod's own MAC.
        pub mac: Mac,
        /// 0.
        pub pad: u16,
    }

    /// Who has an address elsewhere in the cluster: a pod of another node, or another node itself.
    pub struct Remote {
        /// Node-local identity; 0 until policies are compiled.
        pub identity: u32,
        /// Index in the tunnel map.
        pub node: u32,
        /// `REMOTE_*` bits.
        pub flags: u32,
    }

    /// Which node a pod CIDR belongs to.
    pub struct Cidr {
        /// Index in the tunnel map; [`NODE_SELF`] for the CIDRs of this node.
        pub node: u32,
    }

    /// How to reach another node.
    pub struct Tunnel {
        /// Its tunnel address, when `family` is 6.
        pub addr6: Ip6,
        /// Its tunnel address, when `family` is 4.
        pub addr4: Ip4,
        /// The underlay device on this side.
        pub ifindex: u32,
        /// MTU of the way to it, in bytes, without Ethernet header.
        pub mtu: u32,
        /// MAC of the next hop; meaningful when `ready` is [`TUNNEL_BY_MAC`].
        pub dmac: Mac,
        /// MAC of the underlay device on this side.
        pub smac: Mac,
        /// 4 or 6; 0 means that no node has this index.
        pub family: u8,
        /// How packets leave: `TUNNEL_BY_*`.
        pub ready: u8,
        /// 0.
        pub pad: [u8; 6],
    }

    /// A flow between IPv4 addresses, both directions in one: the two real ends, in the order of (address, port) as native words.
    ///
    /// Keys are compared as bytes: what is not named by the protocol is 0.
    pub struct CtKey4 {
        /// The end that comes first.
        pub lo: Ip4,
        /// The other end.
        pub hi: Ip4,
        /// Port of `lo` (TCP, UDP, SCTP), or the identifier of an ICMP echo; 0 for other protocols.
        pub lo_port: Be16,
        /// Port of `hi`, or the identifier again.
        pub hi_port: Be16,
        /// IP protocol.
        pub proto: u8,
        /// Which end sends the echo requests: [`CT_LO_ASKS`] or [`CT_HI_ASKS`], so that two ends that ask each other under one identifier have
        /// two flows; 0 for other protocols.
        pub asks: u8,
        /// 0.
        pub pad: u16,
    }

    /// The same between IPv6 addresses.
    pub struct CtKey6 {
        /// The end that comes first.
        pub lo: Ip6,
        /// The other end.
        pub hi: Ip6,
        /// As in [`CtKey4`].
        pub lo_port: Be16,
        /// As in [`CtKey4`].
        pub hi_port: Be16,
        /// IP protocol.
        pub proto: u8,
        /// As in [`CtKey4`].
        pub asks: u8,
        /// 0.
        pub pad: u16,
    }

    /// What is known of a flow. Programs on several CPUs write it at a time, each field by one store.
    pub struct CtEntry {
        /// 0: moves all that follows, as in [`Endpoint`].
        #[cfg(feature = "test-layout")]
        pub moved: u64,
        /// Both verdicts, who opened, the policy epoch (lower 32 bits) of that judgement, and the opener's label class (upper 24 bits): `CT_*` bits.
        pub verdicts: u64,
        /// When a packet was seen, jiffies (`bpf_jiffies64`); written once a second at most.
        pub seen: u64,
        /// How long after `seen` the flow is over, jiffies.
        pub lifetime: u32,
        /// Id of the endpoint on whose account the entry is; 0 for none.
        pub charged: u32,
        /// What `lo` has sent: `CT_SENT_*` bits.
        pub lo_sent: u8,
        /// What `hi` has sent.
        pub hi_sent: u8,
        /// 0.
        pub pad: [u8; 6],
    }

    /// What conntrack is told. One entry, at index 0. Lifetimes are of a flow without packets, in jiffies.
    pub struct CtConfig {
        /// The policy epoch: entries of another one are judged again.
        pub epoch: u32,
        /// Jiffies in a second: how often a lifetime is renewed at most.
        pub second: u32,
        /// TCP and SCTP: from the first packet until both ends have spoken.
        pub handshake: u32,
        /// TCP and SCTP: while both ends speak.
        pub established: u32,
        /// TCP and SCTP: one end has said that it will send no more.
        pub closing: u32,
        /// TCP and SCTP: both ends have, or one has reset it.
        pub closed: u32,
        /// UDP.
        pub udp: u32,
        /// UDP with a port below 1024.
        pub udp_service: u32,
        /// ICMP echo.
        pub echo: u32,
        /// Every other protocol.
        pub other: u32,
    }

    /// What the world writes to a masqueraded pod between IPv4 addresses.
    ///
    /// Keys are compared as bytes: what is not named by the protocol is 0.
    pub struct NatKey4 {
        /// The end outside of the cluster.
        pub world: Ip4,
        /// The node's address, under which the pod appears there.
        pub node: Ip4,
        /// Port of `world` (TCP, UDP, SCTP); 0 for other protocols, ICMP echo among them.
        pub world_port: Be16,
        /// Port of `node`, or the identifier of an ICMP echo; 0 for other protocols.
        pub node_port: Be16,
        /// IP protocol.
        pub proto: u8,
        /// 1: no translation; some CPU is about to replace the one under this key with 0, and no other one may.
        pub hold: u8,
        /// 0.
        pub pad: u16,
    }

    /// The same between IPv6 addresses.
    pub struct NatKey6 {
        /// As in [`NatKey4`].
        pub world: Ip6,
        /// As in [`NatKey4`].
        pub node: Ip6,
        /// As in [`NatKey4`].
        pub world_port: Be16,
        /// As in [`NatKey4`].
        pub node_port: Be16,
        /// IP protocol.
        pub proto: u8,
        /// As in [`NatKey4`].
        pub hold: u8,
        /// 0.
        pub pad: u16,
    }

    /// Who is meant by a [`NatKey4`]. Never written in place.
    pub struct NatBack4 {
        /// 0: moves all that follows, as in [`Endpoint`].
        #[cfg(feature = "test-layout")]
        pub moved: u64,
        /// When it was entered, jiffies.
        pub made: u64,
        /// The pod; zero: the node's own flow. Of a hold it means nothing.
        pub pod: Ip4,
        /// Its port, or the identifier of its ICMP echo; 0 for protocols without.
        pub pod_port: Be16,
        /// 0.
        pub pad: u16,
    }

    /// Who is meant by a [`NatKey6`].
    pub struct NatBack6 {
        /// As in [`NatBack4`]. Elsewhere, but no larger: the programs' stack is full.
        #[cfg(feature = "test-layout")]
        pub made: u64,
        /// As in [`NatBack4`].
        pub pod: Ip6,
        /// As in [`NatBack4`].
        #[cfg(not(feature = "test-layout"))]
        pub made: u64,
        /// As in [`NatBack4`].
        pub pod_port: Be16,
        /// 0.
        pub pad: [u8; 6],
    }

    /// As what a flow appears outside, by its [`CtKey4`]. Never written in place.
    pub struct NatForth4 {
        /// 0: moves all that follows, as in [`Endpoint`].
        #[cfg(feature = "test-layout")]
        pub moved: u32,
        /// The node's address.
        pub node: Ip4,
        /// The port there, or the identifier of an ICMP echo; 0 for protocols without.
        pub node_port: Be16,
        /// 0.
        pub pad: u16,
    }

    /// The same by its [`CtKey6`].
    pub struct NatForth6 {
        /// 0: moves all that follows, as in [`Endpoint`].
        #[cfg(feature = "test-layout")]
        pub moved: u64,
        /// As in [`NatForth4`].
        pub node: Ip6,
        /// As in [`NatForth4`].
        pub node_port: Be16,
        /// 0.
        pub pad: [u8; 6],
    }

    /// A datagram in fragments between IPv4 addresses (RFC 791 section 2.3: what tells datagrams apart).
    pub struct FragKey4 {
        /// Source.
        pub src: Ip4,
        /// Destination.
        pub dst: Ip4,
        /// Identification.
        pub id: Be16,
        /// IP protocol.
        pub proto: u8,
        /// 0.
        pub pad: [u8; 5],
    }

    /// The same between IPv6 addresses (RFC 8200 section 4.5).
    pub struct FragKey6 {
        /// Source.
        pub src: Ip6,
        /// Destination.
        pub dst: Ip6,
        /// Identification.
        pub id: Be32,
        /// IP protocol.
        pub proto: u8,
        /// 0.
        pub pad: [u8; 3],
    }

    /// What the first fragment says of its datagram, for those that follow.
    pub struct Fragments {
        /// When it came, jiffies.
        pub seen: u64,
        /// The sender's port, or the identifier of an echo.
        pub source: Be16,
        /// The receiver's port, or the identifier of an echo.
        pub destination: Be16,
        /// `CT_LO_ASKS` if the sender of an echo's fragments asks, `CT_HI_ASKS` if its receiver does, else 0.
        pub asker: u32,
    }

    /// The address under which pods appear that leave by a device.
    pub struct Leave4 {
        /// An address of the node.
        pub addr: Ip4,
        /// The device's MTU, bytes.
        pub mtu: u32,
    }

    /// The same for IPv6.
    pub struct Leave6 {
        /// An address of the node.
        pub addr: Ip6,
        /// The device's MTU, bytes.
        pub mtu: u32,
        /// 0.
        pub pad: u32,
    }

    /// What masquerade is told. One entry, at index 0.
    pub struct NatConfig {
        /// The first port of those that it gives to flows whose own is not free.
        pub first_port: u32,
        /// How many there are; 0: none, a flow whose own port is not free is dropped.
        pub ports: u32,
    }
}

/// `CtKey4::asks`: the end that comes first sends the echo requests.
pub const CT_LO_ASKS: u8 = 1;
/// The other end does.
pub const CT_HI_ASKS: u8 = 2;

/// `CtEntry::verdicts`: the policy of `lo`'s pod on this node allows the flow. Without it that end is elsewhere, or was not judged in this epoch.
pub const CT_LO_ALLOWED: u64 = 1 << 32;
/// The policy of `hi`'s pod does.
pub const CT_HI_ALLOWED: u64 = 1 << 33;
/// `hi` opened the flow; else `lo`.
pub const CT_HI_OPENED: u64 = 1 << 34;
/// `CtEntry::verdicts`: what `lo` sends comes out of the node's own stack, which may have translated it: what is for `lo` goes there.
pub const CT_LO_BY_HOST: u64 = 1 << 35;
/// The same of `hi`.
pub const CT_HI_BY_HOST: u64 = 1 << 36;
/// `CtEntry::verdicts`: from this bit on, the label class that the tunnel named as the opener's when the flow was judged; 0: none.
pub const CT_CLASS_SHIFT: u32 = 40;
/// The bits of it.
pub const CT_CLASS: u64 = 0xff_ffff << CT_CLASS_SHIFT;

/// `CtEntry::lo_sent` and `hi_sent`: a packet that opens: TCP SYN without ACK, SCTP INIT.
pub const CT_SENT_OPEN: u8 = 1;
/// One that only answers: TCP SYN-ACK, SCTP INIT ACK, an echo reply.
pub const CT_SENT_ANSWER: u8 = 2;
/// Any other one.
pub const CT_SENT_DATA: u8 = 4;
/// It will send no more: TCP FIN, SCTP SHUTDOWN, SHUTDOWN ACK or SHUTDOWN COMPLETE.
pub const CT_SENT_END: u8 = 8;
/// It has given the flow up: TCP RST, SCTP ABORT.
pub const CT_SENT_RESET: u8 = 16;

/// `NatConfig::first_port` by default: above what Linux chooses for the node's own sockets (`net.ipv4.ip_local_port_range`, up to 60999).
pub const NAT_FIRST_PORT: u32 = 61_000;
/// `NatConfig::ports` by default: up to 65535.
pub const NAT_PORTS: u32 = 65_536 - NAT_FIRST_PORT;

/// `spared4`, `spared6`: towards the prefix pods keep their address.
pub const SPARED: u32 = 1;
/// Its addresses are Services', which something in the node's stack translates.
pub const SPARED_SERVICE: u32 = 2;

/// The configuration was written.
pub const CONFIG_READY: u32 = 1;
/// `bpf_skb_adjust_room` takes `BPF_F_ADJ_ROOM_ENCAP_L2_ETH` (Linux 5.13, commit d01b59c9ae94); NICs need it to offload.
pub const CONFIG_ENCAP_L2_ETH: u32 = 2;

/// The address is a node's own, not a pod's.
pub const REMOTE_NODE: u32 = 1;

/// The next hop is resolved by the kernel's neighbour table, packet by packet.
pub const TUNNEL_BY_NEIGHBOUR: u8 = 0;
/// The next hop's MAC is known.
pub const TUNNEL_BY_MAC: u8 = 1;
/// Left to the kernel's own VXLAN device: there is no route yet, or one through a device without Ethernet.
pub const TUNNEL_BY_STACK: u8 = 2;

/// The address is this node's.
pub const OWN: u32 = 1;
/// It stands in the Node object, so other nodes take it as the source of what this node sends.
pub const OWN_ANNOUNCED: u32 = 2;

/// The index of this node itself, which has no tunnel.
pub const NODE_SELF: u32 = 0;
/// Slots of the tunnel map, and so the number of nodes in a cluster (with this one).
pub const MAX_NODES: u32 = 8192;
