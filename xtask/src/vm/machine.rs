//! One virtual machine: prepared, then booted and followed to its end. Several may run at once, each in a thread.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    accel::{Accel, Choice, Wish},
    console::{Console, Run, plain},
    emulator::{Emulator, PROGRAM},
    guest::{self, Image},
    kernel::Kernel,
};
use crate::{
    libtest::{Counts, Verified},
    run::{self, Ended, Read},
    ui::{self, Stage},
    verifier,
    workspace::Workspace,
};

/// How long a machine may run, from power-on to power-off.
const LIMIT: Duration = Duration::from_secs(55 * 60);
/// Memory of the machine in MiB: the packed system is unpacked into it, and held twice for a moment.
const MEMORY: &str = "2048";
/// Processors: with two, per-CPU maps have something to keep apart. An emulated machine has room for the second one, so that those maps
/// are of the same shape, and does without it: it would cost a fifth more of the time.
const CPUS: [&str; 2] = ["2", "1,maxcpus=2"];
/// Errors come onto the console, and all that a crashing kernel says; then the machine ends, as its tests would wait for
/// what no longer comes. The rest leaves out what costs an emulated processor most and no test is about: mitigations, page
/// tables switched at each system call, memory cleared twice, security modules, and grace periods that are waited for.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 oops=panic panic=-1 mitigations=off nopti no5lvl apparmor=0 audit=0 \
    init_on_alloc=0 rcupdate.rcu_expedited=1 tsc=reliable no_timer_check random.trust_cpu=on nowatchdog nokaslr";
/// An old processor: each feature of a newer one (wide registers, protection keys) is work for the emulation at every switch
/// of tasks. A quarter less time than with `max`, together with a buffer that holds all translated code.
const EMULATED: [&str; 4] = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,+rdrand"];
/// What is shown of a crash.
const OOPS_LINES: usize = 80;
/// Room for the guest's results; sparse.
const DISK: u64 = 64 << 20;

/// What a machine has besides what all have.
#[derive(Debug, Default)]
pub struct Extra {
    /// Arguments of QEMU, such as network cards.
    pub qemu: Vec<String>,
    /// Lines of shell that init runs once modules are loaded and before the first test.
    pub setup: String,
}

/// Where machines run.
pub struct Host<'a> {
    /// This checkout.
    pub ws: &'a Workspace,
    /// How.
    pub accel: Choice,
    /// By whom, where it is not the processor.
    emulator: OnceLock<Emulator>,
}

impl<'a> Host<'a> {
    /// This checkout's, as is wished.
    pub fn new(ws: &'a Workspace, wish: Wish) -> Self {
        Self { ws, accel: Choice::new(wish), emulator: OnceLock::new() }
    }
}

/// A machine that is ready to boot.
pub struct Machine<'a> {
    host: &'a Host<'a>,
    name: String,
    kernel: Kernel,
    image: &'a Image,
    dir: PathBuf,
    initramfs: PathBuf,
    disk: PathBuf,
    qemu: Vec<String>,
}

/// What came out of a machine.
pub struct Outcome {
    /// The machine's name.
    pub name: String,
    /// The guest's `uname -r`.
    pub release: String,
    /// What the verifier said of the programs.
    pub verified: Vec<Verified>,
    /// The test binaries that came to their end.
    pub runs: Vec<Run>,
    /// From power-on to power-off.
    pub wall: Duration,
    /// It ran without KVM: its times are no hardware's.
    pub emulated: bool,
    /// The machine did not come to its end.
    pub broken: Option<String>,
}

