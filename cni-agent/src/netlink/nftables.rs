//! The netfilter chains that packets meet on their way through the stack: read only, as firewalls are other people's. Of Weft's own is [`own`].
mod expression;
pub mod own;

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};

use super::read;

// From include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nfgenmsg`.
const GENERIC: usize = 4;

/// `NF_INET_FORWARD`: the hook of what is passed on to others.
pub const FORWARD: u32 = 2;

/// A chain that a hook calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// `ip`, `ip6`, `inet` …
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Number of the hook, which depends on the family: see [`FORWARD`].
    pub hook: u32,
    /// Lower ones are asked first.
    pub priority: i32,
    /// What no rule decides about is dropped.
    pub drops: bool,
}

/// What we understand of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// `ip`, `ip6`, `inet` …
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain, base or not.
    pub chain: String,
    /// The device that it is about, as the one that packets come from.
    pub from: Option<String>,
    /// The device that it is about, as the one that packets leave by.
    pub to: Option<String>,
    /// It accepts.
    pub accepts: bool,
    /// It asks for anything else as well, so that it may not be about all packets of the devices.
    pub narrower: bool,
}

/// All base chains of the calling thread's network namespace. None where the kernel has no nftables.
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_ADMIN`.
pub fn base_chains() -> io::Result<Vec<BaseChain>> {
    dump(GET_CHAIN, &Scope::default(), |kind, payload| (kind == NEW_CHAIN).then(|| parse_chain(payload)).flatten())
}

/// All rules of the calling thread's network namespace, in their order. None where the kernel has no nftables.
///
/// # Errors
/// As [`base_chains`].
pub fn rules() -> io::Result<Vec<Rule>> {
    dump(GET_RULE, &Scope::default(), |kind, payload| (kind == NEW_RULE).then(|| parse_rule(payload)))
}

/// What is listed.
#[derive(Debug, Default)]
struct Scope {
    /// `NFPROTO_…`; 0 is any.
    family: u8,
    /// What the kernel chooses by.
    attributes: Vec<u8>,
}

/// Listed anew as long as somebody changes rules meanwhile, but not for ever: then as it was read last.
fn dump<T>(request: u16, scope: &Scope, parse: impl Fn(u16, &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    const ATTEMPTS: u32 = 8;
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let (found, interrupted) = dump_once(request, scope, &parse)?;
        if !interrupted || left == 0 {
            return Ok(found);
        }
    }
}

/// The list, and whether it has changed while it was read.
fn dump_once<T>(request: u16, scope: &Scope, parse: impl Fn(u16, &[u8]) -> Option<T>) -> io::Result<(Vec<T>, bool)> {
    let mut socket = match netlink_sys::Socket::new(NETLINK_NETFILTER) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok((Vec::new(), false)),
        other => other?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = Vec::new();
    message.extend(u32::try_from(HEADER + GENERIC + scope.attributes.len()).unwrap_or_default().to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    // Version 0, no resource.
    message.extend([scope.family, 0, 0, 0]);
    message.extend(&scope.attributes);
    socket.send(&message, 0)?;
    let (mut found, mut interrupted) = (Vec::new(), false);
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = &buffer[..];
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            let length = message.length() as usize;
            interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            let payload = rest.get(HEADER..length).unwrap_or_default();
            match message.message_type() {
                NLMSG_DONE => return Ok((found, interrupted)),
                NLMSG_ERROR => {
                    let code = payload.get(..4).and_then(read::number).unwrap_or_default().cast_signed();
                    return match code.wrapping_neg() {
                        // The subsystem is not in this kernel.
                        0 | libc::EINVAL | libc::EOPNOTSUPP => Ok((Vec::new(), false)),
                        code => Err(io::Error::from_raw_os_error(code)),
                    };
                }
                kind => found.extend(parse(kind, payload)),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Numbers of nftables are in network order.
fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn family(payload: &[u8]) -> &'static str {
    match payload.first() {
        Some(1) => "inet",
        Some(2) => "ip",
        Some(3) => "arp",
        Some(5) => "netdev",
        Some(7) => "bridge",
        Some(10) => "ip6",
        _ => "other",
    }
}

fn parse_chain(payload: &[u8]) -> Option<BaseChain> {
    let mut chain = BaseChain {
        family: family(payload),
        table: String::new(),
        name: String::new(),
        hook: 0,
        priority: 0,
        drops: false,
    };
    let mut base = false;
    for (kind, value) in read::attributes(payload, GENERIC) {
        match kind {
            1 => chain.table = read::text(value),
            3 => chain.name = read::text(value),
            4 => {
                base = true;
                for (kind, value) in read::nested(value) {
                    match kind {
                        1 => chain.hook = number(value)?,
                        2 => chain.priority = number(value)?.cast_signed(),
                        _ => {}
                    }
                }
            }
            // `NF_DROP` is 0.
            5 => chain.drops = number(value) == Some(0),
            _ => {}
        }
    }
    base.then_some(chain)
}

fn parse_rule(payload: &[u8]) -> Rule {
    const IIFNAME: u32 = 6;
    const OIFNAME: u32 = 7;
    let mut rule = Rule { family: family(payload), ..Rule::default() };
    // What the register holds that the next comparison is about.
    let mut loaded = None;
    for (kind, value) in read::attributes(payload, GENERIC) {
        match kind {
            1 => rule.table = read::text(value),
            2 => rule.chain = read::text(value),
            4 => {
                for (name, data) in read::nested(value).map(|(_, e)| expression(e)) {
                    match name.as_str() {
                        "meta" => {
                            loaded = get(data, 2).and_then(number);
                            rule.narrower |= !matches!(loaded, Some(IIFNAME | OIFNAME));
                        }
                        "cmp" => {
                            let equal = get(data, 2).and_then(number) == Some(0);
                            let text = get(data, 3).and_then(|d| get(d, 1)).map(read::text);
                            match loaded.take() {
                                Some(IIFNAME) if equal => rule.from = text,
                                Some(OIFNAME) if equal => rule.to = text,
                                _ => rule.narrower = true,
                            }
                        }
                        "immediate" => {
                            let verdict = get(data, 2).and_then(|d| get(d, 2)).and_then(|v| get(v, 1)).and_then(number);
                            // `NF_ACCEPT`.
                            rule.accepts = verdict == Some(1);
                        }
                        "counter" => {}
                        _ => rule.narrower = true,
                    }
                }
            }
            _ => {}
        }
    }
    rule
}

fn get(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    read::nested(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn expression(element: &[u8]) -> (String, &[u8]) {
    (get(element, 1).map(read::text).unwrap_or_default(), get(element, 2).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    fn be(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_be_bytes())
    }
    fn element(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        attribute(1, &[attribute(1, name.as_bytes()), attribute(2, &data.concat())].concat())
    }

    #[test]
    fn a_base_chain_has_hook_priority_and_policy() {
        let hook = [be(1, FORWARD), be(2, (-5_i32).cast_unsigned())].concat();
        let mut message = vec![2, 0, 0, 0];
        message.extend([attribute(1, b"filter\0"), attribute(3, b"FORWARD\0"), attribute(4, &hook), be(5, 0)].concat());
        let chain = parse_chain(&message).unwrap();
        assert_eq!((chain.family, chain.table.as_str(), chain.name.as_str()), ("ip", "filter", "FORWARD"));
        assert_eq!((chain.hook, chain.priority, chain.drops), (FORWARD, -5, true));
    }

    #[test]
    fn a_chain_without_a_hook_is_no_base_chain() {
        let message = [vec![2, 0, 0, 0], attribute(1, b"filter\0"), attribute(3, b"DOCKER\0")].concat();
        assert_eq!(parse_chain(&message), None);
    }

    #[test]
    fn a_rule_that_accepts_all_of_a_device_is_understood() {
        let mut expressions = vec![
            element("meta", &[be(1, 1), be(2, 6)]),
            element("cmp", &[be(1, 1), be(2, 0), attribute(3, &attribute(1, b"weft_host\0\0\0"))]),
            element("counter", &[]),
            element("immediate", &[be(1, 0), attribute(2, &attribute(2, &be(1, 1)))]),
        ];
        let rule = |e: &[Vec<u8>]| {
            parse_rule(
                &[vec![10, 0, 0, 0], attribute(1, b"f\0"), attribute(2, b"c\0"), attribute(4, &e.concat())].concat(),
            )
        };
        let all = rule(&expressions);
        assert_eq!((all.family, all.from.as_deref(), all.to.clone()), ("ip6", Some("weft_host"), None));
        assert!(all.accepts && !all.narrower);
        expressions.insert(0, element("payload", &[]));
        assert!(rule(&expressions).narrower);
    }
}
