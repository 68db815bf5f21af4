//! From events to writes: what a change of the store asks of the policy maps, and no more than that.
//!
//! The order of writes keeps every pod's policy whole at any moment. First everything that nothing refers to yet (rules of new rule sets, entries
//! of new policy sets, entries for new identities in all sets), then single entries that flip, then what nothing refers to any more. What
//! tells peers apart only grows before pods get their new policy sets, and only shrinks after that, so each set meets identities that it can
//! judge.
mod name;
mod room;
mod spread;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use cni_common::policy::{Holder, IDENTITY_OTHER, SET_AUDIT, SET_NONE, only_audits};
use ipnet::IpNet;

pub use self::room::Room;
use self::room::Waiting;
use super::{
    addresses::{ByAddress, ByPlace},
    change::Change,
    classes::{Class, Classes, Owner, Part, Parts, Seen},
    cookies::Cookies,
    criteria::{Criteria, Touched},
    mentions::{Changed, Mentions},
    objects::Direction,
    rulesets::RuleSets,
    sets::{self, Set, SetKey},
    store::{Alike, PodRow, Revision, Store},
};
use crate::{identity, memory::pack, tables::PodKey};

/// The policy sets of a pod of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointSets {
    /// Of the ingress direction; 0 when nothing isolates it.
    pub set_in: u32,
    /// Of the egress direction; 0 when nothing isolates it.
    pub set_out: u32,
}
impl EndpointSets {
    /// Whether policies may deny something in one direction or both.
    pub fn isolate(self) -> bool {
        [self.set_in, self.set_out].into_iter().any(|set| set != SET_NONE && !only_audits(set))
    }
    /// Of this direction.
    pub fn of(self, direction: Direction) -> u32 {
        match direction {
            Direction::Ingress => self.set_in,
            Direction::Egress => self.set_out,
        }
    }
}

/// One direction of a policy that is in force on this node.
#[derive(Debug)]
struct Active {
    sets: usize,
    /// The cookies of its rules.
    cookies: Box<[u32]>,
}

/// Numbers that are in use, or were: those that an engine gives are above them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floors {
    /// Of identities.
    pub identity: u32,
    /// Of policy sets.
    pub set: u32,
    /// Of rule sets.
    pub rules: u32,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of all policy maps.
    pub entries: usize,
    /// Entries that the pod with the most has, in both directions.
    pub most_of_endpoint: usize,
    /// Identities.
    pub identities: usize,
}

/// The policies of one node.
#[derive(Debug)]
pub struct Engine {
    /// The objects: event handlers are its methods.
    pub store: Store,
    mentions: Mentions,
    changed: Changed,
    active: BTreeMap<(u64, Direction), Active>,
    cookies: Cookies,
    parts: Parts,
    /// What is seen in each group of pods.
    groups: BTreeMap<u32, Arc<Part>>,
    classes: Classes,
    identities: ByAddress<Holder>,
    /// By class on a node and prefix: the node's number in the maps, and the identity.
    senders: ByPlace<(u32, u32)>,
    blocks: BTreeMap<IpNet, u32>,
    criteria: Criteria,
    sets: BTreeMap<u32, Set>,
    set_ids: BTreeMap<Arc<SetKey>, u32>,
    last_set: u32,
    fresh_sets: BTreeSet<u32>,
    rule_sets: RuleSets,
    endpoints: BTreeMap<PodKey, EndpointSets>,
    waiting: Waiting,
}

impl Engine {
    /// Of the agent on this node; nothing is known yet.
    pub fn new(node: &str) -> Self {
        Self {
            store: Store::new(node),
            mentions: Mentions::default(),
            changed: Changed::default(),
            active: BTreeMap::new(),
            cookies: Cookies::default(),
            parts: Parts::default(),
            groups: BTreeMap::new(),
            classes: Classes::default(),
            identities: ByAddress::default(),
            senders: ByPlace::default(),
            blocks: BTreeMap::new(),
            criteria: Criteria::default(),
            sets: BTreeMap::new(),
            set_ids: BTreeMap::new(),
            last_set: SET_NONE,
            fresh_sets: BTreeSet::new(),
            rule_sets: RuleSets::default(),
            endpoints: BTreeMap::new(),
            waiting: Waiting::default(),
        }
    }

