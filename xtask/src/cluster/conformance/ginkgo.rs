//! Kubernetes' own end-to-end tests: `e2e.test`, several at a time by ginkgo.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use regex_lite::Regex;
use serde_json::Value;

use super::{
    programs::REGISTRY,
    report::{Case, Outcome, Progress},
};
use crate::run::{self, Read};

/// Cases that upstream marks, and what they need that is not here.
pub struct Skip {
    /// In the case's name, as a regular expression.
    pub marked: &'static str,
    /// Why it is not run.
    pub reason: &'static str,
    /// Whether that is so on this machine.
    pub holds: fn() -> bool,
}

/// What is not run.
pub const SKIPS: [Skip; 1] = [Skip {
    marked: r"\[Feature:SCTPConnectivity\]",
    reason: "needs sockets of SCTP, which this kernel has not",
    holds: || !fs::read_to_string("/proc/net/protocols").unwrap_or_default().lines().any(|l| l.starts_with("SCTP")),
}];

/// Left out of a short run: what others show as well, and what takes long.
const LONG: [&str; 0] = [];

/// Tests that run at the same time.
const AT_ONCE: &str = "--procs=4";
/// For one that hangs; ginkgo ends itself before.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the tests whose names match `focus`; `start` is a command to which the program and its arguments are appended. Files go to
/// `directory`.
pub fn run(
    mut start: Command,
    programs: &Path,
    kubeconfig: &Path,
    focus: &str,
    short: bool,
    directory: &Path,
) -> Result<Vec<Case>> {
    let registries = directory.join("registries.yaml");
    fs::write(&registries, format!("promoterE2eRegistry: {REGISTRY}\n")).context("write the list of registries")?;
    start.env("KUBE_TEST_REPO_LIST", &registries).arg(programs.join("ginkgo"));
    start.args(["-v", "--no-color", AT_ONCE, "--timeout=110m", "--json-report=report.json"]);
    start.arg(format!("--output-dir={}", directory.display())).arg(format!("--focus={focus}"));
    let skips: Vec<&Skip> = SKIPS.iter().filter(|s| (s.holds)()).collect();
    if short {
        start.args(LONG.iter().map(|name| format!("--skip={name}")));
    }
    start.args(skips.iter().map(|s| format!("--skip={}", s.marked)));
    start.arg(programs.join("e2e.test")).arg("--").arg(format!("--kubeconfig={}", kubeconfig.display()));
    start.args(["--provider=skeleton", "--disable-log-dump"]);
    let mut progress = Progress::default();
    let mut log = Vec::new();
    let ended = run::stream(&mut start, Read::Both, LIMIT, |line| {
        progress.ginkgo(line);
        log.push(line.to_owned());
    })?;
    let log_file = directory.join("e2e.log");
    fs::write(&log_file, log.join("\n")).with_context(|| format!("write {}", log_file.display()))?;
    let report = directory.join("report.json");
    let Ok(text) = fs::read_to_string(&report) else {
        bail!("ginkgo ended ({ended:?}) without a report:\n{}", run::tail(&log.join("\n"), 20));
    };
    cases(&serde_json::from_str(&text).with_context(|| format!("read {}", report.display()))?, focus, &skips)
}

/// What became of each test that matches `focus`.
fn cases(report: &Value, focus: &str, skips: &[&Skip]) -> Result<Vec<Case>> {
    let focus = Regex::new(focus).context("--focus is no regular expression")?;
    let marks = skips.iter().map(|s| Ok((Regex::new(s.marked)?, s.reason))).collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for spec in report.as_array().into_iter().flatten().flat_map(|suite| suite["SpecReports"].as_array()).flatten() {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(text);
        let name = above.chain([text(&spec["LeafNodeText"])]).collect::<Vec<_>>().join(" ");
        let is_case = spec["LeafNodeType"] == "It";
        // What goes before and after all cases has no name, and matters when it fails.
        if is_case && !focus.is_match(&name) {
            continue;
        }
        let said = text(&spec["Failure"]["Message"]);
        let outcome = match spec["State"].as_str().unwrap_or_default() {
            "passed" if is_case => Outcome::Passed,
            "passed" => continue,
            "skipped" => {
                let ours = marks.iter().find(|(mark, _)| mark.is_match(&name)).map(|(_, reason)| (*reason).to_owned());
                match ours {
                    Some(reason) => Outcome::Skipped(reason),
                    None if said.is_empty() => bail!("`{name}` was skipped, and nobody says why"),
                    None => Outcome::Skipped(said),
                }
            }
            state => Outcome::Failed(format!("{state}: {said}")),
        };
        let name = if is_case { name } else { text(&spec["LeafNodeType"]) };
        found.push(Case { name, outcome });
    }
    if !found.iter().any(|c| c.outcome == Outcome::Passed || matches!(c.outcome, Outcome::Failed(_))) {
        bail!("no test ran: none matches {focus}");
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(name: &str, state: &str) -> Value {
        json!({"ContainerHierarchyTexts": ["Netpol"], "LeafNodeType": "It", "LeafNodeText": name, "State": state, "Failure": {"Message": ""}})
    }

    #[test]
    fn each_case_has_its_outcome_and_each_skip_its_reason() {
        let skip = Skip { marked: r"\[SCTP\]", reason: "no SCTP", holds: || true };
        let report = json!([{"SpecReports": [
            spec("b", "passed"), spec("a", "failed"), spec("c [SCTP]", "skipped"), spec("another", "panicked"),
            {"ContainerHierarchyTexts": ["Other"], "LeafNodeType": "It", "LeafNodeText": "x", "State": "skipped"},
        ]}]);
        let found = cases(&report, "Netpol", &[&skip]).unwrap();
        let names: Vec<&str> = found.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["Netpol a", "Netpol another", "Netpol b", "Netpol c [SCTP]"]);
        assert!(matches!((&found[0].outcome, &found[1].outcome), (Outcome::Failed(_), Outcome::Failed(_))));
        assert_eq!(found[2].outcome, Outcome::Passed);
        assert_eq!(found[3].outcome, Outcome::Skipped("no SCTP".to_owned()));
    }

    #[test]
    fn a_skip_without_a_reason_is_an_error_and_so_is_no_test_at_all() {
        let of = |specs: Value| cases(&json!([{"SpecReports": specs}]), "Netpol", &[]);
        assert!(of(json!([spec("a", "passed"), spec("b", "skipped")])).is_err());
        assert!(of(json!([])).is_err());
    }

    #[test]
    fn a_suite_that_could_not_be_set_up_has_failed() {
        let before = json!({"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "",
                            "State": "failed", "Failure": {"Message": "no nodes"}});
        let found = cases(&json!([{"SpecReports": [before, spec("a", "passed")]}]), "Netpol", &[]).unwrap();
        assert!(found.iter().any(|c| c.outcome == Outcome::Failed("failed: no nodes".to_owned())));
    }
}
