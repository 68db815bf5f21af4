//! `weft-bench masquerade`: from a pod to a host outside of the cluster, beside the kernel's routing with and without a rule of nftables.

pub mod args;
pub mod report;
pub mod ways;

use std::time::Duration;

use anyhow::Result;

use crate::inline::{Test, choose_cpu};
use crate::layout::Family;
use crate::path::{progress, progress_end};
use crate::report::Machine;
use crate::rounds::{Series, measure_rounds};
use report::Report;
use ways::{Site, Way};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tests.
    pub tests: Vec<Test>,
    /// The address families.
    pub families: Vec<Family>,
    /// How often.
    pub rounds: u32,
    /// Length of one measurement.
    pub duration: Duration,
}

/// Builds all ways, looks whether each translates as it should, measures them by turns and takes them down, also after an error.
///
/// # Errors
/// When a way cannot be built, or the host sees somebody else than it should. What could not be measured stands in the report.
pub fn run(plan: &Plan) -> Result<Report> {
    ways::require_nft()?;
    let cpu = choose_cpu()?;
    let mut machine = Machine::here(Some(cpu));
    let mut sites = Vec::new();
    for way in Way::ALL {
        progress(&format!("{} is built", way.as_str()));
        sites.push(Site::up(way, &plan.families)?);
    }
    progress_end();
    let ends: Vec<_> = sites.iter().map(|site| (site.way(), site.ends().clone())).collect();
    let series = Series { tests: &plan.tests, families: &plan.families, rounds: plan.rounds, duration: plan.duration };
    let cells = measure_rounds(&ends, &series, cpu)?;
    machine.measured();
    sites.into_iter().try_for_each(Site::down)?;
    Ok(Report::new(plan, machine, &cells))
}
