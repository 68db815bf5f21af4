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

/// Label keys, and the values that are told apart.
#[derive(Debug, Default)]
struct Keys {
    counts: BTreeMap<String, (usize, BTreeMap<String, usize>)>,
}
impl Keys {
    /// Whether something is told apart now that was not, or no longer is.
    fn count(&mut self, selector: &LabelSelector, up: bool) -> bool {
        let mut changed = false;
        for (key, values) in selector.mentions() {
            let (uses, told) = self.counts.entry(key.to_owned()).or_default();
            changed |= step(uses, up);
            for value in values.into_iter().flatten() {
                let n = told.entry(value.clone()).or_default();
                changed |= step(n, up);
                if *n == 0 {
                    told.remove(value);
                }
            }
            if *uses == 0 {
                self.counts.remove(key);
            }
        }
        changed
    }
    /// What is left of labels: mentioned keys, with their values as far as these are told apart.
    fn reduce(&self, labels: &Labels, texts: &mut Texts) -> Labels {
        labels
            .iter()
            .filter_map(|(key, value)| {
                let (_, told) = self.counts.get(&**key)?;
                let value = if told.contains_key(&**value) { Arc::clone(value) } else { texts.share(OTHER_VALUE) };
                Some((Arc::clone(key), value))
            })
            .collect()
    }
}

/// Stands for all values of a key that nobody tells apart; no label has this value.
const OTHER_VALUE: &str = "\0";

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
    /// Labels or named ports of pods.
    pub pods: bool,
    /// Labels of nodes, or whether nodes are looked at at all.
    pub nodes: bool,
    /// Names.
    pub domains: bool,
    /// Prefixes that came or went.
    pub prefixes: BTreeSet<IpNet>,
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
                changed.pods |= step(n, up);
                if *n == 0 {
                    self.ports.remove(name);
                }
            }
        }
    }
    fn peer(&mut self, peer: &Peer, up: bool, changed: &mut Changed) {
        match peer {
            Peer::Pods(subject) => changed.pods |= self.pods.count(&subject.pods, up),
            Peer::Nodes(selector) => {
                changed.nodes |= step(&mut self.node_peers, up);
                changed.nodes |= self.nodes.count(selector, up);
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
