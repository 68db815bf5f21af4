//! What policy sets ask of a peer, each question once, and which classes answer yes.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    classes::{Class, Classes},
    labels::Labels,
    objects::{Namespaces, Peer},
};

/// A question about a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criterion {
    /// Is it this peer?
    Peer(Peer),
    /// Has it a port of this name?
    Port(String),
}
impl Criterion {
    fn met_by(&self, class: &Class, namespaces: &BTreeMap<Arc<str>, Labels>) -> bool {
        match self {
            Self::Peer(peer) => class.is(peer, namespaces),
            Self::Port(name) => class.ports().iter().any(|p| p.name == *name),
        }
    }
    fn looks_at_namespaces(&self) -> bool {
        matches!(self, Self::Peer(Peer::Pods(s)) if matches!(s.namespaces, Namespaces::Selected(_)))
    }
}

#[derive(Debug)]
struct Slot {
    what: Arc<Criterion>,
    /// Identities of the classes that meet it.
    members: BTreeSet<u32>,
    /// Policy sets that ask it.
    sets: BTreeSet<u32>,
}

/// A policy set and an identity of which it may say something else now.
pub type Touched = BTreeSet<(u32, u32)>;

/// All questions that some policy set asks.
#[derive(Debug, Default)]
pub struct Criteria {
    known: BTreeMap<Arc<Criterion>, u32>,
    slots: BTreeMap<u32, Slot>,
    last: u32,
    /// Not asked of any class yet.
    fresh: BTreeSet<u32>,
}
impl Criteria {
    /// A policy set asks this.
    pub fn take(&mut self, what: Criterion, set: u32) -> u32 {
        let known = self.known.get(&what).copied();
        let id = known.unwrap_or_else(|| {
            self.last += 1;
            let what = Arc::new(what);
            self.known.insert(Arc::clone(&what), self.last);
            self.slots.insert(self.last, Slot { what, members: BTreeSet::new(), sets: BTreeSet::new() });
            self.fresh.insert(self.last);
            self.last
        });
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.sets.insert(set);
        }
        id
    }
    /// A policy set asks it no more.
    pub fn release(&mut self, id: u32, set: u32) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.sets.remove(&set);
        if slot.sets.is_empty() {
            self.known.remove(&slot.what);
            self.slots.remove(&id);
            self.fresh.remove(&id);
        }
    }
    /// Whether a class meets it.
    pub fn is_met(&self, id: u32, class: u32) -> bool {
        self.slots.get(&id).is_some_and(|s| s.members.contains(&class))
    }
    /// The classes that meet any of them.
    pub fn members(&self, ids: &[u32]) -> BTreeSet<u32> {
        ids.iter().filter_map(|id| self.slots.get(id)).flat_map(|s| s.members.iter().copied()).collect()
    }

    /// Asks new questions of all classes, and all questions of new classes.
    pub fn update(
        &mut self,
        classes: &Classes,
        fresh: &[u32],
        namespaces: &BTreeMap<Arc<str>, Labels>,
        touched: &mut Touched,
    ) {
        for id in std::mem::take(&mut self.fresh) {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.members = classes.iter().filter(|(_, c)| slot.what.met_by(c, namespaces)).map(|(id, _)| id).collect();
        }
        for id in fresh {
            let Some(class) = classes.get(*id) else { continue };
            for slot in self.slots.values_mut() {
                if slot.members.contains(id) || slot.what.met_by(class, namespaces) {
                    slot.members.insert(*id);
                    touched.extend(slot.sets.iter().map(|set| (*set, *id)));
                }
            }
        }
    }
    /// Asks again of the classes of namespaces with new labels.
    pub fn relabelled(
        &mut self,
        classes: &Classes,
        which: &BTreeSet<Arc<str>>,
        namespaces: &BTreeMap<Arc<str>, Labels>,
        touched: &mut Touched,
    ) {
        let of = classes.iter().filter(|(_, c)| c.part().is_some_and(|p| which.contains(&p.namespace)));
        for (id, class) in of {
            for slot in self.slots.values_mut().filter(|s| s.what.looks_at_namespaces()) {
                let met = slot.what.met_by(class, namespaces);
                let changed = if met { slot.members.insert(id) } else { slot.members.remove(&id) };
                if changed {
                    touched.extend(slot.sets.iter().map(|set| (*set, id)));
                }
            }
        }
    }
    /// A class is gone; the sets that may have an entry for it.
    pub fn forget(&mut self, class: u32) -> BTreeSet<u32> {
        let mut sets = BTreeSet::new();
        for slot in self.slots.values_mut() {
            if slot.members.remove(&class) {
                sets.extend(slot.sets.iter().copied());
            }
        }
        sets
    }
}
