//! `cargo xtask test`: all suites, in order, and one line of figures at the end.

mod binaries;

use std::{
    ffi::{OsStr, OsString},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub use self::binaries::{NODE_TESTS, TestBinary, count_tests, test_binaries, test_binaries_of};
use crate::{
    build::{self, Built, Profile},
    cluster, docs, fuzz,
    libtest::{self, Counts, Reader},
    promtool, reference,
    run::{self, Ended, Read},
    setup::{self, Need},
    ui::{self, Stage},
    verifier, vm,
    workspace::{self, Workspace},
};

/// Run the tests: native, fuzz, packets, lab, restart, clients, docs, providers, and virtual machines.
///
/// Suites run in that order and all of them, also after a failure; the suites long and cluster only when they are asked for. The last line is `N passed, N failed, N skipped`, and the
/// exit code is 1 if a test failed or a suite ran none. Suites that open network namespaces or load BPF programs need root
/// and say so before anything starts; `cargo test` and the suite `native` do not.
#[derive(clap::Args)]
pub struct Args {
    /// Print the suites and end
    #[arg(long)]
    list: bool,
    /// Run this suite only; may be given several times
    #[arg(long, value_name = "NAME")]
    suite: Vec<Suite>,
    /// How often the suite restart kills an agent under traffic [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
}

/// A group of tests that are run in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Logic, natively: `cargo test`
    Native,
    /// What comes from outside, fuzzed for a short time
    Fuzz,
    /// Packets through the loaded BPF programs
    Packets,
    /// Nodes and pods in network namespaces
    Lab,
    /// Agents that are killed and started anew, under traffic
    Restart,
    /// Ten thousand pods and a thousand restarts
    Long,
    /// The plugin, driven by cnitool, podman and containerd
    Clients,
    /// The commands of README.md and docs/
    Docs,
    /// The files of Vagrant and Lima, by their own tools
    Providers,
    /// Packets and lab on the oldest and the newest kernel, in virtual machines
    Vm,
    /// Weft in a real Kubernetes cluster
    Cluster,
}

impl Suite {
    const ALL: [Self; 11] = [
        Self::Native,
        Self::Fuzz,
        Self::Packets,
        Self::Lab,
        Self::Restart,
        Self::Clients,
        Self::Docs,
        Self::Providers,
        Self::Vm,
        Self::Long,
        Self::Cluster,
    ];

    /// Runs though nobody has asked for it.
    fn is_ordinary(self) -> bool {
        !matches!(self, Self::Long | Self::Cluster)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fuzz => "fuzz",
            Self::Packets => "packets",
            Self::Lab => "lab",
            Self::Restart => "restart",
            Self::Long => "long",
            Self::Clients => "clients",
            Self::Docs => "docs",
            Self::Providers => "providers",
            Self::Vm => "vm",
            Self::Cluster => "cluster",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Native => "logic, natively (cargo test)",
            Self::Fuzz => "what comes from outside, fuzzed: the stored corpus, then 10 s in each target",
            Self::Packets => "packets through the loaded BPF programs",
            Self::Lab => "nodes and pods in network namespaces",
            Self::Restart => "agents killed and started anew under traffic, and killed in the midst of each step",
            Self::Long => "ten thousand pods and a thousand restarts leave nothing behind: only if asked for",
            Self::Clients => "the plugin, driven by cnitool, podman and containerd, and beside other CNI plugins",
            Self::Docs => "the commands of README.md and docs/",
            Self::Cluster => "Weft in a real Kubernetes cluster, whose programs are built first: only if asked for",
            Self::Providers => {
                "tests/vm/Vagrantfile and lima.yaml: vagrant and limactl (where it is here) can read them"
            }
            Self::Vm => {
                "the suites of tests/vm but the long ones on kernel 5.10, on the newest, and on both as two nodes, in virtual machines"
            }
        }
    }

    fn needs_root(self) -> bool {
        !matches!(self, Self::Native | Self::Fuzz | Self::Providers | Self::Vm)
    }

    fn needs(self) -> &'static [Need] {
        match self {
            Self::Native => &[],
            Self::Fuzz => &[Need::Fuzz],
            Self::Packets | Self::Lab | Self::Restart | Self::Long | Self::Docs => &[Need::Bpf, Need::Lab],
            Self::Clients => &[Need::Bpf, Need::Lab, Need::Reference, Need::Clients],
            Self::Cluster => &[Need::Bpf, Need::Cluster, Need::Reference],
            Self::Providers => &[Need::Providers],
            Self::Vm => &[Need::Bpf, Need::Vm],
        }
    }
}

/// Tells the suite restart how many rounds to go.
const RESTART_ROUNDS: &str = "WEFT_RESTART_ROUNDS";
/// Tells the suite long how many pods and restarts.
const LONG: (&str, &str) = ("WEFT_ENDURANCE", "10000,1000");

