//! The public policy cases: every flow of every case, by increments and rebuilt. One line each, as the test harness of the standard library prints
//! it.
//!
//! The cases are no part of this repository. `WEFT_POLICY_CASES` names the directory that holds `cases/`; without it they are looked for in
//! `../shared/policy` beside the checkout, and when they are not there either, this counts as skipped.
#![expect(clippy::print_stdout, reason = "it is what a test harness does")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use cni_agent::policy::verdicts::{Case, Matrix, Mode, judge};
use serde_json::Value;

const DIRECTORY: &str = "WEFT_POLICY_CASES";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.iter().any(|w| w == "--list") {
        println!("policy_cases: test");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|w| !w.starts_with('-')).collect();
    let named = env::var_os(DIRECTORY).map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/policy");
    let cases = named.clone().unwrap_or(beside).join("cases");
    let files = match list(&cases) {
        Ok(files) => files,
        Err(error) => {
            println!("running 1 test");
            let (word, counts) = if named.is_some() { ("FAILED", (0, 1, 0)) } else { ("ignored", (0, 0, 1)) };
            println!("test policy_cases ... {word}");
            println!("policy_cases: {}: {error}; {DIRECTORY} names the directory that holds cases/", cases.display());
            return summary(counts);
        }
    };
    let runs: Vec<(String, &PathBuf, Mode)> = files
        .iter()
        .flat_map(|f| {
            let name = f.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            [(format!("incremental::{name}"), f, Mode::Incremental), (format!("rebuilt::{name}"), f, Mode::Rebuild)]
        })
        .filter(|(name, ..)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)))
        .collect();
    println!("running {} tests", runs.len());
    let mut said = BTreeMap::new();
    let mut judged = 0;
    for (name, file, mode) in &runs {
        match run(file, *mode) {
            Ok(cells) => {
                judged += cells;
                println!("test {name} ... ok");
            }
            Err(error) => {
                println!("test {name} ... FAILED");
                said.insert(name, error);
            }
        }
    }
    if !said.is_empty() {
        println!("\nfailures:\n");
        said.iter().for_each(|(name, error)| println!("---- {name} stdout ----\n{error}\n"));
        println!("\nfailures:");
        said.keys().for_each(|name| println!("    {name}"));
    }
    println!("\n{judged} flows agree");
    summary((runs.len() - said.len(), said.len(), 0))
}

fn summary((passed, failed, ignored): (usize, usize, usize)) -> ExitCode {
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "json"));
    files.sort();
    if files.is_empty() { Err(std::io::Error::other("no case in it")) } else { Ok(files) }
}

/// Flows that were judged; or what does not agree.
fn run(file: &Path, mode: Mode) -> Result<usize, String> {
    let text = fs::read_to_string(file).map_err(|e| e.to_string())?;
    let expected: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let case: Case = text.parse().map_err(|e| format!("{e}"))?;
    let answer = judge(&case, mode).map_err(|e| e.to_string())?;
    let steps = expected["steps"].as_array().ok_or("no steps")?;
    if steps.len() != answer.steps.len() {
        return Err(format!("{} steps, {} answers", steps.len(), answer.steps.len()));
    }
    let mut judged = 0;
    for (n, (step, got)) in steps.iter().zip(&answer.steps).enumerate() {
        let want: Matrix = serde_json::from_value(step["expect"].clone()).map_err(|e| e.to_string())?;
        let (want, got) = (flows(&want), flows(got));
        for (flow, letter) in want.iter().filter(|(_, letter)| !matches!(letter, '?' | '-')) {
            judged += 1;
            if got.get(flow) != Some(letter) {
                return Err(format!("step {n}: {flow:?}: {letter} is right, not {:?}", got.get(flow)));
            }
        }
    }
    Ok(judged)
}

fn flows(matrix: &Matrix) -> BTreeMap<(&str, &str, &str), char> {
    let mut all = BTreeMap::new();
    for group in &matrix.verdicts {
        for probe in &group.probes {
            for (src, row) in matrix.endpoints.iter().zip(&group.rows) {
                for (dst, letter) in matrix.endpoints.iter().zip(row.chars()) {
                    all.insert((probe.as_str(), src.as_str(), dst.as_str()), letter);
                }
            }
        }
    }
    all
}
