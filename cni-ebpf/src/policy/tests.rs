use std::collections::{BTreeMap, BTreeSet};

use bytemuck::bytes_of;
use cni_common::{
    drop::Outcome,
    net::{Be16, Ip4, Ip6},
    policy::{
        HitKey, Holder, IDENTITY_OTHER, IDENTITY_UNKNOWN, RULE_BITS, RULE_PORT_BITS, RULE_PROTO_BITS, RULES_ALLOW_ALL,
        RULES_BY_PORT, RULES_DENY_ALL, RULES_FIRST, Rule, RuleKey, SENDER_BITS, SET_AUDIT, SET_NONE, SenderKey,
        VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_DENY, is_by_port,
    },
};
use proptest::prelude::*;

use super::*;
use crate::{DropReason, family::V4};

const POD: Ip4 = Ip4::new([10, 1, 0, 1]);
const PEER: Ip4 = Ip4::new([10, 1, 0, 2]);
const OUTSIDE: Ip4 = Ip4::new([203, 0, 113, 1]);
const NODE: Ip4 = Ip4::new([192, 0, 2, 1]);
const SET: u32 = 5;
const PEER_ID: u32 = 7;
const BLOCK_ID: u32 = 8;
/// Hash of the peer's label class, and the peer's node.
const CLASS: u32 = 0xab_cdef;
const FAR_NODE: u32 = 3;
const TCP: u32 = 6;
const ICMP: u32 = 1;

/// Maps as the kernel compares them: keys bit by bit.
#[derive(Default)]
struct Maps {
    holders: BTreeMap<[u8; 4], Holder>,
    /// Node behind each address.
    nodes: BTreeMap<[u8; 4], u32>,
    senders: Vec<(u32, SenderKey, u32)>,
    blocks: Vec<(u32, [u8; 4], u32)>,
    inside: BTreeSet<[u8; 4]>,
    own: BTreeSet<[u8; 4]>,
    services: BTreeSet<[u8; 4]>,
    peers: BTreeMap<(u32, u32), u32>,
    rules: Vec<(u32, RuleKey, Rule)>,
}

fn covers(bits: u32, prefix: &[u8], key: &[u8]) -> bool {
    (0..bits as usize).all(|i| (prefix[i / 8] ^ key[i / 8]) & (0x80 >> (i % 8)) == 0)
}

impl Rules for Maps {
    fn rules_of(&self, set: u32, identity: u32) -> Option<u32> {
        self.peers.get(&(set, identity)).copied()
    }
    fn port_rule(&self, key: &RuleKey) -> Option<&Rule> {
        let mut singles = self.rules.iter().filter(|(bits, k, _)| is_by_port(k.rules, *bits));
        singles.find(|(_, k, _)| k == key).map(|(.., rule)| rule)
    }
    fn rule(&self, key: &RuleKey) -> Option<&Rule> {
        let prefixes = self.rules.iter().filter(|(bits, k, _)| !is_by_port(k.rules, *bits));
        let hits = prefixes.filter(|(bits, k, _)| covers(*bits, bytes_of(k), bytes_of(key)));
        hits.max_by_key(|(bits, ..)| *bits).map(|(.., rule)| rule)
    }
}
impl Identities<V4> for Maps {
    fn holder(&self, a: &Ip4) -> Option<&Holder> {
        self.holders.get(&a.bytes)
    }
    fn node(&self, a: &Ip4) -> Option<u32> {
        self.nodes.get(&a.bytes).copied()
    }
    fn sender(&self, key: &SenderKey) -> Option<u32> {
        let hits = self.senders.iter().filter(|(bits, k, _)| covers(*bits, bytes_of(k), bytes_of(key)));
        hits.max_by_key(|(bits, ..)| *bits).map(|(.., id)| *id)
    }
    fn block(&self, a: &Ip4) -> Option<u32> {
        let hits = self.blocks.iter().filter(|(bits, p, _)| covers(*bits, p, &a.bytes));
        hits.max_by_key(|(bits, ..)| *bits).map(|(.., id)| *id)
    }
    fn is_inside(&self, a: &Ip4) -> bool {
        self.inside.contains(&a.bytes)
    }
    fn is_own(&self, a: &Ip4) -> bool {
        self.own.contains(&a.bytes)
    }
    fn is_service(&self, a: &Ip4) -> bool {
        self.services.contains(&a.bytes)
    }
}

