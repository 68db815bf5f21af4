//! The command line.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::add::args::AddArgs;
use crate::inline::Test;
use crate::layout::{Family, LayoutName};
use crate::masquerade::args::MasqueradeArgs;
use crate::{agent, ct, interrupt, map_memory, nat, netns, packet_cost, path, policy_cost, report, scale};

/// Measures Weft's datapath and CNI calls side by side with the physical limit and with peers.
///
/// Everything is built in network namespaces of its own (names begin with wb-, the Weft lab's with weft-) and is
/// removed at the end, after an error and after Ctrl-C; what a killed run left is removed by the next one. Nothing in
/// the host's own network namespace is touched. Needs root.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Path(PathArgs),
    Add(AddArgs),
    Agent(AgentArgs),
    Ct(CtArgs),
    Masquerade(MasqueradeArgs),
    Policy(PolicyArgs),
    Scale(ScaleArgs),
}

/// Cost of a packet's way, as a ratio to the physical limit of the same run.
///
/// METHOD: one thread owns both ends of a path. What it sends runs through the whole path in softirq on its own CPU
/// and lies in the peer's socket when send() returns, so no wake-up and no scheduler is in the figure. A round
/// measures every layout in turn, test by test; of each measurement the 10th percentile of the batches' averages
/// counts. Shown are the median over the rounds and the median of the ratios to the limit of the same round. These
/// ratios repeat within 1 to 2 % even when the machine is busy; the absolute figures depend on the machine.
///
/// TESTS: udp_rr and tcp_rr: one byte there and back, ns. tcp_crr: connect, one byte there, one back, close, ns.
/// tcp_stream: Gbit per second of CPU time.
///
/// LAYOUTS on one node, with veth as limit: veth, bridge, weft-same, weft-node (a process of the node to a pod, as a
/// kubelet's probes) and weft-to-node (a pod to a process of the node). Across two nodes, with node as limit: node,
/// flannel, weft-vxlan. Then, each with a TCP stream over an underlay without segmentation offload and with receive
/// coalescing (GRO): node-notso, flannel-notso, weft-vxlan-notso; there the average size of the packets that reach
/// the pod is the figure: about 1400 bytes when GRO is lost, tens of thousands when it works.
///
/// OUTPUT: a table, then one line a figure, `figure LAYOUT TEST FAMILY ratio X` and, the worse of the families
/// measured, `figure LAYOUT TEST ratio X`, for programs to read. Progress goes to standard error. With --json one
/// document instead, with every round in it.
///
/// EXIT STATUS: 0; 1 when something could not be built or measured, or with --check when a budget is broken; 2 for a
/// wrong command line.
#[derive(Debug, Args)]
#[command(after_help = PATH_EXAMPLES)]
pub struct PathArgs {
    /// Print one JSON document instead of the table and the figures.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a ratio is over its budget.
    #[arg(long)]
    check: bool,
    /// How often everything is measured; medians are taken over the rounds.
    #[arg(long, value_name = "N", default_value_t = 13, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these layouts; the limit of each is added.
    #[arg(long, value_name = "LAYOUT", value_delimiter = ',')]
    only: Vec<LayoutName>,
    /// Measure only these tests.
    #[arg(long, value_name = "TEST", value_delimiter = ',')]
    tests: Vec<Test>,
    /// The address family of the measured packets.
    #[arg(long, value_enum, default_value_t = Families::Both)]
    family: Families,
    /// Length of one measurement in milliseconds; a run takes about rounds x layouts x tests x families x 1.2 of it.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..))]
    duration: u64,
}

const PATH_EXAMPLES: &str = "\
Examples:
  weft-bench path                              everything, under three minutes
  weft-bench path --check                      the same as a gate
  weft-bench path --only weft-same --family 4  Weft on one node and its limit
  weft-bench path --rounds 3 --json | jq '.results[] | {layout, test, family, ratio}'";

/// Time until a restarted agent is ready, and its resident memory, with 20 pods on its node.
///
/// A Weft lab of two nodes is built; the agent of the first is killed and started again, and the clock runs from its start until
/// /v1/healthz says that it is ready.
///
/// OUTPUT: one line a figure, `figure agent ready_p50_ms X`, for programs to read. With --json one document instead.
///
/// EXIT STATUS: 0; 1 when something failed, or with --check when a budget is broken; 2 for a wrong command line.
#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    output: Output,
    /// Starts.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

impl AgentArgs {
    fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let _claim = netns::claim()?;
        let figures = agent::measure(self.rounds)?;
        self.output.show(&figures, 1, agent::broken(&figures))
    }
}

/// What flows cost: the agent to look for those that are over, the programs for a packet and for a new flow, and memory.
///
/// A map of its own, as conntrack's and with room for 524,288 flows, is filled and gone through as the agent does it, with its rests.
/// None of the flows is over: what deleting costs depends on how many flows there are in a second. Then the same with the translations of 131,072
/// masqueraded flows, as many as a family can have, in one pass. The budget is a share of one core.
///
/// PACKETS: the loaded programs are given frames by BPF_PROG_TEST_RUN, 4,096 flows of UDP a round: between two pods of a node (`ct`), and from a pod to
/// the world (`nat`, translated). new_flow_ns: the first packet; answered_ns: the first answer; packet_ns and back_ns: a further packet and answer.
/// Two readings of the clock are in each. flows_per_s: so many flows one core could make and answer, had it nothing else to do.
///
/// MEMORY: what the kernel says of maps like ours before and after they are filled. bytes_per_flow: as it counts; allocated_per_flow: as it allocates;
/// empty_mib, full_mib: the tables of both families, with as many flows as there is room for. `nat` is masqueraded flows, conntrack's part included.
///
/// OUTPUT: one line a figure, `figure ct sweep_percent X`, for programs to read. With --json one document instead.
///
/// EXIT STATUS: 0; 1 when something failed, or with --check when the budget is broken; 2 for a wrong command line.
#[derive(Debug, Args)]
pub struct CtArgs {
    #[command(flatten)]
    output: Output,
    /// Passes, and rounds of packets.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

impl CtArgs {
    fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let mut figures = ct::measure(self.rounds)?;
        figures.extend(nat::measure()?);
        figures.extend(packet_cost::measure(self.rounds)?);
        figures.extend(map_memory::measure()?);
        self.output.show(&figures, 2, ct::broken(&figures))
    }
}

