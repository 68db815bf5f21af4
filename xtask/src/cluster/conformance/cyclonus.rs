//! Cyclonus' generated cases: policies of every shape, each held against what its own model of NetworkPolicy says of every pair of nine
//! pods. `tests/cluster/conformance/cases` runs them.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;

use super::{Args, programs::REGISTRY, report::Case, said};

/// Left out of a short run: two peers in one rule, and what Kubernetes' own suite has too.
const LONG: &str = "multi-peer,upstream-e2e";
/// For one that hangs.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the cases that the arguments want. `start` is a command to which the program and its arguments are appended. What cyclonus says
/// goes to `directory`.
pub fn run(mut start: Command, programs: &Path, args: &Args, directory: &Path) -> Result<Vec<Case>> {
    start
        .arg(programs.join("cases"))
        .arg(format!("--registry={REGISTRY}"))
        .arg(format!("--tags={}", args.tags.join(",")));
    start.arg(format!("--without={}", if args.short { LONG } else { "" }));
    if let Some(part) = args.part {
        start.arg(format!("--part={}/{}", part.number, part.of));
    }
    said::run(&mut start, LIMIT, &directory.join("cyclonus.log"))
}
