//! What a packet says of its flow, whatever its protocol.
use bytemuck::Pod;
use cni_common::{
    maps::{CT_SENT_ANSWER, CT_SENT_DATA, CT_SENT_END, CT_SENT_OPEN, CT_SENT_RESET},
    net::{Be16, Ports},
    wire::{ICMP, ICMP6, SCTP, TCP, UDP, icmp, icmp6},
};

use super::{
    Ask,
    key::{Asker, Rest},
};
use crate::{DropReason as D, Packet, Res};

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

/// From [`Ask::heard`]. `None`: the packet is of no flow that is tracked, as a later fragment whose first one was not seen, and any ICMP but
/// echo, which is about another flow or about none.
#[inline(always)]
pub fn of(heard: u64) -> Res<Option<Signal>> {
    let (said, asker, ports) = split(heard);
    if said == 0 {
        return if heard == CUT { Err(D::Short) } else { Ok(None) };
    }
    Ok(Some(Signal { said, rest: Rest { ports, proto: (heard >> 16 & 0xff) as u32, asker } }))
}

/// What was said, who asks, and the ports.
#[inline(always)]
pub fn split(heard: u64) -> (u32, Asker, Ports) {
    ((heard & 0xff) as u32, Asker::of((heard >> 8 & 3) as u32), Ports::of((heard >> 32) as u32))
}

/// The frame ends inside what must be read.
const CUT: u64 = 1 << 8;
/// Of no flow.
pub const NOTHING: u64 = 0;

/// What is said, asker, protocol and ports, in one register from the lowest byte up, or [`CUT`] or [`NOTHING`].
///
/// One register, as a pair with a discriminant would make the verifier walk all that follows once for each protocol. Nothing said stands for a frame that is cut: a
/// result that holds nothing on the way of errors would be spilled all the same, which the verifier refuses. In line: a frame of its own takes 32 bytes of stack.
#[inline(always)]
pub fn hear<P: Packet>(p: &mut P, ask: Ask) -> u64 {
    const TCP_: u32 = TCP as u32;
    const SCTP_: u32 = SCTP as u32;
    const UDP_: u32 = UDP as u32;
    const ICMP_: u32 = ICMP as u32;
    const ICMP6_: u32 = ICMP6 as u32;
    let (proto, l4) = (ask.proto(), ask.l4());
    let said = match proto {
        TCP_ => tcp(p, l4),
        SCTP_ => sctp(p, l4),
        UDP_ => DATA,
        ICMP_ | ICMP6_ => return echo(p, proto, l4),
        _ => return heard(DATA, Asker::NONE, proto, Ports::NONE),
    };
    match at::<Ports, P>(p, l4) {
        Ok(ports) if said != 0 => heard(said, Asker::NONE, proto, ports),
        _ => CUT,
    }
}

/// In the form of [`Ask::heard`].
#[inline(always)]
pub fn heard(said: u32, asker: Asker, proto: u32, ports: Ports) -> u64 {
    u64::from(said) | u64::from(asker.code()) << 8 | u64::from(proto) << 16 | u64::from(ports.raw()) << 32
}

/// What is at `off`, pulled if it is not linear.
#[inline(always)]
fn at<T: Pod, P: Packet>(p: &mut P, off: usize) -> Res<T> {
    if let Ok(v) = p.read(off) {
        return Ok(v);
    }
    p.linear((off + size_of::<T>()) as u32);
    p.read(off)
}

#[inline(always)]
fn tcp<P: Packet>(p: &mut P, l4: usize) -> u32 {
    match at::<u8, P>(p, l4 + FLAGS_AT) {
        Ok(flags) => of_flags(flags),
        Err(_) => 0,
    }
}

/// What each combination of ACK, RST, SYN and FIN says, RST apart: 4 bits each, FIN being the lowest bit of the index.
const BY_FLAGS: u64 = {
    let (mut table, mut i) = (0, 0);
    while i < 16 {
        let (fin, syn, rst, ack) = (i & 1 != 0, i & 2 != 0, i & 4 != 0, i & 8 != 0);
        let said = if rst {
            0
        } else if syn {
            if ack { ANSWER } else { OPEN }
        } else if fin {
            END | DATA
        } else {
            DATA
        };
        table |= (said as u64) << (4 * i);
        i += 1;
    }
    table
};
const _: () =
    assert!(DATA >> 1 == ANSWER && icmp::ECHO == 8 && icmp::ECHO_REPLY == 0 && icmp6::ECHO_REPLY == icmp6::ECHO + 1);
const _: () = assert!(FIN == 1 && SYN == 2 && RST == 4 && ACK == 16 && RESET == 4 * RST as u32);

/// Of TCP's flags. Without a branch: the verifier would walk all that follows once for each outcome.
#[inline(always)]
pub fn of_flags(flags: u8) -> u32 {
    let flags = u32::from(flags);
    let index = flags & u32::from(FIN | SYN | RST) | (flags & u32::from(ACK)) >> 1;
    (BY_FLAGS >> (4 * index)) as u32 & 0xf | (flags & u32::from(RST)) << 2
}

#[inline(always)]
fn sctp<P: Packet>(p: &mut P, l4: usize) -> u32 {
    if p.gso_size() != 0 {
        // Its chunks are in other packets of a list, out of which nothing may be pulled (see `family::parse`); only data is sent so.
        return DATA;
    }
    match at::<u8, P>(p, l4 + CHUNK_AT) {
        Ok(kind) => of_chunk(kind),
        Err(_) => 0,
    }
}

/// What each of the first 16 chunk types says, ABORT apart: 4 bits each.
const BY_CHUNK: u64 = {
    let (mut table, mut kind) = (0, 0);
    while kind < 16 {
        let said = match kind {
            INIT => OPEN,
            INIT_ACK => ANSWER,
            ABORT => 0,
            SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => END | DATA,
            _ => DATA,
        };
        table |= (said as u64) << (4 * kind);
        kind += 1;
    }
    table
};

/// Of the type of SCTP's first chunk; those that matter here travel alone or first (RFC 9260 section 6.10). Without a branch, as
/// [`of_flags`].
#[inline(always)]
pub fn of_chunk(kind: u8) -> u32 {
    let kind = u32::from(kind);
    // 0, which is data, for all that are above.
    let index = kind & 15 & (((kind >> 4) + 15) >> 4).wrapping_sub(1);
    let abort = (1 << ABORT >> index) & 1;
    (BY_CHUNK >> (4 * index)) as u32 & 0xf | (abort * RESET)
}

/// Of the identifier in ICMP's header.
const ID_AT: usize = 4;

#[inline(always)]
fn echo<P: Packet>(p: &mut P, proto: u32, l4: usize) -> u64 {
    let Ok(kind) = at::<u8, P>(p, l4) else { return CUT };
    let kind = u32::from(kind);
    // Types that differ by one bit: 8 and 0, 128 and 129.
    let (is_echo, is_reply) = if proto == u32::from(ICMP) {
        (kind & !u32::from(icmp::ECHO) == 0, !kind >> 3 & 1)
    } else {
        (kind & !1 == u32::from(icmp6::ECHO), kind & 1)
    };
    if !is_echo {
        return NOTHING;
    }
    let Ok(id) = at::<Be16, P>(p, l4 + ID_AT) else { return CUT };
    let (said, asker) = (DATA >> is_reply, Asker::of(1 + is_reply));
    heard(said, asker, proto, Ports::new(id, id))
}
