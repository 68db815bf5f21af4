//! Fragments: the first one of a datagram says its ports, and those that follow find them.
//!
//! One that comes before the first, or so long after it that the receiver has given up, is of no flow that is known. Nothing is kept back and
//! put in order: who receives does that.
use cni_common::{maps::Fragments, net::Ports};

use super::{
    Ask, CtEnv, Flows,
    entry::is_within,
    key::Asker,
    signal::{self, DATA},
};
use crate::{Packet, family::Family};

/// Seconds for which a datagram may be put together (Linux: `net.ipv4.ipfrag_time`; RFC 8200 section 4.5 has 60).
pub const LIFETIME: u32 = 30;

/// What a packet says, in the form of [`Ask::heard`]. The first fragment of a datagram is remembered.
#[inline(always)]
pub fn heard<F: Family, P: Packet, S: CtEnv + Flows<F>>(p: &mut P, s: &S, ask: &Ask) -> u64 {
    let part = ask.part();
    if part.is_later() {
        return remembered(p, s, ask);
    }
    let heard = signal::hear(p, *ask);
    if !part.is_whole() {
        remember(p, s, ask, heard);
    }
    heard
}

/// Of a later one.
#[inline(always)]
fn remembered<F: Family, P: Packet, S: CtEnv + Flows<F>>(p: &P, s: &S, ask: &Ask) -> u64 {
    let Some(cfg) = s.ct_config() else { return signal::NOTHING };
    let Ok(key) = F::frag_key(p, ask) else { return signal::NOTHING };
    match s.fragments(&key) {
        Some(f) if is_within(s.jiffies(), f.seen, cfg.second.saturating_mul(LIFETIME)) => {
            signal::heard(DATA, Asker::of(f.asker), ask.proto(), Ports::new(f.source, f.destination))
        }
        _ => signal::NOTHING,
    }
}

/// Of the first one.
#[inline(always)]
fn remember<F: Family, P: Packet, S: CtEnv + Flows<F>>(p: &P, s: &S, ask: &Ask, heard: u64) {
    let (said, asker, ports) = signal::split(p.blur(heard));
    if said != 0
        && let Ok(key) = F::frag_key(p, ask)
    {
        let seen = s.jiffies();
        s.remember(&key, &Fragments { seen, source: ports.src(), destination: ports.dst(), asker: asker.code() });
    }
}

#[cfg(test)]
mod tests {
    use cni_common::{drop::Point, net::Mac, wire::ETH_LEN};

    use super::*;
    use crate::{
        ct::{Ends, Track, key::Rest},
        fake::{
            Fake, Frame,
            frame::{self, Ip},
            world,
        },
        family::{self, V4, V6},
    };

    /// Bytes in a fragment; a multiple of 8.
    const PART: usize = 16;

