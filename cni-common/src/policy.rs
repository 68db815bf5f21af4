//! Keys and values of the policy maps: who a peer is, and what a pod's policies say about it.
//!
//! A new flow is judged by at most three look-ups in what policies say for each side that is a pod of this node, after the peer's identity is known:
//!
//! | map | key → value |
//! |---|---|
//! | identities (HASH, for each family) | address → [`Holder`]; asked first |
//! | senders (LPM) | [`SenderKey`], of [`SENDER_BITS`] or more bits → [`Identity`]; asked about what comes through the tunnel when the label class that it names is not the address's |
//! | blocks (LPM, for each family) | prefix → [`Identity`]; asked when the hash does not know the address |
//! | peers (HASH) | [`PeerKey`] → [`PeerRules`]; a peer without an entry has that of [`IDENTITY_OTHER`] |
//! | ports (HASH) | [`RuleKey`] of one port → [`Rule`]; asked first, of rule sets with [`RULES_BY_PORT`] in their number alone |
//! | rules (LPM) | [`RuleKey`], of [`RULE_BITS`], [`RULE_PROTO_BITS`] or more bits → [`Rule`]; what no entry covers is denied |
//!
//! | hits (LRU HASH) | [`HitKey`] → flows that were judged so; the programs write it |
//!
//! A rule set never changes while an entry refers to it, and a policy set never changes its meaning: a change of policy writes new sets beside
//! the old ones, then flips single entries.
//!
//! Plain `repr(C)`, no hidden padding, no enum, no bool. Numbers are in host order unless their type says otherwise.
use bytemuck::{Pod, Zeroable};

use crate::{
    maps::map_types,
    net::{Be16, Ip6},
};

map_types! {
    /// What an address is to the policies of this node: a class of addresses that none of them tells apart.
    pub struct Identity {
        /// Node-local identity. Numbers come from a growing counter.
        pub identity: u32,
    }

    /// Who has an address.
    pub struct Holder {
        /// As in [`Identity`].
        pub identity: u32,
        /// Hash of the pod's label class, 24 bits, as the tunnel's VNI names it; 0 of what is no pod.
        pub class: u32,
    }

    /// What is looked up of a pod of another node that is known by its label class, behind the prefix length that every LPM key begins with.
    pub struct SenderKey {
        /// The pod's node: index in the tunnel map.
        pub node: u32,
        /// Hash of the label class, 24 bits: of exactly one class among the pods of that node, else there is no entry.
        pub class: u32,
        /// Its address, or a prefix of it, IPv4 as `::ffff:a.b.c.d`: a pod CIDR of the node, or what policies name inside of one.
        pub addr: Ip6,
    }

    /// Names what a policy set says of an identity.
    pub struct PeerKey {
        /// Policy set: all policies that hold for one direction of a pod. Never [`SET_NONE`].
        pub set: u32,
        /// Identity of the peer, or [`IDENTITY_OTHER`] for the set's default.
        pub identity: u32,
    }

    /// Which rule set decides about a peer.
    pub struct PeerRules {
        /// Rule set, perhaps with [`RULES_BY_PORT`], or [`RULES_ALLOW_ALL`] or [`RULES_DENY_ALL`], which have no entries.
        pub rules: u32,
    }

    /// What is looked up in the map of rules, behind the prefix length that every LPM key begins with: bits count from the first byte's highest. In the map of
    /// single ports it is the whole key.
    pub struct RuleKey {
        /// Rule set, with [`RULES_BY_PORT`] if its number has that: always whole.
        pub rules: u32,
        /// IP protocol, whole or absent.
        pub proto: u8,
        /// Destination port, network order, or a prefix of it. 0 for protocols without ports. Bytes, as it stands at an odd offset.
        pub port: [u8; 2],
        /// 0; never part of a prefix.
        pub pad: u8,
    }

    /// What becomes of a flow that an entry covers.
    pub struct Rule {
        /// [`VERDICT_ALLOW`], [`VERDICT_AUDIT`] or [`VERDICT_DENY`].
        pub verdict: u32,
        /// Names the policy's rule that decides, of [`VERDICT_AUDIT`] the one that would; node-local, 0 when none does and the verdict is what is left.
        pub cookie: u32,
    }

    /// Under what is counted how a flow was judged.
    pub struct HitKey {
        /// The cookie of the rule that decided; with [`HIT_OF_SET`] the policy set.
        pub by: u32,
        /// [`VERDICT_ALLOW`], [`VERDICT_AUDIT`] or [`VERDICT_DENY`], perhaps with [`HIT_OF_SET`].
        pub what: u32,
    }
}

impl RuleKey {
    /// Of a flow, made in words: the kernel's hash reads it in words at once, and would wait for bytes that were stored one by one.
    #[inline(always)]
    pub fn of(rules: u32, proto: u8, port: Be16) -> Self {
        let [high, low] = port.bytes;
        bytemuck::cast([rules, u32::from_ne_bytes([proto, high, low, 0])])
    }
}

