//! Identities: numbers, local to this node, for classes of addresses that no policy in force tells apart.
use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use cni_common::policy::IDENTITY_OTHER;
use ipnet::IpNet;

use super::{
    labels::Labels,
    objects::{Domain, Peer},
};
use crate::tables::NamedPort;

/// What policies see in a pod, but for its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels, reduced to what is told apart.
    pub labels: Labels,
    /// Its named ports, of those that are asked for.
    pub ports: Arc<[NamedPort]>,
}

/// The same, known by a number: there is one of each content at a time.
#[derive(Debug)]
pub struct Part {
    number: u32,
    /// What it is.
    pub seen: Seen,
}
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Part {}
impl PartialOrd for Part {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Part {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number)
    }
}

/// All parts.
#[derive(Debug, Default)]
pub struct Parts {
    known: BTreeMap<Seen, Arc<Part>>,
    last: u32,
    /// How many there may be before those that nobody has are looked for.
    limit: usize,
}
impl Parts {
    /// The one with this content.
    pub fn share(&mut self, seen: Seen) -> Arc<Part> {
        if let Some(part) = self.known.get(&seen) {
            return Arc::clone(part);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|_, part| Arc::strong_count(part) > 1);
            self.limit = 2 * self.known.len() + 256;
        }
        self.last += 1;
        let part = Arc::new(Part { number: self.last, seen: seen.clone() });
        self.known.insert(seen, Arc::clone(&part));
        part
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody that policies could name but by the address.
    Nobody,
    /// A node with such labels, reduced to what is told apart.
    Node(Labels),
    /// A pod.
    Pod {
        /// What policies see in it.
        part: Arc<Part>,
        /// The address is an IPv4 one. No policy looks at that alone, but blocks do by and by: `0.0.0.0/0` is to leave classes whole.
        v4: bool,
    },
}

/// All that policies can see in an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Who has it.
    pub owner: Owner,
    /// The longest prefix that policies name and that holds it: it says which of the others do.
    pub block: Option<IpNet>,
    /// The patterns that cover a name which DNS has answered with it.
    pub domains: Vec<Domain>,
}
impl Class {
    /// An address of which nothing is known.
    pub const OTHER: Self = Self { owner: Owner::Nobody, block: None, domains: Vec::new() };

    /// What is seen in the pod.
    pub fn pod(&self) -> Option<&Seen> {
        match &self.owner {
            Owner::Pod { part, .. } => Some(&part.seen),
            Owner::Nobody | Owner::Node(_) => None,
        }
    }
    /// The named ports of the pod.
    pub fn ports(&self) -> &[NamedPort] {
        self.pod().map_or(&[], |p| &p.ports)
    }
    /// Whether its addresses are the peer's; `namespaces` gives the labels of namespaces.
    pub fn is(&self, peer: &Peer, namespaces: &BTreeMap<Arc<str>, Labels>) -> bool {
        match (peer, &self.owner) {
            (Peer::Pods(subject), Owner::Pod { part, .. }) => {
                let Seen { namespace, labels, .. } = &part.seen;
                let of = namespaces.get(namespace);
                subject.pods.selects(|key| labels.get(key))
                    && subject.namespaces.contain(namespace, |key| of.and_then(|l| l.get(key)))
            }
            (Peer::Nodes(selector), Owner::Node(labels)) => selector.selects(|key| labels.get(key)),
            (Peer::Pods(_) | Peer::Nodes(_), _) => false,
            (Peer::Block { .. }, _) => self.block.is_some_and(|b| peer.block_holds(b)),
            (Peer::Domain(domain), _) => self.domains.contains(domain),
        }
    }
}

#[derive(Debug)]
struct Slot {
    class: Arc<Class>,
    /// Addresses and prefixes that have it.
    users: usize,
}

/// All classes that an address or prefix has.
#[derive(Debug, Default)]
pub struct Classes {
    known: BTreeMap<Arc<Class>, u32>,
    slots: BTreeMap<u32, Slot>,
    last: u32,
    /// New since they were last asked for.
    fresh: Vec<u32>,
    unused: Vec<u32>,
}
impl Classes {
    /// With numbers above this one.
    pub fn after(last: u32) -> Self {
        Self { last, ..Self::default() }
    }
    /// The identity of a class, for one more user. That of [`Class::OTHER`] is [`IDENTITY_OTHER`], which no entry needs to name.
    pub fn take(&mut self, class: Class) -> u32 {
        if class == Class::OTHER {
            return IDENTITY_OTHER;
        }
        if let Some(id) = self.known.get(&class) {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.users += 1;
            }
            return *id;
        }
        self.last += 1;
        let class = Arc::new(class);
        self.known.insert(Arc::clone(&class), self.last);
        self.slots.insert(self.last, Slot { class, users: 1 });
        self.fresh.push(self.last);
        self.last
    }
    /// Whether some identity stands for it.
    pub fn knows(&self, class: &Class) -> bool {
        self.known.contains_key(class)
    }
    /// Addresses and prefixes that have an identity.
    pub fn users(&self, id: u32) -> usize {
        self.slots.get(&id).map_or(0, |s| s.users)
    }
    /// What an identity stands for is told apart in another way, and nothing else. Nobody else is to be of that class.
    pub fn rename(&mut self, id: u32, class: Class) {
        if let Some(slot) = self.slots.get_mut(&id) {
            self.known.remove(&slot.class);
            slot.class = Arc::new(class);
            self.known.insert(Arc::clone(&slot.class), id);
        }
    }
    /// One user less.
    pub fn release(&mut self, id: u32) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.users -= 1;
            if slot.users == 0 {
                self.unused.push(id);
            }
        }
    }
    /// Those that are new since the last call.
    pub fn take_fresh(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.fresh)
    }
    /// Takes out those that nobody has any more.
    pub fn sweep(&mut self) -> Vec<u32> {
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.unused) {
            if self.slots.get(&id).is_some_and(|s| s.users == 0)
                && let Some(slot) = self.slots.remove(&id)
            {
                self.known.remove(&slot.class);
                gone.push(id);
            }
        }
        gone
    }
    /// What an identity stands for.
    pub fn get(&self, id: u32) -> Option<&Arc<Class>> {
        self.slots.get(&id).map(|s| &s.class)
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<Class>)> {
        self.slots.iter().map(|(id, s)| (*id, &s.class))
    }
    /// The highest number that was given.
    pub fn last(&self) -> u32 {
        self.last
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }
}