    /// Fragments of a datagram, the first one first.
    fn cut(v6: bool, id: u8, (proto, body): (u8, Vec<u8>)) -> Vec<Frame> {
        let parts = body.chunks(PART).enumerate();
        let frames = parts.map(|(n, part)| {
            let (words, more) = ((n * PART / 8) as u16, (n + 1) * PART < body.len());
            let mut ip = Ip { frag: words | u16::from(more) << 13, ..Ip::default() };
            if v6 {
                let field = words << 3 | u16::from(more);
                let fragment = [&[0, 0][..], &field.to_be_bytes(), &[0, 0, 0, id]].concat();
                ip.extensions = vec![(60, vec![0; 8]), (44, fragment)];
            }
            let mut packet = ip.packet(world::client(v6), world::outside(v6), (proto, part.to_vec()));
            if !v6 {
                packet.1[5] = id;
            }
            Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1)
        });
        frames.collect()
    }

    /// What conntrack reads of each, in this order.
    fn read<F: Family>(w: &Fake, frames: impl IntoIterator<Item = Frame>) -> Vec<Option<Rest>>
    where
        Fake: Flows<F> + Track<Frame, F>,
    {
        let one = |mut f: Frame| {
            let ip = family::parse::<F, _>(&mut f, ETH_LEN, 8).expect("parses");
            let ask = Ask::of::<F, _, _>(&mut f, w, Point::FromPod, ETH_LEN, &ip, Ends { from: 0, to: 0 });
            signal::of(ask.heard).expect("is long enough").map(|s| s.rest)
        };
        frames.into_iter().map(one).collect()
    }

    fn each(test: impl Fn(bool, &dyn Fn(&Fake, Vec<Frame>) -> Vec<Option<Rest>>)) {
        test(false, &|w, frames| read::<V4>(w, frames));
        test(true, &|w, frames| read::<V6>(w, frames));
    }

    #[test]
    fn later_ones_have_the_ports_of_the_first() {
        each(|v6, read| {
            for whole in [frame::udp(4000, 53, &[7; 60]), frame::ping(v6)] {
                let whole = (whole.0, [whole.1, vec![0; 40]].concat());
                let packet = Ip::default().packet(world::client(v6), world::outside(v6), whole.clone());
                let packet = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1);
                let want = read(&Fake::default(), vec![packet])[0];
                assert!(want.is_some());
                let parts = cut(v6, 9, whole);
                let heard = read(&Fake::default(), parts.clone());
                assert!(parts.len() > 2 && heard.iter().all(|rest| *rest == want), "{heard:?}");
            }
        });
    }

    #[test]
    fn of_one_that_comes_before_the_first_nothing_is_known() {
        each(|v6, read| {
            let w = Fake::default();
            let mut parts = cut(v6, 9, frame::udp(4000, 53, &[7; 30]));
            parts.reverse();
            let heard = read(&w, parts);
            assert_eq!(heard.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
        });
    }

    #[test]
    fn datagrams_are_told_apart_and_one_that_takes_too_long_is_forgotten() {
        each(|v6, read| {
            let w = Fake::default();
            let [ours, theirs] = [9, 10].map(|id| cut(v6, id, frame::udp(4000 + u16::from(id), 53, &[7; 30])));
            let heard = read(&w, vec![ours[0].clone(), theirs[0].clone(), ours[1].clone(), theirs[1].clone()]);
            let ports = |rest: &Option<Rest>| rest.expect("is known").ports.src().to_host();
            assert_eq!(heard.iter().map(ports).collect::<Vec<_>>(), [4009, 4010, 4009, 4010]);
            w.now.set(w.now.get() + u64::from(LIFETIME * w.ct_config.second));
            assert_eq!(read(&w, vec![ours[1].clone()]), [None]);
            // The number of another datagram by now, to another port.
            let again = cut(v6, 9, frame::udp(5000, 53, &[7; 30]));
            assert_eq!(read(&w, again).iter().map(ports).collect::<Vec<_>>(), [5000; 3]);
        });
    }

    #[test]
    fn a_first_one_without_its_ports_is_refused() {
        each(|v6, _| {
            let mut f = cut(v6, 9, frame::udp(4000, 53, &[7; 30])).remove(0);
            f.data.truncate(f.data.len() - PART + 2);
            f.linear = f.data.len();
            let w = Fake::default();
            fn heard_of<F: Family>(f: &mut Frame, w: &Fake) -> u64
            where
                Fake: Flows<F>,
            {
                let ip = F::l3(f, ETH_LEN).expect("parses");
                heard::<F, _, _>(f, w, &Ask::new(Point::FromPod, ETH_LEN, &ip, Ends { from: 0, to: 0 }))
            }
            let said = if v6 { heard_of::<V6>(&mut f, &w) } else { heard_of::<V4>(&mut f, &w) };
            assert_eq!((said & 0xff, w.ct4.fragments.borrow().len() + w.ct6.fragments.borrow().len()), (0, 0));
        });
    }
}