impl HitKey {
    /// Under what a rule's verdict is counted.
    pub const fn of_rule(cookie: u32, verdict: u32) -> Self {
        Self { by: cookie, what: verdict }
    }
    /// Under what a policy set's is, where no rule of it decides.
    pub const fn of_set(set: u32, verdict: u32) -> Self {
        Self { by: set, what: verdict | HIT_OF_SET }
    }
    /// As a number: never 0.
    #[inline(always)]
    pub const fn number(self) -> u64 {
        (self.by as u64) << 32 | self.what as u64
    }
    /// From what [`number`](Self::number) gives.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        Self { by: (number >> 32) as u32, what: number as u32 }
    }
}

/// In [`HitKey::what`]: no rule has decided, and the policy set is named.
pub const HIT_OF_SET: u32 = 1 << 8;

/// The policy set of a pod that no policy selects in that direction.
pub const SET_NONE: u32 = 0;
/// Set in the number of a policy set whose policies are all in audit mode, where the highest bit is not: nothing is denied for it.
pub const SET_AUDIT: u32 = 1 << 30;
/// The identity of every address that has no other: outside of the cluster and of every ipBlock. Under it stands each set's default.
pub const IDENTITY_OTHER: u32 = 0;
/// The identity of addresses of which it is not known what policy sets say: what goes between them and an isolated pod is dropped by name.
pub const IDENTITY_UNKNOWN: u32 = u32::MAX;
/// The rule set that allows all protocols and ports.
pub const RULES_ALLOW_ALL: u32 = 1;
/// The rule set that denies them.
pub const RULES_DENY_ALL: u32 = 2;
/// The first number of a rule set that has entries.
pub const RULES_FIRST: u32 = 16;
/// Set in the number of a rule set that has many single ports: their entries are in a hash beside the trie, which is asked first. Nothing is more specific than they
/// are, so the first hit decides; and a trie of many ports is deep.
pub const RULES_BY_PORT: u32 = 1 << 31;

/// `Rule::verdict`: the flow may pass.
pub const VERDICT_ALLOW: u32 = 1;
/// It may not. 0 is no verdict.
pub const VERDICT_DENY: u32 = 2;

/// The flow may pass, and would not if no policy were in audit mode: that is reported.
pub const VERDICT_AUDIT: u32 = 3;

/// Whether a policy set's policies are all in audit mode.
#[inline(always)]
pub const fn only_audits(set: u32) -> bool {
    set >> 30 == 1
}
/// Whether a rule set's entries for single ports are in the hash.
#[inline(always)]
pub const fn are_by_port(rules: u32) -> bool {
    rules & RULES_BY_PORT != 0
}
/// Whether a rule set's entry of so many bits is in the hash.
pub const fn is_by_port(rules: u32, bits: u32) -> bool {
    are_by_port(rules) && bits == RULE_PORT_BITS
}

/// Bits of a [`SenderKey`] before the address.
pub const SENDER_BITS: u32 = 64;

/// Bits of a key's prefix that name the rule set: the entry holds for every protocol.
pub const RULE_BITS: u32 = 32;
/// Bits that name the rule set and the protocol: the entry holds for every port. Each further bit is one of the port, up to [`RULE_PORT_BITS`].
pub const RULE_PROTO_BITS: u32 = 40;
/// Bits of an entry for one port.
pub const RULE_PORT_BITS: u32 = 56;

const _: () = assert!(size_of::<RuleKey>() == 8 && core::mem::offset_of!(RuleKey, proto) == 4);
const _: () = assert!(core::mem::offset_of!(SenderKey, addr) * 8 == SENDER_BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_isolates_a_pod_until_its_policies_are_known_is_no_audit() {
        assert!(only_audits(SET_AUDIT) && only_audits(SET_AUDIT | (SET_AUDIT - 1)));
        assert!(!only_audits(SET_NONE) && !only_audits(SET_AUDIT - 1) && !only_audits(u32::MAX));
    }

    #[test]
    fn the_hash_has_whole_keys_of_rule_sets_that_are_marked() {
        let marked = RULES_FIRST | RULES_BY_PORT;
        assert!(is_by_port(marked, RULE_PORT_BITS) && !is_by_port(marked, RULE_PORT_BITS - 1));
        assert!(!is_by_port(RULES_FIRST, RULE_PORT_BITS));
        assert!(![RULES_ALLOW_ALL, RULES_DENY_ALL].into_iter().any(are_by_port));
    }

    #[test]
    fn what_is_counted_is_one_number() {
        for key in [HitKey::of_rule(u32::MAX, VERDICT_DENY), HitKey::of_set(SET_AUDIT | 3, VERDICT_AUDIT)] {
            assert_eq!(HitKey::from_number(key.number()), key);
            assert_ne!(key.number(), 0);
        }
    }

    #[test]
    fn the_port_follows_the_protocol_bit_by_bit() {
        let key = RuleKey { rules: 0x0102_0304, proto: 6, port: 80_u16.to_be_bytes(), pad: 0 };
        assert_eq!(bytemuck::bytes_of(&key)[4..], [6, 0, 80, 0]);
        assert_eq!(RuleKey::of(0x0102_0304, 6, Be16::from_host(80)), key);
        assert_eq!(RULE_PROTO_BITS + 16, RULE_PORT_BITS);
    }
}
