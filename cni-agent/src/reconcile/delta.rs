//! Desired against actual map contents, kept in memory so that a change costs only its own writes.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Deref,
};

use cni_common::schema::MapSpec;

use crate::{
    compile::{self, Entries, Entry, EntryKey, Keys, Value},
    fault::{self, Point},
    memory::pack,
    policy::change::Map,
    tables::Row,
};

/// The maps, as the reconciler sees them.
pub trait Target {
    /// Everything that is there, but in the maps of policy.
    fn dump(&mut self) -> io::Result<Vec<Entry>>;
    /// Everything in the maps of policy.
    fn dump_policy(&mut self) -> io::Result<Vec<Entry>>;
    /// Writes an entry; the same one twice is fine.
    fn upsert(&mut self, key: &EntryKey, value: &[u8]) -> io::Result<()>;
    /// Deletes an entry; a missing one is fine.
    fn delete(&mut self, key: &EntryKey) -> io::Result<()>;
}

/// An entry that somebody else has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drifted {
    /// Which one.
    pub key: EntryKey,
    /// Its value now, if it is there.
    pub was: Option<Vec<u8>>,
    /// Its value as it was written, if it was.
    pub should: Option<Vec<u8>>,
}
impl Drifted {
    /// The entries that maps hold otherwise than they were `written`, of which `is_written` knows the keys; in order.
    pub(super) fn between<'a, V: Deref<Target = [u8]> + 'a>(
        found: &Entries<V>,
        written: impl Iterator<Item = (EntryKey, &'a V)>,
        is_written: impl Fn(&EntryKey) -> bool,
    ) -> Vec<Self> {
        let bytes = |value: &V| value.to_vec();
        let strange = found.iter().filter(|(key, _)| !is_written(key));
        let mut drifted: Vec<Self> =
            strange.map(|(key, was)| Self { key, was: Some(bytes(was)), should: None }).collect();
        for (key, should) in written {
            let was = found.get(&key);
            if was.map(|was| &**was) != Some(&**should) {
                drifted.push(Self { key, was: was.map(bytes), should: Some(bytes(should)) });
            }
        }
        drifted.sort_by(|a, b| a.key.cmp(&b.key));
        drifted
    }
}

/// Entries as the agent keeps them.
pub(super) fn kept<V: for<'a> From<&'a [u8]>>(entries: Vec<Entry>) -> Entries<V> {
    entries.into_iter().map(|(key, value)| (key, V::from(&*value))).collect()
}

/// What rows ask for, what the kernel holds, and the difference.
#[derive(Debug, Default)]
pub struct Delta {
    /// What is asked for: where several rows do, the value that wins.
    desired: Entries<Value>,
    /// Of what is asked for, what the kernel does not hold as it is wanted.
    unwritten: BTreeSet<EntryKey>,
    /// Two rows may name one entry: an address is given to the next pod before the former one's object is gone. Of such an entry, who asks for which value.
    contested: BTreeMap<EntryKey, BTreeMap<Row, Value>>,
    by_row: BTreeMap<Row, Keys>,
    /// What the kernel holds and is not as wanted: another value, or one that nobody asks for.
    other: Entries<Value>,
    pending: BTreeSet<EntryKey>,
    /// What a former agent wrote and this one has not written since.
    adopted: BTreeSet<EntryKey>,
    /// What is wanted only as a stand-in: no reason to replace what a former agent wrote.
    held: BTreeSet<EntryKey>,
    /// Writes and deletes so far, for the tests that count them.
    writes: u64,
}

impl Delta {
    /// Takes over what the kernel holds.
    pub fn adopt(&mut self, target: &mut impl Target) -> io::Result<()> {
        let found: Entries<Value> = kept(target.dump()?);
        self.adopted = found.keys().collect();
        self.learn(found);
        self.pending.extend(self.desired.keys());
        Ok(())
    }

