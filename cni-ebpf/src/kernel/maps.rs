//! The maps. Names, sizes and flags are those of `cni_common::schema`, which the agent compares before it loads.
use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use cni_common::{
    drop::{COUNTERS, Count},
    event::{DropEvent, EventBudget, Told},
    maps::{
        Cidr, Config, CtConfig, CtEntry, CtKey4, CtKey6, Endpoint, FragKey4, FragKey6, Fragments, Leave4, Leave6,
        Local, MAX_NODES, NatBack4, NatBack6, NatConfig, NatForth4, NatForth6, NatKey4, NatKey6, Remote, Tunnel,
    },
    net::{Ip4, Ip6},
    policy::{HitKey, Holder, Identity, PeerKey, PeerRules, Rule, RuleKey, SenderKey},
    schema::{
        EVENT_BYTES, MAX_BLOCKS, MAX_CIDRS, MAX_ENDPOINTS, MAX_FLOWS, MAX_FRAGMENTED, MAX_HITS, MAX_HOLDERS,
        MAX_LAYOUTS, MAX_LEAVES, MAX_MAPS, MAX_NEW_FLOWS, MAX_OWN, MAX_PEERS, MAX_PORTS, MAX_REMOTES, MAX_RULES,
        MAX_SENDERS, MAX_SPARED, MAX_TRANSLATIONS, NAME_BYTES, NO_PREALLOC, RECORD_BYTES,
    },
};

const ENDPOINT_SLOTS: usize = MAX_ENDPOINTS as usize;
const REMOTE_SLOTS: usize = MAX_REMOTES as usize;
const CIDR_SLOTS: usize = MAX_CIDRS as usize;
const NODE_SLOTS: usize = MAX_NODES as usize;
const OWN_SLOTS: usize = MAX_OWN as usize;
const FLOW_SLOTS: usize = MAX_FLOWS as usize;
const NEW_FLOW_SLOTS: usize = MAX_NEW_FLOWS as usize;
const HOLDER_SLOTS: usize = MAX_HOLDERS as usize;
const NAT_SLOTS: usize = MAX_TRANSLATIONS as usize;
const LEAVE_SLOTS: usize = MAX_LEAVES as usize;
const SPARED_SLOTS: usize = MAX_SPARED as usize;
const FRAGMENTED_SLOTS: usize = MAX_FRAGMENTED as usize;
const BLOCK_SLOTS: usize = MAX_BLOCKS as usize;
const SENDER_SLOTS: usize = MAX_SENDERS as usize;
const PEER_SLOTS: usize = MAX_PEERS as usize;
const RULE_SLOTS: usize = MAX_RULES as usize;
const PORT_SLOTS: usize = MAX_PORTS as usize;
const HIT_SLOTS: usize = MAX_HITS as usize;
const SPARSE: usize = NO_PREALLOC as usize;

