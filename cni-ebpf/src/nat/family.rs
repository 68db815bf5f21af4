//! What translation needs of an address family, beside [`Family`].
use bytemuck::Pod;
use cni_common::{
    maps::{NatBack4, NatBack6, NatForth4, NatForth6, NatKey4, NatKey6},
    net::{Be16, Ip4, Ip6, Ports},
    wire::{ICMP, ICMP6},
};

use super::{
    rewrite::{Cover, End, Side},
    sum::Diff,
};
use crate::{
    Packet, Res,
    family::{Family, V4, V6},
};

/// An address family whose packets are translated.
pub trait NatFamily: Family {
    /// What the world writes: the key of a translation.
    type Key: Pod;
    /// The pod's end, by that key.
    type Back: Pod;
    /// The node's end, by the key of the flow.
    type Forth: Pod;
    /// Its ICMP.
    const ICMP: u8;
    /// How the checksums of TCP and UDP cover its addresses.
    const PSEUDO: Cover;
    /// How that of its ICMP does.
    const ICMP_COVER: Cover;
    /// The key of what `world` sends to `node`.
    fn key(world: &End<Self>, node: &End<Self>, proto: u32) -> Self::Key;
    /// Makes the key of a translation that of the hold on it, or back.
    fn set_hold(key: &mut Self::Key, is_hold: bool);
    /// The key of the hold on a translation.
    fn hold(key: &Self::Key) -> Self::Key {
        let mut hold = *key;
        Self::set_hold(&mut hold, true);
        hold
    }
    /// A translation to the pod's end, made at this time.
    fn back(pod: &End<Self>, made: u64) -> Self::Back;
    /// The node's own, made at this time. `zero` is 0, which the compiler must not know: it would call memset.
    fn own(made: u64, zero: u64) -> Self::Back;
    /// The pod's end, and when the translation was made.
    fn pod_end(back: &Self::Back) -> (End<Self>, u64);
    /// A translation to the node's end.
    fn forth(node: &End<Self>) -> Self::Forth;
    /// The node's end.
    fn node_end(forth: &Self::Forth) -> End<Self>;
    /// The change from one address to another.
    fn diff(old: &Self::Addr, new: &Self::Addr) -> Diff;
    /// Writes one end's address into the header at `off`, of IPv4 with the header's checksum; what that changes of the sum of all of the header.
    fn set_address<P: Packet>(p: &mut P, off: usize, side: Side, new: &Self::Addr) -> Res<Diff>;
    /// Where the packet whose header is at `off` ends: a frame may be longer.
    fn end<P: Packet>(p: &P, off: usize) -> Res<usize>;
    /// Whether ICMP of this type is an error that quotes a packet. Source quench is not: nobody sends it any more (RFC 6633).
    fn quotes(kind: u8) -> bool;
    /// Whether ICMP of this type is an echo, and then whether a reply: 0 no, 1 a request, 2 a reply.
    fn echo(kind: u8) -> u32;
}

/// Whether both are the same address and port.
#[inline(always)]
pub fn is_same_end<F: NatFamily>(a: &End<F>, b: &End<F>) -> bool {
    a.port.raw() == b.port.raw() && F::is_same(&a.addr, &b.addr)
}

/// Ports and protocol, as they stand behind the addresses of a key.
#[inline(always)]
fn tail(world: Be16, node: Be16, proto: u32) -> u64 {
    u64::from(Ports::new(world, node).raw()) | u64::from(proto & 0xff) << 32
}
const _: () = assert!(cfg!(target_endian = "little") && core::mem::offset_of!(NatKey4, proto) == 12);
const _: () = assert!(core::mem::offset_of!(NatKey6, proto) == 36);

impl NatFamily for V4 {
    type Key = NatKey4;
    type Back = NatBack4;
    type Forth = NatForth4;
    const ICMP: u8 = ICMP;
    const PSEUDO: Cover = Cover::PSEUDO4;
    const ICMP_COVER: Cover = Cover::CONTENT;

