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
    /// The namespace whose pods alone can meet it.
    fn namespace(&self) -> Option<&str> {
        match self {
            Self::Peer(Peer::Pods(subject)) => match &subject.namespaces {
                Namespaces::Named(name) => Some(name),
                Namespaces::Selected(_) => None,
            },
            Self::Peer(_) | Self::Port(_) => None,
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
    /// Those that only pods of one namespace can meet, by its name.
    of_namespace: BTreeMap<String, BTreeSet<u32>>,
    /// All others.
    of_all: BTreeSet<u32>,
    /// What each class meets: the other way round.
    met: BTreeMap<u32, BTreeSet<u32>>,
}
impl Criteria {
    /// A policy set asks this.
    pub fn take(&mut self, what: Criterion, set: u32) -> u32 {
        let known = self.known.get(&what).copied();
        let id = known.unwrap_or_else(|| {
            self.last += 1;
            let (id, what) = (self.last, Arc::new(what));
            self.index(&what).insert(id);
            self.known.insert(Arc::clone(&what), id);
            self.slots.insert(id, Slot { what, members: BTreeSet::new(), sets: BTreeSet::new() });
            self.fresh.insert(id);
            id
        });
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.sets.insert(set);
        }
        id
    }
    fn index(&mut self, what: &Criterion) -> &mut BTreeSet<u32> {
        match what.namespace() {
            Some(name) => self.of_namespace.entry(name.to_owned()).or_default(),
            None => &mut self.of_all,
        }
    }
    /// A policy set asks it no more.
    pub fn release(&mut self, id: u32, set: u32) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.sets.remove(&set);
        if !slot.sets.is_empty() {
            return;
        }
        let Some(slot) = self.slots.remove(&id) else { return };
        self.known.remove(&slot.what);
        self.fresh.remove(&id);
        let index = self.index(&slot.what);
        index.remove(&id);
        if index.is_empty()
            && let Some(name) = slot.what.namespace()
        {
            self.of_namespace.remove(name);
        }
        for class in slot.members {
            take_from(&mut self.met, class, id);
        }
    }
    /// Whether a class meets it.
    pub fn is_met(&self, id: u32, class: u32) -> bool {
        self.met.get(&class).is_some_and(|met| met.contains(&id))
    }
    /// The classes that meet any of them.
    pub fn members(&self, ids: &[u32]) -> BTreeSet<u32> {
        ids.iter().filter_map(|id| self.slots.get(id)).flat_map(|s| s.members.iter().copied()).collect()
    }

    /// Asks new questions of all classes, and all questions of new classes.
    pub fn update(
        &mut self,
        classes: &Classes,
        fresh: &BTreeSet<u32>,
        namespaces: &BTreeMap<Arc<str>, Labels>,
        touched: &mut Touched,
    ) {
        for id in std::mem::take(&mut self.fresh) {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.members = classes.iter().filter(|(_, c)| slot.what.met_by(c, namespaces)).map(|(id, _)| id).collect();
            for class in &slot.members {
                self.met.entry(*class).or_default().insert(id);
            }
        }
        for id in fresh {
            let Some(class) = classes.get(*id) else { continue };
            let of_namespace = class.pod().and_then(|p| self.of_namespace.get(&*p.namespace));
            for criterion in of_namespace.into_iter().flatten().chain(&self.of_all) {
                let Some(slot) = self.slots.get_mut(criterion) else { continue };
                if slot.members.contains(id) || slot.what.met_by(class, namespaces) {
                    slot.members.insert(*id);
                    self.met.entry(*id).or_default().insert(*criterion);
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
        let of = classes.iter().filter(|(_, c)| c.pod().is_some_and(|p| which.contains(&p.namespace)));
        for (id, class) in of {
            for criterion in &self.of_all {
                let Some(slot) = self.slots.get_mut(criterion).filter(|s| s.what.looks_at_namespaces()) else {
                    continue;
                };
                let met = slot.what.met_by(class, namespaces);
                let changed = if met { slot.members.insert(id) } else { slot.members.remove(&id) };
                if changed {
                    if met {
                        self.met.entry(id).or_default().insert(*criterion);
                    } else {
                        take_from(&mut self.met, id, *criterion);
                    }
                    touched.extend(slot.sets.iter().map(|set| (*set, id)));
                }
            }
        }
    }
    /// The sets that may say something of a class.
    pub fn sets_of(&self, class: u32) -> BTreeSet<u32> {
        let met = self.met.get(&class).into_iter().flatten();
        met.filter_map(|id| self.slots.get(id)).flat_map(|slot| slot.sets.iter().copied()).collect()
    }
    /// A class is gone; the sets that may have an entry for it.
    pub fn forget(&mut self, class: u32) -> BTreeSet<u32> {
        let mut sets = BTreeSet::new();
        for id in self.met.remove(&class).unwrap_or_default() {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.members.remove(&class);
                sets.extend(slot.sets.iter().copied());
            }
        }
        sets
    }
}

fn take_from(met: &mut BTreeMap<u32, BTreeSet<u32>>, class: u32, criterion: u32) {
    if let Some(of_class) = met.get_mut(&class) {
        of_class.remove(&criterion);
        if of_class.is_empty() {
            met.remove(&class);
        }
    }
}
