//! `cargo xtask vm`: the tests on other kernels, in QEMU virtual machines.
//!
//! They need no root, and no KVM either: emulated they are 10 to 30 times slower than the machine that they run on.

mod accel;
mod console;
mod cpio;
mod emulator;
mod guest;
mod jobs;
mod kernel;
mod machine;
mod modules;
mod pair;
mod provider;
mod suites;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, IsTerminal as _},
    process::ExitCode,
    thread,
};

use anyhow::{Context as _, Result, bail};

pub use self::{accel::Wish, kernel::choose as kernels, machine::Outcome, provider::validate};
use self::{
    guest::{Image, Programs},
    jobs::Job,
    machine::{Extra, Host, Machine},
    pair::Pair,
    provider::Provider,
    suites::{Lists, Step},
};
use crate::{
    build::{self, Built, Profile},
    libtest::Counts,
    setup::{self, Need},
    test::{self, TestBinary, count_tests},
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// Run the test suites on other kernels, in virtual machines.
///
/// Without options this is the whole matrix: each kernel in a machine of its own with all suites, then pairs of machines of
/// different kernels as two nodes (--kernel A,B --suite two-node for one pair). A machine holds our
/// programs as they ship, the test binaries, and a few tools; which suites there are, and which tests are in them, stands in
/// tests/vm/suites.toml (--list shows both). Where they are many, two machines of a kernel share them: KERNEL#1 and KERNEL#2. What machines say is shown live, each line with its machine's name, and kept:
/// target/vm/run/MACHINE/ has console.log, the kernel's messages and the agents' logs.
///
/// Kernels come from Debian's archive, the newest of each line, when they are needed first and again with --refresh. They
/// are kept outside the checkout: in $WEFT_CACHE, else $XDG_CACHE_HOME/weft, else ~/.cache/weft.
///
/// Machines run with KVM if a kernel comes up with it within seconds, else emulated; a line says which and why. On Debian 12 the emulator is
/// that of its backports, which is faster; it is kept where kernels are. Neither needs root. Ends with one table over all machines and one line `N passed, N failed, N skipped`; the exit code is 1 if a
/// test failed, a machine did not come to its end, or a program grew by more than a fifth against the verifier's table.
#[derive(clap::Args)]
pub struct Args {
    /// Only these kernels: 5.10, 6.1, 6.12, newest
    #[arg(long, value_name = "V", value_delimiter = ',')]
    kernel: Vec<String>,
    /// Only these suites
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    suite: Vec<String>,
    /// Run so many machines at a time; by default one for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Run machines so
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    accel: Wish,
    /// Who makes the machines; Vagrant and Lima make two at a time, a cluster of the kernels of a pair
    #[arg(long, value_name = "WHO", value_enum, default_value_t)]
    provider: Provider,
    /// Leave machines of Vagrant and Lima as they are, instead of taking them away
    #[arg(long, requires = "provider")]
    keep: bool,
    /// Boot one kernel (the newest, if --kernel names none) and give a shell in it, with our programs in /weft/bin and the
    /// tests in /weft/tests; `poweroff` or the shell's end stops the machine, Ctrl-A X kills it
    #[arg(long, conflicts_with = "jobs")]
    shell: bool,
    /// Print the kernels, where they come from and which are here, and the suites, and end
    #[arg(long)]
    list: bool,
    /// Look for newer kernel packages even if kernels are here
    #[arg(long)]
    refresh: bool,
}

/// What is run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan<'a> {
    /// These suites; none: all.
    Suites(&'a [String]),
    /// Only the test that loads all programs and prints the verifier's figures.
    Verifier,
}

/// Which machines to run, and how.
pub struct Order<'a> {
    /// The kernels' keys.
    pub kernels: Vec<&'static str>,
    /// What runs in each.
    pub plan: Plan<'a>,
    /// How many machines at a time; none: one for each processor.
    pub jobs: Option<u16>,
    /// Emulated or not.
    pub accel: Wish,
}