fn flow(src: Ip4, dst: Ip4, proto: u32, port: u16) -> Flow<V4> {
    Flow { src, dst, proto, port: Be16::from_host(port) }
}
fn maps() -> Maps {
    let rule = |bits, proto: u8, port: u16, verdict, cookie| {
        let key = RuleKey { rules: RULES_FIRST, proto, port: port.to_be_bytes(), pad: 0 };
        (bits, key, Rule { verdict, cookie })
    };
    Maps {
        holders: BTreeMap::from([(PEER.bytes, Holder { identity: PEER_ID, class: CLASS })]),
        blocks: vec![(24, [203, 0, 113, 0], BLOCK_ID)],
        peers: BTreeMap::from([((SET, IDENTITY_OTHER), RULES_DENY_ALL), ((SET, PEER_ID), RULES_FIRST)]),
        rules: vec![
            rule(RULE_PORT_BITS, 6, 80, VERDICT_ALLOW, 11),
            rule(RULE_PROTO_BITS + 8, 6, 0x1f00, VERDICT_ALLOW, 12),
            rule(RULE_PORT_BITS, 6, 0x1f01, VERDICT_DENY, 13),
        ],
        ..Maps::default()
    }
}
fn answer(r: Ruling) -> (bool, Why, u32) {
    (r.is_allowed(), r.why(), r.cookie())
}

#[test]
fn a_pod_without_policy_is_not_looked_up() {
    let none = Maps::default();
    assert_eq!(answer(egress(&none, SET_NONE, &flow(POD, PEER, TCP, 80))), (true, Why::NotIsolated, 0));
    assert_eq!(answer(ingress(&none, SET_NONE, false, &flow(PEER, POD, TCP, 80))), (true, Why::NotIsolated, 0));
}

#[test]
fn a_services_address_is_asked_about_when_it_is_translated_unless_it_is_somebodys() {
    let mut m = maps();
    let service = Ip4::new([10, 96, 0, 1]);
    let to = |a| flow(POD, a, TCP, 81);
    assert_eq!(answer(egress(&m, SET, &to(service))), (false, Why::Whole, 0));
    m.services = [service, PEER, POD].map(|a| a.bytes).into();
    assert_eq!(answer(egress(&m, SET, &to(service))), (true, Why::Service, 0));
    assert!(!egress(&m, SET, &to(PEER)).is_allowed(), "a pod's address is not let pass as a Service's");
    m.inside = [service.bytes].into();
    assert!(!egress(&m, SET, &to(service)).is_allowed(), "nor one of which only a pod can be the holder");
    assert!(!ingress(&m, SET, false, &flow(service, POD, TCP, 81)).is_allowed(), "what comes from there is judged");
}

#[test]
fn a_pod_reaches_itself_also_by_way_of_a_service() {
    let m = maps();
    assert_eq!(answer(egress(&m, SET, &flow(POD, POD, TCP, 1))), (true, Why::Itself, 0));
    assert_eq!(answer(ingress(&m, SET, false, &flow(POD, POD, TCP, 1))), (true, Why::Itself, 0));
}

#[test]
fn the_own_node_gets_in_and_nobody_who_only_has_its_address_does() {
    let mut m = maps();
    m.own.insert(NODE.bytes);
    assert_eq!(answer(ingress(&m, SET, true, &flow(NODE, POD, TCP, 1))), (true, Why::OwnNode, 0));
    assert_eq!(answer(ingress(&m, SET, false, &flow(NODE, POD, TCP, 1))), (false, Why::Whole, 0));
    // What the stack forwards has another source.
    assert_eq!(answer(ingress(&m, SET, true, &flow(OUTSIDE, POD, TCP, 1))), (false, Why::Whole, 0));
    // The other way is as written.
    assert_eq!(answer(egress(&m, SET, &flow(POD, NODE, TCP, 1))), (false, Why::Whole, 0));
}

