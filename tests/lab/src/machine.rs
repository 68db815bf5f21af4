//! A machine that is one node of a cluster of machines: its own network namespace is the node, its own device the underlay.
use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cni_agent::netlink::netns;
use nix::mount::{MsFlags, mount};

use crate::{
    layout, manifest,
    node::Node,
    pod::{CniCall, Pod, PodSpec, addresses_in},
    probe::Place,
    process, programs,
    state::NodeState,
};

/// Whether this is one of xtask's virtual machines.
#[must_use]
pub fn is_virtual() -> bool {
    std::env::var_os("WEFT_VM").is_some()
}

/// A bound on time for hardware, as it holds here: in a virtual machine, whose processor may be emulated and shared by another one, all
/// takes twenty times as long.
#[must_use]
pub fn bound(hardware: Duration) -> Duration {
    if is_virtual() { hardware * 20 } else { hardware }
}

/// Between two looks at what nothing tells of. To ask without a pause would take the processor from those who are asked: an emulated
/// machine has but one.
pub fn pause() {
    thread::park_timeout(Duration::from_millis(if is_virtual() { 10 } else { 1 }));
}

/// Says that the running test has found nothing to test here: past the test harness, which shows only what a failed test has said. It counts
/// as skipped in `cargo xtask test` and `vm`.
pub fn skipped(why: &str) {
    // Who reads it may be gone.
    drop(writeln!(io::stdout(), "\nskipped: {why}"));
}

/// A node that is a whole machine. It is never taken down: what it makes goes with the machine.
#[derive(Debug)]
pub struct Machine {
    node: Node,
    bin_dir: PathBuf,
}

impl Machine {
    /// Makes this machine node `number` of a cluster of `nodes`, with an agent that is ready. Its `eth0` has its addresses already.
    ///
    /// # Errors
    /// When programs are missing or the agent does not become ready.
    pub fn up(number: u8, nodes: u8) -> Result<Self> {
        let bin_dir = programs::find(None)?;
        let all: Vec<NodeState> = (1..=nodes).map(state).collect();
        let own = state(number);
        let mut machine = Self { node: Node::new(own.clone()), bin_dir };
        name_own_namespace(&machine.node.netns())?;
        machine.node.make_directories()?;
        all.iter().try_for_each(|node| manifest::write_node(node, std::slice::from_ref(&own)))?;
        machine.start_agent(&[])?;
        Ok(machine)
    }

    fn start_agent(&mut self, further: &[String]) -> Result<()> {
        let begin = Instant::now();
        self.node.start_agent(&self.bin_dir, further, &[])?;
        self.node.await_ready(begin).map(drop)
    }

    /// Ends the agent and starts it with these further arguments.
    ///
    /// # Errors
    /// When it does not end, or does not become ready again.
    pub fn restart_agent(&mut self, further: &[String]) -> Result<()> {
        if let Some(agent) = self.node.hold_agent() {
            process::end(&[agent])?;
        }
        self.node.agent_ended()?;
        self.start_agent(further)
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Makes a pod, as a container runtime does.
    ///
    /// # Errors
    /// When its namespace can not be made or the CNI plugin refuses.
    pub fn pod_add(&self, name: &str) -> Result<Place> {
        let mut pod = Pod::planned(&PodSpec::named(name), self.node.name());
        netns::create(&pod.netns()).with_context(|| format!("make the network namespace {}", pod.netns()))?;
        let call = CniCall::of("ADD", &pod, self.node.paths());
        let (result, _) = call.run(&self.node.plugin_dir(&self.bin_dir), &self.node)?;
        pod.addresses = addresses_in(&result)?;
        manifest::write_pod(&pod, std::slice::from_ref(&self.node.state))?;
        pod.place()
    }
}

fn state(number: u8) -> NodeState {
    NodeState {
        number,
        name: layout::node_name(number),
        addresses: layout::machine_addresses(number).into(),
        listed: Vec::<IpAddr>::new(),
        hostile: false,
        pod_cidrs: layout::pod_cidrs(number).into(),
        agent: None,
    }
}

/// Gives the machine's own network namespace a name, as `ip netns attach` does: probes find it like any other place.
fn name_own_namespace(name: &str) -> Result<()> {
    let (path, none) = (netns::path_of(name), None::<&str>);
    fs::create_dir_all(netns::DIRECTORY)
        .and_then(|()| File::create_new(&path))
        .and_then(|_| Ok(mount(Some(Path::new("/proc/self/ns/net")), &path, none, MsFlags::MS_BIND, none)?))
        .with_context(|| format!("name this machine's network namespace {name}"))
}
