//! What only the programs know, carried from another build's maps into this one's while packets go on.
//!
//! In two stages, as who writes the new maps changes:
//!
//! * [`copy`], while only the other build's programs run: nobody else writes the new map, so it is made what the other one is, entries that went
//!   included. Done again, it costs a look at each entry, and makes the time that it is behind as short as one look takes.
//! * [`meet`], while hooks are swapped and once after: both builds' programs write, each its own map, and a flow's two directions may meet one of
//!   each. So an entry that only the other map has is entered, unless this build's programs were faster; a flow that both have is the one that was
//!   seen later, with what either end has said to either; and everything else that both have is this build's.
//!
//! Nothing here knows the kernel: what a map is, is a trait.
use std::io;

use cni_common::{
    maps::{CtEntry, NatKey4, NatKey6},
    schema::{self, MapSpec, MapType},
};

use super::{RawMap, layout::Plan};

/// A map as bytes.
pub trait Entries {
    /// All keys.
    ///
    /// # Errors
    /// What the kernel says, here and below.
    fn keys(&self) -> io::Result<Vec<Vec<u8>>>;
    /// The value under a key.
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Writes a value, under a key that is there or not.
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Writes one under a key that is not there; whether it was not.
    fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool>;
    /// Deletes a key; one that is missing is no error.
    fn delete(&self, key: &[u8]) -> io::Result<()>;
}

impl Entries for RawMap {
    fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        self.keys()
    }
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.lookup(key)
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.update(key, value)
    }
    fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.insert(key, value)
    }
    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.delete(key)
    }
}

/// From which map to which.
#[derive(Debug)]
pub struct Carriage<'a, T> {
    /// The other build's.
    pub from: &'a T,
    /// This build's.
    pub to: &'a T,
    /// What the latter is.
    pub spec: &'a MapSpec,
    /// How an entry of the one becomes one of the other.
    pub plan: &'a Plan,
}

/// What a look at all entries has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Entries that were looked at.
    pub seen: usize,
    /// Entries that were written or deleted.
    pub changed: usize,
    /// Entries that have no room: the new map is smaller, or a shorter array.
    pub left: usize,
}

/// How much of a flow that both builds know is taken from the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Both {
    /// Nothing, now: both are being written.
    Leave,
    /// What is newer there.
    Merge,
}

/// Makes the new map what the other one is. Only for as long as nobody else writes the new one.
///
/// # Errors
/// What the kernel says.
pub fn copy<T: Entries>(c: &Carriage<'_, T>) -> io::Result<Done> {
    let mut done = Done::default();
    for key in c.from.keys()? {
        let Some(value) = c.theirs(&key)? else { continue };
        done.seen += 1;
        if c.to.lookup(&key)?.is_none_or(|there| there != value) {
            done.note(c.to.update(&key, &value).map(|()| true))?;
        }
    }
    if is_hash(c.spec) {
        for key in c.to.keys()? {
            if c.from.lookup(&key)?.is_none() {
                c.to.delete(&key)?;
                done.changed += 1;
            }
        }
    }
    Ok(done)
}

/// Enters what only the other build's programs have written, while both builds' write; `is_over` says, entry by entry, whether to stop. Counts stay
/// as they are: adding to them would lose those of this build's packets that are counted at that moment.
///
/// # Errors
/// What the kernel says.
pub fn meet<T: Entries>(c: &Carriage<'_, T>, both: Both, is_over: &dyn Fn() -> bool) -> io::Result<Done> {
    let mut done = Done::default();
    if !is_hash(c.spec) {
        return Ok(done);
    }
    for key in c.from.keys()? {
        if is_over() {
            break;
        }
        let Some(theirs) = c.theirs(&key)? else { continue };
        done.seen += 1;
        match c.to.lookup(&key)? {
            None => done.note(c.to.insert(&key, &theirs))?,
            Some(_) if both == Both::Leave => {}
            Some(ours) => {
                if let Some(newer) = newer_flow(c.spec, &ours, &theirs) {
                    done.note(c.to.update(&key, &newer).map(|()| true))?;
                }
            }
        }
    }
    Ok(done)
}

impl<T: Entries> Carriage<'_, T> {
    /// What the other map has, as this build has it; none if that is nothing, or nothing that lasts.
    fn theirs(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if is_hold(self.spec, key) {
            return Ok(None);
        }
        let value = self.from.lookup(key)?.map(|value| self.plan.value(&value));
        // Of an array every slot is there.
        Ok(value.filter(|v| is_hash(self.spec) || v.iter().any(|b| *b != 0)))
    }
}

impl Done {
    fn note(&mut self, written: io::Result<bool>) -> io::Result<()> {
        match written {
            Ok(changed) => self.changed += usize::from(changed),
            Err(e) if matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => self.left += 1,
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

const fn is_hash(spec: &MapSpec) -> bool {
    matches!(spec.kind, MapType::Hash | MapType::LruHash)
}

/// Whether this is no translation, but what a program has there for the moment in which it replaces one: nobody would take it out of the new map.
fn is_hold(spec: &MapSpec, key: &[u8]) -> bool {
    match spec.id {
        id if id == schema::NAT_BACK4.id => bytemuck::try_pod_read_unaligned::<NatKey4>(key).is_ok_and(|k| k.hold != 0),
        id if id == schema::NAT_BACK6.id => bytemuck::try_pod_read_unaligned::<NatKey6>(key).is_ok_and(|k| k.hold != 0),
        _ => false,
    }
}

/// A flow that both builds' programs have seen packets of, if the other build's is the later one: its time and what its ends have said. The verdict is
/// ours: of our policies.
///
/// Of one that was seen later by ours nothing is taken: it may be a new flow between the same ends, and the old one over.
fn newer_flow(spec: &MapSpec, ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    if spec.fingerprint != schema::CT4.fingerprint {
        return None;
    }
    let read = |value| bytemuck::try_pod_read_unaligned::<CtEntry>(value).ok();
    let (ours, theirs) = (read(ours)?, read(theirs)?);
    let is_later = (theirs.seen.wrapping_sub(ours.seen) as i64) > 0;
    is_later.then(|| {
        let both = CtEntry {
            seen: theirs.seen,
            lifetime: theirs.lifetime,
            lo_sent: ours.lo_sent | theirs.lo_sent,
            hi_sent: ours.hi_sent | theirs.hi_sent,
            ..ours
        };
        bytemuck::bytes_of(&both).to_vec()
    })
}

#[cfg(test)]
#[path = "takeover_tests.rs"]
mod tests;
