//! `cargo xtask vm`: the tests on other kernels, in a QEMU virtual machine.
//!
//! The machine is emulated (TCG), so it needs neither KVM nor root; it is 10 to 30 times slower than this one.

mod cpio;
mod guest;
mod kernel;
mod modules;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Built, Profile},
    libtest::{self, Counts, Reader},
    run::{self, Ended, Read},
    setup::{self, Need},
    test::{self, TestBinary},
    ui::{self, Stage},
    verifier,
    workspace::Workspace,
};

/// Run the packet tests and the lab's tests of one and two nodes on another kernel, in a virtual machine.
///
/// Downloads the kernel from Debian's archive the first time (and again with --refresh), packs it with our static
/// programs and test binaries, boots it in QEMU without KVM, and shows the guest's output live. Loads every BPF program,
/// and prints the instructions that its verifier walked where that kernel reports them. Needs no root.
#[derive(clap::Args)]
pub struct Args {
    /// The kernel: 5.10, 6.1, 6.12 or newest
    #[arg(long, value_name = "V", required_unless_present = "list")]
    kernel: Option<String>,
    /// Print the kernels, where they come from and which are here, and end
    #[arg(long)]
    list: bool,
    /// Look for a newer kernel package even if one is here
    #[arg(long)]
    refresh: bool,
}

/// How long a machine may run, from power-on to power-off.
const LIMIT: Duration = Duration::from_secs(25 * 60);
/// Memory of the machine in MiB: the packed system is unpacked into it, and held twice for a moment.
const MEMORY: &str = "2048";
/// Processors: with two, per-CPU maps have something to keep apart.
const CPUS: &str = "2";
/// Room for the guest's results; sparse.
const DISK: u64 = 64 << 20;

/// What is run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// All packet tests and the lab's tests of one and two nodes.
    Tests,
    /// Only the test that loads all programs and prints the verifier's figures.
    Verifier,
}

/// A test binary's run in the guest.
struct Step {
    name: String,
    counts: Counts,
    time: Duration,
}

/// What came out of a machine.
pub struct Outcome {
    kernel: String,
    /// The guest's `uname -r`.
    pub release: String,
    /// Programs and the instructions that the verifier walked for them.
    pub verified: Vec<(String, u64)>,
    steps: Vec<Step>,
    /// The machine did not come to its end.
    broken: Option<String>,
}

impl Outcome {
    /// Why the run as a whole is a failure, if it is.
    pub fn failure(&self) -> Option<String> {
        let failed = |s: &&Step| s.counts.failed > 0;
        self.broken.clone().or_else(|| {
            self.steps.iter().find(failed).map(|s| format!("{} failed: {}", s.name, s.counts.failures.join(", ")))
        })
    }

    /// All steps' counts, with growth of the programs as failures.
    pub fn counts(&self, ws: &Workspace) -> Counts {
        let mut counts = Counts::default();
        for step in &self.steps {
            counts.add(&step.counts);
        }
        if let Some(why) = &self.broken {
            counts.fail(why);
        }
        match verifier::compare(ws, &verifier::series(&self.release), &self.verified) {
            Ok(grown) => grown.into_iter().for_each(|g| counts.fail(g)),
            Err(e) => counts.fail(format!("{e:#}")),
        }
        counts
    }

