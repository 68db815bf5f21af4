//! What there is for every address of the cluster, by address: one of IPv4 takes its own four bytes, not those that one of either family may need.
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::senders::Located;
use crate::memory::pack;

/// Something for each address.
#[derive(Debug)]
pub struct ByAddress<V> {
    v4: BTreeMap<Ipv4Addr, V>,
    v6: BTreeMap<Ipv6Addr, V>,
}
impl<V> Default for ByAddress<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}
impl<V> ByAddress<V> {
    /// What is known of an address.
    pub fn get(&self, address: IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(a) => self.v4.get(&a),
            IpAddr::V6(a) => self.v6.get(&a),
        }
    }
    /// Notes it; what was known before.
    pub fn insert(&mut self, address: IpAddr, value: V) -> Option<V> {
        match address {
            IpAddr::V4(a) => self.v4.insert(a, value),
            IpAddr::V6(a) => self.v6.insert(a, value),
        }
    }
    /// Forgets it; what was known.
    pub fn remove(&mut self, address: IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(a) => self.v4.remove(&a),
            IpAddr::V6(a) => self.v6.remove(&a),
        }
    }
    /// All of them, in the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(a, value)| (IpAddr::V4(*a), value));
        v4.chain(self.v6.iter().map(|(a, value)| (IpAddr::V6(*a), value)))
    }
    /// Those in a prefix.
    pub fn within(&self, net: IpNet) -> impl Iterator<Item = (IpAddr, &V)> {
        let (v4, v6) = match net {
            IpNet::V4(net) => (Some(self.v4.range(net.network()..=net.broadcast())), None),
            IpNet::V6(net) => (None, Some(self.v6.range(net.network()..=net.broadcast()))),
        };
        let v4 = v4.into_iter().flatten().map(|(a, value)| (IpAddr::V4(*a), value));
        v4.chain(v6.into_iter().flatten().map(|(a, value)| (IpAddr::V6(*a), value)))
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Packs them as closely as it goes.
    pub fn pack(&mut self) {
        pack(&mut self.v4);
        pack(&mut self.v6);
    }
}

/// A sender by its node's place, which outlives the node's number: place, hash of the label class, and where its address is.
pub type Place = (u32, u32, IpNet);

/// Something for each sender.
#[derive(Debug)]
pub struct ByPlace<V> {
    v4: BTreeMap<(u32, u32, Ipv4Net), V>,
    v6: BTreeMap<(u32, u32, Ipv6Net), V>,
}
impl<V> Default for ByPlace<V> {
    fn default() -> Self {
        Self { v4: BTreeMap::new(), v6: BTreeMap::new() }
    }
}
impl<V> ByPlace<V> {
    const FIRST4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    const LAST4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32);
    const FIRST6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
    const LAST6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::MAX), 128);

    /// Notes it; what was known before.
    pub fn insert(&mut self, (place, class, net): Place, value: V) -> Option<V> {
        match net {
            IpNet::V4(net) => self.v4.insert((place, class, net), value),
            IpNet::V6(net) => self.v6.insert((place, class, net), value),
        }
    }
    /// Forgets it; what was known.
    pub fn remove(&mut self, (place, class, net): Place) -> Option<V> {
        match net {
            IpNet::V4(net) => self.v4.remove(&(place, class, net)),
            IpNet::V6(net) => self.v6.remove(&(place, class, net)),
        }
    }
    /// Those of label classes from the first to the last, in order.
    fn between(&self, (place, first): Located, last: u32) -> impl Iterator<Item = (Place, &V)> {
        let v4 = self.v4.range((place, first, Self::FIRST4)..=(place, last, Self::LAST4));
        let v6 = self.v6.range((place, first, Self::FIRST6)..=(place, last, Self::LAST6));
        let v4 = v4.map(|((place, class, net), value)| ((*place, *class, IpNet::V4(*net)), value));
        v4.chain(v6.map(|((place, class, net), value)| ((*place, *class, IpNet::V6(*net)), value)))
    }
    /// Those of a label class.
    pub fn of_class(&self, located: Located) -> impl Iterator<Item = (Place, &V)> {
        self.between(located, located.1)
    }
    /// Those of a node.
    pub fn of_place(&self, place: u32) -> impl Iterator<Item = (Place, &V)> {
        self.between((place, 0), u32::MAX)
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &V)> {
        let v4 = self.v4.iter().map(|((place, class, net), value)| ((*place, *class, IpNet::V4(*net)), value));
        v4.chain(self.v6.iter().map(|((place, class, net), value)| ((*place, *class, IpNet::V6(*net)), value)))
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Packs them as closely as it goes.
    pub fn pack(&mut self) {
        pack(&mut self.v4);
        pack(&mut self.v6);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few, and one that is both families' first.
        (any::<bool>(), 0_u8..4).prop_map(|(v4, n)| {
            if v4 { IpAddr::from([10, n / 2, 0, n]) } else { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]) }
        })
    }

    proptest! {
        #[test]
        fn they_are_maps(steps in proptest::collection::vec((address(), 0_u32..3, 0_u32..3, any::<Option<u8>>()), 0..60), bits in 0_u8..=32) {
            let (mut addresses, mut places) = (ByAddress::default(), ByPlace::default());
            let (mut by_address, mut by_place) = (BTreeMap::new(), BTreeMap::new());
            for (a, place, class, value) in steps {
                let key = (place, class, IpNet::from(a));
                match value {
                    Some(value) => {
                        prop_assert_eq!(addresses.insert(a, value), by_address.insert(a, value));
                        prop_assert_eq!(places.insert(key, value), by_place.insert(key, value));
                    }
                    None => {
                        prop_assert_eq!(addresses.remove(a), by_address.remove(&a));
                        prop_assert_eq!(places.remove(key), by_place.remove(&key));
                    }
                }
                prop_assert_eq!(addresses.get(a).copied(), value);
            }
            addresses.pack();
            places.pack();
            prop_assert_eq!((addresses.len(), places.len()), (by_address.len(), by_place.len()));
            prop_assert_eq!((addresses.is_empty(), places.is_empty()), (by_address.is_empty(), by_place.is_empty()));
            prop_assert!(addresses.iter().eq(by_address.iter().map(|(a, v)| (*a, v))));
            prop_assert_eq!(places.iter().collect::<BTreeMap<_, _>>(), by_place.iter().map(|(k, v)| (*k, v)).collect());
            for net in [IpNet::new([10, 0, 0, 0].into(), bits), IpNet::new([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 96 + bits)] {
                let net = net.unwrap().trunc();
                prop_assert!(addresses.within(net).eq(by_address.iter().filter(|(a, _)| net.contains(*a)).map(|(a, v)| (*a, v))));
            }
            for place in 0..3 {
                let theirs = by_place.iter().filter(|(k, _)| k.0 == place).map(|(k, v)| (*k, v)).collect();
                prop_assert_eq!(places.of_place(place).collect::<BTreeMap<_, _>>(), theirs);
                let theirs = by_place.iter().filter(|(k, _)| (k.0, k.1) == (place, 1)).map(|(k, v)| (*k, v));
                prop_assert!(places.of_class((place, 1)).eq(theirs));
            }
        }
    }
}