#[test]
fn an_address_of_which_the_maps_cannot_tell_is_unknown_whoever_the_default_lets_in() {
    let mut m = maps();
    m.peers.insert((SET, IDENTITY_OTHER), RULES_ALLOW_ALL);
    m.holders.insert(PEER.bytes, Holder { identity: IDENTITY_UNKNOWN, class: 0 });
    m.blocks.push((32, OUTSIDE.bytes, IDENTITY_UNKNOWN));
    for peer in [PEER, OUTSIDE] {
        assert_eq!(answer(egress(&m, SET, &flow(POD, peer, TCP, 80))), (false, Why::UnknownPeer, 0));
        assert_eq!(answer(ingress(&m, SET, false, &flow(peer, POD, TCP, 80))), (false, Why::UnknownPeer, 0));
        assert_eq!(answer(egress(&m, SET_NONE, &flow(POD, peer, TCP, 80))), (true, Why::NotIsolated, 0));
    }
}

#[test]
fn a_peer_without_an_entry_has_the_default_and_the_longest_prefix_decides() {
    let m = maps();
    let ask = |port| answer(egress(&m, SET, &flow(POD, PEER, TCP, port)));
    assert_eq!(ask(80), (true, Why::Entry, 11));
    assert_eq!(ask(0x1f00), (true, Why::Entry, 12));
    assert_eq!(ask(0x1f01), (false, Why::Entry, 13));
    assert_eq!(ask(81), (false, Why::NoEntry, 0));
    assert_eq!(answer(egress(&m, SET, &flow(POD, OUTSIDE, TCP, 80))), (false, Why::Whole, 0));
}

#[test]
fn single_ports_in_the_hash_decide_before_the_trie_and_what_they_do_not_name_is_the_tries() {
    let mut m = maps();
    let marked = RULES_FIRST | RULES_BY_PORT;
    m.rules.iter_mut().for_each(|(_, key, _)| key.rules = marked);
    m.peers.insert((SET, PEER_ID), marked);
    let ask = |m: &Maps, proto, port| answer(egress(m, SET, &flow(POD, PEER, proto, port)));
    assert_eq!(ask(&m, TCP, 80), (true, Why::Entry, 11));
    assert_eq!(ask(&m, TCP, 0x1f01), (false, Why::Entry, 13), "a port beats the range that it is in");
    assert_eq!(ask(&m, TCP, 0x1f02), (true, Why::Entry, 12));
    assert_eq!((ask(&m, TCP, 81), ask(&m, 17, 80)), ((false, Why::NoEntry, 0), (false, Why::NoEntry, 0)));
    // A set that is not marked has nothing there, whatever its number's other bits.
    m.peers.insert((SET, PEER_ID), RULES_FIRST);
    assert_eq!(ask(&m, TCP, 80), (false, Why::NoEntry, 0));
}

#[test]
fn another_protocol_is_covered_by_the_whole_set_only() {
    let mut m = maps();
    assert_eq!(answer(egress(&m, SET, &flow(POD, PEER, ICMP, 0))), (false, Why::NoEntry, 0));
    let any = RuleKey { rules: RULES_FIRST, proto: 0, port: [0; 2], pad: 0 };
    m.rules.push((RULE_BITS, any, Rule { verdict: VERDICT_ALLOW, cookie: 3 }));
    assert_eq!(answer(egress(&m, SET, &flow(POD, PEER, ICMP, 0))), (true, Why::Entry, 3));
    assert_eq!(answer(egress(&m, SET, &flow(POD, PEER, TCP, 0x1f01))), (false, Why::Entry, 13));
}

#[test]
fn an_address_is_known_by_itself_before_its_block() {
    let mut m = maps();
    m.peers.insert((SET, BLOCK_ID), RULES_ALLOW_ALL);
    assert_eq!(answer(egress(&m, SET, &flow(POD, OUTSIDE, TCP, 9))), (true, Why::Whole, 0));
    m.holders.insert(OUTSIDE.bytes, Holder { identity: PEER_ID, class: 0 });
    assert_eq!(answer(egress(&m, SET, &flow(POD, OUTSIDE, TCP, 9))), (false, Why::NoEntry, 0));
}

