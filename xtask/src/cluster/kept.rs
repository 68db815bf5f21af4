//! Programs that take minutes to build out of pinned Go modules: they are kept outside the checkout, by a hash of what decides
//! what they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    run::{self, Ended, Read},
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// As long as a build may take on a machine that has other things to do.
const LIMIT: Duration = Duration::from_secs(3600);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(15);

/// Where programs are, or will be, that these files and texts decide. `above`: the directory of all programs of their kind in
/// the cache.
pub fn directory(above: &str, files: &[PathBuf], texts: &[&str]) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    for text in texts {
        hash.update(text);
    }
    let key: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(workspace::cache()?.join(above).join(key))
}

/// Makes the programs `what` of this directory by `make`, which is given another one, unless they are there; says which.
pub fn keep(kept: &Path, what: &str, cost: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let above = kept.parent().context("the cache's directory has one above it")?;
    // Other runs may want the same programs at this moment. They have their name only once they are complete.
    let _alone = workspace::lock(&above.join(".lock"))?;
    if kept.exists() {
        ui::note(&format!("{what} are those of the cache: {}", kept.display()));
        return Ok(());
    }
    let stage = Stage::start(format!("build {what} ({cost}; they are kept)"));
    let unfinished = above.join(".unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    make(&unfinished)?;
    fs::rename(&unfinished, kept).with_context(|| format!("keep {}", kept.display()))?;
    stage.done("not in the cache before");
    Ok(())
}

/// Go, in the module of this directory, for programs without the C library.
pub fn go(ws: &Workspace, module: &Path, verb: &[&str]) -> Command {
    let mut command = ws.command("go");
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly").args(verb);
    command
}

/// Runs a `go build -v` or `go test -c -v` that compiles at most `all` packages, and shows how far it is.
pub fn compile(command: &mut Command, all: usize) -> Result<()> {
    let (mut compiled, mut said, mut told) = (0, Vec::new(), Instant::now());
    let ended = run::stream(command, Read::Stderr, LIMIT, |line| {
        // A package's name has no blank; whatever has one is a message.
        if line.contains(' ') {
            said.push(line.to_owned());
        } else {
            compiled += 1;
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!("    {compiled} of at most {all} packages compiled");
        }
    })?;
    if ended != Ended::Well {
        bail!("`{}` failed:\n{}", run::show(command), run::tail(&said.join("\n"), 12));
    }
    Ok(())
}

/// How many packages these are made of, they included.
pub fn count_packages(ws: &Workspace, module: &Path, packages: &[&str]) -> Result<usize> {
    let all = run::capture(go(ws, module, &["list", "-deps"]).args(packages)).with_context(|| {
        format!(
            "list the packages of {} (the modules come from the Go proxy: check GOPROXY and the network)",
            packages.join(", ")
        )
    })?;
    Ok(all.lines().count())
}

/// The version in which a module of Go is required by a go.mod of this text.
pub fn version_of<'a>(module: &str, mod_file: &'a str) -> Result<&'a str> {
    let version = mod_file.lines().find_map(|l| {
        let line = l.trim();
        line.strip_prefix("require ").unwrap_or(line).strip_prefix(module)?.strip_prefix(" v")
    });
    version.and_then(|v| v.split_ascii_whitespace().next()).with_context(|| format!("go.mod requires no {module}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_either_form_of_require() {
        let text = "require a.test/b v1.2.3\n\nrequire (\n\ta.test/bc v2.0.0\n\ta.test/c v1.0.0-rc.1 // indirect\n)\n";
        assert_eq!(version_of("a.test/b", text).unwrap(), "1.2.3");
        assert_eq!(version_of("a.test/c", text).unwrap(), "1.0.0-rc.1");
        assert!(version_of("a.test/d", text).is_err());
    }
}
