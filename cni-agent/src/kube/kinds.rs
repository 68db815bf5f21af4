//! The kinds of objects that are followed: where they are, and what becomes of one.
use std::{collections::BTreeSet, fmt::Debug};

use super::{
    Shared,
    wire::{self, ObjectKey},
};
use crate::{
    policy::objects::{self as policies, Broken, PolicyName, Read},
    sources::{convert, objects},
    tables::{Contents, PodKey, Tables},
};

/// A kind of objects.
pub trait Kind: Debug + Send + Sync {
    /// Its name, in the plural, as RBAC has it.
    fn name(&self) -> &'static str;
    /// Where its collection is.
    fn path(&self) -> &'static str;
    /// What restricts the collection, as of a URL's query; empty when nothing does.
    fn selector(&self) -> &'static str {
        ""
    }
    /// Whether the source is in sync without it.
    fn need(&self) -> Need {
        Need::Always
    }
    /// Takes an object over; the answer tells what of it is not as it should be. The error says what is wrong with it, and then nothing has changed.
    fn take(&self, shared: &Shared, key: &ObjectKey, object: &str) -> Result<Flaws, String>;
    /// An object is gone.
    fn gone(&self, shared: &Shared, key: &ObjectKey);
    /// A whole list has come in: what it has not `seen` is gone.
    fn only(&self, shared: &Shared, seen: &BTreeSet<ObjectKey>) {
        let gone: Vec<ObjectKey> =
            keys(self.name(), &shared.tables.read()).into_iter().filter(|key| !seen.contains(key)).collect();
        for key in gone {
            self.gone(shared, &key);
        }
    }
}

/// Parts of an object that say nothing.
pub type Flaws = Vec<String>;

/// Whether the source can be in sync without a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It cannot.
    Always,
    /// It cannot, but the server may not have the kind: its definition may come later than the agent, or never.
    IfThere,
    /// It can.
    Never,
}

/// All that are followed.
pub fn all() -> Vec<Box<dyn Kind>> {
    vec![
        Box::new(Nodes),
        Box::new(Namespaces),
        Box::new(Pods),
        Box::new(NetworkPolicies),
        Box::new(ClusterPolicies),
        Box::new(ServiceCidrs),
        Box::new(ApiServers),
    ]
}

/// How many rows of the tables are of a kind.
pub fn held(kind: &str, tables: &Tables) -> usize {
    let c = tables.read();
    match kind {
        NODES => c.nodes.len(),
        NAMESPACES => c.namespaces.len(),
        PODS => c.pods.len(),
        NETWORK_POLICIES => c.policies.keys().filter(|p| matches!(p, PolicyName::Network { .. })).count(),
        CLUSTER_POLICIES => c.policies.keys().filter(|p| matches!(p, PolicyName::Cluster { .. })).count(),
        SERVICE_CIDRS => c.service_cidrs.len(),
        _ => 0,
    }
}

/// The names of a kind's rows.
fn keys(kind: &str, c: &Contents) -> Vec<ObjectKey> {
    let key = |namespace: &str, name: &str| ObjectKey { namespace: namespace.into(), name: name.into() };
    match kind {
        NODES => c.nodes.keys().map(|name| key("", name)).collect(),
        NAMESPACES => c.namespaces.keys().map(|name| key("", name)).collect(),
        NETWORK_POLICIES | CLUSTER_POLICIES => {
            let named = |policy: &PolicyName| match policy {
                PolicyName::Network { namespace, name } if kind == NETWORK_POLICIES => Some(key(namespace, name)),
                PolicyName::Cluster { name } if kind == CLUSTER_POLICIES => Some(key("", name)),
                _ => None,
            };
            c.policies.keys().filter_map(named).collect()
        }
        SERVICE_CIDRS => c.service_cidrs.keys().map(|name| key("", name)).collect(),
        PODS => c.pods.keys().map(|pod| key(pod.namespace(), pod.name())).collect(),
        _ => Vec::new(),
    }
}

const NODES: &str = "nodes";
const NAMESPACES: &str = "namespaces";
const PODS: &str = "pods";
const NETWORK_POLICIES: &str = "networkpolicies";
const CLUSTER_POLICIES: &str = "clusternetworkpolicies";
const SERVICE_CIDRS: &str = "servicecidrs";

#[derive(Debug)]
struct Nodes;
impl Kind for Nodes {
    fn name(&self) -> &'static str {
        NODES
    }
    fn path(&self) -> &'static str {
        "/api/v1/nodes"
    }
    fn take(&self, shared: &Shared, key: &ObjectKey, object: &str) -> Result<Flaws, String> {
        if key.name == shared.own.node {
            shared.own_object(object);
        }
        let node = convert::node(&wire::object::<objects::Node>(object)?).map_err(|e| e.to_string())?;
        shared.tables.set_node(node);
        Ok(Flaws::new())
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.tables.remove_node(&key.name);
    }
}

#[derive(Debug)]
struct Namespaces;
impl Kind for Namespaces {
    fn name(&self) -> &'static str {
        NAMESPACES
    }
    fn path(&self) -> &'static str {
        "/api/v1/namespaces"
    }
    fn take(&self, shared: &Shared, _: &ObjectKey, object: &str) -> Result<Flaws, String> {
        let namespace = convert::namespace(&wire::object::<objects::Namespace>(object)?).map_err(|e| e.to_string())?;
        shared.tables.set_namespace(namespace);
        Ok(Flaws::new())
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.tables.remove_namespace(&key.name);
    }
}

