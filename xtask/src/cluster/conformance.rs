//! `cargo xtask cluster conformance`: upstream's tests against Weft, in a cluster of their own, and the table of what became of each.

mod cyclonus;
mod ginkgo;
mod programs;
mod report;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use self::{programs::Programs, report::Suite};
use crate::{
    build::{Built, Profile},
    cluster::{IMAGES, UP, prepare},
    run,
    setup::{self, Need},
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// Run upstream's tests of networks against Weft: Kubernetes' own NetworkPolicy suite, its checks of pods, cyclonus
///
/// In a cluster of two nodes that comes up for it and goes afterwards. Each case is shown as it ends, failed ones with what was wrong, and why
/// a case is skipped stands in the table. The exit code is 1 if a case failed. What the programs said is in
/// target/conformance. They are built the first time (some 6 minutes of processor time) and kept, as `cargo xtask cluster` keeps
/// Kubernetes.
#[derive(clap::Args)]
pub struct Args {
    /// Only these suites; may be given several times
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<Which>,
    /// Of e2e and granular only the cases whose names match this regular expression
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// Of cyclonus only the cases with one of these tags, such as `direction` or `end-port`
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Some of each: what is new in a case, and few that only combine it. Not with --focus and --tag
    #[arg(long, conflicts_with_all = ["focus", "tags"])]
    short: bool,
    /// Write the table to docs/conformance.md: of suites that are not run now, what their last whole run has left in target/conformance
    #[arg(long, conflicts_with_all = ["focus", "tags", "short"])]
    write: bool,
}

/// Upstream's suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Kubernetes' checks that pods and nodes reach pods
    Granular,
    /// Kubernetes' NetworkPolicy suite
    E2e,
    /// Cyclonus' generated cases
    Cyclonus,
}

impl Which {
    const ALL: [Self; 3] = [Self::Granular, Self::E2e, Self::Cyclonus];

    fn name(self) -> &'static str {
        match self {
            Self::Granular => "granular",
            Self::E2e => "e2e",
            Self::Cyclonus => "cyclonus",
        }
    }

    /// The tests of e2e.test that are this suite's.
    fn focus(self) -> &'static str {
        match self {
            Self::Granular => r"Granular Checks: Pods",
            Self::E2e => r"\bNetpol\b",
            Self::Cyclonus => "",
        }
    }

    fn what(self, programs: &Programs) -> String {
        let version = |of: &str| programs.versions.iter().find(|(name, _)| *name == of).map_or("", |(_, v)| v.as_str());
        match self {
            Self::Granular => {
                format!("e2e.test of Kubernetes {}: Networking Granular Checks: Pods", version("Kubernetes"))
            }
            Self::E2e => format!("e2e.test of Kubernetes {}: Netpol", version("Kubernetes")),
            Self::Cyclonus => format!("cyclonus {}, generated cases", version("cyclonus")),
        }
    }
}

/// Builds upstream's programs, unless they are kept. `kubernetes`: the directory of Kubernetes' own.
pub fn build(ws: &Workspace, kubernetes: &Path) -> Result<Programs> {
    setup::ensure(ws, &[Need::Conformance])?;
    programs::build(ws, kubernetes)
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    workspace::require_root("the cluster")?;
    setup::ensure(ws, &[Need::Bpf, Need::Cluster, Need::Reference])?;
    if Path::new(UP).exists() {
        bail!("a cluster is up on this machine: `cargo xtask cluster down` takes it away");
    }
    let built = crate::build::all(ws, Profile::Release)?;
    let mut environment = prepare(ws, &built)?;
    let kubernetes = super::programs::directory(ws)?;
    let programs = build(ws, &kubernetes)?;
    for (name, images) in &mut environment {
        if *name == IMAGES {
            let all = env::split_paths(&*images).chain(programs.images.clone()).collect::<Vec<PathBuf>>();
            *images = env::join_paths(all).context("an image's path has a colon")?;
        }
    }
    let cluster = Cluster { built: &built, environment: &environment };
    cluster.run(&["up", "--nodes", "2"])?;
    let suites = run_suites(ws, args, &cluster, &programs);
    cluster.run(&["down"])?;
    let suites = suites?;
    show(&suites);
    if args.write {
        let page = ws.root.join("docs/conformance.md");
        let all = Which::ALL.into_iter().map(|which| last_whole_run(ws, which, &programs));
        let all = all.collect::<Result<Vec<Suite>>>()?;
        fs::write(&page, report::page(&all, &machine()?)).with_context(|| format!("write {}", page.display()))?;
        println!("{} is written", ws.show(&page));
    }
    Ok(if suites.iter().all(|s| s.counts().1 == 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `weft-cluster`, and what it is told by its environment.
struct Cluster<'a> {
    built: &'a Built,
    environment: &'a [(&'static str, std::ffi::OsString)],
}