impl<'a> Machine<'a> {
    /// Packs a machine of this name, which its lines on the terminal and its directory under target/vm/run have.
    pub fn prepare(host: &'a Host<'_>, name: &str, kernel: Kernel, image: &'a Image, extra: Extra) -> Result<Self> {
        let ws = host.ws;
        let dir = ws.target.join("vm/run").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("empty {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let initramfs = dir.join("initramfs.cpio");
        image.complete(ws, &kernel, &extra.setup, &initramfs)?;
        let disk = dir.join("results");
        fs::File::create(&disk).and_then(|f| f.set_len(DISK)).with_context(|| format!("create {}", disk.display()))?;
        Ok(Self { host, name: name.to_owned(), kernel, image, dir, initramfs, disk, qemu: extra.qemu })
    }

    /// Boots and follows the machine until it is off.
    pub fn run(self) -> Result<Outcome> {
        let accel = self.host.accel.get(&self.kernel.release, || self.probe())?;
        let stage = Stage::start(format!("machine {}: kernel {}", self.name, self.kernel.release));
        let file = self.dir.join("console.log");
        let mut log = BufWriter::new(fs::File::create(&file).with_context(|| format!("create {}", file.display()))?);
        let mut console = Console::new(self.image.steps());
        let started = Instant::now();
        let ended = run::stream(self.command(accel).args(["-serial", "stdio"]), Read::Both, LIMIT, |line| {
            let line = plain(line);
            println!("{:>6} | {line}", self.name);
            // A log that cannot be written is no reason to lose the run; its end says so.
            let _full_disk = writeln!(log, "{line}");
            if let Some(progress) = console.line(&line) {
                ui::note(&format!("{}: {progress}", self.name));
            }
        })?;
        let wall = started.elapsed();
        log.flush().with_context(|| format!("write {}", file.display()))?;
        drop(log);
        let broken = self.finish(ended)?.or_else(|| console.unfinished());
        let broken = broken.map(|why| self.with_oops(why));
        match &broken {
            None => stage.done(""),
            Some(why) => stage.failed(why),
        }
        let Console { runs, verified, .. } = console;
        let emulated = accel == Accel::Tcg;
        let outcome = Outcome { name: self.name, release: self.kernel.release, verified, runs, wall, emulated, broken };
        if outcome.failure().is_some() {
            ui::note(&format!("the guest's logs, as far as it wrote them, are in {}", self.host.ws.show(&self.dir)));
        }
        Ok(outcome)
    }

    /// Prepares and runs a machine; one that could not run is an outcome too, as others still run.
    pub fn run_to_end(host: &Host<'_>, name: &str, kernel: Kernel, image: &Image, extra: Extra) -> Outcome {
        let release = kernel.release.clone();
        Machine::prepare(host, name, kernel, image, extra).and_then(Machine::run).unwrap_or_else(|e| Outcome {
            name: name.to_owned(),
            release,
            verified: Vec::new(),
            runs: Vec::new(),
            wall: Duration::ZERO,
            emulated: false,
            broken: Some(format!("{e:#}")),
        })
    }

    /// Boots the machine for a person at this terminal, who ends it.
    pub fn shell(self) -> Result<ExitCode> {
        let accel = self.host.accel.get(&self.kernel.release, || self.probe())?;
        let mut command = self.command(accel);
        // Keys such as Ctrl-C go to the guest, and those for QEMU stand behind Ctrl-A.
        command.args(["-serial", "mon:stdio"]);
        let status = command.status().with_context(|| format!("start `{}`", run::show(&command)))?;
        self.finish(if status.success() { Ended::Well } else { Ended::Badly(status.code()) })?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn command(&self, accel: Accel) -> Command {
        let mut command = qemu(self.host, accel, &self.kernel, &self.initramfs);
        command
            .args(["-device", "virtio-rng-pci"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,cache=unsafe", self.disk.display()))
            .args(&self.qemu);
        command
    }

    /// QEMU with KVM and a system that only says that it is up.
    fn probe(&self) -> Result<Command> {
        let initramfs = self.dir.join("probe.cpio");
        guest::pack_probe(&initramfs)?;
        let mut command = qemu(self.host, Accel::Kvm, &self.kernel, &initramfs);
        command.args(["-serial", "stdio"]);
        Ok(command)
    }

    /// Unpacks what the guest wrote onto its disk; says what is wrong with the machine itself.
    fn finish(&self, ended: Ended) -> Result<Option<String>> {
        // A guest that crashed wrote nothing, and tar then says so; the file `done` tells.
        let unpacked = run::capture(self.host.ws.command("tar").arg("-xf").arg(&self.disk).arg("-C").arg(&self.dir));
        // Large, and made anew each time.
        for file in [&self.disk, &self.initramfs] {
            fs::remove_file(file).with_context(|| format!("remove {}", file.display()))?;
        }
        Ok(match ended {
            Ended::TimedOut => Some(format!("the guest was still running after {}", ui::seconds(LIMIT))),
            Ended::Badly(code) => Some(format!("QEMU ended with {code:?}; its message is above")),
            Ended::Well if unpacked.is_err() || !self.dir.join("done").exists() => {
                Some("the guest powered off without results: a crash, see its last lines above".to_owned())
            }
            Ended::Well => None,
        })
    }

    /// A kernel that crashed says on the console where: that is worth more than that it is gone.
    fn with_oops(&self, why: String) -> String {
        let said = fs::read_to_string(self.dir.join("console.log")).unwrap_or_default();
        match oops(&said) {
            Some(oops) => format!("{why}; its kernel said:\n{oops}\n"),
            None => why,
        }
    }
}

fn qemu(host: &Host<'_>, accel: Accel, kernel: &Kernel, initramfs: &Path) -> Command {
    // Whoever kills this run kills its machines, which else would go on for minutes.
    let mut command = host.ws.command("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    match accel {
        Accel::Kvm => command.arg(PROGRAM),
        Accel::Tcg => {
            let emulator = host.emulator.get_or_init(|| Emulator::get(host.ws));
            command.arg(emulator.program()).args(emulator.arguments())
        }
    };
    command
        .args(["-M", "q35", "-smp", CPUS[usize::from(accel == Accel::Tcg)], "-m", MEMORY])
        .args(match accel {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => EMULATED,
        })
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", COMMAND_LINE]);
    command
}

/// What a kernel says when it crashes, from its first line on.
fn oops(console: &str) -> Option<String> {
    const BEGIN: [&str; 6] =
        ["BUG:", "Oops:", "general protection fault", "kernel BUG at", "Kernel panic", "Call Trace:"];
    let lines: Vec<&str> = console.lines().collect();
    let first = lines.iter().position(|l| BEGIN.iter().any(|b| l.contains(b)))?;
    let last = lines.len().min(first + OOPS_LINES);
    Some(lines[first..last].join("\n"))
}

impl Outcome {
    /// What came out of machines that have shared the work, as of one of this name; the time is that of all together.
    pub fn join(name: &str, parts: Vec<Self>) -> Option<Self> {
        let add = |mut all: Self, part: Self| {
            all.verified.extend(part.verified);
            all.runs.extend(part.runs);
            all.wall += part.wall;
            all.broken = match (all.broken, part.broken) {
                (Some(one), Some(other)) => Some(format!("{one}; {other}")),
                (one, other) => one.or(other),
            };
            all
        };
        let named = |part: Self| Self {
            broken: part
                .broken
                .map(|why| if part.name == name { why } else { format!("machine {}: {why}", part.name) }),
            name: name.to_owned(),
            ..part
        };
        parts.into_iter().map(named).reduce(add)
    }

    /// Why the run as a whole is a failure, if it is.
    pub fn failure(&self) -> Option<String> {
        let failed = |r: &&Run| r.counts.failed > 0;
        self.broken.clone().or_else(|| {
            let names =
                |r: &Run| r.counts.failures.iter().filter_map(|f| f.lines().next()).collect::<Vec<_>>().join(", ");
            self.runs.iter().find(failed).map(|r| format!("{} failed: {}", r.name, names(r)))
        })
    }

    /// All runs' counts, with growth of the programs as failures; failures are named with the machine.
    pub fn counts(&self, ws: &Workspace) -> Counts {
        let mut counts = Counts::default();
        for run in &self.runs {
            counts.add(&run.counts);
        }
        if let Some(why) = &self.broken {
            counts.fail(why);
        }
        match verifier::compare(ws, &verifier::series(&self.release), &self.verified) {
            Ok(grown) => grown.into_iter().for_each(|g| counts.fail(g)),
            Err(e) => counts.fail(format!("{e:#}")),
        }
        for failure in &mut counts.failures {
            *failure = format!("{}: {failure}", self.name);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_shown_from_its_first_line() {
        let log = "test a ... ok\n[    9.1] BUG: kernel NULL pointer dereference\n[    9.2] RIP: 0010:tcf_exts\n[    9.3] Kernel panic";
        assert!(oops(log).unwrap().starts_with("[    9.1] BUG:") && oops(log).unwrap().contains("tcf_exts"));
        assert_eq!(oops("test a ... ok\ntest b ... FAILED\n"), None);
    }
}
