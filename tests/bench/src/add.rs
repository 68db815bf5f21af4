//! `weft-bench add`: what a CNI call takes, as a container runtime sees it.
//!
//! The clock runs from the start of the plugin's process to the end of it, one call after another. The pods'
//! namespaces exist before: making them is the runtime's work. VERSION, which does not speak to the agent, shows how
//! much of it is starting a process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{Lab, LabConfig};
use serde::Serialize;
use serde_json::json;

use crate::netns::Netns;
use crate::path::{progress, progress_end};
use crate::{interrupt, stats};

/// ADD's budget: the median, milliseconds.
pub const ADD_P50_MS: f64 = 5.0;

/// How to call the plugin of one node.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The `weft-cni` binary.
    pub plugin: PathBuf,
    /// The network configuration, as it goes to the plugin's standard input.
    pub config: String,
}

/// Times of one verb, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The shortest.
    pub min_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct AddReport {
    /// Calls of each verb.
    pub count: u32,
    /// VERSION: the process alone.
    pub version: Times,
    /// ADD.
    pub add: Times,
    /// DEL.
    pub del: Times,
    /// The figures by name, as in the lines of the text.
    pub figures: BTreeMap<String, f64>,
}

impl AddReport {
    /// The budget, if it is broken.
    pub fn broken(&self) -> Option<String> {
        let p50 = self.add.p50_ms;
        (p50 > ADD_P50_MS).then(|| format!("ADD p50 {p50:.2} ms, budget <= {ADD_P50_MS:.0} ms"))
    }

    /// Whether half of the processes started much later than they can: then the figures tell of other load, not of
    /// the plugin.
    pub fn machine_is_busy(&self) -> bool {
        self.version.p50_ms > 2.0 * self.version.min_ms
    }
}

/// Builds a lab of one node, times `count` calls of each verb and takes the lab down.
pub fn measure(count: u32) -> Result<AddReport> {
    progress("building the lab");
    let lab = Lab::up(LabConfig::with_nodes(1))?;
    let [node] = lab.nodes() else { bail!("a lab of one node has {} nodes", lab.nodes().len()) };
    let config =
        json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentSocket": node.paths().cni_socket()});
    let runtime = Runtime { plugin: lab.bin_dir().join("weft-cni"), config: config.to_string() };
    let report = run(&runtime, count);
    // An error of the calls says more than one of the removal that may come of it.
    let down = lab.down().context("take the lab down");
    let report = report?;
    down.map(|()| report)
}

/// Times `count` VERSIONs, then as many ADDs, then as many DELs.
fn run(runtime: &Runtime, count: u32) -> Result<AddReport> {
    progress(&format!("making {count} namespaces"));
    let pods: Vec<Netns> = (0..count)
        .map(|number| {
            interrupt::check()?;
            Netns::create(&format!("add-{number}"))
        })
        .collect::<Result<_>>()?;
    let nobody = Path::new("/proc/self/ns/net");
    let mut times = BTreeMap::<&str, Vec<f64>>::new();
    let mut result = Ok(());
    for verb in ["VERSION", "ADD", "DEL"] {
        progress(&format!("{count} calls of {verb}"));
        for (number, pod) in pods.iter().enumerate() {
            let netns = if verb == "VERSION" { nobody } else { pod.path() };
            let wanted = if verb == "DEL" { Ok(()) } else { interrupt::check() };
            match wanted.and_then(|()| runtime.call(verb, &format!("weft-bench-{number}"), netns)) {
                Ok(time) => times.entry(verb).or_default().push(time.as_secs_f64() * 1e3),
                // DEL is called for all of them even so, or the agent would keep their addresses.
                Err(error) if verb == "DEL" && result.is_err() => drop(error),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
    }
    progress_end();
    result?;
    let of = |verb: &str| Times::of(times.get(verb).map_or(&[][..], Vec::as_slice)).context("no call was timed");
    let (version, add, del) = (of("VERSION")?, of("ADD")?, of("DEL")?);
    let mut figures = BTreeMap::new();
    for (verb, times) in [("version", version), ("add", add), ("del", del)] {
        figures.insert(format!("{verb} p50_ms"), times.p50_ms);
        figures.insert(format!("{verb} p99_ms"), times.p99_ms);
    }
    Ok(AddReport { count, version, add, del, figures })
}

impl Times {
    fn of(times: &[f64]) -> Option<Self> {
        let quantile = |q| stats::quantile(times, q);
        Some(Self { p50_ms: quantile(0.5)?, p99_ms: quantile(0.99)?, min_ms: quantile(0.0)?, max_ms: quantile(1.0)? })
    }
}

impl Runtime {
    /// Calls the plugin once and returns how long it ran.
    fn call(&self, verb: &str, container: &str, netns: &Path) -> Result<Duration> {
        let start = Instant::now();
        let mut child = Command::new(&self.plugin)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")))
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=weft-bench;K8S_POD_NAME={container}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.plugin.display()))?;
        child.stdin.take().context("the plugin has no standard input")?.write_all(self.config.as_bytes())?;
        let output = child.wait_with_output()?;
        let time = start.elapsed();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            bail!("{verb} of {container} failed with {}: {}", output.status, said.trim());
        }
        Ok(time)
    }
}

/// The report for people, with the lines of figures for programs at its end.
pub fn text(report: &AddReport) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let mut line = |columns: std::fmt::Arguments<'_>| writeln!(text, "{columns}").unwrap_or_default();
    line(format_args!("{} calls, one after another, from the start of weft-cni to its end", report.count));
    line(format_args!("{:8} {:>8} {:>8} {:>8} {:>8}  budget", "ms", "p50", "p99", "min", "max"));
    for (verb, times) in [("VERSION", report.version), ("ADD", report.add), ("DEL", report.del)] {
        let Times { p50_ms, p99_ms, min_ms, max_ms } = times;
        let budget = match verb {
            "ADD" if p50_ms > ADD_P50_MS => format!("p50 <= {ADD_P50_MS:.0} over"),
            "ADD" => format!("p50 <= {ADD_P50_MS:.0} ok"),
            _ => String::new(),
        };
        line(format_args!("{verb:8} {p50_ms:>8.2} {p99_ms:>8.2} {min_ms:>8.2} {max_ms:>8.2}  {budget}"));
    }
    line(format_args!(""));
    for (name, value) in &report.figures {
        line(format_args!("figure {name} {value:.2}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(version: Times, add: Times) -> AddReport {
        AddReport { count: 1, version, add, del: add, figures: BTreeMap::new() }
    }

    #[test]
    fn only_a_median_over_the_budget_breaks_it() {
        let quiet = Times::of(&[0.5, 0.5, 0.6]).unwrap();
        let late_tail = Times::of(&[1.0, 2.0, 80.0]).unwrap();
        let slow = Times::of(&[5.1, 5.1, 5.1]).unwrap();
        assert_eq!(report(quiet, late_tail).broken(), None);
        assert!(report(quiet, slow).broken().is_some_and(|text| text.contains("5.10 ms")));
    }

    #[test]
    fn a_machine_on_which_processes_start_late_is_called_busy() {
        let add = Times::of(&[1.0]).unwrap();
        assert!(!report(Times::of(&[0.5, 0.6, 4.0]).unwrap(), add).machine_is_busy());
        assert!(report(Times::of(&[0.5, 4.0, 4.0]).unwrap(), add).machine_is_busy());
    }
}
