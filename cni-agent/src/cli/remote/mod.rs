//! `weft` for a whole cluster, from wherever there is a kubeconfig: agents are asked by running `weft` in their pods.
//!
//! Only `weft` links this, and it alone, beside [`crate::kube`], talks to the Kubernetes API. It does what its user may do, by the
//! user's own credentials: list nodes and pods, and `pods/exec`. Nothing listens on nodes for it.
pub(super) mod cluster;
pub(super) mod connectivity;
mod each;
mod observe;
mod status;
pub(super) mod sysdump;

use std::{
    env,
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

pub(super) use self::cluster::RemoteError;
use self::cluster::{Agent, Cluster};
use super::{Cli, Command, Failure};

/// Where an agent's API socket is, unless something else is said.
pub(super) const SOCKET: &str = "/run/weft/api.sock";
/// What kubectl calls as `kubectl weft`.
const PLUGIN: &str = "kubectl-weft";

/// Which cluster, and how to get there.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(super) struct Reach {
    /// Ask the agents of a cluster, by this kubeconfig
    ///
    /// Without it, a cluster is asked when there is no agent's socket on this machine, or when weft is called as kubectl-weft, by
    /// $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "socket")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Ask the agents of a cluster, by this context of the kubeconfig
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "socket")]
    pub(super) context: Option<String>,
    /// The namespace that Weft is installed in
    #[arg(long, value_name = "NAMESPACE", global = true, default_value = "kube-system")]
    pub(super) weft_namespace: String,
}

/// What decides whether this node's agent is asked, or a cluster's.
#[derive(Debug, Default)]
struct Circumstances {
    /// A kubeconfig, a context or nodes are named.
    cluster_named: bool,
    /// The program is called as kubectl's plugin.
    plugin: bool,
    /// An agent's socket is named.
    socket_named: bool,
    /// An agent's socket is where agents have it.
    socket: bool,
    /// There is a kubeconfig where kubectl looks for it.
    kubeconfig: bool,
}

impl Circumstances {
    fn of(cli: &Cli) -> Self {
        Self {
            cluster_named: cli.reach.kubeconfig.is_some()
                || cli.reach.context.is_some()
                || !cli.command.nodes().is_empty(),
            plugin: called_as_plugin(env::args_os().next().as_deref()),
            socket_named: cli.socket.is_some(),
            socket: Path::new(SOCKET).exists(),
            kubeconfig: kubeconfig().is_some(),
        }
    }

    /// Whether a cluster is asked: when one is named, and else when nothing of this node's is there to ask.
    fn remote(&self) -> bool {
        self.cluster_named || (!self.socket_named && (self.plugin || (!self.socket && self.kubeconfig)))
    }
}

fn called_as_plugin(program: Option<&OsStr>) -> bool {
    program.and_then(|p| Path::new(p).file_name()) == Some(OsStr::new(PLUGIN))
}

/// Where kubectl would find a kubeconfig.
fn kubeconfig() -> Option<PathBuf> {
    let named = env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
    let named: Option<Vec<PathBuf>> = named.map(|v| env::split_paths(&v).collect());
    let home = || env::home_dir().map(|home| home.join(".kube/config"));
    named.unwrap_or_else(|| home().into_iter().collect()).into_iter().find(|p| p.exists())
}

/// Whether the command is about a cluster.
pub(super) fn asked(cli: &Cli) -> bool {
    cli.command.of_a_cluster() || (!cli.command.of_this_node() && Circumstances::of(cli).remote())
}

/// Asks the cluster.
pub(super) async fn run(cli: &Cli, words: &[String], out: &mut dyn Write) -> Result<(), Failure> {
    let cluster = Cluster::reach(&cli.reach).await?;
    let command = &cli.command;
    match command {
        Command::Status(ask) if !ask.verify => status::run(&cluster, &ask.output, out).await,
        Command::Observe(options) => observe::run(&cluster, options, out).await,
        Command::Sysdump(options) => sysdump::run(&cluster, options, out).await,
        Command::ConnectivityTest(options) => connectivity::run(&cluster, options, out).await,
        _ => each::run(&cluster, command.nodes(), command.json(), words, out).await,
    }
}

/// The agents of these nodes, or all, and what goes above them: which they are.
async fn agents(cluster: &Cluster, nodes: &[String]) -> Result<(Vec<Agent>, String), Failure> {
    let agents = cluster.agents(nodes).await?;
    let names: Vec<&str> = agents.iter().map(|a| a.node.as_str()).collect();
    let head = format!("Cluster {}: {}\n", cluster.name, names.join(", "));
    Ok((agents, head))
}

/// The words of the command line without those that say which cluster: what is run in an agent's pod.
pub(super) fn inner_words(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    const OURS: [&str; 4] = ["--kubeconfig", "--context", "--weft-namespace", "--node"];
    let mut words = Vec::new();
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(word) = arguments.next() {
        if OURS.contains(&word.as_str()) {
            // Its value stands behind it.
            arguments.next();
        } else if !OURS.iter().any(|o| word.strip_prefix(o).is_some_and(|rest| rest.starts_with('='))) {
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_of_this_node_is_asked_when_there_is_one_and_no_cluster_is_named() {
        let here = Circumstances { socket: true, kubeconfig: true, ..Circumstances::default() };
        assert!(!here.remote(), "a node of the control plane has both");
        assert!(Circumstances { cluster_named: true, ..here }.remote());
        let here = Circumstances { socket: true, kubeconfig: true, plugin: true, ..Circumstances::default() };
        assert!(here.remote(), "as kubectl's plugin");
        assert!(!Circumstances { socket_named: true, ..here }.remote(), "the socket is named");
        assert!(Circumstances { kubeconfig: true, ..Circumstances::default() }.remote(), "a workstation");
        assert!(!Circumstances::default().remote(), "then the error is about the agent");
    }

    #[test]
    fn kubectl_calls_its_plugin_by_a_path() {
        assert!(called_as_plugin(Some(OsStr::new("/usr/local/bin/kubectl-weft"))));
        assert!(!called_as_plugin(Some(OsStr::new("/usr/bin/weft"))) && !called_as_plugin(None));
    }

    #[test]
    fn what_names_the_cluster_is_not_for_the_agent() {
        let words = |text: &str| inner_words(text.split(' ').map(str::to_owned));
        assert_eq!(words("weft --context a drops --node=n1 --json"), ["drops", "--json"]);
        assert_eq!(
            words("kubectl-weft ct list --node n1 --node n2 --kubeconfig=f --pod shop/web"),
            ["ct", "list", "--pod", "shop/web"]
        );
        assert_eq!(words("weft --weft-namespace weft observe --reason --nodes"), ["observe", "--reason", "--nodes"]);
    }
}
