//! All policies are written anew beside what the maps hold: by an agent that begins, and after something could not be written.
//!
//! No number is used that the maps hold. First all new policy sets are written, and what each says of the identities that addresses still have;
//! then pods get their new sets, one by one; then addresses their new identities; then the rest goes. So each packet meets, at any moment, the old
//! policies or the new ones, and where nothing has changed meanwhile the verdict is the same throughout.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bytemuck::{pod_read_unaligned, try_pod_read_unaligned};
use cni_common::{
    maps::{Endpoint, Local},
    policy::{IDENTITY_UNKNOWN, PeerKey, PeerRules, RULES_BY_PORT, RULES_DENY_ALL, RuleKey, SET_AUDIT},
    schema,
};
use ipnet::IpNet;

use super::{
    super::{delta::Target, desired::Desired},
    Policies, flip,
};
use crate::{
    compile::{EntryKey, SET_ISOLATED},
    policy::{
        Change, Engine,
        change::Map,
        engine::{EndpointSets, Floors, Room},
    },
    tables::{PodKey, Row, Tables},
};

impl Policies {
    /// Writes everything anew. What fails before pods have their new sets is taken back.
    pub(super) fn take_over(
        &mut self,
        (tables, desired): (&Tables, &mut Desired),
        target: &mut impl Target,
    ) -> BTreeMap<Row, String> {
        let written = desired.delta.writes();
        let mut engine = Engine::after(&self.node, self.numbers(desired));
        let held = |map: Map| self.counts.get(&map.spec().id).copied().unwrap_or_default();
        let beside = Room {
            peers: self.room.peers.saturating_sub(held(Map::Peers)),
            rules: self.room.rules.saturating_sub(held(Map::Rules)),
            ports: self.room.ports.saturating_sub(held(Map::Ports)),
        };
        let is_first = held(Map::Peers) == 0;
        engine.set_room(beside);
        self.feed.all(&tables.read(), &mut desired.numbers, &mut engine.store);
        engine.compile();
        // Where pods have policies, none of them may become another's or nobody's.
        if !(is_first || engine.waiting().is_empty() && engine.withheld().is_empty()) {
            self.fail("the maps have no room for all policies beside those that a former agent wrote, or that could not be changed: these stay".into());
            return BTreeMap::new();
        }
        engine.set_room(self.room);
        let mut plan = Plan::of(&engine);
        plan.sets.extend(self.bridges(&engine));
        let all = || plan.sets.iter().chain(&plan.identities);
        if let Err(problem) = self.fits(all()) {
            self.fail(problem);
            return BTreeMap::new();
        }
        let mut fresh = Vec::new();
        for (key, value) in entries(plan.sets) {
            match self.write(&key, value.as_deref(), target) {
                Ok(_) => fresh.push(key),
                Err(problem) => {
                    self.take_back(&fresh, target);
                    self.fail(problem);
                    return BTreeMap::new();
                }
            }
        }
        self.engine = engine;
        let mut pods: Vec<PodKey> = desired.in_force.sets.keys().cloned().collect();
        desired.in_force.sets = plan.endpoints;
        pods.extend(tables.read().endpoints.values().filter(|e| e.is_kubernetes()).map(|e| e.pod()));
        desired.heard.policies = true;
        let mut failures = flip(&mut pods, (tables, desired), target);
        let mut problem = None;
        let wanted: BTreeMap<EntryKey, Option<Vec<u8>>> = entries(plan.identities).collect();
        // From an address that is not named any more its prefix is told.
        let gone = self.actual.keys().filter(|k| is_identity(k) && !wanted.contains_key(k));
        let gone: Vec<_> = gone.map(|k| (k, None)).collect();
        for (key, value) in wanted.into_iter().chain(gone) {
            if let Err(e) = self.write(&key, value.as_deref(), target) {
                problem = Some(e);
            }
        }
        // Where no policy is or was, nothing can be revoked.
        let judges = self.actual.keys().any(|key| key.map().id == schema::POLICY_PEER.id);
        if judges || desired.delta.writes() != written {
            desired.raise_epoch(&tables.read());
            failures.extend(desired.delta.flush(target));
        }
        if problem.is_none() && failures.is_empty() {
            let kept: BTreeSet<EntryKey> = entries(self.engine.contents()).map(|(key, _)| key).collect();
            let left: Vec<EntryKey> = self.actual.keys().filter(|k| !kept.contains(k)).collect();
            for key in left {
                problem = self.write(&key, None, target).err().or(problem);
            }
        }
        self.recover();
        if let Some(problem) = problem {
            self.fail(problem);
        }
        failures
    }