#[test]
fn a_pod_that_is_not_known_is_refused_by_isolated_pods_only() {
    let mut m = maps();
    m.peers.insert((SET, IDENTITY_OTHER), RULES_ALLOW_ALL);
    m.inside.insert(OUTSIDE.bytes);
    assert_eq!(answer(ingress(&m, SET, false, &flow(OUTSIDE, POD, TCP, 9))), (false, Why::UnknownPeer, 0));
    assert_eq!(answer(ingress(&m, SET_NONE, false, &flow(OUTSIDE, POD, TCP, 9))), (true, Why::NotIsolated, 0));
}

#[test]
fn a_set_that_the_maps_do_not_hold_denies() {
    assert_eq!(answer(egress(&Maps::default(), SET, &flow(POD, PEER, TCP, 80))), (false, Why::NoSet, 0));
    let mut m = maps();
    m.rules.iter_mut().for_each(|(.., rule)| rule.verdict = 0);
    assert_eq!(answer(egress(&m, SET, &flow(POD, PEER, TCP, 80))), (false, Why::Entry, 11));
}

#[test]
fn a_set_of_policies_in_audit_mode_denies_nothing_whatever_the_maps_hold() {
    let set = SET | SET_AUDIT;
    let mut m = maps();
    for identity in [IDENTITY_OTHER, PEER_ID] {
        m.peers.insert((set, identity), m.peers[&(SET, identity)]);
    }
    m.inside.insert(NODE.bytes);
    for (to, port) in [(PEER, 80), (PEER, 0x1f01), (PEER, 81), (OUTSIDE, 80), (NODE, 80)] {
        let [obeyed, audited] = [SET, set].map(|set| egress(&m, set, &flow(POD, to, TCP, port)));
        assert!(audited.is_allowed());
        assert_eq!(
            (audited.is_audited(), audited.why(), audited.cookie()),
            (!obeyed.is_allowed(), obeyed.why(), obeyed.cookie())
        );
    }
    let r = ingress(&Maps::default(), set, false, &flow(PEER, POD, TCP, 80));
    assert_eq!((r.is_allowed(), r.is_audited(), r.why()), (true, true, Why::NoSet));
}

#[test]
fn what_is_judged_of_a_packet_reads_back_for_each_end() {
    let of = |verdict, cookie| Ruling::of_entry(&Rule { verdict, cookie });
    let unknown = Ruling::denied(Why::UnknownPeer).in_audit();
    let (egress, ingress) = (Outcome::AuditEgress, Outcome::AuditIngress);
    let both = Judged::PASS.with_egress(of(VERDICT_AUDIT, u32::MAX)).with_ingress(unknown);
    assert_eq!(both.audited(true, 7), Some((egress, DropReason::PolicyEgress, u32::MAX)));
    assert_eq!(both.audited(false, 7), Some((ingress, DropReason::PolicyUnknown, 7)));
    assert_eq!((both.result(), both.under(0xff_ffff).result()), (Ok(0), Ok(0xff_ffff)));
    assert_eq!(both.under(u32::MAX).audited(true, 7), both.audited(true, 7));
    let dropped = Judged::PASS.with_egress(unknown).dropped(DropReason::PolicyIngress);
    assert_eq!(dropped.audited(true, 7), Some((egress, DropReason::PolicyUnknown, 0)));
    assert_eq!((dropped.audited(false, 7), dropped.result()), (None, Err(DropReason::PolicyIngress)));
    let fine = Judged::PASS.with_egress(of(VERDICT_ALLOW, 3)).with_ingress(Ruling::allowed(Why::Whole));
    assert!(fine == Judged::PASS && !fine.is_audited() && both.is_audited());
    assert_eq!(Judged::from_word(both.word()), both);
    let counted = both.under(0xff_ffff).hit();
    assert!(counted.is_hit() && !both.under(0xff_ffff).is_hit());
    assert_eq!((counted.class(), counted.result()), (0xff_ffff, Ok(0xff_ffff)));
    assert_eq!(dropped.hit().result(), Err(DropReason::PolicyIngress));
}

