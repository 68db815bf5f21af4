//! The packet that an ICMP error quotes: which flow it is about.
use cni_common::{
    drop::Point,
    net::{Be16, Ports},
    wire::{Icmp, SCTP, TCP, UDP},
};

use super::{entry::living, family::NatFamily};
use crate::{
    Packet,
    ct::{
        Ask, CtEnv, Ends, Flow, Flows,
        key::{Asker, Rest},
    },
    family::{self, L3},
};

/// An ICMP error quotes as much of the transport header at least (RFC 792; RFC 4443 quotes all that fits).
pub const QUOTED_L4: u32 = 8;

/// A quoted packet, as its sender sent it: source, destination and ports are that way round.
#[derive(Clone, Copy)]
pub struct Quote<F: NatFamily> {
    /// Offset of its network header.
    pub at: usize,
    /// That header.
    pub ip: L3<F>,
    /// What conntrack's key has of it.
    pub rest: Rest,
}

/// Reads what the packet with this network header quotes. `None`: it is no ICMP error, or one of which nobody can say which flow it is about,
/// as it is itself a fragment, quotes a later one, or ends too early. `blur`: see [`CtEnv::blur`].
#[inline(always)]
pub fn read<F: NatFamily, P: Packet>(p: &mut P, ip: &L3<F>, blur: impl Fn(u64) -> u64) -> Option<Quote<F>> {
    if ip.proto != u32::from(F::ICMP) || !ip.part.is_whole() || !F::quotes(p.read::<u8>(ip.l4).ok()?) {
        return None;
    }
    let at = ip.l4 + size_of::<Icmp>();
    let quoted = family::parse::<F, P>(p, at, QUOTED_L4).ok()?;
    if at > MAX_AT || quoted.part.is_later() {
        return None;
    }
    let ask = Ask::new(Point::FromNetdev, at, &quoted, Ends { from: 0, to: 0 });
    let ask = Ask { what: blur(ask.what), ..ask };
    let quoted = ask.header::<F, P>(p).ok()?;
    let rest = rest::<F, P>(p, &quoted)?;
    let rest = Rest {
        ports: Ports::of(blur(rest.ports.raw().into()) as u32),
        asker: Asker::of(blur(rest.asker.code().into()) as u32),
        ..rest
    };
    Some(Quote { at: ask.l3(), ip: quoted, rest })
}

/// What [`Ask`] has room for; behind more options than that there is nothing honest.
const MAX_AT: usize = 0xff;

#[inline(always)]
fn rest<F: NatFamily, P: Packet>(p: &P, ip: &L3<F>) -> Option<Rest> {
    const TCP_: u32 = TCP as u32;
    const UDP_: u32 = UDP as u32;
    const SCTP_: u32 = SCTP as u32;
    let (ports, asker) = match ip.proto {
        TCP_ | UDP_ | SCTP_ => (p.read::<Ports>(ip.l4).ok()?, Asker::NONE),
        proto if proto == u32::from(F::ICMP) => {
            let asker = F::echo(p.read(ip.l4).ok()?);
            let id: Be16 = p.read(ip.l4 + 4).ok()?;
            // Not about an error: that would have been no cause for one.
            if asker == 0 {
                return None;
            }
            (Ports::new(id, id), Asker::of(asker))
        }
        _ => (Ports::NONE, Asker::NONE),
    };
    Some(Rest { ports, proto: ip.proto, asker })
}

/// The flow that an ICMP error belongs to.
#[derive(Clone, Copy)]
pub struct Related<'s, F: NatFamily> {
    /// One that lives.
    pub flow: &'s Flow,
    /// Its packet.
    pub quote: Quote<F>,
    /// Whether that packet's sender is the end that comes last in the flow's key.
    pub from_hi: bool,
}

/// The flow that an ICMP error belongs to: that of the packet which it quotes, if it goes to who sent that. So it passes where the flow
/// does. Of a masqueraded flow only between the pod and its node's translation, which is where the quoted ends are the real ones.
#[inline(always)]
pub fn related<'s, F: NatFamily, P: Packet, S: CtEnv + Flows<F>>(
    p: &mut P,
    s: &'s S,
    ip: &L3<F>,
) -> Option<Related<'s, F>> {
    let quote = read(p, ip, |n| s.blur(n, s.jiffies()))?;
    if !F::is_same(&quote.ip.src, &ip.dst) {
        return None;
    }
    let (key, from_hi) = F::ct_key(&quote.ip.src, &quote.ip.dst, quote.rest);
    Some(Related { flow: living::<F, S>(s, &key)?, quote, from_hi })
}
