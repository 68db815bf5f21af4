//! The table.
use cni_common::schema::{MapType, NO_PREALLOC};

use super::{
    Feature,
    attempt::{ADJUST_ROOM, Arg, LRU_HASH, Room, Try},
};

/// Programs are attached to devices by it.
pub const TCX: &str = "tcx";
/// Devices may be told of the inner Ethernet header.
pub const ENCAP_L2_ETH: &str = "encap-l2-eth";
/// Those that `--without` takes: where the agent alone decides whether they are used.
pub const SWITCHABLE: [&str; 2] = [TCX, ENCAP_L2_ETH];

const BPF: &[&str] = &["BPF_SYSCALL"];
const CLS: &[&str] = &["NET_CLS_ACT", "NET_CLS_BPF"];
const BLOCKS: &[&str] = &["NET_SCH_INGRESS", "NET_CLS_ACT"];

const ARRAY: u32 = MapType::Array as u32;
const HASH: u32 = MapType::Hash as u32;
const PERCPU_ARRAY: u32 = MapType::PerCpuArray as u32;
const LPM_TRIE: u32 = MapType::LpmTrie as u32;
const RINGBUF: u32 = MapType::RingBuf as u32;

type Origin = (&'static str, &'static [&'static str]);

const fn needed(
    name: &'static str,
    what: &'static str,
    (since, options): Origin,
    purpose: &'static str,
    attempt: Try,
) -> Feature {
    Feature { name, what, since, options, purpose, without: None, attempt }
}

const fn helper(
    name: &'static str,
    what: &'static str,
    since: &'static str,
    number: i32,
    args: &'static [Arg],
) -> Feature {
    needed(name, what, (since, CLS), "The programs call it for packets.", Try::Helper(number, args))
}

const fn socket(name: &'static str, what: &'static str, since: &'static str, number: i32) -> Feature {
    needed(name, what, (since, CLS), "Masquerade keeps off the ports of the node's own sockets.", Try::Socket(number))
}

const fn map(name: &'static str, what: &'static str, since: &'static str, kind: u32, flags: u32) -> Feature {
    needed(name, what, (since, BPF), "The programs keep in them what they know.", Try::Map(kind, flags))
}

const fn useful(
    name: &'static str,
    what: &'static str,
    origin: Origin,
    purpose: &'static str,
    without: &'static str,
    attempt: Try,
) -> Feature {
    Feature { without: Some(without), ..needed(name, what, origin, purpose, attempt) }
}

const fn batch(name: &'static str, what: &'static str, since: &'static str, kind: u32) -> Feature {
    let purpose = "Many entries of a map take one system call.";
    useful(name, what, (since, BPF), purpose, "Weft reads and writes such maps entry by entry.", Try::Batch(kind))
}

/// All of them. A kernel that lacks much is told by the first of them, so those that came last stand first.
pub const ALL: &[Feature] = &[
    map("bpf", "the system call bpf(2)", "3.18", ARRAY, 0),
    helper("redirect-peer", "the helper bpf_redirect_peer", "5.10", 155, &[Arg::Is(1), Arg::Is(0)]),
    helper(
        "redirect-neigh",
        "the helper bpf_redirect_neigh",
        "5.10",
        152,
        &[Arg::Is(1), Arg::Is(0), Arg::Is(0), Arg::Is(0)],
    ),
    map("ring-buffer", "BPF ring buffers", "5.8", RINGBUF, 0),
    helper(
        "ringbuf-output",
        "the helper bpf_ringbuf_output",
        "5.8",
        130,
        &[Arg::Map(RINGBUF), Arg::Stack, Arg::Is(8), Arg::Is(0)],
    ),
    helper("csum-level", "the helper bpf_csum_level", "5.8", 135, &[Arg::Ctx, Arg::Is(0)]),
    helper("jiffies64", "the helper bpf_jiffies64", "5.6", 118, &[]),
    needed(
        "shared-blocks",
        "tc blocks that devices share",
        ("4.16", BLOCKS),
        "All pods' devices have their program by one.",
        Try::SharedBlock,
    ),
    socket("sk-lookup-tcp", "the helpers bpf_sk_lookup_tcp and bpf_sk_release", "4.20", 84),
    socket("sk-lookup-udp", "the helpers bpf_sk_lookup_udp and bpf_sk_release", "4.20", 85),
    helper("fib-lookup", "the helper bpf_fib_lookup", "4.18", 69, &[Arg::Ctx, Arg::Stack, Arg::Is(64), Arg::Is(0)]),
    helper(
        "adjust-room",
        "the helper bpf_skb_adjust_room",
        "4.13",
        ADJUST_ROOM,
        &[Arg::Ctx, Arg::Is(8), Arg::Is(1), Arg::Is(0)],
    ),
    map("map-lru-hash", "BPF hash maps that forget what was least recently used", "4.10", LRU_HASH, 0),
    map("map-lpm-trie", "BPF longest-prefix tries", "4.11", LPM_TRIE, NO_PREALLOC),
    helper("pull-data", "the helper bpf_skb_pull_data", "4.9", 39, &[Arg::Ctx, Arg::Is(0)]),
    helper("csum-update", "the helper bpf_csum_update", "4.9", 40, &[Arg::Ctx, Arg::Is(0)]),
    helper("change-tail", "the helper bpf_skb_change_tail", "4.9", 38, &[Arg::Ctx, Arg::Is(64), Arg::Is(0)]),
    helper("change-type", "the helper bpf_skb_change_type", "4.8", 32, &[Arg::Ctx, Arg::Is(0)]),
    helper(
        "csum-diff",
        "the helper bpf_csum_diff",
        "4.6",
        28,
        &[Arg::Is(0), Arg::Is(0), Arg::Stack, Arg::Is(8), Arg::Is(0)],
    ),
    map("map-hash-no-prealloc", "BPF hash maps that grow as they fill", "4.6", HASH, NO_PREALLOC),
    map("map-percpu-array", "BPF arrays of each CPU", "4.6", PERCPU_ARRAY, 0),
    helper("redirect", "the helper bpf_redirect", "4.4", 23, &[Arg::Is(1), Arg::Is(0)]),
    helper(
        "get-tunnel-key",
        "the helper bpf_skb_get_tunnel_key",
        "4.3",
        20,
        &[Arg::Ctx, Arg::Stack, Arg::Is(28), Arg::Is(0)],
    ),
    helper(
        "set-tunnel-key",
        "the helper bpf_skb_set_tunnel_key",
        "4.3",
        21,
        &[Arg::Ctx, Arg::Stack, Arg::Is(28), Arg::Is(0)],
    ),
    needed(
        "vxlan",
        "VXLAN devices",
        ("4.3", &["VXLAN"]),
        "They take from the tunnel what the programs leave to them.",
        Try::Vxlan,
    ),
    helper(
        "l4-csum-replace",
        "the helper bpf_l4_csum_replace",
        "4.1",
        11,
        &[Arg::Ctx, Arg::Is(16), Arg::Is(0), Arg::Is(0), Arg::Is(0)],
    ),
    helper("ktime-get-ns", "the helper bpf_ktime_get_ns", "4.1", 5, &[]),
    helper("get-prandom-u32", "the helper bpf_get_prandom_u32", "4.1", 7, &[]),
    helper(
        "map-update-elem",
        "the helper bpf_map_update_elem",
        "3.19",
        2,
        &[Arg::Map(HASH), Arg::Stack, Arg::Stack, Arg::Is(0)],
    ),
    helper("map-delete-elem", "the helper bpf_map_delete_elem", "3.19", 3, &[Arg::Map(HASH), Arg::Stack]),
    helper("map-lookup-elem", "the helper bpf_map_lookup_elem", "3.19", 1, &[Arg::Map(ARRAY), Arg::Stack]),
    map("map-hash", "BPF hash maps", "3.19", HASH, 0),
    needed("veth", "veth devices", ("2.6.24", &["VETH"]), "Pods are connected by them.", Try::Veth),
    useful(
        TCX,
        "TCX",
        ("6.6", &["NET_XGRESS"]),
        "The programs on the node's devices stand beside others' in an order that all know.",
        "Weft attaches its programs on the node's devices by filters on clsact, which other tools can take away.",
        Try::Tcx,
    ),
    useful(
        "test-run",
        "BPF_PROG_TEST_RUN",
        ("4.12", CLS),
        "Flags of bpf_skb_adjust_room are tried by it.",
        "Weft takes the flags of bpf_skb_adjust_room for missing, as it cannot try them.",
        Try::TestRun,
    ),
    useful(
        ENCAP_L2_ETH,
        "the flag BPF_F_ADJ_ROOM_ENCAP_L2_ETH",
        ("5.13", CLS),
        "NICs segment tunnelled packets.",
        "Weft cannot tell NICs where the inner packet of the tunnel begins: the CPU segments what they could.",
        Try::AdjustRoom(Room::GROW_BY_ETHERNET),
    ),
    useful(
        "decap-l3",
        "the flags BPF_F_ADJ_ROOM_DECAP_L3_IPV4 and _IPV6",
        ("6.3", CLS),
        "The program takes packets out of a tunnel of the other IP family.",
        "Weft leaves tunnelled packets of the other IP family than the tunnel's to the kernel's VXLAN device, a longer way.",
        Try::AdjustRoom(Room::SHRINK_TO_OTHER_FAMILY),
    ),
    batch("batch-hash", "batch operations on BPF hash maps", "5.6", HASH),
    batch("batch-lru-hash", "batch operations on BPF LRU hash maps", "5.6", LRU_HASH),
    batch("batch-array", "batch operations on BPF arrays", "5.6", ARRAY),
    batch("batch-percpu-array", "batch operations on BPF arrays of each CPU", "5.13", PERCPU_ARRAY),
    batch("batch-lpm-trie", "batch operations on BPF longest-prefix tries", "5.13", LPM_TRIE),
    useful(
        "verified-insns",
        "the verifier's count of instructions",
        ("5.16", BPF),
        "Tools show what a program costs the verifier.",
        "Weft is the same; what a program costs the verifier stands in the verifier's log alone.",
        Try::VerifiedInsns,
    ),
];
