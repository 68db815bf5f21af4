//! The rows: our own trimmed types, so that nothing behind the tables depends on where an object came from.
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Formatter},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use cni_common::net::Mac;
use cni_plugin::spec::Dns;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct as _};

use crate::policy::objects::PolicyName;

/// A node of the cluster, from its Node object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podCIDRs` (or `spec.podCIDR`), in the object's order, host bits cleared.
    pub pod_cidrs: Vec<IpNet>,
    /// `status.addresses` of type `InternalIP`, in the object's order: what the tunnel ends on.
    pub internal_ips: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// All IP addresses in `status.addresses`, whatever their type: what policies mean by the node.
    pub addresses: BTreeSet<IpAddr>,
}

/// A namespace, from its Namespace object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

/// Addresses of Services, from a ServiceCIDR object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: String,
    /// `spec.cidrs`, in the object's order.
    pub cidrs: Vec<IpNet>,
}

/// What names a pod: a handful of tables have it, so a copy of it is a reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// `metadata.namespace`, [`SEPARATOR`], `metadata.name`: so keys sort by namespace, then by name.
    text: Arc<str>,
}
/// In no name of Kubernetes, and before all that is.
const SEPARATOR: char = '\0';
impl PodKey {
    /// From the two names.
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        let namespace = namespace.as_ref();
        // A manifest may say anything, and no two pods may be called the same by it.
        let namespace = match namespace.contains(SEPARATOR) {
            true => Cow::Owned(namespace.replace(SEPARATOR, "\u{fffd}")),
            false => Cow::Borrowed(namespace),
        };
        Self { text: format!("{namespace}{SEPARATOR}{}", name.as_ref()).into() }
    }
    fn names(&self) -> (&str, &str) {
        self.text.split_once(SEPARATOR).unwrap_or_default()
    }
    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        self.names().0
    }
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.names().1
    }
}
impl Display for PodKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (namespace, name) = self.names();
        write!(f, "{namespace}/{name}")
    }
}
impl Serialize for PodKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (namespace, name) = self.names();
        let mut fields = serializer.serialize_struct("PodKey", 2)?;
        fields.serialize_field("namespace", namespace)?;
        fields.serialize_field("name", name)?;
        fields.end()
    }
}

