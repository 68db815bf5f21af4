//! What is run in virtual machines: the lists of tests/vm/suites.toml.

use std::{cmp::Reverse, collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{test::TestBinary, workspace::Workspace};

/// The lists, relative to the workspace's root.
const FILE: &str = "tests/vm/suites.toml";

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// Kernels that are two nodes of one cluster in suites of two machines.
    pub pairs: Vec<[String; 2]>,
    /// Kernel modules, in a sensible order; their own needs are added.
    pub modules: Vec<String>,
    /// Programs of the host.
    pub tools: Vec<String>,
    /// Suites by name.
    pub suites: BTreeMap<String, Suite>,
    /// Test binaries that cannot run in a machine, and why.
    host_only: BTreeMap<String, String>,
    /// Seconds that a binary takes, of those that take long.
    #[serde(default)]
    seconds: BTreeMap<String, u32>,
}

/// Test binaries that are asked for together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// For people.
    pub what: String,
    /// `package/name`; a `*` at the end takes all that begin so.
    pub binaries: Vec<String>,
    /// How many machines, each of another kernel, run it together.
    #[serde(default = "one")]
    pub machines: usize,
    /// `cargo xtask test` leaves it out: it takes too long for every run.
    #[serde(default)]
    pub long: bool,
    /// Its machines hold the agent of the second build too, whose maps have another layout.
    #[serde(default)]
    pub second_build: bool,
}

fn one() -> usize {
    1
}

/// A test binary to run in a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The suite that it is of.
    pub suite: String,
    /// The binary.
    pub binary: TestBinary,
    /// Only tests whose name has this; empty: all.
    pub filter: &'static str,
    /// Seconds that it takes, about.
    pub seconds: u32,
}

/// What a binary takes that is not known to take long.
pub const SECONDS: u32 = 15;

/// Deals steps to so many machines of one kernel, each with about as much to do, and with its own in their order. None is left without.
pub fn deal(steps: &[Step], machines: usize) -> Vec<Vec<Step>> {
    let mut heaps = vec![(0, Vec::new()); machines.min(steps.len())];
    let mut longest_first: Vec<usize> = (0..steps.len()).collect();
    longest_first.sort_by_key(|&n| Reverse(steps[n].seconds));
    for n in longest_first {
        if let Some((seconds, heap)) = heaps.iter_mut().min_by_key(|(seconds, heap)| (*seconds, heap.len())) {
            *seconds += steps[n].seconds;
            heap.push(n);
        }
    }
    let sorted = |(_, mut heap): (u32, Vec<usize>)| {
        heap.sort_unstable();
        heap.into_iter().map(|n| steps[n].clone()).collect()
    };
    heaps.into_iter().map(sorted).collect()
}

impl Step {
    /// A step that is never run.
    #[cfg(test)]
    pub fn for_tests(package: &str, name: &str) -> Self {
        let binary = TestBinary { package: package.to_owned(), name: name.to_owned(), file: std::path::PathBuf::new() };
        Self { suite: package.to_owned(), binary, filter: "", seconds: SECONDS }
    }

    /// `package/name`.
    pub fn name(&self) -> String {
        full_name(&self.binary)
    }
}

fn full_name(binary: &TestBinary) -> String {
    format!("{}/{}", binary.package, binary.name)
}

