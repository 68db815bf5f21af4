//! Cases as programs of ours say them: an object of JSON a line, how many there will be, then each as it ends.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::report::{Case, Outcome, Progress};
use crate::run::{self, Read};

/// Runs a program and gives the cases that it says. All its words go to the file `log`.
pub fn run(program: &mut Command, limit: Duration, log: &Path) -> Result<Vec<Case>> {
    let (mut reader, mut progress, mut words) = (Reader::default(), Progress::default(), Vec::new());
    let ended = run::stream(program, Read::Both, limit, |line| {
        if let Some(case) = reader.line(line) {
            progress.next(case);
        }
        progress.total = reader.total;
        words.push(line.to_owned());
    })?;
    fs::write(log, words.join("\n")).with_context(|| format!("write {}", log.display()))?;
    let why = format!("the program ended ({ended:?}): {}", run::tail(&words.join("\n"), 3));
    if reader.total == 0 {
        bail!(why);
    }
    Ok(reader.finish(&why))
}

/// Makes cases of what the program prints.
#[derive(Default)]
struct Reader {
    total: usize,
    /// Cases that are before the first one, in another part of the suite.
    before: usize,
    cases: Vec<Case>,
}

impl Reader {
    /// Takes a line; gives the case that ended.
    fn line(&mut self, line: &str) -> Option<&Case> {
        // Between its objects are other words.
        let said: Value = line.starts_with('{').then(|| serde_json::from_str(line).ok())??;
        if let Some(total) = said["cases"].as_u64() {
            self.total = usize::try_from(total).ok()?;
            self.before = said["before"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
        }
        let (number, name) = (said["number"].as_u64()?, said["name"].as_str()?);
        let wrong: Vec<&str> = said["wrong"].as_array()?.iter().filter_map(Value::as_str).collect();
        let outcome = match wrong.as_slice() {
            _ if said["skipped"].is_string() => Outcome::Skipped(said["skipped"].as_str()?.to_owned()),
            [] => Outcome::Passed,
            [only] => Outcome::Failed((*only).to_owned()),
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
            let number = self.before + number;
            self.cases.push(Case { name: number.to_string(), outcome: Outcome::Failed(format!("did not end: {why}")) });
        }
        self.cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"
{"cases": 4, "before": 6}
time="2026-11-30" level=info msg="cluster state reset"
{"number": 7, "name": "rule,ingress", "tags": ["ingress", "rule"], "wrong": []}
{"number": 8, "name": "to b, then a", "tags": ["rule"], "wrong": ["step 1: x/a to y/b TCP/80 is allowed", "other"]}
{"number": 9, "name": "rule", "tags": ["rule"], "wrong": [], "skipped": "left out: rule"}
"#;

    #[test]
    fn a_case_passes_when_no_pair_is_wrong_and_it_ends() {
        let mut reader = Reader::default();
        let ended = SAID.lines().filter(|line| reader.line(line).is_some()).count();
        let cases = reader.finish("killed");
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!((ended, names), (3, vec!["7: ingress,rule", "8: to b, then a", "9: rule", "10"]));
        assert_eq!(cases[0].outcome, Outcome::Passed);
        let wrong = "step 1: x/a to y/b TCP/80 is allowed, and 1 more";
        assert_eq!(cases[1].outcome, Outcome::Failed(wrong.to_owned()));
        assert_eq!(cases[2].outcome, Outcome::Skipped("left out: rule".to_owned()));
        assert_eq!(cases[3].outcome, Outcome::Failed("did not end: killed".to_owned()));
    }
}
