//! Map entries that the agent keeps for every address of the cluster: each key takes about as much as those of its map have, not as much as the longest.
use std::collections::BTreeMap;

use super::{EntryKey, Key, LONGEST_KEY};
use crate::memory::pack;

/// Bytes of an IPv4 address, which most entries are about.
const SHORT: usize = 4;
/// Bytes of an IPv6 address.
const MIDDLE: usize = 16;

/// What stands in keys of senders, which are the longest, between node and class before it and an IPv4 address behind it: it is the same in all of them.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An [`EntryKey`] of so many bytes at most, or of more if they are told by the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packed<const N: usize> {
    order: u8,
    len: u8,
    bytes: [u8; N],
}
impl<const N: usize> Packed<N> {
    /// `None` when it has more.
    fn new(key: &EntryKey) -> Option<Self> {
        let all = &*key.key;
        let (front, back) = match all.split_at_checked(MAPPED.len()) {
            Some((front, rest)) if all.len() == LONGEST_KEY && all.len() > N => (front, rest.strip_prefix(&MAPPED)?),
            _ => (all, &[][..]),
        };
        let mut bytes = [0; N];
        let (head, tail) = bytes.split_at_mut_checked(front.len())?;
        head.copy_from_slice(front);
        tail.get_mut(..back.len())?.copy_from_slice(back);
        Some(Self { order: key.order, len: u8::try_from(all.len()).ok()?, bytes })
    }
    fn key(&self) -> EntryKey {
        let key = match self.bytes.get(..usize::from(self.len)) {
            Some(bytes) => Key::new(bytes),
            None => {
                let (front, back) = self.bytes.split_at(MAPPED.len().min(N));
                Key::new(&[front, &MAPPED, back].concat())
            }
        };
        // It was made of such a key.
        EntryKey { order: self.order, key: key.unwrap_or_else(|| unreachable!("{self:?} is too long")) }
    }
}

/// The keys of a handful of entries, in order.
#[derive(Clone, Debug)]
pub enum Keys {
    /// One, as nearly all rows ask for.
    One(Brief),
    /// Another number of them, or one that is longer than an address.
    More(Box<[EntryKey]>),
}
/// A key that is no longer than an address.
#[derive(Clone, Copy, Debug)]
pub struct Brief(Packed<MIDDLE>);
impl Keys {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = EntryKey> {
        let (one, more) = match self {
            Self::One(Brief(key)) => (Some(key.key()), &[][..]),
            Self::More(keys) => (None, &**keys),
        };
        one.into_iter().chain(more.iter().cloned())
    }
}
impl FromIterator<EntryKey> for Keys {
    fn from_iter<I: IntoIterator<Item = EntryKey>>(keys: I) -> Self {
        let all: Box<[EntryKey]> = keys.into_iter().collect();
        match &*all {
            [one] => Packed::new(one).map_or_else(|| Self::More(all.clone()), |key| Self::One(Brief(key))),
            _ => Self::More(all),
        }
    }
}

