//! Compilers: pure functions from rows of the tables to entries of the maps and to routes. No clock, no kernel, no client.
mod bytes;
mod entries;
#[cfg(test)]
pub(crate) mod fixtures;
mod heard;
mod masquerade;
mod nodes;
mod packed;
mod routes;
mod stack;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_common::{
    maps,
    schema::{self, MapSpec},
};
use ipnet::IpNet;

pub use self::{
    bytes::{Few, Key, LONGEST_KEY, Value},
    heard::{Heard, is_whole},
    nodes::{NodeNumbers, TooManyNodes},
    packed::{Entries, Keys},
    routes::{ClusterRoute, cluster_routes, host_addresses},
    stack::{stack_ports, stack_rules},
};
use crate::{
    policy::{change::Map, engine::EndpointSets},
    ports::PortRange,
    settings::Underlay,
    tables::{Contents, Endpoint, PodKey, Row},
};

/// What compilers know beside the tables: it does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// This node's name.
    pub node: String,
    /// `--underlay`.
    pub underlay: Underlay,
    /// `--tunnel-port`.
    pub tunnel_port: u16,
    /// `--cluster-cidr`.
    pub cluster_cidrs: Vec<IpNet>,
    /// `--service-cidr`: none leaves it to the cluster's objects.
    pub service_cidrs: Vec<IpNet>,
    /// `--mtu`; 0 takes that of the devices.
    pub mtu: u32,
    /// `--event-rate`.
    pub event_rate: u32,
    /// Interface index of `weft_host`.
    pub weft_host: u32,
    /// Interface index of `weft_vxlan`.
    pub weft_vxlan: u32,
    /// The kernel takes `ENCAP_L2_ETH`.
    pub encap_l2_eth: bool,
    /// Jiffies in a second.
    pub hz: u32,
    /// What of pods' packets is masqueraded; `None`: nothing.
    pub masquerade: Option<Masquerade>,
    /// Every pod has an object, and so has its namespace, as with the Kubernetes API: one without is not known yet. If not, as with a
    /// directory, what has no object is without labels.
    pub objects_are_all: bool,
}

/// What of policy is in the maps, as far as other entries refer to it.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The policy epoch.
    pub epoch: u32,
    /// Policy sets of this node's pods.
    pub sets: BTreeMap<PodKey, EndpointSets>,
}
impl Default for InForce {
    fn default() -> Self {
        Self { epoch: FIRST_EPOCH, sets: BTreeMap::new() }
    }
}
/// The epoch of a node on which no policy has ever changed.
pub const FIRST_EPOCH: u32 = 1;

/// The policy set of a pod of which is not known yet which policies hold for it: no map holds anything of it, so it denies. The node's own traffic
/// gets in, as it does at every pod.
pub const SET_ISOLATED: u32 = u32::MAX;

impl InForce {
    /// The policy sets of an endpoint.
    pub fn sets_of(&self, e: &Endpoint, contents: &Contents, facts: &Facts) -> EndpointSets {
        if !e.is_kubernetes() {
            return EndpointSets::default();
        }
        let known = !facts.objects_are_all || contents.namespaces.contains_key(&e.namespace);
        let isolated = EndpointSets { set_in: SET_ISOLATED, set_out: SET_ISOLATED };
        self.sets.get(&e.pod()).filter(|_| known).copied().unwrap_or(isolated)
    }
}

/// How pods speak to the world with an address of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// `--masquerade-ports`.
    pub ports: PortRange,
    /// `--no-masquerade-cidr`.
    pub spared: Vec<IpNet>,
}

/// Maps in the order in which entries are written; they are deleted in the opposite one. What an entry refers to is there before it,
/// and the entry that lets a pod's traffic flow comes last and goes first.
///
/// What is known of the cluster, and what is spared, is there before the addresses under which pods leave: with those masquerade begins.
const ORDER: [&MapSpec; 19] = [
    &schema::CT_CONFIG,
    &schema::NAT_CONFIG,
    &schema::TUNNELS,
    &schema::NODES4,
    &schema::NODES6,
    &schema::OWN4,
    &schema::OWN6,
    &schema::CIDR4,
    &schema::CIDR6,
    &schema::REMOTE4,
    &schema::REMOTE6,
    &schema::SPARED4,
    &schema::SPARED6,
    &schema::LEAVE4,
    &schema::LEAVE6,
    &schema::CONFIG,
    &schema::LOCAL4,
    &schema::LOCAL6,
    &schema::ENDPOINTS,
];

