//! Brings a cluster up, talks to it, takes it down.
mod life;

use std::{
    env, fs,
    io::Write as _,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use serde_json::Value;

pub use self::life::Halted;

use crate::{
    api::Api,
    clean, files,
    init::Unit,
    layout::{
        CONTROL_PLANE, Families, NODE_DEVICE, ROOT, Ranges, WEFT_IMAGE, api_server, kubeconfig, logs, node_addresses,
        node_name, node_netns, ranges,
    },
    network, node,
    node::{hyperkube, images, imported},
    wait::until,
};

/// As long as a cluster may take to come up on a busy machine.
pub const UP_LIMIT: Duration = Duration::from_secs(120);

/// Names the directory of the CNI project's own programs.
const REFERENCE: &str = "WEFT_CNI_REFERENCE";
/// Keeps pods off a node that has no agent yet.
pub const TAINT: &str = "weft.dev/agent-not-ready";
/// The plugin that containerd 1.x calls itself for every pod, whoever makes the network: a node's distribution brings it.
pub const LOOPBACK: &str = "loopback";
/// Names the Helm chart that installs Weft.
const CHART: &str = "WEFT_CLUSTER_CHART";
/// The namespace that Weft is installed in.
pub const NAMESPACE: &str = "kube-system";

/// Who connects pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Network {
    /// Weft, installed by deploy/weft.yaml
    #[default]
    Weft,
    /// The CNI project's own bridge plugin, with a route to each node
    Reference,
    /// Nobody: nodes stay NotReady until a network is installed
    None,
}

/// What cluster to bring up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How many nodes, from 1.
    pub nodes: u8,
    /// Who connects pods.
    pub network: Network,
    /// Which addresses there are.
    pub families: Families,
    /// Who gives nodes their ranges of pods' addresses.
    pub ranges: Ranges,
}

impl Default for Config {
    fn default() -> Self {
        Self { nodes: 2, network: Network::default(), families: Families::default(), ranges: Ranges::default() }
    }
}

/// A cluster that is up. It goes with this value, unless it is [kept](Self::keep).
#[derive(Debug)]
pub struct Cluster {
    nodes: u8,
    units: Vec<Child>,
    kept: bool,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept {
            // A test that fails says why; this would hide it.
            if let Err(e) = self.take_down() {
                eprintln!("the cluster did not go whole: {e:#}");
            }
        }
    }
}

impl Cluster {
    /// Brings a cluster up; it is usable when this returns. What a crashed one has left behind goes first.
    ///
    /// # Errors
    /// When one is up already, a program is missing, or a part does not come up in time. Nothing stays then.
    pub fn up(config: Config, mut step: impl FnMut(&str)) -> Result<Self> {
        if !clean::processes(&clean::namespaces()?)?.is_empty() {
            bail!("a cluster is up on this machine: take it down by `cargo xtask cluster down`");
        }
        clean::everything()?;
        hyperkube()?;
        let mut cluster = Self { nodes: config.nodes, units: Vec::new(), kept: false };
        let begin = Instant::now();
        fs::create_dir_all(ROOT).with_context(|| format!("make {ROOT}"))?;
        config.families.keep().context("note the families of addresses")?;
        config.ranges.keep().context("note who gives nodes their ranges")?;
        cluster.bring_up(config.network, &mut |what| {
            step(&format!("{:>5.1} s  {what}", begin.elapsed().as_secs_f64()));
        })?;
        Ok(cluster)
    }

