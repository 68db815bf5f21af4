//! Where the maps have no room: whose policies wait for it, and which peers nobody can be told of.
//!
//! A policy set that does not fit beside what is there is none: its pods keep the sets that they have, whole and followed like any other, or stay
//! isolated if they are new. An identity whose entries do not fit into the sets that are there is withheld: its addresses are
//! [`IDENTITY_UNKNOWN`] in the maps, so that isolated pods drop what comes from them by that name. Both are tried again when there is room.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytemuck::try_pod_read_unaligned;
use cni_common::policy::{Holder, IDENTITY_UNKNOWN, PeerKey, RULES_BY_PORT, RuleKey};
use ipnet::IpNet;

use super::{EndpointSets, Engine, Floors};
use crate::{
    policy::{
        change::{Change, Map},
        objects::Direction,
        sets::{self, SetKey},
        store::Revision,
    },
    tables::PodKey,
};

/// Entries of the maps that grow by what policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of the map of peers.
    pub peers: usize,
    /// Of the map of rules.
    pub rules: usize,
    /// Of the map of rules for single ports.
    pub ports: usize,
}
impl Room {
    /// All that the maps can hold.
    pub fn of_maps() -> Self {
        let [peers, rules, ports] = [Map::Peers, Map::Rules, Map::Ports].map(|map| map.spec().max_entries as usize);
        Self { peers, rules, ports }
    }
    fn holds(self, used: Self) -> bool {
        used.peers <= self.peers && used.rules <= self.rules && used.ports <= self.ports
    }
}

/// What waits for room.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Pods whose policies do not fit.
    pub(super) pods: BTreeSet<PodKey>,
    /// Identities whose entries do not.
    pub(super) identities: BTreeSet<u32>,
    room: Room,
    /// How much was used when something was refused last.
    refused: Option<Room>,
    again: bool,
}
impl Default for Waiting {
    fn default() -> Self {
        Self { pods: BTreeSet::new(), identities: BTreeSet::new(), room: Room::of_maps(), refused: None, again: false }
    }
}

/// The policy sets that a pod's policies ask for.
type Asked = Option<[SetKey; 2]>;

impl Engine {
    /// From now on the maps have so much room for what this compiler has written.
    pub fn set_room(&mut self, room: Room) {
        self.waiting.room = room;
        self.rule_sets.set_room(room.ports);
        self.waiting.again = true;
    }
    /// What waits for room is tried again with the next change, whether or not there is more of it.
    pub fn try_again(&mut self) {
        self.waiting.again = true;
    }
    /// Pods of this node whose policies do not fit: they have older ones, or are isolated.
    pub fn waiting(&self) -> &BTreeSet<PodKey> {
        &self.waiting.pods
    }
    /// Identities whose entries do not fit: isolated pods take their addresses for unknown.
    pub fn withheld(&self) -> &BTreeSet<u32> {
        &self.waiting.identities
    }
    /// Whether an address has this identity, be it withheld or not.
    #[cfg(test)]
    pub(in crate::policy) fn has(&self, identity: u32, address: std::net::IpAddr) -> bool {
        let block = || self.block_of(address.into()).and_then(|net| self.blocks.get(&net).copied());
        self.identities.get(address).map(|holder| holder.identity).or_else(block) == Some(identity)
    }
    /// The policies of a pod that waits, in both directions.
    pub fn awaited(&self, pod: &PodKey) -> impl Iterator<Item = Arc<Revision>> {
        let row = self.store.pod(pod).filter(|_| self.waiting.pods.contains(pod));
        row.into_iter().flat_map(|row| Direction::ALL.into_iter().flat_map(|d| self.store.policies_of(row, d)))
    }

    /// What is used now.
    pub(super) fn used(&self) -> Room {
        let ports = self.rule_sets.by_port();
        Room {
            peers: self.sets.values().map(|s| s.peers.len() + 1).sum(),
            rules: self.rule_sets.entries() - ports,
            ports,
        }
    }
    /// Whether there is room for what a part of a plan has added before it takes out what goes.
    pub(super) fn has_room(&self, part: &[Change]) -> bool {
        let mut peak = self.used();
        for change in part {
            match change {
                Change::Entry { map: Map::Peers, value: None, .. } => peak.peers += 1,
                Change::Entry { map: Map::Rules, value: None, .. } => peak.rules += 1,
                Change::Entry { map: Map::Ports, value: None, .. } => peak.ports += 1,
                Change::Entry { .. } | Change::Endpoint { .. } => {}
            }
        }
        self.waiting.room.holds(peak)
    }
    fn refuse(&mut self) {
        self.waiting.refused = Some(self.used());
    }

