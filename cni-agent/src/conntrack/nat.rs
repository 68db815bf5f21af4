//! Passes through the translations of masqueraded flows: what is over goes, and what an endpoint has is counted.
use std::{collections::BTreeMap, io, net::IpAddr, time::Duration};

use bytemuck::{Pod, bytes_of};
use cni_common::maps::CtConfig;
use cni_ebpf::nat::entry::{Holder, holder};

use super::{
    flow::read,
    pass::settle,
    sweeper::{pause, spent},
    table::Table,
    translation::{Moment, Tables, Translated, is_living},
};

/// Holds that a pass has found: by key, when each was entered and when it was found first, in jiffies. A program has one for a moment.
pub type Holds = BTreeMap<Vec<u8>, (u64, u64)>;

/// What a pass has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Translations that stay, by the endpoint on whose account they are.
    held: BTreeMap<u32, u64>,
    /// For the next pass.
    pub holds: Holds,
    /// Entries that went, one of a translation's two halves counted.
    pub deleted: u64,
    /// Entries that were looked at, in both tables.
    pub seen: u64,
}

impl Swept {
    /// Makes the endpoints' accounts what the pass has counted.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn settle(&self, accounts: &impl Table) -> io::Result<()> {
        settle(&self.held, accounts)
    }
}

/// Takes out what is over, and calls `rest` behind each lot for as long as it should rest; `None` when `rest` says that it is to end. `now`
/// is the time in jiffies, `before` what the last pass has found.
///
/// # Errors
/// What the kernel says, here and below.
pub fn sweep<F: Translated, T: Table>(
    tables: &Tables<T>,
    lifetimes: &CtConfig,
    before: &Holds,
    now: impl Fn() -> io::Result<u64>,
    mut rest: impl FnMut(Duration) -> bool,
) -> io::Result<Option<Swept>> {
    let mut swept = Swept::default();
    let at = || Ok::<_, io::Error>(Moment { now: now()?, lifetimes });
    let mut walk = tables.back.walk();
    loop {
        let at = at()?;
        let began = spent();
        let (lot, more) = lot::<F::Key, F::Back, T>(&tables.back, &mut walk)?;
        let mut doomed = Vec::new();
        for (key, back) in &lot {
            if F::outside(key).is_hold {
                swept.note_hold::<F, T>(&tables.back, before, key, back, at)?;
            } else if tables.is_over::<F>(key, back, at)? {
                doomed.push(key);
            }
        }
        swept.seen += lot.len() as u64;
        let cost = spent().saturating_sub(began);
        for key in doomed {
            let taken = tables.take_out::<F>(key, at.now, &mut |back| tables.is_over::<F>(key, back, at))?;
            swept.deleted += u64::from(taken);
        }
        if !rest(pause(cost)) {
            return Ok(None);
        }
        if !more {
            break;
        }
    }
    let mut walk = tables.forth.walk();
    loop {
        let at = at()?;
        let began = spent();
        let (lot, more) = lot::<F::CtKey, F::Forth, T>(&tables.forth, &mut walk)?;
        let mut doomed = Vec::new();
        for (key, forth) in &lot {
            match tables.flow::<F>(key)?.filter(|flow| is_living(flow, at)) {
                Some(flow) => *swept.held.entry(flow.charged).or_default() += 1,
                None => doomed.push((key, forth)),
            }
        }
        swept.seen += lot.len() as u64;
        let cost = spent().saturating_sub(began);
        for (key, forth) in doomed {
            let mut goes = || Ok(!tables.lives::<F>(key, at)?);
            swept.deleted += u64::from(tables.take_out_flow::<F>(key, forth, at.now, &mut goes)?);
        }
        if !rest(pause(cost)) {
            return Ok(None);
        }
        if !more {
            return Ok(Some(swept));
        }
    }
}

impl Swept {
    /// One that was there a second ago is of an agent that died: a program cannot be stopped halfway.
    fn note_hold<F: Translated, T: Table>(
        &mut self,
        table: &T,
        before: &Holds,
        hold: &F::Key,
        back: &F::Back,
        at: Moment<'_>,
    ) -> io::Result<()> {
        let (key, (_, made)) = (bytes_of(hold), F::pod_end(back));
        match before.get(key) {
            Some((then, since)) if *then == made => {
                let dead = at.now.saturating_sub(*since) >= at.lifetimes.second.into();
                if dead && table.lookup(key)?.as_deref() == Some(bytes_of(back)) {
                    table.delete(key)?;
                    self.deleted += 1;
                } else {
                    self.holds.insert(key.to_vec(), (made, *since));
                }
            }
            _ => drop(self.holds.insert(key.to_vec(), (made, at.now))),
        }
        Ok(())
    }
}

/// Takes out the translations of pods that are gone, whether their flows live or not; how many they were.
///
/// # Errors
/// What the kernel says.
pub fn remove<F: Translated, T: Table>(
    tables: &Tables<T>,
    now: u64,
    whose: &dyn Fn(IpAddr) -> bool,
) -> io::Result<u64> {
    let (mut removed, mut by_account) = (0, BTreeMap::<u32, u64>::new());
    let mut walk = tables.forth.walk();
    loop {
        let (lot, more) = lot::<F::CtKey, F::Forth, T>(&tables.forth, &mut walk)?;
        let is_of_one = |key: &F::CtKey| F::pairs(key).iter().any(|pair| whose(F::ip(&pair.pod.addr)));
        for (key, forth) in lot.iter().filter(|(key, _)| is_of_one(key)) {
            let account = tables.flow::<F>(key)?.map(|flow| flow.charged);
            if tables.take_out_flow::<F>(key, forth, now, &mut || Ok(true))? {
                removed += 1;
                account.into_iter().for_each(|id| *by_account.entry(id).or_default() += 1);
            }
        }
        if !more {
            break;
        }
    }
    // What of them is said of no flow.
    let mut walk = tables.back.walk();
    loop {
        let (lot, more) = lot::<F::Key, F::Back, T>(&tables.back, &mut walk)?;
        let is_of_one = |back: &F::Back| match holder::<F>(back) {
            Holder::Pod(pod) => whose(F::ip(&pod.addr)),
            Holder::Node(_) => false,
        };
        for (key, _) in lot.iter().filter(|(key, back)| !F::outside(key).is_hold && is_of_one(back)) {
            removed += u64::from(tables.take_out::<F>(key, now, &mut |back| Ok(is_of_one(back)))?);
        }
        if !more {
            break;
        }
    }
    for (id, gone) in by_account {
        let key = id.to_ne_bytes();
        let Some(there) = tables.accounts.lookup(&key)?.as_deref().and_then(read::<u64>) else { continue };
        match there.saturating_sub(gone) {
            0 => tables.accounts.delete(&key)?,
            left => tables.accounts.update(&key, &left.to_ne_bytes())?,
        }
    }
    Ok(removed)
}

/// The entries of a lot.
type Lot<K, V> = Vec<(K, V)>;

/// Takes the next lot of a table; whether there may be more.
fn lot<K: Pod, V: Pod, T: Table>(table: &T, walk: &mut T::Walk) -> io::Result<(Lot<K, V>, bool)> {
    let mut all = Vec::new();
    let more = table.lot(walk, &mut |key, value| {
        if let (Some(key), Some(value)) = (read(key), read(value)) {
            all.push((key, value));
        }
    })?;
    Ok((all, more))
}
