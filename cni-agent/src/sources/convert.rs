//! From Kubernetes' object types to the tables' own. Pure; whoever delivers the objects uses it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::objects::{self, Metadata};
use crate::tables::{NamedPort, Namespace, Node, Phase, Pod, Protocol, ServiceCidr};

/// An object that the tables cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that names the object is missing.
    #[error("a {kind} has no {field}: give it one")]
    Missing {
        /// The object's kind.
        kind: &'static str,
        /// The field's path.
        field: &'static str,
    },
    /// A field's text does not say what it should.
    #[error("{object}: {field} is `{value}`, not {expected}")]
    Value {
        /// Kind and name of the object.
        object: String,
        /// The field's path.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
}

/// Takes a Node object over.
pub fn node(object: &objects::Node) -> Result<Node, ConvertError> {
    let name = named("Node", object.metadata.as_ref())?;
    let bad = |field, value: &str, expected| ConvertError::Value {
        object: format!("Node {name}"),
        field,
        value: value.to_owned(),
        expected,
    };
    let spec = object.spec.as_ref();
    let listed = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let single = spec.and_then(|s| s.pod_cidr.as_ref());
    let texts: Vec<&String> = if listed.is_empty() { single.into_iter().collect() } else { listed.iter().collect() };
    let mut pod_cidrs = Vec::new();
    for text in texts {
        let net: IpNet = text.parse().map_err(|_| {
            bad("spec.podCIDRs", text, "a network in CIDR notation such as 10.244.1.0/24 or fd00:1::/64")
        })?;
        push_new(&mut pod_cidrs, net.trunc());
    }
    let addresses = object.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut internal_ips = Vec::new();
    for address in addresses.iter().filter(|a| a.kind.as_deref() == Some("InternalIP")) {
        let text = address.address.as_deref().unwrap_or_default();
        push_new(&mut internal_ips, ip(text).ok_or_else(|| bad("status.addresses", text, "an IP address"))?);
    }
    Ok(Node {
        name: name.to_owned(),
        pod_cidrs,
        internal_ips,
        labels: labels(object.metadata.as_ref()),
        // Names are among them too.
        addresses: addresses.iter().filter_map(|a| ip(a.address.as_deref()?)).collect(),
    })
}

/// Takes a Namespace object over.
pub fn namespace(object: &objects::Namespace) -> Result<Namespace, ConvertError> {
    let name = named("Namespace", object.metadata.as_ref())?;
    Ok(Namespace { name: name.to_owned(), labels: labels(object.metadata.as_ref()) })
}

/// Takes a ServiceCIDR object over.
pub fn service_cidr(object: &objects::ServiceCidr) -> Result<ServiceCidr, ConvertError> {
    let name = named("ServiceCIDR", object.metadata.as_ref())?;
    let mut cidrs = Vec::new();
    for text in object.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default() {
        let net: IpNet = text.parse().map_err(|_| ConvertError::Value {
            object: format!("ServiceCIDR {name}"),
            field: "spec.cidrs",
            value: text.clone(),
            expected: "a network in CIDR notation such as 10.96.0.0/12 or fd96::/108",
        })?;
        push_new(&mut cidrs, net.trunc());
    }
    Ok(ServiceCidr { name: name.to_owned(), cidrs })
}

/// Takes a Pod object over.
pub fn pod(object: &objects::Pod) -> Result<Pod, ConvertError> {
    let metadata = object.metadata.as_ref();
    let name = named("Pod", metadata)?;
    let namespace = metadata.and_then(|m| m.namespace.as_deref()).filter(|n| !n.is_empty()).unwrap_or("default");
    let bad = |field, value: String, expected| ConvertError::Value {
        object: format!("Pod {namespace}/{name}"),
        field,
        value,
        expected,
    };
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let listed = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default().iter().filter_map(|p| p.ip.as_ref());
    let single = status.and_then(|s| s.pod_ip.as_ref());
    let mut ips = Vec::new();
    // Both fields have the first address; an object written by hand may have either.
    for text in single.into_iter().chain(listed).filter(|t| !t.is_empty()) {
        push_new(&mut ips, ip(text).ok_or_else(|| bad("status.podIPs", text.clone(), "an IP address"))?);
    }
    let mut ports = BTreeSet::new();
    for port in spec.into_iter().flat_map(container_ports) {
        let Some(port_name) = port.name.clone().filter(|n| !n.is_empty()) else { continue };
        let field = "spec.containers[].ports[]";
        let written = port.container_port.unwrap_or_default();
        let number = u16::try_from(written).ok().filter(|n| *n != 0);
        let number = number.ok_or_else(|| bad(field, written.to_string(), "a port from 1 to 65535"))?;
        let protocol = match port.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => return Err(bad(field, other.to_owned(), "one of the protocols TCP, UDP, SCTP")),
        };
        ports.insert(NamedPort { name: port_name, protocol, port: number });
    }
    Ok(Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        node: spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
        labels: labels(metadata),
        ips,
        phase: match status.and_then(|s| s.phase.as_deref()) {
            None | Some("" | "Pending") => Phase::Pending,
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some(_) => Phase::Unknown,
        },
        host_network: spec.and_then(|s| s.host_network).unwrap_or_default(),
        ports,
    })
}

