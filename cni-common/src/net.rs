//! Addresses and numbers as they stand in a packet: bytes in network order inside, alignment outside.
//!
//! The alignment lets the compiler load a field in one piece, and the named `bytes` field makes bpftool print the bytes
//! in their order on the wire instead of a swapped integer.
use bytemuck::{Pod, Zeroable};

macro_rules! wire {
    ($(#[$m:meta])* $name:ident, $len:literal, $align:literal) => {
        $(#[$m])*
        #[repr(C, align($align))]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
        pub struct $name {
            /// As on the wire.
            pub bytes: [u8; $len],
        }
        impl $name {
            /// From bytes in network order.
            #[inline(always)]
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self { bytes }
            }
        }
    };
}
wire!(
    /// 16 bits, network order.
    Be16, 2, 2
);
wire!(
    /// 32 bits, network order. Aligned to 2 only: the outer headers of a tunnelled packet stand at odd words.
    Be32, 4, 2
);
wire!(
    /// An IPv4 address.
    Ip4, 4, 4
);
wire!(
    /// An IPv6 address. Compares and copies as two words.
    Ip6, 16, 8
);
wire!(
    /// An Ethernet address.
    Mac, 6, 2
);

impl Be16 {
    /// 0 in either order.
    pub const ZERO: Self = Self { bytes: [0; 2] };

    /// From a number in host order.
    #[inline(always)]
    pub const fn from_host(v: u16) -> Self {
        Self { bytes: v.to_be_bytes() }
    }
    /// The number, in host order.
    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }
    /// The two bytes as a native integer: for comparing, hashing and checksums, where order does not matter.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        u16::from_ne_bytes(self.bytes)
    }
}

impl Be32 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn from_host(v: u32) -> Self {
        Self { bytes: v.to_be_bytes() }
    }
    /// The number, in host order.
    #[inline(always)]
    pub const fn to_host(self) -> u32 {
        u32::from_be_bytes(self.bytes)
    }
}

impl Ip4 {
    /// The four bytes as a native integer, for comparing and hashing.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        u32::from_ne_bytes(self.bytes)
    }
}

impl Ip6 {
    /// The sixteen bytes as two native integers, for comparing and hashing.
    #[inline(always)]
    pub fn raw(self) -> [u64; 2] {
        bytemuck::must_cast(self)
    }
    /// An IPv4 address in IPv6 form, `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
    #[inline(always)]
    pub const fn mapped(a: Ip4) -> Self {
        let [a, b, c, d] = a.bytes;
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }
}

impl Mac {
    /// The one MAC of every device of Weft's on every node, and so the pods' gateway MAC and the inner destination MAC
    /// of VXLAN. Locally administered; the rest spells "WEFT".
    pub const WEFT: Self = Self { bytes: [0x02, b'W', b'E', b'F', b'T', 0x01] };
    /// Inner source MAC of VXLAN. Not [`Self::WEFT`]: the kernel's VXLAN device takes a packet with its own address as the source for a
    /// loop and drops it (`vxlan_set_mac`).
    pub const OVERLAY: Self = Self { bytes: [0x02, b'W', b'E', b'F', b'T', 0x02] };
    /// All zero: no address known.
    pub const ZERO: Self = Self { bytes: [0; 6] };
}

/// The pods' IPv4 gateway: link-local, the same for every pod. A permanent neighbour entry has its MAC, [`Mac::WEFT`].
pub const GATEWAY4: Ip4 = Ip4::new([169, 254, 1, 1]);
/// The pods' IPv6 gateway, `fe80::1`.
pub const GATEWAY6: Ip6 = Ip6::new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Source and destination port as they lie in the packet, kept in one register: two 16-bit stores that are read back as
/// one word stall the CPU.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ports {
    word: u32,
}
impl Ports {
    /// What a packet without ports has.
    pub const NONE: Self = Self { word: 0 };

    /// From the two ports.
    #[inline(always)]
    pub fn new(src: Be16, dst: Be16) -> Self {
        let ([a, b], [c, d]) = (src.bytes, dst.bytes);
        Self { word: u32::from_ne_bytes([a, b, c, d]) }
    }
    /// From the word that [`raw`](Self::raw) gives.
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self { word }
    }
    /// The source port.
    #[inline(always)]
    pub fn src(self) -> Be16 {
        let [a, b, _, _] = self.word.to_ne_bytes();
        Be16 { bytes: [a, b] }
    }
    /// The destination port.
    #[inline(always)]
    pub fn dst(self) -> Be16 {
        let [_, _, c, d] = self.word.to_ne_bytes();
        Be16 { bytes: [c, d] }
    }
    /// Both as one native word, for comparing and hashing.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.word
    }
}

