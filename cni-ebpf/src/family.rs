//! IPv4 and IPv6 as type parameters: one copy of every decision.
use bytemuck::Pod;
use cni_common::{
    maps::{Config, CtKey4, CtKey6, Endpoint, FragKey4, FragKey6, Tunnel},
    net::{Be16, Be32, GATEWAY4, GATEWAY6, Ip4, Ip6, Ports},
    wire::*,
};

use crate::{DropReason as D, Packet, Res, ct, encap, icmp};

/// The network header, as far as forwarding needs it.
#[derive(Clone, Copy)]
pub struct L3<F: Family> {
    /// Source.
    pub src: F::Addr,
    /// Destination.
    pub dst: F::Addr,
    /// DSCP and ECN.
    pub tos: u32,
    /// Protocol of the payload, behind extension headers.
    pub proto: u32,
    /// Offset of the payload.
    pub l4: usize,
    /// Which part of a datagram this is.
    pub part: Part,
    /// Offset of the fragment header; 0: there is none, as in IPv4.
    pub frag: usize,
}

/// Fragments: a later one has no ports, and ports of the first one must not decide where only the first one goes.
///
/// Bits, and made without a branch: the verifier would walk all that follows once for each kind.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Part {
    bits: u32,
}
impl Part {
    /// Not a fragment.
    pub const WHOLE: Self = Self { bits: 0 };
    const LATER: u32 = 2;

    /// Of an offset in any unit, and whether more follow (0 or 1).
    #[inline(always)]
    pub fn of_fragment(offset: u32, more: u32) -> Self {
        // 2 if the offset, of 16 bits at most, is not 0.
        Self { bits: (offset + 0xffff) >> 15 & Self::LATER | more & 1 }
    }
    /// From what [`bits`](Self::bits) gives.
    #[inline(always)]
    pub const fn of_bits(bits: u32) -> Self {
        Self { bits }
    }
    /// Two bits: 1 more fragments follow, 2 it is not the first.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.bits
    }
    /// Not a fragment.
    #[inline(always)]
    pub fn is_whole(self) -> bool {
        self.bits == 0
    }
    /// A fragment without the L4 header: any but the first.
    #[inline(always)]
    pub fn is_later(self) -> bool {
        self.bits & Self::LATER != 0
    }
}