    /// The same, beside maps that hold such numbers: what a packet has read of them never means something else.
    pub fn after(node: &str, floors: Floors) -> Self {
        Self {
            classes: Classes::after(floors.identity),
            last_set: floors.set,
            rule_sets: RuleSets::after(floors.rules),
            ..Self::new(node)
        }
    }
    /// The numbers that it has given.
    pub fn floors(&self) -> Floors {
        Floors { identity: self.classes.last(), set: self.last_set, rules: self.rule_sets.last() }
    }

    /// The writes that make the maps follow all events since the last call, in the order in which they are to be done.
    pub fn compile(&mut self) -> Vec<Change> {
        let mut plan = Vec::new();
        let pods = std::mem::take(&mut self.store.dirty.locals);
        self.waiting.pods.retain(|pod| !pods.contains(pod));
        if !self.exchange(&pods, &mut plan) {
            // Some of them may fit.
            for pods in self.by_asked(pods).into_values() {
                if !self.exchange(&pods, &mut plan) {
                    self.put_off(pods);
                }
            }
        }
        if !(self.waiting.pods.is_empty() && self.waiting.identities.is_empty()) {
            self.resume(&mut plan);
        }
        plan
    }

    /// The policy set of a pod, for one more user.
    fn take_set(&mut self, pod: &PodRow, direction: Direction, grow: &mut Vec<Change>) -> u32 {
        let policies = sets::in_order(self.store.policies_of(pod, direction));
        if policies.is_empty() {
            return SET_NONE;
        }
        let key = sets::key(direction, &policies, &self.store.alike(pod).ports);
        if let Some(id) = self.set_ids.get(&key) {
            if let Some(set) = self.sets.get_mut(id) {
                set.users += 1;
            }
            return *id;
        }
        self.last_set += 1;
        let id = self.last_set | if sets::only_audit(&policies) { SET_AUDIT } else { 0 };
        for revision in &policies {
            self.activate(revision, direction);
        }
        let active = &self.active;
        let cookies = |number| active.get(&(number, direction)).map_or(&[][..], |a| &a.cookies);
        let key = Arc::new(key);
        let mut set = Set::new(id, Arc::clone(&key), policies, cookies, &mut self.criteria);
        set.users = 1;
        set.default = self.rule_sets.take(&set.of_others(), grow);
        grow.push(Change::peer(id, IDENTITY_OTHER, Some(set.default)));
        self.sets.insert(id, set);
        self.set_ids.insert(key, id);
        self.fresh_sets.insert(id);
        id
    }
    fn activate(&mut self, revision: &Arc<Revision>, direction: Direction) {
        if let Some(active) = self.active.get_mut(&(revision.number, direction)) {
            active.sets += 1;
            return;
        }
        let cookies = self.cookies.take(revision, direction);
        self.active.insert((revision.number, direction), Active { sets: 1, cookies });
        self.mentions.count(&revision.policy, direction, true, &mut self.changed);
    }

