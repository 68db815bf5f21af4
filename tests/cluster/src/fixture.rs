//! What tests of Weft in a cluster begin with, and ask it at the end.
use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Cluster, Config, NAMESPACE, until};

/// As long as anything may take that a test waits for, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Brings a cluster up and says how far it is.
///
/// # Errors
/// As [`Cluster::up`].
pub fn up(config: Config) -> Result<Cluster> {
    Cluster::up(config, |line| println!("{line}"))
}

/// A program of ours.
///
/// # Errors
/// When nothing says where they are.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = env::var_os("WEFT_BIN_DIR").context("WEFT_BIN_DIR names no directory of Weft's programs")?;
    Ok(PathBuf::from(directory).join(name))
}

/// What `weft … --json` says, called at a workstation; it must end with 0.
///
/// # Errors
/// When it does not.
pub fn weft(cluster: &Cluster, words: &[&str]) -> Result<Value> {
    let mut command = Command::new(program("weft")?);
    command.args(words).arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = cluster.at_workstation(&mut command)?.wait_with_output()?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What `weft … --json` says of one node's agent, called beside it, whether there is an API server or not.
///
/// # Errors
/// When it does not end with 0.
pub fn weft_at(cluster: &Cluster, node: u8, words: &[&str]) -> Result<Value> {
    let mut command = Command::new(program("weft")?);
    command.arg("--socket").arg(cluster.node_root(node)?.join("run/weft/api.sock")).args(words).arg("--json");
    let output = command.output().context("start weft")?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until allocator, endpoints, records, devices, maps and pods agree on every node.
///
/// # Errors
/// When they do not in time.
pub fn await_agreement(cluster: &Cluster) -> Result<()> {
    until("agreement on addresses", LIMIT, || weft(cluster, &["ipam", "audit"]).map(Some)).map(drop)
}

/// Waits until the DaemonSet's agents are those that it wants, and Ready.
///
/// # Errors
/// When they are not in time.
pub fn await_rollout(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["rollout", "status", "daemonset/weft", "-n", NAMESPACE, "--timeout=90s"]).map(drop)
}

/// Kills a node's program of this name.
///
/// # Errors
/// When there is none.
pub fn end(cluster: &Cluster, node: u8, program: &str) -> Result<()> {
    let killed = cluster.in_node(node, "pkill")?.args(["-KILL", "-x", program]).status().context("start pkill")?;
    ensure!(killed.success(), "no {program} to kill");
    Ok(())
}
