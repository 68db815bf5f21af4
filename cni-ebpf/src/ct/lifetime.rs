//! How long a flow without packets lives.
//!
//! RFC 5382, 4787 and 5508 say what a NAT must keep at least; Cilium's figures (`bpf/node_config.h`, `CT_*`) stand beside them. A flow that
//! is over costs its next packet a judgement, no more: one that is still allowed goes on.
use core::mem::offset_of;

use cni_common::{
    maps::CtConfig,
    net::Ports,
    wire::{ICMP, ICMP6, SCTP, TCP, UDP},
};

use super::{entry::Stage, key::Rest};

/// TCP and SCTP while both ends speak, seconds. RFC 5382 REQ-5: 2 hours 4 minutes at least, as keep-alives come every 2 hours (RFC 1122,
/// section 4.2.3.6). Cilium: 8000.
pub const ESTABLISHED: u32 = 8000;
/// TCP and SCTP until both ends have spoken, seconds. RFC 5382 REQ-5: 4 minutes at least for what it calls transitory. Cilium: 60.
pub const HANDSHAKE: u32 = 240;
/// TCP and SCTP when one end has said that it will send no more, seconds. RFC 5382 REQ-5, as above; the other end's packets renew it.
pub const CLOSING: u32 = 240;
/// TCP and SCTP when both ends have, or one has reset it, seconds. Cilium: 10. RFC 5382 would keep its 4 minutes for what a NAT must still
/// translate; here a late segment is judged as any other, and short connections would fill the table.
pub const CLOSED: u32 = 10;
/// UDP, seconds. RFC 4787 REQ-5: 2 minutes at least. Cilium: 60.
pub const UDP_FLOW: u32 = 120;
/// UDP with a port below 1024 at either end, seconds. RFC 4787 REQ-5 a) allows less there: a node asks for many names. Cilium: 60.
pub const UDP_SERVICE: u32 = 60;
/// ICMP echo, seconds. RFC 5508 REQ-1 a): 60 at least. Cilium: 60.
pub const ECHO: u32 = 60;
/// Every other protocol, seconds: `nf_conntrack_generic_timeout` of Linux, which users of GRE or ESP through netfilter are used to.
pub const OTHER: u32 = 600;

/// What the programs are told, on a kernel with `hz` jiffies in a second.
pub const fn config(epoch: u32, hz: u32) -> CtConfig {
    CtConfig {
        epoch,
        second: hz,
        handshake: HANDSHAKE * hz,
        established: ESTABLISHED * hz,
        closing: CLOSING * hz,
        closed: CLOSED * hz,
        udp: UDP_FLOW * hz,
        udp_service: UDP_SERVICE * hz,
        echo: ECHO * hz,
        other: OTHER * hz,
    }
}

/// The first port that is not well-known (RFC 6335 section 6).
const USER_PORTS: u16 = 1024;

/// Of a flow of this protocol at this stage, in jiffies. `blur` gives the number back that it gets, and the verifier does not know it: it
/// would walk all that follows once for each kind of flow.
#[inline(always)]
pub fn lifetime(cfg: &CtConfig, rest: Rest, stage: Stage, blur: impl Fn(u32) -> u32) -> u32 {
    let [_, _, lifetimes @ ..]: &[u32; size_of::<CtConfig>() / 4] = bytemuck::must_cast_ref(cfg);
    // Eight there are.
    lifetimes[(blur(place(rest, blur(stage as u32))) & 7) as usize]
}

/// Which of the lifetimes in [`CtConfig`] it is.
#[inline(always)]
fn place(rest: Rest, stage: u32) -> u32 {
    const TCP_: u32 = TCP as u32;
    const SCTP_: u32 = SCTP as u32;
    const UDP_: u32 = UDP as u32;
    const ICMP_: u32 = ICMP as u32;
    const ICMP6_: u32 = ICMP6 as u32;
    match rest.proto {
        TCP_ | SCTP_ => stage,
        UDP_ if is_service(rest.ports) => place_of(offset_of!(CtConfig, udp_service)),
        UDP_ => place_of(offset_of!(CtConfig, udp)),
        ICMP_ | ICMP6_ => place_of(offset_of!(CtConfig, echo)),
        _ => place_of(offset_of!(CtConfig, other)),
    }
}

const fn place_of(offset: usize) -> u32 {
    ((offset - offset_of!(CtConfig, handshake)) / 4) as u32
}
const _: () = assert!(
    offset_of!(CtConfig, handshake) == 8
        && size_of::<CtConfig>() == 8 + 8 * 4
        && place_of(offset_of!(CtConfig, handshake)) == Stage::Handshake as u32
        && place_of(offset_of!(CtConfig, established)) == Stage::Established as u32
        && place_of(offset_of!(CtConfig, closing)) == Stage::Closing as u32
        && place_of(offset_of!(CtConfig, closed)) == Stage::Closed as u32
);

#[inline(always)]
fn is_service(ports: Ports) -> bool {
    ports.src().to_host() < USER_PORTS || ports.dst().to_host() < USER_PORTS
}
