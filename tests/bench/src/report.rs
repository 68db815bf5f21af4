//! Budgets, and the report as text and as figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::thread;

use anyhow::Context as _;
use serde::Serialize;

use crate::inline::Test;
use crate::layout::{Family, LayoutName};
use crate::no_tso::NoTso;
use crate::path::Plan;
use crate::stats;

/// A bound for the ratio to the limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Costs: at most so many times the limit's.
    AtMost(f64),
    /// Bandwidth: at least this part of the limit's.
    AtLeast(f64),
}

impl Budget {
    /// What Weft promises for a layout; peers and limits have no budget.
    pub fn of(layout: LayoutName, test: Test) -> Option<Self> {
        match (layout, test) {
            (LayoutName::WeftSame, Test::TcpRr | Test::TcpCrr) => Some(Self::AtMost(1.12)),
            (LayoutName::WeftSame, Test::TcpStream) => Some(Self::AtLeast(0.90)),
            (LayoutName::WeftNode | LayoutName::WeftToNode, Test::UdpRr | Test::TcpRr) => Some(Self::AtMost(1.25)),
            (LayoutName::WeftVxlan, Test::UdpRr | Test::TcpRr) => Some(Self::AtMost(1.33)),
            (LayoutName::WeftVxlan, Test::TcpCrr) => Some(Self::AtMost(1.30)),
            (LayoutName::WeftVxlan, Test::TcpStream) => Some(Self::AtLeast(0.75)),
            _ => None,
        }
    }

    /// Whether a ratio keeps it, judged with the two decimals in which it is printed.
    pub fn allows(self, ratio: f64) -> bool {
        let ratio = (ratio * 100.0).round() / 100.0;
        match self {
            Self::AtMost(bound) => ratio <= bound,
            Self::AtLeast(bound) => ratio >= bound,
        }
    }

    /// As people write it.
    pub fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("<= {bound:.2}"),
            Self::AtLeast(bound) => format!(">= {bound:.2}"),
        }
    }
}

/// The machine and how busy it was.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// CPUs that may be used.
    pub cpus: usize,
    /// The CPU that was measured on; none for what runs on all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<usize>,
    /// Load average of the last minute when the run began.
    pub load_before: Option<f64>,
    /// Load average of the last minute when it ended.
    pub load_after: Option<f64>,
}

impl Machine {
    /// This one, before anything is measured.
    pub fn here(cpu: Option<usize>) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release");
        Self {
            kernel: release.map_or_else(|error| format!("{error:#}"), |text| text.trim().to_owned()),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            cpu,
            load_before: load(),
            load_after: None,
        }
    }

    /// Takes note of the load at the end.
    pub fn measured(&mut self) {
        self.load_after = load();
    }
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// A layout and how it was built.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Its name.
    pub name: LayoutName,
    /// Its limit.
    pub limit: LayoutName,
    /// What exactly stands there.
    pub description: &'static str,
    /// Time to build it, milliseconds.
    pub up_ms: f64,
    /// Why it could not be built.
    pub error: Option<String>,
}

/// What was measured for one layout, test and family.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// One value a round, in the unit of the test; `None` where it failed.
    pub rounds: Vec<Option<f64>>,
    /// How often data was not there at once.
    pub waits: u64,
    /// What went wrong.
    pub error: Option<String>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The layout.
    pub layout: LayoutName,
    /// The test.
    pub test: Test,
    /// The address family.
    pub family: Family,
    /// The unit of the values.
    pub unit: &'static str,
    /// Median over the rounds.
    pub value: Option<f64>,
    /// Median of the ratios to the limit of the same round; absent for the limits.
    pub ratio: Option<f64>,
    /// The bound of the ratio.
    pub budget: Option<Budget>,
    /// Whether the ratio keeps its bound.
    pub ok: Option<bool>,
    /// How often data was not there at once.
    pub waits: u64,
    /// The value of each round.
    pub rounds: Vec<Option<f64>>,
    /// The ratio of each round.
    pub ratios: Vec<Option<f64>>,
    /// What went wrong.
    pub error: Option<String>,
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Rounds.
    pub rounds: u32,
    /// Length of one measurement, milliseconds.
    pub duration_ms: u64,
    /// What was built.
    pub layouts: Vec<Built>,
    /// What was measured.
    pub results: Vec<Row>,
    /// The streams without segmentation offload.
    pub no_tso: Vec<NoTso>,
    /// The figures by name, as in the lines of the text.
    pub figures: BTreeMap<String, f64>,
}