    /// The cluster that somebody else has brought up.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> Result<Self> {
        network::open(CONTROL_PLANE)?;
        let names = clean::namespaces()?;
        let nodes = u8::try_from(names.len().saturating_sub(1)).context("count the nodes")?;
        Ok(Self { nodes, units: Vec::new(), kept: true })
    }

    /// Leaves it as it is when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Takes down the cluster of this machine, or what a crashed one has left behind.
    ///
    /// # Errors
    /// When something does not go.
    pub fn down() -> Result<()> {
        clean::everything()
    }

    fn take_down(&mut self) -> Result<()> {
        let outcome = clean::everything();
        for unit in &mut self.units {
            unit.wait().context("wait for the end of a unit")?;
        }
        outcome
    }

    fn bring_up(&mut self, network: Network, step: &mut dyn FnMut(&str)) -> Result<()> {
        clean::note_directory()?;
        files::write(self.nodes)?;
        node::provide_images()?;
        images()?;
        network::up(self.nodes)?;
        step("network namespaces wired");
        let units = [Unit::ControlPlane].into_iter().chain((1..=self.nodes).map(Unit::Node));
        self.units = units.map(start).collect::<Result<_>>()?;
        self.await_registered().context("the nodes do not come up")?;
        step("nodes registered");
        self.await_images()?;
        step("images imported");
        match network {
            Network::None => {}
            Network::Reference => self.install_reference()?,
            Network::Weft => self.install_weft()?,
        }
        if network != Network::None {
            self.await_ready(UP_LIMIT)?;
            step("nodes Ready");
        }
        // Without it pods are refused.
        until("service account `default`", UP_LIMIT, || self.kubectl(&["get", "serviceaccount", "default"]).map(Some))?;
        step("usable");
        Ok(())
    }

    /// Every node has an object, with its part of the pods' addresses.
    fn await_registered(&mut self) -> Result<()> {
        let nodes = usize::from(self.nodes);
        let units: Vec<_> = [Unit::ControlPlane].into_iter().chain((1..=self.nodes).map(Unit::Node)).collect();
        let by_hand = Ranges::of_cluster() == Ranges::ByHand;
        until("registered nodes", UP_LIMIT, || {
            for (child, unit) in self.units.iter_mut().zip(&units) {
                if let Some(status) = child.try_wait().context("look at a unit")? {
                    // Nothing will come any more, so nothing is waited for.
                    return Ok(Some(Err(anyhow::anyhow!("{} has ended ({status}): {}", unit.name(), said(*unit)))));
                }
            }
            let objects = parse(&run_kubectl(&["get", "nodes", "-o", "json"], None)?)?;
            let ranges = |n: &Value| by_hand || n["spec"]["podCIDRs"].as_array().is_some_and(|c| !c.is_empty());
            let count = objects["items"].as_array().map_or(0, |items| items.iter().filter(|n| ranges(n)).count());
            Ok((count == nodes).then_some(Ok(())))
        })??;
        if by_hand { (1..=self.nodes).try_for_each(|number| self.give_ranges(number, &ranges(number))) } else { Ok(()) }
    }

    fn await_images(&self) -> Result<()> {
        let archives = images()?;
        until("images on all nodes", UP_LIMIT, || {
            let on_all = |archive: &PathBuf| (1..=self.nodes).all(|number| imported(number, archive).exists());
            Ok(archives.iter().all(on_all).then_some(()))
        })
    }

    /// Waits until all nodes are Ready.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn await_ready(&self, limit: Duration) -> Result<()> {
        until("Ready nodes", limit, || {
            let nodes = self.get(&["nodes"])?;
            let ready = |node: &Value| {
                let conditions = node["status"]["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
            };
            Ok(nodes["items"].as_array().is_some_and(|all| all.iter().all(ready)).then_some(()))
        })
        .with_context(|| {
            let objects = self.kubectl(&["get", "pods,nodes", "-A", "-o", "wide"]).unwrap_or_default();
            let agent = self.kubectl(&["logs", "-n", NAMESPACE, "daemonset/weft", "--tail=5"]).unwrap_or_default();
            format!("{objects}{agent}")
        })
    }

    /// What a network of the simplest kind does: a bridge for each node's pods, and routes to the others'.
    fn install_reference(&self) -> Result<()> {
        let ranges = (1..=self.nodes).map(|number| self.pod_cidrs(number)).collect::<Result<Vec<_>>>()?;
        for number in 1..=self.nodes {
            let root = self.install_plugins(number, &["bridge", "host-local", "portmap", LOOPBACK])?;
            let mut routes = String::new();
            for (other, cidrs) in (1..=self.nodes).zip(&ranges).filter(|(other, _)| *other != number) {
                let (v4, v6) = node_addresses(other);
                for cidr in cidrs {
                    let via: IpAddr = if cidr.contains(':') { v6.into() } else { v4.into() };
                    routes.push_str(&format!("route add {cidr} via {via} dev {NODE_DEVICE}\n"));
                }
            }
            network::ip(&node_netns(number), &routes)?;
            let own = ranges.get(usize::from(number) - 1).context("a node's ranges")?;
            let ranges: Vec<Value> = own.iter().map(|cidr| serde_json::json!([{"subnet": cidr}])).collect();
            let list = serde_json::json!({"cniVersion": "1.0.0", "name": "reference", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                 "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}}]});
            files::write_file(&root.join("etc/cni/net.d/10-reference.conflist"), &list.to_string())?;
        }
        Ok(())
    }

    /// Gives a node plugins of the CNI project's own; gives the node's root.
    fn install_plugins(&self, number: u8, plugins: &[&str]) -> Result<PathBuf> {
        let from = PathBuf::from(env::var_os(REFERENCE).with_context(|| format!("{REFERENCE} is not set"))?);
        let root = self.node_root(number)?;
        for plugin in plugins {
            fs::copy(from.join(plugin), root.join("opt/cni/bin").join(plugin))
                .with_context(|| format!("install {plugin}"))?;
        }
        Ok(root)
    }

    fn install_weft(&self) -> Result<()> {
        (1..=self.nodes).try_for_each(|number| self.install_plugins(number, &[LOOPBACK]).map(drop))?;
        // As whoever makes nodes does it (docs/install.md); the agent takes it away.
        self.kubectl(&["taint", "nodes", "--all", &format!("{TAINT}=:NoSchedule")])?;
        // Nothing serves Services here. And not every machine gives its containers CAP_SYS_RESOURCE, which new kernels do not ask for.
        let servers = format!("apiServers={{{}}}", api_server());
        let capabilities = "capabilities={BPF,PERFMON,NET_ADMIN,NET_RAW,SYS_ADMIN}";
        self.apply(&chart(&["--set", &servers, "--set", capabilities])?)
    }

    /// Takes what Weft has put on a node away, by a pod of Weft's image on it; gives what that said. Weft itself is deleted already.
    ///
    /// # Errors
    /// When something could not be taken away.
    pub fn uninstall(&self, number: u8) -> Result<String> {
        self.kubectl(&[
            "debug",
            &format!("node/{}", node_name(number)),
            "--profile=sysadmin",
            &format!("--image={WEFT_IMAGE}"),
            "--attach",
            "--quiet",
            "--",
            "/usr/bin/weft",
            "uninstall",
            "--node",
            "--state-dir=/host/run/weft/state",
            "--run-dir=/host/run/weft",
            "--cache-dir=/host/var/lib/weft",
            "--bpffs=/host/sys/fs/bpf",
            "--cni-bin-dir=/host/opt/cni/bin",
            "--cni-conf-dir=/host/etc/cni/net.d",
        ])
    }

    /// How many nodes it has.
    #[must_use]
    pub fn nodes(&self) -> u8 {
        self.nodes
    }

    /// The ranges of addresses that a node's pods have.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn pod_cidrs(&self, number: u8) -> Result<Vec<String>> {
        let node = self.get(&["node", &node_name(number)])?;
        let cidrs = node["spec"]["podCIDRs"].as_array().context("a node has no podCIDRs")?;
        Ok(cidrs.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Gives a node its ranges, where the controllers give none. The API takes them once for an object.
    ///
    /// # Errors
    /// When the API does not take them.
    pub fn give_ranges(&self, number: u8, ranges: &[String]) -> Result<()> {
        let patch = serde_json::json!({"spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}});
        self.kubectl(&["patch", "node", &node_name(number), "--patch", &patch.to_string()]).map(drop)
    }

    /// What kubectl prints, called by the administrator; it must end with 0.
    ///
    /// # Errors
    /// When it does not; the text has its own words.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run_kubectl(arguments, None)
    }

    /// Objects, as `kubectl get … -o json` has them.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        parse(&self.kubectl(&[&["get", "-o", "json"], what].concat())?)
    }

    /// Makes these objects what the text says.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn apply(&self, manifests: &str) -> Result<()> {
        run_kubectl(&["apply", "--server-side", "-f", "-"], Some(manifests)).map(drop)
    }

    /// Starts a program as somebody does who sits at another machine: with the administrator's kubeconfig, and a way to the API server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn at_workstation(&self, command: &mut Command) -> Result<Child> {
        spawn_in_control_plane(command.env("KUBECONFIG", kubeconfig("admin")))
    }

    /// Starts kubectl as the administrator; what it prints is read by the caller.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_kubectl(&self, arguments: &[&str]) -> Result<Child> {
        spawn_in_control_plane(kubectl_command()?.args(arguments).stdout(Stdio::piped()))
    }

    /// Runs lines of `nft -f -` where the nodes' wires meet.
    ///
    /// # Errors
    /// When nft does not take them.
    pub fn on_the_wire(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("nft");
        let child = command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn_in_control_plane(child)?;
        child.stdin.take().context("nft's input")?.write_all(lines.as_bytes()).context("write to nft")?;
        let output = child.wait_with_output().context("wait for nft")?;
        if !output.status.success() {
            bail!("nft failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The number on this machine of a node's first process.
    ///
    /// # Errors
    /// When the node is not up.
    pub fn node_pid(&self, number: u8) -> Result<i32> {
        let first = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
            let mut numbers = line.split_ascii_whitespace().rev();
            numbers.next() == Some("1") && numbers.next().is_some()
        };
        let found = clean::processes(&[node_netns(number)])?.into_iter().find(first);
        found.with_context(|| format!("{} is not up", node_name(number)))
    }

    /// The root of a node's files, seen from this machine.
    ///
    /// # Errors
    /// When the node is not up.
    pub fn node_root(&self, number: u8) -> Result<PathBuf> {
        Ok(Path::new("/proc").join(self.node_pid(number)?.to_string()).join("root"))
    }

    /// The API, for who asks it often.
    ///
    /// # Errors
    /// When the way there does not open.
    pub fn api(&self) -> Result<Api> {
        Api::start()
    }

    /// Requests to the API by Weft's agents that are no watches, since the cluster is up: verb and URI.
    ///
    /// # Errors
    /// When the API server's log cannot be read.
    pub fn asked_by_weft(&self) -> Result<Vec<String>> {
        let file = logs("control-plane").join("audit.log");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let word = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let asked = events.filter(|e| e["verb"] != "watch" && e["stage"] == "ResponseComplete");
        Ok(asked.map(|e| format!("{} {}", word(&e, "verb"), word(&e, "requestURI"))).collect())
    }

    /// A command that runs in a node.
    ///
    /// # Errors
    /// When the node is not up.
    pub fn in_node(&self, number: u8, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.node_pid(number)?.to_string(), "--", program]);
        Ok(command)
    }
}

