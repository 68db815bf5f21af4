//! What policies tell apart changes: which classes that touches.
//!
//! Between the moments at which policies come into force and go out of it, no set looks at what is only now told apart. So a class whose
//! addresses all look alike in the new way as well needs no other identity, and no entry that names it has to change.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    super::{
        addresses::Place,
        change::Change,
        classes::{Class, Owner, Part},
        mentions::Changed,
        senders::Located,
    },
    Engine,
};

/// Who has an identity.
enum User {
    Address(IpAddr),
    Sender(Located),
}

/// Those of senders that have one of these identities.
fn located(senders: &[(Place, u32)], ids: &BTreeSet<u32>) -> impl Iterator<Item = Located> {
    senders.iter().filter(|(_, id)| ids.contains(id)).map(|((place, class, _), _)| (*place, *class))
}

impl Engine {
    /// What is now told apart, or no longer is, touches classes: one that stays whole only gets another description, and its addresses keep
    /// their identity.
    pub(super) fn spread(&mut self, moves: &mut Vec<Change>, left: &mut Vec<u32>) {
        let changed = std::mem::take(&mut self.changed);
        if changed.pods() {
            self.spread_pods(&changed);
        }
        if changed.nodes {
            let addresses = self.store.node_addresses().collect::<Vec<_>>();
            self.store.dirty.addresses.extend(addresses);
        }
        if changed.domains {
            let addresses = self.store.dns_addresses().collect::<Vec<_>>();
            self.store.dirty.addresses.extend(addresses);
        }
        let (mut come, mut go) = (Vec::new(), Vec::new());
        for net in changed.prefixes {
            match (self.mentions.has_prefix(&net), self.blocks.contains_key(&net)) {
                (true, false) => come.push(net),
                (false, true) => go.push(net),
                _ => {}
            }
        }
        for net in come {
            self.prefix_comes(net);
            let id = self.classes.take(Class { block: Some(net), ..Class::OTHER });
            self.blocks.insert(net, id);
            moves.push(Change::block(net, Some(self.shown(id))));
        }
        for net in go {
            if let Some(id) = self.blocks.remove(&net) {
                self.prefix_goes(net, id);
                left.push(id);
                moves.push(Change::block(net, None));
            }
        }
    }
    fn spread_pods(&mut self, changed: &Changed) {
        // Addresses by the identity that they have, and what is seen in them now.
        let mut tallies: BTreeMap<u32, BTreeMap<Arc<Part>, Vec<User>>> = BTreeMap::new();
        let mut dirty = Vec::new();
        for (number, group) in self.store.groups() {
            if !changed.touches(&group.alike.labels, &group.alike.ports) || !self.groups.contains_key(&number) {
                continue;
            }
            dirty.push(number);
        }
        let mut shared = Vec::new();
        for number in dirty {
            let part = self.part(number);
            if self.groups.insert(number, Arc::clone(&part)).as_ref() == Some(&part) {
                continue;
            }
            let Some(group) = self.store.group(number) else { continue };
            for a in self.store.addresses_of(group, &mut shared) {
                if self.store.dirty.addresses.contains(&a) {
                    continue;
                }
                if let Some(holder) = self.identities.get(a) {
                    let of_id = tallies.entry(holder.identity).or_default();
                    of_id.entry(Arc::clone(&part)).or_default().push(User::Address(a));
                }
            }
            for located in self.store.located(group) {
                if self.store.senders.dirty.contains(&located) || self.group_named(located) != Some(number) {
                    continue;
                }
                for (_, id) in self.senders_of(located) {
                    let of_id = tallies.entry(id).or_default();
                    of_id.entry(Arc::clone(&part)).or_default().push(User::Sender(located));
                }
            }
        }
        self.store.dirty.addresses.extend(shared);
        for (id, mut targets) in tallies {
            let moved: usize = targets.values().map(Vec::len).sum();
            let most = targets.iter().max_by_key(|(_, list)| list.len()).map(|(part, _)| Arc::clone(part));
            if let (Some(part), Some(class)) = (most, self.classes.get(id))
                && moved == self.classes.users(id)
            {
                let v4 = matches!(class.owner, Owner::Pod { v4: true, .. });
                let class = Class { owner: Owner::Pod { part: Arc::clone(&part), v4 }, ..Class::clone(class) };
                if !self.classes.knows(&class) {
                    self.classes.rename(id, class);
                    targets.remove(&part);
                }
            }
            for user in targets.into_values().flatten() {
                match user {
                    User::Address(a) => drop(self.store.dirty.addresses.insert(a)),
                    User::Sender(located) => drop(self.store.senders.dirty.insert(located)),
                }
            }
        }
    }
    /// The addresses in a prefix that are in no longer one have it as their block now.
    fn prefix_comes(&mut self, net: IpNet) {
        let parent = self.parent(net);
        let mut tally: BTreeMap<u32, Option<usize>> = BTreeMap::new();
        let senders = self.senders_in(net);
        let range = || {
            let addresses = self.identities.within(net);
            addresses.map(|(a, holder)| (a, holder.identity))
        };
        for id in range().map(|(_, id)| id).chain(senders.iter().map(|(_, id)| *id)) {
            let of_parent = || self.classes.get(id).is_some_and(|c| c.block == parent);
            if let Some(n) = tally.entry(id).or_insert_with(|| of_parent().then_some(0)) {
                *n += 1;
            }
        }
        let mut split = BTreeSet::new();
        for (id, n) in tally.iter().filter_map(|(id, n)| Some((*id, (*n)?))) {
            let class = self.classes.get(id).map(|c| Class { block: Some(net), ..Class::clone(c) });
            match class.filter(|c| n == self.classes.users(id) && !self.classes.knows(c)) {
                Some(class) => self.classes.rename(id, class),
                None => {
                    split.insert(id);
                }
            }
        }
        if !split.is_empty() {
            let touched: Vec<IpAddr> = range().filter(|(_, id)| split.contains(id)).map(|(a, _)| a).collect();
            self.store.dirty.addresses.extend(touched);
            self.store.senders.dirty.extend(located(&senders, &split));
        }
    }
    /// The addresses whose block it was have the next longer one that holds them; `own` is the prefix's identity.
    fn prefix_goes(&mut self, net: IpNet, own: u32) {
        let parent = self.parent(net);
        let senders = self.senders_in(net);
        let of_net = self.classes.iter().filter(|(id, c)| c.block == Some(net) && *id != own);
        let touched: Vec<(u32, Class)> =
            of_net.map(|(id, c)| (id, Class { block: parent, ..Class::clone(c) })).collect();
        let mut merged = BTreeSet::new();
        for (id, class) in touched {
            if self.classes.knows(&class) {
                merged.insert(id);
            } else {
                self.classes.rename(id, class);
            }
        }
        if !merged.is_empty() {
            let within = self.identities.within(net).filter(|(_, holder)| merged.contains(&holder.identity));
            let touched: Vec<IpAddr> = within.map(|(a, _)| a).collect();
            self.store.dirty.addresses.extend(touched);
            self.store.senders.dirty.extend(located(&senders, &merged));
        }
    }
    /// The longest prefix with an entry that holds another one.
    fn parent(&self, net: IpNet) -> Option<IpNet> {
        let longer = (0..net.prefix_len()).rev();
        longer
            .filter_map(|bits| IpNet::new(net.network(), bits).ok())
            .map(|n| n.trunc())
            .find(|n| self.blocks.contains_key(n))
    }
}
