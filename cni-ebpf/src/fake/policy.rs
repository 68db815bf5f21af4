//! The policy maps.
use std::{cell::RefCell, collections::BTreeMap};

use cni_common::{
    net::{Ip4, Ip6},
    policy::{Rule, RuleKey},
};

use super::{Fake, holds};
use crate::{
    Tables,
    family::{V4, V6},
    policy::{Identities, Rules},
};

/// What the agent writes.
#[derive(Clone, Debug, Default)]
pub struct PolicyTables {
    /// Policy set and identity → rule set.
    pub peers: BTreeMap<(u32, u32), u32>,
    /// Bits of a rule's key, the key and what it says.
    pub rules: Vec<(u32, RuleKey, Rule)>,
    /// IPv4 address → identity.
    pub identities4: BTreeMap<Ip4, u32>,
    /// IPv6 address → identity.
    pub identities6: BTreeMap<Ip6, u32>,
    /// Prefix length and IPv4 address → identity.
    pub blocks4: Vec<(u32, Ip4, u32)>,
    /// Prefix length and IPv6 address → identity.
    pub blocks6: Vec<(u32, Ip6, u32)>,
    /// How often anybody was asked.
    pub asked: RefCell<u32>,
}

impl Rules for Fake {
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        *self.policy.asked.borrow_mut() += 1;
        self.policy.peers.get(&(set, identity)).copied()
    }
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        let covering = self.policy.rules.iter().filter(|(bits, prefix, _)| holds(*bits, prefix, key));
        covering.max_by_key(|(bits, ..)| *bits).map(|(.., rule)| rule)
    }
}

macro_rules! identities {
    ($family:ty, $address:ty, $identities:ident, $blocks:ident) => {
        impl Identities<$family> for Fake {
            fn identity(&self, a: &$address) -> Option<u32> {
                self.policy.$identities.get(a).copied()
            }
            fn block(&self, a: &$address) -> Option<u32> {
                let covering = self.policy.$blocks.iter().filter(|(bits, prefix, _)| holds(*bits, prefix, a));
                covering.max_by_key(|(bits, ..)| *bits).map(|(.., identity)| *identity)
            }
            fn is_inside(&self, a: &$address) -> bool {
                Tables::<$family>::cidr(self, a).is_some()
            }
            fn is_own(&self, a: &$address) -> bool {
                Tables::<$family>::own(self, a) != 0
            }
        }
    };
}
identities!(V4, Ip4, identities4, blocks4);
identities!(V6, Ip6, identities6, blocks6);
