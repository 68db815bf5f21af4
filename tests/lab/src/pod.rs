//! Pods: a network namespace each, connected by the real CNI plugin.
use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    layout::{NodePaths, pod_netns},
    node::Node,
    probe::Place,
    watch::Step,
};

/// Name of the pods' interface.
pub const INTERFACE: &str = "eth0";
/// Longest name of a namespace, pod or port in Kubernetes (RFC 1123 label).
const MAX_LABEL: usize = 63;

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number.
    pub port: u16,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    /// From `NAME=PROTO/PORT`, as in `http=TCP/80`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || format!("`{text}` is not NAME=PROTO/PORT, as in http=TCP/80");
        let (name, rest) = text.split_once('=').with_context(bad)?;
        let (protocol, port) = rest.split_once('/').with_context(bad)?;
        let protocol = protocol.to_uppercase();
        if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) || !is_label(name) {
            bail!(bad());
        }
        Ok(Self { name: name.into(), protocol, port: port.parse().with_context(bad)? })
    }
}

/// A pod to make.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Name, alone of its kind in the lab.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Named ports.
    pub ports: Vec<Port>,
}

impl PodSpec {
    /// In the namespace `default`, without labels and ports.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), namespace: "default".into(), labels: BTreeMap::new(), ports: Vec::new() }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (what, name) in [("pod", &self.name), ("namespace", &self.namespace)] {
            if !is_label(name) {
                bail!(
                    "`{name}` can not name a {what}: lower-case letters, digits and inner dashes, at most {MAX_LABEL}"
                );
            }
        }
        if self.name.strip_prefix("node-").is_some_and(|n| n.parse::<u8>().is_ok()) {
            bail!("a pod called `{}` would be taken for a node: choose another name", self.name);
        }
        Ok(())
    }
}

/// A pod of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// Its container, as the CNI plugin knows it.
    pub container_id: String,
    /// Its addresses, IPv4 first; empty before ADD has answered.
    pub addresses: Vec<IpAddr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Named ports.
    pub ports: Vec<Port>,
}

impl Pod {
    pub(crate) fn planned(spec: &PodSpec, node: &str) -> Self {
        // No two containers ever have the same one, in this lab or a later one.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            node: node.into(),
            container_id: format!("{}-{:x}", spec.name, now.as_nanos()),
            addresses: Vec::new(),
            labels: spec.labels.clone(),
            ports: spec.ports.clone(),
        }
    }

    /// Name of its network namespace.
    #[must_use]
    pub fn netns(&self) -> String {
        pod_netns(&self.name)
    }

    /// The pod as an end of a probe.
    ///
    /// # Errors
    /// When its network namespace is gone.
    pub fn place(&self) -> Result<Place> {
        Place::new(&self.name, &self.netns(), self.addresses.clone())
    }
}

/// A pod that was added, and how.
#[derive(Debug)]
pub struct Added {
    /// The pod.
    pub pod: Pod,
    /// What the plugin printed: the CNI result.
    pub result: Value,
    /// Time from the plugin's start to its end.
    pub cni: Duration,
    /// Every step, that one included.
    pub steps: Vec<Step>,
}

/// A call of the CNI plugin, as a container runtime makes it.
#[derive(Debug, Clone)]
pub struct CniCall {
    /// ADD, DEL or VERSION.
    pub command: &'static str,
    /// The configuration on its standard input.
    pub config: Value,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; absent for a namespace that is gone.
    pub netns: Option<String>,
    /// `CNI_ARGS`.
    pub args: String,
}

impl CniCall {
    /// The call for `pod` on its node.
    #[must_use]
    pub fn of(command: &'static str, pod: &Pod, paths: &NodePaths) -> Self {
        Self {
            command,
            config: network(paths),
            container_id: pod.container_id.clone(),
            netns: Some(netns::path_of(&pod.netns()).display().to_string()),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                pod.namespace, pod.name, pod.container_id, pod.container_id
            ),
        }
    }

    /// Executes the plugin of `bin_dir` in the node's namespace and gives what it printed and how long it took. Null for empty output.
    ///
    /// # Errors
    /// When it can not be started or exits with an error; the text has the plugin's own words.
    pub fn run(&self, bin_dir: &Path, node: &Node) -> Result<(Value, Duration)> {
        let what = || format!("CNI {} for {}", self.command, self.container_id);
        let mut command = Command::new(bin_dir.join("weft-cni"));
        command
            .env_clear()
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(netns) = &self.netns {
            command.env("CNI_NETNS", netns);
        }
        let config = self.config.to_string();
        let inside = netns::open(netns::path_of(&node.netns())).with_context(what)?;
        let begin = Instant::now();
        let mut child = netns::spawn_in(inside.as_fd(), &mut command).with_context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that ends before it has read says why on its output.
            drop(stdin.write_all(config.as_bytes()));
        }
        let output = child.wait_with_output().with_context(what)?;
        let took = begin.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed ({}): {} {}", what(), output.status, text.trim(), words.trim());
        }
        let result = if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("{}: the plugin prints no JSON: {text}", what()))?
        };
        Ok((result, took))
    }
}

/// What a runtime makes of the installed configuration for its one plugin (specification section 4): name and version of the list in
/// the plugin's object. An agent that installs nothing (`--cni-install no`) has left it to us.
fn network(paths: &NodePaths) -> Value {
    let installed = fs::read(paths.conflist()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let Some(list) = installed else {
        return json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentSocket": paths.cni_socket(),
        });
    };
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    // The newest, as libcni from 1.2 on takes it.
    plugin["cniVersion"] =
        list["cniVersions"].as_array().and_then(|all| all.last()).unwrap_or(&list["cniVersion"]).clone();
    plugin
}

/// The addresses in a CNI result, without their prefix lengths, IPv4 first.
pub(crate) fn addresses_in(result: &Value) -> Result<Vec<IpAddr>> {
    let list = result.get("ips").and_then(Value::as_array).context("the CNI result names no addresses")?;
    let mut addresses = list
        .iter()
        .map(|ip| {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            text.split('/').next().unwrap_or_default().parse().with_context(|| format!("`{text}` in the CNI result"))
        })
        .collect::<Result<Vec<IpAddr>>>()?;
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_LABEL).contains(&name.len()) && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_from_its_short_form() {
        let port: Port = "http=tcp/80".parse().unwrap();
        assert_eq!(port, Port { name: "http".into(), protocol: "TCP".into(), port: 80 });
        for bad in ["http", "http=80", "http=TCP", "http=ICMP/1", "=TCP/1", "http=TCP/70000"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_kubernetes_refuses_or_a_node_has_are_refused() {
        for bad in ["", "-a", "a-", "A", "a.b", "node-1", "a/b"] {
            assert!(PodSpec::named(bad).check().is_err(), "{bad}");
        }
        PodSpec::named("node-web").check().unwrap();
    }

    #[test]
    fn addresses_come_ipv4_first_without_prefix() {
        let result = json!({"ips": [{"address": "fd10::2/128"}, {"address": "10.244.1.2/32"}]});
        let expected: [IpAddr; 2] = ["10.244.1.2".parse().unwrap(), "fd10::2".parse().unwrap()];
        assert_eq!(addresses_in(&result).unwrap(), expected);
        addresses_in(&json!({})).unwrap_err();
    }
}
