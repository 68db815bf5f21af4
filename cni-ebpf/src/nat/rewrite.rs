//! A packet's source or destination becomes another address and port, in place.
use cni_common::{
    net::Be16,
    wire::{TCP, UDP},
};

use super::{family::NatFamily, sum::Diff};
use crate::{
    Packet, Res,
    family::{Family, L3},
};

/// An address and a port: a port of TCP, UDP or SCTP, the identifier of an echo, 0 of protocols without.
#[derive(Clone, Copy)]
pub struct End<F: Family> {
    /// Address.
    pub addr: F::Addr,
    /// Port.
    pub port: Be16,
}

/// Which end of a packet. A number, as offsets are made of it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Side {
    number: usize,
}
impl Side {
    /// Its source.
    pub const SOURCE: Self = Self { number: 0 };
    /// Its destination.
    pub const DESTINATION: Self = Self { number: 1 };

    /// 0 of the source, 1 of the destination.
    #[inline(always)]
    pub const fn number(self) -> usize {
        self.number
    }
    /// The address of that end.
    #[inline(always)]
    pub fn address<F: Family>(self, ip: &L3<F>) -> F::Addr {
        if self.number == 0 { ip.src } else { ip.dst }
    }
}

/// How an L4 checksum covers what has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Cover {
    bits: u32,
}
impl Cover {
    /// As one of the bytes that it stands among.
    pub const CONTENT: Self = Self { bits: 0 };
    /// As an address of the pseudo header of IPv4.
    pub const PSEUDO4: Self = Self { bits: 1 };
    /// As an address of the pseudo header of IPv6.
    pub const PSEUDO6: Self = Self { bits: 1 | 2 };
    const MAY_BE_ABSENT: u32 = 4;

    /// The same of UDP: a checksum of 0 says that there is none.
    #[inline(always)]
    pub const fn or_none(self) -> Self {
        Self { bits: self.bits | Self::MAY_BE_ABSENT }
    }
    /// The same of the packet's content.
    #[inline(always)]
    pub const fn content(self) -> Self {
        Self { bits: self.bits & Self::MAY_BE_ABSENT }
    }
    /// Whether it is by way of the pseudo header.
    #[inline(always)]
    pub const fn is_pseudo(self) -> bool {
        self.bits & 1 != 0
    }
    /// Whether that is the one of IPv6.
    #[inline(always)]
    pub const fn is_pseudo6(self) -> bool {
        self.bits & 2 != 0
    }
    /// Whether 0 says that there is no checksum.
    #[inline(always)]
    pub const fn may_be_absent(self) -> bool {
        self.bits & Self::MAY_BE_ABSENT != 0
    }
}

/// A packet whose L4 checksum follows a change, also one that the NIC is yet to make (`CHECKSUM_PARTIAL`: the field holds the sum of the pseudo
/// header, not complemented, and content is added later), or that the NIC has handed over as a sum of all bytes (`CHECKSUM_COMPLETE`).
///
/// Only the kernel knows which, so there it is `bpf_l4_csum_replace` with `from` 0, `to` = `diff` and the flags `BPF_F_PSEUDO_HDR` and
/// `BPF_F_MARK_MANGLED_0`. With the pseudo header of IPv6 that helper takes the difference out of a `CHECKSUM_COMPLETE` sum although address and
/// checksum have changed by opposite amounts; `bpf_csum_update` with `diff` puts it back (it does nothing to other packets), on every kernel: the
/// flag `BPF_F_IPV6` says the same, but 5.10 refuses it.
///
/// Apart from [`Packet`] for as long as no program needs it.
pub trait Mend: Packet {
    /// Adjusts the checksum at `at` to a change, [`Diff::folded`], of what it covers in that way. Without a checksum it stays so, and one
    /// that comes out as 0 where that would say so is written as 0xffff (RFC 768).
    fn mend(&mut self, at: usize, diff: u32, cover: Cover) -> Res<()>;
}

