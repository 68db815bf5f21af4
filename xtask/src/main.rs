//! Weft's developer verbs: everything that builds, checks, tests, shows and measures the project.
//!
//! Each verb installs what it needs first (`cargo xtask setup`), writes its progress to standard error and its result
//! to standard output, and ends with one line that says how it went.

#![forbid(unsafe_code)]

mod accept;
mod bench;
mod build;
mod cluster;
mod deb;
mod docs;
mod fuzz;
mod image;
mod lab;
mod libtest;
mod lint;
mod mutants;
mod promtool;
mod reference;
mod run;
mod setup;
mod test;
mod ui;
mod verifier;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Build, check, test, show and measure Weft.
///
/// Every verb installs what it needs before it starts; `cargo xtask setup` does nothing else. Progress goes to standard
/// error, results to standard output. Artefacts are put under CARGO_TARGET_DIR, or target/ of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Build(build::Args),
    Image(image::Args),
    Lint(lint::Args),
    Test(test::Args),
    Lab(lab::Args),
    Cluster(cluster::Args),
    Vm(vm::Args),
    Verifier(verifier::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Mutants(mutants::Args),
    Accept(accept::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Workspace::find().and_then(|ws| match cli.verb {
        Verb::Setup(args) => setup::main(&ws, &args),
        Verb::Build(args) => build::main(&ws, &args),
        Verb::Image(args) => image::main(&ws, &args),
        Verb::Lint(args) => lint::main(&ws, &args),
        Verb::Test(args) => test::main(&ws, &args),
        Verb::Lab(args) => lab::main(&ws, &args),
        Verb::Cluster(args) => cluster::main(&ws, &args),
        Verb::Vm(args) => vm::main(&ws, &args),
        Verb::Verifier(args) => verifier::main(&ws, &args),
        Verb::Bench(args) => bench::main(&ws, &args),
        Verb::Fuzz(args) => fuzz::main(&ws, &args),
        Verb::Mutants(args) => mutants::main(&ws, &args),
        Verb::Accept(args) => accept::main(&ws, &args),
    });
    match outcome {
        Ok(code) => code,
        Err(e) => {
            ui::error(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}
