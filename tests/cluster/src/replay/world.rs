//! Who asks and is asked: six pods in three namespaces on two nodes, the nodes themselves, and a machine outside of the cluster.
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cni_agent::netlink::netns;
use serde_json::{Value, json};

use super::{
    ask::Flow,
    scenario::{Denial, PROBES},
};
use crate::{
    Cluster, beside_api_server,
    layout::{self, CONTROL_PLANE, Families, node_addresses, node_name, node_netns},
    network,
    node::hyperkube,
    wait::until,
};

/// Namespaces, each labelled by its name under `ns`.
pub const NAMESPACES: [&str; 3] = ["near", "far", "ops"];
/// Pods, each labelled by its name under `pod`: where they are, and what they call the ports 80 and 81 of TCP and of UDP.
const PODS: [(&str, &str, u8); 6] =
    [("near", "a", 1), ("near", "b", 2), ("far", "a", 2), ("far", "b", 1), ("ops", "a", 1), ("ops", "b", 2)];
/// In `b` each name is another port's.
const PORT_NAMES: [[&str; 2]; 2] = [["web", "adm"], ["talk", "hush"]];
/// The machine outside.
pub const OUTSIDE: &str = "world";
/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Who asks or is asked.
#[derive(Debug)]
pub struct End {
    /// `NAMESPACE/POD`, the name of a node, or [`OUTSIDE`].
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its sockets are.
    pub netns: OwnedFd,
}

impl End {
    /// Whether it is a pod with a network of its own.
    pub fn is_pod(&self) -> bool {
        self.name.contains('/')
    }
}

/// All of them.
#[derive(Debug)]
pub struct World {
    /// Who asks and is asked.
    pub ends: Vec<End>,
    servers: Vec<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // One that has ended by itself is no error.
            let _gone = server.kill();
            let _gone = server.wait();
        }
    }
}

impl World {
    /// Makes it, in a cluster of two nodes.
    pub fn make(cluster: &Cluster) -> Result<Self> {
        let list = |items: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let namespaces = NAMESPACES.map(
            |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"ns": name}}}),
        );
        cluster.apply(&list(namespaces.to_vec()))?;
        let pods = PODS.map(|(namespace, name, node)| pod(namespace, name, name, node, false));
        // What is in the nodes' own networks is no pod to policies, whatever its labels.
        let hosts = [1, 2].map(|node| pod("ops", &format!("host-{node}"), "a", node, true));
        let pods = list(pods.into_iter().chain(hosts).collect());
        // Refused before a controller has made the namespace's service account.
        until("pods that are taken", LIMIT, || cluster.apply(&pods).map(Some))?;
        for namespace in NAMESPACES {
            let limit = format!("--timeout={}s", LIMIT.as_secs());
            let waited = cluster.kubectl(&["wait", "--for=condition=Ready", &limit, "pods", "--all", "-n", namespace]);
            waited.with_context(|| cluster.kubectl(&["describe", "pods", "-n", namespace]).unwrap_or_default())?;
        }
        let ends = PODS.iter().map(|(namespace, name, node)| pod_end(cluster, namespace, name, *node));
        let mut ends = ends.collect::<Result<Vec<End>>>()?;
        for number in [1, 2] {
            ends.push(host_end(&node_name(number), &node_netns(number), node_addresses(number))?);
        }
        ends.push(host_end(OUTSIDE, CONTROL_PLANE, layout::control_plane_addresses())?);
        let agnhost = hyperkube()?.with_file_name("agnhost");
        let serve = |port: u16| {
            let mut command = beside_api_server(agnhost.to_str().context("the path of agnhost")?)?;
            command.args(serving(port)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().context("start agnhost outside of the cluster")
        };
        Ok(Self { ends, servers: [80, 81].into_iter().map(serve).collect::<Result<_>>()? })
    }

    /// Takes the pods away.
    pub fn unmake(self, cluster: &Cluster) -> Result<()> {
        cluster.kubectl(&[&["delete", "--wait", "namespaces"][..], &NAMESPACES].concat()).map(drop)
    }

    /// All flows of which a policy may have something to say.
    pub fn flows(&self) -> Vec<Flow> {
        let mut flows = Vec::new();
        let pairs =
            self.ends.iter().enumerate().flat_map(|from| self.ends.iter().enumerate().map(move |to| (from, to)));
        for ((from, sender), (to, receiver)) in pairs {
            // Nothing leads from outside to pods.
            if sender.name == OUTSIDE || !(sender.is_pod() || receiver.is_pod()) {
                continue;
            }
            let each = receiver.addresses.iter().flat_map(|address| PROBES.map(|probe| (*address, probe)));
            flows.extend(each.map(|(address, probe)| Flow { from, to, address, probe }));
        }
        flows
    }

    /// Whether a flow is among what is denied: a pod's way to itself never is.
    pub fn is_denied(&self, flow: Flow, denials: &[Denial]) -> bool {
        let (from, to) = (&self.ends[flow.from].name, &self.ends[flow.to].name);
        flow.from != flow.to && denials.iter().any(|d| d.has(from, to, flow.address.is_ipv4(), flow.probe))
    }

    /// A flow in words.
    pub fn show(&self, flow: Flow) -> String {
        let family = if flow.address.is_ipv4() { "IPv4" } else { "IPv6" };
        format!("{} to {} {family} {}", self.ends[flow.from].name, self.ends[flow.to].name, flow.probe)
    }
}

fn serving(port: u16) -> [String; 3] {
    ["netexec".to_owned(), format!("--http-port={port}"), format!("--udp-port={port}")]
}

fn pod(namespace: &str, name: &str, label: &str, node: u8, host_network: bool) -> Value {
    let container = |at: usize| {
        let (port, named) = ([80, 81][at], if label == "a" { at } else { 1 - at });
        json!({
            "name": format!("port-{port}"),
            "image": layout::AGNHOST_IMAGE,
            "args": serving(port),
            "ports": [{"containerPort": port, "name": PORT_NAMES[0][named]},
                      {"containerPort": port, "protocol": "UDP", "name": PORT_NAMES[1][named]}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1},
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"pod": label}},
        "spec": {
            "hostNetwork": host_network,
            "nodeSelector": {"kubernetes.io/hostname": node_name(node)},
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [container(0), container(1)],
        },
    })
}

fn pod_end(cluster: &Cluster, namespace: &str, name: &str, node: u8) -> Result<End> {
    let object = cluster.get(&["pod", name, "-n", namespace])?;
    let name = format!("{namespace}/{name}");
    let all = object["status"]["podIPs"].as_array().with_context(|| format!("{name} has no address"))?;
    let addresses = all.iter().map(|a| Ok(a["ip"].as_str().context("an address is a text")?.parse()?));
    let addresses = addresses.collect::<Result<Vec<IpAddr>>>()?;
    let first = *addresses.first().with_context(|| format!("{name} has no address"))?;
    let directory = cluster.node_root(node)?.join("run/netns");
    let is_its = |path: PathBuf| {
        let netns = netns::open(path).ok()?;
        let bound = netns::in_netns(netns.as_fd(), || UdpSocket::bind((first, 0)).is_ok()).ok()?;
        bound.then_some(netns)
    };
    let mut all = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let netns = all.find_map(|entry| is_its(entry.ok()?.path()));
    Ok(End { netns: netns.with_context(|| format!("no network namespace has {first} of {name}"))?, name, addresses })
}

fn host_end(name: &str, netns: &str, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Result<End> {
    let addresses = Families::of_cluster().of([IpAddr::from(v4), IpAddr::from(v6)]);
    Ok(End { name: name.to_owned(), addresses, netns: network::open(netns)? })
}
