//! Weft on a lab of one node.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::{
    Socket, link,
    monitor::{Event, Monitor},
    names, netns,
};
use lab::{Hostile, Lab, LabConfig, layout};
use serde_json::json;

use super::caller::Caller;
use crate::netns::Netns;

/// The only node.
const NODE: &str = "node-1";
/// Devices of deleted pods that are still there by then will not go.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// The node, ready to be called.
#[derive(Debug)]
pub struct Weft {
    lab: Lab,
    /// How it is called.
    pub caller: Caller,
    log: PathBuf,
}

impl Weft {
    /// Builds the lab.
    pub fn up() -> Result<Self> {
        let config =
            LabConfig { hostile: Hostile::Nobody, pod_cidrs: layout::wide_pod_cidrs, ..LabConfig::with_nodes(1) };
        let lab = Lab::up(config)?;
        let node = lab.node(NODE)?;
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "weft",
            "type": "weft-cni",
            "agentSocket": node.paths().cni_socket(),
        });
        let caller = Caller {
            plugin: lab.bin_dir().join("weft-cni"),
            config: config.to_string(),
            node: Netns::open(&netns::path_of(&node.netns()))?,
        };
        let log = node.paths().log();
        Ok(Self { lab, caller, log })
    }

    /// Takes the lab down.
    pub fn down(self) -> Result<()> {
        self.lab.down().context("take the lab down")
    }

    /// What the agent has logged so far, as a place in its log.
    pub fn log_end(&self) -> Result<usize> {
        let bytes = fs::metadata(&self.log).with_context(|| format!("look at {}", self.log.display()))?.len();
        Ok(usize::try_from(bytes)?)
    }

    /// What it has logged since.
    pub fn log_since(&self, place: usize) -> Result<String> {
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(log.get(place..).unwrap_or_default()).into_owned())
    }

    /// Does `work` and waits until no more than `left` pods' devices are on the node: DEL answers before its device is gone, and
    /// what is timed next shall not pay for that. Says how long both took together, milliseconds.
    pub fn until_gone<T>(&self, left: usize, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let node = netns::open(self.caller.node.path())?;
        let (mut monitor, _stop) = Monitor::open_in(node.as_fd())?;
        let mut socket = Socket::open_in(node.as_fd())?;
        let begin = Instant::now();
        let result = work()?;
        let mut there = pods_on(&mut socket)?;
        while there > left {
            let wait = GONE_WITHIN.saturating_sub(begin.elapsed());
            match monitor.next_within(wait)? {
                Some(Event::LinkGone(link)) if names::endpoint_of(&link.name).is_some() => {
                    there = pods_on(&mut socket)?;
                }
                Some(Event::Overrun) => there = pods_on(&mut socket)?,
                Some(_) => {}
                None => bail!("{there} devices of pods are on the node after DEL, and {left} should be"),
            }
        }
        Ok((result, begin.elapsed().as_secs_f64() * 1e3))
    }
}

fn pods_on(socket: &mut Socket) -> Result<usize> {
    Ok(link::list(socket)?.iter().filter(|l| names::endpoint_of(&l.name).is_some()).count())
}
