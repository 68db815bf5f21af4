//! In what order the calls come.
//!
//! Weft and the reference take turns call by call, or round by round where many calls come at once: whatever else the machine does
//! meets both.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::{
    caller::{Caller, Pod, Verb},
    reference::Reference,
    steps::{self, Step},
    weft::Weft,
};
use crate::{interrupt, path::progress, stats};

/// A way of calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// One call after another.
    OneByOne,
    /// Many ADDs at once, then as many DELs and ADDs of others at once, then many DELs at once.
    AtOnce,
    /// One call after another, on a node with more and more pods.
    Growth,
}

impl Scenario {
    /// All, in the order of the report.
    pub const ALL: [Self; 3] = [Self::OneByOne, Self::AtOnce, Self::Growth];
}

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Plugin {
    /// Ours.
    Weft,
    /// The reference.
    Bridge,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// One VERSION.
    Version,
    /// One ADD.
    Add,
    /// One DEL.
    Del,
    /// From the start of one DEL until the device is gone, which Weft does not wait for.
    DelGone,
    /// ADDs at once.
    AtOnceAdd,
    /// ADDs at once with as many DELs.
    BesideAdd,
    /// DELs at once with as many ADDs.
    BesideDel,
    /// DELs at once.
    AtOnceDel,
}

/// Times of one kind of call, milliseconds.
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

impl Times {
    /// None of no times.
    pub fn of(times: &[f64]) -> Option<Self> {
        let quantile = |q| stats::quantile(times, q);
        Some(Self { p50_ms: quantile(0.5)?, p99_ms: quantile(0.99)?, min_ms: quantile(0.0)?, max_ms: quantile(1.0)? })
    }
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Series of calls. One by one there is one; of calls at once there is one a round.
    pub series: BTreeMap<(Plugin, Measure), Vec<Vec<f64>>>,
    /// Calls with more and more pods on the node.
    pub growth: Vec<Level>,
    /// Where Weft's time went, one by one.
    pub steps: Vec<Step>,
    /// Where it went with many at once.
    pub steps_at_once: Vec<Step>,
}

/// Times of calls with so many pods on the node, milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Level {
    /// Pods.
    pub pods: usize,
    /// VERSION: how fast the machine was meanwhile.
    pub version: Vec<f64>,
    /// ADD.
    pub add: Vec<f64>,
    /// DEL.
    pub del: Vec<f64>,
}

impl Found {
    /// Adds to the last series.
    fn push(&mut self, plugin: Plugin, measure: Measure, time: f64) {
        let series = self.series.entry((plugin, measure)).or_default();
        match series.last_mut() {
            Some(last) => last.push(time),
            None => series.push(vec![time]),
        }
    }

    fn round(&mut self, plugin: Plugin, measure: Measure, times: Vec<f64>) {
        self.series.entry((plugin, measure)).or_default().push(times);
    }
}

/// Weft and, if there is one, the reference, each with pods of its own.
#[derive(Clone, Copy)]
pub struct Compared<'a> {
    /// Ours.
    pub weft: &'a Weft,
    /// Its pods.
    pub pods: &'a [Pod],
    /// The reference and its pods.
    pub reference: Option<(&'a Reference, &'a [Pod])>,
}

