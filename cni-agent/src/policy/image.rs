//! The policy maps of a node in memory, by bytes: what the kernel would hold, and the look-up on it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bytemuck::{bytes_of, pod_read_unaligned, try_from_bytes};
use cni_common::{
    net::{Ip4, Ip6},
    policy::{Holder, Identity, PeerKey, PeerRules, RULE_PORT_BITS, Rule, RuleKey, SENDER_BITS, SenderKey},
};
use cni_ebpf::{
    family::{V4, V6},
    policy::{Identities, Rules},
};

use super::{
    change::{Change, Map},
    engine::EndpointSets,
};
use crate::tables::PodKey;

/// A value, aligned as the program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    words: Box<[u32]>,
}

/// The maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    maps: BTreeMap<(Map, Vec<u8>), Value>,
    /// How many prefixes of each length a trie has.
    lengths: BTreeMap<(Map, u32), usize>,
    /// Policy sets of the node's pods, as their endpoints' entries have them.
    pub endpoints: BTreeMap<PodKey, EndpointSets>,
    /// The node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// Numbers of other nodes, by the addresses of their pods.
    pub nodes: BTreeMap<IpAddr, u32>,
}

impl Image {
    /// Does one write.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Entry { map, key, value: Some(value) } => {
                let words = value.chunks_exact(size_of::<u32>()).map(pod_read_unaligned).collect();
                let length = length(map, &key);
                if self.maps.insert((map, key), Value { words }).is_none() {
                    *self.lengths.entry(length).or_default() += 1;
                }
            }
            Change::Entry { map, key, value: None } => {
                let length = length(map, &key);
                if self.maps.remove(&(map, key)).is_some()
                    && let Some(n) = self.lengths.get_mut(&length)
                {
                    *n -= 1;
                    if *n == 0 {
                        self.lengths.remove(&length);
                    }
                }
            }
            Change::Endpoint { pod, sets: Some(sets) } => {
                self.endpoints.insert(pod, sets);
            }
            Change::Endpoint { pod, sets: None } => {
                self.endpoints.remove(&pod);
            }
        }
    }
    /// Entries of all maps.
    pub fn len(&self) -> usize {
        self.maps.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }
    /// Entries of one map.
    pub fn len_of(&self, map: Map) -> usize {
        self.maps.keys().filter(|(m, _)| *m == map).count()
    }

    fn get<V: bytemuck::Pod>(&self, map: Map, key: Vec<u8>) -> Option<&V> {
        try_from_bytes(bytemuck::cast_slice(&self.maps.get(&(map, key))?.words)).ok()
    }
    fn sender(&self, key: &SenderKey) -> Option<u32> {
        self.longest(Map::Senders, bytes_of(key), SENDER_BITS + 128).map(|i: &Identity| i.identity)
    }
    /// As an LPM trie answers: the longest prefix of `data`, of `max` bits at most.
    fn longest<V: bytemuck::Pod>(&self, map: Map, data: &[u8], max: u32) -> Option<&V> {
        self.lengths.range((map, 0)..=(map, max)).rev().find_map(|((_, bits), _)| {
            let bits = *bits;
            let mut key = bits.to_ne_bytes().to_vec();
            key.extend(data.iter().zip(0_u32..).map(|(byte, n)| byte & mask(bits.saturating_sub(8 * n))));
            self.get(map, key)
        })
    }
}

/// The length that a trie's key begins with; 0 for other maps.
fn length(map: Map, key: &[u8]) -> (Map, u32) {
    match map {
        Map::Rules | Map::Blocks4 | Map::Blocks6 | Map::Senders => (map, key.get(..4).map_or(0, pod_read_unaligned)),
        Map::Ports | Map::Peers | Map::Identities4 | Map::Identities6 => (map, 0),
    }
}

/// The first `bits` of a byte.
fn mask(bits: u32) -> u8 {
    !0xff_u8.checked_shr(bits).unwrap_or(0)
}

impl Rules for Image {
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        let found: &PeerRules = self.get(Map::Peers, bytes_of(&PeerKey { set, identity }).to_vec())?;
        Some(found.rules)
    }
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule> {
        self.get(Map::Ports, bytes_of(key).to_vec())
    }
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        self.longest(Map::Rules, bytes_of(key), RULE_PORT_BITS)
    }
}
impl Identities<V4> for Image {
    fn holder(&self, a: &Ip4) -> Option<&Holder> {
        self.get(Map::Identities4, a.bytes.to_vec())
    }
    fn node(&self, a: &Ip4) -> Option<u32> {
        self.nodes.get(&IpAddr::from(a.bytes)).copied()
    }
    fn sender(&self, key: &SenderKey) -> Option<u32> {
        self.sender(key)
    }
    fn block(&self, a: &Ip4) -> Option<u32> {
        self.longest(Map::Blocks4, &a.bytes, 32).map(|i: &Identity| i.identity)
    }
    fn is_inside(&self, _: &Ip4) -> bool {
        false
    }
    fn is_own(&self, a: &Ip4) -> bool {
        self.own.contains(&IpAddr::from(a.bytes))
    }
    fn is_service(&self, _: &Ip4) -> bool {
        false
    }
}
impl Identities<V6> for Image {
    fn holder(&self, a: &Ip6) -> Option<&Holder> {
        self.get(Map::Identities6, a.bytes.to_vec())
    }
    fn node(&self, a: &Ip6) -> Option<u32> {
        self.nodes.get(&IpAddr::from(a.bytes)).copied()
    }
    fn sender(&self, key: &SenderKey) -> Option<u32> {
        self.sender(key)
    }
    fn block(&self, a: &Ip6) -> Option<u32> {
        self.longest(Map::Blocks6, &a.bytes, 128).map(|i: &Identity| i.identity)
    }
    fn is_inside(&self, _: &Ip6) -> bool {
        false
    }
    fn is_own(&self, a: &Ip6) -> bool {
        self.own.contains(&IpAddr::from(a.bytes))
    }
    fn is_service(&self, _: &Ip6) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::flatten::{Decision, Entry, Verdict};

    #[test]
    fn the_longest_prefix_answers_and_its_last_bit_counts() {
        let mut image = Image::default();
        let mut put = |bits, proto, port, cookie| {
            let decision = Decision { verdict: Verdict::Allow, cookie };
            image.apply(Change::rule(7, &Entry { bits, proto, port, decision }, true));
        };
        put(32, 0, 0, 1);
        put(40, 6, 0, 2);
        put(55, 6, 80, 3);
        put(56, 6, 81, 4);
        let ask = |rules, proto, port: u16| {
            image.rule(&RuleKey { rules, proto, port: port.to_be_bytes(), pad: 0 }).map(|r| r.cookie)
        };
        assert_eq!([ask(7, 6, 80), ask(7, 6, 81), ask(7, 6, 82)], [Some(3), Some(4), Some(2)]);
        assert_eq!([ask(7, 17, 80), ask(7, 1, 0), ask(8, 6, 80)], [Some(1), Some(1), None]);
    }

    #[test]
    fn bits_are_counted_from_the_highest() {
        assert_eq!([mask(0), mask(1), mask(7), mask(8), mask(40)], [0, 0x80, 0xfe, 0xff, 0xff]);
    }
}
