//! `cargo xtask cluster`: builds what a cluster needs, and becomes `weft-cluster`, or runs the tests in one.

mod conformance;
mod kept;
mod programs;

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Built, Profile},
    image,
    lab::asks_only,
    libtest::Counts,
    reference,
    setup::{self, Need},
    test, ui,
    workspace::{self, Workspace},
};

/// A real Kubernetes cluster on this machine: up, down, kubectl, node, run, build, test, conformance.
///
/// etcd, API server, controllers, scheduler, and nodes with kubelet, containerd and runc, each in namespaces of its own; Weft as a
/// DaemonSet out of its own image. `up [--nodes N]` brings it up, `kubectl …` and `node NAME …` work with it, `down` takes it
/// away and leaves the machine as it was (`cargo xtask cluster up --help` says more). `test` brings up clusters of its own.
///
/// Kubernetes' programs are built from the Go modules that tests/cluster/go.sum pins: some 10 minutes of processor time at first, and
/// nothing after. They are kept outside the checkout: in $WEFT_CACHE, else $XDG_CACHE_HOME/weft, else ~/.cache/weft. Needs
/// root.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Build Kubernetes' programs and the images, and end
    Build {
        /// And upstream's tests
        #[arg(long)]
        conformance: bool,
    },
    /// Run the tests in clusters of their own
    Test {
        /// Only these: names of files in tests/cluster/tests
        #[arg(value_name = "SUITE")]
        suites: Vec<String>,
    },
    Conformance(conformance::Args),
    #[command(external_subcommand)]
    Other(Vec<String>),
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    match &args.verb {
        Verb::Build { conformance } => {
            setup::ensure(ws, &[Need::Cluster])?;
            let programs = programs::build(ws)?;
            if *conformance {
                conformance::build(ws, &programs)?;
            }
            println!("{}", programs.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Test { suites } => {
            let counts = run_tests(ws, suites)?;
            for failure in &counts.failures {
                println!("failed: {failure}");
            }
            println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
            Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Conformance(args) => conformance::main(ws, args),
        Verb::Other(words) => become_cluster(ws, words),
    }
}

/// Becomes `weft-cluster`. Who only works with a cluster that is up waits for no build.
fn become_cluster(ws: &Workspace, words: &[String]) -> Result<ExitCode> {
    let program = ws.bin_dir(Profile::Release.dir()).join("weft-cluster");
    let brings_up = words.first().is_some_and(|w| w == "up") && !asks_only(words);
    let environment = if brings_up || !program.exists() {
        workspace::require_root("the cluster")?;
        setup::ensure(ws, &[Need::Bpf, Need::Cluster])?;
        let built = build::all(ws, Profile::Release)?;
        prepare(ws, &built)?
    } else {
        vec![(PROGRAMS, programs::directory(ws)?.into())]
    };
    let mut command = Command::new(&program);
    if let Ok(here) = env::current_dir() {
        command.current_dir(here);
    }
    // `exec` returns only if it failed.
    Err(command.args(words).envs(environment).exec()).with_context(|| format!("start {}", program.display()))
}

/// Names the directory of Kubernetes' programs and images.
const PROGRAMS: &str = "WEFT_CLUSTER_PROGRAMS";

/// Names further images that every node has.
const IMAGES: &str = "WEFT_CLUSTER_IMAGES";

/// There while a cluster is up, as tests/cluster/src/layout.rs has it.
const UP: &str = "/run/weft-cluster";

/// Builds what the nodes hold, and gives the environment of those who bring clusters up.
fn prepare(ws: &Workspace, built: &Built) -> Result<Vec<(&'static str, OsString)>> {
    let programs = programs::build(ws)?;
    let images: PathBuf = image::weft(ws, &built.bin_dir, None)?;
    Ok(vec![
        (PROGRAMS, programs.into()),
        (IMAGES, images.into()),
        ("WEFT_CLUSTER_CHART", ws.root.join("deploy/chart").into()),
        (reference::DIRECTORY, reference::build(ws)?.into()),
        ("WEFT_BIN_DIR", built.bin_dir.clone().into()),
    ])
}

/// Runs the tests of these suites, or all, one cluster after the other. What a killed test leaves behind goes.
pub fn run_tests(ws: &Workspace, suites: &[String]) -> Result<Counts> {
    workspace::require_root("the cluster")?;
    setup::ensure(ws, &[Need::Bpf, Need::Cluster, Need::Reference])?;
    let built = build::all(ws, Profile::Release)?;
    let mut binaries = test::test_binaries(ws, &built.object, &["cluster"])?;
    binaries.retain(|b| b.file.exists());
    let names: Vec<&str> = binaries.iter().map(|b| b.name.as_str()).collect();
    if let Some(unknown) = suites.iter().find(|s| !names.contains(&s.as_str())) {
        bail!("no suite `{unknown}`: there are {}", names.join(", "));
    }
    if Path::new(UP).exists() {
        bail!(
            "a cluster is up on this machine, and there can be one at a time: `cargo xtask cluster down` takes it away"
        );
    }
    let environment = prepare(ws, &built)?;
    let mut counts = Counts::default();
    for binary in binaries.iter().filter(|b| suites.is_empty() || suites.contains(&b.name)) {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        counts.add(&test::run_binary(ws, &built, binary, &environment, test::BINARY_LIMIT, &mut |_| {})?);
    }
    let mut down = Command::new(built.bin_dir.join("weft-cluster"));
    let status = down.arg("down").status().context("start weft-cluster")?;
    if !status.success() {
        ui::error("the cluster did not go whole; what is left stands above");
        counts.fail("weft-cluster down");
    }
    Ok(counts)
}