/// The ports that a pod's traffic can go to: those of containers, and of init containers that go on running beside them.
fn container_ports(spec: &objects::PodSpec) -> impl Iterator<Item = &objects::ContainerPort> {
    let sidecar = |c: &&objects::Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    spec.containers.iter().flatten().chain(sidecars).flat_map(|c| c.ports.as_deref().unwrap_or_default())
}

fn named<'a>(kind: &'static str, metadata: Option<&'a Metadata>) -> Result<&'a str, ConvertError> {
    let name = metadata.and_then(|m| m.name.as_deref()).filter(|n| !n.is_empty());
    name.ok_or(ConvertError::Missing { kind, field: "metadata.name" })
}

fn labels(metadata: Option<&Metadata>) -> BTreeMap<String, String> {
    metadata.and_then(|m| m.labels.clone()).unwrap_or_default()
}

/// An address in its one form: what a packet carries is IPv4, however the object writes it.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_keeps_its_cidrs_and_internal_addresses_in_order() {
        let node = convert_node(json!({
            "metadata": {"name": "n1", "labels": {"a": "b"}},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["fd00:1::/64", "10.1.0.7/24"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "::ffff:10.0.0.1"},
            ]},
        }));
        let expected = Node {
            name: "n1".into(),
            pod_cidrs: vec!["fd00:1::/64".parse().unwrap(), "10.1.0.0/24".parse().unwrap()],
            internal_ips: vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            labels: BTreeMap::from([("a".into(), "b".into())]),
            addresses: ["192.0.2.1", "fd00::1", "10.0.0.1"].map(|a| a.parse().unwrap()).into(),
        };
        assert_eq!(node, Ok(expected));
    }

    #[test]
    fn the_single_pod_cidr_serves_where_there_is_no_list() {
        let node = convert_node(json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24"}})).unwrap();
        assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_pod_is_trimmed_to_what_the_datapath_asks_for() {
        let pod = convert_pod(json!({
            "metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "hostNetwork": true,
                "containers": [
                    {"name": "a", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]},
                    {"name": "b", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
                ],
                "initContainers": [
                    {"name": "over", "ports": [{"name": "gone", "containerPort": 1}]},
                    {"name": "stays", "restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00:1::5"}]},
        }))
        .unwrap();
        let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
        let expected = Pod {
            namespace: "shop".into(),
            name: "web".into(),
            node: Some("n1".into()),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            ips: vec!["10.1.0.5".parse().unwrap(), "fd00:1::5".parse().unwrap()],
            phase: Phase::Running,
            host_network: true,
            ports: BTreeSet::from([
                port("http", Protocol::Tcp, 8080),
                port("dns", Protocol::Udp, 53),
                port("mesh", Protocol::Tcp, 15001),
            ]),
        };
        assert_eq!(pod, expected);
    }

    #[test]
    fn a_pod_that_is_not_scheduled_yet_is_taken() {
        let pod = convert_pod(json!({"metadata": {"name": "web"}, "spec": {"containers": []}})).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.node, pod.ips, pod.phase), ("default", None, vec![], Phase::Pending));
    }

    #[test]
    fn null_is_what_an_absent_field_is() {
        let (spec, status) = (json!({"containers": null, "nodeName": null}), json!({"podIPs": null, "phase": null}));
        let pod = convert_pod(json!({"metadata": {"name": "web", "labels": null}, "spec": spec, "status": status}));
        assert_eq!(pod, convert_pod(json!({"metadata": {"name": "web"}})));
        assert!(pod.is_ok());
        assert_eq!(convert_node(json!({"metadata": {"name": "n"}, "spec": null, "status": null})).unwrap().name, "n");
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named_with_its_object() {
        let cases = [
            (convert_node(json!({"metadata": {}})).unwrap_err(), "a Node has no metadata.name: give it one"),
            (
                convert_node(json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.1.0.0"]}})).unwrap_err(),
                "Node n: spec.podCIDRs is `10.1.0.0`, not a network in CIDR notation",
            ),
            (
                convert_node(json!({"metadata": {"name": "n"}, "status": {"addresses": [
                    {"type": "InternalIP", "address": "n.example"}]}}))
                .unwrap_err(),
                "Node n: status.addresses is `n.example`, not an IP address",
            ),
            (
                convert_pod(json!({"metadata": {"name": "p"}, "status": {"podIP": "x"}})).unwrap_err(),
                "Pod default/p: status.podIPs is `x`",
            ),
            (convert_pod(with_port(json!({"name": "h", "containerPort": 65536}))).unwrap_err(), "`65536`, not a port"),
            (convert_pod(with_port(json!({"name": "h", "containerPort": 0}))).unwrap_err(), "`0`, not a port"),
            (
                convert_pod(with_port(json!({"name": "h", "containerPort": 1, "protocol": "tcp"}))).unwrap_err(),
                "`tcp`, not one of the protocols",
            ),
        ];
        for (error, text) in cases {
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    fn with_port(port: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "ports": [port]}]}})
    }
    fn convert_node(object: Value) -> Result<Node, ConvertError> {
        node(&serde_json::from_value(object).unwrap())
    }
    fn convert_pod(object: Value) -> Result<Pod, ConvertError> {
        pod(&serde_json::from_value(object).unwrap())
    }
}
