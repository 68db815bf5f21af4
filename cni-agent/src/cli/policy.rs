//! `weft policy`: what policies say, without an agent.
use std::{
    fs, io,
    io::{BufRead, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand, ValueEnum};

use super::Failure;
use crate::policy::verdicts::{self, Case, Mode, Question};

/// Above the options of `verdicts`.
const ABOUT: &str = "\
Judges every flow of a scenario by its NetworkPolicies and ClusterNetworkPolicies, without a cluster and without an agent.

The scenario is a file of JSON, schema netpol-verdict-case/1: a cluster's objects, what happens to them step by step, and the \
probes to try. The objects go the way that the agent's own go: each node's agent follows the events, compiles them to the entries \
of the BPF maps, and each flow is looked up in those bytes by the function that the BPF programs are built from. The answer, \
schema netpol-verdict-result/1, is one matrix of verdicts for each step: `.` allowed, `E` denied by the egress policies of the \
source pod, `I` by the ingress policies of the destination pod, `B` by both, `-` no flow.

What in a policy the API server would have refused matches nothing, and is told on standard error and under `problems`.";

/// Below them.
const AFTER: &str = "\
Exit status:
  0  done
  1  the answer could not be written
  2  the input cannot be read, or is no scenario; with --batch, at least one line was not
  3  something is asked for that is not supported; standard output says what: {\"unsupported\": [\"…\"]}

Examples:
  weft policy verdicts --input case.json
  weft policy verdicts --input case.json --rebuild
  weft policy verdicts --input case.json --explain 0 pod:shop/web@10.1.0.5 ext:203.0.113.9 TCP/443
  weft policy verdicts --batch < cases.jsonl > results.jsonl";

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Judge every flow of a scenario, by the very look-up that the packet path has
    #[command(long_about = ABOUT, after_long_help = AFTER)]
    Verdicts(Verdicts),
}

#[derive(Clone, Debug, Args)]
pub(super) struct Verdicts {
    /// Read the scenario from this file
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    input: Option<PathBuf>,
    /// Read one scenario a line from standard input, and write one result a line
    ///
    /// A line that is no scenario is told on standard error, and the others are still judged.
    #[arg(long, conflicts_with_all = ["input", "explain"])]
    batch: bool,
    /// Compile each step from nothing, instead of following what changed
    ///
    /// Both ways give the same verdicts.
    #[arg(long)]
    rebuild: bool,
    /// What looks the flows up
    #[arg(long, value_enum, default_value_t = Lookup::Native)]
    lookup: Lookup,
    /// Say in words why one flow may pass or not, instead of judging all
    ///
    /// STEP counts from 0; FROM and TO are ends as the matrix names them (pod:NS/NAME@IP, node:NAME@IP, ext:IP); PROBE is
    /// TCP/PORT, UDP/PORT, SCTP/PORT or ICMP/0.
    #[arg(long, num_args = 4, value_names = ["STEP", "FROM", "TO", "PROBE"])]
    explain: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lookup {
    /// The function of the BPF programs, built for this host
    Native,
    /// The loaded BPF program itself (not yet)
    Bpf,
}

pub(super) fn run(command: &Policy, out: &mut dyn Write) -> Result<(), Failure> {
    let Policy::Verdicts(options) = command;
    if options.lookup == Lookup::Bpf {
        let reason = "--lookup bpf: the BPF programs do not look policies up yet";
        writeln!(out, "{}", serde_json::json!({"unsupported": [reason]}))?;
        return Err(Failure::Unsupported(reason.into()));
    }
    let mode = if options.rebuild { Mode::Rebuild } else { Mode::Incremental };
    if options.batch {
        return batch(mode, &mut io::stdin().lock(), out);
    }
    let path = options.input.clone().unwrap_or_default();
    let input = |cause: &dyn std::fmt::Display| Failure::Usage(format!("{}: {cause}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| input(&e))?;
    let case: Case = text.parse().map_err(|e| input(&e))?;
    if let Some(words) = &options.explain {
        let text = verdicts::explain(&case, mode, &question(words)?).map_err(|e| input(&e))?;
        out.write_all(text.as_bytes())?;
    } else {
        judge(&case, mode, out)?.map_err(|e| input(&e))?;
    }
    Ok(out.flush()?)
}

/// The inner error is the input's.
fn judge(case: &Case, mode: Mode, out: &mut dyn Write) -> io::Result<Result<(), verdicts::BadCase>> {
    match verdicts::judge(case, mode) {
        Ok(answer) => {
            answer.problems.iter().for_each(|p| eprintln!("weft: {}: {p}", case.id));
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
            Ok(Ok(()))
        }
        Err(bad) => Ok(Err(bad)),
    }
}

fn batch(mode: Mode, cases: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), Failure> {
    let mut bad = 0_usize;
    for (n, line) in cases.lines().enumerate() {
        let line = line.map_err(|e| Failure::Usage(format!("standard input: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let judged = match line.parse() {
            Ok(case) => judge(&case, mode, out)?,
            Err(bad) => Err(bad),
        };
        if let Err(error) = judged {
            eprintln!("weft: line {}: {error}", n + 1);
            bad += 1;
        }
    }
    out.flush()?;
    if bad == 0 { Ok(()) } else { Err(Failure::Usage(format!("{bad} of the lines are no scenarios"))) }
}

fn question(words: &[String]) -> Result<Question, Failure> {
    let usage = |text: String| Failure::Usage(format!("--explain: {text}"));
    let [step, from, to, probe] = words else { return Err(usage("it takes STEP FROM TO PROBE".into())) };
    Ok(Question {
        step: step.parse().map_err(|_| usage(format!("`{step}` is no number of a step")))?,
        from: from.clone(),
        to: to.clone(),
        probe: probe.parse().map_err(usage)?,
    })
}
