//! Network namespaces of the bench's own, and code that runs in them.
//!
//! A thread enters a namespace and stays there until it ends; it is never taken back. Sockets belong to the namespace
//! of the thread that made them, wherever they are used later, and a child process inherits the namespace of the
//! thread that started it.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use nix::unistd::geteuid;

/// What the names of all our namespaces begin with. Only such namespaces are ever deleted.
pub const PREFIX: &str = "wb-";

/// An abstract socket: the kernel gives its name free when the run ends, however it ends, and no file is left.
const LOCK: &str = "weft-bench";

/// The machine, claimed for one run.
#[derive(Debug)]
pub struct Claim {
    _lock: UnixListener,
    made_directory: bool,
}

/// Claims the machine until the result is dropped, and removes the namespaces that a run left behind that was killed.
pub fn claim() -> Result<Claim> {
    if !geteuid().is_root() {
        bail!("root is needed to make network namespaces: run it with sudo");
    }
    let name = SocketAddr::from_abstract_name(LOCK).context("name the lock")?;
    let lock = match UnixListener::bind_addr(&name) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("another weft-bench runs, and two would measure each other: wait for its end")
        }
        Err(error) => return Err(error).with_context(|| format!("bind the abstract socket {LOCK}")),
    };
    let claim = Claim { _lock: lock, made_directory: !Path::new(netns::DIRECTORY).exists() };
    let stale = remove_stale().context("remove what an earlier run left behind")?;
    if stale > 0 {
        eprintln!("weft-bench: removed {stale} namespaces of a run that was killed");
    }
    Ok(claim)
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.made_directory {
            // Refused, rightly, where somebody else has put a namespace into it meanwhile.
            drop(fs::remove_dir(netns::DIRECTORY));
        }
    }
}

/// A network namespace: one of ours, deleted when dropped, or one that belongs to somebody else.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: OwnedFd,
    ours: Option<String>,
}

impl Netns {
    /// Makes the namespace `wb-<name>` with its loopback device up.
    pub fn create(name: &str) -> Result<Self> {
        let name = format!("{PREFIX}{name}");
        let file = netns::create(&name).with_context(|| format!("make the network namespace {name}"))?;
        let netns = Self { path: netns::path_of(&name), file, ours: Some(name) };
        netns.sh("ip link set lo up")?;
        Ok(netns)
    }

    /// Opens a namespace that somebody else made and will remove.
    pub fn open(path: &Path) -> Result<Self> {
        let file = netns::open(path).with_context(|| format!("open network namespace {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, ours: None })
    }

    /// Runs `f` on a new thread inside the namespace and waits for its result.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::in_netns(self.file.as_fd(), f)
            .with_context(|| format!("enter network namespace {} (root is needed)", self.path.display()))?
    }

    /// Runs one command line, split at blanks, inside the namespace.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.enter(|| sh(line)).with_context(|| format!("in network namespace {}", self.path.display()))
    }

    /// Runs each line of `lines` inside the namespace; empty lines are skipped.
    pub fn script(&self, lines: &str) -> Result<()> {
        lines.lines().map(str::trim).filter(|line| !line.is_empty()).try_for_each(|line| self.sh(line).map(drop))
    }

    /// Sets a sysctl of this namespace; `key` with slashes, below /proc/sys.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display())))
    }

    /// The path the namespace can be opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Packets and bytes that `device` of this namespace received.
    pub fn received(&self, device: &str) -> Result<(u64, u64)> {
        // Not /proc/net: that is the namespace of the process, not of the thread.
        let table =
            self.enter(|| fs::read_to_string("/proc/thread-self/net/dev").context("read the device counters"))?;
        let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let mut fields = line.unwrap_or_default().split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next()) {
            (Some(Ok(bytes)), Some(Ok(packets))) => Ok((packets, bytes)),
            _ => bail!("no counters of a device {device} in {}", self.path.display()),
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Some(name) = &self.ours
            && let Err(error) = delete(name)
        {
            eprintln!("weft-bench: {error:#}; the next run of weft-bench removes it");
        }
    }
}

/// Deletes all our namespaces and returns how many there were. The caller holds the lock, so none is in use.
fn remove_stale() -> Result<usize> {
    let names = netns::names().context("list the network namespaces")?;
    let stale: Vec<_> = names.iter().filter(|name| name.starts_with(PREFIX)).collect();
    stale.iter().try_for_each(|name| delete(name))?;
    Ok(stale.len())
}

fn delete(name: &str) -> Result<()> {
    netns::delete(name).with_context(|| format!("delete the network namespace {name}"))
}

/// Runs one command line, split at blanks, and returns what it printed. The error holds the command and its own words.
pub fn sh(line: &str) -> Result<String> {
    let mut words = line.split_ascii_whitespace();
    let program = words.next().context("an empty command line")?;
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        // A Ctrl-C in the terminal is for us: a command that takes something down must not be hit by it.
        .process_group(0)
        .output()
        .with_context(|| format!("start `{program}` (cargo xtask setup installs what is missing)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