    /// This is all that the kernel holds.
    fn learn(&mut self, mut found: Entries<Value>) {
        self.unwritten.clear();
        for (key, wanted) in self.desired.iter() {
            if found.get(&key) == Some(wanted) {
                found.remove(&key);
            } else {
                self.unwritten.insert(key);
            }
        }
        self.other = found;
    }

    /// Whether the kernel holds what is asked for.
    fn is_written(&self, key: &EntryKey) -> bool {
        self.desired.contains_key(key) && !self.unwritten.contains(key)
    }

    /// All that the kernel holds.
    fn actual(&self) -> impl Iterator<Item = (EntryKey, &Value)> {
        let written = self.desired.iter().filter(|(key, _)| !self.unwritten.contains(key));
        written.chain(self.other.iter())
    }

    /// What is asked for under a key is about to change: what the kernel holds there is not what is wanted, until that is seen to.
    fn unsettle(&mut self, key: &EntryKey) {
        if let Some(value) = self.desired.get(key)
            && self.unwritten.insert(key.clone())
        {
            self.other.insert(key, value.clone());
        }
    }
    /// The kernel holds what is wanted under a key.
    fn settle(&mut self, key: &EntryKey) {
        if self.desired.contains_key(key) {
            self.unwritten.remove(key);
            self.other.remove(key);
        }
    }

    /// The row that asks for an entry for which only one does. Looked for, as nearly no entry is ever another row's as well.
    fn only_row(&self, key: &EntryKey) -> Option<&Row> {
        self.by_row.iter().find(|(_, keys)| keys.iter().any(|k| k == *key)).map(|(row, _)| row)
    }
    /// A row asks for a value; `others`: that it is not the only one, if anybody asks yet.
    fn ask(&mut self, row: &Row, key: EntryKey, value: Value, others: bool) {
        self.unsettle(&key);
        if others
            && !self.contested.contains_key(&key)
            && let Some(held) = self.desired.get(&key).cloned()
            && let Some(other) = self.only_row(&key).cloned()
        {
            self.contested.insert(key.clone(), BTreeMap::from([(other, held)]));
        }
        let wins = match self.contested.get_mut(&key) {
            Some(all) => {
                all.insert(row.clone(), value);
                last(all)
            }
            None => Some(value),
        };
        if let Some(value) = wins {
            self.desired.insert(&key, value);
            self.unwritten.insert(key);
        }
    }
    /// A row asks for an entry no more.
    fn unask(&mut self, row: &Row, key: &EntryKey) {
        self.unsettle(key);
        let left = self.contested.get_mut(key).map(|all| {
            all.remove(row);
            (all.len(), last(all))
        });
        if let Some((0 | 1, _)) = left {
            self.contested.remove(key);
        }
        match left.and_then(|(_, value)| value) {
            Some(value) => drop(self.desired.insert(key, value)),
            None => {
                self.desired.remove(key);
                self.unwritten.remove(key);
            }
        }
    }

    /// Replaces what a row asks for.
    pub fn set_row(&mut self, row: &Row, entries: Vec<Entry>) {
        let entries: BTreeMap<EntryKey, Value> =
            entries.into_iter().map(|(key, value)| (key, Value::from(&*value))).collect();
        let before: BTreeSet<EntryKey> = self.by_row.remove(row).iter().flat_map(Keys::iter).collect();
        for key in before.iter().filter(|key| !entries.contains_key(*key)) {
            self.unask(row, key);
            self.pending.insert(key.clone());
        }
        let keys: Keys = entries.keys().cloned().collect();
        for (key, value) in entries {
            self.pending.insert(key.clone());
            let others = !before.contains(&key);
            self.ask(row, key, value, others);
        }
        if keys.iter().next().is_some() {
            self.by_row.insert(row.clone(), keys);
        }
    }

    /// Holds back what a row asks for where a former agent's entry stands, or lets it go.
    pub fn hold(&mut self, row: &Row, held: bool) {
        for key in self.by_row.get(row).into_iter().flat_map(Keys::iter) {
            if held {
                self.held.insert(key);
            } else if self.held.remove(&key) {
                self.pending.insert(key);
            }
        }
    }