#[btf_map(name = "config_v2")]
pub static CONFIG: Array<Config, 1> = Array::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "endpoints_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "endpoints_v90"))]
pub static ENDPOINTS: HashMap<u32, Endpoint, ENDPOINT_SLOTS> = HashMap::new();
#[btf_map(name = "local4_v2")]
pub static LOCAL4: HashMap<Ip4, Local, ENDPOINT_SLOTS> = HashMap::new();
#[btf_map(name = "local6_v2")]
pub static LOCAL6: HashMap<Ip6, Local, ENDPOINT_SLOTS> = HashMap::new();
#[btf_map(name = "remote4_v1")]
pub static REMOTE4: HashMap<Ip4, Remote, REMOTE_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "remote6_v1")]
pub static REMOTE6: HashMap<Ip6, Remote, REMOTE_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "cidr4_v1")]
pub static CIDR4: LpmTrie<Ip4, Cidr, CIDR_SLOTS> = LpmTrie::new();
#[btf_map(name = "cidr6_v1")]
pub static CIDR6: LpmTrie<Ip6, Cidr, CIDR_SLOTS> = LpmTrie::new();
#[btf_map(name = "nodes4_v1")]
pub static NODES4: HashMap<Ip4, u32, NODE_SLOTS> = HashMap::new();
#[btf_map(name = "nodes6_v1")]
pub static NODES6: HashMap<Ip6, u32, NODE_SLOTS> = HashMap::new();
#[btf_map(name = "tunnels_v2")]
pub static TUNNELS: Array<Tunnel, NODE_SLOTS> = Array::new();
#[btf_map(name = "own4_v2")]
pub static OWN4: HashMap<Ip4, u32, OWN_SLOTS> = HashMap::new();
#[btf_map(name = "own6_v2")]
pub static OWN6: HashMap<Ip6, u32, OWN_SLOTS> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "counters_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "counters_v90"))]
pub static COUNTS: PerCpuArray<Count, { COUNTERS as usize }> = PerCpuArray::new();
#[btf_map(name = "events_v2")]
pub static EVENTS: RingBuf<DropEvent, { EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "evbudget_v1")]
pub static BUDGET: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map(name = "answers_v1")]
pub static ANSWERS: PerCpuArray<EventBudget, 1> = PerCpuArray::new();
#[btf_map(name = "ct_config_v1")]
pub static CT_CONFIG: Array<CtConfig, 1> = Array::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "ct4_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "ct4_v90"))]
pub static CT4: HashMap<CtKey4, CtEntry, FLOW_SLOTS, SPARSE> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "ct6_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "ct6_v90"))]
pub static CT6: HashMap<CtKey6, CtEntry, FLOW_SLOTS, SPARSE> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "ct_new4_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "ct_new4_v90"))]
pub static CT_NEW4: LruHashMap<CtKey4, CtEntry, NEW_FLOW_SLOTS> = LruHashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "ct_new6_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "ct_new6_v90"))]
pub static CT_NEW6: LruHashMap<CtKey6, CtEntry, NEW_FLOW_SLOTS> = LruHashMap::new();
#[btf_map(name = "ct_held4_v1")]
pub static CT_HELD4: HashMap<u32, u64, HOLDER_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "ct_held6_v1")]
pub static CT_HELD6: HashMap<u32, u64, HOLDER_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "nat_config_v1")]
pub static NAT_CONFIG: Array<NatConfig, 1> = Array::new();
#[btf_map(name = "leave4_v1")]
pub static LEAVE4: HashMap<u32, Leave4, LEAVE_SLOTS> = HashMap::new();
#[btf_map(name = "leave6_v1")]
pub static LEAVE6: HashMap<u32, Leave6, LEAVE_SLOTS> = HashMap::new();
#[btf_map(name = "spared4_v1")]
pub static SPARED4: LpmTrie<Ip4, u32, SPARED_SLOTS> = LpmTrie::new();
#[btf_map(name = "spared6_v1")]
pub static SPARED6: LpmTrie<Ip6, u32, SPARED_SLOTS> = LpmTrie::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "nat_back4_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "nat_back4_v90"))]
pub static NAT_BACK4: HashMap<NatKey4, NatBack4, NAT_SLOTS, SPARSE> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "nat_back6_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "nat_back6_v90"))]
pub static NAT_BACK6: HashMap<NatKey6, NatBack6, NAT_SLOTS, SPARSE> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "nat_forth4_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "nat_forth4_v90"))]
pub static NAT_FORTH4: HashMap<CtKey4, NatForth4, NAT_SLOTS, SPARSE> = HashMap::new();
#[cfg_attr(not(feature = "test-layout"), btf_map(name = "nat_forth6_v1"))]
#[cfg_attr(feature = "test-layout", btf_map(name = "nat_forth6_v90"))]
pub static NAT_FORTH6: HashMap<CtKey6, NatForth6, NAT_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "nat_held4_v1")]
pub static NAT_HELD4: HashMap<u32, u64, HOLDER_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "nat_held6_v1")]
pub static NAT_HELD6: HashMap<u32, u64, HOLDER_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "frags4_v1")]
pub static FRAGS4: LruHashMap<FragKey4, Fragments, FRAGMENTED_SLOTS> = LruHashMap::new();
#[btf_map(name = "frags6_v1")]
pub static FRAGS6: LruHashMap<FragKey6, Fragments, FRAGMENTED_SLOTS> = LruHashMap::new();
#[btf_map(name = "identity4_v2")]
pub static IDENTITY4: HashMap<Ip4, Holder, REMOTE_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "identity6_v2")]
pub static IDENTITY6: HashMap<Ip6, Holder, REMOTE_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "block4_v1")]
pub static BLOCK4: LpmTrie<Ip4, Identity, BLOCK_SLOTS> = LpmTrie::new();
#[btf_map(name = "block6_v1")]
pub static BLOCK6: LpmTrie<Ip6, Identity, BLOCK_SLOTS> = LpmTrie::new();
#[btf_map(name = "senders_v1")]
pub static SENDERS: LpmTrie<SenderKey, Identity, SENDER_SLOTS> = LpmTrie::new();
#[btf_map(name = "policy_peer_v1")]
pub static POLICY_PEER: HashMap<PeerKey, PeerRules, PEER_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "policy_rule_v2")]
pub static POLICY_RULE: LpmTrie<RuleKey, Rule, RULE_SLOTS> = LpmTrie::new();
#[btf_map(name = "policy_port_v1")]
pub static POLICY_PORT: HashMap<RuleKey, Rule, PORT_SLOTS, SPARSE> = HashMap::new();
#[btf_map(name = "told_v1")]
pub static TOLD: PerCpuArray<Told, 1> = PerCpuArray::new();
#[btf_map(name = "hits_v1")]
pub static HITS: LruHashMap<HitKey, u64, HIT_SLOTS> = LruHashMap::new();
#[btf_map(name = "schema")]
pub static SCHEMA: Array<u64, { MAX_MAPS as usize }> = Array::new();
#[btf_map(name = "layouts")]
pub static LAYOUTS: HashMap<[u8; NAME_BYTES], [u8; RECORD_BYTES], { MAX_LAYOUTS as usize }, SPARSE> = HashMap::new();
