//! The maps of policy follow the rows: what an event changes, in the order in which the engine has it written.
//!
//! A policy set that does not fit concerns its own pods alone: the engine plans without it, and tries it again when there is room. A plan of which a
//! write fails all the same ends there: the old policies stay whole, and pods that are new stay isolated, until all of it can be written beside what is
//! there ([`takeover`]). That is also how an agent begins.
mod feed;
mod takeover;
#[cfg(test)]
mod tests;
pub mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use bytemuck::pod_read_unaligned;
use cni_common::policy::{PeerKey, SET_AUDIT};
use tracing::{info, warn};

use self::feed::Feed;
use super::{
    delta::{Drifted, Target, full, kept},
    desired::Desired,
};
use crate::{
    compile::{Entries, EntryKey, Facts, Few},
    policy::{
        Change, Engine,
        change::Map,
        engine::{Floors, Room, Sizes},
    },
    tables::{Contents, PodKey, Row, Tables},
};

/// How the maps and what was compiled agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was compiled yet: the maps hold what a former agent has written.
    Before,
    /// The maps hold what was compiled.
    Live,
    /// What was compiled last is not, or not wholly, in the maps.
    Stale,
}

/// The policies of this node, and what the maps hold of them.
#[derive(Debug)]
pub struct Policies {
    node: String,
    /// The compiler.
    pub engine: Engine,
    feed: Feed,
    /// What the maps hold.
    actual: Entries<Few>,
    /// Entries of each map, by its id.
    counts: BTreeMap<u32, usize>,
    state: State,
    /// Writes and deletes so far.
    writes: u64,
    /// Why the maps do not hold what the objects say.
    problem: Option<String>,
    /// What the maps can hold.
    room: Room,
    /// Pods and identities of which it was told that they wait for room.
    told: (BTreeSet<PodKey>, usize),
}

/// How policy is on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The maps hold what the objects say.
    pub in_force: bool,
    /// Why they do not.
    pub problem: Option<String>,
    /// How much there is.
    pub sizes: Sizes,
    /// Writes and deletes since the agent started.
    pub writes: u64,
    /// Pods whose policies do not fit into the maps: they keep older ones, or stay isolated.
    pub waiting: usize,
    /// Classes of peers of which the maps cannot be told: isolated pods drop what they send.
    pub withheld: usize,
}