/// Where a protocol keeps what is rewritten, in one register: offsets in the L4 header. All 0: nothing but the address may change, as the
/// CRC of SCTP covers the ports, and cannot be adjusted without all the bytes.
///
/// Looked up without a branch: the verifier would walk all that follows once for each protocol.
#[derive(Clone, Copy)]
pub struct Layout {
    packed: u32,
}

/// Bits of the kinds, by protocol: 1 TCP, 2 UDP, 3 the family's ICMP.
const KIND_LOW: u64 = 1 << TCP;
const KIND_HIGH: u64 = 1 << UDP;

impl Layout {
    /// Nothing but the address changes.
    pub const NONE: Self = Self { packed: 0 };

    /// All are even, and `needed` is where the last of them ends.
    const fn packed(csum: u64, source: u64, destination: u64, needed: u64, cover: Cover) -> u64 {
        assert!(
            (csum | source | destination | needed) & 1 == 0 && csum < 32 && needed < 32 && source | destination < 8
        );
        (csum >> 1) | (needed >> 1) << 4 | (source >> 1) << 8 | (destination >> 1) << 10 | (cover.bits as u64) << 12
    }
    const fn table<F: NatFamily>() -> u64 {
        Self::packed(16, 0, 2, 18, F::PSEUDO) << 16
            | Self::packed(6, 0, 2, 8, F::PSEUDO.or_none()) << 32
            | Self::packed(2, 4, 4, 6, F::ICMP_COVER) << 48
    }
    /// Of a protocol of this family; of its ICMP only echo has an identifier.
    #[inline(always)]
    pub fn of<F: NatFamily>(proto: u32) -> Self {
        let (icmp, table) = const { (1 << F::ICMP, Self::table::<F>()) };
        let bit = |mask: u64| (mask >> (proto & 63)) & 1;
        // All ones below 64, else 0.
        let known = u64::from((((proto & 0xff) >> 6) + 3) >> 2).wrapping_sub(1);
        let kind = (bit(KIND_LOW | icmp) | bit(KIND_HIGH | icmp) << 1) & known;
        Self { packed: (table >> (16 * kind)) as u32 & 0xffff }
    }
    /// Whether a port may be rewritten.
    #[inline(always)]
    pub fn has_port(self) -> bool {
        self.packed != 0
    }
    /// The checksum.
    #[inline(always)]
    pub fn csum(self) -> usize {
        2 * (self.packed & 15) as usize
    }
    /// Where the last of it ends.
    #[inline(always)]
    pub fn needed(self) -> usize {
        2 * (self.packed >> 4 & 15) as usize
    }
    /// The port of that end.
    #[inline(always)]
    pub fn port(self, side: Side) -> usize {
        2 * (self.packed >> (8 + 2 * side.number) & 3) as usize
    }
    /// How the checksum covers an address.
    #[inline(always)]
    pub fn cover(self) -> Cover {
        Cover { bits: self.packed >> 12 }
    }
}

/// Rewrites one end of the packet whose network header, at `at`, is `ip`. A later fragment has no L4 header, so only its address changes.
///
/// # Errors
/// [`Short`](crate::DropReason::Short), before anything is written.
#[inline(always)]
pub fn rewrite<F: NatFamily, P: Mend>(p: &mut P, at: usize, ip: &L3<F>, side: Side, to: &End<F>) -> Res<()> {
    let layout = if ip.part.is_later() { Layout::NONE } else { Layout::of::<F>(ip.proto) };
    if !layout.has_port() {
        F::set_address(p, at, side, &to.addr)?;
        return Ok(());
    }
    let (csum_at, port_at) = (ip.l4 + layout.csum(), ip.l4 + layout.port(side));
    p.linear((ip.l4 + layout.needed()) as u32);
    let port: Be16 = p.read(port_at)?;
    p.read::<Be16>(csum_at)?;
    F::set_address(p, at, side, &to.addr)?;
    let cover = layout.cover();
    if cover.is_pseudo() {
        p.mend(csum_at, F::diff(&side.address(ip), &to.addr).folded(), cover)?;
    }
    if port.raw() != to.port.raw() {
        p.write(port_at, to.port)?;
        p.mend(csum_at, Diff::NONE.half(port, to.port).folded(), cover.content())?;
    }
    Ok(())
}