    /// Pods by the policy sets that they ask for: those of one workload are treated alike.
    pub(super) fn by_asked(&self, pods: BTreeSet<PodKey>) -> BTreeMap<Asked, BTreeSet<PodKey>> {
        let mut all: BTreeMap<Asked, BTreeSet<PodKey>> = BTreeMap::new();
        for pod in pods {
            let row = self.store.pod(&pod).filter(|p| p.is_local());
            let asked = row.map(|row| {
                Direction::ALL.map(|direction| {
                    let policies = sets::in_order(self.store.policies_of(row, direction));
                    sets::key(direction, &policies, &self.store.alike(row).ports)
                })
            });
            all.entry(asked).or_default().insert(pod);
        }
        all
    }

    /// Pods whose policies do not fit wait.
    pub(super) fn put_off(&mut self, pods: BTreeSet<PodKey>) {
        self.waiting.pods.extend(pods);
        self.refuse();
    }
    /// Tries again what waits, if there is more room than when it was refused.
    pub(super) fn resume(&mut self, plan: &mut Vec<Change>) {
        loop {
            let used = self.used();
            let has_grown = self.waiting.refused.is_none_or(|then| used.peers < then.peers || used.rules < then.rules);
            if !(has_grown || std::mem::take(&mut self.waiting.again)) {
                return;
            }
            self.waiting.refused = None;
            self.admit(plan);
            // Peers that are unknown cut off pods that are whole; so they come first.
            for pods in self.by_asked(self.waiting.pods.clone()).into_values() {
                if self.exchange(&pods, plan) {
                    self.waiting.pods.retain(|pod| !pods.contains(pod));
                } else {
                    self.refuse();
                }
            }
            if self.waiting.refused.is_none() {
                return;
            }
        }
    }

    /// Withholds identities until there is room for what a part of a plan adds, the newest first.
    pub(super) fn withhold(&mut self, part: &mut Vec<Change>, before: Floors) {
        while !self.has_room(part) {
            let added = part.iter().filter_map(|change| match change {
                Change::Entry { map: Map::Peers, key, value: Some(_) } => try_pod_read_unaligned::<PeerKey>(key).ok(),
                _ => None,
            });
            let Some(identity) = added.map(|key| key.identity).filter(|i| *i != 0).max() else { return };
            self.refuse();
            self.waiting.identities.insert(identity);
            let sets: Vec<u32> = self.criteria.sets_of(identity).into_iter().collect();
            let mut gone = Vec::new();
            for id in sets {
                if let Some(rules) = self.sets.get_mut(&id).and_then(|s| s.peers.remove(&identity)) {
                    self.rule_sets.release(rules);
                    gone.push(Change::peer(id, identity, None));
                }
            }
            let mut moves = self.shown_as(identity);
            part.append(&mut moves);
            part.append(&mut gone);
            self.rule_sets.sweep(part);
            *part = net(std::mem::take(part), before);
        }
    }
    /// Identities that were withheld get their entries, as far as there is room, and addresses their identities.
    fn admit(&mut self, plan: &mut Vec<Change>) {
        self.rule_sets.sweep(plan);
        for identity in self.waiting.identities.clone() {
            self.waiting.identities.remove(&identity);
            let sets = self.criteria.sets_of(identity);
            let mut part = Vec::new();
            for id in &sets {
                self.say(*id, [identity], &mut part, None);
            }
            if self.has_room(&part) {
                part.extend(self.shown_as(identity));
                plan.append(&mut part);
                continue;
            }
            self.waiting.identities.insert(identity);
            for id in sets {
                if let Some(rules) = self.sets.get_mut(&id).and_then(|s| s.peers.remove(&identity)) {
                    self.rule_sets.release(rules);
                }
            }
            // Nothing of it is written.
            self.rule_sets.sweep(&mut part);
            self.refuse();
        }
    }
    /// An identity as the maps show it.
    pub(super) fn shown(&self, identity: u32) -> u32 {
        if self.waiting.identities.contains(&identity) { IDENTITY_UNKNOWN } else { identity }
    }
    /// Writes of all that has an identity.
    fn shown_as(&self, identity: u32) -> Vec<Change> {
        let shown = Some(self.shown(identity));
        let blocks: Vec<&IpNet> = self.blocks.iter().filter(|(_, id)| **id == identity).map(|(net, _)| net).collect();
        let addresses = self.identities.iter().filter(|(_, holder)| holder.identity == identity);
        let blocks = blocks.into_iter().map(|net| Change::block(*net, shown));
        let addresses = addresses.map(|(a, holder)| Change::address(a, Some(self.shown_holder(*holder))));
        blocks.chain(addresses).chain(self.senders_with(identity).map(|s| Change::sender(&s, shown))).collect()
    }
    /// Who has an address, as the maps show it.
    pub(super) fn shown_holder(&self, holder: Holder) -> Holder {
        Holder { identity: self.shown(holder.identity), ..holder }
    }

