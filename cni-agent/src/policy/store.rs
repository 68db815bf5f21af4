//! The cluster's objects as policies see them. Changed by events only; what an event touches is noted, and nothing is compiled here.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use super::{
    addresses::ByAddress,
    labels::{Labels, Shared, Texts},
    objects::{Direction, Policy, PolicyName, Read, model},
    senders::{Located, Senders},
};
use crate::{
    identity,
    memory::pack,
    tables::{NamedPort, Pod, PodKey, pods::Ips},
};

/// A version of a policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Revision {
    /// Another one for each version of each policy.
    pub number: u64,
    /// What it says.
    pub policy: Said,
}
impl Revision {
    pub(super) fn of(number: u64, read: Arc<Read>) -> Self {
        Self { number, policy: Said(read) }
    }
}

/// What a policy says, in memory once for all that know of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Said(Arc<Read>);
impl Deref for Said {
    type Target = Policy;
    fn deref(&self) -> &Policy {
        &self.0.policy
    }
}

/// Pods with the same namespace, labels and named ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alike {
    /// Their namespace.
    pub namespace: Arc<str>,
    /// Their labels.
    pub labels: Labels,
    /// Their named ports.
    pub ports: Arc<[NamedPort]>,
}

/// Pods that are alike.
#[derive(Debug)]
pub struct Group {
    /// In this.
    pub alike: Arc<Alike>,
    /// Hash of their label class.
    pub class: u32,
    /// Their numbers.
    pods: BTreeSet<u32>,
}

/// A pod that has, or will have, addresses of its own.
#[derive(Clone, Debug)]
pub struct PodRow {
    /// What names it.
    pub key: PodKey,
    /// Its addresses.
    pub ips: Ips,
    /// The number of those that are like it.
    pub group: u32,
    at: At,
}
// There is one for every pod of the cluster.
const _: () = assert!(size_of::<PodRow>() <= 48);
impl PodRow {
    /// Whether it is on this node.
    pub fn is_local(&self) -> bool {
        self.at == At::HERE
    }
    /// The place of its node, if that is another one.
    pub fn place(&self) -> Option<u32> {
        (![At::NOWHERE, At::HERE].contains(&self.at)).then_some(self.at.0)
    }
}

/// Where a pod is: the place of its node, of which none has these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At(u32);
impl At {
    const NOWHERE: Self = Self(0);
    const HERE: Self = Self(u32::MAX);
}

/// In the place of a pod's number: several claim the address.
const SEVERAL: u32 = 0;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its labels.
    pub labels: Labels,
    /// The addresses in its status.
    pub addresses: BTreeSet<IpAddr>,
}

/// What changed since it was last compiled.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Addresses whose owner or names changed.
    pub addresses: BTreeSet<IpAddr>,
    /// Pods of this node whose policies may be others.
    pub locals: BTreeSet<PodKey>,
    /// Namespaces whose labels changed.
    pub namespaces: BTreeSet<Arc<str>>,
}

/// The objects, indexed as compiling asks for them.
#[derive(Debug)]
pub struct Store {
    /// This node's name.
    node: String,
    /// Shared texts.
    pub texts: Texts,
    ports: Shared<[NamedPort]>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeRow>,
    nodes_at: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Pods, by a number that is theirs as long as they are there.
    pub pods: BTreeMap<u32, PodRow>,
    numbers: BTreeMap<PodKey, u32>,
    last_pod: u32,
    pods_at: ByAddress<u32>,
    /// Who claims an address that several do: it is given anew before the former pod's object is gone.
    claims: BTreeMap<IpAddr, Vec<u32>>,
    group_numbers: BTreeMap<Arc<Alike>, u32>,
    groups: BTreeMap<u32, Group>,
    last_group: u32,
    /// Pods of other nodes, as the tunnel names them.
    pub senders: Senders,
    locals: BTreeMap<Arc<str>, BTreeSet<u32>>,
    network: BTreeMap<String, BTreeMap<String, Arc<Revision>>>,
    cluster: BTreeMap<String, Arc<Revision>>,
    last_revision: u64,
    dns: BTreeMap<String, BTreeSet<IpAddr>>,
    names_of: BTreeMap<IpAddr, BTreeSet<String>>,
    /// What changed.
    pub dirty: Dirty,
}

