//! The form of a case: `netpol-verdict-case/1`.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Formatter},
    net::IpAddr,
    str::FromStr,
};

use cni_common::wire;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::tables::{NamedPort, Phase, Pod, Protocol};

/// Input that is no case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {cause}")]
pub struct BadCase {
    at: String,
    cause: String,
}
impl BadCase {
    /// Where, and what is wrong there.
    pub fn new(at: impl Into<String>, cause: impl Display) -> Self {
        Self { at: at.into(), cause: cause.to_string() }
    }
}

/// A scenario. Fields that are not known here are ignored, what is expected among them.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// What it is.
    pub schema: String,
    /// Names it.
    pub id: String,
    /// What is there before the first step.
    pub cluster: Cluster,
    /// Addresses outside of the cluster.
    #[serde(default, deserialize_with = "or_none")]
    pub external: Vec<Address>,
    /// What is tried between any two ends.
    pub probes: Vec<Probe>,
    /// What happens.
    pub steps: Vec<Step>,
}
impl FromStr for Case {
    type Err = BadCase;

    fn from_str(text: &str) -> Result<Self, BadCase> {
        let mut json = serde_json::Deserializer::from_str(text);
        let case: Self = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| BadCase::new(format!("field {}", error.path()), error.inner()))?;
        if case.schema != SCHEMA {
            return Err(BadCase::new("field schema", format!("it is `{}`, not `{SCHEMA}`", case.schema)));
        }
        Ok(case)
    }
}
const SCHEMA: &str = "netpol-verdict-case/1";

/// An address, as it is written: answers name it so.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    /// What it is.
    pub ip: IpAddr,
    /// How it is written.
    pub text: String,
}
impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let ip = text.parse().map_err(|_| format!("`{text}` is no IP address"))?;
        Ok(Self { ip, text })
    }
}

/// A field that is null is as one that is absent.
fn or_none<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(field: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

/// A cluster's objects.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Cluster {
    /// Namespaces by name.
    #[serde(default, deserialize_with = "or_none")]
    pub namespaces: BTreeMap<String, NamespaceFields>,
    /// Nodes.
    #[serde(default, deserialize_with = "or_none")]
    pub nodes: Vec<NodeFields>,
    /// Pods.
    #[serde(default, deserialize_with = "or_none")]
    pub pods: Vec<PodFields>,
    /// NetworkPolicies and ClusterNetworkPolicies, as the API returns them.
    #[serde(default, deserialize_with = "or_none")]
    pub policies: Vec<Value>,
    /// What DNS has answered.
    #[serde(default, deserialize_with = "or_none")]
    pub dns: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NamespaceFields {
    /// Its labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeFields {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its addresses.
    #[serde(default, deserialize_with = "or_none")]
    pub ips: Vec<Address>,
    /// Its labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFields {
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    node: Option<String>,
    /// Its addresses.
    #[serde(default, deserialize_with = "or_none")]
    pub ips: Vec<Address>,
    #[serde(default)]
    ports: Option<Vec<PortFields>>,
    #[serde(default, deserialize_with = "or_none")]
    host_network: bool,
    #[serde(default)]
    phase: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct PortFields {
    port: u16,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default)]
    name: Option<String>,
}

impl PodFields {
    /// As the tables have it.
    pub fn pod(&self) -> Pod {
        let ports = self.ports.iter().flatten().filter_map(|p| {
            let name = p.name.clone().filter(|n| !n.is_empty())?;
            Some(NamedPort { name, protocol: p.protocol.unwrap_or_default(), port: p.port })
        });
        Pod {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            // One without a node has an agent of its own here, or nobody would judge for it.
            node: Some(self.node.clone().unwrap_or_default()),
            labels: self.labels.clone().unwrap_or_default(),
            ips: self.ips.iter().map(|a| a.ip).collect(),
            phase: match self.phase.as_deref() {
                None | Some("" | "Running") => Phase::Running,
                Some("Pending") => Phase::Pending,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some(_) => Phase::Unknown,
            },
            host_network: self.host_network,
            ports: ports.collect(),
        }
    }
}

/// What happens between two matrices.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// In this order.
    #[serde(default, deserialize_with = "or_none")]
    pub ops: Vec<Op>,
}

/// One event.
#[derive(Clone, Debug, Deserialize)]
pub struct Op {
    /// Apply or delete.
    pub op: Verb,
    /// Of what kind the object is.
    pub kind: ObjectKind,
    /// Its namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The whole object, when it is applied.
    #[serde(default)]
    pub object: Option<Value>,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// It is there now, as said.
    Apply,
    /// It is gone.
    Delete,
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ObjectKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
    /// A pod.
    Pod,
    /// A namespace.
    Namespace,
    /// A node.
    Node,
    /// Answers to a name.
    #[serde(rename = "DNS")]
    Dns,
}

/// A protocol and a port: `TCP/80`; ICMP has the port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Probe {
    protocol: ProbeProtocol,
    /// Destination port.
    pub port: u16,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ProbeProtocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}
impl Probe {
    /// IP protocol, in a family.
    pub fn number(self, v4: bool) -> u8 {
        match self.protocol {
            ProbeProtocol::Tcp => wire::TCP,
            ProbeProtocol::Udp => wire::UDP,
            ProbeProtocol::Sctp => wire::SCTP,
            ProbeProtocol::Icmp if v4 => wire::ICMP,
            ProbeProtocol::Icmp => wire::ICMP6,
        }
    }
}
impl TryFrom<String> for Probe {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
impl FromStr for Probe {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no probe such as TCP/80, UDP/53, SCTP/9 or ICMP/0");
        let (protocol, port) = text.split_once('/').ok_or_else(bad)?;
        let protocol = match protocol {
            "TCP" => ProbeProtocol::Tcp,
            "UDP" => ProbeProtocol::Udp,
            "SCTP" => ProbeProtocol::Sctp,
            "ICMP" => ProbeProtocol::Icmp,
            _ => return Err(bad()),
        };
        let port = port.parse().map_err(|_| bad())?;
        if protocol == ProbeProtocol::Icmp && port != 0 {
            return Err(bad());
        }
        Ok(Self { protocol, port })
    }
}
impl Display for Probe {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            ProbeProtocol::Tcp => "TCP",
            ProbeProtocol::Udp => "UDP",
            ProbeProtocol::Sctp => "SCTP",
            ProbeProtocol::Icmp => "ICMP",
        };
        write!(f, "{name}/{}", self.port)
    }
}