    /// Steps with their figures, then programs with theirs.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .steps
            .iter()
            .map(|s| {
                let figures = [s.counts.passed, s.counts.failed, s.counts.skipped].map(|n| n.to_string());
                [s.name.clone()].into_iter().chain(figures).chain([format!("{:.1}", s.time.as_secs_f64())]).collect()
            })
            .collect();
        let title = format!("kernel {}", self.release);
        let mut text = ui::table(&[&title, "passed", "failed", "skipped", "seconds"], &rows);
        if !self.verified.is_empty() {
            let rows: Vec<Vec<String>> = self.verified.iter().map(|(p, n)| vec![p.clone(), n.to_string()]).collect();
            text.push('\n');
            text.push_str(&ui::table(&["program", "verified instructions"], &rows));
        }
        text
    }
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let Some(kernel) = args.kernel.as_ref().filter(|_| !args.list) else {
        print!("{}", kernel::list(ws));
        return Ok(ExitCode::SUCCESS);
    };
    kernel::series(kernel)?;
    setup::ensure(ws, &[Need::Bpf, Need::Vm])?;
    if args.refresh {
        kernel::fetch(ws, kernel::series(kernel)?)?;
    }
    let built = build::all(ws, Profile::Release)?;
    let binaries = test::test_binaries(ws, &built.object, &["packets", "lab"])?;
    let outcome = boot(ws, kernel, &Plan::Tests, &built, &binaries)?;
    let counts = outcome.counts(ws);
    println!("\n{}", outcome.table());
    for failure in &counts.failures {
        println!("failed: {failure}");
    }
    println!(
        "kernel {} ({}): {} passed, {} failed, {} skipped",
        outcome.kernel, outcome.release, counts.passed, counts.failed, counts.skipped
    );
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots a kernel once and runs the plan in it.
pub fn boot(ws: &Workspace, key: &str, plan: &Plan, built: &Built, binaries: &[TestBinary]) -> Result<Outcome> {
    let kernel = kernel::get(ws, kernel::series(key)?)?;
    let dir = ws.target.join("vm/run").join(key);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let stage = Stage::start(format!("pack kernel {}", kernel.release));
    let steps = guest::steps(ws, *plan, binaries)?;
    let initramfs = dir.join("initramfs.cpio");
    let size = guest::pack(ws, &kernel, *plan, built, &steps, &initramfs)?;
    stage.done(&format!("{} MiB", size >> 20));
    let disk = dir.join("results");
    fs::File::create(&disk).and_then(|f| f.set_len(DISK)).with_context(|| format!("create {}", disk.display()))?;
    let stage = Stage::start(format!("boot kernel {} (emulated; may take minutes)", kernel.release));
    let mut console = Console::new(key, &steps);
    let ended = qemu(ws, &kernel, &initramfs, &disk, &mut console)?;
    let broken = finish(ws, &dir, &disk, ended)?;
    let mut outcome = console.outcome(kernel.release.clone());
    if let Some(why) = broken.or_else(|| outcome.unfinished(&steps)) {
        show_log(&dir);
        stage.failed(&why);
        outcome.broken = Some(why);
    } else {
        stage.done("");
    }
    if outcome.failure().is_some() {
        ui::note(&format!("the guest's logs, as far as it wrote them, are in {}", ws.show(&dir)));
    }
    // Packed anew each time, and large.
    fs::remove_file(&initramfs).with_context(|| format!("remove {}", initramfs.display()))?;
    Ok(outcome)
}

impl Outcome {
    fn unfinished(&self, steps: &[guest::Step]) -> Option<String> {
        let missing = steps.get(self.steps.len())?;
        Some(format!("the guest ended before `{}` did", missing.name))
    }
}