    /// Entries that a former agent left and of which it is known that nobody will ask for them become pending.
    pub fn forget(&mut self, which: impl Fn(&EntryKey, &[u8]) -> bool) {
        let forgotten: Vec<EntryKey> =
            self.actual().filter(|(key, value)| which(key, value)).map(|(key, _)| key).collect();
        self.pending.extend(forgotten);
    }

    /// What the kernel holds and no row asks for becomes pending: only when every source is in sync.
    pub fn prune(&mut self) {
        self.pending.extend(self.other.keys().filter(|k| !self.desired.contains_key(k)));
    }

    /// Writes what is pending: additions in the maps' order, then deletions in the opposite one. What fails stays pending, and its rows
    /// are in the answer, each with the error.
    pub fn flush(&mut self, target: &mut impl Target) -> BTreeMap<Row, String> {
        let mut failed = BTreeMap::new();
        let pending = std::mem::take(&mut self.pending);
        let (writes, deletes): (Vec<_>, Vec<_>) = pending.into_iter().partition(|k| self.desired.contains_key(k));
        for key in writes {
            let Some(value) = self.desired.get(&key).cloned() else { continue };
            if self.is_written(&key) || self.other.get(&key) == Some(&value) {
                self.settle(&key);
                continue;
            }
            if self.held.contains(&key) && self.adopted.contains(&key) {
                self.pending.insert(key);
                continue;
            }
            self.writes += 1;
            match target.upsert(&key, &value) {
                Ok(()) => {
                    fault::pass(Point::MapWritten);
                    self.adopted.remove(&key);
                    self.settle(&key);
                }
                Err(e) => drop(failed.insert(key, e)),
            }
        }
        for key in deletes.into_iter().rev() {
            if !self.other.contains_key(&key) {
                continue;
            }
            self.writes += 1;
            match target.delete(&key) {
                Ok(()) => {
                    fault::pass(Point::MapDeleted);
                    self.adopted.remove(&key);
                    self.other.remove(&key);
                }
                Err(e) => drop(failed.insert(key, e)),
            }
        }
        let failures = self.rows_of(&failed);
        self.pending.extend(failed.into_keys());
        failures
    }

    /// The rows that ask for entries that could not be written, each with an error.
    fn rows_of(&self, failed: &BTreeMap<EntryKey, io::Error>) -> BTreeMap<Row, String> {
        if failed.is_empty() {
            return BTreeMap::new();
        }
        let error = |keys: &Keys| {
            let (key, error) = keys.iter().find_map(|key| failed.get_key_value(&key))?;
            Some(full(key.map(), error))
        };
        self.by_row.iter().filter_map(|(row, keys)| Some((row.clone(), error(keys)?))).collect()
    }

    /// Whether something is yet to be written.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Compares with the kernel: entries that differ from what the agent believes become pending, and are the answer, each with what is there
    /// and what ought to be.
    pub fn verify(&mut self, target: &mut impl Target) -> io::Result<Vec<Drifted>> {
        let found = kept(target.dump()?);
        let is_written = |key: &EntryKey| self.is_written(key) || self.other.contains_key(key);
        let drifted = Drifted::between(&found, self.actual(), is_written);
        self.learn(found);
        self.pending.extend(drifted.iter().map(|d| d.key.clone()));
        Ok(drifted)
    }

    /// The values that a map holds.
    pub fn held_by_kernel(&self, map: &MapSpec) -> impl Iterator<Item = &[u8]> {
        let id = map.id;
        self.actual().filter(move |(key, _)| key.map().id == id).map(|(_, value)| &**value)
    }

