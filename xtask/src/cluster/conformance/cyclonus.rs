//! Cyclonus' generated cases: policies of every shape, each held against what its own model of NetworkPolicy says of every pair of nine
//! pods. `tests/cluster/conformance/cases` runs them.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    programs::REGISTRY,
    report::{Case, Outcome, Progress},
};
use crate::run::{self, Read};

/// Left out of a short run: two peers in one rule, and what Kubernetes' own suite has too.
const LONG: &str = "multi-peer,upstream-e2e";
/// For one that hangs.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the cases that have one of these tags, or all. `start` is a command to which the program and its arguments are appended.
/// What cyclonus says goes to `directory`.
pub fn run(mut start: Command, programs: &Path, tags: &[String], short: bool, directory: &Path) -> Result<Vec<Case>> {
    start.arg(programs.join("cases")).arg(format!("--registry={REGISTRY}")).arg(format!("--tags={}", tags.join(",")));
    start.arg(format!("--without={}", if short { LONG } else { "" }));
    let (mut reader, mut progress, mut log) = (Reader::default(), Progress::default(), Vec::new());
    let ended = run::stream(&mut start, Read::Both, LIMIT, |line| {
        if let Some(case) = reader.line(line) {
            progress.next(case);
        }
        progress.total = reader.total;
        log.push(line.to_owned());
    })?;
    let log_file = directory.join("cyclonus.log");
    fs::write(&log_file, log.join("\n")).with_context(|| format!("write {}", log_file.display()))?;
    let why = format!("cyclonus ended ({ended:?}): {}", run::tail(&log.join("\n"), 3));
    if reader.total == 0 {
        bail!(why);
    }
    Ok(reader.finish(&why))
}

/// Makes cases of what the program prints.
#[derive(Default)]
struct Reader {
    total: usize,
    cases: Vec<Case>,
}

impl Reader {
    /// Takes a line; gives the case that ended.
    fn line(&mut self, line: &str) -> Option<&Case> {
        // Between its objects are cyclonus' own words.
        let said: Value = line.starts_with('{').then(|| serde_json::from_str(line).ok())??;
        if let Some(total) = said["cases"].as_u64() {
            self.total = usize::try_from(total).ok()?;
        }
        let (number, name) = (said["number"].as_u64()?, said["name"].as_str()?);
        let wrong: Vec<&str> = said["wrong"].as_array()?.iter().filter_map(Value::as_str).collect();
        let outcome = match wrong.as_slice() {
            _ if said["skipped"].is_string() => Outcome::Skipped(said["skipped"].as_str()?.to_owned()),
            [] => Outcome::Passed,
            [first, others @ ..] => Outcome::Failed(format!("{first}, and {} more", others.len())),
        };
        // Many cases are called after all their tags, in any order.
        let tags: Vec<&str> = said["tags"].as_array()?.iter().filter_map(Value::as_str).collect();
        let is_tags = name.split(',').all(|word| tags.contains(&word));
        let name = if is_tags { tags.join(",") } else { name.to_owned() };
        self.cases.push(Case { name: format!("{number}: {name}"), outcome });
        self.cases.last()
    }

    /// Those that were announced and did not end have failed.
    fn finish(mut self, why: &str) -> Vec<Case> {
        for number in self.cases.len() + 1..=self.total {
            self.cases.push(Case { name: number.to_string(), outcome: Outcome::Failed(format!("did not end: {why}")) });
        }
        self.cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"
{"cases": 4}
time="2026-11-30" level=info msg="cluster state reset"
{"number": 1, "name": "rule,ingress", "tags": ["ingress", "rule"], "wrong": []}
{"number": 2, "name": "to b, then a", "tags": ["rule"], "wrong": ["step 1: x/a to y/b TCP/80 is allowed", "other"]}
{"number": 3, "name": "rule", "tags": ["rule"], "wrong": [], "skipped": "left out: rule"}
"#;

    #[test]
    fn a_case_passes_when_no_pair_is_wrong_and_it_ends() {
        let mut reader = Reader::default();
        let ended = SAID.lines().filter(|line| reader.line(line).is_some()).count();
        let cases = reader.finish("killed");
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!((ended, names), (3, vec!["1: ingress,rule", "2: to b, then a", "3: rule", "4"]));
        assert_eq!(cases[0].outcome, Outcome::Passed);
        let wrong = "step 1: x/a to y/b TCP/80 is allowed, and 1 more";
        assert_eq!(cases[1].outcome, Outcome::Failed(wrong.to_owned()));
        assert_eq!(cases[2].outcome, Outcome::Skipped("left out: rule".to_owned()));
        assert_eq!(cases[3].outcome, Outcome::Failed("did not end: killed".to_owned()));
    }
}
