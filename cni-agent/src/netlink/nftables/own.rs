//! Weft's own table: what the node's stack masquerades of what it has translated for pods.
//!
//! It is replaced as a whole, in one batch, which the kernel takes or refuses as one: a packet meets the old rules or the new ones, never none.
//! The messages are made here and not by a crate: rustables is under the GPL, nftnl links a C library, netlink-packet-netfilter knows no tables, and
//! netlink-bindings brings 20,000 generated lines for what are seven expressions.
use std::io;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    GENERIC, GET_CHAIN, GET_RULE, GET_TABLE, HEADER, NEW_CHAIN, NEW_RULE, NEW_TABLE, Scope, dump,
    expression::{self, Expression, attribute, nested, text},
    number,
};
use crate::{
    netlink::{names, read},
    ports::PortRange,
};

/// Name of the table, of the family `inet`, and of its only chain.
pub const TABLE: &str = "weft";
/// As one writes it.
pub const FULL_NAME: &str = "inet weft";
const CHAIN: &str = "services";

// From include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const DEL_TABLE: u16 = super::SUBSYSTEM | 2;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NF_INET_POST_ROUTING`, and a place behind everybody's source NAT (100): what kube-proxy masquerades by itself is done by then.
const POSTROUTING: u32 = 4;
const PRIORITY: i32 = 110;
/// Room for the rules of as many networks as settings can name, and for a refusal of each of them.
const BUFFER: usize = 8 * 1024 * 1024;
/// Seconds. The kernel answers within the call that sends.
const ANSWERED_WITHIN: i64 = 10;

/// A rule about what the stack has translated, by the packet that begins a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// To these addresses it goes on with the pod's.
    Keep {
        /// The addresses.
        to: IpNet,
    },
    /// What comes from there and does not leave for a pod gets an address of the node.
    Masquerade {
        /// Pods' addresses.
        from: IpNet,
        /// Only what goes there; none: whoever is asked.
        to: Option<IpNet>,
        /// Its ports; none: any.
        ports: Option<PortRange>,
    },
}

impl Rule {
    fn expressions(&self) -> Vec<Expression> {
        match *self {
            Self::Keep { to } => {
                let of_family = expression::is_of_family(to).into();
                [of_family, expression::is_in(to, false), expression::accept()].concat()
            }
            Self::Masquerade { from, to, ports } => [
                expression::is_of_family(from).into(),
                expression::is_translated().into(),
                expression::is_in(from, true),
                to.map(|to| expression::is_in(to, false)).unwrap_or_default(),
                expression::leaves_elsewhere(names::HOST).into(),
                expression::masquerade(ports),
            ]
            .concat(),
        }
    }
}

/// The table cannot be made, read or deleted.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Something that it takes is not there.
    #[error("the kernel lacks {lacks}")]
    Unsupported {
        /// Options of the kernel.
        lacks: &'static str,
    },
    /// There is one of that name.
    #[error("the table {FULL_NAME} is somebody else's: its chain {chain} is not Weft's; give it another name")]
    Foreign {
        /// What is in it.
        chain: String,
    },
    /// The kernel refused a part of it, and so all.
    #[error("{what}: {}", .errno.desc())]
    Refused {
        /// What was attempted.
        what: &'static str,
        /// The kernel's error number.
        errno: Errno,
    },
    /// The socket failed.
    #[error("{what}")]
    Socket {
        /// What was attempted.
        what: &'static str,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
}

impl TableError {
    /// Nothing that is tried again soon changes it.
    #[must_use]
    pub fn lasts(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::Foreign { .. })
    }
}

/// The table as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    chains: Vec<Chain>,
    /// With the chain of each, in order.
    rules: Vec<(String, Vec<Expression>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: String,
    kind: String,
    hook: Option<(u32, i32)>,
    accepts: bool,
}

impl Table {
    /// As it would be with these rules.
    #[must_use]
    pub fn of(rules: &[Rule]) -> Self {
        let hook = Some((POSTROUTING, PRIORITY));
        let chain = Chain { name: CHAIN.into(), kind: "nat".into(), hook, accepts: true };
        Self { chains: vec![chain], rules: rules.iter().map(|r| (CHAIN.to_owned(), r.expressions())).collect() }
    }

