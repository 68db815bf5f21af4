//! What befalls a cluster that is up: a node's power goes or comes, its addresses change, the API server is away.
use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Cluster, LOOPBACK, UP_LIMIT, start};
use crate::{
    clean, files,
    init::Unit,
    layout::{CONTROL_PLANE, Families, directory, moved_addresses, node_name, node_netns},
    network,
    node::{NODE_IP, images, imported},
    wait::until,
};

impl Cluster {
    /// Halts the API server until the value goes: it keeps its connections and says nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop_api_server(&self) -> Result<Halted> {
        self.halt("kube-apiserver")
    }

    /// Halts a program of the control plane until the value goes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn halt(&self, program: &str) -> Result<Halted> {
        let is_it = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|b| *b == 0).nth(1) == Some(program.as_bytes())
        };
        let pids = clean::processes(&[CONTROL_PLANE.to_owned()])?;
        let pid = pids.into_iter().find(is_it).with_context(|| format!("{program} does not run"))?;
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).with_context(|| format!("stop {program}"))?;
        Ok(Halted(pid))
    }

    /// Ends a node at once, as if its power had gone: its processes, its network, all that it had in memory or in files.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn power_off(&mut self, number: u8) -> Result<()> {
        let names = [node_netns(number)];
        until("end of the node's processes", UP_LIMIT, || {
            let left = clean::processes(&names)?;
            for pid in &left {
                // One that has ended by itself meanwhile is no error.
                let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            Ok(left.is_empty().then_some(()))
        })?;
        if let Some(unit) = self.units.get_mut(usize::from(number)) {
            unit.wait().context("wait for the end of a unit")?;
        }
        network::remove(number)?;
        let dir = directory(&node_name(number)).join("imported");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// Starts a node: one that was powered off, or the next one. Its disk is empty.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn power_on(&mut self, number: u8) -> Result<()> {
        // The former wire's other end goes a moment after its namespace.
        until("wire of the node", UP_LIMIT, || {
            let wired = network::node(number);
            if wired.is_err() {
                // What there is of it already.
                let _none = network::remove(number);
            }
            wired.map(Some)
        })?;
        let unit = start(Unit::Node(number))?;
        match self.units.get_mut(usize::from(number)) {
            Some(former) => *former = unit,
            None => self.units.push(unit),
        }
        self.nodes = self.nodes.max(number);
        let archives = images()?;
        until("images on the node", UP_LIMIT, || {
            Ok(archives.iter().all(|archive| imported(number, archive).exists()).then_some(()))
        })?;
        self.install_plugins(number, &[LOOPBACK]).map(drop)
    }

    /// Gives a node other addresses, as who moves it does: first on its device, then to its kubelet, which begins anew with them.
    ///
    /// # Errors
    /// When the node is not up, or does not take them.
    pub fn readdress(&self, number: u8) -> Result<()> {
        network::readdress(number)?;
        let addresses = Families::of_cluster().texts(moved_addresses(number)).join(",");
        files::write_file(&self.node_root(number)?.join(NODE_IP), &addresses)?;
        let killed = self.in_node(number, "pkill")?.args(["-KILL", "-x", "hyperkube"]).status();
        killed.context("start pkill")?.success().then_some(()).context("no kubelet to begin anew")
    }
}

/// A process that goes on when this goes.
#[derive(Debug)]
pub struct Halted(Pid);

impl Drop for Halted {
    fn drop(&mut self) {
        // The cluster may be gone, and it with it.
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}
