//! The goal, and the report as text and as figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Plan, ways::Way};
use crate::inline::Test;
use crate::layout::Family;
use crate::report::{Cell, Machine};
use crate::stats;

/// Cheaper than nftables: our cost is less than so many times its.
pub const GOAL: f64 = 1.0;

/// What was measured, by what.
pub type Cells = BTreeMap<(Way, Test, Family), Cell>;

/// A way and what it is.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Its name.
    pub name: Way,
    /// What exactly stands there.
    pub description: &'static str,
}

/// One line of the table. Ratios are medians of those of the same round.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// The test.
    pub test: Test,
    /// The address family.
    pub family: Family,
    /// The unit of the values.
    pub unit: &'static str,
    /// Median over the rounds.
    pub value: Option<f64>,
    /// To the limit, the kernel's routing without translation.
    pub ratio: Option<f64>,
    /// To one rule of nftables.
    pub to_nftables: Option<f64>,
    /// To one veth pair without a node.
    pub to_veth: Option<f64>,
    /// Whether Weft's keeps the goal.
    pub ok: Option<bool>,
    /// How often data was not there at once.
    pub waits: u64,
    /// The value of each round.
    pub rounds: Vec<Option<f64>>,
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
    pub ways: Vec<Built>,
    /// What was measured.
    pub results: Vec<Row>,
    /// The figures by name, as in the lines of the text.
    pub figures: BTreeMap<String, f64>,
}

impl Report {
    /// Sets each cell beside those of the same test and family.
    pub fn new(plan: &Plan, machine: Machine, cells: &Cells) -> Self {
        let mut results: Vec<_> =
            cells.iter().map(|(&(way, test, family), cell)| row(cells, way, test, family, cell)).collect();
        results.sort_by_key(|row| (row.test, row.family, row.way));
        let figures = figures(&results);
        let ways = Way::ALL.map(|name| Built { name, description: name.description() }).into();
        let duration_ms = u64::try_from(plan.duration.as_millis()).unwrap_or(u64::MAX);
        Self { machine, rounds: plan.rounds, duration_ms, ways, results, figures }
    }

    /// What could not be measured, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let failed = |row: &Row| {
            let (way, test, family) = (row.way.as_str(), row.test.name(), row.family.name());
            Some(format!("{way} {test} {family} was not measured: {}", row.error.as_ref()?))
        };
        self.results.iter().filter_map(failed).collect()
    }

    /// Where the goal is missed, one sentence each.
    pub fn broken(&self) -> Vec<String> {
        let missed = |row: &Row| {
            let (test, family, ratio) = (row.test.name(), row.family.name(), row.to_nftables?);
            Some(format!("{test} {family}: {ratio:.2} times what a rule of nftables costs, goal < {GOAL}"))
        };
        self.results.iter().filter(|row| row.ok == Some(false)).filter_map(missed).collect()
    }
}

fn row(cells: &Cells, way: Way, test: Test, family: Family, cell: &Cell) -> Row {
    let to = |other: Way| {
        let other = cells.get(&(other, test, family)).filter(|_| other < way)?;
        stats::median_ratio(&cell.rounds, &other.rounds)
    };
    let to_nftables = to(Way::Nftables);
    let has_goal = way == Way::Weft && test != Test::TcpStream;
    Row {
        way,
        test,
        family,
        unit: test.unit(),
        value: stats::median(&cell.rounds.iter().copied().flatten().collect::<Vec<_>>()),
        ratio: to(Way::Routed),
        to_nftables,
        to_veth: to(Way::Veth),
        ok: to_nftables.filter(|_| has_goal).map(keeps_goal),
        waits: cell.waits,
        rounds: cell.rounds.clone(),
        error: cell.error.clone(),
    }
}

/// Judged with the two decimals in which it is printed.
fn keeps_goal(ratio: f64) -> bool {
    (ratio * 100.0).round() / 100.0 < GOAL
}

