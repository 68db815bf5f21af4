//! The command line of `weft-bench masquerade`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{Plan, report, run};
use crate::cli::Families;
use crate::inline::Test;
use crate::{interrupt, netns};

/// Cost of a pod's way to a host outside of the cluster, beside that of the kernel's routing with one rule of nftables.
///
/// METHOD: as `weft-bench path`: one thread owns both ends, a round measures every way in turn, shown are medians over the rounds and
/// of the ratios within each round.
///
/// WAYS: veth: one veth pair between pod and host, no node. routed: pod, node and host, the kernel routes and translates
/// nothing: the limit. nftables: the same with one rule, `masquerade`. weft: a pod of a Weft lab, real agent. Before
/// anything is measured each way is asked whom the host sees.
///
/// TESTS: udp_rr and tcp_rr: one byte there and back, ns. tcp_crr: connect, one byte there, one back, close, ns. Not by itself:
/// tcp_stream, Gbit per second of CPU time (Weft's pods have a smaller MTU, as they also have a tunnel).
///
/// GOAL: each test costs less than with nftables: to_nftables is below 1.
///
/// OUTPUT: a table, then one line a figure, `figure masquerade WAY TEST FAMILY ratio X` (to the limit), `… to_nftables X`, `…
/// to_veth X`, and for tcp_crr `… per_s X`, connections a second on one core; without FAMILY, the worse of the families measured.
/// Progress goes to standard error. With --json one document instead, with every round in it.
///
/// EXIT STATUS: 0; 1 when something could not be built or measured, or with --check when the goal is missed; 2 for a
/// wrong command line.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MasqueradeArgs {
    /// Print one JSON document instead of the table and the figures.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when the goal is missed.
    #[arg(long)]
    check: bool,
    /// How often everything is measured; medians are taken over the rounds.
    #[arg(long, value_name = "N", default_value_t = 13, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure these tests.
    #[arg(long, value_name = "TEST", value_delimiter = ',', value_enum, default_values_t = [Test::UdpRr, Test::TcpRr, Test::TcpCrr])]
    tests: Vec<Test>,
    /// The address family of the measured packets.
    #[arg(long, value_enum, default_value_t = Families::Both)]
    family: Families,
    /// Length of one measurement in milliseconds; a run takes about rounds x 4 x tests x families x 1.2 of it.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=500))]
    duration: u64,
}

const EXAMPLES: &str = "\
Examples:
  weft-bench masquerade                            everything, under a minute
  weft-bench masquerade --check                    the same as a gate
  weft-bench masquerade --tests tcp_crr --family 4
  weft-bench masquerade --rounds 3 --json | jq '.results[] | {way, test, family, to_nftables}'";

impl MasqueradeArgs {
    /// Does it; `false` when something was not measured, or the goal is missed and that was to be checked.
    pub fn run(self) -> Result<bool> {
        interrupt::watch()?;
        let _claim = netns::claim()?;
        let plan = Plan {
            tests: self.tests,
            families: self.family.list().to_vec(),
            rounds: self.rounds,
            duration: Duration::from_millis(self.duration),
        };
        let report = run(&plan)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).context("write the report as JSON")?);
        } else {
            print!("{}", report::text(&report));
        }
        let failures = report.failures();
        for failure in &failures {
            eprintln!("weft-bench: {failure}");
        }
        let broken = report.broken();
        for missed in &broken {
            eprintln!("weft-bench: goal missed: {missed}");
        }
        Ok(failures.is_empty() && (broken.is_empty() || !self.check))
    }
}