impl<'a> Compared<'a> {
    /// Who is called in round `n`, in order: none goes first always.
    fn turns(&self, n: usize) -> Vec<(Plugin, &'a Caller, &'a [Pod])> {
        let mut turns = vec![(Plugin::Weft, &self.weft.caller, self.pods)];
        turns.extend(self.reference.map(|(reference, pods)| (Plugin::Bridge, &reference.caller, pods)));
        if n % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    /// `count` calls of each verb, one after another.
    pub fn one_by_one(&self, count: usize, found: &mut Found) -> Result<()> {
        let place = self.weft.log_end()?;
        for (verb, measure) in [(Verb::Version, Measure::Version), (Verb::Add, Measure::Add), (Verb::Del, Measure::Del)]
        {
            progress(&format!("{count} calls of {}, one by one", verb.as_str()));
            for n in 0..count {
                interrupt::check()?;
                for (plugin, caller, pods) in self.turns(n) {
                    let pod = pods.get(n).context("too few pods were made")?;
                    let call = || caller.call(verb, pod);
                    if plugin == Plugin::Weft && verb == Verb::Del {
                        let (time, gone) = self.weft.until_gone(count - n - 1, call)?;
                        found.push(plugin, measure, time);
                        found.push(plugin, Measure::DelGone, gone);
                    } else {
                        found.push(plugin, measure, call()?);
                    }
                }
            }
        }
        let log = self.weft.log_since(place)?;
        let series = |measure| found.series.get(&(Plugin::Weft, measure)).and_then(|s| s.last()).cloned();
        let process = stats::median(&series(Measure::Version).unwrap_or_default());
        for (verb, measure) in [(Verb::Add, Measure::Add), (Verb::Del, Measure::Del)] {
            let times = series(measure).unwrap_or_default();
            found.steps.extend(steps_of(&log, verb, self.pods, &times, process));
        }
        Ok(())
    }

    /// `rounds` times: `count` ADDs at once, as many DELs of these with as many ADDs of others, and `count` DELs of those.
    pub fn at_once(&self, count: usize, rounds: usize, found: &mut Found) -> Result<()> {
        let mut times = Vec::new();
        let place = self.weft.log_end()?;
        for round in 0..rounds {
            for (plugin, caller, pods) in self.turns(round) {
                interrupt::check()?;
                progress(&format!("round {} of {rounds}: {count} calls at once of {plugin:?}", round + 1));
                let (first, second) = pods.split_at_checked(count).context("too few pods were made")?;
                let second = second.get(..count).context("too few pods were made")?;
                let all = |verb, pods: &'a [Pod]| pods.iter().map(move |pod| (verb, pod)).collect::<Vec<_>>();
                let adds = caller.at_once(&all(Verb::Add, first))?;
                if plugin == Plugin::Weft {
                    times.push(adds.clone());
                }
                found.round(plugin, Measure::AtOnceAdd, adds);
                let both: Vec<_> =
                    first.iter().zip(second).flat_map(|(a, b)| [(Verb::Del, a), (Verb::Add, b)]).collect();
                let mixed = self.settled(plugin, count, || caller.at_once(&both))?;
                let (dels, adds): (Vec<_>, Vec<_>) =
                    mixed.chunks_exact(2).filter_map(|c| Some((*c.first()?, *c.last()?))).unzip();
                found.round(plugin, Measure::BesideDel, dels);
                found.round(plugin, Measure::BesideAdd, adds);
                let dels = self.settled(plugin, 0, || caller.at_once(&all(Verb::Del, second)))?;
                found.round(plugin, Measure::AtOnceDel, dels);
            }
        }
        // The log has a pod's ADD of each round; the last one's is what is left of each container's name.
        let log = self.weft.log_since(place)?;
        let last = times.pop().unwrap_or_default();
        let process = found.series.get(&(Plugin::Weft, Measure::Version)).and_then(|s| stats::median(s.last()?));
        found.steps_at_once = steps_of(&log, Verb::Add, self.pods, &last, process);
        Ok(())
    }

    /// Waits after Weft's DELs until no more than `left` devices are there.
    fn settled<T>(&self, plugin: Plugin, left: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if plugin == Plugin::Weft { self.weft.until_gone(left, work).map(|(result, _)| result) } else { work() }
    }
}

fn steps_of(log: &str, verb: Verb, pods: &[Pod], times: &[f64], process: Option<f64>) -> Vec<Step> {
    let logged = steps::read(log, verb);
    let calls: Vec<_> = pods.iter().zip(times).filter_map(|(pod, time)| Some((*time, logged.get(&pod.id)?))).collect();
    steps::summary(verb, &calls, process)
}

/// How many pods are on the node when the calls are timed.
const LEVELS: [usize; 4] = [0, 100, 300, 500];
/// Calls that are timed with so many.
const CALLS: usize = 40;
/// How many pods [`growth`] needs.
pub const GROWN: usize = 500 + CALLS;
/// Calls at once while the node is filled, which nobody times.
const FILL: usize = 20;

/// Times ADD and DEL one by one with more and more pods on the node.
pub fn growth(weft: &Weft, pods: &[Pod], found: &mut Found) -> Result<()> {
    let mut there = 0;
    let part = |from: usize, to: usize| pods.get(from..to).context("too few pods were made");
    let together = |verb, pods: &[Pod]| {
        pods.chunks(FILL).try_for_each(|some| {
            interrupt::check()?;
            weft.caller.at_once(&some.iter().map(|pod| (verb, pod)).collect::<Vec<_>>()).map(drop)
        })
    };
    for level in LEVELS {
        progress(&format!("{CALLS} calls one by one with {level} pods on the node"));
        together(Verb::Add, part(there, level)?)?;
        there = level;
        let further = part(level, level + CALLS)?;
        let mut times = Level { pods: level, ..Level::default() };
        for pod in further {
            interrupt::check()?;
            times.version.push(weft.caller.call(Verb::Version, pod)?);
            times.add.push(weft.caller.call(Verb::Add, pod)?);
        }
        let delete = || further.iter().map(|pod| weft.caller.call(Verb::Del, pod)).collect::<Result<_>>();
        (times.del, _) = weft.until_gone(level, delete)?;
        found.growth.push(times);
    }
    weft.until_gone(0, || together(Verb::Del, part(0, there)?)).map(|_| ())
}
