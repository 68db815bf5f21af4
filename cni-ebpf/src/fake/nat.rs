//! What translation asks of packets and maps.
use std::net::IpAddr;

use cni_common::net::{Be16, Ip4, Ip6};

use super::Frame;
use crate::{
    Packet, Res,
    nat::{Mend, rewrite::Cover, sum::Diff},
};

/// As `bpf_l4_csum_replace` does it.
impl Mend for Frame {
    fn mend(&mut self, at: usize, diff: u32, cover: Cover) -> Res<()> {
        let field: Be16 = self.read(at)?;
        if cover.may_be_absent() && field == Be16::ZERO {
            return Ok(());
        }
        let mended = match (self.partial, cover.is_pseudo()) {
            (false, _) => Diff::of(diff).apply(field),
            (true, true) => Diff::of(diff).add_to(field),
            (true, false) => field,
        };
        let absent = cover.may_be_absent() && mended == Be16::ZERO;
        self.write(at, if absent { Be16::new([0xff; 2]) } else { mended })
    }
}

/// Addresses of a family, from text.
pub trait FromIp: Sized {
    /// `None`: of the other family.
    fn from_ip(a: IpAddr) -> Option<Self>;
}
impl FromIp for Ip4 {
    fn from_ip(a: IpAddr) -> Option<Self> {
        match a {
            IpAddr::V4(a) => Some(a.into()),
            IpAddr::V6(_) => None,
        }
    }
}
impl FromIp for Ip6 {
    fn from_ip(a: IpAddr) -> Option<Self> {
        match a {
            IpAddr::V6(a) => Some(a.into()),
            IpAddr::V4(_) => None,
        }
    }
}
/// The same, where the family is known.
pub fn addr<A: FromIp>(a: IpAddr) -> A {
    A::from_ip(a).unwrap_or_else(|| panic!("{a} is of the other family"))
}
