//! Programs of the distribution, run inside a pod or a node, and what they say.
use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;

use crate::probe::Place;

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// It ended with 0.
    pub well: bool,
    /// On both outputs, the standard one first.
    pub text: String,
}

/// Runs a command line, split at blanks, and gives what it said, however it ended.
///
/// # Errors
/// When it can not be started.
pub fn says(place: &Place, line: &str) -> Result<Said> {
    let what = || format!("run `{line}` in {} (cargo xtask setup installs what is missing)", place.name);
    let mut words = line.split_ascii_whitespace();
    let mut command = Command::new(words.next().context("an empty command line")?);
    command.args(words).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A Ctrl-C in the terminal is for us: a command that takes something down must not be hit by it.
    command.process_group(0);
    let child = netns::spawn_in(place.netns(), &mut command).with_context(what)?;
    let output = child.wait_with_output().with_context(what)?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(Said { well: output.status.success(), text })
}

/// What it said; it must end with 0.
///
/// # Errors
/// When it does not, or can not be started; the text has its own words.
pub fn succeeds(place: &Place, line: &str) -> Result<String> {
    let said = says(place, line)?;
    if !said.well {
        bail!("`{line}` failed in {}: {}", place.name, said.text.trim());
    }
    Ok(said.text)
}

/// Runs each line of `lines`; all must succeed. Empty lines are skipped.
///
/// # Errors
/// As [`succeeds`].
pub fn script(place: &Place, lines: &str) -> Result<()> {
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).try_for_each(|line| succeeds(place, line).map(drop))
}