/// Something for each entry, by its key.
#[derive(Clone, Debug)]
pub struct Entries<V> {
    short: BTreeMap<Packed<SHORT>, V>,
    middle: BTreeMap<Packed<MIDDLE>, V>,
    long: BTreeMap<Packed<LONGEST_KEY>, V>,
}
impl<V> Default for Entries<V> {
    fn default() -> Self {
        Self { short: BTreeMap::new(), middle: BTreeMap::new(), long: BTreeMap::new() }
    }
}
impl<V> Entries<V> {
    /// What is under a key.
    pub fn get(&self, key: &EntryKey) -> Option<&V> {
        if let Some(key) = Packed::new(key) {
            return self.short.get(&key);
        }
        match Packed::new(key) {
            Some(key) => self.middle.get(&key),
            None => self.long.get(&Packed::new(key)?),
        }
    }
    /// Whether something is under a key.
    pub fn contains_key(&self, key: &EntryKey) -> bool {
        self.get(key).is_some()
    }
    /// Puts it under a key; what was there.
    pub fn insert(&mut self, key: &EntryKey, value: V) -> Option<V> {
        if let Some(key) = Packed::new(key) {
            return self.short.insert(key, value);
        }
        match Packed::new(key) {
            Some(key) => self.middle.insert(key, value),
            None => self.long.insert(Packed::new(key)?, value),
        }
    }
    /// Takes out what is under a key.
    pub fn remove(&mut self, key: &EntryKey) -> Option<V> {
        if let Some(key) = Packed::new(key) {
            return self.short.remove(&key);
        }
        match Packed::new(key) {
            Some(key) => self.middle.remove(&key),
            None => self.long.remove(&Packed::new(key)?),
        }
    }
    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (EntryKey, &V)> {
        let short = self.short.iter().map(|(key, value)| (key.key(), value));
        let middle = self.middle.iter().map(|(key, value)| (key.key(), value));
        short.chain(middle).chain(self.long.iter().map(|(key, value)| (key.key(), value)))
    }
    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = EntryKey> {
        self.iter().map(|(key, _)| key)
    }
    /// Packs them as closely as it goes.
    pub fn pack(&mut self) {
        pack(&mut self.short);
        pack(&mut self.middle);
        pack(&mut self.long);
    }
}
impl<V> FromIterator<(EntryKey, V)> for Entries<V> {
    fn from_iter<I: IntoIterator<Item = (EntryKey, V)>>(entries: I) -> Self {
        let mut all = Self::default();
        for (key, value) in entries {
            all.insert(&key, value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cni_common::schema;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::change::Map;

    fn key(map: usize, bytes: &[u8]) -> EntryKey {
        let maps = [&schema::LOCAL4, &schema::REMOTE4, &schema::REMOTE6, Map::Senders.spec()];
        EntryKey::new(maps[map], bytes).unwrap()
    }

    proptest! {
        #[test]
        fn they_are_a_map_by_key(
            steps in proptest::collection::vec((0_usize..4, proptest::collection::vec(0_u8..3, 0..=LONGEST_KEY), any::<Option<u8>>()), 0..60)
        ) {
            let (mut entries, mut model) = (Entries::default(), BTreeMap::new());
            for (map, bytes, value) in steps {
                // Zeros at its end are not to make one key another.
                for key in [key(map, &bytes), key(map, &[&bytes[..], &[0]].concat()[..(bytes.len() + 1).min(LONGEST_KEY)])] {
                    prop_assert_eq!(entries.get(&key), model.get(&key));
                    match value {
                        Some(value) => prop_assert_eq!(entries.insert(&key, value), model.insert(key.clone(), value)),
                        None => prop_assert_eq!(entries.remove(&key), model.remove(&key)),
                    }
                    prop_assert_eq!(entries.contains_key(&key), value.is_some());
                }
            }
            entries.pack();
            let all: BTreeMap<EntryKey, u8> = entries.iter().map(|(key, value)| (key, *value)).collect();
            prop_assert_eq!(&all, &model);
            let again: Entries<u8> = model.clone().into_iter().collect();
            prop_assert_eq!(again.keys().collect::<BTreeSet<_>>(), model.into_keys().collect::<BTreeSet<_>>());
        }

        #[test]
        fn keys_come_out_as_they_went_in(all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..=LONGEST_KEY), 0..4)) {
            let all: Vec<EntryKey> = all.iter().map(|bytes| key(0, bytes)).collect();
            prop_assert_eq!(all.iter().cloned().collect::<Keys>().iter().collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn a_sender_with_an_ipv4_address_takes_no_more_than_an_ipv6_address() {
        let mapped = [&[7; 12][..], &MAPPED, &[10, 0, 0, 1]].concat();
        let mut others = [mapped.clone(), mapped.clone(), mapped[..27].to_vec(), mapped[..16].to_vec()];
        others[0][23] = 0;
        others[1][27] = 2;
        let all: Vec<EntryKey> = others.iter().chain([&mapped]).map(|bytes| key(3, bytes)).collect();
        let entries: Entries<usize> = all.iter().cloned().zip(0..).collect();
        assert_eq!((entries.short.len(), entries.middle.len(), entries.long.len()), (0, 3, 2));
        for (n, key) in all.iter().enumerate() {
            assert_eq!(entries.get(key), Some(&n));
        }
        assert_eq!(entries.keys().collect::<BTreeSet<_>>(), all.into_iter().collect());
    }

    #[test]
    fn they_are_small() {
        assert!(size_of::<Packed<SHORT>>() <= 6 && size_of::<Packed<MIDDLE>>() <= 18 && size_of::<Keys>() <= 24);
    }
}
