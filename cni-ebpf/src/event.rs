//! What an event says of a dropped frame. Read from the frame again: only a drop pays for it.
use cni_common::{
    drop::Point,
    event::{Blame, DropEvent, WOULD_BE},
    wire::*,
};

use crate::{
    DropReason as D, Packet,
    family::{self, Family, V4, V6},
};

/// Fills the event, but for time and endpoint, into `e`, from the numbers of a [`Point`] and of a
/// [`DropReason`](D), perhaps with [`WOULD_BE`]; `said` is by policy, if that drops it. `e` is all zero before. By reference: the struct is an eighth of BPF's stack.
#[inline(always)]
pub fn describe<P: Packet>(p: &P, point: u8, reason: u8, said: Blame, e: &mut DropEvent) {
    const INNER_SOURCE: u8 = D::InnerSource as u8;
    const ECN: u8 = D::EcnNotCapable as u8;
    const EGRESS: u8 = D::PolicyEgress as u8;
    const UNKNOWN: u8 = D::PolicyUnknown as u8;
    const ORDER: u8 = D::FragmentOrder as u8;
    e.reason = reason;
    e.point = point;
    e.ifindex = p.ifindex();
    e.len = p.len();
    // These two are about the inner packet; the outer headers were those of VXLAN, without options.
    let is_netdev = point == Point::FromNetdev as u8;
    let by_policy = matches!(reason & !WOULD_BE, EGRESS..=UNKNOWN);
    if by_policy {
        e.cookie = said.cookie;
        e.class = said.class;
    }
    let outer = if is_netdev && (by_policy || reason == ORDER) {
        // Tunnelled, or of the world's to a masqueraded pod: policy knows.
        said.at.wrapping_sub(ETH_LEN as u32)
    } else if is_netdev && matches!(reason, INNER_SOURCE | ECN) {
        match p.read(ETH_LEN - 2) {
            Ok(ETH_IP4) => OVERHEAD4,
            _ => OVERHEAD6,
        }
    } else {
        0
    };
    network(p, (p.blur(u64::from(outer) + ETHERTYPE) & 0x7f) as usize, e);
}

/// Where it stands in the frame.
const ETHERTYPE: u64 = ETH_LEN as u64 - 2;

/// The network header behind the EtherType at `off`.
#[inline(never)]
fn network<P: Packet>(p: &P, off: usize, e: &mut DropEvent) {
    match p.read(off) {
        Ok(ETH_IP4) => tuple::<V4, P>(p, off + 2, e),
        Ok(ETH_IP6) => tuple::<V6, P>(p, off + 2, e),
        _ => {}
    }
}

#[inline(never)]
fn tuple<F: Family, P: Packet>(p: &P, off: usize, e: &mut DropEvent) {
    let Ok(ip) = F::l3(p, off) else { return };
    e.family = F::NUMBER;
    e.src = F::widen(&ip.src);
    e.dst = F::widen(&ip.dst);
    e.proto = ip.proto as u8;
    if let Ok(ports) = family::ports(p, &ip) {
        e.sport = ports.src();
        e.dport = ports.dst();
    }
}
