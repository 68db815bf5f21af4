//! Many nodes and pods that are objects alone: no kubelet knows of them, and what sends objects to an agent cannot tell.
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    Cluster, UP_LIMIT,
    api::{Api, Session},
    wait::until,
};

/// Namespaces of the pods.
const NAMESPACES: usize = 20;
/// Pods of one template, as a Deployment makes them.
const REPLICAS: usize = 10;
/// Connections that make objects.
const HANDS: usize = 8;

/// So many nodes and pods, spread evenly.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Nodes: 16,384 at most.
    pub nodes: usize,
    /// Pods: 250 for a node at most.
    pub pods: usize,
}

impl Crowd {
    /// Makes the pods' namespaces. The controllers have to run for that, and must not for what follows: they would end pods of nodes without a kubelet.
    ///
    /// # Errors
    /// When the API server does not take them, or no service accounts come.
    pub fn namespaces(&self, cluster: &Cluster) -> Result<()> {
        let names: BTreeSet<String> = (0..self.pods).map(namespace).collect();
        let object = |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": names.iter().map(object).collect::<Vec<_>>()});
        cluster.apply(&list.to_string())?;
        // Without it pods are refused.
        until("service accounts of the namespaces", UP_LIMIT, || {
            let accounts = cluster.get(&["serviceaccounts", "-A", "--field-selector=metadata.name=default"])?;
            let of = |name: &String| {
                accounts["items"].as_array()?.iter().find(|a| a["metadata"]["namespace"] == **name).map(drop)
            };
            Ok(names.iter().all(|name| of(name).is_some()).then_some(()))
        })
    }

    /// Makes all nodes, then all pods, each with an address; `step` is told now and then how many there are.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn make(&self, api: &Api, step: impl Fn(&str) + Sync) -> Result<()> {
        many(
            api,
            self.nodes,
            |api, n| api.create("/api/v1/nodes", &node(n)).map(drop),
            |n| step(&format!("{n} nodes")),
        )?;
        many(
            api,
            self.pods,
            |api, n| {
                api.create(&format!("/api/v1/namespaces/{}/pods", namespace(n)), &self.pod(n))?;
                let ip = self.address(n).to_string();
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
                api.merge(&format!("{}/status", self.path(n)), &status).map(drop)
            },
            |n| step(&format!("{n} pods")),
        )
    }

    /// Where a pod's object is.
    #[must_use]
    pub fn path(&self, n: usize) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", namespace(n), pod_name(n))
    }
    /// A pod's namespace and labels.
    #[must_use]
    pub fn labels(&self, n: usize) -> (String, Vec<(&'static str, String)>) {
        let app = n / REPLICAS;
        let labels = vec![
            ("app", format!("app-{}", app % 200)),
            ("app.kubernetes.io/version", format!("v{}", app % 30)),
            ("pod-template-hash", format!("{app:08x}")),
            ("tier", format!("tier-{}", app % 4)),
        ];
        (namespace(n), labels)
    }
    /// A pod's address: in its node's range.
    #[must_use]
    pub fn address(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::from(range(n % self.nodes).to_bits() + 2 + u32::try_from(n / self.nodes).unwrap_or(u32::MAX))
    }

    fn pod(&self, n: usize) -> Value {
        let labels: Value = self.labels(n).1.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name(n), "labels": labels},
            "spec": {
                "nodeName": node_name(n % self.nodes),
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}],
            },
        })
    }
}

fn namespace(n: usize) -> String {
    format!("team-{}", n / REPLICAS % NAMESPACES)
}
fn node_name(n: usize) -> String {
    format!("far-{n}")
}
/// As a Deployment names it.
fn pod_name(n: usize) -> String {
    format!("app-{}-{:08x}-{:05x}", n / REPLICAS, n / REPLICAS, n % REPLICAS * 77_777)
}
/// The first address of a node's pods.
fn range(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + (u32::try_from(node).unwrap_or(u32::MAX) << 8))
}

fn node(n: usize) -> Value {
    let cidr = format!("{}/24", range(n));
    let address = Ipv4Addr::from(0xac10_0000 + u32::try_from(n).unwrap_or(u32::MAX));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(n), "labels": {"kubernetes.io/hostname": node_name(n), "zone": format!("z{}", n % 3)}},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": node_name(n)}]},
    })
}

/// Does something for each number below `count`, over several connections. The first error ends it.
fn many(
    api: &Api,
    count: usize,
    make: impl Fn(&mut Session, usize) -> Result<()> + Sync,
    told: impl Fn(usize) + Sync,
) -> Result<()> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let hand = || -> Result<()> {
        let mut session = api.connect()?;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            make(&mut session, n).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(count.div_ceil(10)) {
                told(done);
            }
        }
    };
    thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS).map(|_| scope.spawn(hand)).collect();
        hands.into_iter().try_for_each(|hand| hand.join().ok().context("a hand has panicked")?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_have_one_name_or_address_and_each_is_in_its_nodes_range() {
        let crowd = Crowd { nodes: 100, pods: 2000 };
        let paths: BTreeSet<String> = (0..crowd.pods).map(|n| crowd.path(n)).collect();
        let addresses: BTreeSet<Ipv4Addr> = (0..crowd.pods).map(|n| crowd.address(n)).collect();
        assert_eq!((paths.len(), addresses.len()), (crowd.pods, crowd.pods));
        assert!((0..crowd.pods).all(|n| crowd.address(n).to_bits() >> 8 == range(n % crowd.nodes).to_bits() >> 8));
    }
}
