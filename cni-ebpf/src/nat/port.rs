//! Which port of the node a flow gets, and why no other flow has it.
//!
//! An entry is made where there is none by `BPF_NOEXIST`: one of several CPUs succeeds. One of a flow that is over is replaced, and only under a
//! *hold*, an entry under the same key with one bit more, made in the same way: one CPU has it, does nothing else meanwhile, and takes it out
//! again. So an entry is never replaced by two, and never absent for a moment in which a third could make one.
//!
//! The flow that is over may begin again at that very time. It enters conntrack first, and looks at its entry then; who replaces that does so
//! first, looks whether the flow lives then, and gives the entry back if it does. Whatever their order, one of the two sees the other, as
//! both have a fence between. `races` tries every order; that the fences are there it cannot see.
//!
//! What is left: two packets of one flow at a time may make two entries, of which one is said to be the flow's, the other stays until the flow
//! is over. A program cannot be stopped halfway; a hold that the agent finds twice, a second apart, is one of an agent that was.
use cni_common::{maps::NatConfig, net::Be16, schema::MAX_TRANSLATED};

use super::{
    entry::{Pair, is_of, lives},
    family::{NatFamily, is_same_end},
    rewrite::{End, Layout},
    table::{Entered, NatSystem, Sockets},
};
use crate::{DropReason as D, Res};

/// Ports of the range that are tried when the pod's own is not free. Where half of the range is in use towards a destination, one flow of
/// 65,536 finds none; where nine tenths are, one of five. Each costs a look-up or two.
pub const PROBES: u32 = 16;

/// The golden ratio as a fraction of 2^32: its multiples spread evenly (Knuth, The Art of Computer Programming, volume 3, section 6.4), so
/// no two of a flow's probes meet unless the range is about as small as their number.
const GOLDEN: u32 = 0x9e37_79b9;

