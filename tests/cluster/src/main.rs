//! `weft-cluster`: the cluster for people. `cargo xtask cluster` builds everything and becomes it.
use std::{os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use cluster::{Cluster, Config, Network, beside_api_server, init, init::Unit, kubectl, layout::Families, replay};

const AFTER: &str = "\
Examples:
  cargo xtask cluster up --nodes 3
  cargo xtask cluster kubectl get pods -A -o wide
  cargo xtask cluster node node-1 -- ip -d link
  cargo xtask cluster node node-1 -- ctr -n k8s.io containers ls
  cargo xtask cluster down

Logs are in /run/weft-cluster/control-plane/log and /run/weft-cluster/node-N/log.";

#[derive(Parser)]
#[command(
    name = "weft-cluster",
    bin_name = "cargo xtask cluster",
    version,
    about = "A real Kubernetes cluster on one machine"
)]
#[command(after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a cluster up that stays
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(cluster::layout::MAX_NODES)))]
        nodes: u8,
        /// Who connects pods
        #[arg(long, value_enum, default_value_t, value_name = "WHO")]
        network: Network,
        /// Which addresses nodes and pods have
        #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
        families: Families,
    },
    /// Take the cluster down, or what a crashed one has left behind
    Down,
    /// Run kubectl as the cluster's administrator
    Kubectl {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Run a command inside a node
    Node {
        /// Name of the node
        name: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run a command where the API server is, with the administrator's kubeconfig in KUBECONFIG
    Run {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Replay policy scenarios on real pods of a cluster of two nodes, an object of JSON a line for each
    Replay {
        /// The definition of ClusterNetworkPolicy, which comes after the agents
        #[arg(long, value_name = "FILE")]
        definition: PathBuf,
        /// Scenarios, as in tests/cluster/policies
        #[arg(required = true, value_name = "FILE")]
        scenarios: Vec<PathBuf>,
    },
    /// Become the first process of a unit's namespaces
    #[command(hide = true)]
    Start { unit: String },
    /// Be the first process of a unit
    #[command(hide = true)]
    Init { unit: String },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up { nodes, network, families } => {
            let mut cluster =
                Cluster::up(Config { nodes, network, families, ..Config::default() }, |line| eprintln!("{line}"))?;
            cluster.keep();
            println!("{nodes} nodes are up: `cargo xtask cluster kubectl get nodes`");
        }
        Verb::Down => Cluster::down()?,
        Verb::Kubectl { arguments } => {
            let status = kubectl(&arguments)?.wait().context("wait for kubectl")?;
            return Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)));
        }
        Verb::Node { name, command } => {
            let (Unit::Node(number), Some((program, arguments))) = (Unit::called(&name)?, command.split_first()) else {
                anyhow::bail!("no node `{name}`: they are called node-1, node-2 …");
            };
            let error = Cluster::find()?.in_node(number, program)?.args(arguments).exec();
            return Err(error).context("start nsenter (of util-linux)");
        }
        Verb::Run { command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            return Err(beside_api_server(program)?.args(arguments).exec()).context("start nsenter (of util-linux)");
        }
        Verb::Replay { definition, scenarios } => replay(&definition, &scenarios)?,
        Verb::Start { unit } => match init::start(Unit::called(&unit)?)? {},
        Verb::Init { unit } => match init::run(Unit::called(&unit)?)? {},
    }
    Ok(ExitCode::SUCCESS)
}