/// Runs the suites that are for every run on these kernels.
pub fn short(ws: &Workspace, kernels: &[&str], built: &Built, binaries: &[TestBinary]) -> Result<Vec<Outcome>> {
    let kernels = kernel::choose(&kernels.iter().map(|&k| k.to_owned()).collect::<Vec<_>>())?;
    let suites = Lists::read(ws)?.short();
    run(ws, &Order { kernels, plan: Plan::Suites(&suites), jobs: None, accel: Wish::Auto }, built, binaries)
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let lists = Lists::read(ws)?;
    if args.list {
        let suites = lists.suites.iter().map(|(name, s)| vec![name.clone(), s.machines.to_string(), s.what.clone()]);
        print!("{}\n{}", kernel::list(), ui::table(&["suite", "machines", "what"], &suites.collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong with the command line is said before anything is built.
    lists.choose(&args.suite)?;
    kernel::choose(&lists.pairs.concat())?;
    let kernels = kernel::choose(&args.kernel)?;
    if args.provider != Provider::Qemu {
        return provider::main(ws, args, &lists);
    }
    if args.shell && !io::stdin().is_terminal() {
        bail!("--shell needs a terminal, and standard input is none");
    }
    setup::ensure(ws, &[Need::Bpf, Need::Vm])?;
    if args.refresh {
        for key in &kernels {
            kernel::fetch(ws, kernel::series(key)?)?;
        }
    }
    let built = build::all(ws, Profile::Release)?;
    let binaries = test::test_binaries(ws, &built.object, &test::NODE_TESTS)?;
    if args.shell {
        let key = if args.kernel.is_empty() { "newest" } else { kernels[0] };
        let host = Host::new(ws, args.accel);
        let image = image(ws, Plan::Suites(&args.suite), &built, &binaries, 1)?.context("no suite of one machine")?;
        let kernel = kernel::get(ws, kernel::series(key)?)?;
        let extra = Extra { qemu: Vec::new(), setup: guest::SHELL.to_owned() };
        return Machine::prepare(&host, &format!("{key}-shell"), kernel, &image, extra)?.shell();
    }
    let order = Order { kernels, plan: Plan::Suites(&args.suite), jobs: args.jobs, accel: args.accel };
    let outcomes = run(ws, &order, &built, &binaries)?;
    Ok(report(ws, &outcomes))
}

/// Shows what came of the machines, and gives the exit code.
fn report(ws: &Workspace, outcomes: &[Outcome]) -> ExitCode {
    let counts = counts(ws, outcomes);
    for failure in &counts.failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all machines of an order, several at a time.
pub fn run(ws: &Workspace, order: &Order<'_>, built: &Built, binaries: &[TestBinary]) -> Result<Vec<Outcome>> {
    let host = &Host::new(ws, order.accel);
    // A second run in this checkout would write into the same directories.
    let _alone = workspace::lock(&ws.target.join("vm/run.lock"))?;
    let [single, double] = &[image(ws, order.plan, built, binaries, 1)?, image(ws, order.plan, built, binaries, 2)?];
    let images = single.as_ref().map_or_else(Vec::new, |i| i.deal(if i.steps().len() > MANY { 2 } else { 1 }));
    let mut jobs = Vec::new();
    for (key, (part, image)) in order.kernels.iter().flat_map(|key| images.iter().enumerate().map(move |i| (key, i))) {
        let kernel = kernel::get(ws, kernel::series(key)?)?;
        let name = if images.len() == 1 { (*key).to_owned() } else { format!("{key}{MACHINE}{}", part + 1) };
        let run = move || vec![Machine::run_to_end(host, &name, kernel, image, Extra::default())];
        jobs.push(Job { machines: 1, run: Box::new(run) });
    }
    let pairs = pair::choose(&Lists::read(ws)?.pairs, &order.kernels);
    for (keys, image) in pairs.into_iter().zip(double.iter().cycle()) {
        let pair = Pair::of(host, image, keys)?;
        jobs.push(Job { machines: 2, run: Box::new(|| pair.run()) });
    }
    if jobs.is_empty() {
        bail!("nothing to run: a suite of two machines takes two kernels, as in `--kernel 5.10,newest`");
    }
    let slots = match order.jobs {
        Some(jobs) => usize::from(jobs),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    Ok(joined(jobs::run(jobs, slots).into_iter().flatten()))
}

/// More test binaries of a kernel are shared by two machines: emulated, each has one processor, and the slowest kernel would end alone.
const MANY: usize = 10;
/// Between a kernel and the number of the machine, of those that share its work.
const MACHINE: char = '#';

/// One outcome for each kernel of which several machines have run.
fn joined(outcomes: impl Iterator<Item = Outcome>) -> Vec<Outcome> {
    let mut by_name: Vec<(String, Vec<Outcome>)> = Vec::new();
    for outcome in outcomes {
        let name = outcome.name.split(MACHINE).next().unwrap_or(&outcome.name).to_owned();
        match by_name.last_mut().filter(|(last, _)| *last == name) {
            Some((_, parts)) => parts.push(outcome),
            None => by_name.push((name, vec![outcome])),
        }
    }
    by_name.into_iter().filter_map(|(name, parts)| Outcome::join(&name, parts)).collect()
}

/// Prints the table of all machines, and gives their tests' counts.
pub fn counts(ws: &Workspace, outcomes: &[Outcome]) -> Counts {
    println!("\n{}", table(outcomes));
    let mut counts = Counts::default();
    outcomes.iter().for_each(|o| counts.add(&o.counts(ws)));
    counts
}

/// Packs what the plan needs in machines of all kernels, for suites of so many machines; none if it has no such suite.
fn image(
    ws: &Workspace,
    plan: Plan<'_>,
    built: &Built,
    binaries: &[TestBinary],
    machines: usize,
) -> Result<Option<Image>> {
    let lists = Lists::read(ws)?;
    let (steps, programs) = match plan {
        Plan::Suites(names) => {
            let chosen = lists.choose(names)?;
            let with_tests = with_tests(ws, binaries, "")?;
            let steps = lists.steps(&with_tests, &chosen, machines)?;
            let second = machines == 1 && lists.second_build(&chosen);
            (steps, Some(Programs::of(ws, built, second)?))
        }
        Plan::Verifier => {
            let binaries = with_tests(ws, binaries, "verified")?;
            let step =
                |binary| Step { suite: "verifier".to_owned(), binary, filter: "verified", seconds: suites::SECONDS };
            // To load programs the test binary is enough.
            let binaries = binaries.into_iter().filter(|b| b.package == "packets" && machines == 1);
            (binaries.map(step).collect(), None)
        }
    };
    if steps.is_empty() {
        return Ok(None);
    }
    let dir = ws.target.join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let stage = Stage::start(format!("pack {} test binaries", steps.len()));
    let image = Image::pack(ws, &lists, programs.as_ref(), steps, dir.join(format!("image-{machines}.cpio")))?;
    stage.done("");
    Ok(Some(image))
}

/// The binaries that have a test with `filter` in its name.
fn with_tests(ws: &Workspace, binaries: &[TestBinary], filter: &str) -> Result<Vec<TestBinary>> {
    let mut found = Vec::new();
    for binary in binaries {
        if count_tests(ws, binary, filter)? > 0 {
            found.push(binary.clone());
        }
    }
    Ok(found)
}

/// A line for each machine: what came of each suite and in what time, and what its kernel said of our programs.
fn table(outcomes: &[Outcome]) -> String {
    let suites: BTreeSet<&str> = outcomes.iter().flat_map(|o| o.runs.iter().map(|r| r.suite.as_str())).collect();
    let mut header = vec!["machine", "kernel"];
    header.extend(&suites);
    header.extend(["machine time", "largest program", "load of all"]);
    let cell = |outcome: &Outcome, suite: &str| {
        let mut counts = Counts::default();
        let mut seconds = 0.0;
        for run in outcome.runs.iter().filter(|r| r.suite == suite) {
            counts.add(&run.counts);
            seconds += run.time.as_secs_f64();
        }
        if counts.is_empty() {
            return "-".to_owned();
        }
        let failed = if counts.failed == 0 { String::new() } else { format!(", {} FAILED", counts.failed) };
        let skipped = if counts.skipped == 0 { String::new() } else { format!(", {} skipped", counts.skipped) };
        format!("{} passed{failed}{skipped}, {seconds:.0} s", counts.passed)
    };
    let row = |o: &Outcome| {
        let largest = o.verified.iter().max_by_key(|v| v.insns);
        let loads: u64 = o.verified.iter().map(|v| v.load_us).sum();
        let mut row = vec![o.name.clone(), o.release.clone()];
        row.extend(suites.iter().map(|s| cell(o, s)));
        row.push(format!("{:.0} s", o.wall.as_secs_f64()));
        row.push(largest.map_or("-".to_owned(), |v| format!("{}, {} verified", v.program, v.insns)));
        row.push(if loads == 0 { "-".to_owned() } else { format!("{} ms", loads / 1000) });
        row
    };
    ui::table(&header, &outcomes.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{console::Run, *};
    use crate::libtest;

    #[test]
    fn a_machine_is_a_line_with_each_suite_and_what_the_verifier_said() {
        let run = |suite: &str, passed, failed| Run {
            suite: suite.to_owned(),
            name: format!("{suite}/x"),
            counts: Counts { passed, failed, ..Counts::default() },
            time: Duration::from_secs(4),
        };
        let outcome = |name: &str, runs| Outcome {
            name: name.to_owned(),
            release: "5.10.0-46".to_owned(),
            emulated: true,
            verified: [
                "a insns=7 xlated=1 jited=1 stack=8 load_us=1500",
                "b insns=9 xlated=1 jited=1 stack=8 load_us=2500",
            ]
            .iter()
            .filter_map(|v| libtest::verified(&format!("verified: {v}")))
            .collect(),
            runs,
            wall: Duration::from_secs(20),
            broken: None,
        };
        let text = table(&[
            outcome("5.10", vec![run("lab", 2, 0), run("lab", 1, 1), run("cni", 5, 0)]),
            outcome("newest", vec![run("cni", 5, 0)]),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("5 passed, 4 s") && lines[1].contains("3 passed, 1 FAILED, 8 s"), "{text}");
        assert!(lines[1].contains("b, 9 verified") && lines[1].contains("4 ms") && lines[1].contains("20 s"), "{text}");
        assert!(lines[2].split_whitespace().any(|cell| cell == "-"), "{text}");
    }

    #[test]
    fn machines_that_shared_a_kernels_work_are_one_line() {
        let outcome = |name: &str, broken: Option<&str>| Outcome {
            name: name.to_owned(),
            release: "5.10.0-46".to_owned(),
            emulated: true,
            verified: Vec::new(),
            runs: vec![Run {
                suite: "lab".to_owned(),
                name: name.to_owned(),
                counts: Counts { passed: 3, ..Counts::default() },
                time: Duration::from_secs(4),
            }],
            wall: Duration::from_secs(20),
            broken: broken.map(str::to_owned),
        };
        let parts = [
            ("5.10#1", None),
            ("5.10#2", Some("a crash")),
            ("newest#1", None),
            ("newest#2", None),
            ("5.10-newest/1", None),
        ];
        let all = joined(parts.into_iter().map(|(name, broken)| outcome(name, broken)));
        let said = |o: &Outcome| (o.name.clone(), o.runs.len(), o.wall.as_secs(), o.broken.clone());
        let line =
            |name: &str, runs, wall, broken: Option<&str>| (name.to_owned(), runs, wall, broken.map(str::to_owned));
        assert_eq!(
            all.iter().map(said).collect::<Vec<_>>(),
            [
                line("5.10", 2, 40, Some("machine 5.10#2: a crash")),
                line("newest", 2, 40, None),
                line("5.10-newest/1", 1, 20, None),
            ]
        );
    }
}
