//! Rule sets: immutable, and stored once for each content.
use std::{collections::BTreeMap, sync::Arc};

use cni_common::policy::{RULE_PORT_BITS, RULES_ALLOW_ALL, RULES_BY_PORT, RULES_DENY_ALL, RULES_FIRST, is_by_port};

use super::{
    change::{Change, Map},
    flatten::{Content, Entry},
};

/// Entries for single ports from which on a rule set has them in the hash, if there is room: before that the trie is shallow enough.
pub const MANY_PORTS: usize = 64;

#[derive(Debug)]
struct Slot {
    entries: Arc<[Entry]>,
    /// Entries that are in the map of single ports.
    by_port: usize,
    /// Entries of the map of peers that name it.
    users: usize,
}

/// All rule sets that something refers to.
#[derive(Debug)]
pub struct RuleSets {
    known: BTreeMap<Arc<[Entry]>, u32>,
    slots: BTreeMap<u32, Slot>,
    next: u32,
    unused: Vec<u32>,
    /// Entries that are in the map of single ports.
    by_port: usize,
    /// And that may be.
    room: usize,
}
impl Default for RuleSets {
    fn default() -> Self {
        let room = Map::Ports.spec().max_entries as usize;
        Self { known: BTreeMap::new(), slots: BTreeMap::new(), next: RULES_FIRST, unused: Vec::new(), by_port: 0, room }
    }
}
impl RuleSets {
    /// With numbers above this one.
    pub fn after(last: u32) -> Self {
        Self { next: RULES_FIRST.max(last.saturating_add(1)), ..Self::default() }
    }
    /// From now on the map of single ports has so much room: what it has none for is in the map of rules, where it costs a new flow more.
    pub fn set_room(&mut self, ports: usize) {
        self.room = ports;
    }
    /// The number of this content, for one more user; what has to be written before it is used goes to `grow`.
    pub fn take(&mut self, content: &Content, grow: &mut Vec<Change>) -> u32 {
        let entries = match content {
            Content::AllowAll => return RULES_ALLOW_ALL,
            Content::DenyAll => return RULES_DENY_ALL,
            Content::Entries(entries) => entries,
        };
        if let Some(id) = self.known.get(&**entries).copied() {
            self.keep(id);
            return id;
        }
        let id = self.number(entries);
        self.next += 1;
        let entries: Arc<[Entry]> = Arc::from(&**entries);
        grow.extend(entries.iter().map(|e| Change::rule(id, e, true)));
        self.known.insert(Arc::clone(&entries), id);
        let by_port = entries.iter().filter(|e| is_by_port(id, e.bits)).count();
        self.by_port += by_port;
        self.slots.insert(id, Slot { entries, by_port, users: 1 });
        id
    }
    /// One more user.
    pub fn keep(&mut self, id: u32) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.users += 1;
        }
    }
    /// One user less.
    pub fn release(&mut self, id: u32) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.users -= 1;
            if slot.users == 0 {
                self.unused.push(id);
            }
        }
    }
    /// Takes those out that nobody uses any more.
    pub fn sweep(&mut self, shrink: &mut Vec<Change>) {
        for id in std::mem::take(&mut self.unused) {
            if self.slots.get(&id).is_some_and(|s| s.users == 0)
                && let Some(slot) = self.slots.remove(&id)
            {
                self.known.remove(&slot.entries);
                self.by_port -= slot.by_port;
                shrink.extend(slot.entries.iter().map(|e| Change::rule(id, e, false)));
            }
        }
    }
    /// The entries of all of them.
    pub fn contents(&self) -> impl Iterator<Item = Change> {
        self.slots.iter().flat_map(|(id, slot)| slot.entries.iter().map(|e| Change::rule(*id, e, true)))
    }
    /// The highest number that was given, without [`RULES_BY_PORT`].
    pub fn last(&self) -> u32 {
        self.next.saturating_sub(1)
    }
    /// Entries of a rule set.
    pub fn len_of(&self, id: u32) -> usize {
        self.slots.get(&id).map_or(0, |s| s.entries.len())
    }
    /// The entries of a rule set.
    pub fn entries_of(&self, id: u32) -> impl Iterator<Item = &Entry> {
        self.slots.get(&id).into_iter().flat_map(|s| s.entries.iter())
    }
    /// Entries of all of them.
    pub fn entries(&self) -> usize {
        self.slots.values().map(|s| s.entries.len()).sum()
    }
    /// Of those, the ones that are in the map of single ports.
    pub fn by_port(&self) -> usize {
        self.by_port
    }
    /// The next number, which says where the single ports of these entries are.
    fn number(&self, entries: &[Entry]) -> u32 {
        let singles = entries.iter().filter(|e| e.bits == RULE_PORT_BITS).count();
        let are_by_port = singles >= MANY_PORTS && self.by_port + singles <= self.room;
        if are_by_port { self.next | RULES_BY_PORT } else { self.next }
    }
}