/// Where a flow's probes begin. Not the hash of the tunnel's source port: that is the same of both directions, and so of all identifiers of an
/// echo.
#[inline(always)]
fn hash<F: NatFamily>(pair: &Pair<F>) -> u32 {
    // Multipliers and shifts of MurmurHash3.
    let rest = pair.rest();
    let ends = F::hash(&pair.pod.addr).wrapping_mul(0xcc9e_2d51).rotate_left(15) ^ F::hash(&pair.world.addr);
    let h = (ends ^ rest.ports.raw()).wrapping_mul(0x85eb_ca6b);
    let h = (h ^ (h >> 13) ^ rest.proto).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// The port of a probe, from 1 on.
#[inline(always)]
pub fn probe(cfg: &NatConfig, hash: u32, n: u32) -> Be16 {
    let at = hash.wrapping_add(n.wrapping_mul(GOLDEN));
    // No division: there is none by a variable that cannot panic.
    let offset = (u64::from(at) * u64::from(cfg.ports)) >> 32;
    Be16::from_host((u64::from(cfg.first_port) + offset) as u16)
}

/// What a flow is to get.
pub struct Wanted<F: NatFamily> {
    /// The node's address.
    pub node: F::Addr,
    /// The port that it had, to be asked for first; then its own is.
    pub before: Option<Be16>,
    /// The endpoint on whose account it is.
    pub account: u32,
}

/// Finds a port for the flow, under `key` in conntrack, and makes its translation.
///
/// # Errors
/// [`NatExhausted`](D::NatExhausted), [`NatFull`](D::NatFull) and [`NatQuota`](D::NatQuota).
#[inline(always)]
pub fn choose<F, P, S>(p: &mut P, s: &S, pair: &Pair<F>, key: &F::CtKey, wanted: &Wanted<F>) -> Res<End<F>>
where
    F: NatFamily,
    S: NatSystem<F> + Sockets<P, F>,
{
    let cfg = s.nat_config().ok_or(D::NoConfig)?;
    if wanted.before.is_none() && s.translated(wanted.account) >= u64::from(MAX_TRANSLATED) {
        return Err(D::NatQuota);
    }
    let hash = hash(pair);
    let more = Layout::of::<F>(pair.proto).has_port() && cfg.ports != 0;
    let mine = F::back(&pair.pod, s.jiffies());
    for n in 0..PROBES + 2 {
        let port = match n {
            0 => wanted.before.unwrap_or(pair.pod.port),
            1 if wanted.before.is_none() => continue,
            1 => pair.pod.port,
            n => probe(cfg, hash, n - 1),
        };
        let end = End { addr: wanted.node, port };
        match secure(p, s, pair, &pair.key(&end), &mine) {
            Entered::Done => {}
            Entered::Full => return Err(D::NatFull),
            Entered::Other if more => continue,
            Entered::Other => return Err(D::NatExhausted),
        }
        return say(s, pair, key, &end, wanted);
    }
    Err(D::NatExhausted)
}

/// Makes the pod's entry under `key`, or finds that it has it. `Other`: the port is not free. Out of line: once, not for each probe.
#[inline(never)]
fn secure<F, P, S>(p: &mut P, s: &S, pair: &Pair<F>, key: &F::Key, mine: &F::Back) -> Entered
where
    F: NatFamily,
    S: NatSystem<F> + Sockets<P, F>,
{
    let found = s.back(key);
    if let Some(there) = &found
        && !is_same_end(&F::pod_end(there).0, &pair.pod)
        && lives(s, pair, there)
    {
        return Entered::Other;
    }
    if s.has_socket(p, key) {
        return Entered::Other;
    }
    let entered = match found {
        None => match s.enter(key, mine) {
            // Another CPU was faster: perhaps with this flow's packet.
            Entered::Other if is_of::<F, S>(s, key, &pair.pod) => Entered::Done,
            entered => entered,
        },
        Some(there) if is_same_end(&F::pod_end(&there).0, &pair.pod) => Entered::Done,
        Some(there) if take_over(s, pair, key, &there, mine) => Entered::Done,
        Some(_) => Entered::Other,
    };
    // A socket binds first and looks for the entry when it sends (`entry::give_way`): here it is the other way round, so one sees the other.
    if entered != Entered::Done {
        return entered;
    }
    s.fence();
    if s.has_socket(p, key) {
        hand_over(s, key);
        return Entered::Other;
    }
    entered
}

/// Makes the entry under `key` the node's own. Who has the hold now has it for a moment; whoever needs this asks again.
#[inline(always)]
pub fn hand_over<F: NatFamily, S: NatSystem<F>>(s: &S, key: &F::Key) {
    let own = F::back(&End { addr: bytemuck::Zeroable::zeroed(), port: Be16::ZERO }, s.jiffies());
    held(s, key, || s.exchange(key, &own));
}

/// Replaces an entry of a flow that is over.
#[inline(always)]
fn take_over<F: NatFamily, S: NatSystem<F>>(
    s: &S,
    pair: &Pair<F>,
    key: &F::Key,
    there: &F::Back,
    mine: &F::Back,
) -> bool {
    held(s, key, || {
        // What was found before the hold may have been replaced before it.
        let is_there = s.back(key).is_some_and(|b| is_same_end(&F::pod_end(&b).0, &F::pod_end(there).0));
        if !is_there || !s.exchange(key, mine) {
            return false;
        }
        s.fence();
        let begun_again = lives(s, pair, there);
        if begun_again {
            // Without memory it stays ours, and unused.
            s.exchange(key, there);
        }
        !begun_again
    })
}

/// Does what needs the hold on a key; false, and nothing is done, if it cannot be had.
#[inline(always)]
pub fn held<F: NatFamily, S: NatSystem<F>>(s: &S, key: &F::Key, what: impl FnOnce() -> bool) -> bool {
    let hold = F::hold(key);
    let since = F::back(&End { addr: bytemuck::Zeroable::zeroed(), port: Be16::ZERO }, s.jiffies());
    if s.enter(&hold, &since) != Entered::Done {
        return false;
    }
    let done = what();
    s.release(&hold);
    done
}

/// Says of the flow that this is its end at the node. If another CPU has just said another of a flow that had none, that one is its end.
#[inline(always)]
fn say<F: NatFamily, S: NatSystem<F>>(
    s: &S,
    pair: &Pair<F>,
    key: &F::CtKey,
    end: &End<F>,
    wanted: &Wanted<F>,
) -> Res<End<F>> {
    let forth = F::forth(end);
    if wanted.before.is_some() {
        return if s.replace_forth(key, &forth) { Ok(*end) } else { Err(D::NatFull) };
    }
    match s.enter_forth(key, &forth) {
        Entered::Done => {
            s.count_translated(wanted.account);
            Ok(*end)
        }
        Entered::Full => Err(D::NatFull),
        Entered::Other => match s.forth(key).map(|f| F::node_end(&f)) {
            Some(said) if is_of::<F, S>(s, &pair.key(&said), &pair.pod) => Ok(said),
            _ => Err(D::NatOrphan),
        },
    }
}
