//! What the API answers with. The agent writes these, the `weft` command and other tools read them.
//!
//! Fields are added, never renamed. Texts that name a kind of thing are strings, so that an older `weft` can show what a
//! newer agent says.
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cni_common::{
    drop::{Count, DropReason, Outcome, Point},
    event,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod explain;
mod flows;
mod policies;

pub use self::{
    explain::{ExplainedFlow, Explanation, Missing, Policies, RuleSays, Side},
    flows::{
        ConntrackStatus, FlowCounts, FlowList, FlowStatus, FlowTable, Flushed, MasqueradeStatus, NodeEnd,
        ServicesStatus, TableFill,
    },
    policies::{PolicyHits, PolicyList, PolicyPeer, PolicyRule, PolicySet, PolicyStatus, PolicySummary},
};
pub use crate::{
    audit::{Audit, Difference},
    datapath::features::MissingFeature,
    datapath::refusal::{Refusal, RefusedLoad},
    install::status::{Foreign, InstallStatus, Stage},
    sources::SourceStatus,
};
use crate::{
    identity,
    ipam::Usage,
    tables::{Endpoint, NextHop, Node, Pod, Row, RowStatus},
};

/// `GET /v1/status`: the agent at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Why the agent is not ready; `None` when it is.
    pub not_ready: Option<String>,
    /// What the packets meet.
    pub datapath: DatapathStatus,
    /// Where desired state comes from.
    pub sources: Vec<SourceStatus>,
    /// What the container runtime gets.
    #[serde(default)]
    pub install: InstallStatus,
    /// How far the kernel is behind.
    pub reconciler: ReconcilerStatus,
    /// Nodes known, this one with them.
    pub nodes: usize,
    /// Pods known, on all nodes.
    pub pods: usize,
    /// Endpoints of this node.
    pub endpoints: usize,
    /// This node's address ranges, and how far they are used up.
    pub addresses: Vec<Usage>,
    /// Packets dropped by the programs since the counters were made.
    pub dropped_packets: u64,
    /// Flows that conntrack knows.
    #[serde(default)]
    pub conntrack: ConntrackStatus,
    /// How pods speak to the world.
    #[serde(default)]
    pub masquerade: MasqueradeStatus,
    /// The Services that the node's stack serves.
    #[serde(default)]
    pub services: ServicesStatus,
    /// How policy is.
    #[serde(default)]
    pub policy: PolicySummary,
}

/// How packets go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// This node's tunnel address; `None` while its Node object is not known.
    pub tunnel_address: Option<IpAddr>,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU between nodes in bytes; 0 while it is not known.
    pub underlay_mtu: u32,
    /// MTU of the pods' routes in bytes; 0 while it is not known.
    pub pod_mtu: u32,
    /// Where the programs are attached.
    pub programs: Vec<Attachment>,
    /// The load that the kernel refused, when a former agent's programs are what runs.
    #[serde(default)]
    pub refused: Option<RefusedLoad>,
    /// Of this build's maps, as a number that tells builds apart whose maps differ.
    #[serde(default)]
    pub layout: String,
    /// Another build's programs run on until this one's maps are filled.
    #[serde(default)]
    pub waits: bool,
    /// Pinned maps of other builds: they go when this one's programs run.
    #[serde(default)]
    pub other_maps: Vec<String>,
    /// Features of the kernel that were tried, each with whether it is there and used.
    pub features: BTreeMap<String, bool>,
    /// More about those that are not.
    #[serde(default)]
    pub missing_features: Vec<MissingFeature>,
}

/// A program at its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The program.
    pub program: String,
    /// The device, or what it is attached to instead.
    pub device: String,
    /// How: `tcx`, `clsact`, `block`.
    pub how: String,
}

/// How far the kernel is behind the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcilerStatus {
    /// The newest revision of the tables.
    pub revision: u64,
    /// The newest that the kernel has been brought to.
    pub applied: u64,
    /// Rows that wait for their turn.
    pub pending: usize,
    /// Rows whose last attempt failed.
    pub failed: Vec<FailedRow>,
    /// Whether what no row asks for is removed from the kernel: all sources have been in sync.
    pub pruning: bool,
    /// What somebody else had changed since the agent's start and the agent has found when it compared, by kind.
    #[serde(default)]
    pub drift: crate::drift::Totals,
}
impl ReconcilerStatus {
    /// From the tables' own account.
    pub fn of(tables: &crate::tables::Tables) -> Self {
        let mut status = Self {
            revision: tables.revision().0,
            applied: tables.applied_revision().0,
            pruning: tables.all_synced(),
            ..Self::default()
        };
        for (row, how) in tables.unsettled() {
            match how {
                RowStatus::Failed { error, retries } => status.failed.push(FailedRow::new(&row, error, retries)),
                RowStatus::Pending => status.pending += 1,
                RowStatus::Applied => {}
            }
        }
        status
    }
}

/// A row that the kernel does not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRow {
    /// The row.
    pub row: String,
    /// The last error, with its causes.
    pub error: String,
    /// Attempts that failed.
    pub retries: u32,
}
impl FailedRow {
    fn new(row: &Row, error: String, retries: u32) -> Self {
        Self { row: row.to_string(), error, retries }
    }
}

