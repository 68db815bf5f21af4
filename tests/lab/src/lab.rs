//! The lab's life: up, pods, restarts, down.
use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::{
    clean,
    hostile::{Hostile, HostileNode},
    layout::{self, MAX_NODES, ROOT},
    lock::Lock,
    manifest,
    node::Node,
    pod::{Added, CniCall, Pod, PodSpec, addresses_in},
    probe::Place,
    process::{self, Identity},
    programs,
    state::{NodeState, State},
    underlay::{self, Router, Underlay},
    watch::{Step, Watch},
    world::World,
};

/// A lab to build.
#[derive(Debug)]
pub struct LabConfig {
    /// How many nodes.
    pub nodes: u8,
    /// What joins them.
    pub underlay: Underlay,
    /// Which one is hostile.
    pub hostile: Hostile,
    /// With a world outside of the cluster, behind a router on the underlay's bridge.
    pub world: bool,
    /// Whose addresses the pods of a node get, by the node's number: [`layout::pod_cidrs`], [`layout::wide_pod_cidrs`] or others.
    pub pod_cidrs: fn(u8) -> Vec<IpNet>,
    /// Further arguments of every agent.
    pub agent_args: Vec<String>,
    /// Directory of our programs; found if none (see [`LabConfig::default`]).
    pub bin_dir: Option<PathBuf>,
    /// Is told of every step.
    pub watch: Watch,
}

impl Default for LabConfig {
    /// Two nodes on a bridge, the second of them hostile; the programs of `WEFT_BIN_DIR`, or of the directory of the running one.
    fn default() -> Self {
        Self {
            nodes: 2,
            underlay: Underlay::Bridge,
            hostile: Hostile::default(),
            world: false,
            pod_cidrs: |node| layout::pod_cidrs(node).into(),
            agent_args: Vec::new(),
            bin_dir: None,
            watch: Watch::default(),
        }
    }
}

impl LabConfig {
    /// With so many nodes.
    #[must_use]
    pub fn with_nodes(nodes: u8) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// Two nodes, the second of them hostile, and a world.
    #[must_use]
    pub fn with_world() -> Self {
        Self { world: true, ..Self::default() }
    }
}

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is asked to (SIGTERM), and killed if it does not.
    Asked,
    /// It is killed (SIGKILL), as in a crash.
    Killed,
}

/// A running lab. Dropping it takes it down, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct Lab {
    state: State,
    nodes: Vec<Node>,
    hostile: Option<HostileNode>,
    world: Option<World>,
    watch: Watch,
    takes_down: bool,
    /// See [`Lab::hold_back`].
    held_back: bool,
    _lock: Lock,
}

