//! The way of a packet: known and unchanged in a few loads, all else out of line.
use cni_common::{
    drop::Outcome,
    maps::{CT_CLASS, CT_HI_BY_HOST, CT_LO_BY_HOST, CtConfig},
};

use super::{
    Ask, Flow,
    entry::{self, Place, View, allowed, begins, is_judged, is_within, verdicts},
    key::Rest,
    signal::{self, OPEN, RESET},
    table::{CtEnv, Direction, Flows, Granted, Promotion, Tracked},
};
use crate::{Packet, Res, family::Family};

/// A packet, as its flow sees it.
#[derive(Clone, Copy)]
pub struct Seen<F: Family> {
    key: F::CtKey,
    rest: Rest,
    said: u32,
    /// Whether the sender is the end that comes last in the key, 0 or 1: see [`Seen::is_hi`].
    from_hi: u64,
    ask: Ask,
}
impl<F: Family> Seen<F> {
    /// Whether the sender is the end that comes last. Asked anew each time: what the verifier learns in one branch, it does not know in the next.
    #[inline(always)]
    fn is_hi<S: CtEnv>(&self, s: &S) -> bool {
        s.blur(self.from_hi, self.ask.what) & 1 != 0
    }
    /// 1 if what this end sends comes out of the node's stack, else 0. Of a packet that another end's flow is answered by, only if it is a pod's of this node: who is
    /// elsewhere could turn a pod's flow away from its way by one packet under another's address.
    #[inline(always)]
    fn by_host<S: CtEnv>(&self, s: &S, verdicts: u64) -> u64 {
        // Of a number of 32 bits that is not 0 the opposite has the highest bit.
        let is_here = s.blur(self.ask.ends.from.into(), self.ask.what).wrapping_neg() >> 63;
        self.ask.is_from_host() & (is_here | entry::opened_by(verdicts, self.from_hi))
    }
    /// 1 if what is for the other end goes by the node's stack, else 0.
    #[inline(always)]
    fn goes_by_host<S: CtEnv>(&self, s: &S, verdicts: u64) -> u64 {
        s.blur(entry::by_host(verdicts, self.from_hi ^ 1), self.ask.what)
    }
}

/// Finds or begins the packet's flow. A packet that its flow's verdict does not cover, one of a flow that is not known among them, is to be
/// judged first; what is refused then leaves no trace, as nothing is written before it comes back as granted.
///
/// Later fragments of which nothing is known, and ICMP messages that are no echo, are of no flow: they are judged each time.
///
/// # Errors
/// [`Short`](crate::DropReason::Short).
#[inline(always)]
pub fn track<F, P, S>(p: &mut P, s: &S, ask: Ask, granted: Granted) -> Res<Tracked>
where
    F: Family,
    P: Packet,
    S: CtEnv + Flows<F>,
{
    let Some(signal) = signal::of(ask.heard)? else { return Ok(granted.or(Direction::Forth)) };
    // It is read: nothing of it need be kept.
    let ask = Ask { heard: 0, ..ask };
    let (src, dst) = F::addresses(p, ask.l3())?;
    let (key, from_hi) = F::ct_key(&src, &dst, signal.rest);
    let seen = Seen { key, rest: signal.rest, said: signal.said, from_hi: s.blur(from_hi.into(), ask.what), ask };
    let found = s.flow(&seen.key);
    if let Some(flow) = found
        && let Some(cfg) = s.ct_config()
    {
        let word = flow.verdicts.get();
        if is_unchanged(s, flow, cfg, &seen, word) {
            return Ok(known(seen.goes_by_host(s, word)));
        }
    }
    Ok(turn(s, found, &seen, granted))
}

/// What becomes of a packet that may pass.
#[inline(always)]
fn known(to_host: u64) -> Tracked {
    if to_host & 1 == 0 { Tracked::Known } else { Tracked::ByHost }
}

/// Which ends' verdicts the packet needs.
#[inline(always)]
fn needed<F: Family, S: CtEnv>(s: &S, seen: &Seen<F>) -> u64 {
    let from_hi = seen.is_hi(s);
    let of = |id: u32, hi: bool| if id == 0 { 0 } else { allowed(hi) };
    s.blur(of(seen.ask.ends.from, from_hi) | of(seen.ask.ends.to, !from_hi), seen.ask.what)
}

/// Whether the packet changes nothing: it says what its end has said before, comes the same way, and its flow was judged and renewed.
#[inline(always)]
fn is_unchanged<F: Family, S: CtEnv>(s: &S, flow: &Flow, cfg: &CtConfig, seen: &Seen<F>, word: u64) -> bool {
    let now = s.jiffies();
    let own = u32::from(flow.sent(seen.is_hi(s)).get());
    let another_way = entry::by_host(word, seen.from_hi) ^ seen.by_host(s, word);
    let news = u64::from(seen.said & !own | own & RESET | seen.said & OPEN) | another_way;
    // No lifetime is shorter than a second, so it has not expired either.
    news == 0 && is_judged(word, cfg.epoch, needed(s, seen)) && is_within(now, flow.seen.get(), cfg.second)
}

