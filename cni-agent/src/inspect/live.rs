//! The kernel's maps of policy behind the traits of the look-up, each entry asked for when the look-up comes to it: it meets what a packet
//! would meet, tries included, and costs a handful of calls however large the maps are.
use std::{
    cell::{OnceCell, RefCell},
    io,
    net::IpAddr,
};

use bytemuck::{Pod, bytes_of, try_pod_read_unaligned};
use cni_common::{
    maps::{Cidr, CtConfig, Endpoint, Local, Remote, SPARED_SERVICE},
    net::{Ip4, Ip6},
    policy::{Holder, Identity, PeerKey, PeerRules, RULE_PORT_BITS, Rule, RuleKey, SENDER_BITS, SenderKey},
    schema::{self, MapSpec},
};
use cni_ebpf::{
    family::{V4, V6},
    policy::{Identities, Rules},
};

use crate::datapath::Datapath;

/// Who has maps.
pub(super) trait Kernel {
    /// The value under a key; of a trie, under its longest prefix.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn lookup(&self, map: &MapSpec, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
}
impl Kernel for Datapath {
    fn lookup(&self, map: &MapSpec, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.map(map).lookup(key)
    }
}

/// The maps, for one flow at one of its ends: a look-up comes to one rule at most, and to who has each of two addresses.
pub(super) struct Live<'a, K> {
    kernel: &'a K,
    rule: OnceCell<Rule>,
    holders: [OnceCell<(IpAddr, Holder)>; 2],
    failed: RefCell<Option<io::Error>>,
}
impl<'a, K: Kernel> Live<'a, K> {
    pub(super) fn new(kernel: &'a K) -> Self {
        Self { kernel, rule: OnceCell::new(), holders: Default::default(), failed: RefCell::new(None) }
    }
    /// What was found, unless something could not be read.
    pub(super) fn finish<T>(self, found: T) -> io::Result<T> {
        self.failed.into_inner().map_or(Ok(found), Err)
    }

    fn get<V: Pod>(&self, map: &MapSpec, key: &[u8]) -> Option<V> {
        match self.kernel.lookup(map, key) {
            Ok(value) => try_pod_read_unaligned(&value?).ok(),
            Err(error) => {
                self.failed.replace(Some(error));
                None
            }
        }
    }
    fn holder_of(&self, address: IpAddr, holder: Holder) -> Option<&Holder> {
        let mut slots = self.holders.iter().map(|slot| slot.get_or_init(|| (address, holder)));
        slots.find(|(at, _)| *at == address).map(|(_, holder)| holder)
    }
    /// In a trie.
    fn longest<V: Pod>(&self, map: &MapSpec, data: &[u8], bits: u32) -> Option<V> {
        self.get(map, &[&bits.to_ne_bytes()[..], data].concat())
    }

    /// What a packet meets that a pod sends by the device with this index.
    pub(super) fn endpoint(&self, ifindex: u32) -> Option<Endpoint> {
        self.get(&schema::ENDPOINTS, &ifindex.to_ne_bytes())
    }
    /// What a packet meets that is for a pod of this node.
    pub(super) fn local(&self, address: IpAddr) -> Option<Local> {
        match address {
            IpAddr::V4(a) => self.get(&schema::LOCAL4, &a.octets()),
            IpAddr::V6(a) => self.get(&schema::LOCAL6, &a.octets()),
        }
    }
    /// The policy epoch.
    pub(super) fn epoch(&self) -> Option<u32> {
        self.get(&schema::CT_CONFIG, &0_u32.to_ne_bytes()).map(|c: CtConfig| c.epoch)
    }
}

impl<K: Kernel> Rules for Live<'_, K> {
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        self.get(&schema::POLICY_PEER, bytes_of(&PeerKey { set, identity })).map(|found: PeerRules| found.rules)
    }
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule> {
        let rule = self.get(&schema::POLICY_PORT, bytes_of(key))?;
        Some(self.rule.get_or_init(|| rule))
    }
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        let rule = self.longest(&schema::POLICY_RULE, bytes_of(key), RULE_PORT_BITS)?;
        Some(self.rule.get_or_init(|| rule))
    }
}

macro_rules! identities {
    ($family:ty, $address:ty, $bits:literal, $identity:ident, $remote:ident, $block:ident, $cidr:ident, $own:ident, $spared:ident) => {
        impl<K: Kernel> Identities<$family> for Live<'_, K> {
            fn holder(&self, a: &$address) -> Option<&Holder> {
                self.holder_of(IpAddr::from(a.bytes), self.get(&schema::$identity, &a.bytes)?)
            }
            fn node(&self, a: &$address) -> Option<u32> {
                let remote = self.get(&schema::$remote, &a.bytes).map(|remote: Remote| remote.node);
                remote.or_else(|| self.longest(&schema::$cidr, &a.bytes, $bits).map(|cidr: Cidr| cidr.node))
            }
            fn sender(&self, key: &SenderKey) -> Option<u32> {
                self.longest(&schema::SENDERS, bytes_of(key), SENDER_BITS + 128).map(|found: Identity| found.identity)
            }
            fn block(&self, a: &$address) -> Option<u32> {
                self.longest(&schema::$block, &a.bytes, $bits).map(|found: Identity| found.identity)
            }
            fn is_inside(&self, a: &$address) -> bool {
                self.longest::<Cidr>(&schema::$cidr, &a.bytes, $bits).is_some()
            }
            fn is_own(&self, a: &$address) -> bool {
                self.get(&schema::$own, &a.bytes).is_some_and(|flags: u32| flags != 0)
            }
            fn is_service(&self, a: &$address) -> bool {
                self.longest(&schema::$spared, &a.bytes, $bits).is_some_and(|flags: u32| flags & SPARED_SERVICE != 0)
            }
        }
    };
}
identities!(V4, Ip4, 32, IDENTITY4, REMOTE4, BLOCK4, CIDR4, OWN4, SPARED4);
identities!(V6, Ip6, 128, IDENTITY6, REMOTE6, BLOCK6, CIDR6, OWN6, SPARED6);