#[test]
fn what_decides_is_counted_for_the_rule_or_for_the_policy_set_and_what_nobody_says_for_none() {
    let of = |verdict, cookie| HitKey::from_number(Ruling::of_entry(&Rule { verdict, cookie }).hit(5));
    for verdict in [VERDICT_ALLOW, VERDICT_AUDIT, VERDICT_DENY] {
        assert_eq!(of(verdict, 9), HitKey::of_rule(9, verdict));
    }
    assert_eq!(of(VERDICT_DENY, 0), HitKey::of_set(5, VERDICT_DENY));
    for why in [Why::Whole, Why::NoEntry, Why::UnknownPeer, Why::NoSet] {
        let denied = Ruling::denied(why);
        assert_eq!(HitKey::from_number(denied.hit(5)), HitKey::of_set(5, VERDICT_DENY));
        assert_eq!(HitKey::from_number(denied.in_audit().hit(5)), HitKey::of_set(5, VERDICT_AUDIT));
    }
    for why in [Why::NotIsolated, Why::Itself, Why::OwnNode, Why::Whole] {
        assert_eq!(Ruling::allowed(why).hit(5), 0);
    }
}

proptest! {
    #[test]
    fn an_answer_reads_back_what_went_in(verdict in 0_u32..5, cookie in any::<u32>()) {
        let r = Ruling::of_entry(&Rule { verdict, cookie });
        prop_assert_eq!(answer(r), ([VERDICT_ALLOW, VERDICT_AUDIT].contains(&verdict), Why::Entry, cookie));
        prop_assert_eq!(r.is_audited(), verdict == VERDICT_AUDIT);
        prop_assert_eq!((r.in_audit().is_allowed(), r.in_audit().is_audited()), (true, verdict != VERDICT_ALLOW));
        prop_assert_eq!(answer(r.in_audit()), (true, Why::Entry, cookie));
    }
    #[test]
    fn both_maps_say_together_what_the_longest_prefix_of_all_entries_says(
        is_marked in any::<bool>(),
        entries in proptest::collection::vec((32_u32..=56, 0_u8..3, 0_u16..64, any::<bool>()), 0..60),
        asked in proptest::collection::vec((0_u8..3, 0_u16..64), 1..40),
    ) {
        let rules = if is_marked { RULES_FIRST | RULES_BY_PORT } else { RULES_FIRST };
        let mut all: BTreeMap<(u32, [u8; 8]), Rule> = BTreeMap::new();
        for ((bits, proto, port, may), cookie) in entries.into_iter().zip(1..) {
            // Many whole ports, and no half of a protocol.
            let bits = match bits { 33..40 => RULE_BITS, 46.. => RULE_PORT_BITS, other => other };
            let key = RuleKey { rules, proto, port: (port << 10).to_be_bytes(), pad: 0 };
            let rest = u64::MAX.checked_shr(bits).unwrap_or(0);
            let masked = u64::from_be_bytes(bytemuck::cast(key)) & !rest;
            let verdict = if may { VERDICT_ALLOW } else { VERDICT_DENY };
            all.insert((bits, masked.to_be_bytes()), Rule { verdict, cookie });
        }
        let m = Maps {
            holders: maps().holders,
            peers: BTreeMap::from([((SET, PEER_ID), rules)]),
            rules: all.iter().map(|((bits, key), rule)| (*bits, bytemuck::cast(*key), *rule)).collect(),
            ..Maps::default()
        };
        for (proto, port) in asked {
            let key = RuleKey { rules, proto, port: (port << 10).to_be_bytes(), pad: 0 };
            // Told by both at once, the shortest first.
            let naive = all.iter().rfind(|((bits, k), _)| covers(*bits, k, bytes_of(&key)));
            let want = naive.map_or((false, Why::NoEntry, 0), |(_, r)| (r.verdict == VERDICT_ALLOW, Why::Entry, r.cookie));
            prop_assert_eq!(answer(egress(&m, SET, &flow(POD, PEER, proto.into(), port << 10))), want);
        }
    }
    #[test]
    fn an_isolated_pod_lets_nothing_pass_that_no_entry_allows(
        set in 1_u32..4, src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), proto in any::<u8>(), port in any::<u16>()
    ) {
        let m = Maps { peers: (1..4).map(|s| ((s, IDENTITY_OTHER), RULES_FIRST + s)).collect(), ..Maps::default() };
        let f = flow(Ip4::new(src), Ip4::new(dst), proto.into(), port);
        prop_assert_eq!(egress(&m, set, &f).is_allowed(), src == dst);
        prop_assert_eq!(ingress(&m, set, true, &f).is_allowed(), src == dst);
    }
}

