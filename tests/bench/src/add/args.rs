//! The command line of `weft-bench add`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{Plan, measure, report, scenarios::Scenario};
use crate::{interrupt, netns};

/// Time of CNI calls as a container runtime sees them, beside the reference bridge plugin, and where Weft's time goes.
///
/// METHOD: a Weft lab of one node is built, and a node on which the plugins `bridge` and `host-local` of
/// containernetworking/plugins work (IPv4 only and without masquerading, their fastest way; Weft's pods have both
/// families). Each call executes the plugin's real binary with a network namespace that was made before, as runtimes do,
/// and the clock runs from its start to its end. Weft and bridge take turns, call by call or round by round, so whatever
/// else the machine does meets both: compare ratios, not milliseconds.
///
/// SCENARIOS: one-by-one: VERSION, which only starts a process, then ADD, then DEL; Weft's DEL answers before the kernel
/// has removed the device, so the time until it is gone is shown as well, and the next call waits for it. at-once: 100
/// ADDs at the same time, then their DELs at the same time with 100 ADDs of others, then 100 DELs; five rounds, of which
/// each figure is the median. growth: ADD and DEL one by one with 0, 100, 300 and 500 pods on the node (Weft only); the
/// ratio of the last to the first is divided by that of the VERSION calls between them, which other load slows as well.
///
/// STEPS: of each call the agent logs how long its steps took (`steps=` in the line `CNI call done`); the bench reads
/// them there, so nothing is measured that does not run in earnest too. queue: from the connection to a worker; read: the
/// request; ready: the node can take pods; address: identity and addresses; record: the endpoint's record on disk;
/// host-side: veth pair, tc block, up, in one netlink send; pod-socket: a netlink socket in the pod's namespace;
/// pod-side: addresses, neighbours, routes, in one netlink send; usable: the kernel takes packets to the pod; maps: the
/// endpoint into the BPF maps; answer.
///
/// OUTPUT: tables, then one line a figure, `figure add p50_ms X`, for programs to read. Progress goes to standard error.
/// With --json one document instead, with every round in it.
///
/// EXIT STATUS: 0; 1 when something could not be built or a call failed, or with --check when a promise is broken; 2 for
/// a wrong command line.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AddArgs {
    /// Print one JSON document instead of the tables and the figures.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a promise is broken.
    #[arg(long)]
    check: bool,
    /// Measure only these scenarios.
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Calls of each verb, one by one.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Calls at once. The promises are about 100 and are not judged with another number.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=250))]
    at_once: u16,
    /// Rounds of calls at once.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Directory of the reference plugins; `cargo xtask bench` builds them and names it.
    #[arg(long, value_name = "DIR", env = "WEFT_CNI_REFERENCE", required_unless_present = "no_reference")]
    reference: Option<PathBuf>,
    /// Measure Weft alone: no ratios.
    #[arg(long)]
    no_reference: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft-bench add                             everything, about half a minute
  weft-bench add --check                     the same as a gate
  weft-bench add --only one-by-one --count 20
  weft-bench add --json | jq '.steps[] | {verb, name, p50_ms}'";

impl AddArgs {
    /// Does it; `false` when a promise is broken and that was to be checked.
    pub fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let _claim = netns::claim()?;
        let plan = Plan {
            scenarios: if self.only.is_empty() { Scenario::ALL.to_vec() } else { self.only },
            count: self.count.into(),
            at_once: self.at_once.into(),
            rounds: self.rounds.into(),
            reference: self.reference.filter(|_| !self.no_reference),
        };
        let report = measure(&plan)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).context("write the report as JSON")?);
        } else {
            print!("{}", report::text(&report));
        }
        if let Some((slowest, enough)) = report.machine_is_busy() {
            eprintln!(
                "weft-bench: this machine is busy: VERSION calls, which only start a process, took up to {slowest:.1} ms where {enough:.1} are enough; the ratios hold, the milliseconds do not: measure again when it is quiet"
            );
        }
        let broken = report.broken();
        for over in &broken {
            eprintln!("weft-bench: over budget: {over}");
        }
        Ok(broken.is_empty() || !self.check)
    }
}
