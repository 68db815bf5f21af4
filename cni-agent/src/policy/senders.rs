//! Pods of other nodes by their label class, which the tunnel names as a packet's sender: known as soon as the pod's object says its node, before it has an
//! address.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use crate::memory::pack;

/// What names an identity to the programs: [`SenderKey`](cni_common::policy::SenderKey).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// The node's number in the maps.
    pub node: u32,
    /// Hash of the label class.
    pub class: u32,
    /// Where the pod's address is.
    pub prefix: IpNet,
}

/// How packets of a node's pods come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its number in the maps.
    pub number: u32,
    /// Its pod CIDRs, without host bits.
    pub cidrs: Vec<IpNet>,
}

/// A node that pods name as theirs, or that has a way.
#[derive(Debug, Default)]
struct Place {
    name: Arc<str>,
    pods: usize,
    way: Option<Way>,
}

/// A label class on a node: the node's place, and the hash.
pub type Located = (u32, u32);

/// All nodes but this one, with the classes of their pods.
#[derive(Debug, Default)]
pub struct Senders {
    numbers: BTreeMap<Arc<str>, u32>,
    places: BTreeMap<u32, Place>,
    last: u32,
    /// Place, hash and group of pods → how many pods.
    pods: BTreeMap<(u32, u32, u32), u32>,
    /// What may be named in another way since it was last compiled.
    pub dirty: BTreeSet<Located>,
}

impl Senders {
    fn place(&mut self, node: &str) -> u32 {
        if let Some(number) = self.numbers.get(node) {
            return *number;
        }
        self.last += 1;
        let name: Arc<str> = node.into();
        self.numbers.insert(Arc::clone(&name), self.last);
        self.places.insert(self.last, Place { name, ..Place::default() });
        self.last
    }
    /// Forgets a place that nobody asks for.
    fn leave_place(&mut self, number: u32) {
        if self.places.get(&number).is_some_and(|p| p.pods == 0 && p.way.is_none())
            && let Some(place) = self.places.remove(&number)
        {
            self.numbers.remove(&place.name);
        }
    }

    /// A node's way is this, or it has none any more.
    pub fn apply_way(&mut self, node: &str, way: Option<Way>) {
        if way.is_none() && !self.numbers.contains_key(node) {
            return;
        }
        let number = self.place(node);
        if let Some(place) = self.places.get_mut(&number)
            && place.way != way
        {
            place.way = way;
            self.touch(number);
        }
        self.leave_place(number);
    }
    /// All of a node's classes are to be looked at again.
    pub fn touch(&mut self, place: u32) {
        let of_place = self.pods.range((place, 0, 0)..=(place, u32::MAX, u32::MAX)).map(|((_, class, _), _)| *class);
        self.dirty.extend(of_place.map(|class| (place, class)));
    }

    /// Packs what is kept for each pod as closely as it goes.
    pub fn pack(&mut self) {
        pack(&mut self.pods);
    }

    /// The place of a node, if it has one.
    pub fn place_of(&self, node: &str) -> Option<u32> {
        self.numbers.get(node).copied()
    }

    /// A pod of this class and group is on the node, whose place is the answer.
    pub fn join(&mut self, node: &str, class: u32, group: u32) -> u32 {
        let number = self.place(node);
        if let Some(place) = self.places.get_mut(&number) {
            place.pods += 1;
        }
        let pods = self.pods.entry((number, class, group)).or_default();
        *pods += 1;
        if *pods == 1 {
            self.dirty.insert((number, class));
        }
        number
    }
    /// It is there no more.
    pub fn leave(&mut self, place: u32, class: u32, group: u32) {
        if let Some(pods) = self.pods.get_mut(&(place, class, group)) {
            *pods -= 1;
            if *pods == 0 {
                self.pods.remove(&(place, class, group));
                self.dirty.insert((place, class));
            }
        }
        if let Some(found) = self.places.get_mut(&place) {
            found.pods -= 1;
        }
        self.leave_place(place);
    }

    /// Groups of pods that a hash names on a node.
    pub fn groups(&self, (place, class): Located) -> impl Iterator<Item = u32> {
        self.pods.range((place, class, 0)..=(place, class, u32::MAX)).map(|((.., group), _)| *group)
    }
    /// The way of a place.
    pub fn way(&self, place: u32) -> Option<&Way> {
        self.places.get(&place)?.way.as_ref()
    }
    /// All places with a way.
    pub fn ways(&self) -> impl Iterator<Item = (u32, &Way)> {
        self.places.iter().filter_map(|(number, place)| Some((*number, place.way.as_ref()?)))
    }
}