#[cfg(any(test, feature = "std"))]
mod text {
    //! How people and JSON see them.
    use core::fmt::{self, Debug, Display, Formatter};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{Be16, Be32, Ip4, Ip6, Mac};

    impl From<Ipv4Addr> for Ip4 {
        fn from(a: Ipv4Addr) -> Self {
            Self { bytes: a.octets() }
        }
    }
    impl From<Ip4> for Ipv4Addr {
        fn from(a: Ip4) -> Self {
            Self::from(a.bytes)
        }
    }
    impl From<Ipv6Addr> for Ip6 {
        fn from(a: Ipv6Addr) -> Self {
            Self { bytes: a.octets() }
        }
    }
    impl From<Ip6> for Ipv6Addr {
        fn from(a: Ip6) -> Self {
            Self::from(a.bytes)
        }
    }
    impl Ip6 {
        /// The address it stands for: IPv4 when it is a mapped one.
        pub fn canonical(self) -> IpAddr {
            Ipv6Addr::from(self).to_canonical()
        }
    }
    /// A string is not a MAC address; the text says which.
    #[derive(Debug, PartialEq, Eq)]
    pub struct BadMac(pub String);
    impl Display for BadMac {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            write!(f, "`{}` is not a MAC address (six pairs of hexadecimal digits with colons between)", self.0)
        }
    }
    impl std::error::Error for BadMac {}
    impl core::str::FromStr for Mac {
        type Err = BadMac;
        fn from_str(s: &str) -> Result<Self, BadMac> {
            let bad = || BadMac(s.to_owned());
            let parts: Vec<u8> = s
                .split(':')
                .map(|p| if p.len() == 2 { u8::from_str_radix(p, 16).map_err(|_| bad()) } else { Err(bad()) })
                .collect::<Result<_, _>>()?;
            Ok(Self { bytes: parts.try_into().map_err(|_| bad())? })
        }
    }
    impl Display for Mac {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            let [a, b, c, d, e, g] = self.bytes;
            write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
        }
    }
    impl Display for Ip4 {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            Display::fmt(&Ipv4Addr::from(*self), f)
        }
    }
    impl Display for Ip6 {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            Display::fmt(&Ipv6Addr::from(*self), f)
        }
    }
    impl Display for Be16 {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            Display::fmt(&self.to_host(), f)
        }
    }
    impl Display for Be32 {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            Display::fmt(&self.to_host(), f)
        }
    }
    macro_rules! same_in_debug_and_json { ($($t:ty),*) => { $(
        impl Debug for $t {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result { Display::fmt(self, f) }
        }
    )* } }
    same_in_debug_and_json!(Mac, Ip4, Ip6, Be16, Be32);

    #[cfg(feature = "user")]
    mod json {
        use serde::{Serialize, Serializer};

        use super::super::{Be16, Be32, Ip4, Ip6, Mac};

        macro_rules! as_text { ($($t:ty),*) => { $(
            impl Serialize for $t {
                fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
            }
        )* } }
        as_text!(Mac, Ip4, Ip6);
        impl Serialize for Be16 {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_u16(self.to_host())
            }
        }
        impl Serialize for Be32 {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_u32(self.to_host())
            }
        }
    }
}
#[cfg(any(test, feature = "std"))]
pub use text::BadMac;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back_in_host_order(v in any::<u16>(), w in any::<u32>()) {
            prop_assert_eq!(Be16::from_host(v).to_host(), v);
            prop_assert_eq!(Be16::from_host(v).bytes, v.to_be_bytes());
            prop_assert_eq!(Be32::from_host(w).to_host(), w);
        }
        #[test]
        fn ports_keep_both_ends_apart(a in any::<u16>(), b in any::<u16>()) {
            let p = Ports::new(Be16::from_host(a), Be16::from_host(b));
            prop_assert_eq!((p.src().to_host(), p.dst().to_host()), (a, b));
        }
        #[test]
        fn a_mac_reads_back_what_it_prints(bytes in any::<[u8; 6]>()) {
            prop_assert_eq!(Mac::new(bytes).to_string().parse(), Ok(Mac::new(bytes)));
        }
    }

    #[test]
    fn a_mac_of_other_form_is_refused_by_name() {
        for s in ["", "02:00", "02-00-00-00-00-01", "2:0:0:0:0:1", "02:00:00:00:00:01:02", "02:00:00:00:00:0g"] {
            assert_eq!(s.parse::<Mac>(), Err(BadMac(s.to_owned())));
        }
    }
}