/// A pod, from its Pod object. It exists before the pod has an address, so its labels are known by the first packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.nodeName`; `None` while the pod is not scheduled.
    pub node: Option<String>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `status.podIPs` (or `status.podIP`), in the object's order.
    pub ips: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Phase,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// `spec.containers[].ports[]` that have a name. Two containers may use one name, so this is a set.
    pub ports: BTreeSet<NamedPort>,
}
impl Pod {
    /// What names it.
    pub fn key(&self) -> PodKey {
        PodKey::new(&self.namespace, &self.name)
    }
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Phase {
    /// Accepted, not all containers started. Also what an object without a status is.
    #[default]
    Pending,
    /// At least one container runs.
    Running,
    /// All containers ended well: the addresses may be another pod's already.
    Succeeded,
    /// All containers ended, one of them badly: the addresses may be another pod's already.
    Failed,
    /// The node does not answer, or the object names a phase that we do not know.
    Unknown,
}
impl Phase {
    /// Whether a pod of this phase has given its addresses back.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamedPort {
    /// `name`.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// A protocol with ports, as Kubernetes names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, also what an object without `protocol` means.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A pod's interface on this node: wired by CNI ADD, or found whole by a restarted agent. One that is being wired or let go has no row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Local to the node; the host device's name carries it in hexadecimal. 0 is never used.
    pub id: u16,
    /// The runtime's id of the container (`CNI_CONTAINERID`).
    pub container_id: String,
    /// The interface's name inside the pod (`CNI_IFNAME`).
    pub ifname: String,
    /// The pod's namespace (`K8S_POD_NAMESPACE`), empty when the runtime named none.
    pub namespace: String,
    /// The pod's name (`K8S_POD_NAME`), empty when the runtime named none.
    pub pod_name: String,
    /// Path of the pod's network namespace (`CNI_NETNS`).
    pub netns: String,
    /// Index of the host's side of the veth pair, in the node's namespace.
    pub ifindex: u32,
    /// Name of the host's side of the veth pair.
    pub device: String,
    /// MAC of the pod's side.
    pub mac: Mac,
    /// The pod's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// MTU of the pod's routes, bytes.
    pub mtu: u32,
    /// What was agreed with CNI.
    pub terms: Terms,
}
impl Endpoint {
    /// Whether the runtime has named a pod of Kubernetes: only such a one has a namespace, and policies.
    pub fn is_kubernetes(&self) -> bool {
        !self.namespace.is_empty() && !self.pod_name.is_empty()
    }
    /// What names the pod.
    pub fn pod(&self) -> PodKey {
        PodKey::new(&self.namespace, &self.pod_name)
    }
    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// On what terms an endpoint was connected: what CNI has to know of it later. No map holds any of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The network's name in the configuration. Older releases kept none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The addresses are another IPAM plugin's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delegated: bool,
    /// The pod had a default route before: this interface's stand in a table of its own, whose number is the index of the
    /// pod's end, and a rule for each address leads there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_table: bool,
    /// The routes that the IPAM plugin asked for; without any, a default route for each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PodRoute>,
    /// Name resolution, handed on in the answer.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// A route in a pod, through the gateway of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Where it leads.
    pub dst: IpNet,
    /// Metric: the lowest wins. None is what the kernel takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
}

/// How this node reaches another node's tunnel address; mirrored from routes and neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// Index of the device that leads there.
    pub ifindex: u32,
    /// MAC of that device: the source of outer frames.
    pub source_mac: Mac,
    /// MAC of the next hop; `None` while the kernel does not know it (then the kernel resolves each packet).
    pub next_hop_mac: Option<Mac>,
    /// MTU of the way there, bytes.
    pub mtu: u32,
    /// Whether the device takes Ethernet frames. If not, the kernel's own VXLAN device sends what goes this way.
    pub ethernet: bool,
}

/// A device that `from_netdev` watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// It carries an InternalIP of this node: other nodes are behind it, and its MTU is that of the tunnel.
    pub leads: bool,
    /// The node's address under which masqueraded pods leave by it; `None`: there is none that the kernel would take.
    pub leave4: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub leave6: Option<Ipv6Addr>,
}

/// Names one row of any table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// A node, by name.
    Node(String),
    /// A pod, by namespace and name.
    Pod(PodKey),
    /// An endpoint, by id.
    Endpoint(u16),
    /// This node's own addresses: one row.
    NodeAddresses,
    /// The devices that lead to other nodes: one row.
    Devices,
    /// The way to a tunnel address.
    NextHop(Box<IpAddr>),
    /// A namespace, by name.
    Namespace(Box<str>),
    /// A policy of either kind, by name.
    Policy(Box<PolicyName>),
    /// Addresses of Services, by name.
    ServiceCidr(Box<str>),
}
// There are some for every pod of the cluster.
const _: () = assert!(size_of::<Row>() <= 24);
impl Display for Row {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Endpoint(id) => write!(f, "endpoint {id}"),
            Self::NodeAddresses => f.write_str("node addresses"),
            Self::Devices => f.write_str("devices"),
            Self::NextHop(ip) => write!(f, "next hop to {ip}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Policy(name) => Display::fmt(name, f),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// Where table rows come from. Nothing may be deleted from the kernel before all of them have said that they are in
/// sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The cluster's objects: those of the manifest directory, or of the Kubernetes API.
    Cluster,
    /// Endpoint records of an earlier agent, compared with the devices.
    Records,
    /// The kernel's addresses, routes and neighbours.
    Netlink,
}
impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Records, Self::Netlink];
}

/// How far the kernel is with one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "status")]
pub enum RowStatus {
    /// Changed since the reconciler last looked.
    Pending,
    /// The kernel holds what the row says.
    Applied,
    /// The last attempt failed; the reconciler tries again.
    Failed {
        /// The last attempt's error, with its chain of causes.
        error: String,
        /// Attempts that have failed since the row last changed.
        retries: u32,
    },
}