/// A packet that changes something.
#[inline(always)]
fn turn<F, S>(s: &S, found: Option<&Flow>, seen: &Seen<F>, granted: Granted) -> Tracked
where
    F: Family,
    S: CtEnv + Flows<F>,
{
    let Some(cfg) = s.ct_config() else { return granted.or(Direction::Forth) };
    let epoch = cfg.epoch;
    let now = s.jiffies();
    // A flow may have moved between the look-ups: it is entered in the large table before it is taken out of the small one.
    let (found, is_new) = match found {
        Some(flow) => (Some(flow), false),
        None => match s.new_flow(&seen.key) {
            Some(flow) => (Some(flow), true),
            None => match s.flow(&seen.key) {
                Some(flow) => (Some(flow), false),
                None => (None, true),
            },
        },
    };
    let blur = |n| s.blur(n, seen.ask.what);
    let place = match found {
        Some(flow) => {
            let before = flow.view(seen.is_hi(s));
            let place = blur(before.place(seen.said, seen.is_hi(s), now) as u64);
            if place == Place::Within as u64 {
                let Some(word) = rejudged(s, &before, epoch, seen, granted) else {
                    return granted.or(if before.is_opener(seen.is_hi(s)) {
                        Direction::Forth
                    } else {
                        Direction::Back
                    });
                };
                // Only this is kept of it: the verifier would walk what follows once for each way to a word.
                let word = blur(word);
                let to_host = seen.goes_by_host(s, word);
                let after = before.after(cfg, seen.rest, seen.said, now, |n| blur(n.into()) as u32);
                let after = View { verdicts: word, ..after };
                flow.write(seen.is_hi(s), &before, &after);
                if is_new && after.is_news(&before) && after.is_answered() {
                    settle(s, flow, seen, &after);
                }
                return known(to_host);
            }
            place
        }
        None if begins(seen.said) => Place::First as u64,
        None => Place::Aside as u64,
    };
    if !granted.is_some() {
        return Tracked::Judge(Direction::Forth);
    }
    if place == Place::First as u64 {
        begin(s, cfg, granted, now, seen, found, is_new);
    }
    Tracked::Known
}

/// The verdict word, as granted unless it is of this epoch and covers both ends; `None`: it is to be judged again.
#[inline(always)]
fn rejudged<F: Family, S: CtEnv>(s: &S, before: &View, epoch: u32, seen: &Seen<F>, granted: Granted) -> Option<u64> {
    let needed = needed(s, seen);
    let ways = entry::with_by_host(before.verdicts, seen.from_hi, seen.by_host(s, before.verdicts));
    if is_judged(ways, epoch, needed) {
        return Some(ways);
    }
    let from_hi = seen.is_hi(s);
    if !granted.is_some() {
        return None;
    }
    let class = if granted.class() == 0 { ways & CT_CLASS } else { granted.class() };
    let ways = ways & (CT_LO_BY_HOST | CT_HI_BY_HOST);
    let remembered = granted.remembers(needed);
    Some(verdicts(granted.epoch(), remembered, from_hi == before.is_opener(from_hi)) | class | ways)
}

/// Enters a flow after its first packet, in the place of one that is over if there is any, and on its account.
#[inline(always)]
fn begin<F, S>(s: &S, cfg: &CtConfig, granted: Granted, now: u64, seen: &Seen<F>, over: Option<&Flow>, is_new: bool)
where
    F: Family,
    S: CtEnv + Flows<F>,
{
    let charged = match over {
        Some(flow) => flow.charged.get(),
        None if seen.ask.ends.from != 0 => seen.ask.ends.from,
        None => seen.ask.ends.to,
    };
    let word = verdicts(granted.epoch(), granted.remembers(needed(s, seen)), seen.is_hi(s)) | granted.class();
    let word = entry::with_by_host(word, seen.from_hi, seen.ask.is_from_host());
    let view = View::first(cfg, seen.rest, seen.said, now, word, |n| s.blur(n.into(), seen.ask.what) as u32);
    let entry = entry::entry(&view, seen.is_hi(s), charged);
    if is_new {
        s.begin(&seen.key, &entry);
    } else {
        s.replace(&seen.key, &entry);
    }
}

/// A flow in which both ends have spoken moves to the table that no flood empties. Without room it stays where it is, which may forget it; it
/// is tried again when it is next renewed.
#[inline(always)]
fn settle<F: Family, S: CtEnv + Flows<F>>(s: &S, flow: &Flow, seen: &Seen<F>, view: &View) {
    let charged = flow.charged.get();
    if s.held(charged) >= s.share() {
        return note(s, seen, Outcome::CtQuota);
    }
    match s.promote(&seen.key, &entry::entry(view, seen.is_hi(s), charged)) {
        Promotion::Done => s.hold(charged),
        Promotion::Other => {}
        Promotion::Full => return note(s, seen, Outcome::CtFull),
    }
    s.forget(&seen.key);
}

#[inline(always)]
fn note<F: Family, S: CtEnv>(s: &S, seen: &Seen<F>, what: Outcome) {
    if let Some(point) = seen.ask.point() {
        s.note(point, what);
    }
}