/// `GET /v1/endpoints`: one for each pod interface on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Local to the node.
    pub id: u16,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC of the pod's side.
    pub mac: String,
    /// The runtime's id of the container.
    pub container_id: String,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Name of the host's side of the veth pair.
    pub device: String,
    /// Index of the host's side of the veth pair.
    pub ifindex: u32,
    /// MTU of the pod's routes, bytes.
    pub mtu: u32,
    /// Label class hash that its packets carry between nodes; 0 while the Pod object is not known.
    pub label_class: u32,
    /// How far the kernel is with it: `applied`, `pending`, or why it failed.
    pub kernel: String,
}
impl EndpointStatus {
    /// From its row, and the row of its pod.
    pub fn new(endpoint: &Endpoint, pod: Option<&Pod>, status: Option<RowStatus>) -> Self {
        let e = endpoint;
        Self {
            id: e.id,
            namespace: e.namespace.clone(),
            pod: e.pod_name.clone(),
            ipv4: e.ipv4,
            ipv6: e.ipv6,
            mac: e.mac.to_string(),
            container_id: e.container_id.clone(),
            ifname: e.ifname.clone(),
            netns: e.netns.clone(),
            device: e.device.clone(),
            ifindex: e.ifindex,
            mtu: e.mtu,
            label_class: pod.map_or(identity::UNKNOWN, |p| identity::label_class(&p.namespace, &p.labels)),
            kernel: row_status(status),
        }
    }
}

/// `GET /v1/ipam`: one for each address that is out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamAddress {
    /// The address.
    pub address: String,
    /// `used`, or `quarantined`: given back, and free as soon as the device that had it is gone.
    pub state: String,
    /// The pod's namespace; empty when the runtime named none, as the next one.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The runtime's id of the container; empty when no endpoint has the address (any more).
    pub container_id: String,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// Name of the host's side of the veth pair.
    pub device: String,
    /// Whether another IPAM plugin gave it.
    pub delegated: bool,
    /// Seconds since it was given out; `None` when nothing tells.
    pub age_seconds: Option<u64>,
}

/// `GET /v1/nodes`: one for each Node object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it is this node.
    pub own: bool,
    /// Its pods' networks.
    pub pod_cidrs: Vec<IpNet>,
    /// Its addresses.
    pub internal_ips: Vec<IpAddr>,
    /// Where its tunnel ends; `None` when it has no address of the underlay's family.
    pub tunnel_address: Option<IpAddr>,
    /// How packets reach it; `None` for this node, and while no way is known.
    pub next_hop: Option<NextHopStatus>,
    /// How far the kernel is with it: `applied`, `pending`, or why it failed.
    pub kernel: String,
}
impl NodeStatus {
    /// From its row.
    pub fn new(
        node: &Node,
        own: bool,
        tunnel_address: Option<IpAddr>,
        next_hop: Option<&NextHop>,
        status: Option<RowStatus>,
    ) -> Self {
        Self {
            name: node.name.clone(),
            own,
            pod_cidrs: node.pod_cidrs.clone(),
            internal_ips: node.internal_ips.clone(),
            tunnel_address,
            next_hop: next_hop.map(|hop| NextHopStatus {
                ifindex: hop.ifindex,
                mac: hop.next_hop_mac.map(|mac| mac.to_string()),
                mtu: hop.mtu,
            }),
            kernel: row_status(status),
        }
    }
}

/// The way to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopStatus {
    /// Index of the device that leads there.
    pub ifindex: u32,
    /// MAC of the next hop; `None` while the kernel resolves it for each packet.
    pub mac: Option<String>,
    /// MTU of the way, bytes.
    pub mtu: u32,
}

/// `GET /v1/pods`: one for each Pod object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is scheduled to.
    pub node: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its phase.
    pub phase: String,
    /// Whether its addresses are its node's.
    pub host_network: bool,
    /// Its named ports, `name=protocol/port`.
    pub ports: Vec<String>,
    /// The hash of its namespace and labels that its packets carry between nodes.
    pub label_class: u32,
}
impl PodStatus {
    /// From its row.
    pub fn new(pod: &Pod) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            node: pod.node.clone(),
            labels: pod.labels.clone(),
            ips: pod.ips.clone(),
            phase: format!("{:?}", pod.phase),
            host_network: pod.host_network,
            ports: pod.ports.iter().map(|p| format!("{}={:?}/{}", p.name, p.protocol, p.port).to_lowercase()).collect(),
            label_class: identity::label_class(&pod.namespace, &pod.labels),
        }
    }
}

/// `GET /v1/maps`: one for each BPF map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapInfo {
    /// Name in the kernel and of the pin.
    pub name: String,
    /// Kernel type.
    pub kind: String,
    /// What it holds.
    pub about: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, on one CPU.
    pub value_size: u32,
    /// Entries in it; `None` for a kind that has none to count.
    pub entries: Option<u64>,
    /// Entries that it can hold.
    pub max_entries: u32,
}