/// An address family.
pub trait Family: Copy + 'static {
    /// Its address.
    type Addr: Pod;
    /// The key of its flows.
    type CtKey: Pod;
    /// The key of a datagram in fragments.
    type FragKey: Pod;
    /// 4 or 6.
    const NUMBER: u8;
    /// Its header without options, bytes.
    const HEADER: u32;
    /// EtherType.
    const ETHERTYPE: Be16;
    /// VXLAN overhead on an underlay of this family, bytes.
    const OVERHEAD: u32;
    /// As much of options or extension headers as the header at `off` may have behind it, bytes; 0 if it has none.
    fn options<P: Packet>(p: &P, off: usize) -> u32;
    /// Parses the header at `off`, extension headers included.
    fn l3<P: Packet>(p: &P, off: usize) -> Res<L3<Self>>;
    /// Parses the header at `off` of a packet that may be a tunnel's outer one: `None` when it has options or is a fragment.
    fn outer<P: Packet>(p: &P, off: usize) -> Option<Outer<Self>>;
    /// One hop less. Errors: [`D::TtlExceeded`].
    fn dec_ttl<P: Packet>(p: &mut P, off: usize) -> Res<()>;
    /// Whether the endpoint has this address; never true of the unspecified one.
    fn is_source(ep: &Endpoint, a: &F4or6<Self>) -> bool;
    /// This node's tunnel address on an underlay of this family, and whether there is one.
    fn is_tunnel_address(cfg: &Config, a: &F4or6<Self>) -> bool;
    /// Whether the address is in this node's first pod CIDR: a hint where to look first, no more.
    fn is_probably_here(cfg: &Config, a: &F4or6<Self>) -> bool;
    /// Whether the node's tunnel ends at this address of its underlay.
    fn is_end_of(tun: &Tunnel, a: &F4or6<Self>) -> bool;
    /// Whether both are one. Words: `==` on bytes is a call of memcmp.
    fn is_same(a: &F4or6<Self>, b: &F4or6<Self>) -> bool;
    /// Multicast, or IPv4's limited broadcast.
    fn is_multicast(a: &F4or6<Self>) -> bool;
    /// Mixes an address for the tunnel's source port.
    fn hash(a: &F4or6<Self>) -> u32;
    /// Source and destination in the header at `off`.
    fn addresses<P: Packet>(p: &P, off: usize) -> Res<(F4or6<Self>, F4or6<Self>)>;
    /// The key of a packet's flow, and whether its sender is the end that comes last in it.
    fn ct_key(src: &F4or6<Self>, dst: &F4or6<Self>, rest: ct::key::Rest) -> (Self::CtKey, bool);
    /// The key of the datagram of which the packet is a fragment.
    fn frag_key<P: Packet>(p: &P, ask: &ct::Ask) -> Res<Self::FragKey>;
    /// In the form that events have.
    fn widen(a: &F4or6<Self>) -> Ip6;
    /// Replaces the two ECN bits. IPv4: with the checksum.
    fn set_ecn<P: Packet>(p: &mut P, off: usize, ecn: u32) -> Res<()>;
    /// Whether it is never forwarded: loopback, unspecified, the pods' gateway; IPv6: link-local.
    fn is_unroutable(a: &F4or6<Self>) -> bool;
    /// Whether it is this node's first InternalIP.
    fn is_node(cfg: &Config, a: &F4or6<Self>) -> bool;
    /// Under which address the node answers pods: its first InternalIP, else their gateway.
    fn node(cfg: &Config) -> F4or6<Self>;
    /// Whether it is an ICMP error (or a redirect): such are not answered.
    fn is_icmp_error<P: Packet>(p: &P, ip: &L3<Self>) -> bool;
    /// Writes the headers of an ICMP error before `quote` bytes of the packet that it is about; `sum` is the sum of these as words in
    /// memory order.
    fn write_icmp_error<P: Packet>(p: &mut P, e: &icmp::Error<Self>, quote: u32, sum: u64) -> Res<()>;
}
/// The family's address; a name that keeps the signatures above short.
pub type F4or6<F> = <F as Family>::Addr;

/// A tunnel's outer header.
#[derive(Clone, Copy)]
pub struct Outer<F: Family> {
    /// Source.
    pub src: F::Addr,
    /// Destination.
    pub dst: F::Addr,
    /// DSCP and ECN.
    pub tos: u32,
    /// Protocol.
    pub proto: u32,
}

/// IPv4.
#[derive(Clone, Copy)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy)]
pub struct V6;

/// RFC 1624 (equation 3): the checksum after a 16-bit word of the header went from `old` to `new`; all in memory order.
#[inline(always)]
fn csum_replace(csum: Be16, old: u16, new: u16) -> Be16 {
    let mut c = u32::from(!csum.raw()) + u32::from(!old) + u32::from(new);
    c = (c & 0xffff) + (c >> 16);
    c = (c & 0xffff) + (c >> 16);
    Be16::new((!(c as u16)).to_ne_bytes())
}

impl Family for V4 {
    type Addr = Ip4;
    type CtKey = CtKey4;
    type FragKey = FragKey4;
    const NUMBER: u8 = 4;
    const HEADER: u32 = size_of::<Ipv4>() as u32;
    const ETHERTYPE: Be16 = ETH_IP4;
    const OVERHEAD: u32 = OVERHEAD4;

