//! `weft-bench add`: what CNI calls take, as a container runtime sees them, beside the reference bridge plugin.
//!
//! The clock runs from the start of the plugin's process to its end. The pods' namespaces exist before: making them is the
//! runtime's work. [`scenarios`] says in what order the calls come, [`caller`] how one is made, [`steps`] where Weft's time
//! went, [`report`] what is promised.

pub mod args;
pub mod caller;
pub mod reference;
pub mod report;
pub mod scenarios;
pub mod steps;
pub mod weft;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use self::{
    caller::Pod,
    reference::Reference,
    report::AddReport,
    scenarios::{Found, Scenario},
    weft::Weft,
};
use crate::{
    interrupt,
    path::{progress, progress_end},
    report::Machine,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
    /// Calls of each verb, one by one.
    pub count: usize,
    /// Calls at once.
    pub at_once: usize,
    /// How often those.
    pub rounds: usize,
    /// Directory of the reference plugins `bridge` and `host-local`; nothing to compare with if none.
    pub reference: Option<PathBuf>,
}

impl Plan {
    fn has(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }

    /// How many pods each plugin must have for the scenarios that compare.
    fn compared(&self) -> usize {
        let one_by_one = if self.has(Scenario::OneByOne) { self.count } else { 0 };
        // Those that come while others go.
        let at_once = if self.has(Scenario::AtOnce) { 2 * self.at_once } else { 0 };
        one_by_one.max(at_once)
    }
}

/// Builds a lab of one node and a node of the reference plugin, runs the scenarios and takes everything down.
pub fn measure(plan: &Plan) -> Result<AddReport> {
    let mut machine = Machine::here(None);
    progress("building the lab");
    let weft = Weft::up()?;
    let found = run(plan, &weft);
    progress_end();
    // An error of the calls says more than one of the removal that may come of it.
    let down = weft.down();
    let found = found?;
    down?;
    machine.measured();
    Ok(AddReport::new(plan, machine, found))
}

fn run(plan: &Plan, weft: &Weft) -> Result<Found> {
    let reference = plan.reference.as_deref().map(Reference::up).transpose().context("set the reference plugin up")?;
    let growth = if plan.has(Scenario::Growth) { scenarios::GROWN } else { 0 };
    let pods = pods("add", plan.compared().max(growth))?;
    let others = pods_of_reference(plan, reference.as_ref())?;
    let mut found = Found::default();
    let compared = scenarios::Compared { weft, pods: &pods, reference: reference.as_ref().map(|r| (r, &others[..])) };
    if plan.has(Scenario::OneByOne) {
        compared.one_by_one(plan.count, &mut found)?;
    }
    if plan.has(Scenario::AtOnce) {
        compared.at_once(plan.at_once, plan.rounds, &mut found)?;
    }
    if plan.has(Scenario::Growth) {
        scenarios::growth(weft, &pods, &mut found)?;
    }
    Ok(found)
}

fn pods_of_reference(plan: &Plan, reference: Option<&Reference>) -> Result<Vec<Pod>> {
    reference.map_or_else(|| Ok(Vec::new()), |_| pods("ref", plan.compared()))
}

fn pods(name: &str, count: usize) -> Result<Vec<Pod>> {
    progress(&format!("making {count} namespaces"));
    (0..count)
        .map(|number| {
            interrupt::check()?;
            Pod::make(&format!("{name}-{number}"))
        })
        .collect()
}
