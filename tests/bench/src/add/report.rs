//! What is promised, and the report as text and as figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{
    Plan,
    scenarios::{Found, Level, Measure, Plugin, Times},
    steps::Step,
};
use crate::{
    report::{Budget, Machine},
    stats,
};

/// The promises, by the figure that is judged.
const BUDGETS: [(&str, Budget); 8] = [
    ("add p50_ms", Budget::AtMost(5.0)),
    ("add p99_ms", Budget::AtMost(15.0)),
    ("add times_faster", Budget::AtLeast(4.0)),
    ("del p50_ms", Budget::AtMost(3.0)),
    ("at-once add_p99_ms", Budget::AtMost(300.0)),
    ("at-once add_times_faster", Budget::AtLeast(3.0)),
    ("beside-del add_p99_ms", Budget::AtMost(300.0)),
    // Flat, but for the noise of a shared machine.
    ("growth add_ratio", Budget::AtMost(1.5)),
];

/// One kind of call of one plugin.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who was called.
    pub plugin: Plugin,
    /// What was timed.
    pub measure: Measure,
    /// Calls in a series.
    pub calls: usize,
    /// One by one the times of all calls; at once, each figure is its median over the rounds.
    #[serde(flatten)]
    pub times: Times,
    /// The times of each round.
    pub rounds: Vec<Times>,
}

/// Calls with so many pods on the node.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Grown {
    /// Pods.
    pub pods: usize,
    /// VERSION: how fast the machine was meanwhile.
    pub version: Times,
    /// ADD.
    pub add: Times,
    /// DEL.
    pub del: Times,
}

/// A promise and how it was kept.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// The figure's name.
    pub figure: &'static str,
    /// Its value.
    pub value: f64,
    /// Its bound.
    pub budget: Budget,
    /// Whether it keeps within.
    pub ok: bool,
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct AddReport {
    /// Where.
    pub machine: Machine,
    /// The times.
    pub rows: Vec<Row>,
    /// Where Weft's time went, one by one.
    pub steps: Vec<Step>,
    /// Where it went with many ADDs at once, of the last round.
    pub steps_at_once: Vec<Step>,
    /// With more and more pods.
    pub growth: Vec<Grown>,
    /// The promises.
    pub judged: Vec<Judged>,
    /// The figures by name, as in the lines of the text.
    pub figures: BTreeMap<String, f64>,
}

impl AddReport {
    /// Sums up and judges.
    pub fn new(plan: &Plan, machine: Machine, found: Found) -> Self {
        let rows: Vec<Row> = found.series.iter().filter_map(|(&key, rounds)| row(key, rounds)).collect();
        let grown = |level: &Level| {
            let (version, add, del) = (Times::of(&level.version)?, Times::of(&level.add)?, Times::of(&level.del)?);
            Some(Grown { pods: level.pods, version, add, del })
        };
        let growth: Vec<Grown> = found.growth.iter().filter_map(grown).collect();
        let figures = figures(&rows, &growth);
        let judge = |&(figure, budget): &(&'static str, Budget)| {
            let value = *figures.get(figure)?;
            // A promise about a hundred calls at once says nothing of other numbers.
            let applies = plan.at_once == AT_ONCE || !(figure.starts_with("at-once") || figure.starts_with("beside"));
            applies.then(|| Judged { figure, value, budget, ok: budget.allows(value) })
        };
        let judged = BUDGETS.iter().filter_map(judge).collect();
        Self { machine, rows, steps: found.steps, steps_at_once: found.steps_at_once, growth, judged, figures }
    }

    /// The promises that are broken, one sentence each.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.judged.iter().filter(|judged| !judged.ok);
        broken.map(|j| format!("{} {:.2}, budget {}", j.figure, j.value, j.budget.text())).collect()
    }

    /// Whether processes started much later than they can, half of them or the slowest: then the milliseconds tell of other load, not of
    /// the plugin. Says what the slowest took and what is enough.
    pub fn machine_is_busy(&self) -> Option<(f64, f64)> {
        let Times { p50_ms, p99_ms, min_ms, .. } = self.times(Plugin::Weft, Measure::Version)?;
        (p50_ms > 2.0 * min_ms || p99_ms > 4.0 * min_ms).then_some((p99_ms, min_ms))
    }

    fn times(&self, plugin: Plugin, measure: Measure) -> Option<Times> {
        self.rows.iter().find(|row| (row.plugin, row.measure) == (plugin, measure)).map(|row| row.times)
    }
}

/// Calls at once that the promises are about.
pub const AT_ONCE: usize = 100;

