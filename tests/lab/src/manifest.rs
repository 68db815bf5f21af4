//! The cluster's objects, written into every node's manifest directory as an API server would show them.
use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    layout::NodePaths,
    pod::Pod,
    state::{NodeState, write_whole},
};

pub(crate) fn node(node: &NodeState) -> Value {
    let addresses = node.addresses.iter().map(IpNet::addr).chain(node.listed.iter().copied());
    let addresses: Vec<Value> = addresses.map(|a| json!({"type": "InternalIP", "address": a})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
        "status": {"addresses": addresses},
    })
}

pub(crate) fn pod(pod: &Pod) -> Value {
    let ports: Vec<Value> =
        pod.ports.iter().map(|p| json!({"name": p.name, "protocol": p.protocol, "containerPort": p.port})).collect();
    let mut status = json!({"phase": if pod.addresses.is_empty() { "Pending" } else { "Running" }});
    if let Some(first) = pod.addresses.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.container_id, "labels": pod.labels},
        "spec": {
            "nodeName": pod.node,
            "containers": [{"name": "main", "image": "none", "ports": ports}],
        },
        "status": status,
    })
}

/// Writes a Node object into the directories of `nodes`.
pub(crate) fn write_node(object: &NodeState, nodes: &[NodeState]) -> Result<()> {
    write(nodes, &node_file(object), &node(object))
}

/// Writes a Pod object into the directories of `nodes`.
pub(crate) fn write_pod(object: &Pod, nodes: &[NodeState]) -> Result<()> {
    write(nodes, &pod_file(object), &pod(object))
}

/// Takes a Node object out of the directories of `nodes`.
pub(crate) fn remove_node(object: &NodeState, nodes: &[NodeState]) -> Result<()> {
    remove(nodes, &node_file(object))
}

/// Takes a Pod object out of the directories of `nodes`.
pub(crate) fn remove_pod(object: &Pod, nodes: &[NodeState]) -> Result<()> {
    remove(nodes, &pod_file(object))
}

/// The objects in a file of manifests, YAML or JSON, as `kubectl apply -f` takes them.
pub(crate) fn read(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("it is no YAML")?;
    let lists = documents.into_iter().filter(|d| !d.is_null()).map(|mut document| match document.get_mut("items") {
        Some(Value::Array(items)) => std::mem::take(items),
        _ => vec![document],
    });
    Ok(lists.flatten().collect())
}

/// Writes an object into the directories of `nodes`, under a name of its own.
pub(crate) fn write_object(object: &Value, nodes: &[NodeState]) -> Result<()> {
    write(nodes, &object_file(object)?, object)
}

/// Takes an object of this kind and name out of the directories of `nodes`.
pub(crate) fn remove_object(object: &Value, nodes: &[NodeState]) -> Result<()> {
    remove(nodes, &object_file(object)?)
}

fn object_file(object: &Value) -> Result<String> {
    let text = |field: &Value| field.as_str().filter(|t| !t.is_empty() && !t.contains('/')).map(str::to_owned);
    let kind = text(&object["kind"]).context("an object has no kind")?;
    let name = text(&object["metadata"]["name"]).with_context(|| format!("a {kind} has no metadata.name"))?;
    let namespace = text(&object["metadata"]["namespace"]).map_or_else(String::new, |n| format!("{n}."));
    Ok(format!("{}.{namespace}{name}.json", kind.to_lowercase()))
}

fn remove(nodes: &[NodeState], file: &str) -> Result<()> {
    for path in places(nodes, file) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write(nodes: &[NodeState], file: &str, object: &Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(object).with_context(|| format!("write {file}"))?;
    places(nodes, file).try_for_each(|path| write_whole(&path, &text))
}

fn node_file(node: &NodeState) -> String {
    format!("node.{}.json", node.name)
}

fn pod_file(pod: &Pod) -> String {
    format!("pod.{}.{}.json", pod.namespace, pod.name)
}

fn places<'a>(nodes: &'a [NodeState], file: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    nodes.iter().map(move |n| NodePaths::of(&n.name).manifests().join(file))
}
