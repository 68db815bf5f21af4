//! `cargo xtask accept`: runs the acceptance list of an issue and prints the table for its closing note.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use regex_lite::Regex;
use serde::Deserialize;

use crate::{
    run::{self, Ended, Read},
    ui::Stage,
    workspace::Workspace,
};

/// Run an acceptance list and print its table.
///
/// TOPIC names tests/accept/TOPIC.toml, a list of `[[promise]]`: `text` (what was promised), `command` (shows it; run by
/// bash from the workspace's root), and where there is a figure `figure` (a regular expression over the command's standard
/// output, with one group), `max` and `min` (its bounds, inclusive) and `unit`; `table`, a regular expression
/// with one group, whose text is printed below the promises, as it is; `timeout` in seconds (default 1800). A promise
/// without a command is printed as "not done". Commands that are equal run once. The table is Markdown; the exit code is
/// 1 if a promise failed.
#[derive(clap::Args)]
pub struct Args {
    /// The acceptance list, such as first-packets
    topic: String,
    /// Only promises whose text contains this
    #[arg(long, value_name = "SUBSTR")]
    only: Option<String>,
    /// Print the promises and their commands, and run none
    #[arg(long)]
    list: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Topic {
    promise: Vec<Promise>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Promise {
    text: String,
    command: Option<String>,
    figure: Option<String>,
    max: Option<f64>,
    min: Option<f64>,
    #[serde(default)]
    unit: String,
    table: Option<String>,
    timeout: Option<u64>,
}

/// What a command did.
struct Shown {
    ended: Ended,
    stdout: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Kept,
    Failed,
    NotDone,
}

/// A promise's outcome, as it stands in the table.
#[derive(Debug, PartialEq)]
struct Outcome {
    verdict: Verdict,
    result: String,
    figure: Option<f64>,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let path = ws.root.join("tests/accept").join(format!("{}.toml", args.topic));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no acceptance list {}; there are: {}", ws.show(&path), topics(ws).join(", ")))?;
    let mut promises = parse(&text).with_context(|| format!("read {}", ws.show(&path)))?;
    promises.retain(|(p, _)| args.only.as_ref().is_none_or(|part| p.text.contains(part.as_str())));
    if promises.is_empty() {
        bail!("no promise of {} contains the words asked for; `--list` shows them all", args.topic);
    }
    if args.list {
        for (promise, _) in &promises {
            println!("{}\n    {}", promise.text, promise.command.as_deref().unwrap_or("(not done)"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    let mut outcomes = Vec::new();
    for (promise, regex) in &promises {
        let outcome = match &promise.command {
            None => Outcome { verdict: Verdict::NotDone, result: "not done".to_owned(), figure: None },
            Some(command) => {
                if !shown.contains_key(command) {
                    shown.insert(command.clone(), show(ws, command, promise.timeout)?);
                }
                judge(promise, regex.as_ref(), &shown[command])
            }
        };
        outcomes.push(outcome);
    }
    println!("| promise | command | result | figure | bound |\n|---|---|---|---|---|");
    for ((promise, _), outcome) in promises.iter().zip(&outcomes) {
        println!("{}", row(promise, outcome));
    }
    for (promise, _) in &promises {
        if let (Some(pattern), Some(command)) = (&promise.table, &promise.command) {
            let table = one_group(pattern, &promise.text)?;
            let text = table
                .captures(&shown[command].stdout)
                .and_then(|c| c.get(1))
                .map_or("(not in the output)", |m| m.as_str());
            println!("\n{}:\n\n```\n{}\n```", promise.text, text.trim_end());
        }
    }
    let count = |verdict| outcomes.iter().filter(|o| o.verdict == verdict).count();
    let failed = count(Verdict::Failed);
    println!(
        "\n{} promises: {} kept, {failed} failed, {} not done",
        outcomes.len(),
        count(Verdict::Kept),
        count(Verdict::NotDone)
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn topics(ws: &Workspace) -> Vec<String> {
    let Ok(dir) = fs::read_dir(ws.root.join("tests/accept")) else { return Vec::new() };
    let mut names: Vec<String> =
        dir.flatten().filter_map(|e| e.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned)).collect();
    names.sort();
    names
}

/// Reads a list and refuses what could not be judged.
fn parse(text: &str) -> Result<Vec<(Promise, Option<Regex>)>> {
    let topic: Topic = toml::from_str(text)?;
    let mut promises = Vec::new();
    for promise in topic.promise {
        let regex = match &promise.figure {
            None if promise.max.is_some() || promise.min.is_some() => {
                bail!("\"{}\" has a bound, and no `figure` that it bounds", promise.text)
            }
            None => None,
            Some(pattern) => Some(one_group(pattern, &promise.text)?),
        };
        if let Some(pattern) = &promise.table {
            one_group(pattern, &promise.text)?;
        }
        promises.push((promise, regex));
    }
    Ok(promises)
}

fn one_group(pattern: &str, promise: &str) -> Result<Regex> {
    let regex = Regex::new(pattern).with_context(|| format!("`{pattern}` of \"{promise}\""))?;
    if regex.captures_len() != 2 {
        bail!("`{pattern}` of \"{promise}\" must have exactly one group, around what is meant");
    }
    Ok(regex)
}

fn show(ws: &Workspace, script: &str, timeout: Option<u64>) -> Result<Shown> {
    let stage = Stage::start(script.trim());
    let mut command: Command = ws.command("bash");
    command.args(["-euo", "pipefail", "-c", script]);
    let mut stdout = String::new();
    let ended = run::stream(&mut command, Read::Stdout, Duration::from_secs(timeout.unwrap_or(1800)), |line| {
        stdout.push_str(line);
        stdout.push('\n');
    })?;
    if ended == Ended::Well {
        stage.done("");
    } else {
        for line in run::tail(&stdout, 20).lines() {
            eprintln!("    {line}");
        }
        stage.failed(&why(ended));
    }
    Ok(Shown { ended, stdout })
}

fn why(ended: Ended) -> String {
    match ended {
        Ended::Well => "ok".to_owned(),
        Ended::Badly(Some(code)) => format!("exit code {code}"),
        Ended::Badly(None) => "killed by a signal".to_owned(),
        Ended::TimedOut => "took too long".to_owned(),
    }
}

fn judge(promise: &Promise, regex: Option<&Regex>, shown: &Shown) -> Outcome {
    let figure = regex
        .and_then(|r| r.captures(&shown.stdout))
        .and_then(|c| c.get(1).and_then(|m| m.as_str().replace([',', '_'], "").parse::<f64>().ok()));
    let failed = |result: String| Outcome { verdict: Verdict::Failed, result: format!("FAILED: {result}"), figure };
    if shown.ended != Ended::Well {
        return failed(why(shown.ended));
    }
    match (regex, figure) {
        (Some(_), None) => failed("the figure is not in the output".to_owned()),
        (_, Some(f)) if promise.max.is_some_and(|max| f > max) => failed("above its bound".to_owned()),
        (_, Some(f)) if promise.min.is_some_and(|min| f < min) => failed("below its bound".to_owned()),
        _ => Outcome { verdict: Verdict::Kept, result: "ok".to_owned(), figure },
    }
}

fn row(promise: &Promise, outcome: &Outcome) -> String {
    let cell = |text: &str| text.trim().replace('|', "\\|").replace('\n', " ; ");
    let with_unit = |text: String| if promise.unit.is_empty() { text } else { format!("{text} {}", promise.unit) };
    let command = promise.command.as_ref().map(|c| format!("`{}`", cell(c))).unwrap_or_default();
    let figure = outcome.figure.map(|f| with_unit(f.to_string())).unwrap_or_default();
    let bounds: Vec<String> =
        promise.min.iter().map(|b| format!("≥ {b}")).chain(promise.max.iter().map(|b| format!("≤ {b}"))).collect();
    let bound = if bounds.is_empty() { String::new() } else { with_unit(bounds.join(", ")) };
    format!("| {} | {command} | {} | {figure} | {bound} |", cell(&promise.text), cell(&outcome.result))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"
        [[promise]]
        text = "same node round trips"
        command = "bench"
        figure = 'same-node rr ([0-9.]+)'
        max = 1.12
        unit = "x"
        [[promise]]
        text = "a thing | for later"
    "#;

    fn outcome(output: &str, ended: Ended) -> (String, Verdict) {
        let promises = parse(LIST).unwrap();
        let (promise, regex) = &promises[0];
        let outcome = judge(promise, regex.as_ref(), &Shown { ended, stdout: output.to_owned() });
        (row(promise, &outcome), outcome.verdict)
    }

    #[test]
    fn a_figure_within_its_bound_is_kept() {
        let (row, verdict) = outcome("x\nsame-node rr 1.12\n", Ended::Well);
        assert_eq!(verdict, Verdict::Kept);
        assert_eq!(row, "| same node round trips | `bench` | ok | 1.12 x | ≤ 1.12 x |");
    }

    #[test]
    fn a_figure_out_of_bounds_or_missing_fails() {
        assert_eq!(outcome("same-node rr 1.13", Ended::Well).1, Verdict::Failed);
        assert_eq!(outcome("nothing", Ended::Well).1, Verdict::Failed);
        assert_eq!(outcome("same-node rr 1.0", Ended::Badly(Some(1))).1, Verdict::Failed);
    }

    #[test]
    fn a_promise_without_a_command_is_not_done() {
        let promises = parse(LIST).unwrap();
        let outcome = Outcome { verdict: Verdict::NotDone, result: "not done".to_owned(), figure: None };
        assert_eq!(row(&promises[1].0, &outcome), "| a thing \\| for later |  | not done |  |  |");
    }

    #[test]
    fn refuses_lists_that_cannot_be_judged() {
        for bad in ["max = 1", "figure = '[0-9]+'", "figure = '('", "bound = 3"] {
            assert!(parse(&format!("[[promise]]\ntext = 't'\n{bad}\n")).is_err(), "{bad}");
        }
    }
}
