//! `weft-lab`: the lab for people. `cargo xtask lab` builds everything and becomes it.
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use lab::{Ending, Hostile, Lab, LabConfig, PodSpec, Port, Step, Underlay, Watch, tour};

const ABOUT: &str = "\
A cluster on this machine, out of network namespaces: nodes with a real agent each, pods made by real CNI calls. Without a \
verb it is a tour: everything comes up, is shown at work, and goes without a trace, in a few seconds. With the verbs the \
same cluster stays until `down`. Needs root.";

const AFTER: &str = "\
Examples:
  weft-lab                                            the tour
  weft-lab up --nodes 3                               node-1, node-2 and node-3
  weft-lab pod add node-1 web --label app=web --port http=TCP/80
  weft-lab pod add node-2 client
  weft-lab status
  weft-lab apply policy.yaml                          NetworkPolicy, ClusterNetworkPolicy, Namespace
  weft-lab exec client -- ping -c 3 10.244.1.2
  weft-lab exec node-1 -- ip -d link
  weft-lab restart-agent node-1 --kill                pods keep talking meanwhile
  weft-lab down

The lab's files are in /run/weft-lab, its network namespaces are called weft-...";

#[derive(Parser)]
#[command(name = "weft-lab", version, about = "A cluster of network namespaces on one machine", long_about = ABOUT)]
#[command(after_long_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Show everything once: up, pods, who reaches whom, the maps, down
    Tour,
    /// Build a cluster that stays
    Up(Up),
    /// Show nodes and pods
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add or delete a pod
    #[command(subcommand)]
    Pod(PodVerb),
    /// Show the objects in files to all agents: policies, namespaces
    Apply {
        /// Manifests, YAML or JSON, as `kubectl apply -f` takes them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<std::path::PathBuf>,
    },
    /// Take the objects in files away from all agents
    Delete {
        /// Manifests; kind and names count
        #[arg(required = true, value_name = "FILE")]
        files: Vec<std::path::PathBuf>,
    },
    /// Run a command inside a pod or a node
    Exec {
        /// Name of a pod or node
        name: String,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<std::ffi::OsString>,
    },
    /// End a node's agent and start it again
    RestartAgent {
        /// Name of the node
        node: String,
        /// Kill it, as in a crash, instead of asking it to end
        #[arg(long)]
        kill: bool,
    },
    /// Take the cluster down, or what a crashed one has left behind
    Down,
}

#[derive(Args)]
struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(lab::layout::MAX_NODES)))]
    nodes: u8,
    /// Join two nodes by a wire instead of a bridge
    #[arg(long)]
    direct: bool,
    /// No hostile node: without it the last of several has a firewall, Docker's bridge, a second NIC and other people's filters
    #[arg(long)]
    ordinary: bool,
    /// With a world outside of the cluster: a router, the host `near`, and the host `narrow` behind a smaller MTU
    #[arg(long, conflicts_with = "direct")]
    world: bool,
    /// Further arguments for every agent
    #[arg(last = true, value_name = "AGENT ARGS")]
    agent_args: Vec<String>,
}

#[derive(Subcommand)]
enum PodVerb {
    /// Make a pod: its object, its network namespace, CNI ADD
    Add(PodAdd),
    /// Delete a pod: CNI DEL, its network namespace, its object
    Del {
        /// Its name
        name: String,
    },
}

#[derive(Args)]
struct PodAdd {
    /// The node to make it on
    node: String,
    /// Its name
    name: String,
    /// Its Kubernetes namespace
    #[arg(long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A named port; may be repeated
    #[arg(long = "port", value_name = "NAME=PROTO/PORT")]
    ports: Vec<Port>,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb.unwrap_or(Verb::Tour)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("weft-lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Tour => return tour::run(),
        Verb::Up(up) => {
            let underlay = if up.direct { Underlay::Direct } else { Underlay::Bridge };
            let config = LabConfig {
                nodes: up.nodes,
                underlay,
                hostile: if up.ordinary { Hostile::Nobody } else { Hostile::default() },
                world: up.world,
                agent_args: up.agent_args,
                watch: printing(),
                ..LabConfig::default()
            };
            let lab = Lab::up(config)?;
            print_status(&lab)?;
            lab.keep()?;
        }
        Verb::Status { json } => {
            let lab = Lab::open()?;
            if json {
                println!("{}", serde_json::to_string_pretty(&lab.status()).context("write JSON")?);
            } else {
                print_status(&lab)?;
            }
        }
        Verb::Pod(PodVerb::Add(add)) => {
            let mut lab = Lab::open()?;
            lab.set_watch(printing());
            let spec = PodSpec {
                name: add.name,
                namespace: add.namespace,
                labels: add.labels.into_iter().collect(),
                ports: add.ports,
            };
            let added = lab.pod_add(&add.node, &spec)?;
            println!("pod {} on {}: {}", added.pod.name, added.pod.node, join(&added.pod.addresses));
        }
        Verb::Pod(PodVerb::Del { name }) => {
            let mut lab = Lab::open()?;
            lab.set_watch(printing());
            lab.pod_del(&name)?;
        }
        Verb::Apply { files } => {
            let lab = Lab::open()?;
            files.iter().try_for_each(|file| lab.apply(&manifests(file)?))?;
        }
        Verb::Delete { files } => {
            let lab = Lab::open()?;
            files.iter().try_for_each(|file| lab.delete(&manifests(file)?))?;
        }
        Verb::Exec { name, command } => {
            let [program, args @ ..] = command.as_slice() else { anyhow::bail!("no command") };
            // Without the lock: the command may run for hours.
            let place = Lab::open()?.place(&name)?;
            let status = lab::exec(&place, Command::new(program).args(args))?;
            return Ok(status.code().and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Verb::RestartAgent { node, kill } => {
            let mut lab = Lab::open()?;
            let ending = if kill { Ending::Killed } else { Ending::Asked };
            let took = lab.restart_agent(&node, ending)?;
            println!("the agent of {node} is ready again after {} ms", took.as_millis());
        }
        Verb::Down => Lab::remove()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn manifests(file: &std::path::Path) -> Result<Vec<serde_json::Value>> {
    let what = || format!("read {}", file.display());
    Lab::read_manifests(&std::fs::read_to_string(file).with_context(what)?).with_context(what)
}

fn printing() -> Watch {
    Watch::new(|Step { what, took }| println!("{:>9.1} ms  {what}", took.as_secs_f64() * 1e3))
}

fn print_status(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let agent = node.agent_pid().map_or("no agent runs".into(), |pid| format!("agent {pid}"));
        let cidrs = node.pod_cidrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let hostile = if node.is_hostile() { ", hostile" } else { "" };
        println!("{:<10} {:<32} pods {cidrs:<32} {agent}{hostile}", node.name(), join(&node.addresses()));
    }
    for pod in lab.pods() {
        let labels = pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        println!(
            "{:<10} {:<32} on {:<8} {}/{} {labels}",
            pod.name,
            join(&pod.addresses),
            pod.node,
            pod.namespace,
            pod.name
        );
    }
    if let Ok(world) = lab.world() {
        for place in world.places()? {
            println!("{:<10} {:<32} of the world", place.name, join(&place.addresses));
        }
    }
    Ok(())
}

fn join(addresses: &[std::net::IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn label(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}