impl Report {
    /// Joins each cell with its limit and its budget.
    pub fn new(
        plan: &Plan,
        machine: Machine,
        layouts: Vec<Built>,
        cells: BTreeMap<(LayoutName, Test, Family), Cell>,
        no_tso: Vec<NoTso>,
    ) -> Self {
        let mut results: Vec<_> = cells
            .iter()
            .map(|(&(layout, test, family), cell)| {
                let limit = cells.get(&(layout.limit(), test, family)).filter(|_| layout.limit() != layout);
                let ratios = limit.map_or_else(Vec::new, |limit| stats::ratios(&cell.rounds, &limit.rounds));
                let ratio = stats::median(&ratios.iter().copied().flatten().collect::<Vec<_>>());
                let budget = Budget::of(layout, test);
                Row {
                    layout,
                    test,
                    family,
                    unit: test.unit(),
                    value: stats::median(&cell.rounds.iter().copied().flatten().collect::<Vec<_>>()),
                    ratio,
                    budget,
                    ok: budget.zip(ratio).map(|(budget, ratio)| budget.allows(ratio)),
                    waits: cell.waits,
                    rounds: cell.rounds.clone(),
                    ratios,
                    error: cell.error.clone(),
                }
            })
            .collect();
        results.sort_by_key(|row| (row.layout.limit(), row.test, row.family, row.layout));
        let figures = figures(&results, &no_tso);
        let duration_ms = u64::try_from(plan.duration.as_millis()).unwrap_or(u64::MAX);
        Self { machine, rounds: plan.rounds, duration_ms, layouts, results, no_tso, figures }
    }

    /// What could not be built or measured, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let built = self
            .layouts
            .iter()
            .filter_map(|built| Some(format!("{} was not built: {}", built.name.as_str(), built.error.as_ref()?)));
        let measured = self.results.iter().filter_map(|row| {
            let (layout, test, family) = (row.layout.as_str(), row.test.name(), row.family.name());
            Some(format!("{layout} {test} {family} was not measured: {}", row.error.as_ref()?))
        });
        let streamed = self.no_tso.iter().filter_map(|row| {
            Some(format!("{} {} was not measured: {}", row.layout.as_str(), row.family.name(), row.error.as_ref()?))
        });
        built.chain(measured).chain(streamed).collect()
    }

    /// The budgets that are broken, one sentence each.
    pub fn broken(&self) -> Vec<String> {
        let rows = self.results.iter().filter(|row| row.ok == Some(false)).filter_map(|row| {
            let (ratio, budget) = (row.ratio?, row.budget?.text());
            Some(format!(
                "{} {} {}: {ratio:.2}, budget {budget}",
                row.layout.as_str(),
                row.test.name(),
                row.family.name()
            ))
        });
        let streams = self.no_tso.iter().filter(|row| row.ok == Some(false)).filter_map(|row| {
            let (layout, family) = (row.layout.as_str(), row.family.name());
            Some(format!(
                "{layout} {family}: {:.0} bytes per packet, budget >= {:.0}",
                row.bytes_per_packet?,
                crate::no_tso::BYTES_BOUND
            ))
        });
        rows.chain(streams).collect()
    }
}

/// Each ratio for each family, and the worse of the families under the name without one.
fn figures(results: &[Row], no_tso: &[NoTso]) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    let mut add = |name: &str, family: Family, what: &str, value: f64, more_is_better: bool| {
        let worse = |a: f64, b: f64| if more_is_better { a.min(b) } else { a.max(b) };
        figures.insert(format!("{name} {} {what}", family.name()), value);
        figures.entry(format!("{name} {what}")).and_modify(|old| *old = worse(*old, value)).or_insert(value);
    };
    for row in results {
        let name = format!("{} {}", row.layout.as_str(), row.test.name());
        let is_bandwidth = row.test == Test::TcpStream;
        if let Some(value) = row.value {
            add(&name, row.family, if is_bandwidth { "gbit_per_cpu_s" } else { "ns" }, value, is_bandwidth);
        }
        if let Some(ratio) = row.ratio {
            add(&name, row.family, "ratio", ratio, is_bandwidth);
        }
    }
    for row in no_tso {
        let name = format!("{} {}", row.layout.as_str(), Test::TcpStream.name());
        for (what, value) in
            [("bytes_per_packet", row.bytes_per_packet), ("gbit_per_cpu_s", row.gbit_per_cpu_s), ("ratio", row.ratio)]
        {
            if let Some(value) = value {
                add(&name, row.family, what, value, true);
            }
        }
    }
    figures
}

