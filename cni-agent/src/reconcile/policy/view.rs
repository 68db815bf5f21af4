//! Policies in words, for those who look at them.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use cni_common::{
    drop::DropReason,
    policy::{IDENTITY_OTHER, RULE_PROTO_BITS, RULES_ALLOW_ALL, RULES_DENY_ALL, SET_NONE},
};

use super::Policies;
use crate::{
    api::types::{DropEvent, PolicyHits, PolicyPeer, PolicyRule, PolicySet, PolicyStatus},
    datapath::hits::Hits,
    policy::{
        classes::{Class, Owner},
        flatten::{Entry, Verdict},
        objects::{Direction, Flaw, Kind, Mode, PolicyName, Read},
        store::{Alike, Revision},
    },
    tables::{PodKey, Protocol},
};

impl Policies {
    /// A policy, as it is in force here, and what has come of it.
    pub fn describe(&self, read: &Read, kernel: String, hits: &Hits) -> PolicyStatus {
        let policy = &read.policy;
        let rules = self.rules(&policy.name, hits);
        let sets: Vec<PolicySet> = self
            .engine
            .sets()
            .filter(|(_, set)| set.policies.iter().any(|r| r.policy.name == policy.name))
            .map(|(id, _)| self.set(id, hits))
            .collect();
        let mut all = PolicyHits::default();
        rules.iter().for_each(|rule| all += rule.hits);
        if policy.kind == Kind::Network {
            // Where no rule decides, it is one of those that isolate the pod, or would.
            for set in &sets {
                match policy.mode {
                    Mode::Enforce => all.denied += set.hits.denied,
                    Mode::Audit => all.audited += set.hits.audited,
                }
            }
        }
        let ids: BTreeSet<u32> = sets.iter().map(|s| s.id).collect();
        let has =
            |ends: &crate::policy::engine::EndpointSets| ids.contains(&ends.set_in) || ids.contains(&ends.set_out);
        PolicyStatus {
            name: policy.name.to_string(),
            directions: Direction::ALL
                .into_iter()
                .filter(|d| policy.rules(*d).is_some())
                .map(|d| d.name().to_owned())
                .collect(),
            tier: match policy.kind {
                Kind::Network => None,
                Kind::Cluster { tier, priority } => Some(format!("{tier:?} {priority}")),
            },
            mode: policy.mode.name().to_owned(),
            flaws: read.flaws.iter().map(Flaw::in_full).collect(),
            pods: self.engine.endpoints().filter(|(_, sets)| has(sets)).map(|(pod, _)| pod.to_string()).collect(),
            waiting: {
                let waits = |pod: &&PodKey| self.engine.awaited(pod).any(|r| r.policy.name == policy.name);
                self.engine.waiting().iter().filter(waits).map(ToString::to_string).collect()
            },
            sets,
            kernel,
            hits: all,
            rules,
        }
    }

    /// The rules of a policy that are in force.
    fn rules(&self, name: &PolicyName, hits: &Hits) -> Vec<PolicyRule> {
        // A version and a direction, and where its rule stands, so that each counts once however many sets it is in.
        let mut found: BTreeMap<(Direction, usize, u32), String> = BTreeMap::new();
        for (_, set) in self.engine.sets() {
            for revision in set.policies.iter().filter(|r| r.policy.name == *name) {
                for (n, cookie) in self.engine.cookies_of(revision, set.key.direction).iter().enumerate() {
                    found.insert((set.key.direction, n, *cookie), place(set.key.direction, n));
                }
            }
        }
        found.into_iter().map(|((.., cookie), rule)| PolicyRule { rule, hits: hits.of_rule(cookie).into() }).collect()
    }

    /// Adds to the event of a packet that policies deny, or would if none were in audit mode, who its ends are, and which policies these are. Cookie and label class are
    /// the event's.
    pub fn explain(&self, event: &mut DropEvent, cookie: u32, class: u32) {
        let pod = |a: Option<IpAddr>| a.and_then(|a| self.engine.store.pod_at(a)).map(|row| row.key.clone());
        let (source, destination) = (pod(event.src), pod(event.dst));
        let sets = |pod: &Option<PodKey>| pod.as_ref().and_then(|pod| self.engine.sets_of(pod)).unwrap_or_default();
        let (out, into) = (sets(&source).set_out, sets(&destination).set_in);
        let denies = match event.reason.as_str() {
            reason if reason == DropReason::PolicyEgress.name() => [out, SET_NONE],
            reason if reason == DropReason::PolicyIngress.name() => [SET_NONE, into],
            _ => [out, into],
        };
        let mode = if event.audit { Mode::Audit } else { Mode::Enforce };
        let policies = denies.into_iter().filter_map(|id| self.engine.set(id)).flat_map(|set| &set.policies);
        event.policies = policies.filter(|r| r.policy.mode == mode).map(|r| r.policy.name.to_string()).collect();
        event.rule = self.engine.rule_of(cookie).map(rule);
        // Who has opened the flow is whom the tunnel has named, whoever had the address before.
        let end = |a: Option<IpAddr>, pod: Option<PodKey>| {
            let sender = a.and_then(|a| self.engine.sends_as(a, class)).map(alike);
            sender.or_else(|| pod.map(|p| p.to_string()))
        };
        event.ends = Some([end(event.src, source), end(event.dst, destination)]);
    }