fn qemu(
    ws: &Workspace,
    kernel: &kernel::Kernel,
    initramfs: &Path,
    disk: &Path,
    console: &mut Console,
) -> Result<Ended> {
    let mut command = ws.command("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", CPUS, "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-nographic", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=2"])
        .args(["-device", "virtio-rng-pci"])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    run::stream(&mut command, Read::Both, LIMIT, |line| console.line(line))
}

/// Unpacks what the guest wrote onto its disk; says what is wrong with the machine itself.
fn finish(ws: &Workspace, dir: &Path, disk: &Path, ended: Ended) -> Result<Option<String>> {
    // A guest that crashed wrote nothing, and tar then says so; the file `done` tells.
    let unpacked = run::capture(ws.command("tar").arg("-xf").arg(disk).arg("-C").arg(dir));
    fs::remove_file(disk).with_context(|| format!("remove {}", disk.display()))?;
    Ok(match ended {
        Ended::TimedOut => Some(format!("the guest was still running after {}", ui::seconds(LIMIT))),
        Ended::Badly(code) => Some(format!("QEMU ended with {code:?}; its message is above")),
        Ended::Well if unpacked.is_err() || !dir.join("done").exists() => {
            Some("the guest powered off without results: a crash, see its last lines above".to_owned())
        }
        Ended::Well => None,
    })
}

/// The kernel's own messages are worth seeing when a machine broke.
fn show_log(dir: &Path) {
    if let Ok(text) = fs::read_to_string(dir.join("dmesg.txt")) {
        eprintln!("{}", run::tail(&text, 40));
    }
}

/// Follows the guest's serial console.
struct Console {
    key: String,
    names: Vec<String>,
    open: Option<(usize, Reader, Instant)>,
    steps: Vec<Step>,
    verified: Vec<(String, u64)>,
}

impl Console {
    fn new(key: &str, steps: &[guest::Step]) -> Self {
        let names = steps.iter().map(|s| s.name.clone()).collect();
        Self { key: key.to_owned(), names, open: None, steps: Vec::new(), verified: Vec::new() }
    }

    /// Takes a line: the marks of guest's init open and close a step, everything between belongs to it.
    fn line(&mut self, line: &str) {
        let line = &plain(line);
        println!("{:>6} | {line}", self.key);
        // A test that was killed left its line unfinished, so a mark may stand at the end of one.
        if let Some((_, rest)) = line.split_once(guest::MARK) {
            let mut words = rest.split_whitespace();
            match (words.next(), words.next().and_then(|n| n.parse::<usize>().ok()), words.next()) {
                (Some("begin"), Some(n), _) => self.open = Some((n, Reader::default(), Instant::now())),
                (Some("end"), Some(n), Some(code)) => self.close(n, code),
                _ => {}
            }
        } else if let Some((_, reader, _)) = &mut self.open {
            reader.line(line);
            if let Some(figure) = libtest::verified(line)
                && !self.verified.contains(&figure)
            {
                self.verified.push(figure);
            }
        }
    }

    fn close(&mut self, n: usize, code: &str) {
        let Some((open, reader, started)) = self.open.take() else { return };
        let name = self.names.get(n).cloned().unwrap_or_else(|| n.to_string());
        let mut counts = reader.finish();
        if open != n || (code != "0" && counts.failed == 0) {
            counts.fail(format!("{name}: ended with code {code}"));
        }
        if counts.is_empty() {
            counts.fail(format!("{name}: ran no test"));
        }
        self.steps.push(Step { name, counts, time: started.elapsed() });
    }

    fn outcome(self, release: String) -> Outcome {
        Outcome { kernel: self.key, release, verified: self.verified, steps: self.steps, broken: None }
    }
}

/// A line without terminal control: the machine's firmware clears the screen, which here is somebody's terminal.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // Either one more character, or after a bracket everything up to a letter.
            if chars.next() == Some('[') {
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
            }
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &str) -> Outcome {
        let steps = [guest::Step::for_tests("packets"), guest::Step::for_tests("two_pods")];
        let mut console = Console::new("5.10", &steps);
        lines.lines().for_each(|l| console.line(l));
        let mut outcome = console.outcome("5.10.0-46-cloud-amd64".to_owned());
        outcome.broken = outcome.unfinished(&steps);
        outcome
    }

    const PACKETS: &str = "weft-vm: begin 0\nrunning 1 test\nverified: from_pod 100\ntest a ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\nweft-vm: end 0 0\n";

    #[test]
    fn counts_the_guests_steps() {
        let outcome = console(&format!("{PACKETS}{}", PACKETS.replace(" 0\n", " 1\n").replace("end 0 1", "end 1 0")));
        assert_eq!(outcome.steps.len(), 2);
        assert_eq!(outcome.failure(), None);
        assert_eq!(outcome.verified, [("from_pod".to_owned(), 100)]);
    }

    #[test]
    fn a_step_that_never_ended_breaks_the_run() {
        let outcome = console(&format!("{PACKETS}weft-vm: begin 1\nrunning 1 test\n"));
        assert!(outcome.failure().unwrap().contains("two_pods"));
    }

    #[test]
    fn a_bad_exit_code_fails_even_if_no_test_did() {
        let outcome = console(&PACKETS.replace("end 0 0", "end 0 137"));
        assert_eq!(outcome.steps[0].counts.failed, 1);
    }

    #[test]
    fn the_end_of_a_killed_test_is_seen_behind_its_unfinished_line() {
        let outcome = console("weft-vm: begin 0\nrunning 1 test\ntest a ... weft-vm: end 0 143\n");
        assert_eq!(outcome.steps[0].counts.failed, 1);
    }

    #[test]
    fn terminal_control_is_left_out() {
        assert_eq!(plain("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r"), "SeaBIOS");
    }

    #[test]
    fn a_step_without_a_test_fails() {
        let outcome = console("weft-vm: begin 0\nweft-vm: end 0 0\n");
        assert_eq!(outcome.steps[0].counts.failed, 1);
    }
}
