//! Between any two writes every pod's policy is whole: what was before an event, or what is after it.
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;

use super::{
    naive::{Objects, addresses},
    properties::event,
    random::{self, Dice, NODES, OUTSIDE, PROBES},
};
use crate::{
    policy::{
        Change, Engine, Image,
        change::Map,
        objects::{Direction, Read},
        store::Event,
        verdicts::{
            case::{Op, Probe},
            world::{Agent, Told, event as read},
        },
    },
    tables::PodKey,
};

/// A flow of a pod: direction, the pod's own address, its peer's, and the probe. A pod whose address has changed has other flows.
pub type Flow = (PodKey, Direction, (IpAddr, IpAddr), usize);

/// What a node's agent says of all flows of its pods: may it pass?
pub fn verdicts(agent: &Agent, o: &Objects) -> Vec<(Flow, bool)> {
    let peers: Vec<IpAddr> = o
        .pods
        .values()
        .chain(o.nodes.values())
        .flat_map(|v| addresses(&v["ips"]))
        .chain(OUTSIDE.iter().map(|a| a.parse().unwrap()))
        .collect();
    let mut all = Vec::new();
    for pod in agent.image.endpoints.keys() {
        let Some(object) = o.pods.get(&format!("{}/{}", pod.namespace(), pod.name())) else { continue };
        for own in addresses(&object["ips"]) {
            for peer in peers.iter().filter(|p| p.is_ipv4() == own.is_ipv4()) {
                for (n, probe) in PROBES.iter().enumerate().step_by(2) {
                    let probe: Probe = probe.parse().unwrap();
                    let what = (probe.number(own.is_ipv4()), probe.port);
                    for (direction, ends) in [(Direction::Egress, (own, *peer)), (Direction::Ingress, (*peer, own))] {
                        let ruling = agent.ruling(pod, direction, false, ends, what).unwrap();
                        all.push(((pod.clone(), direction, (own, *peer), n), ruling.is_allowed()));
                    }
                }
            }
        }
    }
    all
}

/// A change of a namespace is many of its pods', seen from both ends of a flow: that is not one moment.
fn is_one_moment(op: &Op) -> bool {
    op.kind != crate::policy::verdicts::case::ObjectKind::Namespace
}

fn check(seed: u64, events: usize) -> Result<usize, TestCaseError> {
    let mut d = Dice::new(seed);
    let mut o = Objects::default();
    let mut agent = Agent { engine: Engine::new(NODES[0]), image: Image::default() };
    for (n, name) in NODES.into_iter().enumerate() {
        o.nodes.insert(name.into(), random::node(&mut d, n));
        let op = json!({"op": "apply", "kind": "Node", "name": name, "object": o.nodes[name]});
        tell(&mut agent, &serde_json::from_value(op).unwrap());
    }
    // Something is there before.
    for _ in 0..40 {
        let op: Op = serde_json::from_value(event(&mut d, &mut o)).unwrap();
        tell(&mut agent, &op);
    }
    agent.engine.compile().into_iter().for_each(|c| agent.image.apply(c));
    let mut moments = 0;
    for _ in 0..events {
        let before_objects = o.clone();
        let op: Op = serde_json::from_value(event(&mut d, &mut o)).unwrap();
        tell(&mut agent, &op);
        let before = verdicts(&agent, &before_objects);
        let changes = agent.engine.compile();
        let mut after = Agent { engine: Engine::new(NODES[0]), image: agent.image.clone() };
        changes.iter().for_each(|c| after.image.apply(c.clone()));
        let goal = verdicts(&after, &o);
        for (n, change) in changes.iter().enumerate() {
            agent.image.apply(change.clone());
            if !is_one_moment(&op) {
                continue;
            }
            moments += 1;
            for (flow, now) in verdicts(&agent, &o) {
                let of = |all: &[(_, bool)]| all.iter().find(|(f, _)| *f == flow).map(|(_, may)| *may);
                let (was, will) = (of(&before), of(&goal));
                prop_assert!(
                    was.is_none() || will.is_none() || was == Some(now) || will == Some(now),
                    "{:?} is {} after write {} of {:?}: {:#?}",
                    flow,
                    now,
                    n,
                    op,
                    changes
                );
            }
        }
        prop_assert_eq!(&agent.image, &after.image);
        let mut anew = Image::default();
        agent.engine.contents().for_each(|c| anew.apply(c));
        prop_assert_eq!(&anew, &agent.image);
        prop_assert_eq!(agent.engine.sizes().entries, agent.image.len());
        needed_only(&changes)?;
    }
    Ok(moments)
}

/// Nothing is written twice alike.
fn needed_only(changes: &[Change]) -> Result<(), TestCaseError> {
    let mut last = std::collections::BTreeMap::new();
    for change in changes {
        if let Change::Entry { map, key, value } = change {
            let before = last.insert((*map, key.clone()), value.clone());
            prop_assert!(before.as_ref() != Some(value), "written again: {:?}", change);
            // A rule set never changes.
            prop_assert!(![Map::Rules, Map::Ports].contains(map) || before.is_none() || value.is_none());
        }
    }
    Ok(())
}

pub fn tell(agent: &mut Agent, op: &Op) {
    match read(op).unwrap() {
        Told::Event(event) => agent.engine.store.handle(&event),
        Told::Policy(read) => {
            let Read { policy, .. } = read.unwrap();
            agent.engine.store.handle(&Event::Policy(policy.name.clone(), Some(policy)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 12, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_moment_shows_the_old_policy_or_the_new(seed in any::<u64>(), events in 1_usize..30) {
        check(seed, events)?;
    }
}

#[test]
fn there_are_moments_between_writes() {
    let moments: usize = (0..4).map(|seed| check(seed, 30).unwrap()).sum();
    assert!(moments > 200, "{moments}");
}