    fn set(&self, id: u32, hits: &Hits) -> PolicySet {
        let Some(set) = self.engine.set(id) else { return PolicySet::default() };
        let peers = std::iter::once((IDENTITY_OTHER, set.default)).chain(set.peers.iter().map(|(i, r)| (*i, *r)));
        PolicySet {
            id,
            direction: set.key.direction.name().to_owned(),
            policies: set.policies.iter().map(|r| r.policy.name.to_string()).collect(),
            audited: audited(&set.policies),
            hits: hits.of_set(id).into(),
            peers: peers
                .map(|(identity, rules)| PolicyPeer {
                    identity,
                    who: self.engine.class(identity).map_or_else(|| "everybody else".to_owned(), |c| who(c)),
                    rules,
                    says: self.says(rules),
                })
                .collect(),
        }
    }
    fn says(&self, rules: u32) -> Vec<String> {
        match rules {
            RULES_ALLOW_ALL => vec!["allow all".into()],
            RULES_DENY_ALL => vec!["deny all".into()],
            rules => self.engine.rule_entries(rules).map(|e| self.entry(e)).collect(),
        }
    }
    fn entry(&self, e: &Entry) -> String {
        let what = match e.decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Audit => "allow, and report,",
            Verdict::Deny => "deny",
        };
        let protocol = match e.proto {
            0 => "all".to_owned(),
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            132 => "SCTP".to_owned(),
            other => format!("protocol {other}"),
        };
        let ports = match e.bits.checked_sub(RULE_PROTO_BITS) {
            None | Some(0) => String::new(),
            Some(16) => format!("/{}", e.port),
            Some(n) => format!("/{}-{}", e.port, e.port | u16::MAX.checked_shr(n).unwrap_or(0)),
        };
        let by =
            self.engine.rule_of(e.decision.cookie).map_or_else(String::new, |named| format!(" by {}", rule(named)));
        format!("{what} {protocol}{ports}{by}")
    }
}

/// What a rule is called.
fn rule((revision, direction, n): (&Revision, Direction, usize)) -> String {
    format!("{}, {}", revision.policy.name, place(direction, n))
}
fn place(direction: Direction, n: usize) -> String {
    format!("spec.{}[{n}]", direction.name())
}
/// Pods that are known by their label class alone.
fn alike(pods: &Alike) -> String {
    let labels: Vec<String> = pods.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    format!("a pod of {} [{}]", pods.namespace, labels.join(","))
}
fn audited(policies: &[Arc<Revision>]) -> Vec<String> {
    policies.iter().filter(|r| r.policy.mode == Mode::Audit).map(|r| r.policy.name.to_string()).collect()
}

/// Whom an identity stands for.
fn who(class: &Class) -> String {
    let mut words = match &class.owner {
        Owner::Pod { part, .. } => {
            let labels: Vec<String> = part.seen.labels.iter().map(|(k, v)| label(k, v)).collect();
            let ports: Vec<String> =
                part.seen.ports.iter().map(|p| format!("{}={}/{}", p.name, protocol(p.protocol), p.port)).collect();
            [vec![format!("pods of {}", part.seen.namespace)], labels, ports].concat().join(" ")
        }
        Owner::Node(labels) => {
            let labels: Vec<String> = labels.iter().map(|(k, v)| label(k, v)).collect();
            [vec!["nodes".to_owned()], labels].concat().join(" ")
        }
        Owner::Nobody => "addresses".to_owned(),
    };
    if let Some(block) = class.block {
        words.push_str(&format!(" in {block}"));
    }
    for domain in &class.domains {
        words.push_str(&format!(" of {domain}"));
    }
    words
}
fn label(key: &str, value: &str) -> String {
    if value == crate::policy::mentions::OTHER_VALUE { format!("{key}=(another)") } else { format!("{key}={value}") }
}
fn protocol(p: Protocol) -> &'static str {
    match p {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
