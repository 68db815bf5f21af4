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
#[derive(Clone, Copy)]
pub struct Layout {
    packed: u32,
}
impl Layout {
    /// Nothing but the address changes.
    pub const NONE: Self = Self { packed: 0 };

    const fn new(csum: u32, source: u32, destination: u32, cover: Cover) -> Self {
        Self { packed: csum | source << 8 | destination << 16 | cover.bits << 24 }
    }
    /// Of a protocol of this family; of its ICMP only echo has an identifier.
    #[inline(always)]
    pub fn of<F: NatFamily>(proto: u32) -> Self {
        if proto == u32::from(TCP) {
            Self::new(16, 0, 2, F::PSEUDO)
        } else if proto == u32::from(UDP) {
            Self::new(6, 0, 2, F::PSEUDO.or_none())
        } else if proto == u32::from(F::ICMP) {
            Self::new(2, 4, 4, F::ICMP_COVER)
        } else {
            Self::NONE
        }
    }
    /// Whether a port may be rewritten.
    #[inline(always)]
    pub fn has_port(self) -> bool {
        self.packed != 0
    }
    /// The checksum.
    #[inline(always)]
    pub fn csum(self) -> usize {
        (self.packed & 0xff) as usize
    }
    /// The port of that end.
    #[inline(always)]
    pub fn port(self, side: Side) -> usize {
        ((self.packed >> 8 >> (8 * side.number)) & 0xff) as usize
    }
    /// How the checksum covers an address.
    #[inline(always)]
    pub fn cover(self) -> Cover {
        Cover { bits: self.packed >> 24 }
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
    p.linear((ip.l4 + if csum_at > port_at { layout.csum() } else { layout.port(side) } + 2) as u32);
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