/// How long one test binary may run.
pub const BINARY_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The same in the suite long.
const LONG_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How long the suite fuzz searches in each target, in seconds: long enough to find what a change broke next to what is
/// stored, short enough for every run.
const FUZZ_SECONDS: u32 = 10;

/// One line of the final table.
struct Row {
    suite: Suite,
    counts: Counts,
    time: Duration,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    if args.list {
        let rows: Vec<Vec<String>> = Suite::ALL
            .iter()
            .map(|s| {
                vec![s.name().to_owned(), if s.needs_root() { "root" } else { "" }.to_owned(), s.what().to_owned()]
            })
            .collect();
        print!("{}", ui::table(&["suite", "needs", "what"], &rows));
        return Ok(ExitCode::SUCCESS);
    }
    let suites: Vec<Suite> = Suite::ALL
        .into_iter()
        .filter(|s| if args.suite.is_empty() { s.is_ordinary() } else { args.suite.contains(s) })
        .collect();
    let rooted: Vec<&str> = suites.iter().filter(|s| s.needs_root()).map(|s| s.name()).collect();
    if !rooted.is_empty() && !workspace::is_root() {
        bail!(
            "root is missing, and these suites need it: {}. Run this again as root (`sudo -E env \"PATH=$PATH\" cargo xtask test`), \
             or only what does without: `cargo xtask test --suite native`",
            rooted.join(", ")
        );
    }
    let needs: Vec<Need> = suites.iter().flat_map(|s| s.needs()).copied().collect();
    setup::ensure(ws, &needs)?;
    let mut shared = Shared { ws, made: None, rounds: args.rounds, limit: BINARY_LIMIT };
    let mut rows = Vec::new();
    for suite in suites {
        let stage = Stage::start(format!("suite {}: {}", suite.name(), suite.what()));
        let started = Instant::now();
        // A suite that could not run has failed; the others still run.
        let mut counts = run_suite(suite, &mut shared).unwrap_or_else(|e| {
            ui::error(&format!("suite {}: {e:#}", suite.name()));
            let mut counts = Counts::default();
            counts.fail("the suite could not run");
            counts
        });
        if counts.is_empty() {
            counts.fail("the suite ran no test");
        }
        if counts.failed == 0 {
            stage.done(&format!("{} passed", counts.passed));
        } else {
            stage.failed(&format!("{} failed", counts.failed));
        }
        rows.push(Row { suite, counts, time: started.elapsed() });
    }
    Ok(report(&rows))
}

fn report(rows: &[Row]) -> ExitCode {
    let mut sum = Counts::default();
    let mut cells = Vec::new();
    for Row { suite, counts, time } in rows {
        let figures = [counts.passed, counts.failed, counts.skipped].map(|n| n.to_string());
        let seconds = format!("{:.1}", time.as_secs_f64());
        cells.push([suite.name().to_owned()].into_iter().chain(figures).chain([seconds]).collect());
        sum.add(counts);
    }
    println!("\n{}", ui::table(&["suite", "passed", "failed", "skipped", "seconds"], &cells));
    for Row { suite, counts, .. } in rows {
        for failure in &counts.failures {
            println!("failed: {}: {failure}", suite.name());
        }
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What several suites use, built when the first one asks.
struct Shared<'a> {
    ws: &'a Workspace,
    made: Option<(Built, Vec<TestBinary>)>,
    rounds: Option<u32>,
    limit: Duration,
}

impl Shared<'_> {
    fn get(&mut self) -> Result<&(Built, Vec<TestBinary>)> {
        let made = match self.made.take() {
            Some(made) => made,
            None => {
                let built = build::all(self.ws, Profile::Release)?;
                let binaries = test_binaries(self.ws, &built.object, &NODE_TESTS)?;
                (built, binaries)
            }
        };
        Ok(self.made.insert(made))
    }
}