    /// Writes and deletes so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Packs the entries as closely as they go; `final_word`: nothing will be a stand-in any more.
    pub fn pack(&mut self, final_word: bool) {
        if final_word && self.held.is_empty() {
            self.adopted.clear();
        }
        self.desired.pack();
        pack(&mut self.by_row);
        self.other.pack();
    }
}

/// The value that wins: that of the last row in order, the same each time.
fn last(all: &BTreeMap<Row, Value>) -> Option<Value> {
    all.values().next_back().cloned()
}

/// A write that failed, in words.
pub(super) fn full(map: &MapSpec, error: &io::Error) -> String {
    let cure = match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => format!(" (the map is full: it holds {} entries)", map.max_entries),
        _ => String::new(),
    };
    format!("write map {}: {error}{cure}", map.name)
}

/// The loaded maps.
impl Target for std::sync::Arc<crate::datapath::Datapath> {
    fn dump(&mut self) -> io::Result<Vec<Entry>> {
        let mut all = Vec::new();
        for spec in compile::maps() {
            let contents = self.map(spec).dump()?;
            all.extend(contents.into_iter().filter_map(|(k, v)| Some((EntryKey::new(spec, k)?, v))));
        }
        Ok(all)
    }
    fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
        let mut all = Vec::new();
        for map in Map::ALL {
            let contents = self.map(map.spec()).dump()?;
            all.extend(contents.into_iter().map(|(key, value)| (EntryKey::of_policy(map, key), value)));
        }
        Ok(all)
    }
    fn upsert(&mut self, key: &EntryKey, value: &[u8]) -> io::Result<()> {
        self.map(key.map()).update(&key.key, value)
    }
    fn delete(&mut self, key: &EntryKey) -> io::Result<()> {
        self.map(key.map()).delete(&key.key)
    }
}

#[cfg(test)]
mod tests {
    use cni_common::schema;
    use proptest::prelude::*;

    use super::*;

    /// Maps in memory, of which every n-th write fails.
    #[derive(Default)]
    struct Memory {
        entries: BTreeMap<EntryKey, Vec<u8>>,
        log: Vec<(char, &'static str)>,
        fail_every: Option<u32>,
        calls: u32,
    }
    impl Memory {
        fn fails(&mut self) -> io::Result<()> {
            self.calls += 1;
            match self.fail_every {
                Some(n) if self.calls.is_multiple_of(n) => Err(io::Error::from_raw_os_error(libc::E2BIG)),
                _ => Ok(()),
            }
        }
    }
    impl Target for Memory {
        fn dump(&mut self) -> io::Result<Vec<Entry>> {
            Ok(self.entries.clone().into_iter().collect())
        }
        fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
            Ok(Vec::new())
        }
        fn upsert(&mut self, key: &EntryKey, value: &[u8]) -> io::Result<()> {
            self.fails()?;
            self.log.push(('+', key.map().name));
            self.entries.insert(key.clone(), value.to_vec());
            Ok(())
        }
        fn delete(&mut self, key: &EntryKey) -> io::Result<()> {
            self.fails()?;
            self.log.push(('-', key.map().name));
            self.entries.remove(key);
            Ok(())
        }
    }

    fn entry(map: &schema::MapSpec, key: u8, value: u8) -> Entry {
        (EntryKey::new(map, vec![key]).expect("in order"), vec![value])
    }
    const ROW: fn(u16) -> Row = Row::Endpoint;

    #[test]
    fn the_endpoint_entry_is_written_last_and_deleted_first() {
        let (mut delta, mut kernel) = (Delta::default(), Memory::default());
        delta.set_row(
            &ROW(1),
            vec![entry(&schema::ENDPOINTS, 1, 1), entry(&schema::LOCAL4, 1, 1), entry(&schema::LOCAL6, 1, 1)],
        );
        assert!(delta.flush(&mut kernel).is_empty());
        delta.set_row(&ROW(1), Vec::new());
        assert!(delta.flush(&mut kernel).is_empty());
        let names: Vec<_> = kernel.log.iter().map(|(op, map)| format!("{op}{map}")).collect();
        assert_eq!(names, ["+local4_v2", "+local6_v2", "+endpoints_v1", "-endpoints_v1", "-local6_v2", "-local4_v2"]);
    }