impl Store {
    /// Of the agent on this node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            texts: Texts::default(),
            ports: Shared::default(),
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            nodes_at: BTreeMap::new(),
            pods: BTreeMap::new(),
            numbers: BTreeMap::new(),
            last_pod: 0,
            pods_at: ByAddress::default(),
            claims: BTreeMap::new(),
            group_numbers: BTreeMap::new(),
            groups: BTreeMap::new(),
            last_group: 0,
            senders: Senders::default(),
            locals: BTreeMap::new(),
            network: BTreeMap::new(),
            cluster: BTreeMap::new(),
            last_revision: 0,
            dns: BTreeMap::new(),
            names_of: BTreeMap::new(),
            dirty: Dirty::default(),
        }
    }

    /// A namespace is there, with these labels.
    pub fn apply_namespace(&mut self, name: &str, labels: &BTreeMap<String, String>) {
        let labels = self.texts.labels(labels);
        let name = self.texts.share(name);
        if self.namespaces.get(&name) != Some(&labels) {
            self.namespaces.insert(Arc::clone(&name), labels);
            self.relabelled(name);
        }
    }
    /// A namespace is gone, and with it its pods and policies.
    pub fn delete_namespace(&mut self, name: &str) {
        let from = self.numbers.range(PodKey::new(name, "")..).map(|(key, _)| key);
        let pods: Vec<PodKey> = from.take_while(|key| key.namespace() == name).cloned().collect();
        for pod in pods {
            self.delete_pod(&pod);
        }
        self.network.remove(name);
        if let Some((name, _)) = self.namespaces.remove_entry(name) {
            self.relabelled(name);
        }
    }
    fn relabelled(&mut self, name: Arc<str>) {
        self.locals_of(&name);
        self.dirty.namespaces.insert(name);
    }
    fn locals_of(&mut self, namespace: &str) {
        let pods = self.locals.get(namespace).into_iter().flatten();
        self.dirty.locals.extend(pods.filter_map(|n| self.pods.get(n)).map(|p| p.key.clone()));
    }
    fn all_locals(&mut self) {
        let pods = self.locals.values().flatten();
        self.dirty.locals.extend(pods.filter_map(|n| self.pods.get(n)).map(|p| p.key.clone()));
    }

    /// A node is there.
    pub fn apply_node(&mut self, name: &str, labels: &BTreeMap<String, String>, addresses: BTreeSet<IpAddr>) {
        let row = NodeRow { labels: self.texts.labels(labels), addresses };
        if self.nodes.get(name) == Some(&row) {
            return;
        }
        self.delete_node(name);
        for a in &row.addresses {
            self.nodes_at.entry(*a).or_default().insert(name.to_owned());
            self.dirty.addresses.insert(*a);
        }
        self.nodes.insert(name.to_owned(), row);
    }
    /// A node is gone.
    pub fn delete_node(&mut self, name: &str) {
        let Some(row) = self.nodes.remove(name) else { return };
        for a in row.addresses {
            if let Some(names) = self.nodes_at.get_mut(&a) {
                names.remove(name);
                if names.is_empty() {
                    self.nodes_at.remove(&a);
                }
            }
            self.dirty.addresses.insert(a);
        }
    }

    /// A pod is there. One that is over, or in the node's network, is nobody to policies.
    pub fn apply_pod(&mut self, key: &PodKey, pod: &Pod) {
        let labels = self.texts.labels(&pod.labels);
        self.apply_labelled(key, pod, labels);
    }
    /// The same, of one whose labels somebody else has in memory already.
    pub fn apply_labelled(&mut self, key: &PodKey, pod: &Pod, labels: Labels) {
        if pod.host_network || pod.phase.is_over() {
            self.delete_pod(key);
            return;
        }
        let alike = Alike {
            namespace: self.texts.share(&pod.namespace),
            labels,
            ports: self.ports.share(&pod.ports.iter().cloned().collect::<Vec<_>>()[..]),
        };
        let local = pod.node.as_deref() == Some(self.node.as_str());
        let elsewhere = pod.node.as_deref().filter(|_| !local);
        let place = elsewhere.and_then(|node| self.senders.place_of(node));
        if let Some(known) = self.pod(key)
            && *self.alike(known) == alike
            && known.ips.as_slice() == pod.ips
            && known.is_local() == local
            && known.place() == place
        {
            return;
        }
        self.delete_pod(key);
        self.last_pod += 1;
        let number = self.last_pod;
        let namespace = Arc::clone(&alike.namespace);
        let group = self.join(alike, number);
        for a in &pod.ips {
            match self.pods_at.insert(*a, number) {
                None => {}
                Some(other) => {
                    self.pods_at.insert(*a, SEVERAL);
                    let claims = self.claims.entry(*a).or_default();
                    claims.extend([other].into_iter().filter(|other| *other != SEVERAL).chain([number]));
                }
            }
            self.dirty.addresses.insert(*a);
        }
        self.numbers.insert(key.clone(), number);
        if local {
            self.locals.entry(namespace).or_default().insert(number);
            self.dirty.locals.insert(key.clone());
        }
        let class = self.groups.get(&group).map_or(identity::UNKNOWN, |g| g.class);
        let at = match elsewhere {
            Some(node) => At(self.senders.join(node, class, group)),
            None if local => At::HERE,
            None => At::NOWHERE,
        };
        self.pods.insert(number, PodRow { key: key.clone(), ips: pod.ips.as_slice().into(), group, at });
    }
    /// Puts a pod to those that are like it.
    fn join(&mut self, alike: Alike, pod: u32) -> u32 {
        let number = self.group_numbers.get(&alike).copied().unwrap_or_else(|| {
            self.last_group += 1;
            self.last_group
        });
        let group = self.groups.entry(number).or_insert_with(|| {
            let alike = Arc::new(alike);
            self.group_numbers.insert(Arc::clone(&alike), number);
            let labels = &alike.labels;
            let class = identity::class_of(&alike.namespace, labels.len(), labels.iter().map(|(k, v)| (k, v)));
            Group { alike, class, pods: BTreeSet::new() }
        });
        group.pods.insert(pod);
        number
    }
    fn leave(&mut self, group: u32, pod: u32) {
        let Some(found) = self.groups.get_mut(&group) else { return };
        found.pods.remove(&pod);
        if found.pods.is_empty() {
            self.group_numbers.remove(&found.alike);
            self.groups.remove(&group);
        }
    }
    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &PodKey) {
        let Some(number) = self.numbers.remove(key) else { return };
        let Some(row) = self.pods.remove(&number) else { return };
        for a in row.ips.as_slice() {
            match self.claims.get_mut(a) {
                None => drop(self.pods_at.remove(*a)),
                Some(claims) => {
                    claims.retain(|n| *n != number);
                    if let [other] = claims[..] {
                        self.claims.remove(a);
                        self.pods_at.insert(*a, other);
                    }
                }
            }
            self.dirty.addresses.insert(*a);
        }
        if let (Some(place), Some(group)) = (row.place(), self.groups.get(&row.group)) {
            self.senders.leave(place, group.class, row.group);
        }
        if row.is_local() {
            let alike = self.alike(&row);
            take_from(&mut self.locals, &alike.namespace, number);
            self.dirty.locals.insert(key.clone());
        }
        self.leave(row.group, number);
    }
    /// A pod.
    pub fn pod(&self, key: &PodKey) -> Option<&PodRow> {
        self.pods.get(self.numbers.get(key)?)
    }
    /// What a pod shares with others.
    pub fn alike(&self, pod: &PodRow) -> Arc<Alike> {
        self.groups.get(&pod.group).map(|group| Arc::clone(&group.alike)).unwrap_or_default()
    }

    /// A policy is there.
    pub fn apply_policy(&mut self, policy: Policy) {
        self.apply_read(Arc::new(Read { policy, flaws: Vec::new() }));
    }
    /// The same, as it was read.
    pub fn apply_read(&mut self, read: Arc<Read>) {
        let policy = &read.policy;
        let known = match &policy.name {
            PolicyName::Network { namespace, name } => self.network.get(namespace).and_then(|n| n.get(name)),
            PolicyName::Cluster { name } => self.cluster.get(name),
        };
        if known.is_some_and(|known| *known.policy == *policy) {
            return;
        }
        self.last_revision += 1;
        let name = policy.name.clone();
        let revision = Arc::new(Revision::of(self.last_revision, read));
        match name {
            PolicyName::Network { namespace, name } => {
                self.locals_of(&namespace);
                self.network.entry(namespace).or_default().insert(name, revision);
            }
            PolicyName::Cluster { name } => {
                self.all_locals();
                self.cluster.insert(name, revision);
            }
        }
    }
    /// A policy is gone.
    pub fn delete_policy(&mut self, name: &PolicyName) {
        match name {
            PolicyName::Network { namespace, name } => {
                let Some(of_namespace) = self.network.get_mut(namespace) else { return };
                if of_namespace.remove(name).is_some() {
                    self.locals_of(namespace);
                }
            }
            PolicyName::Cluster { name } => {
                if self.cluster.remove(name).is_some() {
                    self.all_locals();
                }
            }
        }
    }
    /// The policies that hold for a pod in one direction, in the order of their names, NetworkPolicies first.
    pub fn policies_of(&self, pod: &PodRow, direction: Direction) -> Vec<Arc<Revision>> {
        let alike = self.alike(pod);
        let namespace = &alike.namespace;
        let labels = self.namespaces.get(namespace);
        let network = self.network.get(&**namespace).into_iter().flat_map(BTreeMap::values);
        network
            .chain(self.cluster.values())
            .filter(|r| {
                let subject = &r.policy.subject;
                r.policy.rules(direction).is_some()
                    && subject.namespaces.contain(namespace, |key| labels.and_then(|l| l.get(key)))
                    && subject.pods.selects(|key| alike.labels.get(key))
            })
            .cloned()
            .collect()
    }

    /// DNS has answered with these addresses; none means that no answer holds any more.
    pub fn apply_dns(&mut self, name: &str, addresses: BTreeSet<IpAddr>) {
        let name = model::normal(name);
        let before = self.dns.remove(&name).unwrap_or_default();
        for a in before.difference(&addresses) {
            if let Some(names) = self.names_of.get_mut(a) {
                names.remove(&name);
                if names.is_empty() {
                    self.names_of.remove(a);
                }
            }
        }
        for a in &addresses {
            self.names_of.entry(*a).or_default().insert(name.clone());
        }
        self.dirty.addresses.extend(before.symmetric_difference(&addresses));
        if !addresses.is_empty() {
            self.dns.insert(name, addresses);
        }
    }

    /// Packs what is kept for each pod as closely as it goes.
    pub fn pack(&mut self) {
        pack(&mut self.pods);
        pack(&mut self.numbers);
        self.pods_at.pack();
        pack(&mut self.groups);
        pack(&mut self.group_numbers);
        self.texts.pack();
        self.senders.pack();
    }

    /// The pod that has an address. Should several claim it, the first by name: any choice must not depend on the order of events.
    pub fn pod_at(&self, address: IpAddr) -> Option<&PodRow> {
        let only = self.pods_at.get(address)?;
        let claims = self.claims.get(&address).map_or(std::slice::from_ref(only), Vec::as_slice);
        claims.iter().filter_map(|n| self.pods.get(n)).min_by(|a, b| a.key.cmp(&b.key))
    }
    /// The node that has an address.
    pub fn node_at(&self, address: IpAddr) -> Option<&NodeRow> {
        self.nodes.get(self.nodes_at.get(&address)?.first()?)
    }
    /// The names that DNS has answered with an address.
    pub fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &String> + Clone {
        self.names_of.get(&address).into_iter().flatten()
    }
    /// Pods that are alike, by the group's number.
    pub fn groups(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.groups.iter().map(|(number, group)| (*number, group))
    }
    /// A group.
    pub fn group(&self, number: u32) -> Option<&Group> {
        self.groups.get(&number)
    }
    /// The addresses of a group's pods; those that another pod claims as well are left to `shared`.
    pub fn addresses_of(&self, group: &Group, shared: &mut Vec<IpAddr>) -> Vec<IpAddr> {
        let mut own = Vec::new();
        for a in group.pods.iter().filter_map(|n| self.pods.get(n)).flat_map(|p| p.ips.as_slice()) {
            let alone = !self.claims.contains_key(a);
            if alone { own.push(*a) } else { shared.push(*a) }
        }
        own
    }
    /// The label classes of a group's pods on other nodes.
    pub fn located(&self, group: &Group) -> BTreeSet<Located> {
        let rows = group.pods.iter().filter_map(|n| self.pods.get(n));
        rows.filter_map(|row| Some((row.place()?, group.class))).collect()
    }
    /// How many kinds of pods there are.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }
    /// All addresses that DNS has answered with.
    pub fn dns_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.names_of.keys().copied()
    }
    /// All addresses of nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes_at.keys().copied()
    }
}

