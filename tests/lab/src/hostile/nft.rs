//! The firewall of a hostile node: FORWARD policy DROP and the masquerading that Docker brings. Made as `iptables-nft` would, without any
//! program, because the guests of the virtual machines have none.
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::message::{self, Attributes, Message};
use crate::probe::Family;

// From include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;

/// `NF_INET_FORWARD` and `NF_INET_POST_ROUTING`.
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
/// Priority of source NAT (`NF_IP_PRI_NAT_SRC`).
const SOURCE_NAT: u32 = 100;

/// What becomes of packets that no rule of the FORWARD chain decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They are dropped.
    Drop = 0,
    /// They go on.
    Accept = 1,
}

/// Makes table `filter` with the chain FORWARD in both families, or sets the chain's policy.
pub(super) fn set_forward(netns: BorrowedFd<'_>, policy: Policy) -> Result<()> {
    let chain = Chain { table: "filter", name: "FORWARD", kind: "filter", hook: FORWARD, priority: 0, policy };
    let messages = Family::BOTH.into_iter().flat_map(|family| chain.make(family)).collect();
    run(netns, messages).with_context(|| format!("set the policy of the FORWARD chains to {policy:?}"))
}

/// Lets what comes from `net` and leaves by another device than `inside` get an address of the node, as Docker does.
pub(super) fn masquerade(netns: BorrowedFd<'_>, net: IpNet, inside: &str) -> Result<()> {
    let chain = Chain {
        table: "nat",
        name: "POSTROUTING",
        kind: "nat",
        hook: POSTROUTING,
        priority: SOURCE_NAT,
        policy: Policy::Accept,
    };
    // Place and length of the source address in the header.
    let (family, at, mask, network) = match net {
        IpNet::V4(net) => (Family::V4, 12, net.netmask().octets().to_vec(), net.network().octets().to_vec()),
        IpNet::V6(net) => (Family::V6, 8, net.netmask().octets().to_vec(), net.network().octets().to_vec()),
    };
    let length = mask.len();
    // `ip saddr & mask == net`, `oifname != inside`, `masquerade`.
    let mut rule = Attributes::default();
    let source = [(1, REGISTER), (2, 1), (3, at), (4, length as u32)];
    let mask = Attributes::default().bytes(1, &mask);
    let no_bits = Attributes::default().bytes(1, &vec![0; length]);
    let masked = numbers(&[(1, REGISTER), (2, REGISTER), (3, length as u32)]).nest(4, &mask).nest(5, &no_bits);
    let mut device = [0; 16];
    for (to, from) in device.iter_mut().zip(inside.bytes()) {
        *to = from;
    }
    for (name, data) in [
        ("payload", Some(numbers(&source))),
        ("bitwise", Some(masked)),
        ("cmp", Some(compare(0, &network))),
        ("meta", Some(numbers(&[(1, REGISTER), (2, 7)]))),
        ("cmp", Some(compare(1, &device))),
        ("masq", None),
    ] {
        let mut expression = Attributes::default().text(EXPRESSION_NAME, name);
        if let Some(data) = data {
            expression = expression.nest(EXPRESSION_DATA, &data);
        }
        rule = rule.nest(LIST_ELEMENT, &expression);
    }
    let rule =
        Attributes::default().text(RULE_TABLE, chain.table).text(RULE_CHAIN, chain.name).nest(RULE_EXPRESSIONS, &rule);
    let mut messages: Vec<_> = chain.make(family).into();
    // NLM_F_APPEND of include/uapi/linux/netlink.h.
    messages.push(change(family, NEW_RULE, NLM_F_CREATE | 0x800, &rule));
    run(netns, messages).with_context(|| format!("masquerade {net}"))
}

/// Takes the masquerading away.
pub(super) fn no_masquerade(netns: BorrowedFd<'_>) -> Result<()> {
    let table = Attributes::default().text(TABLE_NAME, "nat");
    let both = Family::BOTH.map(|family| change(family, DEL_TABLE, 0, &table));
    run(netns, both.into()).context("end masquerading")
}

struct Chain {
    table: &'static str,
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: u32,
    policy: Policy,
}

impl Chain {
    fn make(&self, family: Family) -> [Message; 2] {
        let table = Attributes::default().text(TABLE_NAME, self.table);
        let hook = numbers(&[(HOOK_NUMBER, self.hook), (HOOK_PRIORITY, self.priority)]);
        let chain = Attributes::default()
            .text(CHAIN_TABLE, self.table)
            .text(CHAIN_NAME, self.name)
            .text(CHAIN_TYPE, self.kind)
            .nest(CHAIN_HOOK, &hook)
            .number(CHAIN_POLICY, self.policy as u32);
        [change(family, NEW_TABLE, NLM_F_CREATE, &table), change(family, NEW_CHAIN, NLM_F_CREATE, &chain)]
    }
}

fn numbers(list: &[(u16, u32)]) -> Attributes {
    list.iter().fold(Attributes::default(), |all, (kind, value)| all.number(*kind, *value))
}

/// The register is equal to these bytes (operation 0), or is not (1).
fn compare(operation: u32, with: &[u8]) -> Attributes {
    numbers(&[(1, REGISTER), (2, operation)]).nest(3, &Attributes::default().bytes(1, with))
}

fn change(family: Family, kind: u16, flags: u16, attributes: &Attributes) -> Message {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    let family = if family == Family::V4 { 2 } else { 10 };
    Message::new(SUBSYSTEM << 8 | kind, flags | NLM_F_ACK, &[family, 0, 0, 0]).with(attributes)
}

/// All of them take effect, or none.
fn run(netns: BorrowedFd<'_>, messages: Vec<Message>) -> Result<()> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let mark = |kind| Message::new(kind, 0, &[0, 0, high, low]);
    let batch = [vec![mark(BATCH_BEGIN)], messages, vec![mark(BATCH_END)]].concat();
    message::send(netns, NETLINK_NETFILTER, &batch)
}
