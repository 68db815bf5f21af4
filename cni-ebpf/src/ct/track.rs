//! The way of a packet: known and unchanged in a few loads, all else out of line.
use cni_common::{drop::Outcome, maps::CtConfig, schema::MAX_HELD};

use super::{
    Ask, Flow,
    entry::{self, Place, Stage, View, allowed, begins, is_judged, is_within, verdicts},
    key::Rest,
    signal::{self, OPEN, RESET},
    table::{CtEnv, Direction, Flows, Judged, Promotion},
};
use crate::{Packet, Res, family::Family};

/// A packet, as its flow sees it.
#[derive(Clone, Copy)]
pub struct Seen<F: Family> {
    key: F::CtKey,
    rest: Rest,
    said: u32,
    from_hi: bool,
    ask: Ask,
}

/// Finds or begins the packet's flow. A packet that its flow's verdict does not cover, one of a flow that is not known among them, is put to
/// `judge`; what that refuses is dropped with its reason, and leaves no trace.
///
/// Later fragments pass without: their ports are in the first one, and a table of fragments is yet to come. So do ICMP messages that are no
/// echo: errors are to belong to the flow that they quote.
///
/// # Errors
/// The reason that `judge` gives, or [`Short`](crate::DropReason::Short).
#[inline(always)]
pub fn track<F, P, S, J>(p: &mut P, s: &S, ask: Ask, judge: &J) -> Res<()>
where
    F: Family,
    P: Packet,
    S: CtEnv + Flows<F>,
    J: Fn(Direction) -> Judged,
{
    let Some(signal) = signal::read(p, &ask)? else { return Ok(()) };
    let (src, dst) = F::addresses(p, ask.l3())?;
    let (key, from_hi) = F::ct_key(&src, &dst, signal.rest);
    let seen = Seen { key, rest: signal.rest, said: signal.said, from_hi, ask };
    let found = s.flow(&seen.key);
    if let Some(flow) = found
        && let Some(cfg) = s.ct_config()
        && is_unchanged(flow, cfg, s.jiffies(), &seen)
    {
        return Ok(());
    }
    turn(s, found, &seen, judge)
}

/// Which ends' verdicts the packet needs.
#[inline(always)]
fn needed<F: Family>(seen: &Seen<F>) -> u64 {
    let of = |id: u32, hi: bool| if id == 0 { 0 } else { allowed(hi) };
    of(seen.ask.ends.from, seen.from_hi) | of(seen.ask.ends.to, !seen.from_hi)
}

/// Whether the packet changes nothing: it says what its end has said before, and its flow was judged and renewed.
#[inline(always)]
fn is_unchanged<F: Family>(flow: &Flow, cfg: &CtConfig, now: u64, seen: &Seen<F>) -> bool {
    let own = u32::from(flow.sent(seen.from_hi).get());
    let news = seen.said & !own | own & RESET | seen.said & OPEN;
    // No lifetime is shorter than a second, so it has not expired either.
    news == 0 && is_judged(flow.verdicts.get(), cfg.epoch, needed(seen)) && is_within(now, flow.seen.get(), cfg.second)
}

/// A packet that changes something.
#[inline(always)]
fn turn<F, S, J>(s: &S, found: Option<&Flow>, seen: &Seen<F>, judge: &J) -> Res<()>
where
    F: Family,
    S: CtEnv + Flows<F>,
    J: Fn(Direction) -> Judged,
{
    let Some(cfg) = s.ct_config() else { return judge(Direction::Forth) };
    // Before any look at policy: what is judged by an older one has an older epoch.
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
    let place = match found {
        Some(flow) => {
            let before = flow.view(seen.from_hi);
            match before.place(seen.said, seen.from_hi, now) {
                Place::Within => {
                    let word = rejudged(&before, epoch, seen, judge)?;
                    let after = View { verdicts: word, ..before.after(cfg, seen.rest, seen.said, now) };
                    flow.write(seen.from_hi, &before, &after);
                    if is_new && after != before && after.other != 0 && after.stage() != Stage::Closed {
                        settle(s, flow, seen, &after);
                    }
                    return Ok(());
                }
                place => place,
            }
        }
        None if begins(seen.said) => Place::First,
        None => Place::Aside,
    };
    judge(Direction::Forth)?;
    if place == Place::First {
        begin(s, cfg, epoch, now, seen, found, is_new);
    }
    Ok(())
}

/// The verdict word, judged again unless it is of this epoch and covers both ends. In the opener's direction, always.
#[inline(always)]
fn rejudged<F, J>(before: &View, epoch: u32, seen: &Seen<F>, judge: &J) -> Res<u64>
where
    F: Family,
    J: Fn(Direction) -> Judged,
{
    let needed = needed(seen);
    if is_judged(before.verdicts, epoch, needed) {
        return Ok(before.verdicts);
    }
    let opener = before.is_opener(seen.from_hi);
    judge(if opener { Direction::Forth } else { Direction::Back })?;
    Ok(verdicts(epoch, needed, seen.from_hi == opener))
}

/// Enters a flow after its first packet, in the place of one that is over if there is any, and on its account.
#[inline(always)]
fn begin<F, S>(s: &S, cfg: &CtConfig, epoch: u32, now: u64, seen: &Seen<F>, over: Option<&Flow>, is_new: bool)
where
    F: Family,
    S: CtEnv + Flows<F>,
{
    let charged = match over {
        Some(flow) => flow.charged.get(),
        None if seen.ask.ends.from != 0 => seen.ask.ends.from,
        None => seen.ask.ends.to,
    };
    let word = verdicts(epoch, needed(seen), seen.from_hi);
    let entry = entry::entry(&View::first(cfg, seen.rest, seen.said, now, word), seen.from_hi, charged);
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
    if s.held(charged) >= u64::from(MAX_HELD) {
        return note(s, seen, Outcome::CtQuota);
    }
    match s.promote(&seen.key, &entry::entry(view, seen.from_hi, charged)) {
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
