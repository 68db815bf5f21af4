//! `cargo xtask lab`: builds the lab and becomes it.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    setup::{self, Need},
    workspace::{self, Workspace},
};

/// A cluster on this machine: a guided tour, or its single steps as tools.
///
/// Without arguments: the tour (nodes up, pods by real CNI calls, a table of who reaches whom, a look into the maps,
/// nodes down). With arguments they are those of `weft-lab`; `cargo xtask lab help` lists them, e.g. `lab up --nodes 2`,
/// `lab pod add node-1 web`, `lab exec web -- ip addr`, `lab status --json`, `lab down`. Nodes and pods are network
/// namespaces; `lab down` leaves the machine as it was. Needs root.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments of weft-lab
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    become_program(ws, "weft-lab", "the lab", &args.args, &[])
}

/// Builds our programs and replaces this process by one of them, in the directory where the verb was called.
pub fn become_program(
    ws: &Workspace,
    program: &str,
    what: &str,
    args: &[String],
    env: &[(&str, OsString)],
) -> Result<ExitCode> {
    if !asks_only(args) {
        workspace::require_root(what)?;
    }
    setup::ensure(ws, &[Need::Bpf, Need::Lab])?;
    let built = build::all(ws, Profile::Release)?;
    let file = built.bin_dir.join(program);
    let mut command = ws.command(&file);
    if let Ok(here) = std::env::current_dir() {
        command.current_dir(here);
    }
    // `exec` returns only if it failed.
    let error = command.args(args).env("WEFT_BIN_DIR", &built.bin_dir).envs(env.iter().cloned()).exec();
    Err(error).with_context(|| format!("start {}", file.display()))
}

/// Whether these arguments of one of our programs only ask how it is used.
pub fn asks_only(args: &[String]) -> bool {
    args.iter().take_while(|a| *a != "--").any(|a| a == "--help" || a == "-h" || a == "help")
}
