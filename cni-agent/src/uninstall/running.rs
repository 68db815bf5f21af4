//! Whether an agent runs on this node.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// An agent runs on this node.
#[derive(Debug, thiserror::Error)]
#[error(
    "an agent runs on this node ({by}), and would make anew what is removed: stop it first (`systemctl stop weft-agent`, or take the \
     node out of its DaemonSet), or say --force if it is none of this node's"
)]
pub struct Running {
    by: String,
}

/// No agent starts in the run directory while this is held.
#[derive(Debug)]
pub struct Alone(#[expect(dead_code, reason = "held")] Option<Flock<fs::File>>);

impl Alone {
    /// Keeps agents away, if none is there.
    ///
    /// # Errors
    /// When one is: it holds the lock of the run directory, or runs in this network namespace with another run directory.
    pub fn on(run_dir: &Path) -> Result<Self, Running> {
        let path = run_dir.join("lock");
        let lock = match fs::OpenOptions::new().write(true).open(&path) {
            Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((_, Errno::EWOULDBLOCK)) => return Err(Running { by: format!("it holds {}", path.display()) }),
                other => other.ok(),
            },
            // An agent that runs has made it.
            Err(_) => None,
        };
        match agent_here() {
            Some(process) => Err(Running { by: format!("process {process}") }),
            None => Ok(Self(lock)),
        }
    }
}

/// The process of an agent in this network namespace: others' are another node's, in a lab or a container.
fn agent_here() -> Option<String> {
    let netns = |process: &Path| fs::read_link(process.join("ns/net"));
    let own = netns(Path::new("/proc/self")).ok()?;
    let processes = fs::read_dir("/proc").ok()?.filter_map(io::Result::ok).map(|e| e.path());
    let is_agent = |process: &PathBuf| {
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "weft-agent")
            && netns(process).is_ok_and(|its| its == own)
    };
    let found = processes.filter(|p| p.join("comm").exists()).find(is_agent)?;
    Some(found.file_name()?.to_string_lossy().into_owned())
}
