//! The first process of a unit: of the control plane, or of a node. It starts the unit's programs, starts them anew when they end, and
//! takes in what their children leave behind.
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, setsid},
};

use crate::{cgroups, control_plane, layout, node};

/// What a process can be the first one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// etcd, API server, controllers, scheduler.
    ControlPlane,
    /// Kubelet and container runtime of the node of this number.
    Node(u8),
}

impl Unit {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::ControlPlane => "control-plane".to_owned(),
            Self::Node(number) => layout::node_name(number),
        }
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(self) -> String {
        match self {
            Self::ControlPlane => layout::CONTROL_PLANE.to_owned(),
            Self::Node(number) => layout::node_netns(number),
        }
    }

    /// The unit that is called so.
    ///
    /// # Errors
    /// When none can be.
    pub fn called(name: &str) -> Result<Self> {
        let number = name.strip_prefix("node-").and_then(|n| n.parse().ok());
        match (name, number) {
            ("control-plane", _) => Ok(Self::ControlPlane),
            (_, Some(number)) if (1..=layout::MAX_NODES).contains(&number) => Ok(Self::Node(number)),
            _ => bail!("no node `{name}`: they are called node-1, node-2 …"),
        }
    }
}

/// Enters the unit's cgroups and becomes `unshare`, whose child is the first process of new namespaces. This process is in the unit's
/// network namespace already.
///
/// # Errors
/// When a cgroup can not be entered, or there is no `unshare`.
pub fn start(unit: Unit) -> Result<Infallible> {
    // Who brought the cluster up may go, and his terminal with him.
    setsid().context("leave the terminal")?;
    cgroups::enter(&unit.name())?;
    let own = std::env::current_exe().context("find this program")?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
    unshare.args(["--propagation", "private"]).arg(own).args(["init", &unit.name()]);
    Err(unshare.exec()).context("start unshare (of util-linux)")
}

/// The first process of a unit. It ends with the unit.
///
/// # Errors
/// When the unit can not be furnished or a program can not be started.
pub fn run(unit: Unit) -> Result<Infallible> {
    if std::process::id() != 1 {
        bail!("init is for the first process of a process namespace: `weft-cluster up` starts it");
    }
    let programs = match unit {
        Unit::ControlPlane => control_plane::start()?,
        Unit::Node(number) => node::start(number)?,
    };
    programs.keep()
}

/// A program that is to run as long as the unit.
struct Program {
    name: String,
    words: Vec<String>,
}

/// The programs of a unit that run.
pub(crate) struct Programs {
    logs: PathBuf,
    running: BTreeMap<Pid, Program>,
}

impl Programs {
    /// None yet; they will log into this directory.
    pub(crate) fn new(logs: PathBuf) -> Self {
        Self { logs, running: BTreeMap::new() }
    }

    /// Starts a program. Its output goes to the end of NAME.log.
    pub(crate) fn start(&mut self, name: &str, words: &[&str]) -> Result<()> {
        self.spawn(Program { name: name.to_owned(), words: words.iter().map(|w| (*w).to_owned()).collect() })
    }

    fn spawn(&mut self, program: Program) -> Result<()> {
        let what = || format!("start {}", program.name);
        let file = self.logs.join(format!("{}.log", program.name));
        let log = fs::OpenOptions::new().create(true).append(true).open(file).with_context(what)?;
        let (first, arguments) = program.words.split_first().with_context(what)?;
        let mut command = Command::new(first);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().with_context(what)?).stderr(log);
        let child = command.spawn().with_context(what)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).with_context(what)?);
        self.running.insert(pid, program);
        Ok(())
    }

    /// Waits for the end of processes, for ever, and starts anew those that are to run.
    fn keep(mut self) -> Result<Infallible> {
        loop {
            let ended = waitpid(None::<Pid>, None).context("wait for a process")?;
            let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = ended else { continue };
            let Some(program) = self.running.remove(&pid) else { continue };
            eprintln!("{} has ended, and is started anew: {ended:?}", program.name);
            // One that can not run must not take the processor.
            thread::park_timeout(Duration::from_millis(200));
            self.spawn(program)?;
        }
    }
}
