//! Cyclonus' generated cases: policies of every shape, each held against what its own model of NetworkPolicy says of every pair of nine
//! pods.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::report::{Case, Outcome, Progress};
use crate::run::{self, Ended, Read};

/// Seconds between a change and the probes: it takes Weft milliseconds.
const PAUSE: &str = "--perturbation-wait-seconds=1";
/// Left out of a short run: peers of two kinds in one rule, and what Kubernetes' own suite has too.
const LONG: &str = "--exclude=multi-peer,upstream-e2e";
/// For one that hangs.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the cases that have one of these tags, or all. `start` is a command to which the program and its arguments are appended.
/// Cyclonus knows a mark for each pair: what it says goes to `directory`.
pub fn run(mut start: Command, programs: &Path, tags: &[String], short: bool, directory: &Path) -> Result<Vec<Case>> {
    start.arg(programs.join("cyclonus")).args(["generate", PAUSE, "--pod-creation-timeout-seconds=120"]);
    // Without names and addresses of Services; and this kernel may have no SCTP.
    start.args(["--destination-type=pod-ip", "--server-protocol=TCP,UDP", "--retries=2"]);
    start.arg(if short { LONG } else { "--exclude=" });
    start.args(tags.iter().map(|t| format!("--include={t}")));
    let (mut reader, mut progress, mut log) = (Reader::default(), Progress::default(), Vec::new());
    let ended = run::stream(&mut start, Read::Both, LIMIT, |line| {
        if let Some(case) = reader.line(line) {
            progress.next(&case);
        }
        progress.total = reader.total;
        log.push(line.to_owned());
    })?;
    let log_file = directory.join("cyclonus.log");
    fs::write(&log_file, log.join("\n")).with_context(|| format!("write {}", log_file.display()))?;
    let why = format!("cyclonus ended ({ended:?}): {}", run::tail(&log.join("\n"), 3));
    if ended != Ended::Well && reader.cases.is_empty() {
        bail!(why);
    }
    Ok(reader.finish(&why))
}

/// Makes cases of what cyclonus prints.
#[derive(Default)]
struct Reader {
    total: usize,
    /// Of the case that runs: its number, what it is called once that is said, and what was wrong.
    running: Option<(usize, String, Vec<String>)>,
    names: Vec<String>,
    cases: Vec<Case>,
}

impl Reader {
    /// Takes a line; gives the case that ends with it.
    fn line(&mut self, line: &str) -> Option<Case> {
        if let Some(rest) = line.strip_prefix("testing ") {
            self.total = rest.split(' ').next()?.parse().ok()?;
        } else if let Some(rest) = line.strip_prefix("test #") {
            self.names.push(rest.split_once(": ")?.1.to_owned());
        } else if let Some(number) = line.strip_prefix("starting test case #") {
            let number: usize = number.parse().ok()?;
            let name = self.names.get(number.checked_sub(1)?).cloned().unwrap_or_default();
            self.running = Some((number, name, Vec::new()));
        } else if line.starts_with("finished policy #") {
            let (number, name, wrong) = self.running.take()?;
            return Some(self.end(number, name, wrong));
        } else if let Some((wrong, _)) = line.trim_start_matches("Discrepancy found:").split_once(" wrong, ") {
            if let (Some((.., all)), Ok(count)) = (&mut self.running, wrong.parse::<u32>()) {
                all.extend((count > 0).then(|| format!("{count} of the pairs are wrong: {line}")));
            }
        }
        None
    }

    fn end(&mut self, number: usize, name: String, wrong: Vec<String>) -> Case {
        let outcome = if wrong.is_empty() { Outcome::Passed } else { Outcome::Failed(wrong.join("; ")) };
        let case = Case { name: format!("{number}: {name}"), outcome };
        self.cases.push(case.clone());
        case
    }

    /// Those that were announced and did not end have failed.
    fn finish(mut self, why: &str) -> Vec<Case> {
        let ended = self.cases.len();
        for number in ended + 1..=self.total {
            let name = self.names.get(number - 1).cloned().unwrap_or_default();
            self.end(number, name, vec![format!("did not end: {why}")]);
        }
        self.cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
testing 3 cases

test #1: deny all
 - tags: deny-all
test #2: allow: all
test #3: named port
starting test case #1
81 ignored
0 wrong, 0 ignored, 81 correct
0 wrong, 0 ignored, 81 correct
finished policy #1
starting test case #2
Discrepancy found:7 wrong, 0 ignored, 74 correct
0 wrong, 0 ignored, 81 correct
finished policy #2
starting test case #3
";

    #[test]
    fn a_case_passes_when_none_of_its_steps_is_wrong_and_it_ends() {
        let mut reader = Reader::default();
        for line in SAID.lines() {
            reader.line(line);
        }
        let cases = reader.finish("killed");
        let of = |n: usize| (cases[n].name.as_str(), matches!(cases[n].outcome, Outcome::Passed));
        assert_eq!([of(0), of(1), of(2)], [("1: deny all", true), ("2: allow: all", false), ("3: named port", false)]);
        assert_eq!(cases[2].outcome, Outcome::Failed("did not end: killed".to_owned()));
    }
}
