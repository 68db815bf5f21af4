//! What `weft doctor` looks at: the thin edge to the node. What it makes of it is in [`rules`](super::rules).
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use crate::{
    api::types::{MissingFeature, NodeStatus, Status},
    cli::client::Client,
    datapath::features::Features,
    error_chain,
    install::configs::{self, ConfigFile},
    netlink::{
        Socket, link,
        nftables::{self, BaseChain, Rule},
    },
};

/// The FORWARD chain of an older iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Legacy {
    /// What `iptables-legacy -S FORWARD` prints.
    Rules(String),
    /// It is there, and there is no program to read it.
    Unreadable,
}

/// The node as it is. What could not be read is none.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// `uname -r`.
    pub(super) release: String,
    /// By path below `/proc/sys`.
    pub(super) sysctls: BTreeMap<&'static str, String>,
    /// Base chains, or why they cannot be read.
    pub(super) chains: Result<Vec<BaseChain>, String>,
    pub(super) rules: Vec<Rule>,
    /// Program that would change it, with its chain.
    pub(super) legacy: Vec<(&'static str, Legacy)>,
    /// The directory, and its configurations in the runtime's order.
    pub(super) cni_dir: String,
    pub(super) cni_files: Vec<ConfigFile>,
    /// Options of the kernel that are built in or modules.
    pub(super) config: Option<BTreeSet<String>>,
    /// Names of file systems that the kernel has now.
    pub(super) filesystems: BTreeSet<String>,
    pub(super) links: Vec<link::Link>,
    /// UDP ports that are bound, by programs or by the kernel's own tunnels.
    pub(super) udp_ports: BTreeSet<u16>,
    /// The agent's answer, or why there is none.
    pub(super) agent: Result<Status, String>,
    pub(super) own_node: Option<NodeStatus>,
    /// By name, whether the kernel has it: as the agent found, or as found here without one.
    pub(super) features: BTreeMap<String, bool>,
    pub(super) missing_features: Vec<MissingFeature>,
}

pub(super) const SYSCTLS: [&str; 3] =
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/core/bpf_jit_enable"];

/// Where runtimes look for CNI configurations unless they are told otherwise.
const CNI_DIR: &str = "/etc/cni/net.d";

/// Looks.
pub(super) async fn gather(client: &Client, cni_dir: Option<&Path>) -> Facts {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = text("/proc/sys/kernel/osrelease").trim().to_owned();
    let sysctl = |name| Some((name, fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().to_owned()));
    let agent = client.get::<Status>("/v1/status").await.map_err(|e| e.to_string());
    let nodes: Vec<NodeStatus> =
        if agent.is_ok() { client.get("/v1/nodes").await.unwrap_or_default() } else { Vec::new() };
    let (features, missing_features) = match &agent {
        Ok(status) => (status.datapath.features.clone(), status.datapath.missing_features.clone()),
        Err(_) => {
            let found = Features::try_all(&[]);
            (found.by_name(), found.missing())
        }
    };
    let known = agent.as_ref().ok().and_then(|s| s.install.conflist.parent()).filter(|dir| dir.is_absolute());
    let cni_dir = cni_dir.or(known).unwrap_or(Path::new(CNI_DIR)).to_owned();
    Facts {
        sysctls: SYSCTLS.into_iter().filter_map(sysctl).collect(),
        chains: nftables::base_chains().map_err(|e| error_chain(&e)),
        rules: nftables::rules().unwrap_or_default(),
        legacy: legacy(),
        cni_dir: cni_dir.display().to_string(),
        cni_files: configs::list(&cni_dir),
        config: config(&release),
        filesystems: text("/proc/filesystems")
            .lines()
            .filter_map(|l| Some(l.split_whitespace().next_back()?.to_owned()))
            .collect(),
        links: Socket::open().and_then(|mut socket| link::list(&mut socket)).unwrap_or_default(),
        udp_ports: [text("/proc/self/net/udp"), text("/proc/self/net/udp6")]
            .iter()
            .flat_map(|t| udp_ports(t))
            .collect(),
        agent,
        own_node: nodes.into_iter().find(|n| n.own),
        features,
        missing_features,
        release,
    }
}

/// Ports in a table of `/proc/net/udp`. The kernel's own sockets stand there like those of programs.
pub(super) fn udp_ports(table: &str) -> BTreeSet<u16> {
    let port = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    table.lines().skip(1).filter_map(port).collect()
}

fn legacy() -> Vec<(&'static str, Legacy)> {
    let mut found = Vec::new();
    for (names, programs) in [
        ("/proc/self/net/ip_tables_names", ["iptables-legacy", "iptables"]),
        ("/proc/self/net/ip6_tables_names", ["ip6tables-legacy", "ip6tables"]),
    ] {
        if !fs::read_to_string(names).unwrap_or_default().lines().any(|l| l == "filter") {
            continue;
        }
        let read = |program: &'static str| {
            // Under the plain name it may be the one that writes nftables' rules, and sees no others.
            let version = Command::new(program).arg("--version").output().ok()?;
            if String::from_utf8_lossy(&version.stdout).contains("nf_tables") {
                return None;
            }
            let output = Command::new(program).args(["-S", "FORWARD"]).output().ok().filter(|o| o.status.success())?;
            Some((program, Legacy::Rules(String::from_utf8_lossy(&output.stdout).into_owned())))
        };
        found.push(programs.into_iter().find_map(read).unwrap_or((programs[0], Legacy::Unreadable)));
    }
    found
}

/// The kernel's configuration as its package or the kernel itself tells it.
fn config(release: &str) -> Option<BTreeSet<String>> {
    let packed = || {
        Path::new("/proc/config.gz").exists().then_some(())?;
        let output = Command::new("gzip").args(["-dc", "/proc/config.gz"]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    Some(options(&packed().or_else(|| fs::read_to_string(format!("/boot/config-{release}")).ok())?))
}

/// Options that are set to `y` or `m`, without their `CONFIG_`.
pub(super) fn options(text: &str) -> BTreeSet<String> {
    let there = |line: &str| {
        let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
        ["y", "m"].contains(&value).then(|| name.to_owned())
    };
    text.lines().filter_map(there).collect()
}