/// What Helm makes of Weft's chart, with these further arguments.
///
/// # Errors
/// When Helm does not take it.
pub fn chart(arguments: &[&str]) -> Result<String> {
    let chart = env::var_os(CHART).with_context(|| format!("{CHART} names no directory of Weft's chart"))?;
    let mut helm = Command::new(node::helm()?);
    // Without a cluster Helm does not know for which version it works.
    helm.args(["template", "weft", "--namespace", NAMESPACE, "--kube-version", "1.35"]).args(arguments).arg(chart);
    files::succeeds(&mut helm)
}

/// Starts kubectl as the administrator, for who sits at the terminal.
///
/// # Errors
/// When there is no cluster.
pub fn kubectl(arguments: &[String]) -> Result<Child> {
    spawn_in_control_plane(kubectl_command()?.args(arguments))
}

/// A command that runs in the API server's network, as the cluster's administrator.
///
/// # Errors
/// When there is no cluster.
pub fn beside_api_server(program: &str) -> Result<Command> {
    network::open(CONTROL_PLANE)?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns::path_of(CONTROL_PLANE).display())).args(["--", program]);
    command.env("KUBECONFIG", kubeconfig("admin"));
    Ok(command)
}

/// In the control plane's network namespace, where the API server is.
pub(crate) fn spawn_in_control_plane(command: &mut Command) -> Result<Child> {
    let netns = network::open(CONTROL_PLANE)?;
    netns::spawn_in(netns.as_fd(), command).with_context(|| format!("start {command:?}"))
}

