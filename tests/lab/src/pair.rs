//! Two pods on two nodes that talk: what tests of changes on the way between nodes begin with.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{
    Lab, LabConfig, Node, PodSpec,
    probe::{Family, Flow, Place},
};

/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 2 * 1024 * 1024;
/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab of two nodes, the pods `web` on node-1 and `client` on node-2, and a connection of each family between them.
#[derive(Debug)]
pub struct Pair {
    /// The lab.
    pub lab: Lab,
    /// `web` and `client`.
    pub pods: [Place; 2],
    flows: Vec<Flow>,
}

impl Pair {
    /// Builds the lab, makes the pods and connects them.
    ///
    /// # Errors
    /// When any of that fails.
    pub fn up(config: LabConfig) -> Result<Self> {
        let mut lab = Lab::up(config)?;
        let mut pod = |node, name| lab.pod_add(node, &PodSpec::named(name))?.pod.place();
        let pods = [pod("node-1", "web")?, pod("node-2", "client")?];
        let flows = Family::BOTH.into_iter().map(|family| Flow::open(&pods[1], &pods[0], family));
        let flows = flows.collect::<Result<_>>()?;
        Ok(Self { lab, pods, flows })
    }

    /// The same with all defaults but further arguments of the agents.
    ///
    /// # Errors
    /// As [`up`](Self::up).
    pub fn with_agents(further: &[&str]) -> Result<Self> {
        let agent_args = further.iter().map(|a| (*a).to_owned()).collect();
        Self::up(LabConfig { agent_args, ..LabConfig::default() })
    }

    /// Sends megabytes both ways over the connections that were there from the beginning.
    ///
    /// # Errors
    /// When they do not arrive; the text begins with `when`.
    pub fn exchange(&mut self, when: &str) -> Result<()> {
        self.flows.iter_mut().try_for_each(|flow| flow.exchange(MUCH)).with_context(|| when.to_owned())
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.lab.node(name)
    }
}

/// Waits until something is so.
///
/// # Errors
/// When it is not after half a minute; the text begins with `what`.
pub fn until(what: &str, mut now: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !now() {
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        crate::machine::pause();
    }
    Ok(())
}
