//! Numbers of identities, policy sets and rule sets: one that has gone never means something again, so what a packet has read of one map is never
//! found under another meaning in the next. A rule's cookie names that rule alone, so no event names another one.
use std::collections::{BTreeMap, BTreeSet};

use bytemuck::pod_read_unaligned;
use cni_common::policy::{IDENTITY_OTHER, Identity, PeerKey, RULES_BY_PORT, Rule, RuleKey};
use proptest::prelude::*;
use serde_json::json;

use super::{
    moments::tell,
    naive::Objects,
    properties::event,
    random::{self, Dice, NODES},
};
use crate::policy::{
    Change, Engine, Image,
    change::Map,
    objects::{Direction, PolicyName},
    verdicts::{case::Op, world::Agent},
};

/// A kind of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Set,
    Identity,
    Rules,
    Cookie,
}

/// The numbers in a write.
fn numbers(change: &Change) -> Vec<(Kind, u32)> {
    match change {
        Change::Endpoint { sets, .. } => sets
            .iter()
            .flat_map(|s| [s.set_in, s.set_out])
            .filter(|set| *set != 0)
            .map(|set| (Kind::Set, set))
            .collect(),
        Change::Entry { map: Map::Peers, key, .. } => {
            let PeerKey { set, identity } = pod_read_unaligned(key);
            [(Kind::Set, set), (Kind::Identity, identity)].into_iter().filter(|(_, n)| *n != IDENTITY_OTHER).collect()
        }
        Change::Entry { map: Map::Rules, key, .. } => {
            let RuleKey { rules, .. } = pod_read_unaligned(&key[4..]);
            vec![(Kind::Rules, rules & !RULES_BY_PORT)]
        }
        Change::Entry { map: Map::Ports, key, .. } => {
            let RuleKey { rules, .. } = pod_read_unaligned(key);
            vec![(Kind::Rules, rules & !RULES_BY_PORT)]
        }
        Change::Entry { value: Some(value), .. } => {
            // Of who has an address there is more behind it.
            let identity = &value[..size_of::<Identity>()];
            vec![(Kind::Identity, pod_read_unaligned::<Identity>(identity).identity)]
        }
        Change::Entry { .. } => Vec::new(),
    }
}

/// The cookie in a write.
fn cookie(change: &Change) -> Option<u32> {
    let Change::Entry { map: Map::Rules | Map::Ports, value: Some(value), .. } = change else { return None };
    Some(pod_read_unaligned::<Rule>(value).cookie).filter(|cookie| *cookie != 0)
}

fn check(seed: u64, events: usize) -> Result<BTreeMap<Kind, usize>, TestCaseError> {
    let mut d = Dice::new(seed);
    let mut o = Objects::default();
    let mut agent = Agent { engine: Engine::new(NODES[0]), image: Image::default() };
    let mut met: BTreeSet<(Kind, u32)> = BTreeSet::new();
    let mut gone: BTreeSet<(Kind, u32)> = BTreeSet::new();
    // Of which policy, in which direction, and what the rule says.
    let mut named: BTreeMap<u32, (PolicyName, Direction, String)> = BTreeMap::new();
    for n in 0..NODES.len() + events {
        let op = match NODES.get(n) {
            Some(name) => {
                o.nodes.insert((*name).into(), random::node(&mut d, n));
                json!({"op": "apply", "kind": "Node", "name": name, "object": o.nodes[*name]})
            }
            None => event(&mut d, &mut o),
        };
        let op: Op = serde_json::from_value(op).unwrap();
        tell(&mut agent, &op);
        for change in agent.engine.compile() {
            let is_written = !matches!(change, Change::Entry { value: None, .. });
            for number in numbers(&change).into_iter().filter(|_| is_written) {
                prop_assert!(!gone.contains(&number), "{:?} again, by {:?}", number, op);
                met.insert(number);
            }
            agent.image.apply(change);
        }
        for cookie in agent.engine.contents().filter_map(|c| cookie(&c)) {
            let Some((revision, way, n)) = agent.engine.rule_of(cookie) else {
                return Err(TestCaseError::fail(format!("{cookie} names no rule")));
            };
            let says = revision.policy.rules(way).and_then(|rules| rules.get(n)).map(|rule| format!("{rule:?}"));
            let rule = (revision.policy.name.clone(), way, says.expect("a rule of the object"));
            prop_assert_eq!(
                named.entry(cookie).or_insert_with(|| rule.clone()),
                &rule,
                "cookie {} again, by {:?}",
                cookie,
                op
            );
        }
        let held: BTreeSet<(Kind, u32)> = agent.engine.contents().flat_map(|c| numbers(&c)).collect();
        gone.extend(met.difference(&held));
    }
    let mut counts = BTreeMap::new();
    gone.into_iter().for_each(|(kind, _)| *counts.entry(kind).or_default() += 1);
    let over = named.keys().filter(|cookie| agent.engine.rule_of(**cookie).is_none());
    counts.insert(Kind::Cookie, over.count());
    Ok(counts)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 6, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_number_that_has_gone_does_not_come_again(seed in any::<u64>(), events in 1_usize..80) {
        check(seed, events)?;
    }
}

#[test]
fn numbers_of_every_kind_go() {
    let mut all: BTreeMap<Kind, usize> = BTreeMap::new();
    for seed in 0..6 {
        check(seed, 80).unwrap().into_iter().for_each(|(kind, n)| *all.entry(kind).or_default() += n);
    }
    assert!(all.len() == 4 && all.values().all(|n| *n > 10), "{all:?}");
}
