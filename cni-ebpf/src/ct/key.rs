//! The key: one for both directions of a flow.
//!
//! Ends are ordered by (address, port) as native words. The order means nothing, it only has to be one; keys are made of whole words, as two
//! narrow stores that are read back as one word stall the CPU. All machines that BPF is built for here have the low byte first.
use cni_common::{
    maps::{CT_HI_ASKS, CT_LO_ASKS, CtKey4, CtKey6},
    net::{Ip4, Ip6, Ports},
};

/// What the key holds beside the addresses.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug, PartialEq, Eq))]
pub struct Rest {
    /// Ports, sender's first; an echo's identifier twice.
    pub ports: Ports,
    /// IP protocol.
    pub proto: u32,
    /// Who sends echo requests.
    pub asker: Asker,
}

/// Who sends the echo requests of the flow. A number, and no branch is made of it: the verifier would walk all that follows once for each.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub struct Asker {
    code: u32,
}
impl Asker {
    /// No echo.
    pub const NONE: Self = Self { code: 0 };
    /// The sender of this packet, which is a request.
    pub const SENDER: Self = Self { code: 1 };
    /// The receiver of this packet, which is a reply.
    pub const RECEIVER: Self = Self { code: 2 };

    /// From the number that [`code`](Self::code) gives.
    #[inline(always)]
    pub const fn of(code: u32) -> Self {
        Self { code }
    }
    /// As a number of two bits.
    #[inline(always)]
    pub const fn code(self) -> u32 {
        self.code
    }
}
const _: () = assert!(CT_LO_ASKS == 1 && CT_HI_ASKS == 2, "what `word` makes of a sender that comes first, and last");

impl Rest {
    /// Protocol and asker as the key has them, in one word; the asker by its place in the order.
    #[inline(always)]
    fn word(self, from_hi: bool) -> u32 {
        let asker = self.asker.code();
        let is_echo = (asker | asker >> 1) & 1;
        self.proto & 0xff | ((asker ^ (is_echo * 3 * u32::from(from_hi))) << 8)
    }
}

/// The key of a packet between IPv4 addresses, and whether its sender is the end that comes last.
#[inline(always)]
pub fn of4(src: &Ip4, dst: &Ip4, rest: Rest) -> (CtKey4, bool) {
    let (s, d, ports) = (src.raw(), dst.raw(), rest.ports.raw());
    let from_hi = s > d || (s == d && ports & 0xffff > ports >> 16);
    let word = rest.word(from_hi);
    let key = if from_hi { [d, s, ports.rotate_left(16), word] } else { [s, d, ports, word] };
    (bytemuck::must_cast(key), from_hi)
}

/// The same between IPv6 addresses.
#[inline(always)]
pub fn of6(src: &Ip6, dst: &Ip6, rest: Rest) -> (CtKey6, bool) {
    let ([s0, s1], [d0, d1], ports) = (src.raw(), dst.raw(), rest.ports.raw());
    let from_hi = if s0 != d0 {
        s0 > d0
    } else if s1 != d1 {
        s1 > d1
    } else {
        ports & 0xffff > ports >> 16
    };
    let word = u64::from(rest.word(from_hi)) << 32;
    let key = if from_hi {
        [d0, d1, s0, s1, u64::from(ports.rotate_left(16)) | word]
    } else {
        [s0, s1, d0, d1, u64::from(ports) | word]
    };
    (bytemuck::must_cast(key), from_hi)
}
