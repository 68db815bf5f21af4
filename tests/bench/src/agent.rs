//! `weft-bench agent`: how soon an agent is ready, and what memory it holds.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use lab::{Ending, Hostile, Lab, LabConfig, PodSpec};

use crate::path::{progress, progress_end};
use crate::{interrupt, stats};

/// The slowest start allowed, milliseconds.
pub const READY_MS: f64 = 1000.0;
/// The most resident memory allowed, MiB.
pub const RSS_MIB: f64 = 20.0;
/// Pods on the node whose agent is measured.
const PODS: u32 = 20;

/// Builds a lab of two nodes with some pods, starts the first node's agent anew `rounds` times, killed each time, and takes the lab
/// down. Answers with the figures by name.
pub fn measure(rounds: u32) -> Result<BTreeMap<String, f64>> {
    in_lab(2, |lab| run(lab, rounds))
}

/// Measures in a lab of so many ordinary nodes, which is built for it and taken down.
///
/// # Errors
/// When the lab cannot be built or taken down, or the measurement fails.
pub fn in_lab<T>(nodes: u8, measure: impl FnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    progress("building the lab");
    let mut lab = Lab::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(nodes) })?;
    let measured = measure(&mut lab);
    progress_end();
    // An error of the measurement says more than one of the removal that may come of it.
    let down = lab.down().context("take the lab down");
    let measured = measured?;
    down.map(|()| measured)
}

fn run(lab: &mut Lab, rounds: u32) -> Result<BTreeMap<String, f64>> {
    for n in 0..PODS {
        interrupt::check()?;
        lab.pod_add("node-1", &PodSpec::named(&format!("pod-{n}")))?;
    }
    let mut times = Vec::new();
    for round in 1..=rounds {
        interrupt::check()?;
        progress(&format!("start {round} of {rounds}"));
        times.push(lab.restart_agent("node-1", Ending::Killed)?.as_secs_f64() * 1e3);
    }
    let pid = lab.node("node-1")?.agent_pid().context("the agent does not run")?;
    let rss = resident_of(pid)?;
    let quantile = |q| stats::quantile(&times, q).context("no start was timed");
    Ok(BTreeMap::from([
        ("agent ready_p50_ms".to_owned(), quantile(0.5)?),
        ("agent ready_max_ms".to_owned(), quantile(1.0)?),
        ("agent rss_mib".to_owned(), rss),
    ]))
}

/// Resident memory of a process, MiB.
///
/// # Errors
/// When it is gone, or the kernel does not say.
pub fn resident_of(pid: i32) -> Result<f64> {
    let status = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&status).with_context(|| format!("read {status}"))?;
    resident(&status).context("the kernel does not say VmRSS")
}

/// VmRSS of `/proc/PID/status`, MiB.
fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Whether a budget is broken, as a sentence.
pub fn broken(figures: &BTreeMap<String, f64>) -> Option<String> {
    for (name, budget) in [("agent ready_p50_ms", READY_MS), ("agent rss_mib", RSS_MIB)] {
        match figures.get(name) {
            Some(value) if *value <= budget => {}
            Some(value) => return Some(format!("{name} {value:.1}, budget <= {budget}")),
            None => return Some(format!("{name} was not measured")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_mib() {
        assert_eq!(resident("VmPeak:\t 9000 kB\nVmRSS:\t   10240 kB\nThreads:\t3\n"), Some(10.0));
        assert_eq!(resident("VmPeak:\t 9000 kB\n"), None);
    }

    #[test]
    fn a_figure_over_its_budget_or_missing_breaks_it() {
        let mut figures =
            BTreeMap::from([("agent ready_p50_ms".to_owned(), 300.0), ("agent rss_mib".to_owned(), 12.0)]);
        assert_eq!(broken(&figures), None);
        figures.insert("agent rss_mib".to_owned(), 20.1);
        assert!(broken(&figures).is_some());
        figures.clear();
        assert!(broken(&figures).is_some());
    }
}
