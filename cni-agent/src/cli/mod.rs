//! The `weft` command: asks the agent of this node through its API and shows the answers.
pub mod client;
mod doctor;
mod explain;
mod flows;
mod observe;
mod policy;
mod remote;
mod show;
mod table;
mod uninstall;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use serde::{Serialize, de::DeserializeOwned};

use self::client::{Client, ClientError};
use crate::api::types::{Audit, EndpointStatus, IpamAddress, MapEntry, MapInfo, NodeStatus, PodStatus, Status};
use crate::drift::Verified;

const ABOUT: &str = "\
weft shows what the Weft agent of this node does: its state, the endpoints, the cluster's objects as it knows them, the \
BPF maps that the programs read, the packets that they dropped, the flows that they know, why they let a flow pass or not, and what on the node hinders it. All but ct flush and uninstall only \
read; all but doctor, policy and uninstall talk to nobody but the agent, over the agent's unix socket.";

const AFTER: &str = "\
Output:
  Text for people by default. --json prints what the API answers, for programs; with observe, one
  object a line. Fields are added from version to version, never renamed.

Exit status:
  0  done
  1  the agent refused or could not answer; with doctor, something hinders Weft; with ipam audit,
     something does not agree; with status --verify, something had been changed; with uninstall, an agent runs or something stays
  2  wrong usage, or the agent does not run; with policy verdicts, the scenario cannot be read
  3  with policy verdicts, something that is not supported is asked for

Examples:
  weft status
  weft status --verify
  weft endpoint list
  weft ipam audit
  weft map dump endpoints_v1
  weft drops
  weft ct list --pod shop/web --protocol tcp
  weft observe --pod default/web --reason NoPod
  weft policy list
  weft policy verdicts --input case.json
  weft explain shop/web shop/db TCP/5432
  weft doctor
  weft --socket /run/weft-lab/node-1/run/api.sock status --json";

#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "Shows what the Weft agent of this node does", long_about = ABOUT)]
#[command(after_long_help = AFTER, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    /// The agent's API socket
    ///
    /// It is api.sock in the directory that the agent's --run-dir names: /run/weft/api.sock, unless something else is said.
    #[arg(long, env = "WEFT_API_SOCKET", value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    reach: remote::Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the agent at a glance: ready or why not, tunnel, programs, sources, what fails
    Status(Ask),
    /// Show the pods' interfaces on this node
    #[command(subcommand, visible_alias = "endpoints")]
    Endpoint(List),
    /// Show the nodes that this node knows, and how it reaches them
    #[command(subcommand, visible_alias = "nodes")]
    Node(List),
    /// Show the pods of all nodes as this node knows them
    #[command(subcommand, visible_alias = "pods")]
    Pod(List),
    /// Show the pod addresses that are out, or compare them with everything that knows of them
    #[command(subcommand)]
    Ipam(Ipam),
    /// Show the BPF maps that the programs read
    #[command(subcommand, visible_alias = "maps")]
    Map(Map),
    /// Show what was dropped, why and where, since the counters were made
    Drops(Output),
    /// Show the flows that conntrack knows, or remove some
    #[command(subcommand, long_about = flows::ABOUT)]
    Ct(flows::Flows),
    /// Show the policies on this node, or judge flows by policies without an agent
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Say why a flow may pass on this node or may not, by the maps that packets meet
    #[command(long_about = explain::ABOUT, after_long_help = explain::AFTER)]
    Explain(explain::Explain),
    /// Follow drops as they happen, one line each
    #[command(long_about = observe::ABOUT)]
    Observe(observe::Observe),
    /// Name what on this node hinders Weft, why, and the cure
    #[command(long_about = doctor::ABOUT, after_long_help = doctor::AFTER)]
    Doctor(doctor::Doctor),
    /// Try whether the pods of a cluster reach each other, and name the first broken hop
    #[command(long_about = remote::connectivity::ABOUT)]
    ConnectivityTest(remote::connectivity::Connectivity),
    /// Write an archive of what somebody needs who is to find out what is wrong with a cluster; no secrets
    #[command(long_about = remote::sysdump::ABOUT)]
    Sysdump(remote::sysdump::Sysdump),
    /// What the pods of connectivity-test run
    #[command(hide = true)]
    ConnectivityProbe(remote::connectivity::probe::Probe),
    /// Remove from this node what Weft has put there, and nothing else
    #[command(long_about = uninstall::ABOUT, after_long_help = uninstall::AFTER)]
    Uninstall(uninstall::Uninstall),
}