impl Policies {
    /// Takes over what the maps hold.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn adopt(facts: &Facts, target: &mut impl Target) -> io::Result<Self> {
        let actual: Entries<Few> = kept(target.dump_policy()?);
        let mut counts = BTreeMap::new();
        for key in actual.keys() {
            *counts.entry(key.map().id).or_default() += 1;
        }
        Ok(Self {
            node: facts.node.clone(),
            engine: Engine::new(&facts.node),
            feed: Feed::new(facts),
            actual,
            counts,
            state: State::Before,
            writes: 0,
            problem: None,
            room: Room::of_maps(),
            told: (BTreeSet::new(), 0),
        })
    }

    /// Whether policies have been written by this agent: what its pods' entries refer to is there.
    pub fn have_begun(&self) -> bool {
        self.state != State::Before
    }
    /// Whether the maps hold what the objects say.
    pub fn are_in_force(&self) -> bool {
        self.state == State::Live
    }
    /// Packs what is kept for each address of the cluster as closely as it goes.
    pub fn pack(&mut self) {
        self.actual.pack();
        self.engine.pack();
    }
    /// How it goes.
    pub fn summary(&self) -> Summary {
        let (waiting, withheld) = (self.engine.waiting().len(), self.engine.withheld().len());
        Summary {
            in_force: self.are_in_force() && waiting + withheld == 0,
            problem: self.problem.clone().or_else(|| self.wants_room()),
            sizes: self.engine.sizes(),
            writes: self.writes,
            waiting,
            withheld,
        }
    }
    /// What does not fit, in words.
    fn wants_room(&self) -> Option<String> {
        const NAMED: usize = 3;
        let (pods, identities) = (self.engine.waiting(), self.engine.withheld().len());
        let mut words = Vec::new();
        if !pods.is_empty() {
            let named: Vec<String> = pods.iter().take(NAMED).map(ToString::to_string).collect();
            let more = if pods.len() > NAMED { " and others" } else { "" };
            words.push(format!(
                "the policies of {} pods ({}{more}): they keep what was in force for them, and new ones stay isolated",
                pods.len(),
                named.join(", ")
            ));
        }
        if identities > 0 {
            words.push(format!("{identities} classes of peers: isolated pods drop what they send as PolicyUnknown"));
        }
        let [peers, rules, ports] = [Map::Peers, Map::Rules, Map::Ports].map(|map| map.spec().name);
        (!words.is_empty())
            .then(|| format!("maps {peers}, {rules} and {ports} have no room for {}", words.join("; for ")))
    }
    /// Says in the log what waits for room now, and what no longer does.
    fn tell(&mut self) {
        let now = (self.engine.waiting().clone(), self.engine.withheld().len());
        if now == self.told {
            return;
        }
        match self.wants_room() {
            Some(problem) => warn!(problem, "policies do not fit"),
            None => info!("the policies of all pods fit"),
        }
        self.told = now;
    }

    /// Brings the maps up to date with rows that have changed, once it is known what there is; `again`: what failed may be tried anew.
    /// Rows that cannot be applied are in the answer.
    pub fn follow(
        &mut self,
        rows: &BTreeSet<Row>,
        again: bool,
        (tables, desired): (&Tables, &mut Desired),
        target: &mut impl Target,
    ) -> BTreeMap<Row, String> {
        if !desired.heard.objects {
            return BTreeMap::new();
        }
        let concerned = |row: &Row| {
            matches!(row, Row::Namespace(_) | Row::Node(_) | Row::Pod(_) | Row::Policy(_) | Row::Endpoint(_))
        };
        let begins = self.state == State::Before;
        let mut failures = match self.state {
            State::Live => {
                let floors = self.engine.floors();
                self.feed.rows(rows, &tables.read(), &mut desired.numbers, &mut self.engine.store);
                if again {
                    self.engine.try_again();
                }
                let plan = self.engine.compile();
                self.carry_out(plan, floors, (tables, desired), target)
            }
            State::Before | State::Stale if begins || again || rows.iter().any(concerned) => {
                self.take_over((tables, desired), target)
            }
            State::Before | State::Stale => BTreeMap::new(),
        };
        self.tell();
        if let Some(problem) = &self.problem {
            let policies = rows.iter().filter(|row| matches!(row, Row::Policy(_)));
            failures.extend(policies.map(|row| (row.clone(), problem.clone())));
        }
        failures
    }

    /// Writes what an event changes.
    fn carry_out(
        &mut self,
        plan: Vec<Change>,
        before: Floors,
        (tables, desired): (&Tables, &mut Desired),
        target: &mut impl Target,
    ) -> BTreeMap<Row, String> {
        let mut failures = BTreeMap::new();
        if plan.is_empty() {
            return failures;
        }
        if let Err(problem) = self.fits(&plan) {
            self.fail(problem);
            return failures;
        }
        // What nothing refers to yet can be taken back.
        let mut fresh = Vec::new();
        let mut takes_effect = false;
        let mut moved = Vec::new();
        for change in plan {
            match change {
                Change::Endpoint { pod, sets } => {
                    match sets {
                        Some(sets) => desired.in_force.sets.insert(pod.clone(), sets),
                        None => desired.in_force.sets.remove(&pod),
                    };
                    moved.push(pod);
                    takes_effect = true;
                }
                Change::Entry { map, key, value } => {
                    failures.extend(flip(&mut moved, (tables, desired), target));
                    let fresh_by_itself = is_fresh(map, &key, before);
                    let key = EntryKey::of_policy(map, key);
                    // Who was not known at all has no flow that could be judged otherwise now.
                    let is_new = map == Map::Senders && !self.actual.contains_key(&key);
                    let grows = value.is_some() && (fresh_by_itself || is_new);
                    match self.write(&key, value.as_deref(), target) {
                        Ok(false) => {}
                        Ok(true) if grows => fresh.push(key),
                        Ok(true) => takes_effect = true,
                        Err(problem) => {
                            if !takes_effect {
                                self.take_back(&fresh, target);
                            }
                            self.fail(problem);
                            break;
                        }
                    }
                }
            }
        }
        failures.extend(flip(&mut moved, (tables, desired), target));
        if takes_effect {
            desired.raise_epoch(&tables.read());
            failures.extend(desired.delta.flush(target));
        }
        failures
    }

    /// Whether the maps have room at each write, in this order.
    fn fits<'a>(&self, plan: impl IntoIterator<Item = &'a Change> + Clone) -> Result<(), String> {
        // Mostly there is room for all that comes before anything goes.
        let mut most = self.counts.clone();
        for change in plan.clone() {
            if let Change::Entry { map, value: Some(_), .. } = change {
                *most.entry(map.spec().id).or_default() += 1;
            }
        }
        let max = |map: Map| map.spec().max_entries as usize;
        if Map::ALL.into_iter().all(|map| most.get(&map.spec().id).is_none_or(|n| *n <= max(map))) {
            return Ok(());
        }
        // What a map will hold otherwise than now.
        let mut there: BTreeMap<EntryKey, bool> = BTreeMap::new();
        let mut counts = self.counts.clone();
        for change in plan {
            let Change::Entry { map, key, value } = change else { continue };
            let key = EntryKey::of_policy(*map, key);
            let was = there.get(&key).copied().unwrap_or_else(|| self.actual.contains_key(&key));
            let count = counts.entry(map.spec().id).or_default();
            match (was, value.is_some()) {
                (false, true) => *count += 1,
                (true, false) => *count -= 1,
                _ => continue,
            }
            if *count > max(*map) {
                let name = map.spec().name;
                return Err(format!(
                    "map {name} holds {} entries, and more are needed: policies stay as they were",
                    max(*map)
                ));
            }
            there.insert(key, value.is_some());
        }
        Ok(())
    }

    fn fail(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            warn!(problem, "policies cannot be brought into force; those before stay, and new pods are isolated");
        }
        self.problem = Some(problem);
        if self.state == State::Live {
            self.state = State::Stale;
        }
    }
    fn recover(&mut self) {
        if self.problem.take().is_some() {
            info!("policies are in force again as the objects say");
        }
        self.state = State::Live;
    }

    /// Writes or deletes an entry if it is another in the map; whether it was.
    fn write(&mut self, key: &EntryKey, value: Option<&[u8]>, target: &mut impl Target) -> Result<bool, String> {
        let there = self.actual.get(key).map(|value| &**value);
        if there == value {
            return Ok(false);
        }
        self.writes += 1;
        let count = self.counts.entry(key.map().id).or_default();
        let done = match value {
            Some(value) => target.upsert(key, value).map(|()| {
                *count += usize::from(self.actual.insert(key, value.into()).is_none());
            }),
            None => target.delete(key).map(|()| *count -= usize::from(self.actual.remove(key).is_some())),
        };
        done.map(|()| true).map_err(|error| full(key.map(), &error))
    }
    fn take_back(&mut self, fresh: &[EntryKey], target: &mut impl Target) {
        for key in fresh {
            if let Err(error) = self.write(key, None, target) {
                warn!(error, "an entry that nothing refers to stays until policies are in force again");
            }
        }
    }

    /// Compares with the kernel and makes right what differs, which is in the answer; with it what could not be made right.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn verify(&mut self, target: &mut impl Target) -> io::Result<(Vec<Drifted>, String)> {
        let found = kept(target.dump_policy()?);
        let drifted = Drifted::between(&found, self.actual.iter(), |key| self.actual.contains_key(key));
        let mut failed = String::new();
        for d in &drifted {
            self.writes += 1;
            let done = match &d.should {
                Some(value) => target.upsert(&d.key, value),
                None => target.delete(&d.key),
            };
            if let Err(error) = done {
                failed = full(d.key.map(), &error);
            }
        }
        Ok((drifted, failed))
    }
}