fn row((plugin, measure): (Plugin, Measure), series: &[Vec<f64>]) -> Option<Row> {
    let rounds: Vec<Times> = series.iter().filter_map(|times| Times::of(times)).collect();
    let median = |of: fn(&Times) -> f64| stats::median(&rounds.iter().map(of).collect::<Vec<_>>());
    let times = Times {
        p50_ms: median(|t| t.p50_ms)?,
        p99_ms: median(|t| t.p99_ms)?,
        min_ms: median(|t| t.min_ms)?,
        max_ms: median(|t| t.max_ms)?,
    };
    Some(Row { plugin, measure, calls: series.first().map_or(0, Vec::len), times, rounds })
}

fn figures(rows: &[Row], growth: &[Grown]) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for row in rows {
        let (scenario, call) = row.measure.names();
        let plugin = if row.plugin == Plugin::Weft { "" } else { "bridge " };
        figures.insert(format!("{plugin}{scenario} {call}p50_ms"), row.times.p50_ms);
        figures.insert(format!("{plugin}{scenario} {call}p99_ms"), row.times.p99_ms);
    }
    let of = |plugin, measure| rows.iter().find(|r| (r.plugin, r.measure) == (plugin, measure));
    let both = |measure| Some((of(Plugin::Weft, measure)?, of(Plugin::Bridge, measure)?));
    for measure in [Measure::Add, Measure::Del] {
        if let Some((weft, bridge)) = both(measure) {
            let (scenario, call) = measure.names();
            figures.insert(format!("{scenario} {call}times_faster"), bridge.times.p50_ms / weft.times.p50_ms);
        }
    }
    for measure in [Measure::AtOnceAdd, Measure::BesideAdd, Measure::AtOnceDel] {
        let Some((weft, bridge)) = both(measure) else { continue };
        let p99 = |row: &Row| row.rounds.iter().map(|t| Some(t.p99_ms)).collect::<Vec<_>>();
        if let Some(ratio) = stats::median_ratio(&p99(bridge), &p99(weft)) {
            let (scenario, call) = measure.names();
            figures.insert(format!("{scenario} {call}times_faster"), ratio);
        }
    }
    for grown in growth {
        figures.insert(format!("growth {}_add_p50_ms", grown.pods), grown.add.p50_ms);
        figures.insert(format!("growth {}_del_p50_ms", grown.pods), grown.del.p50_ms);
    }
    if let [first, .., last] = growth {
        // Other load that came meanwhile made the processes alone slower as well.
        let machine = last.version.p50_ms / first.version.p50_ms;
        figures.insert("growth add_ratio".into(), last.add.p50_ms / first.add.p50_ms / machine);
        figures.insert("growth del_ratio".into(), last.del.p50_ms / first.del.p50_ms / machine);
    }
    figures
}

impl Measure {
    /// What a figure's name begins with, and what its second word does.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Version => ("version", ""),
            Self::Add => ("add", ""),
            Self::Del => ("del", ""),
            Self::DelGone => ("del-gone", ""),
            Self::AtOnceAdd => ("at-once", "add_"),
            Self::AtOnceDel => ("at-once", "del_"),
            Self::BesideAdd => ("beside-del", "add_"),
            Self::BesideDel => ("beside-add", "del_"),
        }
    }

    fn text(self, calls: usize) -> String {
        match self {
            Self::Version => "VERSION: the process alone".into(),
            Self::Add => "ADD, one by one".into(),
            Self::Del => "DEL, one by one".into(),
            Self::DelGone => "DEL until the device is gone".into(),
            Self::AtOnceAdd => format!("{calls} ADDs at once"),
            Self::AtOnceDel => format!("{calls} DELs at once"),
            Self::BesideAdd => format!("ADD, {calls} at once with {calls} DELs"),
            Self::BesideDel => format!("DEL, {calls} at once with {calls} ADDs"),
        }
    }
}