/// Each figure for each family, and the worse of the families under the name without one.
fn figures(results: &[Row]) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for row in results {
        let is_bandwidth = row.test == Test::TcpStream;
        let connections = row.value.filter(|_| row.test == Test::TcpCrr).map(|ns| 1e9 / ns);
        let all = [
            (if is_bandwidth { "gbit_per_cpu_s" } else { "ns" }, row.value, is_bandwidth),
            ("ratio", row.ratio, is_bandwidth),
            ("to_nftables", row.to_nftables, is_bandwidth),
            ("to_veth", row.to_veth, is_bandwidth),
            ("per_s", connections, true),
        ];
        for (what, value, more_is_better) in all {
            let Some(value) = value else { continue };
            let worse = |a: f64, b: f64| if more_is_better { a.min(b) } else { a.max(b) };
            let name = format!("masquerade {} {}", row.way.as_str(), row.test.name());
            figures.insert(format!("{name} {} {what}", row.family.name()), value);
            figures.entry(format!("{name} {what}")).and_modify(|old| *old = worse(*old, value)).or_insert(value);
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
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    line(format_args!(
        "kernel {kernel}, {cpus} CPUs, load {} to {}, {} rounds of {} ms a measurement",
        number(*load_before, 1),
        number(*load_after, 1),
        report.rounds,
        report.duration_ms
    ));
    for built in &report.ways {
        line(format_args!("  {:9} {}", built.name.as_str(), built.description));
    }
    line(format_args!(
        "\n{:9} {:11} {:5} {:>9} {:11} {:>8} {:>10} {:>6}  goal",
        "way", "test", "", "value", "", "x routed", "x nftables", "x veth"
    ));
    for row in &report.results {
        let decimals = usize::from(row.test == Test::TcpStream);
        let verdict = match (row.ok, &row.error) {
            (_, Some(_)) => "failed",
            (Some(true), _) => "< 1 ok",
            (Some(false), _) => "< 1 over",
            (None, None) => "",
        };
        line(format_args!(
            "{:9} {:11} {:5} {:>9} {:11} {:>8} {:>10} {:>6}  {verdict}",
            row.way.as_str(),
            row.test.name(),
            row.family.name(),
            number(row.value, decimals),
            row.unit,
            number(row.ratio, 2),
            number(row.to_nftables, 2),
            number(row.to_veth, 2),
        ));
    }
    line(format_args!(""));
    for (name, value) in &report.figures {
        let is_ratio = ["ratio", "to_nftables", "to_veth"].iter().any(|what| name.ends_with(what));
        let decimals = if is_ratio { 2 } else { usize::from(name.ends_with("gbit_per_cpu_s")) };
        line(format_args!("figure {name} {value:.decimals$}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A report of one test and family or two, with these rounds of each way.
    fn report(test: Test, cells: &[(Way, Family, &[f64])]) -> Report {
        let cell = |rounds: &[f64]| Cell { rounds: rounds.iter().copied().map(Some).collect(), ..Cell::default() };
        let cells = cells.iter().map(|(way, family, rounds)| ((*way, test, *family), cell(rounds))).collect();
        let plan = Plan { tests: vec![test], families: Vec::new(), rounds: 2, duration: Duration::from_millis(10) };
        Report::new(&plan, Machine::here(None), &cells)
    }

    #[test]
    fn the_goal_is_to_cost_less_than_nftables_as_it_is_printed() {
        assert!(keeps_goal(0.994) && !keeps_goal(0.996) && !keeps_goal(1.2));
        let of = |weft: f64| {
            let cells = [
                (Way::Routed, Family::Ipv4, &[80.0][..]),
                (Way::Nftables, Family::Ipv4, &[100.0]),
                (Way::Weft, Family::Ipv4, &[weft]),
            ];
            report(Test::TcpCrr, &cells).broken()
        };
        assert_eq!(of(90.0), Vec::<String>::new());
        assert_eq!(of(110.0), ["tcp_crr ipv4: 1.10 times what a rule of nftables costs, goal < 1"]);
    }

    #[test]
    fn ratios_are_those_of_the_same_round_and_to_what_comes_before() {
        let (v4, v6) = (Family::Ipv4, Family::Ipv6);
        let report = report(
            Test::TcpCrr,
            &[
                (Way::Veth, v4, &[50.0, 100.0]),
                (Way::Routed, v4, &[80.0, 160.0]),
                (Way::Nftables, v4, &[100.0, 200.0]),
                (Way::Weft, v4, &[90.0, 180.0]),
                (Way::Nftables, v6, &[100.0, 100.0]),
                (Way::Weft, v6, &[95.0, 95.0]),
            ],
        );
        let figure = |name: &str| report.figures.get(&format!("masquerade {name}")).map(|f| (f * 1000.0).round());
        assert_eq!(figure("weft tcp_crr ipv4 ratio"), Some(1125.0));
        assert_eq!(figure("weft tcp_crr ipv4 to_nftables"), Some(900.0));
        assert_eq!(figure("weft tcp_crr ipv4 to_veth"), Some(1800.0));
        assert_eq!(figure("nftables tcp_crr ipv4 ratio"), Some(1250.0));
        assert_eq!(figure("routed tcp_crr ipv4 ratio"), None);
        // The worse of the families.
        assert_eq!(figure("weft tcp_crr to_nftables"), Some(950.0));
        // Of the family in which a connection takes 135 ns, not 95.
        assert_eq!(figure("weft tcp_crr per_s"), Some((1e12_f64 / 135.0).round()));
    }

    #[test]
    fn a_stream_has_no_goal_and_more_is_better() {
        let (v4, v6) = (Family::Ipv4, Family::Ipv6);
        let cells = [
            (Way::Nftables, v4, &[10.0][..]),
            (Way::Weft, v4, &[12.0]),
            (Way::Nftables, v6, &[10.0]),
            (Way::Weft, v6, &[11.0]),
        ];
        let report = report(Test::TcpStream, &cells);
        assert!(report.broken().is_empty());
        assert_eq!(report.figures["masquerade weft tcp_stream to_nftables"], 1.1);
        assert!(text(&report).contains("figure masquerade weft tcp_stream ipv4 to_nftables 1.20\n"));
    }

    #[test]
    fn what_failed_is_named() {
        let mut cells = Cells::new();
        let failed = Cell { rounds: vec![None], error: Some("no packet".to_owned()), ..Cell::default() };
        cells.insert((Way::Weft, Test::UdpRr, Family::Ipv6), failed);
        let plan = Plan { tests: Vec::new(), families: Vec::new(), rounds: 1, duration: Duration::ZERO };
        let report = Report::new(&plan, Machine::here(None), &cells);
        assert_eq!(report.failures(), ["weft udp_rr ipv6 was not measured: no packet"]);
    }
}
