//! What a packet says of its flow, whatever its protocol.
use cni_common::{
    maps::{CT_SENT_ANSWER, CT_SENT_DATA, CT_SENT_END, CT_SENT_OPEN, CT_SENT_RESET},
    net::{Be16, Ports},
    wire::{ICMP, ICMP6, Icmp, SCTP, TCP, icmp, icmp6},
};

use super::key::{Asker, Rest};
use crate::{
    Packet, Res,
    family::{Family, L3, Part},
};

/// It opens: TCP SYN without ACK, SCTP INIT.
pub const OPEN: u32 = CT_SENT_OPEN as u32;
/// It only answers: TCP SYN-ACK, SCTP INIT ACK, an echo reply.
pub const ANSWER: u32 = CT_SENT_ANSWER as u32;
/// Anything else.
pub const DATA: u32 = CT_SENT_DATA as u32;
/// The sender will send no more.
pub const END: u32 = CT_SENT_END as u32;
/// The sender gives the flow up.
pub const RESET: u32 = CT_SENT_RESET as u32;

/// Flags of TCP (RFC 9293 section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Where they stand in its header.
const FLAGS_AT: usize = 13;

/// Chunk types of SCTP (RFC 9260 section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;
/// Behind ports, tag and checksum, which are all of the header.
const CHUNK_AT: usize = 12;

/// What a packet says, and the part of its key that is not addresses.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug, PartialEq, Eq))]
pub struct Signal {
    /// [`OPEN`] …
    pub said: u32,
    /// For the key.
    pub rest: Rest,
}

/// Reads it. `None`: the packet is of no flow that is tracked, as a later fragment, which has no ports, and any ICMP but echo, which is about
/// another flow or about none.
#[inline(always)]
pub fn read<F: Family, P: Packet>(p: &mut P, ip: &L3<F>, ports: Ports) -> Res<Option<Signal>> {
    const TCP_: u32 = TCP as u32;
    const SCTP_: u32 = SCTP as u32;
    const ICMP_: u32 = ICMP as u32;
    const ICMP6_: u32 = ICMP6 as u32;
    if ip.part == Part::Later {
        return Ok(None);
    }
    let said = match ip.proto {
        TCP_ => tcp(p, ip.l4)?,
        SCTP_ => sctp(p, ip.l4)?,
        ICMP_ | ICMP6_ => return echo(p, ip.proto, ip.l4),
        _ => DATA,
    };
    Ok(Some(Signal { said, rest: Rest { ports, proto: ip.proto, asker: Asker::None } }))
}

/// The byte at `off`, pulled if it is not linear.
#[inline(always)]
fn byte<P: Packet>(p: &mut P, off: usize) -> Res<u8> {
    if let Ok(b) = p.read(off) {
        return Ok(b);
    }
    p.linear(off as u32 + 1);
    p.read(off)
}

#[inline(always)]
fn tcp<P: Packet>(p: &mut P, l4: usize) -> Res<u32> {
    Ok(of_flags(byte(p, l4 + FLAGS_AT)?))
}

/// Of TCP's flags.
#[inline(always)]
pub fn of_flags(flags: u8) -> u32 {
    if flags & RST != 0 {
        RESET
    } else if flags & SYN != 0 {
        if flags & ACK == 0 { OPEN } else { ANSWER }
    } else if flags & FIN != 0 {
        END | DATA
    } else {
        DATA
    }
}

#[inline(always)]
fn sctp<P: Packet>(p: &mut P, l4: usize) -> Res<u32> {
    if p.gso_size() != 0 {
        // Its chunks are in other packets of a list, out of which nothing may be pulled (see `family::parse`); only data is sent so.
        return Ok(DATA);
    }
    Ok(of_chunk(byte(p, l4 + CHUNK_AT)?))
}

/// Of the type of SCTP's first chunk; those that matter here travel alone or first (RFC 9260 section 6.10).
#[inline(always)]
pub fn of_chunk(kind: u8) -> u32 {
    match kind {
        INIT => OPEN,
        INIT_ACK => ANSWER,
        ABORT => RESET,
        SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => END | DATA,
        _ => DATA,
    }
}

#[inline(always)]
fn echo<P: Packet>(p: &mut P, proto: u32, l4: usize) -> Res<Option<Signal>> {
    let kind = byte(p, l4)?;
    let (request, reply) =
        if proto == u32::from(ICMP) { (icmp::ECHO, icmp::ECHO_REPLY) } else { (icmp6::ECHO, icmp6::ECHO_REPLY) };
    if kind != request && kind != reply {
        return Ok(None);
    }
    p.linear((l4 + size_of::<Icmp>()) as u32);
    let id: Be16 = p.read(l4 + 4)?;
    let (said, asker) = if kind == request { (DATA, Asker::Sender) } else { (ANSWER, Asker::Receiver) };
    Ok(Some(Signal { said, rest: Rest { ports: Ports::new(id, id), proto, asker } }))
}
