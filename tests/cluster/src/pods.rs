//! Pods of the tests, and what they say to each other.
use std::{
    fs,
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::probe::Place;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{Cluster, files, fixture::weft_at, layout, node::STATIC_PODS};

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

/// Has the kubelet of a pod's node run it, whatever the API server knows: the object there, called NAME-NODE, only mirrors it.
///
/// # Errors
/// When it is to run on no node, or that is not up.
pub fn run_by_kubelet(cluster: &Cluster, pod: &Workload) -> Result<String> {
    let mut object = pod.object();
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("nodeSelector");
    }
    let place = static_pods(cluster, pod)?;
    let (unseen, seen) = (place.join(format!(".{}", pod.name)), place.join(&pod.name));
    files::write_file(&unseen, &object.to_string())?;
    fs::rename(&unseen, &seen).with_context(|| format!("write {}", seen.display()))?;
    Ok(mirror(pod))
}

/// Takes such a pod away.
///
/// # Errors
/// As [`run_by_kubelet`], or when it is not there.
pub fn end_by_kubelet(cluster: &Cluster, pod: &Workload) -> Result<()> {
    fs::remove_file(static_pods(cluster, pod)?.join(&pod.name)).with_context(|| format!("take {} away", pod.name))
}

fn mirror(pod: &Workload) -> String {
    format!("{}-{}", pod.name, layout::node_name(pod.node.unwrap_or_default()))
}

fn static_pods(cluster: &Cluster, pod: &Workload) -> Result<PathBuf> {
    let node = pod.node.with_context(|| format!("{} is to run on no node", pod.name))?;
    Ok(cluster.node_root(node)?.join(STATIC_PODS))
}

/// What a node's agent has of a pod, which needs no API server; none if it has nothing.
///
/// # Errors
/// When the agent does not say.
pub fn endpoint(cluster: &Cluster, node: u8, pod: &str) -> Result<Option<Value>> {
    let all = weft_at(cluster, node, &["endpoint", "list"])?;
    let all = all.as_array().context("a list of endpoints")?;
    Ok(all.iter().find(|e| e["namespace"] == "default" && e["pod"] == pod && e["kernel"] == "applied").cloned())
}

/// The place of a pod, for probes that start inside its network namespace. Needs no API server.
///
/// # Errors
/// When the node's agent does not have it.
pub fn place(cluster: &Cluster, node: u8, pod: &str) -> Result<Place> {
    let endpoint =
        endpoint(cluster, node, pod)?.with_context(|| format!("{pod} is not on {}", layout::node_name(node)))?;
    let netns = Path::new(endpoint["netns"].as_str().unwrap_or_default()).file_name().unwrap_or_default().to_owned();
    // An absolute path names any namespace.
    let path = cluster.node_root(node)?.join("run/netns").join(netns);
    let addresses = ["ipv4", "ipv6"].iter().filter_map(|family| endpoint[family].as_str());
    let addresses = addresses.map(str::parse).collect::<Result<_, _>>()?;
    Place::new(pod, path.to_str().context("a path that is text")?, addresses)
}

/// The numbers on this machine of a pod's processes of this name.
///
/// # Errors
/// When processes cannot be listed.
pub fn processes(place: &Place, program: &str) -> Result<Vec<i32>> {
    let inside = fs::metadata(format!("/proc/self/fd/{}", place.netns().as_raw_fd())).context("look at the pod")?.ino();
    let all = fs::read_dir("/proc").context("list the processes in /proc")?;
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| file.ino() == inside)
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == program)
    };
    Ok(pids.filter(is_it).collect())
}

/// Kills a pod's processes of this name; gives how many there were.
///
/// # Errors
/// As [`processes`].
pub fn kill_in(place: &Place, program: &str) -> Result<usize> {
    let pids = processes(place, program)?;
    Ok(pids.into_iter().filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count())
}