    #[inline(always)]
    fn options<P: Packet>(p: &P, off: usize) -> u32 {
        match p.read::<u8>(off) {
            Ok(0x45) | Err(_) => 0,
            Ok(_) => MAX_OPTIONS,
        }
    }
    #[inline(always)]
    fn l3<P: Packet>(p: &P, off: usize) -> Res<L3<Self>> {
        let h: Ipv4 = p.read(off)?;
        let ihl = usize::from(h.ver_ihl & 0x0f) * 4;
        if h.ver_ihl >> 4 != 4 || ihl < size_of::<Ipv4>() {
            return Err(D::BadHeader);
        }
        let frag = h.frag.to_host();
        let part = Part::of_fragment(u32::from(frag & 0x1fff), u32::from(frag >> 13));
        Ok(L3 {
            src: h.src,
            dst: h.dst,
            tos: u32::from(h.tos),
            proto: u32::from(h.proto),
            l4: off + ihl,
            part,
            frag: 0,
        })
    }
    #[inline(always)]
    fn outer<P: Packet>(p: &P, off: usize) -> Option<Outer<Self>> {
        let h: Ipv4 = p.read(off).ok()?;
        // 0x3fff: More Fragments and the offset.
        if h.ver_ihl != 0x45 || h.frag.to_host() & 0x3fff != 0 {
            return None;
        }
        Some(Outer { src: h.src, dst: h.dst, tos: u32::from(h.tos), proto: u32::from(h.proto) })
    }
    #[inline(always)]
    fn dec_ttl<P: Packet>(p: &mut P, off: usize) -> Res<()> {
        let h: Ipv4 = p.read(off)?;
        if h.ttl <= 1 {
            return Err(D::TtlExceeded);
        }
        let word = |ttl: u8| u16::from_ne_bytes([ttl, h.proto]);
        p.write(off + 10, csum_replace(h.csum, word(h.ttl), word(h.ttl - 1)))?;
        p.write(off + 8, h.ttl - 1)
    }
    #[inline(always)]
    fn is_source(ep: &Endpoint, a: &Ip4) -> bool {
        ep.addr4.raw() == a.raw() && a.raw() != 0
    }
    #[inline(always)]
    fn is_tunnel_address(cfg: &Config, a: &Ip4) -> bool {
        cfg.tunnel4.raw() == a.raw() && a.raw() != 0
    }
    #[inline(always)]
    fn is_probably_here(cfg: &Config, a: &Ip4) -> bool {
        a.raw() & cfg.mask4.raw() == cfg.pods4.raw() && cfg.mask4.raw() != 0
    }
    #[inline(always)]
    fn is_end_of(tun: &Tunnel, a: &Ip4) -> bool {
        tun.addr4.raw() == a.raw() && a.raw() != 0
    }
    #[inline(always)]
    fn is_same(a: &Ip4, b: &Ip4) -> bool {
        a.raw() == b.raw()
    }
    #[inline(always)]
    fn is_multicast(a: &Ip4) -> bool {
        a.bytes[0] & 0xf0 == 0xe0 || a.raw() == u32::MAX
    }
    #[inline(always)]
    fn hash(a: &Ip4) -> u32 {
        a.raw()
    }
    #[inline(always)]
    fn addresses<P: Packet>(p: &P, off: usize) -> Res<(Ip4, Ip4)> {
        let h: Ipv4 = p.read(off)?;
        Ok((h.src, h.dst))
    }
    #[inline(always)]
    fn ct_key(src: &Ip4, dst: &Ip4, rest: ct::key::Rest) -> (CtKey4, bool) {
        ct::key::of4(src, dst, rest)
    }
    #[inline(always)]
    fn frag_key<P: Packet>(p: &P, ask: &ct::Ask) -> Res<FragKey4> {
        let h: Ipv4 = p.read(ask.l3())?;
        let rest = u64::from(h.id.raw()) | u64::from(ask.proto()) << 16;
        Ok(bytemuck::must_cast([u64::from(h.src.raw()) | u64::from(h.dst.raw()) << 32, rest]))
    }
    #[inline(always)]
    fn widen(a: &Ip4) -> Ip6 {
        // `Ip6::mapped` by words: sixteen single bytes become a call of memcpy.
        let [x, y, z, w] = a.bytes;
        bytemuck::must_cast([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, x, y, z, w])])
    }
    #[inline(always)]
    fn set_ecn<P: Packet>(p: &mut P, off: usize, ecn: u32) -> Res<()> {
        let h: Ipv4 = p.read(off)?;
        let tos = h.tos & 0xfc | (ecn & 3) as u8;
        let word = |tos: u8| u16::from_ne_bytes([h.ver_ihl, tos]);
        p.write(off + 10, csum_replace(h.csum, word(h.tos), word(tos)))?;
        p.write(off + 1, tos)
    }
    #[inline(always)]
    fn is_unroutable(a: &Ip4) -> bool {
        a.bytes[0] == 127 || a.raw() == 0 || a.raw() == GATEWAY4.raw()
    }
    #[inline(always)]
    fn is_node(cfg: &Config, a: &Ip4) -> bool {
        cfg.node4.raw() == a.raw() && a.raw() != 0
    }
    #[inline(always)]
    fn node(cfg: &Config) -> Ip4 {
        if cfg.node4.raw() == 0 { GATEWAY4 } else { cfg.node4 }
    }
    #[inline(always)]
    fn is_icmp_error<P: Packet>(p: &P, ip: &L3<Self>) -> bool {
        use cni_common::wire::icmp::{PARAMETER, QUENCH, REDIRECT, TIME_EXCEEDED, UNREACHABLE};
        // One whose type cannot be read may be one.
        ip.proto == u32::from(ICMP)
            && p.read::<u8>(ip.l4)
                .map_or(true, |kind| matches!(kind, UNREACHABLE | QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER))
    }
    #[inline(always)]
    fn write_icmp_error<P: Packet>(p: &mut P, e: &icmp::Error<Self>, quote: u32, sum: u64) -> Res<()> {
        let mut ip = Ipv4 {
            ver_ihl: 0x45,
            // Internetwork control (RFC 1812 section 4.3.2.5).
            tos: 0xc0,
            len: Be16::from_host(quote as u16 + (size_of::<Ipv4>() + size_of::<Icmp>()) as u16),
            id: Be16::ZERO,
            frag: Be16::from_host(0x4000),
            ttl: encap::OUTER_TTL,
            proto: ICMP,
            csum: Be16::ZERO,
            src: e.src,
            dst: e.dst,
        };
        ip.csum = encap::header_checksum(&ip);
        p.write(ETH_LEN, ip)?;
        let (kind, code) = if e.is_too_big {
            (cni_common::wire::icmp::UNREACHABLE, cni_common::wire::icmp::FRAG_NEEDED)
        } else {
            (cni_common::wire::icmp::TIME_EXCEEDED, 0)
        };
        let mut message = Icmp { kind, code, csum: Be16::ZERO, rest: Be32::from_host(e.mtu & 0xffff) };
        let [x, y]: [u32; 2] = bytemuck::must_cast(message);
        message.csum = fold(sum + u64::from(x) + u64::from(y));
        p.write(ETH_LEN + size_of::<Ipv4>(), message)
    }
}