    #[test]
    fn an_unchanged_row_costs_no_write() {
        let (mut delta, mut kernel) = (Delta::default(), Memory::default());
        for _ in 0..3 {
            delta.set_row(&ROW(1), vec![entry(&schema::LOCAL4, 1, 7)]);
            delta.flush(&mut kernel);
        }
        assert_eq!(delta.writes(), 1);
    }

    #[test]
    fn adopted_entries_stay_until_pruning_is_allowed() {
        let (mut delta, mut kernel) = (Delta::default(), Memory::default());
        let (kept, orphan) = (entry(&schema::LOCAL4, 1, 7), entry(&schema::LOCAL4, 2, 8));
        kernel.entries.extend([kept.clone(), orphan]);
        delta.adopt(&mut kernel).expect("dumps");
        delta.set_row(&ROW(1), vec![kept.clone()]);
        delta.flush(&mut kernel);
        assert_eq!((kernel.entries.len(), delta.writes()), (2, 0));
        delta.prune();
        delta.flush(&mut kernel);
        assert_eq!(kernel.entries, BTreeMap::from([kept]));
    }

    #[test]
    fn a_full_map_is_named_and_tried_again() {
        let (mut delta, mut kernel) = (Delta::default(), Memory { fail_every: Some(1), ..Memory::default() });
        delta.set_row(&ROW(1), vec![entry(&schema::LOCAL4, 1, 7)]);
        let failures = delta.flush(&mut kernel);
        assert!(failures[&ROW(1)].contains("local4_v2") && failures[&ROW(1)].contains("full"), "{failures:?}");
        assert!(delta.has_pending());
        kernel.fail_every = None;
        assert!(delta.flush(&mut kernel).is_empty() && !delta.has_pending());
        assert_eq!(kernel.entries.len(), 1);
    }

    #[test]
    fn what_somebody_else_changed_is_found_and_mended() {
        let (mut delta, mut kernel) = (Delta::default(), Memory::default());
        delta.set_row(&ROW(1), vec![entry(&schema::LOCAL4, 1, 7), entry(&schema::LOCAL4, 2, 7)]);
        delta.flush(&mut kernel);
        let right = kernel.entries.clone();
        kernel.entries.remove(&entry(&schema::LOCAL4, 1, 0).0);
        kernel.entries.extend([entry(&schema::LOCAL4, 2, 9), entry(&schema::LOCAL4, 3, 9)]);
        let drifted = delta.verify(&mut kernel).expect("dumps");
        let values: Vec<_> = drifted.into_iter().map(|d| (d.was, d.should)).collect();
        let seven = || Some(vec![7]);
        assert_eq!(values, [(None, seven()), (Some(vec![9]), seven()), (Some(vec![9]), None)]);
        delta.flush(&mut kernel);
        assert_eq!(kernel.entries, right);
        assert_eq!(delta.verify(&mut kernel).expect("dumps"), []);
    }

    proptest! {
        #[test]
        fn any_order_of_changes_and_failures_ends_in_what_the_rows_ask_for(
            steps in proptest::collection::vec((0u16..4, proptest::collection::vec((0u8..5, any::<u8>()), 0..4), any::<bool>()), 1..40),
            fail_every in 2u32..5,
        ) {
            let (mut delta, mut kernel) = (Delta::default(), Memory { fail_every: Some(fail_every), ..Memory::default() });
            let mut rows = BTreeMap::new();
            for (row, entries, flush) in steps {
                let entries: Vec<Entry> = entries.into_iter().map(|(k, v)| entry(&schema::LOCAL4, k, v)).collect();
                delta.set_row(&ROW(row), entries.clone());
                rows.insert(row, entries);
                if flush { delta.flush(&mut kernel); }
            }
            kernel.fail_every = None;
            prop_assert!(delta.flush(&mut kernel).is_empty());
            let want: BTreeMap<EntryKey, Vec<u8>> = rows.into_values().flatten().collect();
            prop_assert_eq!(kernel.entries, want);
        }
    }
}
