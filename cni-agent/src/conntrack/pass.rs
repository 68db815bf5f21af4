//! One pass through a table of flows.
use std::{collections::BTreeMap, io};

use cni_common::maps::CtEntry;
use cni_ebpf::ct::entry::is_within;

use super::{flow::read, table::Table};

/// Whether a flow without packets is over at a time in jiffies.
pub fn expired(entry: &CtEntry, now: u64) -> bool {
    !is_within(now, entry.seen, entry.lifetime)
}

/// A pass that is under way: lot by lot, so that whoever makes it may rest in between.
#[derive(Debug)]
pub struct Pass<W> {
    walk: W,
    /// Flows that stay, by the endpoint on whose account they are.
    held: BTreeMap<u32, u64>,
    /// Flows that were deleted.
    pub deleted: u64,
    /// Flows that were seen.
    pub seen: u64,
}

impl<W> Pass<W> {
    /// From the beginning.
    pub fn new(walk: W) -> Self {
        Self { walk, held: BTreeMap::new(), deleted: 0, seen: 0 }
    }

    /// Takes the next lot, and gives those of it that are to go; none at the end of the table.
    ///
    /// # Errors
    /// What the kernel says, here and below.
    pub fn look<T: Table<Walk = W>>(
        &mut self,
        table: &T,
        mut goes: impl FnMut(&[u8], &CtEntry) -> bool,
    ) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let (mut doomed, held, seen) = (Vec::new(), &mut self.held, &mut self.seen);
        let more = table.lot(&mut self.walk, &mut |key, value| {
            let Some(entry) = read::<CtEntry>(value) else { return };
            *seen += 1;
            if goes(key, &entry) {
                doomed.push(key.to_vec());
            } else {
                *held.entry(entry.charged).or_default() += 1;
            }
        })?;
        Ok((doomed, more))
    }

    /// Deletes those that are still to go: what was looked at some time ago may live again by now.
    pub fn delete<T: Table<Walk = W>>(
        &mut self,
        table: &T,
        doomed: &[Vec<u8>],
        mut goes: impl FnMut(&[u8], &CtEntry) -> bool,
    ) -> io::Result<()> {
        for key in doomed {
            let Some(entry) = table.lookup(key)?.as_deref().and_then(read::<CtEntry>) else { continue };
            if goes(key, &entry) {
                table.delete(key)?;
                self.deleted += 1;
            } else {
                *self.held.entry(entry.charged).or_default() += 1;
            }
        }
        Ok(())
    }

    /// At the end: makes the endpoints' accounts what the pass has counted.
    pub fn settle<T: Table>(self, accounts: &T) -> io::Result<()> {
        settle(&self.held, accounts)
    }
}

/// Makes the endpoints' accounts what was counted. What is right is not written.
pub(super) fn settle<T: Table>(held: &BTreeMap<u32, u64>, accounts: &T) -> io::Result<()> {
    let before = accounts.dump()?;
    for (key, value) in &before {
        let id = read::<u32>(key);
        match id.and_then(|id| held.get(&id)) {
            Some(flows) if value.as_slice() == flows.to_ne_bytes() => {}
            Some(flows) => accounts.update(key, &flows.to_ne_bytes())?,
            None => accounts.delete(key)?,
        }
    }
    for (id, flows) in held {
        let key = id.to_ne_bytes();
        if !before.contains_key(key.as_slice()) {
            accounts.update(&key, &flows.to_ne_bytes())?;
        }
    }
    Ok(())
}
