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
use cni_common::{maps::NatConfig, net::Be16};

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

/// What a flow is to get, and which of its ports is tried, in one register.
#[derive(Clone, Copy)]
pub struct Wanted {
    packed: u64,
}
impl Wanted {
    const FORMER: u32 = 8;
    const HAS_FORMER: u64 = 1 << 24;
    const ACCOUNT: u32 = 32;
    /// Below 2^31: a negative number is an error.
    const ACCOUNTS: u32 = u32::MAX >> 1;

    /// The port that it had, to be asked for first, else its own is; the endpoint on whose account it is.
    #[inline(always)]
    pub fn new(former: Option<Be16>, account: u32) -> Self {
        let former = former.map_or(0, |port| u64::from(port.raw()) << Self::FORMER | Self::HAS_FORMER);
        Self { packed: former | u64::from(account & Self::ACCOUNTS) << Self::ACCOUNT }
    }
    /// From what [`packed`](Self::packed) gives.
    #[inline(always)]
    pub const fn of(packed: u64) -> Self {
        Self { packed }
    }
    /// As a number, positive as a signed one.
    #[inline(always)]
    pub const fn packed(self) -> u64 {
        self.packed
    }
    /// The same, and the `n`th port, below 256.
    #[inline(always)]
    pub fn nth(self, n: u32) -> Self {
        Self { packed: self.packed & !0xff | u64::from(n & 0xff) }
    }
    #[inline(always)]
    fn n(self) -> u32 {
        self.packed as u32 & 0xff
    }
    #[inline(always)]
    fn had_one(self) -> bool {
        self.packed & Self::HAS_FORMER != 0
    }
    #[inline(always)]
    fn former(self) -> Be16 {
        Be16::new(((self.packed >> Self::FORMER) as u16).to_ne_bytes())
    }
    #[inline(always)]
    fn account(self) -> u32 {
        (self.packed >> Self::ACCOUNT) as u32
    }
    /// The port to be tried.
    #[inline(always)]
    fn port<F: NatFamily>(self, cfg: &NatConfig, pair: &Pair<F>) -> Be16 {
        match self.n() {
            0 if self.had_one() => self.former(),
            0 | 1 => pair.pod.port,
            n => probe(cfg, hash(pair), n - 1),
        }
    }
}

/// What became of a port that was tried.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
pub enum Try {
    /// It is the flow's.
    Done = 0,
    /// It is not free.
    Taken = 1,
    /// The entry is the flow's: it is to be [`settle`]d.
    Entered = 2,
    /// It has the entry of a flow that is over, which may be [taken over](take_over).
    Over = 3,
}

/// The steps in which a port is tried; in the kernel each is a function with a stack of its own.
pub trait Attempts {
    /// See [`attempt`].
    ///
    /// # Errors
    /// As there. So below.
    fn attempt(&mut self, w: Wanted) -> Res<Try>;
    /// See [`take_over`].
    ///
    /// # Errors
    /// As there.
    fn take_over(&mut self, w: Wanted) -> Res<Try>;
    /// See [`settle`].
    ///
    /// # Errors
    /// As there.
    fn settle(&mut self, w: Wanted) -> Res<Try>;
}

/// Finds a port for the flow and makes its translation.
///
/// # Errors
/// [`NatExhausted`](D::NatExhausted), [`NatFull`](D::NatFull) and [`NatQuota`](D::NatQuota).
#[inline(always)]
pub fn choose(steps: &mut impl Attempts, wanted: Wanted) -> Res<()> {
    for n in 0..PROBES + 2 {
        let w = wanted.nth(n);
        let mut what = steps.attempt(w)?;
        if what == Try::Over {
            what = steps.take_over(w)?;
        }
        if what == Try::Entered {
            what = steps.settle(w)?;
        }
        if what == Try::Done {
            return Ok(());
        }
    }
    Err(D::NatExhausted)
}

/// The port as an end of the node.
#[inline(always)]
fn end<F: NatFamily, S: NatSystem<F>>(s: &S, pair: &Pair<F>, node: &F::Addr, w: Wanted) -> Res<End<F>> {
    let cfg = s.nat_config().ok_or(D::NoConfig)?;
    Ok(End { addr: *node, port: w.port(cfg, pair) })
}

/// The pod's entry.
#[inline(always)]
fn mine<F: NatFamily, S: NatSystem<F>>(s: &S, pair: &Pair<F>) -> F::Back {
    F::back(&pair.pod, s.jiffies())
}

