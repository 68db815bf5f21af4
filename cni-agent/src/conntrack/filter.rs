//! Which flows are asked for.
use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use cni_common::wire::{ICMP, ICMP6, SCTP, TCP, UDP};
use serde::{Deserialize, Serialize};

use super::flow::{Flow, State};

/// A flow is taken when it fits each that is given, and one that is given several times is fit by any of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Pods at either end, `namespace/name`; without a namespace, those of `default`.
    pub pods: Vec<String>,
    /// Addresses of either end.
    pub addresses: Vec<IpAddr>,
    /// Ports of either end, and identifiers of echoes.
    pub ports: Vec<u16>,
    /// IP protocols.
    pub protocols: Vec<u8>,
    /// States.
    pub states: Vec<State>,
    /// 4, 6 or both.
    pub families: Vec<u8>,
}

/// A filter in a URL: lists with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// See [`Filter::pods`].
    pub pod: String,
    /// See [`Filter::addresses`].
    pub address: String,
    /// See [`Filter::ports`].
    pub port: String,
    /// See [`Filter::protocols`]: names or numbers.
    pub protocol: String,
    /// See [`Filter::states`].
    pub state: String,
    /// See [`Filter::families`].
    pub family: String,
    /// How many flows to show at most.
    pub limit: Option<usize>,
    /// Says that all are meant where nothing else is given.
    pub all: bool,
}

impl Filter {
    /// Whether it takes every flow.
    pub fn takes_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it takes a flow; `addresses` are those of the pods that it names.
    pub fn takes(&self, flow: &Flow, addresses: &BTreeSet<IpAddr>) -> bool {
        let ends = &flow.ends;
        let fits = |ports: &[u16]| ports.contains(&ends.lo.1) || ports.contains(&ends.hi.1);
        let family = if ends.lo.0.is_ipv4() { 4 } else { 6 };
        (self.pods.is_empty() || [ends.lo.0, ends.hi.0].iter().any(|a| addresses.contains(a)))
            && (self.addresses.is_empty() || self.addresses.iter().any(|a| ends.has(*a)))
            && (self.ports.is_empty() || fits(&self.ports))
            && (self.protocols.is_empty() || self.protocols.contains(&ends.protocol))
            && (self.states.is_empty() || self.states.contains(&flow.state))
            && (self.families.is_empty() || self.families.contains(&family))
    }

    /// The query that says it.
    pub fn query(&self) -> Query {
        Query {
            pod: self.pods.join(","),
            address: list(&self.addresses),
            port: list(&self.ports),
            protocol: list(&self.protocols),
            state: list(&self.states.iter().map(|s| s.name()).collect::<Vec<_>>()),
            family: list(&self.families),
            ..Query::default()
        }
    }
}

impl TryFrom<&Query> for Filter {
    type Error = String;

    fn try_from(q: &Query) -> Result<Self, String> {
        let state = |word: &str| State::from_name(word).ok_or_else(|| no(word, "state of a flow"));
        let family = |word: &str| match word {
            "4" => Ok(4),
            "6" => Ok(6),
            _ => Err(no(word, "address family, which are 4 and 6")),
        };
        Ok(Self {
            pods: each(&q.pod, |word| Ok(word.to_owned()))?,
            addresses: each(&q.address, plain("IP address"))?,
            ports: each(&q.port, plain("port"))?,
            protocols: each(&q.protocol, protocol)?,
            states: each(&q.state, state)?,
            families: each(&q.family, family)?,
        })
    }
}

/// An IP protocol by name or number.
///
/// # Errors
/// A sentence.
pub fn protocol(word: &str) -> Result<u8, String> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "icmp" => ICMP,
        "tcp" => TCP,
        "udp" => UDP,
        "icmpv6" => ICMP6,
        "sctp" => SCTP,
        other => other.parse().map_err(|_| no(word, "protocol: tcp, udp, sctp, icmp, icmpv6, or a number"))?,
    })
}

fn plain<T: FromStr>(what: &'static str) -> impl Fn(&str) -> Result<T, String> {
    move |word| word.parse().map_err(|_| no(word, what))
}

fn no(word: &str, what: &str) -> String {
    format!("`{word}` is no {what}")
}

fn each<T>(list: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    list.split(',').filter(|word| !word.is_empty()).map(read).collect()
}

fn list<T: ToString>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}
