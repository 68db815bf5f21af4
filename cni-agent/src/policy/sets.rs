//! Policy sets: all policies that hold for a pod in one direction. What a set means never changes; its members do.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    classes::Classes,
    criteria::{Criteria, Criterion},
    flatten::{Clause, Content, Program, View, Who, flatten},
    objects::{Direction, Kind, Mode, Peers, Ports, Tier},
    store::Revision,
};
use crate::tables::NamedPort;

/// What two pods must share to have one policy set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetKey {
    /// The direction.
    pub direction: Direction,
    /// Versions of the policies, in the order in which they are asked.
    pub revisions: Vec<u64>,
    /// For ingress, what the pod itself calls the named ports that the policies ask for.
    pub ports: Vec<NamedPort>,
}

/// A policy set.
#[derive(Debug)]
pub struct Set {
    /// What makes it.
    pub key: Arc<SetKey>,
    /// Its policies, in the order in which they are asked.
    pub policies: Vec<Arc<Revision>>,
    /// Directions of pods that have it.
    pub users: usize,
    /// Its policies, compiled.
    pub program: Program,
    /// What it asks of a peer.
    pub criteria: Vec<u32>,
    /// For egress, the names of ports that it asks a peer for.
    names: BTreeSet<String>,
    /// The rule set of a peer that meets no criterion.
    pub default: u32,
    /// The rule sets of identities that have another.
    pub peers: BTreeMap<u32, u32>,
}

/// The policies in the order in which they are asked: Admin tier, NetworkPolicies, Baseline tier; in a tier by priority, then by name.
pub fn in_order(mut policies: Vec<Arc<Revision>>) -> Vec<Arc<Revision>> {
    policies.sort_by(|a, b| (place(a), &a.policy.name).cmp(&(place(b), &b.policy.name)));
    policies
}
fn place(r: &Revision) -> (u8, u16) {
    match r.policy.kind {
        Kind::Cluster { tier: Tier::Admin, priority } => (0, priority),
        Kind::Network => (1, 0),
        Kind::Cluster { tier: Tier::Baseline, priority } => (2, priority),
    }
}

/// Whether all of these policies are in audit mode.
pub fn only_audit(policies: &[Arc<Revision>]) -> bool {
    policies.iter().all(|r| r.policy.mode == Mode::Audit)
}

/// What makes a pod's set, of policies in order.
pub fn key(direction: Direction, policies: &[Arc<Revision>], ports: &[NamedPort]) -> SetKey {
    let names: BTreeSet<&str> = match direction {
        Direction::Ingress => policies.iter().flat_map(|r| names(r, direction)).collect(),
        Direction::Egress => BTreeSet::new(),
    };
    SetKey {
        direction,
        revisions: policies.iter().map(|r| r.number).collect(),
        ports: ports.iter().filter(|p| names.contains(p.name.as_str())).cloned().collect(),
    }
}
fn names(r: &Revision, direction: Direction) -> impl Iterator<Item = &str> {
    r.policy.rules(direction).into_iter().flatten().flat_map(|rule| rule.ports.names())
}

impl Set {
    /// Compiles policies, in order; `cookies` gives each version of a policy the cookies of its rules. Rule sets are not looked for yet.
    pub fn new<'a>(
        id: u32,
        key: Arc<SetKey>,
        policies: Vec<Arc<Revision>>,
        cookies: impl Fn(u64) -> &'a [u32],
        criteria: &mut Criteria,
    ) -> Self {
        let direction = key.direction;
        let mut asked: Vec<u32> = Vec::new();
        let mut ask = |what: Criterion| {
            let criterion = criteria.take(what, id);
            asked.iter().position(|c| *c == criterion).unwrap_or_else(|| {
                asked.push(criterion);
                asked.len() - 1
            })
        };
        let mut program = Program::default();
        let mut port_names = BTreeSet::new();
        for revision in &policies {
            let audited = revision.policy.mode == Mode::Audit;
            program.audits |= audited;
            let tier = match revision.policy.kind {
                Kind::Cluster { tier: Tier::Admin, .. } => &mut program.admin,
                Kind::Cluster { tier: Tier::Baseline, .. } => &mut program.baseline,
                Kind::Network => {
                    if audited {
                        program.would_isolate = true;
                    } else {
                        program.isolated = true;
                    }
                    &mut program.network
                }
            };
            let rules = revision.policy.rules(direction).into_iter().flatten();
            for (cookie, rule) in cookies(revision.number).iter().copied().zip(rules) {
                let who = match &rule.peers {
                    Peers::Any => Who::Any,
                    Peers::Of(list) => Who::Of(list.iter().map(|p| ask(Criterion::Peer(p.clone()))).collect()),
                };
                let ports = match &rule.ports {
                    Ports::All => None,
                    Ports::Of(list) => Some(list.clone()),
                };
                tier.push(Clause { action: rule.action, who, ports, audited, cookie });
            }
            if direction == Direction::Egress {
                for name in names(revision, direction) {
                    ask(Criterion::Port(name.to_owned()));
                    port_names.insert(name.to_owned());
                }
            }
        }
        Self {
            key,
            policies,
            users: 0,
            program,
            criteria: asked,
            names: port_names,
            default: 0,
            peers: BTreeMap::new(),
        }
    }

    /// What it says of a peer that meets no criterion.
    pub fn of_others(&self) -> Content {
        flatten(&self.program, &View { meets: &|_| false, ports: &self.key.ports })
    }
    /// What it sees in an identity: peers with equal answers are treated alike. `None` if it sees nothing.
    pub fn sees(&self, identity: u32, criteria: &Criteria, classes: &Classes) -> Option<(Vec<bool>, Vec<NamedPort>)> {
        let met: Vec<bool> = self.criteria.iter().map(|c| criteria.is_met(*c, identity)).collect();
        if !met.contains(&true) {
            return None;
        }
        let ports = classes.get(identity).map_or(&[][..], |c| c.ports());
        Some((met, ports.iter().filter(|p| self.names.contains(&p.name)).cloned().collect()))
    }
    /// What it says of a peer with this view.
    pub fn of_view(&self, met: &[bool], ports: &[NamedPort]) -> Content {
        let ports = match self.key.direction {
            Direction::Ingress => &self.key.ports,
            Direction::Egress => ports,
        };
        flatten(&self.program, &View { meets: &|c| met.get(c).copied().unwrap_or_default(), ports })
    }
}