impl Family for V6 {
    type Addr = Ip6;
    type CtKey = CtKey6;
    type FragKey = FragKey6;
    const NUMBER: u8 = 6;
    const HEADER: u32 = size_of::<Ipv6>() as u32;
    const ETHERTYPE: Be16 = ETH_IP6;
    const OVERHEAD: u32 = OVERHEAD6;

    #[inline(always)]
    fn options<P: Packet>(p: &P, off: usize) -> u32 {
        match p.read::<u8>(off + 6) {
            Ok(TCP | UDP | ICMP6 | SCTP) | Err(_) => 0,
            Ok(_) => EXTENSIONS,
        }
    }
    #[inline(always)]
    fn l3<P: Packet>(p: &P, off: usize) -> Res<L3<Self>> {
        let h: Ipv6 = p.read(off)?;
        if h.ver_tc_flow.bytes[0] >> 4 != 6 {
            return Err(D::BadHeader);
        }
        let l4 = off + size_of::<Ipv6>();
        let upper = match h.next {
            TCP | UDP | ICMP6 => Upper::new(h.next, l4, 0),
            _ => after_extensions(p, h.next, l4),
        };
        let (proto, l4, part, frag) = Upper { packed: p.blur(upper.packed) }.split()?;
        Ok(L3 { src: h.src, dst: h.dst, tos: traffic_class(&h), proto, l4, part, frag })
    }
    #[inline(always)]
    fn outer<P: Packet>(p: &P, off: usize) -> Option<Outer<Self>> {
        let h: Ipv6 = p.read(off).ok()?;
        if h.ver_tc_flow.bytes[0] >> 4 != 6 {
            return None;
        }
        Some(Outer { src: h.src, dst: h.dst, tos: traffic_class(&h), proto: u32::from(h.next) })
    }
    #[inline(always)]
    fn dec_ttl<P: Packet>(p: &mut P, off: usize) -> Res<()> {
        let hops: u8 = p.read(off + 7)?;
        if hops <= 1 {
            return Err(D::TtlExceeded);
        }
        p.write(off + 7, hops - 1)
    }
    #[inline(always)]
    fn is_source(ep: &Endpoint, a: &Ip6) -> bool {
        let ([e0, e1], [a0, a1]) = (ep.addr6.raw(), a.raw());
        e0 == a0 && e1 == a1 && (a0 | a1) != 0
    }
    #[inline(always)]
    fn is_tunnel_address(cfg: &Config, a: &Ip6) -> bool {
        let ([c0, c1], [a0, a1]) = (cfg.tunnel6.raw(), a.raw());
        c0 == a0 && c1 == a1 && (a0 | a1) != 0
    }
    #[inline(always)]
    fn is_probably_here(cfg: &Config, a: &Ip6) -> bool {
        let ([a0, a1], [m0, m1], [p0, p1]) = (a.raw(), cfg.mask6.raw(), cfg.pods6.raw());
        a0 & m0 == p0 && a1 & m1 == p1 && m0 != 0
    }
    #[inline(always)]
    fn is_end_of(tun: &Tunnel, a: &Ip6) -> bool {
        let ([t0, t1], [a0, a1]) = (tun.addr6.raw(), a.raw());
        t0 == a0 && t1 == a1 && (a0 | a1) != 0
    }
    #[inline(always)]
    fn is_same(a: &Ip6, b: &Ip6) -> bool {
        let ([a0, a1], [b0, b1]) = (a.raw(), b.raw());
        (a0 ^ b0) | (a1 ^ b1) == 0
    }
    #[inline(always)]
    fn is_multicast(a: &Ip6) -> bool {
        a.bytes[0] == 0xff
    }
    #[inline(always)]
    fn hash(a: &Ip6) -> u32 {
        let [x, y] = a.raw();
        let z = x ^ y;
        (z ^ (z >> 32)) as u32
    }
    #[inline(always)]
    fn addresses<P: Packet>(p: &P, off: usize) -> Res<(Ip6, Ip6)> {
        let h: Ipv6 = p.read(off)?;
        Ok((h.src, h.dst))
    }
    #[inline(always)]
    fn ct_key(src: &Ip6, dst: &Ip6, rest: ct::key::Rest) -> (CtKey6, bool) {
        ct::key::of6(src, dst, rest)
    }
    #[inline(always)]
    fn frag_key<P: Packet>(p: &P, ask: &ct::Ask) -> Res<FragKey6> {
        let h: Ipv6 = p.read(ask.l3())?;
        let id: Be32 = p.read(ask.frag() + 4)?;
        let ([s0, s1], [d0, d1]) = (h.src.raw(), h.dst.raw());
        let rest = u64::from(u32::from_ne_bytes(id.bytes)) | u64::from(ask.proto()) << 32;
        Ok(bytemuck::must_cast([s0, s1, d0, d1, rest]))
    }
    #[inline(always)]
    fn widen(a: &Ip6) -> Ip6 {
        *a
    }
    #[inline(always)]
    fn set_ecn<P: Packet>(p: &mut P, off: usize, ecn: u32) -> Res<()> {
        // The traffic class is the lower half of byte 0 and the upper half of byte 1: its ECN bits are bits 4 and 5 of byte 1.
        let b: u8 = p.read(off + 1)?;
        p.write(off + 1, b & 0xcf | ((ecn & 3) << 4) as u8)
    }
    #[inline(always)]
    fn is_unroutable(a: &Ip6) -> bool {
        let [hi, lo] = a.raw();
        // fe80::/10, :: and ::1.
        u64::from_be(hi) >> 54 == 0xfe80 >> 6 || (hi == 0 && u64::from_be(lo) <= 1)
    }
    #[inline(always)]
    fn is_node(cfg: &Config, a: &Ip6) -> bool {
        let ([n0, n1], [a0, a1]) = (cfg.node6.raw(), a.raw());
        n0 == a0 && n1 == a1 && (a0 | a1) != 0
    }
    #[inline(always)]
    fn node(cfg: &Config) -> Ip6 {
        if cfg.node6.raw() == [0, 0] { GATEWAY6 } else { cfg.node6 }
    }
    #[inline(always)]
    fn is_icmp_error<P: Packet>(p: &P, ip: &L3<Self>) -> bool {
        ip.proto == u32::from(ICMP6) && p.read::<u8>(ip.l4).map_or(true, |kind| kind < 128 || kind == icmp6::REDIRECT)
    }
    #[inline(always)]
    fn write_icmp_error<P: Packet>(p: &mut P, e: &icmp::Error<Self>, quote: u32, sum: u64) -> Res<()> {
        let len = Be16::from_host(quote as u16 + size_of::<Icmp>() as u16);
        let ip = Ipv6 {
            ver_tc_flow: Be32::from_host(0x6000_0000),
            len,
            next: ICMP6,
            hops: encap::OUTER_TTL,
            src: e.src,
            dst: e.dst,
        };
        p.write(ETH_LEN, ip)?;
        let kind = if e.is_too_big { icmp6::TOO_BIG } else { icmp6::TIME_EXCEEDED };
        let mut message = Icmp { kind, code: 0, csum: Be16::ZERO, rest: Be32::from_host(e.mtu) };
        let [x, y]: [u32; 2] = bytemuck::must_cast(message);
        message.csum = V6::icmp_checksum(&e.src, &e.dst, len, sum + u64::from(x) + u64::from(y));
        p.write(ETH_LEN + size_of::<Ipv6>(), message)
    }
}