    /// One user of a set less; without any it goes.
    fn release_set(&mut self, id: u32, plan: &mut Vec<Change>) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        set.users -= 1;
        if set.users > 0 {
            return;
        }
        let Some(set) = self.sets.remove(&id) else { return };
        self.set_ids.remove(&set.key);
        self.fresh_sets.remove(&id);
        for (identity, rules) in set.peers.iter().chain([(&IDENTITY_OTHER, &set.default)]) {
            plan.push(Change::peer(id, *identity, None));
            self.rule_sets.release(*rules);
        }
        for criterion in &set.criteria {
            self.criteria.release(*criterion, id);
        }
        for revision in &set.policies {
            let key = (revision.number, set.key.direction);
            let Some(active) = self.active.get_mut(&key) else { continue };
            active.sets -= 1;
            if active.sets == 0 {
                self.cookies.release(&active.cookies);
                self.active.remove(&key);
                self.mentions.count(&revision.policy, set.key.direction, false, &mut self.changed);
            }
        }
    }

    /// Follows what changed: classes of addresses, what they meet, and what the sets say of them.
    fn pass(&mut self, plan: &mut Vec<Change>) {
        let (mut grow, mut flips, mut moves, mut shrink) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut left = Vec::new();
        self.spread(&mut moves, &mut left);
        self.reclassify(&mut moves, &mut left);
        self.name_senders(&mut moves, &mut left);
        let mut touched = Touched::new();
        let fresh: BTreeSet<u32> = self.classes.take_fresh().into_iter().collect();
        self.criteria.update(&self.classes, &fresh, &self.store.namespaces, &mut touched);
        let namespaces = std::mem::take(&mut self.store.dirty.namespaces);
        if !namespaces.is_empty() {
            self.criteria.relabelled(&self.classes, &namespaces, &self.store.namespaces, &mut touched);
        }
        touched.retain(|(set, _)| !self.fresh_sets.contains(set));
        for id in std::mem::take(&mut self.fresh_sets) {
            if let Some(set) = self.sets.get(&id) {
                let members = self.criteria.members(&set.criteria);
                self.say(id, members, &mut grow, None);
            }
        }
        for (id, identities) in by_set(touched) {
            let (new, known): (Vec<u32>, Vec<u32>) = identities.into_iter().partition(|i| fresh.contains(i));
            self.say(id, new, &mut grow, None);
            self.say(id, known, &mut grow, Some(&mut flips));
        }
        for id in left {
            self.classes.release(id);
        }
        for identity in self.classes.sweep() {
            self.waiting.identities.remove(&identity);
            for id in self.criteria.forget(identity) {
                if let Some(rules) = self.sets.get_mut(&id).and_then(|s| s.peers.remove(&identity)) {
                    self.rule_sets.release(rules);
                    shrink.push(Change::peer(id, identity, None));
                }
            }
        }
        for list in [&mut grow, &mut flips, &mut moves, &mut shrink] {
            plan.append(list);
        }
    }

    /// Gives dirty addresses their identities; `left` gets those that they had.
    fn reclassify(&mut self, moves: &mut Vec<Change>, left: &mut Vec<u32>) {
        for address in std::mem::take(&mut self.store.dirty.addresses) {
            let seen = self.classify(address);
            // What only its prefix says of it needs no entry.
            let wanted = seen.owner != Owner::Nobody || !seen.domains.is_empty();
            let pod = self.store.pod_at(address).and_then(|pod| self.store.group(pod.group));
            let class = pod.map_or(identity::UNKNOWN, |group| group.class);
            let new = wanted.then(|| Holder { identity: self.classes.take(seen), class });
            let old = match new {
                Some(holder) => self.identities.insert(address, holder),
                None => self.identities.remove(address),
            };
            left.extend(old.map(|holder| holder.identity));
            if new != old {
                moves.push(Change::address(address, new.map(|holder| self.shown_holder(holder))));
            }
        }
        if self.groups.len() > 2 * self.store.group_count() + 64 {
            let store = &self.store;
            self.groups.retain(|number, _| store.group(*number).is_some());
        }
    }
    fn classify(&mut self, address: IpAddr) -> Class {
        let owner = match self.store.pod_at(address).map(|p| p.group) {
            Some(group) => Owner::Pod { part: self.part_of(group), v4: address.is_ipv4() },
            None => {
                let labels = self.store.node_at(address).map(|n| n.labels.clone());
                let reduced = labels.and_then(|l| self.mentions.node_labels(&l, &mut self.store.texts));
                reduced.map_or(Owner::Nobody, Owner::Node)
            }
        };
        let domains = self.mentions.domains(self.store.names_of(address));
        Class { owner, block: self.mentions.block(address), domains }
    }
    /// What is seen in a group of pods, as it was told last.
    fn part_of(&mut self, group: u32) -> Arc<Part> {
        if let Some(part) = self.groups.get(&group) {
            return Arc::clone(part);
        }
        let part = self.part(group);
        self.groups.insert(group, Arc::clone(&part));
        part
    }
    /// The same, as it is now.
    fn part(&mut self, group: u32) -> Arc<Part> {
        let alike = self.store.group(group).map(|g| Arc::clone(&g.alike)).unwrap_or_default();
        self.parts.share(Seen {
            namespace: Arc::clone(&alike.namespace),
            labels: self.mentions.pod_labels(&alike.labels, &mut self.store.texts),
            ports: self.mentions.ports(&alike.ports),
        })
    }

    /// Writes what a set says of identities, where it is something else than before. Without `flips` nothing refers to these yet.
    fn say(
        &mut self,
        id: u32,
        identities: impl IntoIterator<Item = u32>,
        grow: &mut Vec<Change>,
        flips: Option<&mut Vec<Change>>,
    ) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        let mut known = BTreeMap::new();
        let mut writes = Vec::new();
        for identity in identities {
            if self.waiting.identities.contains(&identity) {
                continue;
            }
            let seen = set.sees(identity, &self.criteria, &self.classes);
            let new = seen.map(|view| match known.get(&view) {
                Some(rules) => {
                    self.rule_sets.keep(*rules);
                    *rules
                }
                None => {
                    let rules = self.rule_sets.take(&set.of_view(&view.0, &view.1), grow);
                    known.insert(view, rules);
                    rules
                }
            });
            // The default needs no entry.
            let wanted = new.filter(|rules| *rules != set.default);
            let old = match wanted {
                Some(rules) => set.peers.insert(identity, rules),
                None => set.peers.remove(&identity),
            };
            if wanted != old {
                writes.push(Change::peer(id, identity, wanted));
            }
            for rules in old.into_iter().chain(new.filter(|_| wanted.is_none())) {
                self.rule_sets.release(rules);
            }
        }
        flips.unwrap_or(grow).append(&mut writes);
    }

    /// All that the maps are to hold, as writes to empty ones in an order in which they may be done: for a new agent, and to compare with what
    /// the kernel holds.
    pub fn contents(&self) -> impl Iterator<Item = Change> {
        let peers = self.sets.iter().flat_map(|(id, set)| {
            let default = Change::peer(*id, IDENTITY_OTHER, Some(set.default));
            let others = set.peers.iter().map(|(identity, rules)| Change::peer(*id, *identity, Some(*rules)));
            std::iter::once(default).chain(others)
        });
        let blocks = self.blocks.iter().map(|(net, id)| Change::block(*net, Some(self.shown(*id))));
        let addresses =
            self.identities.iter().map(|(address, holder)| Change::address(address, Some(self.shown_holder(*holder))));
        let senders = self.senders().map(|(sender, id)| Change::sender(&sender, Some(id)));
        let endpoints =
            self.endpoints.iter().map(|(pod, sets)| Change::Endpoint { pod: pod.clone(), sets: Some(*sets) });
        self.rule_sets.contents().chain(peers).chain(blocks).chain(addresses).chain(senders).chain(endpoints)
    }
    /// The identity of an address, as the maps say it.
    pub fn identity_of(&self, address: IpAddr) -> u32 {
        let known = self.identities.get(address).map(|holder| self.shown(holder.identity));
        known.unwrap_or_else(|| self.identity_of_prefix(address.into()))
    }
    /// The identity of a prefix that no other one cuts through: that of the longest one that holds it.
    pub fn identity_of_prefix(&self, net: IpNet) -> u32 {
        let known = self.block_of(net).and_then(|net| self.blocks.get(&net));
        known.map_or(IDENTITY_OTHER, |id| self.shown(*id))
    }
    /// Policy sets.
    pub fn sets(&self) -> impl Iterator<Item = (u32, &Set)> {
        self.sets.iter().map(|(id, set)| (*id, set))
    }
    /// The policy sets of a pod of this node.
    pub fn sets_of(&self, pod: &PodKey) -> Option<EndpointSets> {
        self.endpoints.get(pod).copied()
    }
    /// The policy sets of all pods of this node.
    pub fn endpoints(&self) -> impl Iterator<Item = (&PodKey, &EndpointSets)> {
        self.endpoints.iter()
    }
    /// The entries of a rule set.
    pub fn rule_entries(&self, id: u32) -> impl Iterator<Item = &super::flatten::Entry> {
        self.rule_sets.entries_of(id)
    }
    /// A policy set.
    pub fn set(&self, id: u32) -> Option<&Set> {
        self.sets.get(&id)
    }
    /// What an identity stands for.
    pub fn class(&self, identity: u32) -> Option<&Arc<Class>> {
        self.classes.get(identity)
    }
    /// What a set sees in an identity.
    pub fn view(&self, set: &Set, identity: u32) -> (Vec<bool>, Vec<crate::tables::NamedPort>) {
        set.sees(identity, &self.criteria, &self.classes)
            .unwrap_or_else(|| (vec![false; set.criteria.len()], Vec::new()))
    }
    /// The rule that a cookie names: its policy, its direction and its number in the object, from 0. None of 0, which names what no rule allows.
    pub fn rule_of(&self, cookie: u32) -> Option<(&Revision, Direction, usize)> {
        let named = self.cookies.get(cookie)?;
        Some((&named.revision, named.direction, named.n))
    }
    /// The cookies of the rules of a version of a policy, in their order; none if it is not in force.
    pub fn cookies_of(&self, revision: &Revision, direction: Direction) -> &[u32] {
        self.active.get(&(revision.number, direction)).map_or(&[], |a| &a.cookies)
    }
    /// Pods of another node that send under this label class from this address, if they have it by that alone: no pod of the class is known to have the address.
    pub fn sends_as(&self, address: IpAddr, class: u32) -> Option<&Alike> {
        let known = self.store.pod_at(address).and_then(|pod| self.store.group(pod.group));
        if class == identity::UNKNOWN || known.is_some_and(|group| group.class == class) {
            return None;
        }
        let (place, _) = self.store.senders.ways().find(|(_, way)| way.cidrs.iter().any(|c| c.contains(&address)))?;
        Some(&self.store.group(self.group_named((place, class))?)?.alike)
    }
    /// Packs what is kept for each address as closely as it goes.
    pub fn pack(&mut self) {
        self.store.pack();
        self.identities.pack();
        self.senders.pack();
        pack(&mut self.groups);
    }
    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        let of_set = |id: u32| {
            self.sets.get(&id).map_or(0, |s| {
                let rules: BTreeSet<u32> = s.peers.values().copied().chain([s.default]).collect();
                s.peers.len() + 1 + rules.into_iter().map(|r| self.rule_sets.len_of(r)).sum::<usize>()
            })
        };
        let peers: usize = self.sets.values().map(|s| s.peers.len() + 1).sum();
        Sizes {
            entries: peers + self.rule_sets.entries() + self.identities.len() + self.senders.len() + self.blocks.len(),
            most_of_endpoint: self.endpoints.values().map(|e| of_set(e.set_in) + of_set(e.set_out)).max().unwrap_or(0),
            identities: self.classes.count(),
        }
    }
}

/// The identities that each set is asked about.
fn by_set(touched: Touched) -> BTreeMap<u32, Vec<u32>> {
    let mut all: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (set, identity) in touched {
        all.entry(set).or_default().push(identity);
    }
    all
}