/// kubectl with the administrator's kubeconfig.
pub(crate) fn kubectl_command() -> Result<Command> {
    let mut command = Command::new(hyperkube()?);
    command.arg("kubectl").env("KUBECONFIG", kubeconfig("admin"));
    Ok(command)
}

fn run_kubectl(arguments: &[&str], input: Option<&str>) -> Result<String> {
    let mut command = kubectl_command()?;
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let what = || format!("kubectl {}", arguments.join(" "));
    let mut child = spawn_in_control_plane(&mut command)?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
        pipe.write_all(text.as_bytes()).with_context(what)?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output().with_context(what)?;
    if !status.success() {
        bail!("{} failed ({status}): {}", what(), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("read kubectl's JSON")
}

/// Starts the first process of a unit.
fn start(unit: Unit) -> Result<Child> {
    let what = || format!("start {}", unit.name());
    let dir = logs(&unit.name());
    fs::create_dir_all(&dir).with_context(what)?;
    let log = fs::File::create(dir.join("init.log")).with_context(what)?;
    let mut command = Command::new(program()?);
    command.args(["start", &unit.name()]).stdin(Stdio::null());
    command.stdout(log.try_clone().with_context(what)?).stderr(log);
    netns::spawn_in(network::open(&unit.netns())?.as_fd(), &mut command).with_context(what)
}

/// `weft-cluster`: this program, or the one beside our others if this is a test.
fn program() -> Result<PathBuf> {
    let own = env::current_exe().context("find this program")?;
    if own.file_name().is_some_and(|name| name == "weft-cluster") {
        return Ok(own);
    }
    let directory = env::var_os("WEFT_BIN_DIR").context("WEFT_BIN_DIR does not name the directory of weft-cluster")?;
    Ok(PathBuf::from(directory).join("weft-cluster"))
}

/// The last words of a unit's first process.
fn said(unit: Unit) -> String {
    let text = fs::read_to_string(logs(&unit.name()).join("init.log")).unwrap_or_default();
    text.trim_end().lines().next_back().unwrap_or_default().to_owned()
}