/// Gives pods' endpoints the policy sets that are in force for them now.
fn flip(
    pods: &mut Vec<PodKey>,
    (tables, desired): (&Tables, &mut Desired),
    target: &mut impl Target,
) -> BTreeMap<Row, String> {
    if pods.is_empty() {
        return BTreeMap::new();
    }
    let pods: BTreeSet<PodKey> = pods.drain(..).collect();
    let mut failures = {
        let contents: &Contents = &tables.read();
        let of_pods = contents.endpoints.values().filter(|e| pods.contains(&e.pod()));
        let mut rows = of_pods.map(|e| Row::Endpoint(e.id)).collect();
        desired.follow(contents, &mut rows)
    };
    failures.extend(desired.delta.flush(target));
    failures
}

/// Whether nothing refers to an entry that is added: it is a rule set's, or about a policy set or an identity that is new.
fn is_fresh(map: Map, key: &[u8], before: Floors) -> bool {
    match map {
        Map::Rules | Map::Ports => true,
        Map::Peers if key.len() == size_of::<PeerKey>() => {
            let PeerKey { set, identity } = pod_read_unaligned(key);
            set & !SET_AUDIT > before.set || identity > before.identity
        }
        Map::Peers | Map::Identities4 | Map::Identities6 | Map::Blocks4 | Map::Blocks6 | Map::Senders => false,
    }
}