impl Lab {
    /// Builds a lab: nodes, underlay and agents that are ready. What a crashed one has left is removed first. Waits while
    /// another process works on the lab.
    ///
    /// # Errors
    /// When somebody's lab is up, programs are missing, or any part fails; nothing is left then.
    pub fn up(config: LabConfig) -> Result<Self> {
        let LabConfig { nodes, underlay, hostile, world, pod_cidrs, agent_args, bin_dir, mut watch } = config;
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab needs root: it makes network namespaces and loads BPF programs. Run it with sudo");
        }
        if !(1..=MAX_NODES).contains(&nodes) {
            bail!("a lab has 1 to {MAX_NODES} nodes, not {nodes}");
        }
        if underlay == Underlay::Direct && nodes != 2 {
            bail!("a direct wire joins two nodes, not {nodes}: take a bridge");
        }
        if underlay == Underlay::Routed && hostile != Hostile::Nobody {
            bail!(
                "a hostile node gets its address from a router that routes nothing: behind one that does, nobody is hostile"
            );
        }
        if underlay != Underlay::Bridge && world {
            bail!("the world's router is joined to a bridge: take that as the underlay");
        }
        let bin_dir = programs::find(bin_dir)?;
        let lock = Lock::wait()?;
        remove_leftovers(&mut watch)?;
        let nodes: Vec<NodeState> = (1..=nodes)
            .map(|n| NodeState { pod_cidrs: pod_cidrs(n), ..underlay::plan(underlay, n, hostile.is(n, nodes)) })
            .collect();
        let state = State {
            owner: Some(Identity::own()?),
            underlay,
            bin_dir,
            agent_args,
            nodes: nodes.clone(),
            world,
            pods: Vec::new(),
            made_netns_dir: !Path::new(netns::DIRECTORY).exists(),
        };
        let nodes = nodes.into_iter().map(Node::new).collect();
        // From here on, dropping it removes what is there already.
        let mut lab =
            Self { state, nodes, hostile: None, world: None, watch, takes_down: true, held_back: false, _lock: lock };
        lab.build()?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        fs::create_dir_all(ROOT).with_context(|| format!("make {ROOT}"))?;
        self.state.write()?;
        let Self { state, nodes, hostile, world, watch, .. } = self;
        let what = match state.underlay {
            Underlay::Bridge => "make the nodes' network namespaces and join them by a bridge",
            Underlay::Direct => "make two nodes' network namespaces and join them by a wire",
            Underlay::Routed => "make the nodes' network namespaces and join them by a router",
        };
        watch.step(what, || underlay::build(state.underlay, &state.nodes))?;
        if let Some(node) = state.nodes.iter().find(|n| n.hostile) {
            let what =
                format!("make {} hostile: Docker, a second NIC, a firewall, a router's advertisement", node.name);
            watch.step(what, || {
                let made = hostile.insert(HostileNode::open(node, Router::of(state.underlay, node.number))?);
                made.build().with_context(|| format!("make {} hostile", node.name))
            })?;
        }
        if state.world {
            let made = watch.step("make the world: a router, a host behind it, and one behind a narrow way", || {
                World::build(&state.nodes).context("make the world")
            })?;
            *world = Some(made);
        }
        watch.step("make the nodes' directories, each with a BPF file system", || {
            nodes.iter().try_for_each(Node::make_directories)
        })?;
        watch.step("write the Node objects into every node's manifest directory", || {
            state.nodes.iter().try_for_each(|node| manifest::write_node(node, &state.nodes))
        })?;
        let begin = Instant::now();
        for node in nodes.iter_mut() {
            node.start_agent(&state.bin_dir, &state.agent_args, &[])?;
        }
        self.note_agents()?;
        for node in &self.nodes {
            let ready = || node.await_ready(begin);
            self.watch.step(format!("wait until the agent of {} forwards packets", node.name()), ready)?;
        }
        Ok(())
    }

    /// The lab that a person has built with `weft-lab up`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self> {
        let lock = Lock::wait()?;
        let state = State::read()?
            .filter(State::is_alive)
            .context("no lab is up: build one with `cargo xtask lab up` first")?;
        let nodes = state.nodes.iter().cloned().map(Node::new).collect();
        let hostile = state.nodes.iter().find(|n| n.hostile);
        let hostile = hostile.map(|n| HostileNode::open(n, Router::of(state.underlay, n.number))).transpose()?;
        let world = state.world.then(World::open).transpose()?;
        Ok(Self {
            state,
            nodes,
            hostile,
            world,
            watch: Watch::default(),
            takes_down: false,
            held_back: false,
            _lock: lock,
        })
    }

    /// Leaves the lab standing when this is dropped, until [`down`](Self::down) or [`remove`](Self::remove).
    ///
    /// # Errors
    /// When that can not be noted.
    pub fn keep(mut self) -> Result<()> {
        self.state.owner = None;
        self.state.write()?;
        self.takes_down = false;
        Ok(())
    }

    /// Is told of every step from now on.
    pub fn set_watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Its pods, in the order of their making.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.state.pods
    }

    /// Directory of our programs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.state.bin_dir
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.name() == name).with_context(|| {
            let names: Vec<_> = self.nodes.iter().map(Node::name).collect();
            format!("no node is called `{name}`; there are {}", names.join(", "))
        })
    }

    /// What the hostile node has beside the others.
    ///
    /// # Errors
    /// When no node is hostile.
    pub fn hostile(&self) -> Result<&HostileNode> {
        self.hostile.as_ref().context("no node of this lab is hostile: ask for one by LabConfig::hostile")
    }

    /// What is outside of the cluster.
    ///
    /// # Errors
    /// When the lab has no world.
    pub fn world(&self) -> Result<&World> {
        self.world.as_ref().context("this lab has no world: ask for one by LabConfig::world")
    }

    /// Lists these addresses in the Node object of `node` beside those on the underlay, as further InternalIPs.
    ///
    /// # Errors
    /// When there is no such node or its object can not be written.
    pub fn list_addresses(&mut self, node: &str, further: &[IpAddr]) -> Result<()> {
        let node = self.nodes.iter_mut().find(|n| n.name() == node).with_context(|| format!("no node {node}"))?;
        node.state.listed = further.to_vec();
        let object = node.state.clone();
        self.note_agents()?;
        manifest::write_node(&object, &self.state.nodes)
    }

    /// Writes other underlay addresses into the Node object of `node`; to give them to its device is the caller's.
    ///
    /// # Errors
    /// When there is no such node or its object can not be written.
    pub fn readdress(&mut self, node: &str, addresses: &[IpNet]) -> Result<()> {
        let node = self.nodes.iter_mut().find(|n| n.name() == node).with_context(|| format!("no node {node}"))?;
        node.state.addresses = addresses.to_vec();
        let object = node.state.clone();
        self.note_agents()?;
        manifest::write_node(&object, &self.state.nodes)
    }

    /// Writes other pod CIDRs into the Node object of `node`, as a cluster does that gives a node a further range or takes one away.
    ///
    /// # Errors
    /// When there is no such node or its object can not be written.
    pub fn set_pod_cidrs(&mut self, node: &str, cidrs: &[IpNet]) -> Result<()> {
        let node = self.nodes.iter_mut().find(|n| n.name() == node).with_context(|| format!("no node {node}"))?;
        node.state.pod_cidrs = cidrs.to_vec();
        let object = node.state.clone();
        self.note_agents()?;
        manifest::write_node(&object, &self.state.nodes)
    }

    /// Takes the Node object of `node` away from all agents, or shows it to them again.
    ///
    /// # Errors
    /// When there is no such node or its object can not be written or removed.
    pub fn show_node(&self, node: &str, shown: bool) -> Result<()> {
        let object = &self.node(node)?.state;
        if shown {
            manifest::write_node(object, &self.state.nodes)
        } else {
            manifest::remove_node(object, &self.state.nodes)
        }
    }

    /// Makes the way between nodes narrower, or wide again, where no node sees it: in the router of [`Underlay::Routed`]. What is
    /// larger than `mtu` bytes the router fragments (IPv4) or refuses and says so (IPv6).
    ///
    /// # Errors
    /// When the lab has no router, or it refuses.
    pub fn set_path_mtu(&self, mtu: u32) -> Result<()> {
        if self.state.underlay != Underlay::Routed {
            bail!("no router is between the nodes: ask for one by LabConfig::underlay");
        }
        underlay::set_path_mtu(&self.state.nodes, mtu).context("set the MTU of the way between nodes")
    }

    /// The pod called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.state.pods.iter().find(|p| p.name == name).with_context(|| format!("no pod is called `{name}`"))
    }

    /// The pod or node called `name`, or else who is of the world, as an end of a probe.
    ///
    /// # Errors
    /// When there is nobody.
    pub fn place(&self, name: &str) -> Result<Place> {
        match (self.pod(name), self.node(name)) {
            (Ok(pod), _) => pod.place(),
            (_, Ok(node)) => node.place(),
            _ => self
                .world_places()?
                .into_iter()
                .find(|place| place.name == name)
                .with_context(|| format!("neither a pod nor a node is called `{name}`; `lab status` lists both")),
        }
    }

    fn world_places(&self) -> Result<Vec<Place>> {
        self.world.as_ref().map_or(Ok(Vec::new()), |world| Ok(world.places()?.into()))
    }

    /// Its nodes and pods, as `weft-lab status --json` prints them.
    #[must_use]
    pub fn status(&self) -> Value {
        let node = |n: &Node| json!({"name": n.name(), "addresses": n.addresses(), "podCIDRs": n.pod_cidrs()});
        let pod = |p: &Pod| {
            json!({
                "namespace": p.namespace, "name": p.name, "node": p.node,
                "addresses": p.addresses, "labels": p.labels,
            })
        };
        json!({
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "pods": self.state.pods.iter().map(pod).collect::<Vec<_>>(),
        })
    }

    /// Shows objects to all agents: policies, namespaces, or what else they follow.
    ///
    /// # Errors
    /// When one has no kind or name, or cannot be written.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| manifest::write_object(object, &self.state.nodes))
    }

    /// Takes objects away from all agents. Kind and names say which.
    ///
    /// # Errors
    /// When one has no kind or name, or cannot be removed.
    pub fn delete(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| manifest::remove_object(object, &self.state.nodes))
    }

    /// The objects in a file of manifests, YAML or JSON.
    ///
    /// # Errors
    /// When it is neither.
    pub fn read_manifests(text: &str) -> Result<Vec<Value>> {
        manifest::read(text)
    }

    /// From now on the addresses of new pods reach their own nodes only, as from an API server that is slow with their status. Or they reach all again, those that were
    /// held back among them.
    ///
    /// # Errors
    /// When an object cannot be written.
    pub fn hold_back(&mut self, held_back: bool) -> Result<()> {
        self.held_back = held_back;
        if held_back {
            return Ok(());
        }
        self.state.pods.iter().try_for_each(|pod| manifest::write_pod(pod, &self.state.nodes))
    }

    /// Makes a pod as a kubelet and a container runtime do: its object appears, its namespace is made, the CNI plugin
    /// connects it, its object gets the addresses.
    ///
    /// # Errors
    /// When the name is taken or refused, or a step fails; nothing of the pod is left then.
    pub fn pod_add(&mut self, node: &str, spec: &PodSpec) -> Result<Added> {
        spec.check()?;
        if self.pod(&spec.name).is_ok() {
            bail!("a pod called `{}` is there already", spec.name);
        }
        let pod = Pod::planned(spec, self.node(node)?.name());
        let added = self.connect(pod.clone());
        if added.is_err() {
            self.discard(&pod);
        }
        let added = added?;
        self.state.pods.push(added.pod.clone());
        self.state.write()?;
        Ok(added)
    }

    fn connect(&mut self, mut pod: Pod) -> Result<Added> {
        let Self { state, nodes, watch, .. } = self;
        let node = nodes.iter().find(|n| n.name() == pod.node).context("the pod's node has vanished")?;
        let mut steps = Vec::new();
        let mut step = |what: &str, work: &mut dyn FnMut() -> Result<()>| {
            let begin = Instant::now();
            watch.step(what, work)?;
            steps.push(Step { what: what.to_owned(), took: begin.elapsed() });
            anyhow::Ok(())
        };
        step("write the Pod object, without an address, into every node's manifest directory", &mut || {
            manifest::write_pod(&pod, &state.nodes)
        })?;
        step("make the pod's network namespace (the container runtime's work)", &mut || {
            netns::create(&pod.netns()).map(drop).with_context(|| format!("make the network namespace {}", pod.netns()))
        })?;
        let call = CniCall::of("ADD", &pod, node.paths());
        let mut answer = None;
        step("execute the CNI plugin: ADD", &mut || {
            answer = Some(call.run(&node.plugin_dir(&state.bin_dir), node)?);
            Ok(())
        })?;
        let (result, cni) = answer.context("the CNI plugin gave no result")?;
        pod.addresses = addresses_in(&result)?;
        let readers: Vec<_> = state.nodes.iter().filter(|n| !self.held_back || n.name == pod.node).cloned().collect();
        step("write the addresses into the Pod object", &mut || manifest::write_pod(&pod, &readers))?;
        Ok(Added { pod, result, cni, steps })
    }

    /// Removes what there is of a pod that could not be made. The error that led here is the one to report.
    fn discard(&self, pod: &Pod) {
        if let Ok(node) = self.node(&pod.node) {
            drop(CniCall::of("DEL", pod, node.paths()).run(&node.plugin_dir(&self.state.bin_dir), node));
        }
        drop(netns::delete(&pod.netns()));
        drop(manifest::remove_pod(pod, &self.state.nodes));
    }

    /// Removes a pod: CNI DEL, then its namespace and its object.
    ///
    /// # Errors
    /// When there is none of that name, or a step fails.
    pub fn pod_del(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name)?.clone();
        self.disconnect(&pod)?;
        self.state.pods.retain(|p| p.name != name);
        self.state.write()
    }

    fn disconnect(&mut self, pod: &Pod) -> Result<()> {
        let Self { state, nodes, watch, .. } = self;
        let node = nodes.iter().find(|n| n.name() == pod.node).context("the pod's node has vanished")?;
        let call = CniCall::of("DEL", pod, node.paths());
        watch.step("execute the CNI plugin: DEL", || call.run(&node.plugin_dir(&state.bin_dir), node).map(drop))?;
        watch.step("delete the pod's network namespace", || {
            netns::delete(&pod.netns()).with_context(|| format!("delete the network namespace {}", pod.netns()))
        })?;
        watch.step("remove the Pod object", || manifest::remove_pod(pod, &state.nodes))
    }

    /// Ends a node's agent. What it forwards, the kernel forwards on.
    ///
    /// # Errors
    /// When there is no such node or the agent does not end.
    pub fn stop_agent(&mut self, node: &str, ending: Ending) -> Result<()> {
        self.node(node)?;
        let node = self.nodes.iter_mut().find(|n| n.name() == node).context("the node has vanished")?;
        if let Some(agent) = node.hold_agent() {
            if ending == Ending::Killed {
                agent.kill();
            }
            process::end(&[agent])?;
        }
        node.agent_ended()?;
        self.note_agents()
    }

    /// Starts a node's agent and waits until it is ready; gives the time that took.
    ///
    /// # Errors
    /// When there is no such node, its agent runs already, or is not ready in time.
    pub fn start_agent(&mut self, node: &str) -> Result<Duration> {
        self.start_agent_under(node, &[])
    }

    /// The same by another program, which is given the agent and its arguments as its last ones, and must become it (`exec`).
    ///
    /// # Errors
    /// As [`start_agent`](Self::start_agent).
    pub fn start_agent_under(&mut self, node: &str, under: &[String]) -> Result<Duration> {
        if let Some(pid) = self.node(node)?.agent_pid() {
            bail!("the agent of {node} runs already (process {pid})");
        }
        let begin = Instant::now();
        let running = self.nodes.iter_mut().find(|n| n.name() == node).context("the node has vanished")?;
        running.start_agent(&self.state.bin_dir, &self.state.agent_args, under)?;
        self.note_agents()?;
        self.node(node)?.await_ready(begin)
    }

    /// Starts the agent of a node that lacks something, and gives what the agent waits for as soon as it says so.
    ///
    /// # Errors
    /// When the agent cannot be started, ends, or is ready.
    pub fn start_waiting_agent(&mut self, node: &str) -> Result<String> {
        let begin = Instant::now();
        let starting = self.nodes.iter_mut().find(|n| n.name() == node).context("there is no such node")?;
        starting.start_agent(&self.state.bin_dir, &self.state.agent_args, &[])?;
        self.note_agents()?;
        let health = self.node(node)?.await_health(begin, |health| Ok(Some(health)))?;
        if health.status == 200 {
            bail!("the agent of {node} is ready");
        }
        Ok(health.body)
    }

    /// Gives agents that are started from now on these further arguments, instead of those of [`LabConfig::agent_args`].
    pub fn set_agent_args(&mut self, further: &[&str]) {
        self.state.agent_args = further.iter().map(|a| (*a).to_owned()).collect();
    }

    /// Takes the programs that are started from now on from another directory.
    pub fn set_bin_dir(&mut self, directory: &Path) {
        directory.clone_into(&mut self.state.bin_dir);
    }

    /// Ends a node's agent and starts it again; gives the time from its start until it was ready.
    ///
    /// # Errors
    /// As [`stop_agent`](Self::stop_agent) and [`start_agent`](Self::start_agent).
    pub fn restart_agent(&mut self, node: &str, ending: Ending) -> Result<Duration> {
        self.stop_agent(node, ending)?;
        self.start_agent(node)
    }

    /// Takes the lab down and leaves nothing of it.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down(mut self) -> Result<()> {
        self.takes_down = false;
        self.demolish()
    }

    /// Removes what a crashed lab has left behind, as [`up`](Self::up) does before it builds one.
    ///
    /// # Errors
    /// When somebody's lab is up, or something can not be removed.
    pub fn remove_leftovers() -> Result<()> {
        let _lock = Lock::wait()?;
        remove_leftovers(&mut Watch::default())
    }

    /// Takes down whatever lab there is, alive or crashed; does nothing if there is none. A lab of a running test or benchmark
    /// is waited for.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn remove() -> Result<()> {
        let _lock = Lock::wait()?;
        clean::everything(State::read()?.is_some_and(|s| s.made_netns_dir))
    }

    fn demolish(&mut self) -> Result<()> {
        let agents: Vec<_> = self.nodes.iter().filter_map(Node::hold_agent).collect();
        let mut result = process::end(&agents);
        for node in &mut self.nodes {
            // Its own children first, or they stay as zombies.
            result = result.and(node.agent_ended());
        }
        result.and(clean::everything(self.state.made_netns_dir))
    }

    fn note_agents(&mut self) -> Result<()> {
        self.state.nodes = self.nodes.iter().map(|n| n.state.clone()).collect();
        self.state.write()
    }
}

/// Leaves a lab alone that somebody needs.
fn remove_leftovers(watch: &mut Watch) -> Result<()> {
    match State::read()? {
        Some(there) if there.is_alive() => bail!(
            "a lab is up ({} nodes, {} pods); take it down with `cargo xtask lab down` first",
            there.nodes.len(),
            there.pods.len()
        ),
        there if clean::anything_left()? => watch.step("remove what an earlier lab has left behind", || {
            clean::everything(there.is_some_and(|s| s.made_netns_dir))
        }),
        _ => Ok(()),
    }
}

/// Runs a command inside a pod or node, with this process' input and output.
///
/// # Errors
/// When it can not be started.
pub fn exec(place: &Place, command: &mut Command) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let what = || format!("run `{program}` in {}", place.name);
    netns::spawn_in(place.netns(), command).with_context(what)?.wait().with_context(what)
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.takes_down {
            return;
        }
        if std::thread::panicking() {
            // A test has failed, and the logs go with the lab.
            for node in &self.nodes {
                eprintln!("last words of the agent of {}:\n{}", node.name(), node.log_tail());
            }
        }
        if let Err(e) = self.demolish() {
            eprintln!("the lab could not be taken down whole: {e:#}; `cargo xtask lab down` tries again");
        }
    }
}