fn take_from<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<u32>>, key: &K, number: u32) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&number);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// What a source tells: an object is as said, or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A namespace, with its labels.
    Namespace(String, Option<BTreeMap<String, String>>),
    /// A node, with its labels and the addresses in its status.
    Node(String, Option<(BTreeMap<String, String>, BTreeSet<IpAddr>)>),
    /// A pod.
    Pod(PodKey, Option<Pod>),
    /// A policy.
    Policy(PolicyName, Option<Policy>),
    /// A name that DNS has answered for, with the addresses that hold.
    Dns(String, Option<BTreeSet<IpAddr>>),
}

impl Store {
    /// Takes an event over.
    pub fn handle(&mut self, event: &Event) {
        match event {
            Event::Namespace(name, Some(labels)) => self.apply_namespace(name, labels),
            Event::Namespace(name, None) => self.delete_namespace(name),
            Event::Node(name, Some((labels, addresses))) => self.apply_node(name, labels, addresses.clone()),
            Event::Node(name, None) => self.delete_node(name),
            Event::Pod(key, Some(pod)) => self.apply_pod(key, pod),
            Event::Pod(key, None) => self.delete_pod(key),
            Event::Policy(_, Some(policy)) => self.apply_policy(policy.clone()),
            Event::Policy(name, None) => self.delete_policy(name),
            Event::Dns(name, addresses) => self.apply_dns(name, addresses.clone().unwrap_or_default()),
        }
    }
}
