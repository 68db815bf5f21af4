//! `cargo xtask lint`: everything that is checked without running the code.

mod lexer;
mod object;
mod source;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    run::{self, Ended, Read},
    setup::{self, Need},
    ui::{self, Stage},
    workspace::Workspace,
};

/// Check formatting, lints, dependencies, the BPF object and the house rules.
///
/// Runs all checks, and then fails if one did: rustfmt; the house rules on sources (unsafe code only where it may be and
/// with its SAFETY comment, no sleep in tests, no #[cold] in kernel code, no paths of one machine); cargo-deny; clippy with
/// warnings as errors on every crate and target, the BPF side too; the BPF object (calls to mem* functions, sections
/// that aya would mislink). Each finding names file, line and cure.
#[derive(clap::Args)]
pub struct Args {}

/// What a check found; empty: nothing.
type Findings = Vec<String>;

/// A check of its own: its name, and what does it.
type Check = (&'static str, fn(&Workspace) -> Result<Findings>);

const CHECKS: [Check; 6] = [
    ("rustfmt", rustfmt),
    ("house rules", house_rules),
    ("cargo-deny", cargo_deny),
    ("clippy, BPF side", clippy_bpf),
    ("clippy", clippy),
    ("BPF object", bpf_object),
];

/// The verb.
pub fn main(ws: &Workspace, _: &Args) -> Result<ExitCode> {
    setup::ensure(ws, &[Need::Bpf, Need::Lint])?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let stage = Stage::start(name);
        // A check that could not run has not passed; the others still tell what they find.
        let findings = check(ws).unwrap_or_else(|e| vec![format!("{e:#}")]);
        if findings.is_empty() {
            stage.done("");
        } else {
            for finding in &findings {
                eprintln!("  {finding}");
            }
            stage.failed(&format!("{} found", findings.len()));
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("lint: {} checks passed", CHECKS.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: {} of {} checks failed: {}", failed.len(), CHECKS.len(), failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn rustfmt(ws: &Workspace) -> Result<Findings> {
    let mut findings = Vec::new();
    let mut command = ws.cargo();
    command.args(["fmt", "--all", "--check", "--", "--color=never"]);
    let ended = run::stream(&mut command, Read::Both, std::time::Duration::from_secs(300), |line| {
        if let Some(place) = line.strip_prefix("Diff in ") {
            findings.push(format!("{}: not formatted; run `cargo fmt`", relative(ws, place.trim_end_matches(':'))));
        } else if line.starts_with("error") {
            findings.push(line.to_owned());
        }
    })?;
    if ended != Ended::Well && findings.is_empty() {
        bail!("`cargo fmt --all --check` failed and named no file");
    }
    Ok(findings)
}

fn relative<'a>(ws: &Workspace, place: &'a str) -> &'a str {
    place.strip_prefix(&*ws.root.to_string_lossy()).map_or(place, |p| p.trim_start_matches('/'))
}

fn clippy(ws: &Workspace) -> Result<Findings> {
    let mut command = ws.cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"]);
    Ok(by_cargo(run::cargo(&mut command)))
}

fn clippy_bpf(ws: &Workspace) -> Result<Findings> {
    let mut command = build::bpf_cargo(ws, "clippy");
    command.args(["--", "-D", "warnings"]);
    Ok(by_cargo(run::cargo(&mut command)))
}

/// Cargo has shown its findings with file, line and cure itself.
fn by_cargo(outcome: Result<()>) -> Findings {
    outcome.err().map(|e| format!("{e:#}")).into_iter().collect()
}

fn cargo_deny(ws: &Workspace) -> Result<Findings> {
    let deny = |what: &[&str]| {
        let mut command = ws.cargo();
        command.args(["deny", "--color=never", "--log-level=warn", "check", "--hide-inclusion-graph"]).args(what);
        command
    };
    let mut findings = by_cargo(run::cargo(&mut deny(&["bans", "licenses", "sources"])));
    // The advisories' database is fetched from its home. Where that cannot be reached nothing is known to be wrong, but it
    // has to be said.
    if let Err(e) = run::capture(&mut deny(&["advisories"])) {
        let text = format!("{e:#}");
        if text.contains("failed to fetch advisory database") {
            ui::note("advisories were not checked: their database cannot be reached from here");
        } else {
            findings.push(text);
        }
    }
    Ok(findings)
}

fn house_rules(ws: &Workspace) -> Result<Findings> {
    let mut files = Vec::new();
    walk(&ws.root, &ws.target, &mut files)?;
    let mut findings = Vec::new();
    for file in files {
        let path = file.strip_prefix(&ws.root).unwrap_or(&file).to_string_lossy().into_owned();
        // What is no text is no source.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        findings.extend(source::check(&path, &text).into_iter().map(|f| format!("{path}:{}: {}", f.line, f.text)));
    }
    Ok(findings)
}

/// All files of the checkout, in order.
fn walk(dir: &Path, target: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    let mut entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("list {}", dir.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let kind = entry.file_type().with_context(|| format!("look at {}", path.display()))?;
        let name = entry.file_name();
        if kind.is_dir() && name != ".git" && name != "target" && path != target {
            walk(&path, target, files)?;
        } else if kind.is_file() && name != "Cargo.lock" {
            files.push(path);
        }
    }
    Ok(())
}

fn bpf_object(ws: &Workspace) -> Result<Findings> {
    let path = build::bpf_object(ws)?;
    let data = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let table = ws.root.join(object::TABLE);
    let text = fs::read_to_string(&table).with_context(|| format!("read {}", table.display()))?;
    let report = object::check(&data, &text)?;
    for note in &report.notes {
        ui::note(note);
    }
    Ok(report.findings)
}
