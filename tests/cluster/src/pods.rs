//! Pods of the tests, and what they say to each other.
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{Cluster, layout};

/// The port that each pod of the tests serves.
pub const PORT: u16 = 8080;

/// A pod that serves HTTP, and is Ready when the kubelet's probe has reached it.
#[derive(Debug, Clone)]
pub struct Workload {
    name: String,
    node: Option<u8>,
    host_network: bool,
}

impl Workload {
    /// On this node.
    #[must_use]
    pub fn on(name: &str, node: u8) -> Self {
        Self { name: name.to_owned(), node: Some(node), host_network: false }
    }

    /// Wherever the scheduler wants it.
    #[must_use]
    pub fn anywhere(name: &str) -> Self {
        Self { name: name.to_owned(), node: None, host_network: false }
    }

    /// In its node's own network.
    #[must_use]
    pub fn of_the_host(name: &str, node: u8) -> Self {
        Self { host_network: true, ..Self::on(name, node) }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn object(&self) -> Value {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": "default", "labels": {"app": "test"}},
            "spec": {
                "hostNetwork": self.host_network,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main",
                    "image": layout::AGNHOST_IMAGE,
                    "args": ["netexec", format!("--http-port={PORT}")],
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
                }],
            },
        });
        if let Some(number) = self.node {
            // By the scheduler, as any pod that wants one node.
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": layout::node_name(number)});
        }
        pod
    }
}

/// Makes pods and waits until all are Ready; gives the time that took.
///
/// # Errors
/// When they are not in time; the text has what the kubelet says of them.
pub fn run(cluster: &Cluster, pods: &[Workload], limit: Duration) -> Result<Duration> {
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": pods.iter().map(Workload::object).collect::<Vec<_>>()});
    let begin = Instant::now();
    cluster.apply(&list.to_string())?;
    let limit = format!("--timeout={}s", limit.as_secs());
    let names: Vec<String> = pods.iter().map(|p| format!("pod/{}", p.name)).collect();
    let words = ["wait", "--for=condition=Ready", &limit].into_iter().chain(names.iter().map(String::as_str));
    let waited = cluster.kubectl(&words.collect::<Vec<_>>());
    let took = begin.elapsed();
    waited.with_context(|| cluster.kubectl(&["describe", "pods"]).unwrap_or_default())?;
    Ok(took)
}

/// The addresses of a pod.
///
/// # Errors
/// When it has none yet.
pub fn addresses(cluster: &Cluster, pod: &str) -> Result<Vec<IpAddr>> {
    let pod = cluster.get(&["pod", pod])?;
    let all = pod["status"]["podIPs"].as_array().context("a pod without addresses")?;
    all.iter().map(|a| Ok(a["ip"].as_str().context("an address is a text")?.parse()?)).collect()
}

/// Connects from a pod to each address of another.
///
/// # Errors
/// When it does not get there.
pub fn connect(cluster: &Cluster, from: &str, to: &str) -> Result<()> {
    for address in addresses(cluster, to)? {
        let target = match address {
            IpAddr::V4(a) => format!("{a}:{PORT}"),
            IpAddr::V6(a) => format!("[{a}]:{PORT}"),
        };
        cluster
            .kubectl(&["exec", from, "--", "/agnhost", "connect", "--timeout=3s", &target])
            .with_context(|| format!("{from} does not reach {to} at {target}"))?;
    }
    Ok(())
}

/// How long pods take until they are Ready: one after the other, and a hundred at once; all go again. Prints the figures of `network`.
///
/// # Errors
/// When pods do not become Ready.
pub fn time_to_ready(cluster: &Cluster, network: &str) -> Result<()> {
    let limit = Duration::from_secs(120);
    let mut times = Vec::new();
    for number in 0..10 {
        let pod = Workload::on(&format!("one-{number}"), 1 + number % cluster.nodes());
        times.push(run(cluster, std::slice::from_ref(&pod), limit)?);
    }
    times.sort();
    let [middle, last] = [times.len() / 2, times.len() - 1].map(|at| times[at].as_secs_f64());
    println!("figure: {network}: pod created → Ready one by one: p50 {middle:.2} s, slowest of 10 {last:.2} s");
    cluster.kubectl(&["delete", "pods", "--all", "--force", "--wait"])?;
    let many: Vec<Workload> = (0..100).map(|n| Workload::anywhere(&format!("many-{n}"))).collect();
    let took = run(cluster, &many, limit)?;
    println!("figure: {network}: 100 pods at once are Ready after {:.1} s", took.as_secs_f64());
    Ok(())
}