impl Command {
    /// Only the cluster can be asked.
    fn of_a_cluster(&self) -> bool {
        matches!(self, Self::Sysdump(_) | Self::ConnectivityTest(_))
    }

    /// Only this machine can be asked, or nobody.
    fn of_this_node(&self) -> bool {
        match self {
            Self::Doctor(_) | Self::Uninstall(_) | Self::ConnectivityProbe(_) => true,
            Self::Policy(policy) => policy.output().is_none(),
            _ => false,
        }
    }

    /// What is asked for in all commands.
    fn output(&self) -> Option<&Output> {
        match self {
            Self::Status(ask) => Some(&ask.output),
            Self::Endpoint(List::List(o)) | Self::Node(List::List(o)) | Self::Pod(List::List(o)) => Some(o),
            Self::Ipam(Ipam::List(o) | Ipam::Audit(o)) | Self::Map(Map::List(o)) | Self::Drops(o) => Some(o),
            Self::Map(Map::Dump { output, .. }) => Some(output),
            Self::Ct(flows) => Some(flows.output()),
            Self::Policy(policy) => policy.output(),
            Self::Explain(explain) => Some(&explain.output),
            Self::Observe(observe) => Some(&observe.output),
            Self::Sysdump(sysdump) => Some(&sysdump.output),
            Self::ConnectivityTest(test) => Some(&test.output),
            Self::Doctor(_) | Self::Uninstall(_) | Self::ConnectivityProbe(_) => None,
        }
    }

    /// The nodes that are named.
    fn nodes(&self) -> &[String] {
        self.output().map_or(&[], |o| &o.node)
    }

    fn json(&self) -> bool {
        self.output().is_some_and(|o| o.json)
    }
}

#[derive(Debug, Subcommand)]
enum List {
    /// List them
    List(Output),
}

#[derive(Debug, Subcommand)]
enum Ipam {
    /// List the addresses that are out: which pod's, on which device, since when
    List(Output),
    /// Compare the allocator with endpoints, records, devices, maps and the pods' namespaces
    ///
    /// Exit status 1 when something does not agree; each difference is told with its cure. It stops nothing, and what a call in progress
    /// explains is no difference.
    Audit(Output),
}

#[derive(Debug, Subcommand)]
enum Map {
    /// List the maps with their sizes
    List(Output),
    /// Show the entries of one map, by field
    Dump {
        /// Name of the map, as `weft map list` shows it
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Debug, Args)]
struct Ask {
    /// Have the agent compare everything with the kernel now, and repair what differs
    ///
    /// Lists what was not as it should be. Exit status 1 if there was anything; asked again, 0.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Debug, Default, Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask the agent of this node of a cluster; given several times, of each
    #[arg(long, value_name = "NODE", conflicts_with = "socket")]
    node: Vec<String>,
}

/// Runs a command line; its first word is the program's name.
pub fn main<I>(args: I) -> ExitCode
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match execute(&cli, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough: `weft observe | head`.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        // The report has said it.
        Err(Failure::Unwell) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft: {error}");
            error.exit_code()
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    #[error("write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("write {}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("interrupted")]
    Interrupted,
    #[error("something is not as it should be")]
    Unwell,
    #[error("{0}")]
    Uninstall(String),
    #[error("{0}")]
    Usage(String),
    #[error("not supported: {0}")]
    Unsupported(String),
}
impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(ClientError::NotRunning { .. }) | Self::Usage(_) => ExitCode::from(2),
            Self::Unsupported(_) => ExitCode::from(3),
            // As a shell says it of SIGINT.
            Self::Interrupted => ExitCode::from(130),
            _ => ExitCode::FAILURE,
        }
    }
}

