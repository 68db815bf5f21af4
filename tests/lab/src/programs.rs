//! Where the programs are that a lab runs.
use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

/// Programs that the lab runs.
const PROGRAMS: [&str; 3] = ["weft-agent", "weft-cni", "weft"];

/// The directory of our programs: the given one, that of `WEFT_BIN_DIR`, or the running program's own.
pub(crate) fn find(given: Option<PathBuf>) -> Result<PathBuf> {
    let (directory, from) = match (given, env::var_os("WEFT_BIN_DIR")) {
        (Some(directory), _) => (directory, "the caller"),
        (None, Some(directory)) => (directory.into(), "WEFT_BIN_DIR"),
        (None, None) => {
            let own = env::current_exe().context("find the directory of this program")?;
            (own.parent().context("this program has no directory")?.to_owned(), "the directory of this program")
        }
    };
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|p| !directory.join(p).is_file()).collect();
    if !missing.is_empty() {
        bail!(
            "{} (from {from}) has no {}: build with `cargo xtask build` and set WEFT_BIN_DIR to the directory it names",
            directory.display(),
            missing.join(", ")
        );
    }
    fs::canonicalize(&directory).with_context(|| format!("find {}", directory.display()))
}