/// What policies cost: a packet of a known flow, and a new flow, with policies of different sizes.
///
/// Both pods of a flow on one node are isolated. The loaded programs are given frames by BPF_PROG_TEST_RUN, 250 at a time, and all sizes in turn:
/// 1, 100 and 10,000 entries for single ports in the rule set that decides, of which one is the flow's; 10,000 others, and one for the flow's protocol;
/// 1,000 and 50,000 identities in each pod's policy set; and without policies.
///
/// OUTPUT: one line a figure: `figure policy packet_ns SIZE X`, and `packet_ratio`, to the smallest size in the same round; `new_flow_ns` and
/// `new_flow_ratio` likewise. Of both families it is the worse one. With --json one document instead.
///
/// EXIT STATUS: 0; 1 when something failed, or with --check when a packet grows by more than 1 %, or a new flow by more than 5 %, or 10 % where none of many entries names its port; 2 for a wrong
/// command line.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    output: Output,
    /// How often everything is measured; medians are taken over the rounds.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

impl PolicyArgs {
    fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let figures = policy_cost::measure(self.rounds)?;
        self.output.show(&figures, 3, policy_cost::broken(&figures))
    }
}

/// What a large cluster is to one node's agent: how soon it holds all of it, how soon a change is in the kernel, memory.
///
/// A Weft lab of one node with 100 pods is built. Its agent is shown 1,000 nodes, 50,000 pods and 2,000 NetworkPolicies by its manifest directory,
/// killed, and started anew with all of it there. Then policies of the pods here are changed, and labels of pods elsewhere, one at a time: the clock runs from when the
/// object's file is there until the loaded programs read what has become of it.
///
/// OUTPUT: one line a figure: `figure scale ready_ms X`, `policy_p50_ms`, `policy_p99_ms`, `label_p50_ms`, `label_p99_ms`, `rss_begin_mib` and
/// `rss_mib` (with all objects, and after all changes), `policy_entries` (entries of the maps of policy), `policy_mib` and `maps_mib` (what these and all maps take of the
/// kernel's memory). With --json one document instead.
///
/// EXIT STATUS: 0; 1 when something failed, or with --check when a budget is broken; 2 for a wrong command line.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    #[command(flatten)]
    output: Output,
    /// Changes of each kind.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rounds: u32,
}

impl ScaleArgs {
    fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let _claim = netns::claim()?;
        let figures = scale::measure(self.rounds)?;
        self.output.show(&figures, 1, scale::broken(&figures))
    }
}

/// How figures are shown, of verbs that have nothing but those.
#[derive(Debug, Args)]
struct Output {
    /// Print one JSON document instead of the figures.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a budget is broken.
    #[arg(long)]
    check: bool,
}

impl Output {
    /// Prints them, and which of them broke a budget; `false` when one did and that was to be checked.
    fn show(&self, figures: &BTreeMap<String, f64>, decimals: usize, broken: Option<String>) -> Result<bool> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(figures).context("write the report as JSON")?);
        } else {
            for (name, value) in figures {
                println!("figure {name} {value:.decimals$}");
            }
        }
        if let Some(broken) = &broken {
            eprintln!("weft-bench: over budget: {broken}");
        }
        Ok(!self.check || broken.is_none())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Families {
    /// IPv4.
    #[value(name = "4")]
    Four,
    /// IPv6.
    #[value(name = "6")]
    Six,
    /// IPv4 and IPv6, interleaved.
    Both,
}

impl Families {
    pub(crate) fn list(self) -> &'static [Family] {
        match self {
            Self::Four => &[Family::Ipv4],
            Self::Six => &[Family::Ipv6],
            Self::Both => &[Family::Ipv4, Family::Ipv6],
        }
    }
}

impl Cli {
    /// Does what the command line asks for; `false` when it was done, but something is not as it should be.
    pub fn run(self) -> Result<bool> {
        match self.verb {
            Verb::Path(arguments) => arguments.run(),
            Verb::Add(arguments) => arguments.run(),
            Verb::Agent(arguments) => arguments.run(),
            Verb::Ct(arguments) => arguments.run(),
            Verb::Masquerade(arguments) => arguments.run(),
            Verb::Policy(arguments) => arguments.run(),
            Verb::Scale(arguments) => arguments.run(),
        }
    }
}

impl PathArgs {
    fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let _claim = netns::claim()?;
        let plan = path::Plan {
            layouts: LayoutName::with_limits(&self.only),
            tests: if self.tests.is_empty() { Test::ALL.to_vec() } else { self.tests },
            families: self.family.list().to_vec(),
            rounds: self.rounds,
            duration: Duration::from_millis(self.duration),
        };
        let report = path::run(&plan)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).context("write the report as JSON")?);
        } else {
            print!("{}", report::text(&report));
        }
        for failure in report.failures() {
            eprintln!("weft-bench: {failure}");
        }
        let broken = report.broken();
        for over in &broken {
            eprintln!("weft-bench: over budget: {over}");
        }
        Ok(report.failures().is_empty() && (broken.is_empty() || !self.check))
    }
}