fn execute(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    // One thread will do: one request, one answer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(cli, out))
}

async fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    if remote::asked(cli) {
        let words = std::env::args().collect::<Vec<_>>();
        return remote::run(cli, &remote::inner_words(words), out).await;
    }
    let client = Client::new(cli.socket.as_deref().unwrap_or(Path::new(remote::SOCKET)));
    match &cli.command {
        Command::Status(Ask { verify: true, output }) => {
            let verified: Verified = client.get("/v1/verify").await?;
            show_value(output, &verified, show::verified, out)?;
            if verified == Verified::default() { Ok(()) } else { Err(Failure::Unwell) }
        }
        Command::Status(Ask { output: o, .. }) => {
            show(&client, o, "/v1/status", |s: &Status| show::status(s), out).await
        }
        Command::Endpoint(List::List(o)) => {
            show(&client, o, "/v1/endpoints", |l: &Vec<EndpointStatus>| show::endpoints(l), out).await
        }
        Command::Node(List::List(o)) => show(&client, o, "/v1/nodes", |l: &Vec<NodeStatus>| show::nodes(l), out).await,
        Command::Pod(List::List(o)) => show(&client, o, "/v1/pods", |l: &Vec<PodStatus>| show::pods(l), out).await,
        Command::Ipam(Ipam::List(o)) => {
            show(&client, o, "/v1/ipam", |l: &Vec<IpamAddress>| show::addresses(l), out).await
        }
        Command::Ipam(Ipam::Audit(o)) => {
            let audit: Audit = client.get("/v1/ipam/audit").await?;
            show_value(o, &audit, show::audit, out)?;
            if audit.differences.is_empty() { Ok(()) } else { Err(Failure::Unwell) }
        }
        Command::Map(Map::List(o)) => show(&client, o, "/v1/maps", |l: &Vec<MapInfo>| show::maps(l), out).await,
        Command::Map(Map::Dump { name, output }) => {
            let path = format!("/v1/maps/{}", escaped(name));
            show(&client, output, &path, |l: &Vec<MapEntry>| show::entries(l), out).await
        }
        Command::Drops(o) => show(&client, o, "/v1/drops", show::drops, out).await,
        Command::Ct(flows) => flows::run(&client, flows, out).await,
        Command::Policy(command) => policy::run(&client, command, out).await,
        Command::Explain(question) => explain::run(&client, question, out).await,
        Command::Observe(observe) => observe::run(&client, observe, out).await,
        Command::Doctor(options) => {
            if doctor::run(&client, options, out).await? {
                Ok(())
            } else {
                Err(Failure::Unwell)
            }
        }
        Command::Uninstall(options) => uninstall::run(options, out),
        Command::ConnectivityProbe(probe) => remote::connectivity::probe::run(probe, out).await,
        // They have been asked of the cluster.
        Command::Sysdump(_) | Command::ConnectivityTest(_) => Ok(()),
    }
}

async fn show<T: DeserializeOwned + Serialize>(
    client: &Client,
    output: &Output,
    path: &str,
    text: impl Fn(&T) -> String,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if output.json {
        // As the agent says it, with what this version does not know of.
        let answer: serde_json::Value = client.get(path).await?;
        writeln!(out, "{answer:#}")?;
    } else {
        out.write_all(text(&client.get(path).await?).as_bytes())?;
    }
    Ok(out.flush()?)
}

fn show_value<T: Serialize>(
    output: &Output,
    value: &T,
    text: impl Fn(&T) -> String,
    out: &mut dyn Write,
) -> io::Result<()> {
    if output.json {
        writeln!(out, "{:#}", serde_json::to_value(value)?)?;
    } else {
        out.write_all(text(value).as_bytes())?;
    }
    out.flush()
}

/// A word as one segment of a URL's path.
fn escaped(word: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    word.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests;