impl V6 {
    /// Of a message of ICMPv6 whose words, in memory order and with 0 as checksum, have this sum (RFC 8200 section 8.1).
    #[inline(always)]
    pub(crate) fn icmp_checksum(src: &Ip6, dst: &Ip6, len: Be16, sum: u64) -> Be16 {
        let half = |w: u64| (w & 0xffff_ffff) + (w >> 32);
        let ([s0, s1], [d0, d1]) = (src.raw(), dst.raw());
        let next = u64::from(Be16::from_host(ICMP6.into()).raw());
        fold(sum + half(s0) + half(s1) + half(d0) + half(d1) + u64::from(len.raw()) + next)
    }
}

/// The checksum (RFC 1071) from a sum of 16- or 32-bit words in memory order.
#[inline(always)]
fn fold(mut sum: u64) -> Be16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    Be16::new((!(sum as u16)).to_ne_bytes())
}

#[inline(always)]
fn traffic_class(h: &Ipv6) -> u32 {
    (h.ver_tc_flow.to_host() >> 20) & 0xff
}

/// Protocol, offset, part and the fragment header's offset in one register: a subprogram of BPF returns one.
#[derive(Clone, Copy)]
struct Upper {
    packed: u64,
}
impl Upper {
    const PART: u32 = 32;
    #[inline(always)]
    fn new(proto: u8, l4: usize, part: u64) -> Self {
        Self { packed: u64::from(proto) | (l4 as u64) << 8 | part << Self::PART }
    }
    /// Why there is none.
    #[inline(always)]
    const fn none(why: D) -> Self {
        Self { packed: (why as u64) << Self::ERROR }
    }
    const ERROR: u32 = 40;
    const FRAG: u32 = 48;

