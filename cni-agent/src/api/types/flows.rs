//! Flows that conntrack knows.
use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `GET /v1/flows`: those that the filters in its query take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowList {
    /// Them, or as many as were asked for at most.
    pub flows: Vec<FlowStatus>,
    /// How many there are.
    pub matched: u64,
}

/// A flow, both directions in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowStatus {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// IP protocol by number.
    pub protocol: u8,
    /// The end that has opened it.
    pub source: IpAddr,
    /// Its port; `None` for a protocol that has none.
    pub source_port: Option<u16>,
    /// The other end.
    pub destination: IpAddr,
    /// Its port.
    pub destination_port: Option<u16>,
    /// The identifier of an ICMP echo's requests and replies.
    pub echo_id: Option<u16>,
    /// `unanswered`, `handshake`, `established`, `closing` or `closed`.
    pub state: String,
    /// Seconds until it is over if no packet comes; 0: it is.
    pub seconds_left: u64,
    /// The pod at the first end, `namespace/name`; `None` when no pod has the address.
    pub source_pod: Option<String>,
    /// The pod at the other end.
    pub destination_pod: Option<String>,
    /// `settled`, which only time empties, or `new`, which forgets what was least recently used.
    pub table: String,
    /// The policy epoch in which it was judged last: one of an earlier epoch is judged again at its next packet.
    #[serde(default)]
    pub epoch: u32,
    /// As what the end that has opened it appears outside of the cluster; `None`: as itself.
    #[serde(default)]
    pub masqueraded_as: Option<NodeEnd>,
}

/// An end of this node's that stands for a pod's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeEnd {
    /// The node's address.
    pub address: IpAddr,
    /// The port; `None` for a protocol that has none.
    pub port: Option<u16>,
    /// The identifier of an ICMP echo's requests and replies.
    pub echo_id: Option<u16>,
}

/// `GET /v1/flows/count`: how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// By table.
    pub tables: Vec<FlowTable>,
}

/// One table of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `settled` or `new`.
    pub table: String,
    /// Flows in it, those that are over and not yet taken out among them.
    pub flows: u64,
    /// How many it can hold.
    pub size: u32,
    /// How many there are in each state.
    pub states: BTreeMap<String, u64>,
}

/// `DELETE /v1/flows`: what the filters in its query took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// How many flows were removed.
    pub flushed: u64,
}

/// How full conntrack is, in `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStatus {
    /// The table that only time empties, by family.
    pub tables: Vec<TableFill>,
    /// How often a flow found no room in it.
    pub full: u64,
    /// How often its endpoint had its share already.
    pub quota: u64,
}

/// How pods speak to the world, in `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeStatus {
    /// The ports that are given to flows whose own is not free, as in `61000-65535`; `None`: nothing is masqueraded.
    pub ports: Option<String>,
    /// The node's addresses under which pods leave, by device.
    pub leaves: BTreeMap<String, Vec<IpAddr>>,
    /// Masqueraded flows, by family.
    pub tables: Vec<TableFill>,
    /// Packets that were dropped as every port that was tried was in use towards their destination.
    pub exhausted: u64,
    /// Packets that were dropped as the table was full.
    pub full: u64,
    /// Packets that were dropped as their pod had its share of the table already.
    pub quota: u64,
}

/// The Services that the node's stack serves, such as kube-proxy's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// Their addresses; without any there are none.
    pub cidrs: Vec<IpNet>,
    /// Whether the node masquerades what its stack has translated for pods to other hosts than pods.
    pub masqueraded: bool,
    /// The ports that such flows get, as in `16384-32767`; `None`: any.
    #[serde(default)]
    pub ports: Option<String>,
    /// Why they are not masqueraded, where they ought to be.
    #[serde(default)]
    pub problem: Option<String>,
}

/// How full a table is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFill {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Flows in it.
    pub flows: u64,
    /// How many it can hold.
    pub size: u32,
}
