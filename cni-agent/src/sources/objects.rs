//! Kubernetes' objects, as far as tables ask for them. The whole types of the API are a megabyte of code to read what nobody looks at: a Pod has some
//! hundred kinds of parts. What stands here is checked as the API's types check it, and an absent field, or null, is what it is to them.
use std::collections::BTreeMap;

use serde::Deserialize;

/// `meta/v1.ObjectMeta`.
#[derive(Debug, Default, Deserialize)]
pub struct Metadata {
    /// `name`.
    pub name: Option<String>,
    /// `namespace`.
    pub namespace: Option<String>,
    /// `labels`.
    pub labels: Option<BTreeMap<String, String>>,
}

/// `core/v1.Namespace`.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// What names it.
    pub metadata: Option<Metadata>,
}

/// `networking.k8s.io/v1.ServiceCIDR`.
#[derive(Debug, Deserialize)]
pub struct ServiceCidr {
    /// What names it.
    pub metadata: Option<Metadata>,
    /// What it is to be.
    pub spec: Option<ServiceCidrSpec>,
}

/// `networking.k8s.io/v1.ServiceCIDRSpec`.
#[derive(Debug, Deserialize)]
pub struct ServiceCidrSpec {
    /// `cidrs`.
    pub cidrs: Option<Vec<String>>,
}

/// `core/v1.Node`.
#[derive(Debug, Deserialize)]
pub struct Node {
    /// What names it.
    pub metadata: Option<Metadata>,
    /// What it is to be.
    pub spec: Option<NodeSpec>,
    /// What it is.
    pub status: Option<NodeStatus>,
}

/// `core/v1.NodeSpec`.
#[derive(Debug, Deserialize)]
pub struct NodeSpec {
    /// `podCIDR`.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// `podCIDRs`.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

/// `core/v1.NodeStatus`.
#[derive(Debug, Deserialize)]
pub struct NodeStatus {
    /// `addresses`.
    pub addresses: Option<Vec<NodeAddress>>,
}

/// `core/v1.NodeAddress`.
#[derive(Debug, Deserialize)]
pub struct NodeAddress {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `address`: of some types it is a name.
    pub address: Option<String>,
}

/// `core/v1.Pod`.
#[derive(Debug, Deserialize)]
pub struct Pod {
    /// What names it.
    pub metadata: Option<Metadata>,
    /// What it is to be.
    pub spec: Option<PodSpec>,
    /// What it is.
    pub status: Option<PodStatus>,
}

/// `core/v1.PodSpec`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// `nodeName`.
    pub node_name: Option<String>,
    /// `hostNetwork`.
    pub host_network: Option<bool>,
    /// `containers`.
    pub containers: Option<Vec<Container>>,
    /// `initContainers`.
    pub init_containers: Option<Vec<Container>>,
}

/// `core/v1.Container`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// `ports`.
    pub ports: Option<Vec<ContainerPort>>,
    /// `restartPolicy`, which init containers alone have.
    pub restart_policy: Option<String>,
}

/// `core/v1.ContainerPort`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<String>,
    /// `protocol`.
    pub protocol: Option<String>,
    /// `containerPort`.
    pub container_port: Option<i32>,
}

/// `core/v1.PodStatus`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `phase`.
    pub phase: Option<String>,
    /// `podIP`.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// `podIPs`.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

/// `core/v1.PodIP`.
#[derive(Debug, Deserialize)]
pub struct PodIp {
    /// `ip`.
    pub ip: Option<String>,
}

/// `discovery/v1.EndpointSlice`.
#[derive(Debug, Deserialize)]
pub struct EndpointSlice {
    /// `endpoints`.
    pub endpoints: Option<Vec<SliceEndpoint>>,
    /// `ports`.
    pub ports: Option<Vec<SlicePort>>,
}

/// `discovery/v1.Endpoint`.
#[derive(Debug, Deserialize)]
pub struct SliceEndpoint {
    /// `addresses`.
    pub addresses: Option<Vec<String>>,
    /// `conditions`.
    pub conditions: Option<SliceConditions>,
}

/// `discovery/v1.EndpointConditions`.
#[derive(Debug, Deserialize)]
pub struct SliceConditions {
    /// `ready`; when nobody says so, it is.
    pub ready: Option<bool>,
}

/// `discovery/v1.EndpointPort`.
#[derive(Debug, Deserialize)]
pub struct SlicePort {
    /// `name`.
    pub name: Option<String>,
    /// `port`.
    pub port: Option<i32>,
}
