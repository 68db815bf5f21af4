//! `weft-bench path`: all layouts, interleaved.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::inline::{Test, await_delivery, choose_cpu};
use crate::layout::{Bridge, Cluster, Direct, Ends, Family, Flannel, Layout, LayoutName, Weft};
use crate::report::{Built, Machine, Report};
use crate::rounds::{Series, measure_rounds};
use crate::{interrupt, no_tso};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The layouts, limits among them.
    pub layouts: BTreeSet<LayoutName>,
    /// The tests.
    pub tests: Vec<Test>,
    /// The address families.
    pub families: Vec<Family>,
    /// How often.
    pub rounds: u32,
    /// Length of one measurement.
    pub duration: Duration,
}

/// Builds the layouts, measures them and takes them down, also after an error.
pub fn run(plan: &Plan) -> Result<Report> {
    let cpu = choose_cpu()?;
    let mut machine = Machine::here(Some(cpu));
    let mut site = Site::default();
    site.up(plan)?;

    let series = Series { tests: &plan.tests, families: &plan.families, rounds: plan.rounds, duration: plan.duration };
    let cells = measure_rounds(&site.ends(plan)?, &series, cpu)?;
    let without_tso: BTreeSet<_> = plan.layouts.iter().copied().filter(|layout| layout.is_without_tso()).collect();
    let no_tso =
        if without_tso.is_empty() { Vec::new() } else { no_tso::run(&without_tso, &plan.families, &site, cpu)? };

    machine.measured();
    let built = std::mem::take(&mut site.built);
    site.down()?;
    Ok(Report::new(plan, machine, built, cells, no_tso))
}

/// The layouts that are up.
#[derive(Default)]
pub struct Site {
    layouts: Vec<Box<dyn Layout>>,
    cluster: Rc<RefCell<Cluster>>,
    built: Vec<Built>,
}

impl Site {
    /// Builds what the plan needs. A layout that cannot be built is left out and shown with its error; the others are
    /// measured.
    fn up(&mut self, plan: &Plan) -> Result<()> {
        for name in plan.layouts.iter().map(|layout| layout.built_as()).collect::<BTreeSet<_>>() {
            interrupt::check()?;
            let start = Instant::now();
            let mut layout = self.make(name);
            let up = layout.up().and_then(|()| layout.ends()).and_then(|ends| {
                // A family that is never delivered shows in the cells; the other one can be measured.
                plan.families.iter().try_for_each(|family| await_delivery(&ends, *family).map(drop))
            });
            let error = up.err().map(|error| format!("{error:#}"));
            let took = start.elapsed();
            eprintln!(
                "{:12} {} in {} ms",
                name.as_str(),
                if error.is_none() { "up" } else { "failed" },
                took.as_millis()
            );
            if error.is_none() {
                self.layouts.push(layout);
            } else {
                layout.down()?;
            }
            let description = name.description();
            self.built.push(Built { name, limit: name.limit(), description, up_ms: took.as_secs_f64() * 1e3, error });
        }
        Ok(())
    }

    /// The layout that `name` is measured on, when it is up.
    pub fn layout(&self, name: LayoutName) -> Option<&dyn Layout> {
        self.layouts.iter().find(|layout| layout.name() == name.built_as()).map(AsRef::as_ref)
    }

    /// The ends of the layouts that are up and measured as they are.
    fn ends(&self, plan: &Plan) -> Result<Vec<(LayoutName, Ends)>> {
        let layouts = plan.layouts.iter().filter(|layout| !layout.is_without_tso());
        let up = layouts.filter_map(|name| Some((*name, self.layout(*name)?.ends())));
        up.map(|(name, ends)| Ok((name, ends?))).collect()
    }

    fn make(&self, name: LayoutName) -> Box<dyn Layout> {
        match name {
            LayoutName::Bridge => Box::new(Bridge::default()),
            LayoutName::Flannel => Box::new(Flannel::default()),
            LayoutName::WeftSame | LayoutName::WeftNode | LayoutName::WeftToNode | LayoutName::WeftVxlan => {
                Box::new(Weft::new(name, &self.cluster))
            }
            // The names without segmentation offload are not built: `built_as` has been asked.
            LayoutName::Veth
            | LayoutName::Node
            | LayoutName::NodeNotso
            | LayoutName::FlannelNotso
            | LayoutName::WeftVxlanNotso => Box::new(Direct::new(name)),
        }
    }

    fn down(mut self) -> Result<()> {
        self.layouts.iter_mut().try_for_each(|layout| layout.down())
    }
}

/// One line on standard error that overwrites itself on a terminal.
pub fn progress(text: &str) {
    let mut stderr = stderr();
    let written = if stderr.is_terminal() { write!(stderr, "\r{text}   ") } else { writeln!(stderr, "{text}") };
    // A standard error that is closed is no reason to stop measuring.
    drop(written);
}

/// Ends the line that [`progress`] overwrites.
pub fn progress_end() {
    if stderr().is_terminal() {
        eprintln!();
    }
}