fn run_suite(suite: Suite, shared: &mut Shared<'_>) -> Result<Counts> {
    let ws = shared.ws;
    match suite {
        Suite::Native => native(ws),
        Suite::Fuzz => fuzz::suite(ws, FUZZ_SECONDS),
        Suite::Packets => packets(shared),
        Suite::Lab => {
            let other = build::other_layout(ws, &shared.get()?.0)?;
            let linter = promtool::path(ws).map_err(|e| ui::note(&format!("metrics are not linted: {e:#}"))).ok();
            let mut env = vec![("WEFT_TEST_LAYOUT_DIR", other.as_os_str())];
            env.extend(linter.iter().map(|file| (promtool::VARIABLE, file.as_os_str())));
            let elsewhere = ["clients", "pair", "clock", "restart", "vlan"];
            run_binaries(shared, |b| b.package == "lab" && !elsewhere.contains(&b.name.as_str()), &env)
        }
        Suite::Restart => {
            let rounds = shared.rounds.map(|n| OsString::from(n.to_string()));
            let env: Vec<_> = rounds.iter().map(|n| (RESTART_ROUNDS, n.as_os_str())).collect();
            run_binaries(shared, |b| b.package == "lab" && b.name == "restart", &env)
        }
        Suite::Long => {
            shared.limit = LONG_LIMIT;
            let env = [(LONG.0, OsStr::new(LONG.1))];
            run_binaries(shared, |b| b.package == "lab" && b.name == "endurance", &env)
        }
        Suite::Clients => {
            let programs = reference::build(ws)?;
            let env = [(reference::DIRECTORY, programs.as_os_str())];
            run_binaries(shared, |b| b.package == "lab" && b.name == "clients", &env)
        }
        Suite::Docs => docs::run(ws),
        Suite::Providers => vm::validate(ws),
        Suite::Vm => in_vms(shared),
        Suite::Cluster => cluster::run_tests(ws, &[]),
    }
}

fn native(ws: &Workspace) -> Result<Counts> {
    let mut command = ws.cargo();
    command.args(["test", "--no-fail-fast"]);
    let mut reader = Reader::default();
    let ended = run::stream(&mut command, Read::Stdout, 2 * BINARY_LIMIT, |line| {
        println!("{line}");
        reader.line(line);
    })?;
    let mut counts = reader.finish();
    note_end(&mut counts, "cargo test", ended);
    Ok(counts)
}

/// A program that ended badly has failed, even if no test of it says so.
fn note_end(counts: &mut Counts, what: &str, ended: Ended) {
    match ended {
        Ended::TimedOut => counts.fail(format!("{what}: killed, as it took too long")),
        Ended::Badly(code) if counts.failed == 0 => {
            counts.fail(format!("{what}: ended with {}", code.map_or("a signal".to_owned(), |c| format!("code {c}"))));
        }
        Ended::Badly(_) | Ended::Well => {}
    }
}

fn packets(shared: &mut Shared<'_>) -> Result<Counts> {
    let ws = shared.ws;
    let mut figures = Vec::new();
    let mut counts =
        run_watched(shared, |b| b.package == "packets", &[], &mut |line| figures.extend(libtest::verified(line)))?;
    let kernel = verifier::running_kernel()?;
    for growth in verifier::compare(ws, &kernel, &figures)? {
        counts.fail(growth);
    }
    Ok(counts)
}

/// The kernels at both ends of what we support; the others are `cargo xtask vm`'s.
fn in_vms(shared: &mut Shared<'_>) -> Result<Counts> {
    let ws = shared.ws;
    let (built, binaries) = shared.get()?;
    let outcomes = vm::short(ws, &["5.10", "newest"], built, binaries)?;
    Ok(vm::counts(ws, &outcomes))
}

type Env<'a> = [(&'a str, &'a std::ffi::OsStr)];

fn run_binaries(shared: &mut Shared<'_>, which: impl Fn(&TestBinary) -> bool, env: &Env<'_>) -> Result<Counts> {
    run_watched(shared, which, env, &mut |_| {})
}

fn run_watched(
    shared: &mut Shared<'_>,
    which: impl Fn(&TestBinary) -> bool,
    env: &Env<'_>,
    watch: &mut dyn FnMut(&str),
) -> Result<Counts> {
    let (ws, limit) = (shared.ws, shared.limit);
    let (built, binaries) = shared.get()?;
    let mut counts = Counts::default();
    for binary in binaries.iter().filter(|b| which(b)) {
        counts.add(&run_binary(ws, built, binary, env, limit, watch)?);
    }
    Ok(counts)
}

/// Runs one test binary, for at most `limit`.
pub fn run_binary(
    ws: &Workspace,
    built: &Built,
    binary: &TestBinary,
    env: &Env<'_>,
    limit: Duration,
    watch: &mut dyn FnMut(&str),
) -> Result<Counts> {
    let mut reader = Reader::default();
    println!("running {} ({})", binary.name, ws.show(&binary.file));
    let mut command: Command = ws.command(&binary.file);
    // Tests that share one machine's lab would disturb each other: one at a time. What passing tests print is shown too.
    command.args(["--show-output", "--test-threads=1"]).env("WEFT_BIN_DIR", &built.bin_dir).envs(env.iter().copied());
    let ended = run::stream(&mut command, Read::Stdout, limit, |line| {
        println!("{line}");
        reader.line(line);
        watch(line);
    })?;
    let mut counts = reader.finish();
    note_end(&mut counts, &binary.name, ended);
    Ok(counts)
}
