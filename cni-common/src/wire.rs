//! Headers as they stand in a packet.
use bytemuck::{Pod, Zeroable};

use crate::net::{Be16, Be32, Ip4, Ip6, Mac};

/// Length of an Ethernet header, bytes.
pub const ETH_LEN: usize = size_of::<Eth>();
/// EtherType of IPv4.
pub const ETH_IP4: Be16 = Be16::from_host(0x0800);
/// EtherType of IPv6.
pub const ETH_IP6: Be16 = Be16::from_host(0x86dd);
/// EtherType of ARP.
pub const ETH_ARP: Be16 = Be16::from_host(0x0806);

/// IP protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// Transmission Control Protocol.
pub const TCP: u8 = 6;
/// User Datagram Protocol.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMP6: u8 = 58;
/// Stream Control Transmission Protocol; its ports stand where those of TCP do.
pub const SCTP: u8 = 132;

/// Bit of the mark that the kernel keeps beside a packet, on its way through the node's stack: a pod has answered, out of whose answer the stack makes a Service's.
/// Nobody's packets have a mark when they enter a network namespace, so no pod sets it.
pub const MARK_ANSWER: u32 = 0x0800_0000;

/// Ethernet II header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Eth {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType.
    pub proto: Be16,
}

/// IPv4 header without options (RFC 791 section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version (4) and header length in words of 4 bytes.
    pub ver_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload, bytes.
    pub len: Be16,
    /// Identification of a datagram's fragments.
    pub id: Be16,
    /// Flags and fragment offset in units of 8 bytes.
    pub frag: Be16,
    /// Time to live, hops.
    pub ttl: u8,
    /// Protocol of the payload.
    pub proto: u8,
    /// Checksum of the header.
    pub csum: Be16,
    /// Source.
    pub src: Ip4,
    /// Destination.
    pub dst: Ip4,
}

/// IPv6 header (RFC 8200 section 3).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version (6), traffic class, flow label.
    pub ver_tc_flow: Be32,
    /// Length of what follows, bytes.
    pub len: Be16,
    /// Type of what follows.
    pub next: u8,
    /// Hop limit.
    pub hops: u8,
    /// Source.
    pub src: Ip6,
    /// Destination.
    pub dst: Ip6,
}

/// UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Udp {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// Length of header and payload, bytes.
    pub len: Be16,
    /// Checksum; 0 in our tunnel, as RFC 7348 section 5 and RFC 6935 allow.
    pub csum: Be16,
}

/// The first 8 bytes of every message of ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code, by type.
    pub code: u8,
    /// Checksum of the whole message; of ICMPv6 with a pseudo header.
    pub csum: Be16,
    /// By type: an error's MTU, a neighbour advertisement's flags.
    pub rest: Be32,
}

/// Types of ICMP errors; those of ICMPv6 are the ones below 128.
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Its code "fragmentation needed and DF set"; the MTU stands in the lower 16 bits (RFC 1191 section 4).
    pub const FRAG_NEEDED: u8 = 4;
    /// Source quench; nobody sends it any more (RFC 6633).
    pub const QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Time exceeded; code 0: in transit.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER: u8 = 12;
}
/// Types of ICMPv6.
pub mod icmp6 {
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Packet too big; the MTU stands in all 32 bits.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded; code 0: in transit.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Neighbour solicitation (RFC 4861 section 4.3).
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861 section 4.4).
    pub const ADVERTISEMENT: u8 = 136;
    /// Redirect: of no error's number, and not to be answered either.
    pub const REDIRECT: u8 = 137;
}

/// A neighbour solicitation, up to its options (RFC 4861 section 4.3).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Solicitation {
    /// `rest` is reserved.
    pub icmp: Icmp,
    /// Who is looked for.
    pub target: Ip6,
}

/// A neighbour advertisement with its one option (RFC 4861 sections 4.4 and 4.6.1).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Advertisement {
    /// `rest` has the flags router, solicited and override in its upper three bits.
    pub icmp: Icmp,
    /// Who was looked for.
    pub target: Ip6,
    /// Target link-layer address: 2.
    pub option: u8,
    /// Words of 8 bytes: 1.
    pub words: u8,
    /// The target's MAC.
    pub mac: Mac,
}

/// ARP for IPv4 on Ethernet (RFC 826). Addresses stand at odd words.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Arp {
    /// Ethernet (1), IPv4 (0x0800) and the lengths 6 and 4: [`Arp::IPV4`].
    pub kinds: [Be16; 3],
    /// 1 asks, 2 answers.
    pub op: Be16,
    /// The sender's MAC.
    pub sender_mac: Mac,
    /// The sender's address; zero in a probe for duplicates (RFC 5227).
    pub sender: Be32,
    /// The target's MAC.
    pub target_mac: Mac,
    /// The target's address.
    pub target: Be32,
}
impl Arp {
    /// What `kinds` is for IPv4 on Ethernet.
    pub const IPV4: [Be16; 3] = [Be16::from_host(1), Be16::from_host(0x0800), Be16::from_host(0x0604)];
    /// `op` of a question.
    pub const REQUEST: Be16 = Be16::from_host(1);
    /// `op` of an answer.
    pub const REPLY: Be16 = Be16::from_host(2);
}

/// VXLAN header (RFC 7348 section 5).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Vxlan {
    /// [`VXLAN_VNI_VALID`] and reserved bits.
    pub flags: Be32,
    /// VXLAN Network Identifier in the upper 24 bits; the lower 8 are reserved.
    pub vni: Be32,
}

/// The I flag: the VNI is valid.
pub const VXLAN_VNI_VALID: Be32 = Be32::from_host(0x0800_0000);

/// What follows the outer IP header of a tunnelled packet, up to the inner IP header.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct OuterTail {
    /// Outer UDP header.
    pub udp: Udp,
    /// Tunnel header.
    pub vxlan: Vxlan,
    /// Inner Ethernet header.
    pub eth: Eth,
}

/// Bytes that VXLAN adds on an IPv4 underlay.
pub const OVERHEAD4: u32 = (size_of::<Ipv4>() + size_of::<OuterTail>()) as u32;
/// Bytes that VXLAN adds on an IPv6 underlay.
pub const OVERHEAD6: u32 = (size_of::<Ipv6>() + size_of::<OuterTail>()) as u32;
const _: () = assert!(OVERHEAD4 == 50 && OVERHEAD6 == 70);
