//! A node and its agent.
use std::{
    fs::{self, File},
    net::IpAddr,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{
    api::{self, Response},
    layout::{NodePaths, node_netns},
    machine,
    probe::Place,
    process::{Held, Identity},
    state::NodeState,
};

/// An agent that is not ready by then will not be. Two at once on one emulated processor have needed more than 20 s, most of it in the verifier.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// Pause between two questions for readiness. The agent's end is seen at once.
const READY_PAUSE: Duration = Duration::from_millis(2);
/// The same in an emulated machine: there a question costs milliseconds, which the agent needs to become ready.
const READY_PAUSE_VM: Duration = Duration::from_millis(25);
/// As much of an agent's log goes into an error.
const LOG_LINES: usize = 15;

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    pub(crate) state: NodeState,
    paths: NodePaths,
    /// The agent, if this process has started it: it has to be waited for.
    child: Option<Child>,
}

impl Node {
    pub(crate) fn new(state: NodeState) -> Self {
        let paths = NodePaths::of(&state.name);
        Self { state, paths, child: None }
    }

    /// `node-1` …
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// It is as nodes in the world are: see [`hostile`](crate::hostile).
    #[must_use]
    pub const fn is_hostile(&self) -> bool {
        self.state.hostile
    }

    /// Its addresses on the underlay, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.state.addresses.iter().map(IpNet::addr).collect()
    }

    /// Whose addresses its pods get, IPv4 first.
    #[must_use]
    pub fn pod_cidrs(&self) -> &[IpNet] {
        &self.state.pod_cidrs
    }

    /// Its directories and files.
    #[must_use]
    pub fn paths(&self) -> &NodePaths {
        &self.paths
    }

    /// Name of its network namespace.
    #[must_use]
    pub fn netns(&self) -> String {
        node_netns(self.state.number)
    }

    /// Process number of its agent; none if it does not run.
    #[must_use]
    pub fn agent_pid(&self) -> Option<i32> {
        self.state.agent.filter(|agent| agent.is_alive()).map(|agent| agent.pid)
    }

    /// What its agent answers to `GET path`.
    ///
    /// # Errors
    /// When it does not answer, or not with 200 and JSON.
    pub fn ask(&self, path: &str) -> Result<Value> {
        api::get_json(&self.paths.api_socket(), path).with_context(|| format!("ask the agent of {}", self.name()))
    }

    /// The node as an end of a probe.
    ///
    /// # Errors
    /// When its namespace is gone.
    pub fn place(&self) -> Result<Place> {
        Place::new(self.name(), &self.netns(), self.addresses())
    }

    /// Last lines of its agent's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.paths.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }

    /// Makes its directories and its BPF file system.
    pub(crate) fn make_directories(&self) -> Result<()> {
        for directory in [self.paths.bpf(), self.paths.run(), self.paths.state(), self.paths.manifests()] {
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        }
        mount(Some("bpf"), &self.paths.bpf(), Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mount a BPF file system on {}", self.paths.bpf().display()))
    }

    /// Starts its agent, which outlives this process, by the program and arguments of `under` if there are any: that must become the agent.
    pub(crate) fn start_agent(&mut self, bin_dir: &Path, further: &[String], under: &[String]) -> Result<()> {
        let what = || format!("start the agent of {}", self.state.name);
        let log = File::options().append(true).create(true).open(self.paths.log()).with_context(what)?;
        let agent = bin_dir.join("weft-agent");
        let mut command = match under {
            [] => Command::new(agent),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(agent);
                command
            }
        };
        command
            .args(["--node-name", &self.state.name, "--log-format", "text"])
            .arg("--manifests")
            .arg(self.paths.manifests())
            .arg("--state-dir")
            .arg(self.paths.state())
            .arg("--run-dir")
            .arg(self.paths.run())
            .arg("--bpffs")
            .arg(self.paths.bpf())
            // Never the machine's own directories.
            .arg("--cni-bin-dir")
            .arg(self.paths.cni_bin())
            .arg("--cni-conf-dir")
            .arg(self.paths.cni_conf())
            .args(further)
            // A lab in a pod is no agent in a pod.
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stdout(log.try_clone().with_context(what)?)
            .stderr(log)
            // A Ctrl-C in the terminal is for the lab, not for the agent.
            .process_group(0);
        let netns = netns::open(netns::path_of(&self.netns())).with_context(what)?;
        let child = netns::spawn_in(netns.as_fd(), &mut command).with_context(what)?;
        let pid = i32::try_from(child.id()).with_context(what)?;
        self.child = Some(child);
        self.state.agent = Some(Identity::of(pid).with_context(what)?);
        fs::write(self.paths.pid(), format!("{pid}\n")).with_context(what)
    }

    /// Directory of the CNI plugin that a runtime on this node calls: where the agent has put it, or `bin_dir`, where it comes from,
    /// with agents that install nothing.
    pub(crate) fn plugin_dir(&self, bin_dir: &Path) -> PathBuf {
        let installed = self.paths.cni_bin();
        if installed.join("weft-cni").exists() { installed } else { bin_dir.to_owned() }
    }

    /// Whether the agent has done with installing. One that could not is an error, unless a runtime has what it needs from before.
    fn is_installed(&self) -> Result<bool> {
        let install = &self.ask("/v1/status")?["install"];
        match install["stage"].as_str() {
            Some("off" | "installed") => Ok(true),
            Some("failed") if self.paths.conflist().exists() => Ok(true),
            Some("failed") => bail!("the agent of {} cannot be installed: {}", self.name(), install["why"]),
            _ => Ok(false),
        }
    }

    /// Waits until the agent says that it forwards packets and has installed itself for a runtime; gives the time since `begin`.
    pub(crate) fn await_ready(&self, begin: Instant) -> Result<Duration> {
        self.await_health(begin, |health| Ok((health.status == 200 && self.is_installed()?).then(|| begin.elapsed())))
    }

    /// Asks the agent how it is until `enough` has an answer to give.
    pub(crate) fn await_health<T>(&self, begin: Instant, enough: impl Fn(Response) -> Result<Option<T>>) -> Result<T> {
        let socket = self.paths.api_socket();
        let deadline = begin + READY_LIMIT;
        let pause = if machine::is_virtual() { READY_PAUSE_VM } else { READY_PAUSE };
        loop {
            let why = match api::get(&socket, "/v1/healthz") {
                Ok(health) => {
                    let why = health.body.clone();
                    if let Some(answer) = enough(health)? {
                        return Ok(answer);
                    }
                    why
                }
                Err(e) => format!("{e:#}"),
            };
            let agent = self.state.agent.and_then(Identity::hold);
            let ended = match &agent {
                None => true,
                Some(agent) => agent.wait(pause)?,
            };
            if ended {
                bail!(
                    "the agent of {} ended before it was ready; its last words ({}):\n{}",
                    self.name(),
                    self.paths.log().display(),
                    self.log_tail()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent of {} is not ready after {} s: {}; its last words ({}):\n{}",
                    self.name(),
                    READY_LIMIT.as_secs(),
                    why.trim(),
                    self.paths.log().display(),
                    self.log_tail()
                );
            }
        }
    }

    /// The agent's process, held; none if it does not run.
    pub(crate) fn hold_agent(&self) -> Option<Held> {
        self.state.agent.and_then(Identity::hold)
    }

    /// Takes note of the agent's end.
    pub(crate) fn agent_ended(&mut self) -> Result<()> {
        self.state.agent = None;
        if let Some(mut child) = self.child.take() {
            child.wait().with_context(|| format!("wait for the agent of {}", self.state.name))?;
        }
        Ok(())
    }
}
