//! A scenario as its file has it: what happens to policies and labels step by step, and which flows are denied then.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// What happens to policies and labels, and what becomes of flows then.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows.
    pub title: String,
    /// In this order, beginning without a policy.
    pub steps: Vec<Step>,
}

/// Changes, and the verdicts after them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Whether the kind is there: `gone` takes its definition away.
    #[serde(default)]
    pub definition: Option<Definition>,
    /// Objects that the API server takes.
    #[serde(default)]
    pub apply: Vec<Value>,
    /// Objects that the API server must refuse.
    #[serde(default)]
    pub refused: Vec<Value>,
    /// Objects that go: `clusternetworkpolicy/NAME`, or `networkpolicy/NAMESPACE/NAME`.
    #[serde(default)]
    pub delete: Vec<String>,
    /// Labels of `NAMESPACE` or `NAMESPACE/POD`; null takes one away.
    #[serde(default)]
    pub labels: BTreeMap<String, BTreeMap<String, Option<String>>>,
    /// The flows that are denied: `FROM > TO`, and of which family or with which probes if not with all. Every other one is allowed.
    pub denied: Vec<String>,
}

/// What becomes of the kind's definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Definition {
    /// It is deleted.
    Gone,
}

impl Scenario {
    /// Reads the text of a file.
    pub fn read(text: &str) -> Result<Self> {
        let scenario: Self = serde_saphyr::from_str(text).context("read the scenario")?;
        scenario.steps.iter().try_for_each(|step| step.denials().map(drop))?;
        Ok(scenario)
    }
}

impl Step {
    /// What it denies.
    pub fn denials(&self) -> Result<Vec<Denial>> {
        self.denied.iter().map(|line| Denial::read(line)).collect()
    }
}

/// Flows that are denied.
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    from: String,
    to: String,
    ipv4: bool,
    ipv6: bool,
    probes: Vec<String>,
}

impl Denial {
    fn read(line: &str) -> Result<Self> {
        let form = || format!("`{line}` is not `FROM > TO`, and families or probes after it");
        let (from, rest) = line.split_once(" > ").with_context(form)?;
        let mut words = rest.split_ascii_whitespace();
        let to = words.next().with_context(form)?;
        let (mut ipv4, mut ipv6, mut probes) = (false, false, Vec::new());
        for word in words {
            match word {
                "IPv4" => ipv4 = true,
                "IPv6" => ipv6 = true,
                _ if PROBES.contains(&word) => probes.push(word.to_owned()),
                _ => bail!("{}: no `{word}` is asked", form()),
            }
        }
        let both = !ipv4 && !ipv6;
        Ok(Self { from: from.to_owned(), to: to.to_owned(), ipv4: ipv4 || both, ipv6: ipv6 || both, probes })
    }

    /// Whether it has the flow between two that are called so.
    pub fn has(&self, from: &str, to: &str, is_ipv4: bool, probe: &str) -> bool {
        let family = if is_ipv4 { self.ipv4 } else { self.ipv6 };
        let probes = self.probes.is_empty() || self.probes.iter().any(|p| p == probe);
        family && probes && matches(&self.from, from) && matches(&self.to, to)
    }
}

/// What is tried between any two ends.
pub const PROBES: [&str; 4] = ["TCP/80", "TCP/81", "UDP/80", "UDP/81"];

/// Part by part; a `*` at a part's end stands for whatever follows in it.
fn matches(pattern: &str, name: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), name.split('/'));
    let is = |(pattern, part): (&str, &str)| match pattern.strip_suffix('*') {
        Some(begin) => part.starts_with(begin),
        None => part == pattern,
    };
    patterns.clone().count() == parts.clone().count() && patterns.zip(parts).all(is)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_denial_is_of_what_its_line_names() {
        let some = Denial::read("near/* > far/a IPv4 TCP/80 UDP/81").unwrap();
        assert!(some.has("near/b", "far/a", true, "TCP/80") && some.has("near/a", "far/a", true, "UDP/81"));
        assert!(!some.has("near/b", "far/a", false, "TCP/80") && !some.has("near/b", "far/a", true, "TCP/81"));
        assert!(!some.has("near/b", "far/b", true, "TCP/80") && !some.has("node-1", "far/a", true, "TCP/80"));
        let all = Denial::read("*/* > node-*").unwrap();
        assert!(all.has("far/b", "node-2", false, "UDP/80") && !all.has("far/b", "world", true, "UDP/80"));
        for line in ["near/a", "near/a > ", "near/a > far/a TCP/82"] {
            assert!(Denial::read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_scenario_of_the_repository_is_one() {
        let all = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")).unwrap();
        let files = all.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"));
        let texts: Vec<String> = files.map(|file| fs::read_to_string(file).unwrap()).collect();
        assert!(!texts.is_empty());
        for text in texts {
            let scenario = Scenario::read(&text).unwrap();
            assert!(!scenario.steps.is_empty(), "{}", scenario.title);
        }
    }
}
