//! Policy rules: which table is asked for packets of an address. Ours are in pods only, where a further interface has its own.
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage},
};

use super::{
    NetlinkError, Request, Socket,
    names::{ROUTE_PROTOCOL, RULE_PRIORITY},
    read,
};

/// `RTM_NEWRULE`.
const NEW: u16 = 32;
/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;

// Attributes, from include/uapi/linux/fib_rules.h.
const SRC: u16 = 2;
const TABLE: u16 = 15;
const PROTOCOL: u16 = 21;

/// A rule of ours: what an address sends goes by this table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The source address.
    pub from: IpAddr,
    /// The table's number.
    pub table: u32,
}

/// Adds a rule; `EEXIST` if it is there.
pub fn add(rule: Rule) -> Request {
    let what = format!("add the rule from {} to table {}", rule.from, rule.table);
    Request::new(what, RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Deletes a rule.
pub fn delete(rule: Rule) -> Request {
    let what = format!("delete the rule from {} to table {}", rule.from, rule.table);
    Request::new(what, RouteNetlinkMessage::DelRule(message(rule)), 0)
}

/// Our rules of the socket's namespace, both families. Others' are not among them.
///
/// # Errors
/// As [`Socket`]'s.
pub fn list(socket: &mut Socket) -> Result<Vec<Rule>, NetlinkError> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RuleMessage::default();
        message.header.family = family;
        let request = Request::new("list the rules", RouteNetlinkMessage::GetRule(message), NLM_F_DUMP);
        rules.extend(socket.dump(&request, |kind, payload| (kind == NEW).then(|| parse(payload)).flatten())?);
    }
    Ok(rules)
}

fn parse(payload: &[u8]) -> Option<Rule> {
    let header = RuleHeader::parse(payload).ok()?;
    let (mut from, mut table, mut protocol) = (None, u32::from(header.table), 0);
    for (kind, value) in read::attributes(payload, HEADER) {
        match kind {
            SRC => from = read::address(value),
            TABLE => table = read::number(value)?,
            PROTOCOL => protocol = *value.first()?,
            _ => {}
        }
    }
    let from = from.filter(|a| IpNet::from(*a).max_prefix_len() == header.src_len)?;
    (protocol == ROUTE_PROTOCOL).then_some(Rule { from, table })
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = if rule.from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    header.src_len = IpNet::from(rule.from).max_prefix_len();
    header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.from),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    message
}