/// `GET /v1/maps/{name}`: one for each entry, in the order of the keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapEntry {
    /// The key, by field.
    pub key: Value,
    /// The value, by field.
    pub value: Value,
}

/// `GET /v1/drops`: the counters that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// What was dropped.
    pub drops: Vec<DropCount>,
    /// What was not, and what became of events.
    pub verdicts: Vec<VerdictCount>,
}

/// Drops of one reason at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// Why.
    pub reason: String,
    /// The program.
    pub point: String,
    /// Packets since the counters were made; a GSO packet counts once.
    pub packets: u64,
    /// Bytes, with Ethernet header.
    pub bytes: u64,
    /// What the reason means and where to look.
    pub description: String,
}
impl DropCount {
    /// From a counter.
    pub fn new(reason: DropReason, point: Point, count: Count) -> Self {
        Self {
            reason: reason.name().into(),
            point: point.name().into(),
            packets: count.packets,
            bytes: count.bytes,
            description: reason.explanation().into(),
        }
    }
}

/// Packets that had one outcome at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCount {
    /// The outcome.
    pub verdict: String,
    /// The program.
    pub point: String,
    /// Packets (or events) since the counters were made.
    pub packets: u64,
    /// Bytes, with Ethernet header.
    pub bytes: u64,
}
impl VerdictCount {
    /// From a counter.
    pub fn new(outcome: Outcome, point: Point, count: Count) -> Self {
        let (verdict, point) = (outcome.name().into(), point.name().into());
        Self { verdict, point, packets: count.packets, bytes: count.bytes }
    }
}

/// `GET /v1/observe`: one for each line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropEvent {
    /// When, in nanoseconds since 1970 (UTC).
    pub time: u64,
    /// The pod that the packet came from, `namespace/name`; `None` when it came from elsewhere.
    pub pod: Option<String>,
    /// The endpoint's id, 0 when there is none.
    pub endpoint: u32,
    /// Index of the device where it came in.
    pub ifindex: u32,
    /// Source address; `None` when no IP header was read, here and below.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// IP protocol by number.
    pub protocol: Option<u8>,
    /// L4 source port; `None` when none was read.
    pub src_port: Option<u16>,
    /// L4 destination port; `None` when none was read.
    pub dst_port: Option<u16>,
    /// Bytes of the frame.
    pub length: u32,
    /// Why.
    pub reason: String,
    /// The program.
    pub point: String,
    /// What the reason means and where to look.
    pub description: String,
    /// It was not dropped: it passed, as the policies that would have it dropped are in audit mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// Of a packet that policy denies: the policies that isolate the pod at which it was dropped, in the order in which they are asked; of one that passed for
    /// audit, those in audit mode there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The rule that denies it, or would; `None` when none does, and none allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The pods at its ends as policies know them, source and destination; `None` for other addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<[Option<String>; 2]>,
}
impl DropEvent {
    /// From what a program reported. `boot_time` is the wall clock's reading, in nanoseconds since 1970, at zero of
    /// `CLOCK_MONOTONIC`; `pod` is the pod of the event's endpoint.
    pub fn new(event: &event::DropEvent, boot_time: u64, pod: Option<String>) -> Self {
        let ip = |a: cni_common::net::Ip6| (event.family != 0).then(|| a.canonical());
        let has_ports = event.sport.to_host() != 0 || event.dport.to_host() != 0;
        let reason = DropReason::from_number(event.reason & !event::WOULD_BE);
        Self {
            time: boot_time.saturating_add(event.time),
            pod,
            endpoint: event.endpoint,
            ifindex: event.ifindex,
            src: ip(event.src),
            dst: ip(event.dst),
            protocol: (event.family != 0).then_some(event.proto),
            src_port: has_ports.then(|| event.sport.to_host()),
            dst_port: has_ports.then(|| event.dport.to_host()),
            length: event.len,
            // Programs and agent come from one build; another number is a damaged record.
            reason: reason.map_or_else(|| format!("unknown ({})", event.reason), |r| r.name().into()),
            point: Point::from_number(event.point)
                .map_or_else(|| format!("unknown ({})", event.point), |p| p.name().into()),
            description: reason.map_or_else(String::new, |r| r.explanation().into()),
            audit: reason.is_some() && event.reason & event::WOULD_BE != 0,
            policies: Vec::new(),
            rule: None,
            ends: None,
        }
    }
}

/// A line of `GET /v1/observe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Observed {
    /// Events came faster than this reader took them.
    Lost {
        /// How many are missing here.
        lost: u64,
    },
    /// A drop.
    Drop(Box<DropEvent>),
}

/// Every answer that is not 200 has this body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    pub cure: String,
}

fn row_status(status: Option<RowStatus>) -> String {
    match status {
        Some(RowStatus::Applied) => "applied".into(),
        Some(RowStatus::Pending) => "pending".into(),
        Some(RowStatus::Failed { error, retries }) => format!("failed {retries} times: {error}"),
        None => "gone".into(),
    }
}

#[cfg(test)]
mod tests;