/// Names an entry; sorts in the order in which entries are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey {
    order: u8,
    /// The key's bytes.
    pub key: Key,
}
impl EntryKey {
    /// In this map; `None` when the map is not the compilers' to fill, or a key of that length not in it.
    pub fn new(map: &MapSpec, key: impl AsRef<[u8]>) -> Option<Self> {
        let policy = Map::ALL.into_iter().map(Map::spec);
        let order = ORDER.into_iter().chain(policy).position(|m| m.id == map.id)?;
        Some(Self { order: u8::try_from(order).ok()?, key: Key::new(key.as_ref())? })
    }
    /// In a map of policy's, which has an order of its own.
    ///
    /// # Panics
    /// When the key is longer than any of theirs.
    pub fn of_policy(map: Map, key: impl AsRef<[u8]>) -> Self {
        // The test `no_key_is_too_long` holds that.
        Self::new(map.spec(), key).unwrap_or_else(|| unreachable!("a key of map {} is too long", map.spec().name))
    }
    /// Its map.
    pub fn map(&self) -> &'static MapSpec {
        let order = usize::from(self.order);
        ORDER.get(order).copied().unwrap_or_else(|| Map::ALL[order - ORDER.len()].spec())
    }
}

/// The maps that the compilers fill.
pub fn maps() -> impl Iterator<Item = &'static MapSpec> {
    ORDER.into_iter()
}

/// An entry: what and where.
pub type Entry = (EntryKey, Vec<u8>);

/// The entries that a row asks for, none when it is gone.
///
/// # Errors
/// A sentence for the row's status.
pub fn row(
    row: &Row,
    contents: &Contents,
    facts: &Facts,
    policy: &InForce,
    numbers: &mut NodeNumbers,
) -> Result<Vec<Entry>, String> {
    Ok(match row {
        Row::Node(name) => match contents.nodes.get(name) {
            Some(node) if *name == facts.node => entries::own_node(node, contents, facts, policy.epoch),
            Some(node) => entries::other_node(node, contents, facts, numbers).map_err(|e| e.to_string())?,
            None => Vec::new(),
        },
        Row::Pod(key) => {
            contents.pods.get(key).map_or_else(Vec::new, |pod| entries::pod(&pod, contents, facts, numbers))
        }
        Row::Endpoint(id) => contents
            .endpoints
            .get(id)
            .map_or_else(Vec::new, |e| entries::endpoint(e, contents, policy.sets_of(e, contents, facts))),
        Row::NodeAddresses => {
            let announced = contents.nodes.get(&facts.node).map_or(&[][..], |n| &n.internal_ips);
            entries::node_addresses(&contents.node_addresses, announced)
        }
        Row::Devices if facts.masquerade.is_some() => masquerade::leaves(&contents.devices),
        // What services' addresses are is in the own node's entries.
        Row::Devices | Row::NextHop(_) | Row::Namespace(_) | Row::Policy(_) | Row::ServiceCidr(_) => Vec::new(),
    })
}

/// A value of a map without the policy sets that it names.
pub fn without_policy(map: &MapSpec, mut value: Vec<u8>) -> Vec<u8> {
    let at = match map.id {
        id if id == schema::ENDPOINTS.id => std::mem::offset_of!(maps::Endpoint, set_in),
        id if id == schema::LOCAL4.id || id == schema::LOCAL6.id => std::mem::offset_of!(maps::Local, set_in),
        _ => return value,
    };
    if let Some(sets) = value.get_mut(at..at + size_of::<EndpointSets>()) {
        sets.fill(0);
    }
    value
}

/// The device by which pods leave, if that is what the entry is about.
pub fn leaves_by(key: &EntryKey) -> Option<u32> {
    let is_leave = [schema::LEAVE4.id, schema::LEAVE6.id].contains(&key.map().id);
    is_leave.then(|| key.key.first_chunk().copied().map(u32::from_ne_bytes))?
}

/// The rows whose entries depend on one of these as well. All pods, and all endpoints, are looked at once, however many rows there are: an agent that begins has those of a cluster.
pub fn dependents(rows: &[Row], contents: &Contents, facts: &Facts) -> Vec<Row> {
    let nodes: BTreeSet<&str> =
        rows.iter().filter_map(|row| if let Row::Node(name) = row { Some(&**name) } else { None }).collect();
    let pods: BTreeSet<&PodKey> =
        rows.iter().filter_map(|row| if let Row::Pod(key) = row { Some(key) } else { None }).collect();
    let mut found: Vec<Row> = rows.iter().flat_map(|row| dependents_of(row, contents, facts)).collect();
    if !nodes.is_empty() {
        // Pods of a node go by its number.
        found.extend(contents.pods.on_nodes(&nodes).cloned().map(Row::Pod));
    }
    if !pods.is_empty() {
        // The label class of a pod is in its endpoint's entry.
        let ends = contents.endpoints.values().filter(|e| pods.contains(&e.pod()));
        found.extend(ends.map(|e| Row::Endpoint(e.id)));
    }
    found
}

