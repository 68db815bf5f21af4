//! `cargo xtask cluster conformance`: upstream's tests and scenarios of ours against Weft, in a cluster of their own, and the table of what became
//! of each.

mod cyclonus;
mod ginkgo;
mod policies;
mod programs;
mod report;
mod said;
mod whole;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use self::{programs::Programs, report::Suite, whole::Part};
use crate::{
    build::{Built, Profile},
    cluster::{IMAGES, UP, prepare},
    run,
    setup::{self, Need},
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// Run upstream's tests of networks against Weft: Kubernetes' own NetworkPolicy suite, its checks of pods, cyclonus; and scenarios of ours
///
/// In a cluster of two nodes that comes up for it and goes afterwards. Each case is shown as it ends, failed ones with what was wrong, and why
/// a case is skipped stands in the table. The exit code is 1 if a case failed. What the programs said is in
/// target/conformance. They are built the first time (some 6 minutes of processor time) and kept, as `cargo xtask cluster` keeps
/// Kubernetes. The suite `cnp` needs none of them.
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
    /// Of cyclonus only this part, such as 2/4: when all were run, in any order, the suite was run whole
    #[arg(long, value_name = "N/PARTS", conflicts_with_all = ["tags", "short"])]
    part: Option<Part>,
    /// Some of each: what is new in a case, and few that only combine it. Not with --focus and --tag
    #[arg(long, conflicts_with_all = ["focus", "tags"])]
    short: bool,
    /// Write the table to docs/conformance.md: of suites that are not run now, what their last whole run has left in target/conformance
    #[arg(long, conflicts_with_all = ["focus", "tags", "short"])]
    write: bool,
}

/// The suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Kubernetes' checks that pods and nodes reach pods
    Granular,
    /// Kubernetes' NetworkPolicy suite
    E2e,
    /// Cyclonus' generated cases
    Cyclonus,
    /// Our scenarios of ClusterNetworkPolicies, on real pods
    Cnp,
}

impl Which {
    const ALL: [Self; 4] = [Self::Granular, Self::E2e, Self::Cyclonus, Self::Cnp];

    fn name(self) -> &'static str {
        match self {
            Self::Granular => "granular",
            Self::E2e => "e2e",
            Self::Cyclonus => "cyclonus",
            Self::Cnp => "cnp",
        }
    }

    /// The tests of e2e.test that are this suite's.
    fn focus(self) -> &'static str {
        match self {
            Self::Granular => r"Granular Checks: Pods",
            Self::E2e => r"\bNetpol\b",
            Self::Cyclonus | Self::Cnp => "",
        }
    }

    fn what(self, ws: &Workspace) -> Result<String> {
        let (kubernetes, cyclonus) = programs::versions(ws)?;
        Ok(match self {
            Self::Granular => format!("e2e.test of Kubernetes {kubernetes}: Networking Granular Checks: Pods"),
            Self::E2e => format!("e2e.test of Kubernetes {kubernetes}: Netpol"),
            Self::Cyclonus => format!("cyclonus {cyclonus}, generated cases"),
            Self::Cnp => format!("ClusterNetworkPolicy {}, scenarios of ours", policies::version(ws)?),
        })
    }

    fn is_upstreams(self) -> bool {
        self != Self::Cnp
    }

    /// Where its programs write.
    fn directory(self, ws: &Workspace) -> PathBuf {
        ws.target.join("conformance").join(self.name())
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
    let suites: Vec<Which> =
        Which::ALL.into_iter().filter(|w| args.suites.is_empty() || args.suites.contains(w)).collect();
    let kubernetes = super::programs::directory(ws)?;
    let programs = suites.iter().any(|w| w.is_upstreams()).then(|| build(ws, &kubernetes)).transpose()?;
    for (name, images) in &mut environment {
        if let Some(programs) = programs.as_ref().filter(|_| *name == IMAGES) {
            let all = env::split_paths(&*images).chain(programs.images.clone()).collect::<Vec<PathBuf>>();
            *images = env::join_paths(all).context("an image's path has a colon")?;
        }
    }
    let cluster = Cluster { built: &built, environment: &environment };
    cluster.run(&["up", "--nodes", "2"])?;
    let suites = suites.into_iter().map(|which| run_suite(ws, args, &cluster, programs.as_ref(), which));
    let suites = suites.collect::<Result<Vec<Suite>>>();
    cluster.run(&["down"])?;
    let suites = suites?;
    show(&suites);
    if args.write {
        let page = ws.root.join("docs/conformance.md");
        let last = |which: Which| {
            let cases = whole::last(&which.directory(ws))?;
            Ok(Suite { name: which.name(), what: which.what(ws)?, cases, seconds: 0.0 })
        };
        let all = Which::ALL.into_iter().map(last).collect::<Result<Vec<Suite>>>()?;
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

/// `programs`: upstream's, if any suite that is run is.
fn run_suite(
    ws: &Workspace,
    args: &Args,
    cluster: &Cluster<'_>,
    programs: Option<&Programs>,
    which: Which,
) -> Result<Suite> {
    let (directory, what) = (which.directory(ws), which.what(ws)?);
    if directory.exists() && args.part.is_none() {
        fs::remove_dir_all(&directory).with_context(|| format!("empty {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let stage = Stage::start(format!("suite {}: {what}", which.name()));
    let started = Instant::now();
    let start = cluster.command(&["run", "--"]);
    let of_upstream = || programs.context("upstream's programs are not built");
    let cases = match which {
        Which::Cnp => policies::run(ws, cluster.command(&["replay"]), &directory)?,
        Which::Cyclonus => cyclonus::run(start, &of_upstream()?.directory, args, &directory)?,
        Which::E2e | Which::Granular => {
            let kubeconfig = Path::new(UP).join("kubeconfig/admin");
            let focus = args.focus.as_deref().unwrap_or(which.focus());
            ginkgo::run(start, &of_upstream()?.directory, &kubeconfig, focus, args.short, &directory)?
        }
    };
    if args.focus.is_none() && args.tags.is_empty() && !args.short {
        whole::keep(&directory, args.part.filter(|_| which == Which::Cyclonus), &cases)?;
    }
    let suite = Suite { name: which.name(), what, cases, seconds: started.elapsed().as_secs_f64() };
    match suite.counts() {
        (passed, 0, _) => stage.done(&format!("{passed} passed")),
        (_, failed, _) => stage.failed(&format!("{failed} failed")),
    }
    Ok(suite)
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