    /// A chain in it that Weft makes in no version: the table is somebody else's.
    #[must_use]
    pub fn foreign(&self) -> Option<&str> {
        self.chains.iter().map(|c| c.name.as_str()).find(|name| *name != CHAIN)
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// There are no rules in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// The table, of the calling thread's network namespace; none if there is none.
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_ADMIN`.
pub fn read() -> Result<Option<Table>, TableError> {
    let failed = |source| TableError::Socket { what: "read the nftables table inet weft", source };
    let of_table = |kind: u16, payload: &[u8]| {
        let name = read::attributes(payload, GENERIC).find(|(k, _)| *k == kind).map(|(_, name)| read::text(name));
        name.as_deref() == Some(TABLE)
    };
    let tables = dump(GET_TABLE, &Scope { family: INET, attributes: Vec::new() }, |kind, payload| {
        (kind == NEW_TABLE && of_table(1, payload)).then_some(())
    });
    if tables.map_err(failed)?.is_empty() {
        return Ok(None);
    }
    let chains = dump(GET_CHAIN, &Scope { family: INET, attributes: Vec::new() }, |kind, payload| {
        (kind == NEW_CHAIN && of_table(1, payload)).then(|| parse_chain(payload))
    });
    // Of other tables there may be as many as somebody has Services.
    let scope = Scope { family: INET, attributes: text(1, TABLE) };
    let rules =
        dump(GET_RULE, &scope, |kind, payload| (kind == NEW_RULE && of_table(1, payload)).then(|| parse_rule(payload)));
    Ok(Some(Table { chains: chains.map_err(failed)?, rules: rules.map_err(failed)? }))
}

/// Makes the table, in the place of the one that is there.
///
/// # Errors
/// What the kernel lacks or says: nothing has changed then.
pub fn replace(rules: &[Rule]) -> Result<(), TableError> {
    transact(&replacement(rules))
}

/// Deletes the table. That there is none is success.
///
/// # Errors
/// What the kernel says.
pub fn delete() -> Result<(), TableError> {
    match transact(&[Message { what: "delete the nftables table inet weft", ..Message::table(DEL_TABLE) }]) {
        Err(TableError::Refused { errno: Errno::ENOENT, .. } | TableError::Unsupported { .. }) => Ok(()),
        other => other,
    }
}

/// One message of a batch.
#[derive(Debug)]
struct Message {
    kind: u16,
    flags: u16,
    what: &'static str,
    /// What the kernel lacks if it knows no such thing.
    lacks: &'static str,
    attributes: Vec<u8>,
}

impl Message {
    fn table(kind: u16) -> Self {
        let flags = if kind == DEL_TABLE { 0 } else { NLM_F_CREATE };
        Self { kind, flags, what: "make the nftables table inet weft", lacks: INET_TABLES, attributes: text(1, TABLE) }
    }
}

const NF_TABLES: &str = "nf_tables (CONFIG_NF_TABLES)";
const INET_TABLES: &str = "nf_tables of the family inet (CONFIG_NF_TABLES_INET)";
const NAT_CHAINS: &str = "nf_tables' NAT of the family inet (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT)";
const EXPRESSIONS: &str = "nf_tables' masquerading, or its look at connections (CONFIG_NFT_MASQ, CONFIG_NFT_CT)";

/// Made, deleted and made again: a table that is there goes with all that is in it, and none that is not there stands in the way.
fn replacement(rules: &[Rule]) -> Vec<Message> {
    let hook = [attribute(1, &POSTROUTING.to_be_bytes()), attribute(2, &PRIORITY.to_be_bytes())].concat();
    // `NF_ACCEPT`.
    let policy = attribute(5, &1_u32.to_be_bytes());
    let chain = Message {
        kind: NEW_CHAIN,
        flags: NLM_F_CREATE,
        what: "make the chain of the nftables table inet weft",
        lacks: NAT_CHAINS,
        attributes: [text(1, TABLE), text(3, CHAIN), nested(4, &hook), policy, text(7, "nat")].concat(),
    };
    let rule = |rule: &Rule| {
        let list: Vec<u8> = rule.expressions().iter().flat_map(Expression::write).collect();
        Message {
            kind: NEW_RULE,
            flags: NLM_F_CREATE | NLM_F_APPEND,
            what: "make a rule of the nftables table inet weft",
            lacks: EXPRESSIONS,
            attributes: [text(1, TABLE), text(2, CHAIN), nested(4, &list)].concat(),
        }
    };
    [Message::table(NEW_TABLE), Message::table(DEL_TABLE), Message::table(NEW_TABLE), chain]
        .into_iter()
        .chain(rules.iter().map(rule))
        .collect()
}

/// The batch as it is sent: its messages are numbered from 1 on, its beginning is 0.
fn batch(messages: &[Message]) -> Vec<u8> {
    let end = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    let mut message = |kind: u16, flags: u16, sequence: u32, generic: [u8; GENERIC], attributes: &[u8]| {
        let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(generic);
        bytes.extend(attributes);
    };
    let [high, low] = SUBSYSTEM.to_be_bytes();
    // Beginning and end name the subsystem where others have a resource.
    message(BATCH_BEGIN, 0, 0, [0, 0, high, low], &[]);
    for (m, sequence) in messages.iter().zip(1..) {
        let last = if sequence == end { NLM_F_ACK } else { 0 };
        message(m.kind, m.flags | last, sequence, [INET, 0, 0, 0], &m.attributes);
    }
    message(BATCH_END, 0, end.saturating_add(1), [0, 0, high, low], &[]);
    bytes
}

fn transact(messages: &[Message]) -> Result<(), TableError> {
    let what = messages.last().map(|m| m.what).unwrap_or_default();
    let failed = |source| TableError::Socket { what, source };
    let mut socket = match netlink_sys::Socket::new(NETLINK_NETFILTER) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            return Err(TableError::Unsupported { lacks: NF_TABLES });
        }
        other => other.map_err(failed)?,
    };
    let mut open = || -> io::Result<()> {
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error repeats its message's header only.
        socket.set_cap_ack(true)?;
        // Who has no right to more than net.core.wmem_max may do nothing of this anyway.
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &BUFFER))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWERED_WITHIN, 0))?;
        Ok(())
    };
    open().map_err(failed)?;
    socket.send(&batch(messages), 0).map_err(failed)?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0).map_err(failed)?;
        if let Some(end) = verdict(&buffer, messages) {
            return end;
        }
    }
}

/// What a datagram of answers says of the batch; none while nothing is said of its last message. The kernel tells of refusals in order, and before the last
/// message's fate.
fn verdict(answers: &[u8], messages: &[Message]) -> Option<Result<(), TableError>> {
    let mut rest = answers;
    while let Ok(answer) = NetlinkBuffer::new_checked(rest) {
        let length = answer.length() as usize;
        let code = rest.get(HEADER..HEADER + 4).and_then(read::number).unwrap_or_default().cast_signed();
        let sequence = answer.sequence_number() as usize;
        if answer.message_type() == NLMSG_ERROR {
            match (code, sequence.checked_sub(1).map(|at| messages.get(at))) {
                (0, Some(_)) if sequence == messages.len() => return Some(Ok(())),
                (0, _) => {}
                (code, place) => return Some(Err(refusal(Errno::from_raw(code.wrapping_neg()), place.flatten()))),
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// The first refusal of a batch; `None`: of its beginning, that is of all.
fn refusal(errno: Errno, message: Option<&Message>) -> TableError {
    match (errno, message) {
        (Errno::EOPNOTSUPP | Errno::EINVAL, None) => TableError::Unsupported { lacks: NF_TABLES },
        (Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT, Some(m)) => TableError::Unsupported { lacks: m.lacks },
        // A chain's type and a rule's expressions are looked for by name.
        (Errno::ENOENT, Some(m)) if [NEW_CHAIN, NEW_RULE].contains(&m.kind) => {
            TableError::Unsupported { lacks: m.lacks }
        }
        (errno, m) => TableError::Refused { what: m.map_or("change the nftables table inet weft", |m| m.what), errno },
    }
}

fn parse_chain(payload: &[u8]) -> Chain {
    let mut chain = Chain { name: String::new(), kind: String::new(), hook: None, accepts: true };
    for (kind, value) in read::attributes(payload, GENERIC) {
        match kind {
            3 => chain.name = read::text(value),
            4 => {
                let of = |wanted| read::nested(value).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| number(v));
                chain.hook = of(1).zip(of(2).map(u32::cast_signed));
            }
            5 => chain.accepts = number(value) == Some(1),
            7 => chain.kind = read::text(value),
            _ => {}
        }
    }
    chain
}

fn parse_rule(payload: &[u8]) -> (String, Vec<Expression>) {
    let (mut chain, mut expressions) = (String::new(), Vec::new());
    for (kind, value) in read::attributes(payload, GENERIC) {
        match kind {
            2 => chain = read::text(value),
            4 => expressions = read::nested(value).map(|(_, element)| Expression::read(element)).collect(),
            _ => {}
        }
    }
    (chain, expressions)
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod tests;
