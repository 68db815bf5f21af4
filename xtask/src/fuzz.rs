//! `cargo xtask fuzz`: searches for inputs that break what the crate tests/fuzz promises, guided by coverage.
//!
//! The fuzzer is LLVM's libFuzzer, with the crates of this workspace built to tell it where an input came through; no other
//! compiler than that of the rest is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    libtest::Counts,
    run::{self, Ended, Read},
    setup::{self, Need},
    ui::{self, Stage},
    workspace::Workspace,
};

/// How long one input may take, in seconds; most take less than a millisecond.
const INPUT_LIMIT: u32 = 10;
/// The longest input that is tried, in bytes. Larger ones go the same ways, and slower.
const LONGEST: u32 = 4096;
/// The most memory that a target may take, in MiB.
const MEMORY: u32 = 1024;
/// What a run may take beyond its time: the replay of what is stored, and the last input.
const SLACK: Duration = Duration::from_secs(60);

/// Fuzz what comes from outside: configurations, environment, socket, files.
///
/// First what is stored in tests/fuzz/corpus is replayed, then other inputs are tried for the given time in each target.
/// Inputs that reach further are kept in the target directory for the next time, and with --keep in the stored corpus, so
/// far as it needs them. An input that breaks a target is named with the command that shows it again. Needs no root.
#[derive(clap::Args)]
pub struct Args {
    /// What to fuzz; everything when none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long to search in each target, in seconds; 0 replays only
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Take what was found into the stored corpus
    #[arg(long)]
    keep: bool,
    /// Print the targets and end
    #[arg(long)]
    list: bool,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let all = targets(ws)?;
    if args.list {
        println!("{}", all.join("\n"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    setup::ensure(ws, &[Need::Fuzz])?;
    let chosen = if args.targets.is_empty() { all } else { args.targets.clone() };
    let counts = search(ws, &chosen, args.seconds)?;
    if args.keep && counts.failed == 0 {
        for target in &chosen {
            keep(ws, target)?;
        }
    }
    for failure in &counts.failures {
        ui::error(failure);
    }
    println!("fuzz: {} targets hold, {} do not", counts.passed, counts.failed);
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every target for the given time, as a suite.
pub fn suite(ws: &Workspace, seconds: u32) -> Result<Counts> {
    search(ws, &targets(ws)?, seconds)
}

/// The targets: each has a stored corpus.
fn targets(ws: &Workspace) -> Result<Vec<String>> {
    let corpus = ws.root.join("tests/fuzz/corpus");
    let entries = fs::read_dir(&corpus).with_context(|| format!("read {}", corpus.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<String>>>()
        .with_context(|| format!("read {}", corpus.display()))?;
    names.sort();
    Ok(names)
}

fn search(ws: &Workspace, targets: &[String], seconds: u32) -> Result<Counts> {
    let program = build(ws)?;
    let mut counts = Counts::default();
    for target in targets {
        let stage = Stage::start(format!("fuzz {target}"));
        match run_target(ws, &program, target, seconds)? {
            Ok(note) => {
                stage.done(&note);
                counts.passed += 1;
            }
            Err(failure) => {
                stage.failed("an input breaks it");
                counts.fail(failure);
            }
        }
    }
    Ok(counts)
}

/// The fuzzer, with marks of coverage in our own crates. It shares what others have built of the dependencies.
fn build(ws: &Workspace) -> Result<PathBuf> {
    let mut command = ws.cargo();
    command.env("RUSTC_WORKSPACE_WRAPPER", ws.root.join("tests/fuzz/rustc-with-coverage")).args([
        "build",
        "-p",
        "fuzz",
        "--features",
        "engine",
        "--bin",
        "weft-fuzz",
    ]);
    run::cargo(&mut command).context("build the fuzzer")?;
    Ok(ws.target.join("debug/weft-fuzz"))
}

/// Runs one target: what it did, or how it was broken.
fn run_target(ws: &Workspace, program: &Path, target: &str, seconds: u32) -> Result<Result<String, String>> {
    let found = found(ws, target)?;
    // libFuzzer puts a name of its own behind it.
    let broken = ws.target.join("fuzz").join(format!("broken-{target}-"));
    let mut command = ws.command(program);
    command.env("WEFT_FUZZ_TARGET", target).args([
        format!("-timeout={INPUT_LIMIT}"),
        format!("-max_len={LONGEST}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-dict={}", ws.root.join("tests/fuzz/words.dict").display()),
        format!("-artifact_prefix={}", broken.display()),
    ]);
    match seconds {
        // What is there is run before the first of these.
        0 => command.arg("-runs=0"),
        n => command.arg(format!("-max_total_time={n}")),
    };
    command.arg(&found).arg(stored(ws, target));
    let (mut said, mut artifact, mut done) = (Vec::new(), None, String::new());
    let limit = Duration::from_secs(u64::from(seconds)) + SLACK;
    let ended = run::stream(&mut command, Read::Stderr, limit, |line| {
        if let Some((_, file)) = line.split_once("Test unit written to ") {
            artifact = Some(file.trim().to_owned());
        } else if is_progress(line) {
            done = summary(line).unwrap_or_default();
        } else {
            said.push(line.to_owned());
        }
    })?;
    Ok(match ended {
        Ended::Well => Ok(done),
        Ended::TimedOut => Err(format!("{target}: killed, as it took longer than {} s", limit.as_secs())),
        Ended::Badly(_) => {
            for line in said.iter().filter(|line| !line.starts_with("INFO: ")) {
                eprintln!("{line}");
            }
            let file = artifact.unwrap_or_else(|| "an input that could not be written".to_owned());
            Err(format!(
                "{target}: broken by {file}; see it again by `WEFT_FUZZ_TARGET={target} {} {file}`, and keep it in {} when \
                 it is mended",
                ws.show(program),
                ws.show(&stored(ws, target))
            ))
        }
    })
}

/// Takes into the stored corpus what reaches further than what is there.
fn keep(ws: &Workspace, target: &str) -> Result<()> {
    let mut command = ws.command(ws.target.join("debug/weft-fuzz"));
    // What reaches another place is worth a file, what reaches one more often is not.
    command.env("WEFT_FUZZ_TARGET", target).args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"]);
    command.arg(stored(ws, target)).arg(found(ws, target)?);
    run::capture(&mut command).with_context(|| format!("merge what was found of {target}"))?;
    Ok(())
}

fn stored(ws: &Workspace, target: &str) -> PathBuf {
    ws.root.join("tests/fuzz/corpus").join(target)
}

/// Where inputs that reach further are kept between runs.
fn found(ws: &Workspace, target: &str) -> Result<PathBuf> {
    let directory = ws.target.join("fuzz").join(target);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory)
}

/// Lines such as `#4096  NEW    cov: 883 ft: 1460 corp: 271/6612b exec/s: 7951`.
fn is_progress(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// How many inputs were tried and how many places they reached, from a line of progress.
fn summary(line: &str) -> Option<String> {
    let tried = line.strip_prefix('#')?.split_whitespace().next()?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "cov:").skip(1);
    Some(format!("{tried} inputs, {} places", words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_is_read() {
        let line = "#127223\tDONE   cov: 883 ft: 1460 corp: 271/6612b lim: 166 exec/s: 7951 rss: 34Mb";
        assert!(is_progress(line));
        assert_eq!(summary(line).as_deref(), Some("127223 inputs, 883 places"));
        assert!(!is_progress("###### Recommended dictionary. ######"));
        assert!(!is_progress("#define"));
        assert_eq!(summary("#1\tREDUCE"), None);
    }
}