    /// The highest numbers that the maps hold or packets may have read of them.
    fn numbers(&self, desired: &Desired) -> Floors {
        let mut n = self.engine.floors();
        for (key, value) in self.actual.iter() {
            let id = key.map().id;
            if id == schema::POLICY_PEER.id {
                if let (Ok(k), Ok(v)) = (try_pod_read_unaligned(&key.key), try_pod_read_unaligned(value)) {
                    let (PeerKey { set, identity }, PeerRules { rules }) = (k, v);
                    n.set = n.set.max(set & !SET_AUDIT);
                    n.identity = n.identity.max(identity);
                    n.rules = n.rules.max(rules & !RULES_BY_PORT);
                }
            } else if id == schema::POLICY_RULE.id || id == schema::POLICY_PORT.id {
                // Of a prefix behind its length.
                let from = key.key.len().saturating_sub(size_of::<RuleKey>());
                let read = key.key.get(from..).and_then(|k| try_pod_read_unaligned(k).ok());
                n.rules = n.rules.max(read.map_or(0, |k: RuleKey| k.rules & !RULES_BY_PORT));
            } else if identity_in(value) != IDENTITY_UNKNOWN {
                n.identity = n.identity.max(identity_in(value));
            }
        }
        let of_pods = desired.delta.held_by_kernel(&schema::ENDPOINTS).filter_map(|value| {
            let e: Endpoint = try_pod_read_unaligned(value).ok()?;
            Some([e.set_in, e.set_out])
        });
        let of_addresses = [&schema::LOCAL4, &schema::LOCAL6].into_iter().flat_map(|map| {
            desired.delta.held_by_kernel(map).filter_map(|value| {
                let l: Local = try_pod_read_unaligned(value).ok()?;
                Some([l.set_in, l.set_out])
            })
        });
        let sets = of_pods.chain(of_addresses).flatten().filter(|set| *set != SET_ISOLATED).map(|set| set & !SET_AUDIT);
        n.set = n.set.max(sets.max().unwrap_or_default());
        n
    }

    /// What new policy sets say of identities that addresses have in the maps. Of addresses that have one identity there and are told apart now,
    /// so that something has changed meanwhile, it denies until they have the new ones.
    fn bridges(&self, engine: &Engine) -> Vec<Change> {
        let mut now: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let senders = engine.senders().map(|(sender, id)| Change::sender(&sender, Some(id)));
        let senders: BTreeMap<EntryKey, u32> =
            entries(senders).map(|(key, value)| (key, value.map_or(0, |v| identity_in(&v)))).collect();
        for (key, value) in self.actual.iter().filter(|(key, _)| is_identity(key)) {
            // It is no set's.
            if identity_in(value) == IDENTITY_UNKNOWN {
                continue;
            }
            let new = if key.map().id == schema::SENDERS.id {
                let Some(new) = senders.get(&key) else { continue };
                *new
            } else {
                let Some(net) = prefix(&key) else { continue };
                let is_address = net.prefix_len() == net.max_prefix_len() && !is_block(&key);
                if is_address { engine.identity_of(net.addr()) } else { engine.identity_of_prefix(net) }
            };
            now.entry(identity_in(value)).or_default().insert(new);
        }
        let mut bridges = Vec::new();
        for (id, set) in engine.sets() {
            for (old, new) in &now {
                let says: BTreeSet<u32> =
                    new.iter().map(|i| set.peers.get(i).copied().unwrap_or(set.default)).collect();
                let rules = match (says.first(), says.len()) {
                    (Some(rules), 1) => *rules,
                    _ => RULES_DENY_ALL,
                };
                if rules != set.default {
                    bridges.push(Change::peer(id, *old, Some(rules)));
                }
            }
        }
        bridges
    }
}

/// All that is to be written, by when.
#[derive(Default)]
struct Plan {
    sets: Vec<Change>,
    endpoints: BTreeMap<PodKey, EndpointSets>,
    identities: Vec<Change>,
}
impl Plan {
    fn of(engine: &Engine) -> Self {
        let mut plan = Self::default();
        for change in engine.contents() {
            match change {
                Change::Endpoint { pod, sets } => plan.endpoints.extend(sets.map(|sets| (pod, sets))),
                Change::Entry { map: Map::Rules | Map::Ports | Map::Peers, .. } => plan.sets.push(change),
                Change::Entry { .. } => plan.identities.push(change),
            }
        }
        plan
    }
}

fn entries(changes: impl IntoIterator<Item = Change>) -> impl Iterator<Item = (EntryKey, Option<Vec<u8>>)> {
    changes.into_iter().filter_map(|change| match change {
        Change::Entry { map, key, value } => Some((EntryKey::of_policy(map, key), value)),
        Change::Endpoint { .. } => None,
    })
}

fn is_identity(key: &EntryKey) -> bool {
    [schema::IDENTITY4.id, schema::IDENTITY6.id, schema::SENDERS.id].contains(&key.map().id) || is_block(key)
}
/// The identity that an entry gives: in all of these maps it comes first.
fn identity_in(value: &[u8]) -> u32 {
    value.first_chunk().copied().map_or(0, u32::from_ne_bytes)
}
fn is_block(key: &EntryKey) -> bool {
    [schema::BLOCK4.id, schema::BLOCK6.id].contains(&key.map().id)
}

/// The address or prefix that a key is about.
fn prefix(key: &EntryKey) -> Option<IpNet> {
    let (bits, octets) = match key.key.split_first_chunk::<4>() {
        Some((bits, octets)) if is_block(key) => (Some(u32::from_ne_bytes(*bits)), octets),
        _ => (None, &*key.key),
    };
    let address = match octets.len() {
        4 => IpAddr::from(pod_read_unaligned::<[u8; 4]>(octets)),
        16 => IpAddr::from(pod_read_unaligned::<[u8; 16]>(octets)),
        _ => return None,
    };
    match bits {
        Some(bits) => IpNet::new(address, u8::try_from(bits).ok()?).ok(),
        None => Some(address.into()),
    }
}