/// The report for people, with the lines of figures for programs at its end.
pub fn text(report: &AddReport) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let mut line = |columns: std::fmt::Arguments<'_>| writeln!(text, "{columns}").unwrap_or_default();
    let Machine { kernel, cpus, load_before, load_after, .. } = &report.machine;
    let load = |load: &Option<f64>| load.map_or_else(|| "?".to_owned(), |l| format!("{l:.1}"));
    line(format_args!("kernel {kernel}, {cpus} CPUs, load {} to {}", load(load_before), load(load_after)));
    line(format_args!(
        "\n{:38} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "ms, start of the process to its end", "", "p50", "p99", "min", "max"
    ));
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    rows.sort_by_key(|row| (row.measure, row.plugin));
    for row in rows {
        let Times { p50_ms, p99_ms, min_ms, max_ms } = row.times;
        let plugin = if row.plugin == Plugin::Weft { "weft" } else { "bridge" };
        let what = row.measure.text(row.calls);
        line(format_args!("{what:38} {plugin:>7} {p50_ms:>8.2} {p99_ms:>8.2} {min_ms:>8.2} {max_ms:>8.2}"));
    }
    if !report.growth.is_empty() {
        line(format_args!(
            "\n{:38} {:>7} {:>8} {:>8} {:>8} {:>8}",
            "ms, weft, one by one", "pods", "ADD p50", "ADD p99", "DEL p50", "DEL p99"
        ));
        for Grown { pods, add, del, .. } in &report.growth {
            line(format_args!(
                "{:38} {pods:>7} {:>8.2} {:>8.2} {:>8.2} {:>8.2}",
                "with so many on the node already", add.p50_ms, add.p99_ms, del.p50_ms, del.p99_ms
            ));
        }
    }
    for (title, steps) in
        [("where weft's time goes, one by one", &report.steps), ("the same, many at once", &report.steps_at_once)]
    {
        if !steps.is_empty() {
            line(format_args!("\n{title:38} {:>7} {:>8} {:>8}", "", "p50", "p99"));
        }
        for Step { verb, name, p50_ms, p99_ms } in steps {
            line(format_args!("{name:38} {verb:>7} {p50_ms:>8.3} {p99_ms:>8.3}"));
        }
    }
    if !report.judged.is_empty() {
        line(format_args!("\n{:38} {:>7} {:>8}", "promise", "", "value"));
    }
    for Judged { figure, value, budget, ok } in &report.judged {
        let ok = if *ok { "ok" } else { "BROKEN" };
        line(format_args!("{figure:46} {value:>8.2}  {} {ok}", budget.text()));
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

    fn plan() -> Plan {
        Plan { scenarios: vec![], count: 3, at_once: AT_ONCE, rounds: 1, reference: None }
    }

    fn report(series: &[(Plugin, Measure, &[&[f64]])], growth: Vec<Level>) -> AddReport {
        let of =
            |(p, m, rounds): &(Plugin, Measure, &[&[f64]])| ((*p, *m), rounds.iter().map(|r| r.to_vec()).collect());
        let found = Found { series: series.iter().map(of).collect(), growth, ..Found::default() };
        AddReport::new(&plan(), Machine::here(None), found)
    }

    #[test]
    fn a_slow_median_breaks_its_promise_and_a_late_tail_another() {
        assert_eq!(
            report(&[(Plugin::Weft, Measure::Add, &[&[1.0, 2.0, 14.0]])], vec![]).broken(),
            Vec::<String>::new()
        );
        let slow = report(&[(Plugin::Weft, Measure::Add, &[&[5.1, 5.1, 5.1]])], vec![]);
        assert_eq!(slow.broken(), ["add p50_ms 5.10, budget <= 5.00"]);
        let late = report(&[(Plugin::Weft, Measure::Add, &[&[1.0, 1.0, 80.0]])], vec![]);
        assert!(late.broken().iter().all(|b| b.starts_with("add p99_ms")) && !late.broken().is_empty());
    }

    #[test]
    fn the_reference_counts_in_the_same_round_only() {
        // The machine was three times as slow in the second round; what was compared was not.
        let weft: &[&[f64]] = &[&[100.0], &[280.0]];
        let bridge: &[&[f64]] = &[&[350.0], &[980.0]];
        let both =
            report(&[(Plugin::Weft, Measure::AtOnceAdd, weft), (Plugin::Bridge, Measure::AtOnceAdd, bridge)], vec![]);
        assert_eq!(both.figures["at-once add_times_faster"], 3.5);
        assert_eq!(both.broken(), Vec::<String>::new());
        let near: &[&[f64]] = &[&[290.0], &[290.0]];
        let close =
            report(&[(Plugin::Weft, Measure::AtOnceAdd, near), (Plugin::Bridge, Measure::AtOnceAdd, bridge)], vec![]);
        assert!(close.broken()[0].starts_with("at-once add_times_faster"), "{:?}", close.broken());
    }

    #[test]
    fn what_grows_with_the_pods_is_noticed_and_other_load_is_not() {
        let level = |pods, version, add| Level { pods, version: vec![version], add: vec![add], del: vec![1.0] };
        let with = |version, add| report(&[], vec![level(0, 0.5, 2.0), level(500, version, add)]).broken();
        assert_eq!(with(0.5, 2.6), Vec::<String>::new());
        assert_eq!(with(0.5, 3.2), ["growth add_ratio 1.60, budget <= 1.50"]);
        assert_eq!(with(2.0, 8.0), Vec::<String>::new());
    }

    #[test]
    fn a_machine_on_which_processes_start_late_is_called_busy() {
        let with = |times: &[f64]| report(&[(Plugin::Weft, Measure::Version, &[times])], vec![]).machine_is_busy();
        assert_eq!(with(&[0.5, 0.6, 0.9]), None);
        assert!(with(&[0.5, 4.0, 4.0]).is_some());
        assert!(with(&[0.5, 0.6, 8.0]).is_some());
    }
}