/// Makes the pod's entry under this port, or finds that it has it.
///
/// # Errors
/// As [`choose`].
#[inline(always)]
pub fn attempt<F, P, S>(p: &mut P, s: &S, pair: &Pair<F>, node: &F::Addr, w: Wanted) -> Res<Try>
where
    F: NatFamily,
    S: NatSystem<F> + Sockets<P, F>,
{
    let cfg = s.nat_config().ok_or(D::NoConfig)?;
    match w.n() {
        0 if !w.had_one() && s.translated(w.account()) >= s.share() => return Err(D::NatQuota),
        // Its own was the first.
        1 if !w.had_one() => return Ok(Try::Taken),
        2.. if !Layout::of::<F>(pair.proto).has_port() || cfg.ports == 0 => return Err(D::NatExhausted),
        _ => {}
    }
    let key = pair.key(&end(s, pair, node, w)?);
    let found = s.back(&key).map(|there| F::pod_end(&there));
    let is_mine = found.as_ref().is_some_and(|(pod, _)| is_same_end(pod, &pair.pod));
    if let Some((pod, made)) = &found
        && !is_mine
        && lives(s, pair, pod, *made)
    {
        return Ok(Try::Taken);
    }
    if s.has_socket(p, &key) {
        return Ok(Try::Taken);
    }
    if is_mine {
        return Ok(Try::Entered);
    }
    if found.is_some() {
        return Ok(Try::Over);
    }
    match s.enter(&key, &mine(s, pair)) {
        Entered::Done => Ok(Try::Entered),
        Entered::Full => Err(D::NatFull),
        // Another CPU was faster: perhaps with this flow's packet.
        Entered::Other if is_of::<F, S>(s, &key, &pair.pod) => Ok(Try::Entered),
        Entered::Other => Ok(Try::Taken),
    }
}

/// Replaces an entry of a flow that is over.
///
/// # Errors
/// As [`choose`].
#[inline(always)]
pub fn take_over<F: NatFamily, S: NatSystem<F>>(s: &S, pair: &Pair<F>, node: &F::Addr, w: Wanted) -> Res<Try> {
    let mut key = pair.key(&end(s, pair, node, w)?);
    let mine = mine(s, pair);
    let taken = held(s, &mut key, &mine, |key| {
        // What was found before the hold may have been replaced before it.
        let Some(there) = s.back(key) else { return false };
        let (pod, made) = F::pod_end(&there);
        if is_same_end(&pod, &pair.pod) || lives(s, pair, &pod, made) || !s.exchange(key, &mine) {
            return false;
        }
        s.fence();
        let begun_again = lives(s, pair, &pod, made);
        if begun_again {
            // Without memory it stays ours, and unused.
            s.exchange(key, &there);
        }
        !begun_again
    });
    Ok(if taken { Try::Entered } else { Try::Taken })
}

/// Says of the flow that this is its end at the node, if no socket has it by now. If another CPU has just said another of a flow that had
/// none, that one is its end.
///
/// # Errors
/// As [`choose`].
#[inline(always)]
pub fn settle<F, P, S>(p: &mut P, s: &S, pair: &Pair<F>, node: &F::Addr, w: Wanted) -> Res<Try>
where
    F: NatFamily,
    S: NatSystem<F> + Sockets<P, F>,
{
    let end = end(s, pair, node, w)?;
    // A socket that was bound since the last look has the port. One that is bound from here on wins with what it receives (`way::arrive`).
    s.fence();
    let mut key = pair.key(&end);
    if s.has_socket(p, &key) {
        hand_over(s, &mut key);
        return Ok(Try::Taken);
    }
    let (flow, _) = pair.flow();
    let forth = F::forth(&end);
    if w.had_one() {
        return if s.replace_forth(&flow, &forth) { Ok(Try::Done) } else { Err(D::NatFull) };
    }
    match s.enter_forth(&flow, &forth) {
        Entered::Done => {
            s.count_translated(w.account());
            Ok(Try::Done)
        }
        Entered::Full => Err(D::NatFull),
        // Whether that one holds is looked at when the packet is translated.
        Entered::Other => Ok(Try::Done),
    }
}

/// Makes the entry under `key` the node's own. Who has the hold now has it for a moment; whoever needs this asks again.
#[inline(always)]
pub fn hand_over<F: NatFamily, S: NatSystem<F>>(s: &S, key: &mut F::Key) {
    let now = s.jiffies();
    let own = F::own(now, s.blur(0, now));
    held(s, key, &own, |key| s.exchange(key, &own));
}

/// Does what needs the hold on a key, which says since when, as `value` does; false, and nothing is done, if it cannot be had. The hold's key is
/// made of the key in place: two of them are much of BPF's stack.
#[inline(always)]
pub fn held<F: NatFamily, S: NatSystem<F>>(
    s: &S,
    key: &mut F::Key,
    value: &F::Back,
    what: impl FnOnce(&F::Key) -> bool,
) -> bool {
    F::set_hold(key, true);
    if s.enter(key, value) != Entered::Done {
        return false;
    }
    F::set_hold(key, false);
    let done = what(key);
    F::set_hold(key, true);
    s.release(key);
    done
}
