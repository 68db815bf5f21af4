//! Where the time of a call to Weft went: the agent tells it in the line that it logs for every call.

use std::collections::BTreeMap;

use serde::Serialize;

use super::caller::Verb;
use crate::stats;

/// What the agent logged about a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// From the connection to the answer, milliseconds.
    pub took: f64,
    /// Each step in order, milliseconds.
    pub steps: Vec<(String, f64)>,
}

/// The calls of `verb` in a part of the agent's log, by container.
pub fn read(log: &str, verb: Verb) -> BTreeMap<String, Logged> {
    log.lines().filter(|line| line.contains("CNI call done")).filter_map(|line| of_line(line, verb)).collect()
}

fn of_line(line: &str, verb: Verb) -> Option<(String, Logged)> {
    let (fields, steps) = line.split_once(" steps=")?;
    let field = |name: &str| {
        let words = fields.split_ascii_whitespace();
        words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v.trim_matches('"'))
    };
    if field("verb")? != verb.as_str() {
        return None;
    }
    let millis = |text: &str| Some(text.parse::<f64>().ok()? / 1e3);
    let step = |text: &str| {
        let (name, micros) = text.split_once(' ')?;
        Some((name.to_owned(), millis(micros)?))
    };
    let steps = steps.trim().split(", ").map(step).collect::<Option<Vec<_>>>()?;
    Some((field("container")?.to_owned(), Logged { took: millis(field("took_us")?)?, steps }))
}

/// A step of a verb.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// ADD or DEL.
    pub verb: &'static str,
    /// Its name.
    pub name: String,
    /// The median over the calls, milliseconds.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
}

/// The steps of calls of `verb` in their order. `calls` has each one's whole time and what the agent logged about it, `process` is
/// what starting and ending the plugin's process takes alone.
pub fn summary(verb: Verb, calls: &[(f64, &Logged)], process: Option<f64>) -> Vec<Step> {
    let mut order = Vec::<&str>::new();
    for name in calls.iter().flat_map(|(_, logged)| &logged.steps).map(|(name, _)| name.as_str()) {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    let step = |name: String, times: Vec<f64>| {
        let quantile = |q| stats::quantile(&times, q);
        Some(Step { verb: verb.as_str(), name, p50_ms: quantile(0.5)?, p99_ms: quantile(0.99)? })
    };
    let of = |wanted: &str| {
        let time = |logged: &Logged| logged.steps.iter().filter(|(name, _)| name == wanted).map(|(_, t)| t).sum();
        calls.iter().map(|(_, logged)| time(logged)).collect()
    };
    let process = process.unwrap_or(0.0);
    let plugin = calls.iter().map(|(total, logged)| (total - logged.took - process).max(0.0)).collect();
    let rest = |logged: &Logged| (logged.took - logged.steps.iter().map(|(_, t)| t).sum::<f64>()).max(0.0);
    let agent = order.iter().filter_map(|name| step(format!("agent: {name}"), of(name)));
    let before = [
        step("process: start and end".into(), vec![process]).filter(|_| process > 0.0),
        step("plugin: read, socket, print".into(), plugin),
    ];
    let after = step("agent: between these".into(), calls.iter().map(|(_, logged)| rest(logged)).collect());
    before.into_iter().flatten().chain(agent).chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-24T12:00:00.000001Z  INFO cni_agent::cni::server: CNI server listens socket=/run/x
2026-11-24T12:00:00.000002Z  INFO cni_agent::cni::server: CNI call done verb=\"ADD\" container=\"a\" ifname=\"eth0\" took_us=1500 steps=queue 100, maps 900, record 200
2026-11-24T12:00:00.000003Z  INFO cni_agent::cni::server: CNI call done verb=\"DEL\" container=\"a\" ifname=\"eth0\" took_us=300 steps=queue 10
";

    #[test]
    fn the_steps_of_a_call_are_read_from_its_line() {
        let logged = read(LOG, Verb::Add);
        assert_eq!(logged.keys().collect::<Vec<_>>(), ["a"]);
        let steps = [("queue", 0.1), ("maps", 0.9), ("record", 0.2)].map(|(name, t)| (name.to_owned(), t));
        assert_eq!(logged["a"], Logged { took: 1.5, steps: steps.into() });
        assert_eq!(read(LOG, Verb::Del)["a"].took, 0.3);
    }

    #[test]
    fn what_no_step_explains_is_shown_as_well() {
        let logged = read(LOG, Verb::Add);
        let steps = summary(Verb::Add, &[(2.5, &logged["a"])], Some(0.6));
        let shown: Vec<_> = steps.iter().map(|s| (s.name.as_str(), (s.p50_ms * 10.0).round())).collect();
        let expected = [
            ("process: start and end", 6.0),
            ("plugin: read, socket, print", 4.0),
            ("agent: queue", 1.0),
            ("agent: maps", 9.0),
            ("agent: record", 2.0),
            ("agent: between these", 3.0),
        ];
        assert_eq!(shown, expected);
    }
}