/// Those for which neither pods nor endpoints by their pods need be looked at.
fn dependents_of(row: &Row, contents: &Contents, facts: &Facts) -> Vec<Row> {
    match row {
        // Addresses of this node are marked that its object names.
        Row::Node(name) if *name == facts.node => vec![Row::NodeAddresses],
        // MAC and MTU of the way are in the node's tunnel entry.
        Row::NextHop(to) => nodes_at(contents, facts, **to),
        // A way that is not known is taken to be as wide as the devices.
        Row::Devices => contents
            .nodes
            .values()
            .filter(|n| {
                let to = facts.tunnel_to(contents, &n.internal_ips);
                n.name != facts.node && to.is_some_and(|to| !contents.next_hops.contains_key(&to))
            })
            .map(|n| Row::Node(n.name.clone()))
            .collect(),
        // They are spared and have routes, as settings of the own node.
        Row::ServiceCidr(_) => vec![Row::Node(facts.node.clone())],
        // A pod is isolated until its namespace is known.
        Row::Namespace(name) if facts.objects_are_all => {
            contents.endpoints.values().filter(|e| *e.namespace == **name).map(|e| Row::Endpoint(e.id)).collect()
        }
        Row::Node(_) | Row::Pod(_) | Row::Endpoint(_) | Row::NodeAddresses | Row::Namespace(_) | Row::Policy(_) => {
            Vec::new()
        }
    }
}

fn nodes_at(contents: &Contents, facts: &Facts, to: IpAddr) -> Vec<Row> {
    contents
        .nodes
        .values()
        .filter(|n| facts.tunnel_to(contents, &n.internal_ips) == Some(to))
        .map(|n| Row::Node(n.name.clone()))
        .collect()
}

impl Facts {
    /// This node's tunnel address, once its Node object is known.
    pub fn tunnel_address(&self, contents: &Contents) -> Option<IpAddr> {
        self.underlay.tunnel_address(&contents.nodes.get(&self.node)?.internal_ips)
    }

    /// Addresses of Services: those of the settings, else what the cluster's ServiceCIDR objects say, but nothing that this node gives pods, or `--cluster-cidr` says is theirs.
    pub fn services(&self, contents: &Contents) -> Vec<IpNet> {
        if !self.service_cidrs.is_empty() {
            return self.service_cidrs.clone();
        }
        let told: std::collections::BTreeSet<IpNet> =
            contents.service_cidrs.values().flat_map(|of| of.cidrs.iter().copied()).collect();
        let own = contents.nodes.get(&self.node).map_or(&[][..], |node| &node.pod_cidrs);
        let are_pods =
            |cidr: &IpNet| own.iter().chain(&self.cluster_cidrs).any(|of| of.contains(cidr) || cidr.contains(of));
        told.into_iter().filter(|cidr| !are_pods(cidr)).collect()
    }

    /// The tunnel address of another node: one of the family of ours.
    pub fn tunnel_to(&self, contents: &Contents, internal_ips: &[IpAddr]) -> Option<IpAddr> {
        let v4 = self.tunnel_address(contents)?.is_ipv4();
        internal_ips.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// Tunnel addresses of all other nodes.
    pub fn tunnels(&self, contents: &Contents) -> std::collections::BTreeSet<IpAddr> {
        contents
            .nodes
            .values()
            .filter(|n| n.name != self.node)
            .filter_map(|n| self.tunnel_to(contents, &n.internal_ips))
            .collect()
    }

    /// MTU of the devices between nodes; `None` until they are known.
    pub fn device_mtu(&self, contents: &Contents) -> Option<u32> {
        let smallest = |all| contents.devices.values().filter(|d| all || d.leads).map(|d| d.mtu).min();
        // An InternalIP may be on the loopback device, with routes to it over any other.
        let smallest = smallest(false).or_else(|| smallest(true));
        if self.mtu != 0 { Some(self.mtu) } else { smallest }
    }

    /// MTU of routes to pods: the devices' less the tunnel's overhead.
    pub fn route_mtu(&self, contents: &Contents) -> Option<u32> {
        let overhead = match self.tunnel_address(contents)? {
            IpAddr::V4(_) => cni_common::wire::OVERHEAD4,
            IpAddr::V6(_) => cni_common::wire::OVERHEAD6,
        };
        self.device_mtu(contents).map(|mtu| mtu.saturating_sub(overhead))
    }
}
