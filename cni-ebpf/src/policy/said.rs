//! The label class that the tunnel names as the opener's of a flow: a hash of 24 bits, which the sending node writes into the VNI. No pod chooses its own.
use cni_common::{
    drop::Point,
    maps::CT_CLASS_SHIFT,
    net::Be32,
    wire::{ETH_LEN, OVERHEAD4, OVERHEAD6},
};

use crate::{
    Packet, Res,
    ct::{Ask, Direction, Flows, signal},
    family::Family,
    policy::Flow,
};

/// Where the inner network header is, in the two outer families.
const AT4: usize = ETH_LEN + OVERHEAD4 as usize;
const AT6: usize = ETH_LEN + OVERHEAD6 as usize;
/// From the VNI's word to that: it ends VXLAN's header, and the inner Ethernet header follows (RFC 7348 section 5).
const BEFORE: usize = size_of::<Be32>() + ETH_LEN;

/// The class of the sender of the packet that was met; 0: it did not come through the tunnel, or its node does not know.
#[inline(always)]
pub fn of_packet<P: Packet>(p: &P, met: &Ask) -> u32 {
    let vni: Res<Be32> = match (met.point(), met.l3()) {
        (Some(Point::FromOverlay), _) => return p.tunnel_class(),
        // The frame was read up to here before, so it does not end.
        (Some(Point::FromNetdev), AT4) => p.read(AT4 - BEFORE),
        (Some(Point::FromNetdev), AT6) => p.read(AT6 - BEFORE),
        _ => return 0,
    };
    vni.map_or(0, |vni| vni.to_host() >> 8)
}

/// The class under which the opener of a known flow was judged, of which a packet is heard that goes this way.
#[inline(always)]
pub fn of_flow<F: Family, S: Flows<F>>(s: &S, flow: &Flow<F>, heard: u64, direction: Direction) -> u32 {
    let Ok(Some(signal)) = signal::of(heard) else { return 0 };
    let (key, _) = match direction {
        Direction::Forth => F::ct_key(&flow.src, &flow.dst, signal.rest),
        Direction::Back => F::ct_key(&flow.dst, &flow.src, signal.rest),
    };
    let found = match s.flow(&key) {
        Some(flow) => Some(flow),
        None => s.new_flow(&key),
    };
    found.map_or(0, |flow| (flow.verdicts.get() >> CT_CLASS_SHIFT) as u32)
}
