//! What an event says of a dropped frame. Read from the frame again: only a drop pays for it.
use cni_common::{drop::Point, event::DropEvent, wire::*};

use crate::{
    DropReason as D, Packet,
    family::{self, Family, V4, V6},
};

/// Fills the event, but for time and endpoint, into `e`, which is all zero. By reference: the struct is an eighth of BPF's stack.
#[inline(always)]
pub fn describe<P: Packet>(p: &P, point: Point, reason: D, e: &mut DropEvent) {
    e.reason = reason as u8;
    e.point = point as u8;
    e.ifindex = p.ifindex();
    e.len = p.len();
    network(p, ETH_LEN, e);
    // These two are about the inner packet; the outer headers were those of VXLAN, without options.
    if point as u8 == Point::FromNetdev as u8 && matches!(reason, D::InnerSource | D::EcnNotCapable) {
        let off = ETH_LEN + if e.family == 4 { OVERHEAD4 } else { OVERHEAD6 } as usize;
        network(p, off, e);
    }
}

/// The network header at `off`, the EtherType standing before it.
#[inline(never)]
fn network<P: Packet>(p: &P, off: usize, e: &mut DropEvent) {
    match p.read(off - 2) {
        Ok(ETH_IP4) => tuple::<V4, P>(p, off, e),
        Ok(ETH_IP6) => tuple::<V6, P>(p, off, e),
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
