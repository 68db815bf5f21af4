//! What a lab command must know of the lab that another one has built.
use std::{fs, io, net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{layout::ROOT, pod::Pod, process::Identity, underlay::Underlay};

/// The file `lab.json`. It is written after every change, so that a crash leaves it true or a step behind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    /// Whose lab it is; rubbish as soon as that process is gone. None: a person's, which lives until `down`.
    pub(crate) owner: Option<Identity>,
    pub(crate) underlay: Underlay,
    /// Directory of the programs.
    pub(crate) bin_dir: PathBuf,
    /// Further arguments of every agent.
    pub(crate) agent_args: Vec<String>,
    pub(crate) nodes: Vec<NodeState>,
    /// It has a world.
    pub(crate) world: bool,
    pub(crate) pods: Vec<Pod>,
    /// /run/netns was not there before and goes with the lab.
    pub(crate) made_netns_dir: bool,
}

/// A node in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeState {
    pub(crate) number: u8,
    pub(crate) name: String,
    /// On the underlay; these are InternalIPs.
    pub(crate) addresses: Vec<IpNet>,
    /// Further InternalIPs.
    pub(crate) listed: Vec<IpAddr>,
    pub(crate) hostile: bool,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Vec<IpNet>,
    pub(crate) agent: Option<Identity>,
}

impl State {
    /// None if there is no lab. What can not be read is no lab either, but leftovers.
    pub(crate) fn read() -> Result<Option<Self>> {
        match fs::read(path()) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path().display())),
        }
    }

    pub(crate) fn write(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("write the lab's state")?;
        write_whole(&path(), &text)
    }

    /// Somebody needs it: a person, or a process that runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.owner.is_none_or(Identity::is_alive)
    }
}

fn path() -> PathBuf {
    PathBuf::from(ROOT).join("lab.json")
}

/// Writes a file so that readers see the old or the new one, never a part; watchers of the directory see only the new name.
pub(crate) fn write_whole(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}
