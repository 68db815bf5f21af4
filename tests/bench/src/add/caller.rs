//! One CNI call, as a container runtime makes it, and many at once.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::netns::Netns;

/// Stack of a thread that makes one call: it only starts a process.
const STACK: usize = 256 << 10;

/// What is asked of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Say which versions of the specification it speaks: a process that starts and ends.
    Version,
    /// Connect a pod.
    Add,
    /// Disconnect it.
    Del,
}

impl Verb {
    /// As it stands in CNI_COMMAND.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// A pod that is to be connected: a namespace and a name.
#[derive(Debug)]
pub struct Pod {
    /// CNI_CONTAINERID.
    pub id: String,
    netns: Netns,
}

impl Pod {
    /// Makes the namespace.
    pub fn make(name: &str) -> Result<Self> {
        Ok(Self { id: format!("weft-bench-{name}"), netns: Netns::create(name)? })
    }
}

/// A plugin and the node that it is called on.
#[derive(Debug)]
pub struct Caller {
    /// The plugin's program.
    pub plugin: PathBuf,
    /// The network configuration, as it goes to the plugin's standard input.
    pub config: String,
    /// The node's network namespace.
    pub node: Netns,
}

impl Caller {
    /// Calls the plugin once; how long its process ran, milliseconds.
    pub fn call(&self, verb: Verb, pod: &Pod) -> Result<f64> {
        self.node.enter(|| self.execute(verb, pod))
    }

    /// Makes all calls at the same time; how long each one's process ran, milliseconds, in the order of `calls`.
    pub fn at_once(&self, calls: &[(Verb, &Pod)]) -> Result<Vec<f64>> {
        let gate = RwLock::new(());
        self.node.enter(|| {
            thread::scope(|scope| {
                // Dropped when all threads are there, or when one could not be made.
                let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
                let mut threads = Vec::new();
                for &(verb, pod) in calls {
                    let gate = &gate;
                    let call = move || {
                        drop(gate.read().unwrap_or_else(PoisonError::into_inner));
                        self.execute(verb, pod)
                    };
                    // Threads begin in the namespace of the one that makes them.
                    let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, call);
                    threads.push(thread.context("start a thread for a call")?);
                }
                drop(closed);
                let ended = |thread: thread::ScopedJoinHandle<'_, Result<f64>>| {
                    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread that calls a plugin has panicked")))
                };
                // Each is waited for before the first error is told, so that no call is left running.
                threads.into_iter().map(ended).collect::<Vec<_>>().into_iter().collect()
            })
        })
    }

    /// From the node's namespace.
    fn execute(&self, verb: Verb, pod: &Pod) -> Result<f64> {
        let start = Instant::now();
        let mut child = Command::new(&self.plugin)
            .env_clear()
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")))
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=weft-bench;K8S_POD_NAME={}", pod.id))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.plugin.display()))?;
        // A plugin that ends before it has read says why on its output.
        drop(child.stdin.take().context("the plugin has no standard input")?.write_all(self.config.as_bytes()));
        let output = child.wait_with_output()?;
        let took = start.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            bail!(
                "{} of {} for {} failed with {}: {}",
                verb.as_str(),
                self.plugin.display(),
                pod.id,
                output.status,
                said.trim()
            );
        }
        Ok(took.as_secs_f64() * 1e3)
    }
}