    #[inline(always)]
    fn key(world: &End<Self>, node: &End<Self>, proto: u32) -> NatKey4 {
        let addresses = u64::from(world.addr.raw()) | u64::from(node.addr.raw()) << 32;
        bytemuck::must_cast([addresses, tail(world.port, node.port, proto)])
    }
    #[inline(always)]
    fn set_hold(key: &mut NatKey4, is_hold: bool) {
        key.hold = is_hold.into();
    }
    #[inline(always)]
    fn back(pod: &End<Self>, made: u64) -> NatBack4 {
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            0,
            made,
            u64::from(pod.addr.raw()) | u64::from(pod.port.raw()) << 32,
        ])
    }
    #[inline(always)]
    fn own(made: u64, zero: u64) -> NatBack4 {
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            zero,
            made,
            zero,
        ])
    }
    #[inline(always)]
    fn pod_end(back: &NatBack4) -> (End<Self>, u64) {
        (End { addr: back.pod, port: back.pod_port }, back.made)
    }
    #[inline(always)]
    fn forth(node: &End<Self>) -> NatForth4 {
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            0,
            node.addr.raw(),
            u32::from(node.port.raw()),
        ])
    }
    #[inline(always)]
    fn node_end(forth: &NatForth4) -> End<Self> {
        End { addr: forth.node, port: forth.node_port }
    }
    #[inline(always)]
    fn diff(old: &Ip4, new: &Ip4) -> Diff {
        Diff::NONE.word(old.raw(), new.raw())
    }
    #[inline(always)]
    fn set_address<P: Packet>(p: &mut P, off: usize, side: Side, new: &Ip4) -> Res<Diff> {
        let at = off + 12 + 4 * side.number();
        let (old, csum): (Ip4, Be16) = (p.read(at)?, p.read(off + 10)?);
        let diff = Self::diff(&old, new);
        let mended = diff.apply(csum);
        p.write(at, *new)?;
        p.write(off + 10, mended)?;
        Ok(diff.half(csum, mended))
    }
    #[inline(always)]
    fn end<P: Packet>(p: &P, off: usize) -> Res<usize> {
        Ok(off + usize::from(p.read::<Be16>(off + 2)?.to_host()))
    }
    #[inline(always)]
    fn quotes(kind: u8) -> bool {
        use cni_common::wire::icmp::{PARAMETER, TIME_EXCEEDED, UNREACHABLE};
        matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER)
    }
    #[inline(always)]
    fn echo(kind: u8) -> u32 {
        use cni_common::wire::icmp::{ECHO, ECHO_REPLY};
        match kind {
            ECHO => 1,
            ECHO_REPLY => 2,
            _ => 0,
        }
    }
}

impl NatFamily for V6 {
    type Key = NatKey6;
    type Back = NatBack6;
    type Forth = NatForth6;
    const ICMP: u8 = ICMP6;
    const PSEUDO: Cover = Cover::PSEUDO6;
    const ICMP_COVER: Cover = Cover::PSEUDO6;

    #[inline(always)]
    fn key(world: &End<Self>, node: &End<Self>, proto: u32) -> NatKey6 {
        let ([w0, w1], [n0, n1]) = (world.addr.raw(), node.addr.raw());
        bytemuck::must_cast([w0, w1, n0, n1, tail(world.port, node.port, proto)])
    }
    #[inline(always)]
    fn set_hold(key: &mut NatKey6, is_hold: bool) {
        key.hold = is_hold.into();
    }
    #[inline(always)]
    fn back(pod: &End<Self>, made: u64) -> NatBack6 {
        let [a0, a1] = pod.addr.raw();
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            made,
            a0,
            a1,
            #[cfg(not(feature = "test-layout"))]
            made,
            u64::from(pod.port.raw()),
        ])
    }
    #[inline(always)]
    fn own(made: u64, zero: u64) -> NatBack6 {
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            made,
            zero,
            zero,
            #[cfg(not(feature = "test-layout"))]
            made,
            zero,
        ])
    }
    #[inline(always)]
    fn pod_end(back: &NatBack6) -> (End<Self>, u64) {
        (End { addr: back.pod, port: back.pod_port }, back.made)
    }
    #[inline(always)]
    fn forth(node: &End<Self>) -> NatForth6 {
        let [a0, a1] = node.addr.raw();
        bytemuck::must_cast([
            #[cfg(feature = "test-layout")]
            0,
            a0,
            a1,
            u64::from(node.port.raw()),
        ])
    }
    #[inline(always)]
    fn node_end(forth: &NatForth6) -> End<Self> {
        End { addr: forth.node, port: forth.node_port }
    }
    #[inline(always)]
    fn diff(old: &Ip6, new: &Ip6) -> Diff {
        let ([o0, o1], [n0, n1]) = (old.raw(), new.raw());
        Diff::NONE.long(o0, n0).long(o1, n1)
    }
    #[inline(always)]
    fn set_address<P: Packet>(p: &mut P, off: usize, side: Side, new: &Ip6) -> Res<Diff> {
        let at = off + 8 + 16 * side.number();
        let old: Ip6 = p.read(at)?;
        p.write(at, *new)?;
        Ok(Self::diff(&old, new))
    }
    #[inline(always)]
    fn end<P: Packet>(p: &P, off: usize) -> Res<usize> {
        Ok(off + Self::HEADER as usize + usize::from(p.read::<Be16>(off + 4)?.to_host()))
    }
    #[inline(always)]
    fn quotes(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }
    #[inline(always)]
    fn echo(kind: u8) -> u32 {
        use cni_common::wire::icmp6::{ECHO, ECHO_REPLY};
        match kind {
            ECHO => 1,
            ECHO_REPLY => 2,
            _ => 0,
        }
    }
}