/// An address of a node's pod CIDR, as the key has it.
fn sender(node: u32, class: u32, a: Ip4, bits: u32, identity: u32) -> (u32, SenderKey, u32) {
    (SENDER_BITS + 96 + bits, SenderKey { node, class, addr: Ip6::mapped(a) }, identity)
}

#[test]
fn a_label_class_names_a_pod_whose_address_is_not_known_and_where_it_is_a_longer_prefix_says() {
    let new = Ip4::new([10, 1, 0, 9]);
    let cut = Ip4::new([10, 1, 0, 200]);
    let other = CLASS ^ 1;
    let m = Maps {
        nodes: BTreeMap::from([(new.bytes, FAR_NODE), (cut.bytes, FAR_NODE), (PEER.bytes, FAR_NODE)]),
        inside: BTreeSet::from([new.bytes, cut.bytes, PEER.bytes]),
        senders: vec![
            sender(FAR_NODE, other, Ip4::new([10, 1, 0, 0]), 24, 70),
            sender(FAR_NODE, other, Ip4::new([10, 1, 0, 192]), 26, 71),
            sender(FAR_NODE + 1, CLASS, Ip4::new([10, 1, 0, 0]), 24, 72),
        ],
        ..maps()
    };
    assert_eq!(identify_sender(&m, &new, other), Some(70));
    assert_eq!(identify_sender(&m, &cut, other), Some(71), "what policies name inside of the CIDR");
    assert_eq!(identify_sender(&m, &new, CLASS), None, "a class of another node's pods");
    assert_eq!(identify_sender(&m, &new, 0), None, "no class");
    assert_eq!(identify_sender(&m, &PEER, CLASS), Some(PEER_ID), "they agree");
    assert_eq!(identify_sender(&m, &PEER, other), Some(70), "an address that another pod has now");
    assert_eq!(identify_sender(&m, &PEER, 0), Some(PEER_ID));
    assert_eq!(identify_sender(&m, &PEER, 77), Some(PEER_ID), "a class that is not known, or is two");
    assert_eq!(identify_sender(&m, &OUTSIDE, other), Some(BLOCK_ID), "of no node");
}

proptest! {
    /// The rule on classes, written once more.
    #[test]
    fn agree_differ_or_say_nothing(
        known in proptest::option::of((1_u32..4, 0_u32..4)), said in 0_u32..4, node in proptest::option::of(0_u32..3),
        entries in proptest::collection::btree_map((0_u32..3, 1_u32..4), 10_u32..20, 0..6), inside: bool,
    ) {
        let a = PEER;
        let m = Maps {
            holders: known.map(|(identity, class)| (a.bytes, Holder { identity, class })).into_iter().collect(),
            nodes: node.map(|n| (a.bytes, n)).into_iter().collect(),
            inside: inside.then_some(a.bytes).into_iter().collect(),
            senders: entries.iter().map(|((n, c), id)| sender(*n, *c, Ip4::new([10, 1, 0, 0]), 24, *id)).collect(),
            ..Maps::default()
        };
        let by_class = node.filter(|_| said != 0).and_then(|n| entries.get(&(n, said)).copied());
        let by_address = known.map(|(identity, _)| identity).or((!inside).then_some(IDENTITY_OTHER));
        let expected = match known {
            Some((identity, class)) if class == said => Some(identity),
            _ => by_class.or(by_address),
        };
        prop_assert_eq!(identify_sender(&m, &a, said), expected);
        prop_assert_eq!(identify(&m, &a), by_address);
    }
}