impl Cluster<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.built.bin_dir.join("weft-cluster"));
        command.args(words).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let status = self.command(words).status().context("start weft-cluster")?;
        if !status.success() {
            bail!("weft-cluster {} failed ({status})", words.join(" "));
        }
        Ok(())
    }
}

fn run_suites(ws: &Workspace, args: &Args, cluster: &Cluster<'_>, programs: &Programs) -> Result<Vec<Suite>> {
    let kubeconfig = Path::new(UP).join("kubeconfig/admin");
    let mut suites = Vec::new();
    for which in Which::ALL.into_iter().filter(|w| args.suites.is_empty() || args.suites.contains(w)) {
        let directory = ws.target.join("conformance").join(which.name());
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("empty {}", directory.display()))?;
        }
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let stage = Stage::start(format!("suite {}: {}", which.name(), which.what(programs)));
        let started = Instant::now();
        let start = cluster.command(&["run", "--"]);
        let cases = match which {
            Which::Cyclonus => cyclonus::run(start, &programs.directory, &args.tags, args.short, &directory)?,
            Which::E2e | Which::Granular => {
                let focus = args.focus.as_deref().unwrap_or(which.focus());
                ginkgo::run(start, &programs.directory, &kubeconfig, focus, args.short, &directory)?
            }
        };
        if args.focus.is_none() && args.tags.is_empty() && !args.short {
            let file = directory.join(WHOLE);
            fs::write(&file, serde_json::to_string(&cases)?).with_context(|| format!("write {}", file.display()))?;
        }
        let suite =
            Suite { name: which.name(), what: which.what(programs), cases, seconds: started.elapsed().as_secs_f64() };
        match suite.counts() {
            (passed, 0, _) => stage.done(&format!("{passed} passed")),
            (_, failed, _) => stage.failed(&format!("{failed} failed")),
        }
        suites.push(suite);
    }
    Ok(suites)
}

/// What became of a suite's cases in a run of all of them.
const WHOLE: &str = "whole.json";

/// What the last whole run of a suite in this checkout has left; no cases if there was none.
fn last_whole_run(ws: &Workspace, which: Which, programs: &Programs) -> Result<Suite> {
    let file = ws.target.join("conformance").join(which.name()).join(WHOLE);
    let cases = match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e).with_context(|| format!("read {}", file.display())),
    };
    Ok(Suite { name: which.name(), what: which.what(programs), cases, seconds: 0.0 })
}

fn show(suites: &[Suite]) {
    let row = |s: &Suite| {
        let (passed, failed, skipped) = s.counts();
        let figures = [passed, failed, skipped].map(|n| n.to_string());
        [s.name.to_owned()].into_iter().chain(figures).chain([format!("{:.0}", s.seconds)]).collect()
    };
    let rows: Vec<Vec<String>> = suites.iter().map(row).collect();
    println!("\n{}", ui::table(&["suite", "passed", "failed", "skipped", "seconds"], &rows));
    for (reason, count) in report::reasons(suites) {
        println!("skipped: {count}: {reason}");
    }
    for suite in suites {
        for (case, why) in suite.failures() {
            println!("failed: {}: {case}: {why}", suite.name);
        }
    }
}

/// What the tests ran on.
fn machine() -> Result<String> {
    let kernel = run::capture(Command::new("uname").arg("-r"))?;
    Ok(format!("Weft {} on Linux {}.", env!("CARGO_PKG_VERSION"), kernel.trim()))
}