#[derive(Debug)]
struct NetworkPolicies;
impl Kind for NetworkPolicies {
    fn name(&self) -> &'static str {
        NETWORK_POLICIES
    }
    fn path(&self) -> &'static str {
        "/apis/networking.k8s.io/v1/networkpolicies"
    }
    fn take(&self, shared: &Shared, _: &ObjectKey, object: &str) -> Result<Flaws, String> {
        take_policy(shared, object, policies::network_policy)
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        let ObjectKey { namespace, name } = key.clone();
        shared.tables.remove_policy(&PolicyName::Network { namespace, name });
    }
}

#[derive(Debug)]
struct ClusterPolicies;
impl Kind for ClusterPolicies {
    fn name(&self) -> &'static str {
        CLUSTER_POLICIES
    }
    fn path(&self) -> &'static str {
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
    }
    fn need(&self) -> Need {
        Need::IfThere
    }
    fn take(&self, shared: &Shared, _: &ObjectKey, object: &str) -> Result<Flaws, String> {
        take_policy(shared, object, policies::cluster_policy)
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.tables.remove_policy(&PolicyName::Cluster { name: key.name.clone() });
    }
}

/// Of Kubernetes 1.33 and newer: what older ones give their Services, `--service-cidr` tells.
#[derive(Debug)]
struct ServiceCidrs;
impl Kind for ServiceCidrs {
    fn name(&self) -> &'static str {
        SERVICE_CIDRS
    }
    fn path(&self) -> &'static str {
        "/apis/networking.k8s.io/v1/servicecidrs"
    }
    fn need(&self) -> Need {
        Need::IfThere
    }
    fn take(&self, shared: &Shared, _: &ObjectKey, object: &str) -> Result<Flaws, String> {
        let of = convert::service_cidr(&wire::object::<objects::ServiceCidr>(object)?).map_err(|e| e.to_string())?;
        shared.tables.set_service_cidr(of);
        Ok(Flaws::new())
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.tables.remove_service_cidr(&key.name);
    }
}

/// A policy that is broken stays in force as it was; of one with flaws those parts match nothing.
fn take_policy(
    shared: &Shared,
    object: &str,
    read: impl FnOnce(serde_json::Value) -> Result<Read, Broken>,
) -> Result<Flaws, String> {
    let object = serde_json::from_str(object).map_err(|e| e.to_string())?;
    let read = read(object).map_err(|broken| broken.to_string())?;
    let name = read.policy.name.clone();
    let flaws = read.flaws.iter().map(|flaw| format!("{name}, field {}", flaw.in_full())).collect();
    shared.tables.set_policy(read);
    Ok(flaws)
}

#[derive(Debug)]
struct Pods;
impl Kind for Pods {
    fn name(&self) -> &'static str {
        PODS
    }
    fn path(&self) -> &'static str {
        "/api/v1/pods"
    }
    // A pod that is over has given its addresses back: a namespace full of ended jobs is nobody's concern.
    fn selector(&self) -> &'static str {
        "fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed"
    }
    fn take(&self, shared: &Shared, _: &ObjectKey, object: &str) -> Result<Flaws, String> {
        let pod = convert::pod(&wire::object::<objects::Pod>(object)?).map_err(|e| e.to_string())?;
        shared.tables.set_pod(pod);
        Ok(Flaws::new())
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.tables.remove_pod(&PodKey::new(&key.namespace, &key.name));
    }
}

/// Where the API servers themselves are: the endpoints of the Service `kubernetes`, for the time when the servers that the agent was told of are gone.
#[derive(Debug)]
struct ApiServers;
impl Kind for ApiServers {
    fn name(&self) -> &'static str {
        "endpointslices"
    }
    fn path(&self) -> &'static str {
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    }
    fn selector(&self) -> &'static str {
        "labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
    }
    fn need(&self) -> Need {
        Need::Never
    }
    fn take(&self, shared: &Shared, key: &ObjectKey, object: &str) -> Result<Flaws, String> {
        let slice: objects::EndpointSlice = wire::object(object)?;
        shared.link.learned(&key.name, servers(&slice));
        Ok(Flaws::new())
    }
    fn gone(&self, shared: &Shared, key: &ObjectKey) {
        shared.link.learned(&key.name, Vec::new());
    }
    fn only(&self, _: &Shared, _: &BTreeSet<ObjectKey>) {}
}

/// URLs of the API servers behind a slice.
fn servers(slice: &objects::EndpointSlice) -> Vec<String> {
    let mut https = slice.ports.iter().flatten().filter(|p| p.name.as_deref() == Some("https"));
    let port = https.find_map(|p| p.port).unwrap_or(6443);
    let ready = |e: &&objects::SliceEndpoint| e.conditions.as_ref().and_then(|c| c.ready) != Some(false);
    let hosts = slice.endpoints.iter().flatten().filter(ready).flat_map(|e| e.addresses.iter().flatten());
    let url = |host: &String| match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    };
    hosts.map(url).collect()
}
