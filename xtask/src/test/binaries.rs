//! The test binaries that need root: built statically, so that the virtual machines run the very same files.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{build, run, workspace::Workspace};

/// A built test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestBinary {
    /// Directory name of its package under tests/: `packets`, `lab`.
    pub package: String,
    /// The test target's name: that of a file in tests/, or of the library.
    pub name: String,
    /// The file.
    pub file: PathBuf,
}

/// A line of cargo's `--message-format=json`, as far as it concerns us.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<CargoProfile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct CargoProfile {
    test: bool,
}

/// Packages whose tests need the loaded programs or a node. Always taken together: each alone, cargo would build all that they use once more, with
/// fewer features.
pub const NODE_TESTS: [&str; 2] = ["packets", "lab"];

/// Builds the test binaries of packages and gives them in the order of packages and names.
pub fn test_binaries(ws: &Workspace, object: &Path, packages: &[&str]) -> Result<Vec<TestBinary>> {
    build_tests(ws, object, packages, &[])
}

/// Builds the test binaries of these names alone.
pub fn test_binaries_of(ws: &Workspace, object: &Path, names: &[&str]) -> Result<Vec<TestBinary>> {
    build_tests(ws, object, &NODE_TESTS, names)
}

fn build_tests(ws: &Workspace, object: &Path, packages: &[&str], names: &[&str]) -> Result<Vec<TestBinary>> {
    let mut command = ws.cargo();
    command.arg("test");
    build::embed(&mut command, object);
    command.args(["--release", "--no-run", "--message-format=json-render-diagnostics"]);
    for package in packages {
        command.args(["-p", package]);
    }
    for name in names {
        command.args(["--test", name]);
    }
    let mut found = Vec::new();
    // Messages for us come as JSON on standard output, those for people on the other.
    let ended = run::stream(&mut command, run::Read::Both, Duration::from_secs(3600), |line| {
        if line.starts_with('{') {
            found.extend(parse(line));
        } else if !line.trim_start().starts_with("Finished ") {
            eprintln!("{line}");
        }
    })?;
    if ended != run::Ended::Well {
        bail!("`{}` failed; the compiler's message is above", run::show(&command));
    }
    if found.is_empty() {
        bail!("cargo built no test binary of {}", packages.join(", "));
    }
    let rank = |b: &TestBinary| packages.iter().position(|p| *p == b.package);
    found.sort_by_key(|b| (rank(b), b.name.clone()));
    Ok(found)
}

fn parse(line: &str) -> Option<TestBinary> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let package = message.manifest_path?.parent()?.file_name()?.to_str()?.to_owned();
    Some(TestBinary { package, name: message.target?.name, file: message.executable? })
}

/// How many tests of a binary have `filter` in their name.
pub fn count_tests(ws: &Workspace, binary: &TestBinary, filter: &str) -> Result<usize> {
    let list = run::capture(ws.command(&binary.file).args(["--list", "--format", "terse", filter]))
        .with_context(|| format!("list the tests of {}", binary.name))?;
    Ok(list.lines().filter(|l| l.ends_with(": test")).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_test_binaries_and_nothing_else() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/x/tests/lab/Cargo.toml","target":{{"name":"two_pods","kind":["test"]}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found = parse(&line(true, r#""/t/two_pods-1""#)).unwrap();
        assert_eq!((found.package.as_str(), found.name.as_str()), ("lab", "two_pods"));
        assert_eq!(parse(&line(false, r#""/t/weft-lab""#)), None);
        assert_eq!(parse(&line(true, "null")), None);
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