    #[inline(always)]
    fn split(self) -> Res<(u32, usize, Part, usize)> {
        const LIMIT: u64 = D::ExtHdrLimit as u64;
        match self.packed >> Self::ERROR & 0xff {
            0 => {}
            LIMIT => return Err(D::ExtHdrLimit),
            _ => return Err(D::Short),
        }
        let part = Part { bits: ((self.packed >> Self::PART) & 3) as u32 };
        // Before 6.12 the verifier learns no packet range from a mask of 16 bits.
        let frag = (self.packed >> Self::FRAG) as usize & 0x3fff;
        Ok(((self.packed & 0xff) as u32, ((self.packed >> 8) & 0x3fff) as usize, part, frag))
    }
}

/// An IPv4 header has at most so many bytes of options.
const MAX_OPTIONS: u32 = 40;
/// More than honest traffic has of extension headers, bytes.
const EXTENSIONS: u32 = 512;
/// RFC 8200 section 4.1 names hop-by-hop options, routing, fragment and destination options; a fifth is not honest traffic.
const MAX_EXTENSIONS: u32 = 4;

/// Skips extension headers. Out of line: unrolled in the fast path they would be most of the program.
#[inline(never)]
fn after_extensions<P: Packet>(p: &P, mut next: u8, mut l4: usize) -> Upper {
    let mut part = 0;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            0 | 43 | 60 => {
                let Ok([kind, words]) = p.read::<[u8; 2]>(l4) else { return Upper::none(D::Short) };
                next = kind;
                l4 += (usize::from(words) + 1) * 8;
            }
            44 => {
                let Ok([kind, offset]) = p.read::<[Be16; 2]>(l4) else { return Upper::none(D::Short) };
                next = kind.bytes[0];
                part |= (l4 as u64) << (Upper::FRAG - Upper::PART);
                l4 += 8;
                let offset = offset.to_host();
                if offset & 0xfff8 != 0 {
                    // What follows is the middle of some payload, whatever `next` says.
                    return Upper::new(next, l4, part | 2);
                }
                // M = 0 and offset 0: an atomic fragment (RFC 6946) is a whole datagram.
                part |= u64::from(offset & 1);
            }
            _ => return Upper::new(next, l4, part),
        }
    }
    match next {
        0 | 43 | 44 | 60 => Upper::none(D::ExtHdrLimit),
        _ => Upper::new(next, l4, part),
    }
}