/// The report for people, with the lines of figures for programs at its end.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let mut line = |columns: std::fmt::Arguments<'_>| writeln!(text, "{columns}").unwrap_or_default();
    let Machine { kernel, cpus, load_before, load_after, .. } = &report.machine;
    let load = |load: &Option<f64>| load.map_or_else(|| "?".to_owned(), |load| format!("{load:.1}"));
    line(format_args!(
        "kernel {kernel}, {cpus} CPUs, load {} to {}, {} rounds of {} ms a measurement",
        load(load_before),
        load(load_after),
        report.rounds,
        report.duration_ms
    ));
    for built in &report.layouts {
        line(format_args!("  {:12} {}", built.name.as_str(), built.description));
    }
    line(format_args!(
        "\n{:12} {:11} {:5} {:>10} {:11} {:>7}  {:8} {}",
        "layout", "test", "", "value", "", "x limit", "budget", ""
    ));
    for row in &report.results {
        let value = row.value.map_or_else(
            || "-".to_owned(),
            |value| if row.test == Test::TcpStream { format!("{value:.1}") } else { format!("{value:.0}") },
        );
        let ratio = if row.layout == row.layout.limit() { Some(1.0) } else { row.ratio };
        line(format_args!(
            "{:12} {:11} {:5} {:>10} {:11} {:>7}  {:8} {}",
            row.layout.as_str(),
            row.test.name(),
            row.family.name(),
            value,
            row.unit,
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            row.budget.map(Budget::text).unwrap_or_default(),
            verdict(row.ok, row.error.is_some()),
        ));
    }
    if !report.no_tso.is_empty() {
        line(format_args!("\nTCP stream over an underlay without segmentation offload, GRO on"));
        line(format_args!(
            "{:17} {:5} {:>12} {:>11} {:>7}  {:10} {}",
            "layout", "", "bytes/packet", "Gbit/CPU-s", "x limit", "budget", ""
        ));
        for row in &report.no_tso {
            let number = |value: Option<f64>, decimals: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
            };
            let budget = row.ok.map_or_else(String::new, |_| format!(">= {:.0} B", crate::no_tso::BYTES_BOUND));
            line(format_args!(
                "{:17} {:5} {:>12} {:>11} {:>7}  {:10} {}",
                row.layout.as_str(),
                row.family.name(),
                number(row.bytes_per_packet, 0),
                number(row.gbit_per_cpu_s, 1),
                number(row.ratio, 2),
                budget,
                verdict(row.ok, row.error.is_some()),
            ));
        }
    }
    line(format_args!(""));
    for (name, value) in &report.figures {
        let decimals = if name.ends_with("ratio") { 2 } else { usize::from(name.ends_with("gbit_per_cpu_s")) };
        line(format_args!("figure {name} {value:.decimals$}"));
    }
    text
}

fn verdict(ok: Option<bool>, failed: bool) -> &'static str {
    match (ok, failed) {
        (_, true) => "failed",
        (Some(true), _) => "ok",
        (Some(false), _) => "over",
        (None, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_judged_as_it_is_printed() {
        assert!(Budget::AtMost(1.12).allows(1.124));
        assert!(!Budget::AtMost(1.12).allows(1.126));
        assert!(Budget::AtLeast(0.90).allows(0.896));
        assert!(!Budget::AtLeast(0.90).allows(0.894));
    }

    #[test]
    fn the_figure_without_a_family_is_the_worse_one() {
        let row = |test, family, ratio| Row {
            layout: LayoutName::WeftSame,
            test,
            family,
            unit: "",
            value: None,
            ratio: Some(ratio),
            budget: None,
            ok: None,
            waits: 0,
            rounds: Vec::new(),
            ratios: Vec::new(),
            error: None,
        };
        let rows = [
            row(Test::TcpRr, Family::Ipv4, 1.08),
            row(Test::TcpRr, Family::Ipv6, 1.05),
            row(Test::TcpStream, Family::Ipv4, 0.95),
            row(Test::TcpStream, Family::Ipv6, 0.92),
        ];

        let figures = figures(&rows, &[]);

        assert_eq!(figures["weft-same tcp_rr ratio"], 1.08);
        assert_eq!(figures["weft-same tcp_rr ipv6 ratio"], 1.05);
        assert_eq!(figures["weft-same tcp_stream ratio"], 0.92);
    }
}
