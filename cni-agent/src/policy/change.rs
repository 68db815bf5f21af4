//! One write to a policy map.
use std::net::IpAddr;

use bytemuck::bytes_of;
use cni_common::{
    net::Ip6,
    policy::{
        Holder, Identity, PeerKey, PeerRules, Rule, RuleKey, SENDER_BITS, SenderKey, VERDICT_ALLOW, VERDICT_AUDIT,
        VERDICT_DENY, is_by_port,
    },
    schema::{self, MapSpec},
};
use ipnet::IpNet;

use super::{
    engine::EndpointSets,
    flatten::{Entry, Verdict},
    senders::Sender,
};
use crate::tables::PodKey;

/// The policy maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    /// Rules: LPM.
    Rules,
    /// Rules for single ports, of rule sets that have many.
    Ports,
    /// Policy set and identity → rule set.
    Peers,
    /// IPv4 address → identity.
    Identities4,
    /// IPv6 address → identity.
    Identities6,
    /// IPv4 prefix → identity: LPM.
    Blocks4,
    /// IPv6 prefix → identity: LPM.
    Blocks6,
    /// Node, label class and prefix → identity: LPM.
    Senders,
}
impl Map {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Rules,
        Self::Ports,
        Self::Peers,
        Self::Identities4,
        Self::Identities6,
        Self::Blocks4,
        Self::Blocks6,
        Self::Senders,
    ];

    /// What it looks like in the kernel.
    pub fn spec(self) -> &'static MapSpec {
        match self {
            Self::Rules => &schema::POLICY_RULE,
            Self::Ports => &schema::POLICY_PORT,
            Self::Peers => &schema::POLICY_PEER,
            Self::Identities4 => &schema::IDENTITY4,
            Self::Identities6 => &schema::IDENTITY6,
            Self::Blocks4 => &schema::BLOCK4,
            Self::Blocks6 => &schema::BLOCK6,
            Self::Senders => &schema::SENDERS,
        }
    }
}

/// A write: what the kernel is to hold under a key, or that it is to hold nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry of a map.
    Entry {
        /// The map.
        map: Map,
        /// Bytes of the key.
        key: Vec<u8>,
        /// Bytes of the value; `None` takes the entry out.
        value: Option<Vec<u8>>,
    },
    /// The policy sets of a pod of this node, which stand in the entries of its endpoint.
    Endpoint {
        /// The pod.
        pod: PodKey,
        /// Its sets; `None` when no such pod is known any more. An endpoint that is still there is isolated: it is never opened by that.
        sets: Option<EndpointSets>,
    },
}
impl Change {
    pub(super) fn rule(rules: u32, e: &Entry, there: bool) -> Self {
        let key = RuleKey { rules, proto: e.proto, port: e.port.to_be_bytes(), pad: 0 };
        let verdict = match e.decision.verdict {
            Verdict::Allow => VERDICT_ALLOW,
            Verdict::Audit => VERDICT_AUDIT,
            Verdict::Deny => VERDICT_DENY,
        };
        let value = Rule { verdict, cookie: e.decision.cookie };
        let (map, key) = if is_by_port(rules, e.bits) {
            (Map::Ports, bytes_of(&key).to_vec())
        } else {
            (Map::Rules, prefixed(e.bits, bytes_of(&key)))
        };
        Self::Entry { map, key, value: there.then(|| bytes_of(&value).to_vec()) }
    }
    pub(crate) fn peer(set: u32, identity: u32, rules: Option<u32>) -> Self {
        Self::Entry {
            map: Map::Peers,
            key: bytes_of(&PeerKey { set, identity }).to_vec(),
            value: rules.map(|rules| bytes_of(&PeerRules { rules }).to_vec()),
        }
    }
    pub(super) fn address(address: IpAddr, holder: Option<Holder>) -> Self {
        let (map, key) = match address {
            IpAddr::V4(a) => (Map::Identities4, a.octets().to_vec()),
            IpAddr::V6(a) => (Map::Identities6, a.octets().to_vec()),
        };
        Self::Entry { map, key, value: holder.map(|holder| bytes_of(&holder).to_vec()) }
    }
    pub(crate) fn sender(sender: &Sender, identity: Option<u32>) -> Self {
        let (addr, before) = match sender.prefix.network() {
            IpAddr::V4(a) => (Ip6::mapped(a.into()), SENDER_BITS + 96),
            IpAddr::V6(a) => (a.into(), SENDER_BITS),
        };
        let key = SenderKey { node: sender.node, class: sender.class, addr };
        Self::Entry {
            map: Map::Senders,
            key: prefixed(before + u32::from(sender.prefix.prefix_len()), bytes_of(&key)),
            value: identity.map(|identity| bytes_of(&Identity { identity }).to_vec()),
        }
    }
    pub(super) fn block(net: IpNet, identity: Option<u32>) -> Self {
        let bits = u32::from(net.prefix_len());
        let (map, key) = match net.network() {
            IpAddr::V4(a) => (Map::Blocks4, prefixed(bits, &a.octets())),
            IpAddr::V6(a) => (Map::Blocks6, prefixed(bits, &a.octets())),
        };
        Self::Entry { map, key, value: identity.map(|identity| bytes_of(&Identity { identity }).to_vec()) }
    }
}

/// `struct bpf_lpm_trie_key`: the length in bits, host order, then the data.
fn prefixed(bits: u32, data: &[u8]) -> Vec<u8> {
    [&bits.to_ne_bytes()[..], data].concat()
}
