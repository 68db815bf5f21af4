//! What became of each case: shown as it runs, counted, and written as a table.

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use serde::{Deserialize, Serialize};

use crate::ui;

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As it must be.
    Passed,
    /// What was wrong.
    Failed(String),
    /// Why it was not run.
    Skipped(String),
}

/// A test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// The cases of a suite, in its order.
pub struct Suite {
    /// What we call it.
    pub name: &'static str,
    /// What it is, with its version.
    pub what: String,
    /// Its cases.
    pub cases: Vec<Case>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Suite {
    /// How many passed, failed and were skipped.
    pub fn counts(&self) -> (usize, usize, usize) {
        let of = |is: fn(&Outcome) -> bool| self.cases.iter().filter(|c| is(&c.outcome)).count();
        (
            of(|o| *o == Outcome::Passed),
            of(|o| matches!(o, Outcome::Failed(_))),
            of(|o| matches!(o, Outcome::Skipped(_))),
        )
    }

    /// What failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cases.iter().filter_map(|c| match &c.outcome {
            Outcome::Failed(why) => Some((c.name.as_str(), why.as_str())),
            Outcome::Passed | Outcome::Skipped(_) => None,
        })
    }
}

/// Shows each case as it ends: `3 of 45`, and failures with what was wrong.
#[derive(Default)]
pub struct Progress {
    /// How many there will be.
    pub total: usize,
    ended: usize,
    started: Option<Instant>,
    /// Ginkgo says what became of a case in one line, and which it was in the next.
    said: Option<String>,
}

impl Progress {
    /// Shows a case that has ended.
    pub fn next(&mut self, case: &Case) {
        let outcome = match &case.outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed(why) => format!("FAILED: {why}"),
            Outcome::Skipped(why) => format!("skipped: {why}"),
        };
        self.show(&outcome, &case.name);
    }

    fn show(&mut self, outcome: &str, name: &str) {
        self.ended += 1;
        let elapsed = self.started.get_or_insert_with(Instant::now).elapsed();
        eprintln!("    {} of {}, {}: {outcome}: {name}", self.ended, self.total, ui::seconds(elapsed));
    }

    /// Takes a line of `ginkgo -v`.
    pub fn ginkgo(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("Will run ") {
            self.started = Some(Instant::now());
            self.total = rest.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        } else if let Some(outcome) = self.said.take() {
            self.show(&outcome, line);
        } else if line.ends_with(" seconds]") {
            // `• [1.2 seconds]`, or `• [FAILED] [1.2 seconds]` and the like; S of what skipped itself.
            let Some((_, rest)) = line.split_once(" [").filter(|(mark, _)| ["•", "S"].contains(mark)) else { return };
            let outcome = rest.split_once("] [").map_or("passed", |(outcome, _)| outcome);
            self.said = Some(outcome.to_owned());
        }
    }
}

/// The page with all cases.
pub fn page(suites: &[Suite], machine: &str) -> String {
    let mut out = String::from(
        "# Conformance\n\n\
         Upstream's tests, and scenarios of ours, against Weft in a cluster of two nodes ([kubernetes.md](kubernetes.md)), with pods on both. Written by \
         `cargo xtask cluster conformance --write`, and by nobody else.\n\n",
    );
    // Writing to a String cannot fail.
    let _unfailing = writeln!(
        out,
        "{machine}\n\n| suite | what it is | passed | failed | skipped |\n| --- | --- | --- | --- | --- |"
    );
    for suite in suites {
        let (passed, failed, skipped) = suite.counts();
        let _unfailing = writeln!(out, "| {} | {} | {passed} | {failed} | {skipped} |", suite.name, suite.what);
    }
    out.push_str(DIFFERENCES);
    for suite in suites.iter().filter(|s| s.cases.is_empty()) {
        let _unfailing = writeln!(out, "\n**`{}` is not in this table: it was not run whole.**", suite.name);
    }
    for suite in suites.iter().filter(|s| !s.cases.is_empty()) {
        let _unfailing = writeln!(out, "\n## {}\n\n| case | result |\n| --- | --- |", suite.name);
        for case in &suite.cases {
            let result = match &case.outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed(why) => format!("**failed**: {}", in_a_cell(why)),
                Outcome::Skipped(why) => format!("skipped: {}", in_a_cell(why)),
            };
            let _unfailing = writeln!(out, "| {} | {result} |", in_a_cell(&case.name));
        }
    }
    out
}

/// What is not as upstream has it.
const DIFFERENCES: &str = "
What is not as upstream has it:

* The cluster has no kube-proxy, and Weft itself serves no Services. `e2e` asks each pod under its own address instead of a Service's (one statement is built as another,
  `xtask/src/cluster/conformance/programs.rs`), and cyclonus does so by its mode `pod-ip`.
* Cyclonus is run as a library (`tests/cluster/conformance/cases`), so that all questions of a pod are asked in one exec, by a worker of ours
  (`tests/cluster/conformance/worker`) that connects as `agnhost connect` does.

`cnp` is ours: `tests/cluster/policies` has each scenario with the flows that are denied after each of its steps. The API server takes or refuses the policies by upstream's
definition of the kind, which comes after the agents. Pods of both nodes, the nodes, and a machine outside are asked by TCP and UDP in both families, each of some 500 ways after each
step, by sockets in the network namespaces of those who ask; those who answer are agnhost's. Every verdict must be what the scenario says, and what `weft policy verdicts` says of the objects that the API server has then.
";

/// A table's cell is one line, and ends at a bar.
fn in_a_cell(text: &str) -> String {
    text.lines().next().unwrap_or_default().replace('|', "\\|")
}

/// How often each failure or skip was met, for the last lines on the terminal.
pub fn reasons(suites: &[Suite]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for case in suites.iter().flat_map(|s| &s.cases) {
        if let Outcome::Skipped(why) = &case.outcome {
            *all.entry(why.clone()).or_default() += 1;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(outcomes: &[Outcome]) -> Suite {
        let case = |(n, outcome): (usize, &Outcome)| Case { name: format!("case {n} a|b"), outcome: outcome.clone() };
        Suite {
            name: "e2e",
            what: "x 1.0".to_owned(),
            cases: outcomes.iter().enumerate().map(case).collect(),
            seconds: 2.0,
        }
    }

    #[test]
    fn the_page_counts_and_names_every_case_and_reason() {
        let all = [Outcome::Passed, Outcome::Failed("a|b\nmore".to_owned()), Outcome::Skipped("no SCTP".to_owned())];
        let text = page(&[suite(&all)], "Linux 6.1");
        for line in [
            "| e2e | x 1.0 | 1 | 1 | 1 |",
            "| case 0 a\\|b | passed |",
            "| case 1 a\\|b | **failed**: a\\|b |",
            "| case 2 a\\|b | skipped: no SCTP |",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in\n{text}");
        }
    }

    #[test]
    fn ginkgo_says_in_two_lines_what_became_of_a_case() {
        let mut progress = Progress::default();
        for line in [
            "Will run 45 of 7356 specs",
            "• [12.3 seconds]",
            "[sig-network] a",
            "• [FAILED] [1.0 seconds]",
            "b",
            "•",
            "[AfterSuite] PASSED [0.1 seconds]",
            "c",
        ] {
            progress.ginkgo(line);
        }
        assert_eq!((progress.total, progress.ended), (45, 2));
    }
}
