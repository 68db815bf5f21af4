//! What the policies that are in force look at: nothing else tells two peers apart.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    labels::{LabelSelector, Labels, Texts},
    objects::{Direction, Domain, Peer, Peers, Policy},
};
use crate::tables::NamedPort;

/// Label keys: whose presence is looked at, and which of their values.
#[derive(Debug, Default)]
struct Keys {
    counts: BTreeMap<String, Key>,
}
#[derive(Debug, Default)]
struct Key {
    /// How often its presence alone is asked for.
    presence: usize,
    /// How often each value is. One that is not here is, to all that ask for values, as if the key were absent.
    values: BTreeMap<String, usize>,
}
/// A key, and the value that is told apart from others now, or no longer is; `None` when it is the key's presence.
pub type Told = (String, Option<String>);

impl Keys {
    /// Counts what a selector looks at; what came or went is added to `changed`.
    fn count(&mut self, selector: &LabelSelector, up: bool, changed: &mut BTreeSet<Told>) {
        for (key, values) in selector.mentions() {
            let counts = self.counts.entry(key.to_owned()).or_default();
            match values {
                None => {
                    if step(&mut counts.presence, up) {
                        changed.insert((key.to_owned(), None));
                    }
                }
                Some(values) => {
                    for value in values {
                        let n = counts.values.entry(value.clone()).or_default();
                        if step(n, up) {
                            changed.insert((key.to_owned(), Some(value.clone())));
                        }
                        if *n == 0 {
                            counts.values.remove(value);
                        }
                    }
                }
            }
            if counts.presence == 0 && counts.values.is_empty() {
                self.counts.remove(key);
            }
        }
    }
    /// What is left of labels: those with values that are told apart, and the keys whose presence is.
    fn reduce(&self, labels: &Labels, texts: &mut Texts) -> Labels {
        labels
            .iter()
            .filter_map(|(key, value)| {
                let counts = self.counts.get(&**key)?;
                if counts.values.contains_key(&**value) {
                    return Some((Arc::clone(key), Arc::clone(value)));
                }
                (counts.presence > 0).then(|| (Arc::clone(key), texts.share(OTHER_VALUE)))
            })
            .collect()
    }
}

/// Stands for all values of a key that nobody tells apart; no label has this value.
pub const OTHER_VALUE: &str = "\0";

/// Counts up or down; whether it came from 0 or went there.
fn step(n: &mut usize, up: bool) -> bool {
    if up {
        *n += 1
    } else {
        *n -= 1
    }
    *n == usize::from(up)
}

/// What changed in what is looked at.
#[derive(Debug, Default)]
pub struct Changed {
    /// Labels of pods.
    pub labels: BTreeSet<Told>,
    /// Named ports of pods.
    pub ports: BTreeSet<String>,
    /// Labels of nodes, or whether nodes are looked at at all.
    pub nodes: bool,
    /// Names.
    pub domains: bool,
    /// Prefixes that came or went.
    pub prefixes: BTreeSet<IpNet>,
}
impl Changed {
    /// Whether something else of these pods is looked at now.
    pub fn touches(&self, labels: &Labels, ports: &[NamedPort]) -> bool {
        self.labels.iter().any(|(key, value)| match value {
            Some(value) => labels.get(key) == Some(value),
            None => labels.get(key).is_some(),
        }) || !self.ports.is_empty() && ports.iter().any(|p| self.ports.contains(&p.name))
    }
    /// Whether pods may be touched at all.
    pub fn pods(&self) -> bool {
        !self.labels.is_empty() || !self.ports.is_empty()
    }
}

/// All that is looked at, with how often.
#[derive(Debug, Default)]
pub struct Mentions {
    pods: Keys,
    nodes: Keys,
    node_peers: usize,
    ports: BTreeMap<String, usize>,
    domains: BTreeMap<Domain, usize>,
    prefixes: BTreeMap<IpNet, usize>,
    /// Family and length of the prefixes.
    lengths: BTreeMap<(bool, u8), usize>,
}
impl Mentions {
    /// Counts what one direction of a policy looks at, up or down.
    pub fn count(&mut self, policy: &Policy, direction: Direction, up: bool, changed: &mut Changed) {
        for rule in policy.rules(direction).into_iter().flatten() {
            if let Peers::Of(peers) = &rule.peers {
                for peer in peers {
                    self.peer(peer, up, changed);
                }
            }
            // For ingress the names are asked of the pod that the policy selects.
            for name in rule.ports.names().filter(|_| direction == Direction::Egress) {
                let n = self.ports.entry(name.to_owned()).or_default();
                if step(n, up) {
                    changed.ports.insert(name.to_owned());
                }
                if *n == 0 {
                    self.ports.remove(name);
                }
            }
        }
    }
    fn peer(&mut self, peer: &Peer, up: bool, changed: &mut Changed) {
        match peer {
            Peer::Pods(subject) => self.pods.count(&subject.pods, up, &mut changed.labels),
            Peer::Nodes(selector) => {
                changed.nodes |= step(&mut self.node_peers, up);
                let mut told = BTreeSet::new();
                self.nodes.count(selector, up, &mut told);
                changed.nodes |= !told.is_empty();
            }
            Peer::Domain(domain) => {
                let n = self.domains.entry(domain.clone()).or_default();
                changed.domains |= step(n, up);
                if *n == 0 {
                    self.domains.remove(domain);
                }
            }
            Peer::Block { .. } => {
                for net in peer.prefixes() {
                    let n = self.prefixes.entry(net).or_default();
                    if step(n, up) {
                        // What came and went in one go is looked at once more, for nothing.
                        changed.prefixes.insert(net);
                        let length = (net.addr().is_ipv4(), net.prefix_len());
                        let of_length = self.lengths.entry(length).or_default();
                        if step(of_length, up) && !up {
                            self.lengths.remove(&length);
                        }
                    }
                    if self.prefixes.get(&net) == Some(&0) {
                        self.prefixes.remove(&net);
                    }
                }
            }
        }
    }

    /// What is left of a pod's labels.
    pub fn pod_labels(&self, labels: &Labels, texts: &mut Texts) -> Labels {
        self.pods.reduce(labels, texts)
    }
    /// What is left of a node's labels; `None` when nobody looks at nodes.
    pub fn node_labels(&self, labels: &Labels, texts: &mut Texts) -> Option<Labels> {
        (self.node_peers > 0).then(|| self.nodes.reduce(labels, texts))
    }
    /// What is left of a pod's named ports.
    pub fn ports(&self, ports: &[NamedPort]) -> Arc<[NamedPort]> {
        ports.iter().filter(|p| self.ports.contains_key(&p.name)).cloned().collect()
    }
    /// The patterns that cover any of an address's names.
    pub fn domains<'a>(&self, names: impl Iterator<Item = &'a String> + Clone) -> Vec<Domain> {
        self.domains.keys().filter(|d| names.clone().any(|n| d.covers(n))).cloned().collect()
    }
    /// The longest prefix that holds an address.
    pub fn block(&self, address: IpAddr) -> Option<IpNet> {
        let lengths = self.lengths.range((address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX));
        lengths.rev().find_map(|((_, bits), _)| {
            let net = IpNet::new(address, *bits).ok()?.trunc();
            self.prefixes.contains_key(&net).then_some(net)
        })
    }
    /// Whether a prefix is looked at.
    pub fn has_prefix(&self, net: &IpNet) -> bool {
        self.prefixes.contains_key(net)
    }
}
