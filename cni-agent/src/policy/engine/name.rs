//! What the tunnel names as a packet's sender gets its identity: under each pod CIDR of the sending node, and under what policies name inside of one.
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{
    super::{
        addresses::Place,
        change::Change,
        classes::{Class, Owner},
        senders::{Located, Sender},
    },
    Engine,
};

impl Engine {
    /// Gives dirty senders their identities; `left` gets those that they had.
    pub(super) fn name_senders(&mut self, moves: &mut Vec<Change>, left: &mut Vec<u32>) {
        for located in std::mem::take(&mut self.store.senders.dirty) {
            let number = self.store.senders.way(located.0).map(|way| way.number);
            let wanted = self.sender_classes(located);
            let mut gone: BTreeSet<Place> = self.senders_of(located).map(|(place, ..)| place).collect();
            for (prefix, class) in wanted {
                let (place, Some(number)) = ((located.0, located.1, prefix), number) else { continue };
                gone.remove(&place);
                let id = self.classes.take(class);
                let old = self.senders.insert(place, (number, id));
                if let Some((before, old_id)) = old {
                    left.push(old_id);
                    if before != number {
                        moves.push(Change::sender(&sender(place, before), None));
                    }
                }
                if old != Some((number, id)) {
                    moves.push(Change::sender(&sender(place, number), Some(self.shown(id))));
                }
            }
            for place in gone {
                if let Some((number, id)) = self.senders.remove(place) {
                    left.push(id);
                    moves.push(Change::sender(&sender(place, number), None));
                }
            }
        }
    }

    /// Under which prefixes pods of a label class send, and what is seen in them there; nothing, if the hash names several classes.
    fn sender_classes(&mut self, located: Located) -> Vec<(IpNet, Class)> {
        let Some(way) = self.store.senders.way(located.0) else { return Vec::new() };
        let mut prefixes = Vec::new();
        for cidr in &way.cidrs {
            let inside = self.blocks.range(*cidr..=last_in(*cidr)).map(|(net, _)| *net);
            prefixes.extend(inside.filter(|net| net != cidr && cidr.contains(net)).map(|net| (net, Some(net))));
            prefixes.push((*cidr, self.block_of(*cidr)));
        }
        let Some(group) = self.group_named(located) else { return Vec::new() };
        let part = self.part_of(group);
        let of = |net: &IpNet| Owner::Pod { part: part.clone(), v4: matches!(net, IpNet::V4(_)) };
        prefixes.into_iter().map(|(net, block)| (net, Class { owner: of(&net), block, domains: Vec::new() })).collect()
    }
    /// The group of pods that a hash stands for on a node. Pods that only their named ports tell apart are of one label class: the first of them by these,
    /// as nobody asks a sender for ports.
    pub(super) fn group_named(&self, located: Located) -> Option<u32> {
        let groups = || self.store.senders.groups(located).filter_map(|n| Some((n, self.store.group(n)?)));
        let (first, group) = groups().min_by(|a, b| a.1.alike.cmp(&b.1.alike))?;
        let (namespace, labels) = (&group.alike.namespace, &group.alike.labels);
        groups().all(|(_, g)| g.alike.namespace == *namespace && g.alike.labels == *labels).then_some(first)
    }
    /// The longest prefix with an entry that holds another one, or is it.
    pub(super) fn block_of(&self, net: IpNet) -> Option<IpNet> {
        let longest = (0..=net.prefix_len()).rev().filter_map(|bits| IpNet::new(net.network(), bits).ok());
        longest.map(|n| n.trunc()).find(|n| self.blocks.contains_key(n))
    }

    /// What a class on a node has, with identities.
    pub(super) fn senders_of(&self, located: Located) -> impl Iterator<Item = (Place, u32)> {
        self.senders.of_class(located).map(|(key, (_, id))| (key, *id))
    }
    /// Senders whose prefix is in this one, of nodes whose pod CIDR is; nodes of which it is a part are noted: they have one prefix more or less.
    pub(super) fn senders_in(&mut self, net: IpNet) -> Vec<(Place, u32)> {
        let mut found = Vec::new();
        let mut cut = Vec::new();
        for (place, way) in self.store.senders.ways() {
            if way.cidrs.iter().any(|cidr| net.contains(cidr)) {
                let of_place = self.senders.of_place(place);
                found.extend(of_place.filter(|((.., p), _)| net.contains(p)).map(|(key, (_, id))| (key, *id)));
            }
            if way.cidrs.iter().any(|cidr| *cidr != net && cidr.contains(&net)) {
                cut.push(place);
            }
        }
        for place in cut {
            self.store.senders.touch(place);
        }
        found
    }
    /// The senders that have this identity.
    pub(super) fn senders_with(&self, identity: u32) -> impl Iterator<Item = Sender> {
        let theirs = self.senders.iter().filter(move |(_, (_, id))| *id == identity);
        theirs.map(|(key, (number, _))| sender(key, *number))
    }
    /// All senders that have an identity, as the maps show it.
    pub fn senders(&self) -> impl Iterator<Item = (Sender, u32)> {
        self.senders.iter().map(|(key, (number, id))| (sender(key, *number), self.shown(*id)))
    }
}

fn sender((_, class, prefix): Place, node: u32) -> Sender {
    Sender { node, class, prefix }
}

/// The last prefix in this one, in the order of prefixes.
fn last_in(net: IpNet) -> IpNet {
    IpNet::from(net.broadcast())
}