impl Lists {
    /// Reads the lists.
    pub fn read(ws: &Workspace) -> Result<Self> {
        let text = fs::read_to_string(ws.root.join(FILE)).with_context(|| format!("read {FILE}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let lists: Self = toml::from_str(text).with_context(|| format!("read {FILE}"))?;
        if let Some((name, _)) = lists.suites.iter().find(|(_, s)| s.machines != 1 && s.machines != 2) {
            bail!("{FILE}: suite {name} is for 1 or 2 machines");
        }
        Ok(lists)
    }

    /// The suites of these names, or all; a name that is none is refused.
    pub fn choose(&self, names: &[String]) -> Result<Vec<String>> {
        let all: Vec<String> = self.suites.keys().cloned().collect();
        if let Some(unknown) = names.iter().find(|n| !self.suites.contains_key(*n)) {
            bail!("no suite `{unknown}`: there are {}", all.join(", "));
        }
        Ok(if names.is_empty() { all } else { names.to_vec() })
    }

    /// The suites that are for every run.
    pub fn short(&self) -> Vec<String> {
        self.suites.iter().filter(|(_, s)| !s.long).map(|(name, _)| name.clone()).collect()
    }

    /// Whether one of the chosen suites needs the second build.
    pub fn second_build(&self, chosen: &[String]) -> bool {
        chosen.iter().any(|name| self.suites.get(name).is_some_and(|s| s.second_build))
    }

    /// What to run of the chosen suites for so many machines, after a look at whether the lists fit the binaries.
    pub fn steps(&self, binaries: &[TestBinary], chosen: &[String], machines: usize) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let mut listed: BTreeMap<String, &str> = self.host_only.keys().map(|b| (b.clone(), "host_only")).collect();
        for (suite, Suite { binaries: patterns, machines: needs, .. }) in &self.suites {
            for pattern in patterns {
                let found: Vec<&TestBinary> = binaries.iter().filter(|b| matches(pattern, &full_name(b))).collect();
                if found.is_empty() {
                    bail!("{FILE}: suite {suite} lists {pattern}, and no test binary of that name has tests");
                }
                for binary in found {
                    if let Some(other) = listed.insert(full_name(binary), suite) {
                        bail!("{FILE}: {} is in {other} and in {suite}: it would run twice", full_name(binary));
                    }
                    if *needs == machines && chosen.contains(suite) {
                        let seconds = self.seconds.get(&full_name(binary)).map_or(SECONDS, |s| *s);
                        steps.push(Step { suite: suite.clone(), binary: binary.clone(), filter: "", seconds });
                    }
                }
            }
        }
        let named = self.host_only.keys().map(|n| ("host_only", n)).chain(self.seconds.keys().map(|n| ("seconds", n)));
        for (list, name) in named {
            if !binaries.iter().any(|b| full_name(b) == *name) {
                bail!("{FILE}: {list} lists {name}, and no test binary of that name has tests");
            }
        }
        if let Some(forgotten) = binaries.iter().map(full_name).find(|n| !listed.contains_key(n)) {
            bail!(
                "{FILE}: {forgotten} is in no suite: add it to one, so that it runs on every kernel, or to host_only with \
                 the reason why it cannot"
            );
        }
        Ok(steps)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const LISTS: &str = "pairs = [['5.10', 'newest']]\nmodules = []\ntools = []\n\
        [suites.packets]\nwhat = 'p'\nbinaries = ['packets/*']\n\
        [suites.lab]\nwhat = 'l'\nbinaries = ['lab/two_pods']\n\
        [suites.two-node]\nwhat = 't'\nbinaries = ['lab/pair']\nmachines = 2\n\
        [host_only]\n'lab/clients' = 'needs podman'\n";

    fn binaries(names: &str) -> Vec<TestBinary> {
        let split = |n: &str| n.split_once('/').map(|(p, n)| (p.to_owned(), n.to_owned())).unwrap();
        let binary = |(package, name)| TestBinary { package, name, file: PathBuf::new() };
        names.split_whitespace().map(|n| binary(split(n))).collect()
    }

    const ALL: &str = "packets/pins packets/tagged lab/two_pods lab/pair lab/clients";

    fn steps(lists: &str, names: &str, machines: usize) -> Result<Vec<String>> {
        let lists = Lists::parse(lists)?;
        let chosen = lists.choose(&[])?;
        Ok(lists.steps(&binaries(names), &chosen, machines)?.iter().map(Step::name).collect())
    }

    fn refusal(lists: &str, names: &str) -> String {
        format!("{:#}", steps(lists, names, 1).unwrap_err())
    }

    #[test]
    fn takes_binaries_by_name_and_by_how_they_begin_and_by_machines() {
        assert_eq!(steps(LISTS, ALL, 1).unwrap(), ["lab/two_pods", "packets/pins", "packets/tagged"]);
        assert_eq!(steps(LISTS, ALL, 2).unwrap(), ["lab/pair"]);
    }

    #[test]
    fn long_suites_are_run_when_asked_for_and_the_second_build_is_made_for_who_needs_it() {
        let lists = LISTS.replace("what = 'l'", "what = 'l'\nlong = true\nsecond_build = true");
        let lists = Lists::parse(&lists).unwrap();
        assert_eq!(lists.short(), ["packets", "two-node"]);
        assert!(!lists.second_build(&lists.short()) && lists.second_build(&lists.choose(&[]).unwrap()));
        assert_eq!(lists.choose(&[]).unwrap(), ["lab", "packets", "two-node"]);
    }

    #[test]
    fn a_listed_binary_that_is_not_there_is_an_error() {
        assert!(refusal(LISTS, "packets/pins lab/two_pods lab/clients").contains("two-node lists lab/pair"));
        assert!(refusal(LISTS, "packets/pins lab/two_pods lab/pair").contains("host_only lists lab/clients"));
    }

    #[test]
    fn a_binary_that_is_nowhere_is_an_error() {
        assert!(refusal(LISTS, &format!("{ALL} lab/new")).contains("lab/new is in no suite"));
    }

    #[test]
    fn a_binary_in_two_lists_is_an_error() {
        assert!(
            refusal(&LISTS.replace("lab/two_pods", "lab/*"), ALL).contains("lab/clients is in host_only and in lab")
        );
    }

    #[test]
    fn machines_of_a_kernel_share_the_work_and_do_theirs_in_order() {
        let step = |(n, seconds): (usize, &u32)| Step { seconds: *seconds, ..Step::for_tests("lab", &n.to_string()) };
        let steps: Vec<Step> = [15, 100, 15, 90, 15, 60].iter().enumerate().map(step).collect();
        let names = |machines| {
            let of = |heap: &Vec<Step>| heap.iter().map(|s| s.binary.name.clone()).collect::<Vec<_>>().join(" ");
            deal(&steps, machines).iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["0 1 2 3 4 5"]);
        assert_eq!(names(2), ["0 1 2 4", "3 5"]);
        assert_eq!(names(9).len(), 6);
    }

    #[test]
    fn a_time_of_what_is_no_binary_is_an_error() {
        let timed = format!("{LISTS}[seconds]\n'lab/two_pods' = 30\n");
        let lists = Lists::parse(&timed).unwrap();
        let steps = lists.steps(&binaries(ALL), &lists.choose(&[]).unwrap(), 1).unwrap();
        assert_eq!(steps.iter().map(|s| s.seconds).collect::<Vec<_>>(), [30, SECONDS, SECONDS]);
        assert!(
            refusal(&timed.replace("two_pods' = 30", "three_pods' = 30"), ALL).contains("seconds lists lab/three_pods")
        );
    }

    #[test]
    fn an_unknown_suite_is_refused_with_those_there_are() {
        let lists = Lists::parse(LISTS).unwrap();
        let text = format!("{:#}", lists.choose(&["labs".to_owned()]).unwrap_err());
        assert!(text.contains("lab, packets, two-node"), "{text}");
        assert!(Lists::parse(&LISTS.replace("machines = 2", "machines = 3")).is_err());
    }
}