/// Parses the header at `off`, after it and `want` bytes of the transport header were made readable.
///
/// Of a packet that is yet to be segmented no more is pulled than that: its sender's headers are linear, and SCTP's segments are packets in
/// a list, out of which 5.10 pulls bytes and then crashes when it segments what is left ("kernel BUG at net/core/skbuff.c").
#[inline(always)]
pub fn parse<F: Family, P: Packet>(p: &mut P, off: usize, want: u32) -> Res<L3<F>> {
    p.linear(off as u32 + F::HEADER + want);
    let options = F::options(p, off);
    if options != 0 && p.gso_size() == 0 {
        p.linear(off as u32 + F::HEADER + options + want);
    }
    F::l3(p, off)
}

/// The ports, where the protocol has some and this part of the datagram holds them.
#[inline(always)]
pub fn ports<F: Family, P: Packet>(p: &P, ip: &L3<F>) -> Res<Ports> {
    let read = read_ports(p, ip.proto | (ip.l4 as u32) << 8 | ip.part.bits << 24);
    if read == CUT { Err(D::Short) } else { Ok(Ports::of(read as u32)) }
}

/// No ports: the frame ends before.
const CUT: u64 = 1 << 32;

/// Out of line and with all it needs in one register, so that its caller has not branched by protocol: the verifier would walk all that
/// follows once for each.
#[inline(never)]
fn read_ports<P: Packet>(p: &P, packed: u32) -> u64 {
    const TCP_: u32 = TCP as u32;
    const UDP_: u32 = UDP as u32;
    const SCTP_: u32 = SCTP as u32;
    let (proto, l4, part) = (packed & 0xff, (packed >> 8 & 0x3fff) as usize, Part { bits: packed >> 24 });
    match proto {
        TCP_ | UDP_ | SCTP_ if !part.is_later() => p.read::<Ports>(l4).map_or(CUT, |ports| ports.raw().into()),
        _ => 0,
    }
}