    /// Gives pods the sets that they ask for. Without room for those that are new nothing changes but what events ask of the sets that are
    /// there, and the answer is no.
    pub(super) fn exchange(&mut self, pods: &BTreeSet<PodKey>, plan: &mut Vec<Change>) -> bool {
        let before = self.floors();
        let mut part = Vec::new();
        let taken: Vec<(PodKey, Option<EndpointSets>)> = pods
            .iter()
            .map(|pod| {
                let row = self.store.pod(pod).filter(|p| p.is_local()).cloned();
                let sets = row.map(|row| EndpointSets {
                    set_in: self.take_set(&row, Direction::Ingress, &mut part),
                    set_out: self.take_set(&row, Direction::Egress, &mut part),
                });
                (pod.clone(), sets)
            })
            .collect();
        self.pass(&mut part);
        if !self.has_room(&part) {
            if self.last_set > before.set {
                for sets in taken.iter().filter_map(|(_, sets)| *sets) {
                    self.release_set(sets.set_in, &mut part);
                    self.release_set(sets.set_out, &mut part);
                }
                self.pass(&mut part);
                self.rule_sets.sweep(&mut part);
                part = net(part, before);
                self.withhold(&mut part, before);
                plan.append(&mut part);
                return false;
            }
            self.withhold(&mut part, before);
        }
        plan.append(&mut part);
        let mut left = Vec::new();
        for (pod, sets) in taken {
            let old = match sets {
                Some(sets) => self.endpoints.insert(pod.clone(), sets),
                None => self.endpoints.remove(&pod),
            };
            left.extend(old);
            if sets != old {
                plan.push(Change::Endpoint { pod, sets });
            }
        }
        let before = self.floors();
        for old in left {
            self.release_set(old.set_in, plan);
            self.release_set(old.set_out, plan);
        }
        self.pass(&mut part);
        self.withhold(&mut part, before);
        plan.append(&mut part);
        self.rule_sets.sweep(plan);
        true
    }
}

/// What a part of a plan comes to that gives no pod another set: each key's last write, in the order of a pass. `before`: the numbers that were given
/// before it, so that nothing is taken out that was never there.
fn net(part: Vec<Change>, before: Floors) -> Vec<Change> {
    let mut last: BTreeMap<(Map, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
    for change in part {
        if let Change::Entry { map, key, value } = change {
            last.insert((map, key), value);
        }
    }
    let mut all: Vec<(u8, Change)> = Vec::new();
    for ((map, key), value) in last {
        let is_new_rule =
            |key: &[u8]| try_pod_read_unaligned(key).is_ok_and(|k: RuleKey| k.rules & !RULES_BY_PORT > before.rules);
        let is_new = match map {
            // Behind the prefix's length.
            Map::Rules => key.get(4..).is_some_and(is_new_rule),
            Map::Ports => is_new_rule(&key),
            Map::Peers => {
                try_pod_read_unaligned(&key).is_ok_and(|k: PeerKey| k.set > before.set || k.identity > before.identity)
            }
            Map::Identities4 | Map::Identities6 | Map::Blocks4 | Map::Blocks6 | Map::Senders => false,
        };
        let place = match (map, &value) {
            (Map::Rules | Map::Ports | Map::Peers, None) if is_new => continue,
            (Map::Rules | Map::Ports, Some(_)) => 0,
            (Map::Peers, Some(_)) if is_new => 1,
            (Map::Peers, Some(_)) => 2,
            (Map::Identities4 | Map::Identities6 | Map::Blocks4 | Map::Blocks6 | Map::Senders, _) => 3,
            (Map::Peers, None) => 4,
            (Map::Rules | Map::Ports, None) => 5,
        };
        all.push((place, Change::Entry { map, key, value }));
    }
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, change)| change).collect()
}
