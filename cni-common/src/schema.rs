//! The list of all maps, with what is needed to recognise a pin of another layout.
//!
//! The name carries the version of the layout (`endpoints_v1`); the fingerprint of the fields lies in the `schema` map
//! under [`MapSpec::id`], because the kernel's sizes alone do not show that a field changed its meaning. The `layouts` map has
//! the fields themselves, by the map's name, for a build of another layout that takes over a map of state. A field that changes
//! its meaning or size therefore gets another name.
use crate::{
    drop::{COUNTERS, Count},
    event::{DropEvent, EventBudget, Told},
    maps::{
        Cidr, Config, CtConfig, CtEntry, CtKey4, CtKey6, Endpoint, FragKey4, FragKey6, Fragments, Leave4, Leave6,
        Local, MAX_NODES, NatBack4, NatBack6, NatConfig, NatForth4, NatForth6, NatKey4, NatKey6, Remote, Tunnel,
    },
    policy::{HitKey, Holder, Identity, PeerKey, PeerRules, Rule, RuleKey, SenderKey},
};

/// Kernel map types that we use; numbers of `enum bpf_map_type`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum MapType {
    /// `BPF_MAP_TYPE_HASH`
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_RINGBUF`
    RingBuf = 27,
}

/// Name, offset and size of a field, in bytes.
pub type Field = (&'static str, usize, usize);

/// What becomes of a map when a build of another layout takes over.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Role {
    /// The agent fills it from what it knows. If the layout of one is another, all are made anew: they refer to each other.
    Derived,
    /// The programs fill it, and nobody else could: its entries are taken over, one by one.
    State,
    /// What it holds matters for a moment only.
    Scratch,
    /// About the other maps. Its layout never changes.
    Record,
}

/// One map.
#[derive(Clone, Copy)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct MapSpec {
    /// Name in the kernel and of the pin, at most 15 characters, ending with the version of the layout.
    pub name: &'static str,
    /// Index of its fingerprint in the `schema` map: appended, never reused. Another layout has another one, as both maps may be there
    /// at a time. (The layout of the tests alone has some whose maps are gone: no build that had those meets it.)
    pub id: u32,
    /// What becomes of it in an upgrade.
    pub role: Role,
    /// What it holds, in a sentence.
    pub about: &'static str,
    /// Kernel type.
    pub kind: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries (bytes, for a ring buffer); of a map that [`is_scaled`](Self::is_scaled), at most.
    pub max_entries: u32,
    /// `BPF_F_*` at creation.
    pub flags: u32,
    /// The value's fields.
    pub fields: &'static [Field],
    /// Hash of the value's field names, offsets and sizes.
    pub fingerprint: u64,
}

impl MapSpec {
    /// Whether its size follows the node's memory: a table that nothing is pushed out of.
    pub const fn is_scaled(&self) -> bool {
        const SCALED: [MapSpec; 6] = [CT4, CT6, NAT_BACK4, NAT_BACK6, NAT_FORTH4, NAT_FORTH6];
        let mut i = 0;
        while i < SCALED.len() {
            if SCALED[i].id == self.id {
                return true;
            }
            i += 1;
        }
        false
    }
}

/// `BPF_F_NO_PREALLOC`: an LPM trie demands it; a large hash saves memory by it.
pub const NO_PREALLOC: u32 = 1;
/// Pods of one node.
pub const MAX_ENDPOINTS: u32 = 4096;
/// Addresses of other nodes' pods, and of other nodes.
pub const MAX_REMOTES: u32 = 131_072;
/// Pod CIDRs in a family.
pub const MAX_CIDRS: u32 = 16_384;
/// Addresses of this node in a family.
pub const MAX_OWN: u32 = 1024;
/// Flows in a family that both ends have spoken in, at most: see [`MapSpec::is_scaled`].
pub const MAX_FLOWS: u32 = 131_072;
/// The same where there is little memory.
pub const MIN_FLOWS: u32 = 16_384;
/// Bytes of the node's memory for each such flow. Full tables take a twenty-fifth of it: 0.9 KiB for two flows, one of either family, both masqueraded.
pub const MEMORY_OF_FLOW: u64 = 24 << 10;
/// What one endpoint may have of a table of flows or translations: one part of so many.
pub const SHARES: u32 = 4;
/// Flows in a family that wait for the other end's first packet. The kernel hands out the slots of an LRU map to CPUs in lots of 128.
pub const MAX_NEW_FLOWS: u32 = 16_384;
/// Of a family's flows, those that one endpoint may hold, at most.
pub const MAX_HELD: u32 = MAX_FLOWS / SHARES;
/// Endpoints that hold flows: those of a node, and some that are gone while their flows are not.
pub const MAX_HOLDERS: u32 = 2 * MAX_ENDPOINTS;
/// Masqueraded flows in a family, those that are over and not yet taken out included, at most: as many as flows.
pub const MAX_TRANSLATIONS: u32 = MAX_FLOWS;
/// Of those, the ones that one endpoint may have: a pod that floods the world must not keep the others from it.
pub const MAX_TRANSLATED: u32 = MAX_TRANSLATIONS / SHARES;
/// Datagrams in fragments in a family, of which more fragments are to come.
pub const MAX_FRAGMENTED: u32 = 4096;
/// Devices by which masqueraded pods leave.
pub const MAX_LEAVES: u32 = 256;
/// CIDRs in a family towards which pods keep their address.
pub const MAX_SPARED: u32 = 1024;
/// Prefixes in a family that policies name.
pub const MAX_BLOCKS: u32 = 65_536;
/// Label classes of other nodes' pods, in each pod CIDR of theirs and in what policies name inside of it.
pub const MAX_SENDERS: u32 = 2 * MAX_REMOTES;
/// What policy sets say of identities that their default does not. An idle node pays 16 bytes for each, and has 32 MiB for all maps.
pub const MAX_PEERS: u32 = 131_072;
/// Entries of rule sets, but for those in the map of single ports.
pub const MAX_RULES: u32 = 131_072;
/// Entries for single ports, of rule sets that have many: what has no room here is in the map of rules. An idle node pays 16 bytes for each.
pub const MAX_PORTS: u32 = 32_768;
/// Rules, and policy sets where no rule decides, of which it is counted how often. What was used least recently is forgotten.
pub const MAX_HITS: u32 = 8192;
/// Bytes of the event ring: 3,276 events, of which each has 8 bytes of the ring's own.
pub const EVENT_BYTES: u32 = 262_144;
/// Slots of the `schema` map.
pub const MAX_MAPS: u32 = 64;
/// Maps whose fields are recorded: of all builds that have ever run on a node.
pub const MAX_LAYOUTS: u32 = 256;
/// Bytes of the name of a map, padded with zeros.
pub const NAME_BYTES: usize = 16;
/// Bytes of the record of a map's fields, padded with zeros.
pub const RECORD_BYTES: usize = 1024;

/// FNV-1a over names, offsets and sizes.
pub const fn fingerprint(layout: &[(&str, usize, usize)]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < layout.len() {
        let (name, offset, size) = layout[i];
        let name = name.as_bytes();
        let mut k = 0;
        while k < name.len() {
            h = (h ^ name[k] as u64).wrapping_mul(0x0100_0000_01b3);
            k += 1;
        }
        h = (h ^ offset as u64).wrapping_mul(0x0100_0000_01b3);
        h = (h ^ size as u64 ^ 0xff00).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    h
}

macro_rules! maps {
    ($($(#[$when:meta])? $const:ident $id:literal $role:ident $name:literal $kind:ident($key:expr => $value:expr; $max:expr, $flags:expr) $layout:expr, $about:literal;)*) => {
        $(
            $(#[$when])?
            #[doc = $about]
            pub const $const: MapSpec = MapSpec {
                name: $name, id: $id, role: Role::$role, about: $about, kind: MapType::$kind, key_size: $key as u32, value_size: $value as u32,
                max_entries: $max, flags: $flags, fields: $layout, fingerprint: fingerprint($layout),
            };
        )*
        /// Every map of the object.
        pub const ALL: &[MapSpec] = &[$($(#[$when])? $const),*];
    };
}
const ADDR4: usize = 4;
const ADDR6: usize = 16;
maps! {
    CONFIG 1 Derived "config_v2" Array(4 => size_of::<Config>(); 1, 0) Config::LAYOUT, "what the agent tells all programs";
    #[cfg(not(feature = "test-layout"))]
    ENDPOINTS 2 Derived "endpoints_v1" Hash(4 => size_of::<Endpoint>(); MAX_ENDPOINTS, 0) Endpoint::LAYOUT, "interface index → the pod's interface";
    #[cfg(feature = "test-layout")]
    ENDPOINTS 62 Derived "endpoints_v90" Hash(4 => size_of::<Endpoint>(); MAX_ENDPOINTS, 0) Endpoint::LAYOUT, "interface index → the pod's interface";
    LOCAL4 47 Derived "local4_v2" Hash(ADDR4 => size_of::<Local>(); MAX_ENDPOINTS, 0) Local::LAYOUT, "IPv4 address → pod of this node";
    LOCAL6 48 Derived "local6_v2" Hash(ADDR6 => size_of::<Local>(); MAX_ENDPOINTS, 0) Local::LAYOUT, "IPv6 address → pod of this node";
    REMOTE4 5 Derived "remote4_v1" Hash(ADDR4 => size_of::<Remote>(); MAX_REMOTES, NO_PREALLOC) Remote::LAYOUT, "IPv4 address → pod of another node, or another node";
    REMOTE6 6 Derived "remote6_v1" Hash(ADDR6 => size_of::<Remote>(); MAX_REMOTES, NO_PREALLOC) Remote::LAYOUT, "IPv6 address → pod of another node, or another node";
    CIDR4 7 Derived "cidr4_v1" LpmTrie(4 + ADDR4 => size_of::<Cidr>(); MAX_CIDRS, NO_PREALLOC) Cidr::LAYOUT, "IPv4 pod CIDR → node";
    CIDR6 8 Derived "cidr6_v1" LpmTrie(4 + ADDR6 => size_of::<Cidr>(); MAX_CIDRS, NO_PREALLOC) Cidr::LAYOUT, "IPv6 pod CIDR → node";
    NODES4 9 Derived "nodes4_v1" Hash(ADDR4 => 4; MAX_NODES, 0) &[("node", 0, 4)], "IPv4 tunnel address → node";
    NODES6 10 Derived "nodes6_v1" Hash(ADDR6 => 4; MAX_NODES, 0) &[("node", 0, 4)], "IPv6 tunnel address → node";
    TUNNELS 11 Derived "tunnels_v2" Array(4 => size_of::<Tunnel>(); MAX_NODES, 0) Tunnel::LAYOUT, "node → tunnel address, next hop and device";
    OWN4 12 Derived "own4_v2" Hash(ADDR4 => 4; MAX_OWN, 0) &[("flags", 0, 4)], "IPv4 addresses of this node → OWN_* bits";
    OWN6 13 Derived "own6_v2" Hash(ADDR6 => 4; MAX_OWN, 0) &[("flags", 0, 4)], "IPv6 addresses of this node → OWN_* bits";
    #[cfg(not(feature = "test-layout"))]
    COUNTS 14 State "counters_v1" PerCpuArray(4 => size_of::<Count>(); COUNTERS, 0) Count::LAYOUT, "packets and bytes by program and drop reason or outcome";
    #[cfg(feature = "test-layout")]
    COUNTS 63 State "counters_v90" PerCpuArray(4 => size_of::<Count>(); COUNTERS, 0) Count::LAYOUT, "packets and bytes by program and drop reason or outcome";
    EVENTS 53 Scratch "events_v2" RingBuf(0 => 0; EVENT_BYTES, 0) &[("event", 0, size_of::<DropEvent>())], "drop events for user space";
    BUDGET 16 Scratch "evbudget_v1" PerCpuArray(4 => size_of::<EventBudget>(); 1, 0) &[("since", 0, 8), ("sent", 8, 8)], "drop events sent in the running second";
    ANSWERS 18 Scratch "answers_v1" PerCpuArray(4 => size_of::<EventBudget>(); 1, 0) &[("since", 0, 8), ("sent", 8, 8)], "ICMP errors sent in the running second";
    CT_CONFIG 20 Derived "ct_config_v1" Array(4 => size_of::<CtConfig>(); 1, 0) CtConfig::LAYOUT, "policy epoch, and how long flows without packets live";
    #[cfg(not(feature = "test-layout"))]
    CT4 21 State "ct4_v1" Hash(size_of::<CtKey4>() => size_of::<CtEntry>(); MAX_FLOWS, NO_PREALLOC) CtEntry::LAYOUT, "IPv4 flows that both ends have spoken in";
    #[cfg(feature = "test-layout")]
    CT4 61 State "ct4_v90" Hash(size_of::<CtKey4>() => size_of::<CtEntry>(); MAX_FLOWS, NO_PREALLOC) CtEntry::LAYOUT, "IPv4 flows that both ends have spoken in";
    #[cfg(not(feature = "test-layout"))]
    CT6 22 State "ct6_v1" Hash(size_of::<CtKey6>() => size_of::<CtEntry>(); MAX_FLOWS, NO_PREALLOC) CtEntry::LAYOUT, "IPv6 flows that both ends have spoken in";
    #[cfg(feature = "test-layout")]
    CT6 60 State "ct6_v90" Hash(size_of::<CtKey6>() => size_of::<CtEntry>(); MAX_FLOWS, NO_PREALLOC) CtEntry::LAYOUT, "IPv6 flows that both ends have spoken in";
    #[cfg(not(feature = "test-layout"))]
    CT_NEW4 23 State "ct_new4_v1" LruHash(size_of::<CtKey4>() => size_of::<CtEntry>(); MAX_NEW_FLOWS, 0) CtEntry::LAYOUT, "IPv4 flows that wait for the other end";
    #[cfg(feature = "test-layout")]
    CT_NEW4 59 State "ct_new4_v90" LruHash(size_of::<CtKey4>() => size_of::<CtEntry>(); MAX_NEW_FLOWS, 0) CtEntry::LAYOUT, "IPv4 flows that wait for the other end";
    #[cfg(not(feature = "test-layout"))]
    CT_NEW6 24 State "ct_new6_v1" LruHash(size_of::<CtKey6>() => size_of::<CtEntry>(); MAX_NEW_FLOWS, 0) CtEntry::LAYOUT, "IPv6 flows that wait for the other end";
    #[cfg(feature = "test-layout")]
    CT_NEW6 58 State "ct_new6_v90" LruHash(size_of::<CtKey6>() => size_of::<CtEntry>(); MAX_NEW_FLOWS, 0) CtEntry::LAYOUT, "IPv6 flows that wait for the other end";
    CT_HELD4 25 State "ct_held4_v1" Hash(4 => 8; MAX_HOLDERS, NO_PREALLOC) &[("flows", 0, 8)], "endpoint id → IPv4 flows on its account";
    CT_HELD6 26 State "ct_held6_v1" Hash(4 => 8; MAX_HOLDERS, NO_PREALLOC) &[("flows", 0, 8)], "endpoint id → IPv6 flows on its account";
    NAT_CONFIG 27 Derived "nat_config_v1" Array(4 => size_of::<NatConfig>(); 1, 0) NatConfig::LAYOUT, "ports that masquerade gives";
    LEAVE4 28 Derived "leave4_v1" Hash(4 => size_of::<Leave4>(); MAX_LEAVES, 0) Leave4::LAYOUT, "interface index → the node's IPv4 address under which pods leave by it";
    LEAVE6 29 Derived "leave6_v1" Hash(4 => size_of::<Leave6>(); MAX_LEAVES, 0) Leave6::LAYOUT, "interface index → the node's IPv6 address under which pods leave by it";
    SPARED4 30 Derived "spared4_v1" LpmTrie(4 + ADDR4 => 4; MAX_SPARED, NO_PREALLOC) &[("flags", 0, 4)], "IPv4 CIDR that is not masqueraded → 1";
    SPARED6 31 Derived "spared6_v1" LpmTrie(4 + ADDR6 => 4; MAX_SPARED, NO_PREALLOC) &[("flags", 0, 4)], "IPv6 CIDR that is not masqueraded → 1";
    #[cfg(not(feature = "test-layout"))]
    NAT_BACK4 32 State "nat_back4_v1" Hash(size_of::<NatKey4>() => size_of::<NatBack4>(); MAX_TRANSLATIONS, NO_PREALLOC) NatBack4::LAYOUT, "what the world writes over IPv4 → the masqueraded pod's end";
    #[cfg(feature = "test-layout")]
    NAT_BACK4 57 State "nat_back4_v90" Hash(size_of::<NatKey4>() => size_of::<NatBack4>(); MAX_TRANSLATIONS, NO_PREALLOC) NatBack4::LAYOUT, "what the world writes over IPv4 → the masqueraded pod's end";
    #[cfg(not(feature = "test-layout"))]
    NAT_BACK6 33 State "nat_back6_v1" Hash(size_of::<NatKey6>() => size_of::<NatBack6>(); MAX_TRANSLATIONS, NO_PREALLOC) NatBack6::LAYOUT, "what the world writes over IPv6 → the masqueraded pod's end";
    #[cfg(feature = "test-layout")]
    NAT_BACK6 4 State "nat_back6_v90" Hash(size_of::<NatKey6>() => size_of::<NatBack6>(); MAX_TRANSLATIONS, NO_PREALLOC) NatBack6::LAYOUT, "what the world writes over IPv6 → the masqueraded pod's end";
    #[cfg(not(feature = "test-layout"))]
    NAT_FORTH4 34 State "nat_forth4_v1" Hash(size_of::<CtKey4>() => size_of::<NatForth4>(); MAX_TRANSLATIONS, NO_PREALLOC) NatForth4::LAYOUT, "masqueraded IPv4 flow → the node's end";
    #[cfg(feature = "test-layout")]
    NAT_FORTH4 3 State "nat_forth4_v90" Hash(size_of::<CtKey4>() => size_of::<NatForth4>(); MAX_TRANSLATIONS, NO_PREALLOC) NatForth4::LAYOUT, "masqueraded IPv4 flow → the node's end";
    #[cfg(not(feature = "test-layout"))]
    NAT_FORTH6 35 State "nat_forth6_v1" Hash(size_of::<CtKey6>() => size_of::<NatForth6>(); MAX_TRANSLATIONS, NO_PREALLOC) NatForth6::LAYOUT, "masqueraded IPv6 flow → the node's end";
    #[cfg(feature = "test-layout")]
    NAT_FORTH6 40 State "nat_forth6_v90" Hash(size_of::<CtKey6>() => size_of::<NatForth6>(); MAX_TRANSLATIONS, NO_PREALLOC) NatForth6::LAYOUT, "masqueraded IPv6 flow → the node's end";
    NAT_HELD4 36 State "nat_held4_v1" Hash(4 => 8; MAX_HOLDERS, NO_PREALLOC) &[("flows", 0, 8)], "endpoint id → masqueraded IPv4 flows on its account";
    NAT_HELD6 37 State "nat_held6_v1" Hash(4 => 8; MAX_HOLDERS, NO_PREALLOC) &[("flows", 0, 8)], "endpoint id → masqueraded IPv6 flows on its account";
    FRAGS4 38 Scratch "frags4_v1" LruHash(size_of::<FragKey4>() => size_of::<Fragments>(); MAX_FRAGMENTED, 0) Fragments::LAYOUT, "IPv4 datagram in fragments → its ports";
    FRAGS6 39 Scratch "frags6_v1" LruHash(size_of::<FragKey6>() => size_of::<Fragments>(); MAX_FRAGMENTED, 0) Fragments::LAYOUT, "IPv6 datagram in fragments → its ports";
    IDENTITY4 49 Derived "identity4_v2" Hash(ADDR4 => size_of::<Holder>(); MAX_REMOTES, NO_PREALLOC) Holder::LAYOUT, "IPv4 address → identity and label class";
    IDENTITY6 50 Derived "identity6_v2" Hash(ADDR6 => size_of::<Holder>(); MAX_REMOTES, NO_PREALLOC) Holder::LAYOUT, "IPv6 address → identity and label class";
    SENDERS 51 Derived "senders_v1" LpmTrie(4 + size_of::<SenderKey>() => size_of::<Identity>(); MAX_SENDERS, NO_PREALLOC) Identity::LAYOUT, "node, label class of one of its pods and prefix of the pod's address → identity";
    BLOCK4 42 Derived "block4_v1" LpmTrie(4 + ADDR4 => size_of::<Identity>(); MAX_BLOCKS, NO_PREALLOC) Identity::LAYOUT, "IPv4 prefix that a policy names → identity";
    BLOCK6 43 Derived "block6_v1" LpmTrie(4 + ADDR6 => size_of::<Identity>(); MAX_BLOCKS, NO_PREALLOC) Identity::LAYOUT, "IPv6 prefix that a policy names → identity";
    POLICY_PEER 44 Derived "policy_peer_v1" Hash(size_of::<PeerKey>() => size_of::<PeerRules>(); MAX_PEERS, NO_PREALLOC) PeerRules::LAYOUT, "policy set and identity → rule set";
    POLICY_RULE 55 Derived "policy_rule_v2" LpmTrie(4 + size_of::<RuleKey>() => size_of::<Rule>(); MAX_RULES, NO_PREALLOC) Rule::LAYOUT, "rule set, protocol and ports → verdict";
    POLICY_PORT 56 Derived "policy_port_v1" Hash(size_of::<RuleKey>() => size_of::<Rule>(); MAX_PORTS, NO_PREALLOC) Rule::LAYOUT, "rule set with many single ports, protocol and port → verdict";
    TOLD 52 Scratch "told_v1" PerCpuArray(4 => size_of::<Told>(); 1, 0) Told::LAYOUT, "what policy says of the packet that it judges, besides its verdict";
    HITS 54 Scratch "hits_v1" LruHash(size_of::<HitKey>() => 8; MAX_HITS, 0) &[("flows", 0, 8)], "rule or policy set, and verdict → flows that were judged so";
    SCHEMA 17 Record "schema" Array(4 => 8; MAX_MAPS, 0) &[("fingerprint", 0, 8)], "fingerprint of each map's layout";
    LAYOUTS 19 Record "layouts" Hash(NAME_BYTES => RECORD_BYTES; MAX_LAYOUTS, NO_PREALLOC) &[("text", 0, RECORD_BYTES)], "name of a map → its fields";
}

/// Tells builds apart whose maps differ: a hash of the names and layouts of all.
pub const fn build() -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < ALL.len() {
        let m = ALL[i];
        let of_name = fingerprint(&[(m.name, m.max_entries as usize, m.flags as usize)]);
        h = (h ^ of_name).wrapping_mul(0x0100_0000_01b3);
        h = (h ^ m.fingerprint).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    h
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_fit_the_kernel_and_ids_are_used_once() {
        let mut seen = BTreeSet::new();
        for m in ALL {
            assert!(m.name.len() <= 15, "{}", m.name);
            assert!(m.id < MAX_MAPS && seen.insert(m.id), "{}", m.name);
            assert!(m.role == Role::Record || m.name.contains("_v"), "{}", m.name);
        }
    }

    #[test]
    fn a_moved_or_renamed_field_has_another_fingerprint() {
        let one = fingerprint(&[("a", 0, 4), ("b", 4, 4)]);
        assert_ne!(one, fingerprint(&[("b", 0, 4), ("a", 4, 4)]));
        assert_ne!(one, fingerprint(&[("a", 0, 4), ("b", 4, 2)]));
        assert_ne!(one, fingerprint(&[("a", 0, 4)]));
    }
}
