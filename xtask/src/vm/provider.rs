//! Machines by Vagrant or Lima, for people who have them: two of different kernels, as tests/vm/Vagrantfile and
//! tests/vm/lima.yaml describe them.
//!
//! The tools are asked for machines, for how ssh reaches them, and to take them away; the rest is ssh and the same test
//! binaries, suites and reading of results as in our own machines.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Args, Outcome,
    console::{Console, plain},
    guest::{self, Programs},
    kernel, report,
    suites::{Lists, Step},
    with_tests,
};
use crate::{
    build::{self, Profile},
    libtest::Counts,
    run::{self, Ended, Read},
    setup::{self, Need},
    test,
    ui::{self, Stage},
    workspace::{self, Workspace, which},
};

/// Who makes the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Provider {
    /// QEMU, with a system that is packed for the tests
    #[default]
    Qemu,
    /// Debian's boxes, by whatever vagrant uses here
    Vagrant,
    /// Debian's cloud images
    Lima,
}

/// How long a tool may take to bring machines up, with images to download and packages to install.
const UP_LIMIT: Duration = Duration::from_secs(45 * 60);
/// How long the tests of a machine may take.
const TESTS_LIMIT: Duration = Duration::from_secs(60 * 60);
/// The directory of the tools' files.
const FILES: &str = "tests/vm";

/// Makes the wire that both machines of a pair have in common their `eth0`: a device of its own, else the only one, as in our
/// own machines. What is called so and is the way to us gets another name, and its route again. `$1` is the machine's number.
const WIRE: &str = r#"route=$(ip -4 route show default | head -n 1)
way=$(echo "$route" | sed 's/.* dev \([^ ]*\).*/\1/')
wire=$(ls /sys/class/net | grep -v -x -e lo -e "$way" | head -n 1); wire=${wire:-$way}
if [ "$wire" != eth0 ] && [ "$way" = eth0 ]; then
    ip link set eth0 down; ip link set eth0 name way0; ip link set way0 up
    ip route replace $(echo "$route" | sed 's/ dev eth0/ dev way0/')
fi
if [ "$wire" != eth0 ]; then
    ip link set "$wire" down; ip link set "$wire" name eth0
fi
ip link set eth0 up
ip address replace 192.168.77.$1/24 dev eth0
ip address replace fd77::$1/64 dev eth0 nodad
peer=$((3 - $1))
export WEFT_VM_MACHINE=$1 WEFT_VM_PEER_V4=192.168.77.$peer WEFT_VM_PEER_V6=fd77::$peer
# The second machine's part; see pair.rs.
if [ $1 = 2 ]; then export WEFT_VM_TESTS=both_machines; fi
"#;

/// One machine, or two that are a cluster.
struct Cluster<'a> {
    ws: &'a Workspace,
    provider: Provider,
    /// Finds vagrant or limactl, ssh and scp.
    find: &'a (dyn Fn(&str) -> Option<PathBuf> + Sync),
    kernels: Vec<&'static str>,
    dir: PathBuf,
}

/// How ssh reaches a machine.
struct Access {
    config: PathBuf,
    host: String,
}

/// The verb, for providers that are not our own.
pub fn main(ws: &Workspace, args: &Args, lists: &Lists) -> Result<ExitCode> {
    if args.jobs.is_some() || args.shell {
        bail!("--jobs and --shell are for QEMU");
    }
    let chosen = lists.choose(&args.suite)?;
    let pairs = match kernel::choose(&args.kernel)? {
        _ if args.kernel.is_empty() => lists.pairs.iter().map(|p| kernel::choose(p)).collect::<Result<_>>()?,
        named => named.chunks(2).map(<[_]>::to_vec).collect::<Vec<_>>(),
    };
    let cluster = |kernels: Vec<&'static str>| {
        let name = format!("{}-{}", args.provider.tool(), kernels.join("-"));
        Cluster { ws, provider: args.provider, find: &which, kernels, dir: ws.target.join("vm/run").join(name) }
    };
    let clusters: Vec<Cluster<'_>> = pairs.into_iter().map(cluster).collect();
    clusters.iter().try_for_each(Cluster::require_tools)?;
    setup::ensure(ws, &[Need::Bpf])?;
    let built = build::all(ws, Profile::Release)?;
    let binaries = with_tests(ws, &test::test_binaries(ws, &built.object, &test::NODE_TESTS)?, "")?;
    let phases = [1, 2].map(|machines| lists.steps(&binaries, &chosen, machines));
    let [one, two] = phases.into_iter().collect::<Result<Vec<_>>>()?.try_into().unwrap_or_default();
    let programs = Programs::of(ws, &built, lists.second_build(&chosen))?;
    let mut outcomes = Vec::new();
    for cluster in &clusters {
        let ran = cluster.pack(lists, &programs, [&one, &two]).and_then(|archive| cluster.run(&archive, [&one, &two]));
        if args.keep {
            ui::note(&format!("the machines of {} are left running", ws.show(&cluster.dir)));
        } else {
            cluster.down()?;
        }
        outcomes.extend(ran?);
    }
    Ok(report(ws, &outcomes))
}

impl Provider {
    fn tool(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Vagrant => "vagrant",
            Self::Lima => "limactl",
        }
    }

    fn cure(self) -> &'static str {
        match self {
            Self::Qemu => "install qemu-system-x86",
            Self::Vagrant => {
                "install it with a provider such as vagrant-libvirt (Debian: `apt install vagrant vagrant-libvirt`)"
            }
            Self::Lima => "install Lima 2.0 or newer as its documentation says",
        }
    }
}

impl Cluster<'_> {
    fn require_tools(&self) -> Result<()> {
        let tool = self.provider.tool();
        if (self.find)(tool).is_none() {
            bail!("{tool} is missing: {}, or leave out --provider to use QEMU", self.provider.cure());
        }
        for program in ["ssh", "scp"] {
            if (self.find)(program).is_none() {
                bail!("{program} is missing: install openssh-client");
            }
        }
        if self.provider == Provider::Lima && workspace::is_root() {
            bail!("limactl does not run as root: run this as another user, who need not be allowed anything");
        }
        Ok(())
    }

    fn names(&self) -> impl Iterator<Item = (usize, String)> {
        (1..=self.kernels.len()).map(|n| (n, format!("weft-{n}")))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.ws.command((self.find)(program).unwrap_or_else(|| program.into()));
        command
            .env("VAGRANT_CWD", self.ws.root.join(FILES))
            .env("VAGRANT_DOTFILE_PATH", self.dir.join("vagrant"))
            .env("WEFT_VM_KERNELS", self.kernels.join(","));
        command
    }

    fn tool(&self, args: &[&str]) -> Result<()> {
        let mut command = self.command(self.provider.tool());
        let ended = run::stream(command.args(args), Read::Both, UP_LIMIT, |line| eprintln!("    {line}"))?;
        if ended != Ended::Well {
            bail!("`{}` failed; what it said is above", run::show(&command));
        }
        Ok(())
    }

    /// Brings the machines up and runs all steps in them.
    fn run(&self, archive: &Path, phases: [&[Step]; 2]) -> Result<Vec<Outcome>> {
        let stage = Stage::start(format!("machines by {}: {}", self.provider.tool(), self.kernels.join(" and ")));
        self.up()?;
        stage.done("");
        let mut machines = Vec::new();
        for (n, name) in self.names() {
            let access = self.access(&name)?;
            self.copy(&access, archive, None)?;
            self.ssh(&access, "sudo tar -x -C / -f weft.tar")?;
            let release = self.ssh(&access, "uname -r")?.trim().to_owned();
            machines.push((n, access, release));
        }
        let mut outcomes = Vec::new();
        // One machine is no pair.
        for (phase, steps) in phases.into_iter().enumerate().take(machines.len()).filter(|(_, steps)| !steps.is_empty())
        {
            let ran: Vec<Outcome> = thread::scope(|scope| {
                let mut running = Vec::new();
                for (n, access, release) in &machines {
                    running.push(scope.spawn(move || self.tests(*n, access, release, phase + 1, steps)));
                }
                running.into_iter().map(|r| r.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
            });
            outcomes.extend(ran);
        }
        Ok(outcomes)
    }

    fn up(&self) -> Result<()> {
        if self.provider != Provider::Lima {
            return self.tool(&["up"]);
        }
        let files = self.ws.root.join(FILES);
        fs::copy(files.join("provision.sh"), self.dir.join("provision.sh")).context("copy provision.sh")?;
        for ((_, name), kernel) in self.names().zip(&self.kernels) {
            let file = self.dir.join(format!("{name}.yaml"));
            let template = fs::read_to_string(files.join("lima.yaml")).context("read lima.yaml")?;
            fs::write(&file, lima_of(&template, kernel)?).with_context(|| format!("write {}", file.display()))?;
            self.tool(&["start", "--tty=false", &format!("--name={name}"), &file.to_string_lossy()])?;
            if *kernel == "newest" {
                // It is installed by now, and runs from the next start on.
                self.tool(&["stop", &name])?;
                self.tool(&["start", "--tty=false", &name])?;
            }
        }
        Ok(())
    }

    fn down(&self) -> Result<()> {
        if self.provider != Provider::Lima {
            return self.tool(&["destroy", "--force"]);
        }
        let names: Vec<String> = self.names().map(|(_, name)| name).collect();
        self.tool(&["delete", "--force"].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>())
    }

    fn access(&self, name: &str) -> Result<Access> {
        let mut command = self.command(self.provider.tool());
        if self.provider == Provider::Lima {
            let text = run::capture(command.args(["list", "--format", "{{.SSHConfigFile}}", name]))?;
            return Ok(Access { config: text.trim().into(), host: format!("lima-{name}") });
        }
        let config = self.dir.join(format!("ssh-{name}"));
        let text = run::capture(command.args(["ssh-config", name]))?;
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Access { config, host: name.to_owned() })
    }

    fn ssh_command(&self, access: &Access, remote: &str) -> Command {
        let mut command = self.command("ssh");
        command.arg("-F").arg(&access.config).args([&access.host, remote]);
        command
    }

    fn ssh(&self, access: &Access, remote: &str) -> Result<String> {
        run::capture(&mut self.ssh_command(access, remote))
    }

    /// Copies a file into the machine's home directory, or the other way round into `to`.
    fn copy(&self, access: &Access, file: &Path, to: Option<&Path>) -> Result<()> {
        let mut command = self.command("scp");
        command.arg("-F").arg(&access.config);
        match to {
            None => command.arg(file).arg(format!("{}:", access.host)),
            Some(to) => command.arg(format!("{}:{}", access.host, file.display())).arg(to),
        };
        run::capture(&mut command).map(drop)
    }

    /// Packs programs, tests and the scripts that run them.
    fn pack(&self, lists: &Lists, programs: &Programs, phases: [&[Step]; 2]) -> Result<PathBuf> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir).with_context(|| format!("empty {}", self.dir.display()))?;
        }
        let weft = self.dir.join("weft");
        let strip = |from: &Path, to: &Path| {
            fs::create_dir_all(to.parent().context("a file has a directory")?)?;
            run::capture(self.ws.command("strip").arg("-o").arg(to).arg(from)).map(drop)
        };
        for (from, to) in programs.files() {
            strip(&from, &weft.join(to))?;
        }
        for (path, to) in programs.links() {
            symlink(to, weft.join(path)).context("link a program of the second build")?;
        }
        for step in phases.iter().copied().flatten() {
            strip(&step.binary.file, &weft.join("tests").join(step.name()))?;
        }
        for (phase, steps) in phases.iter().enumerate() {
            let file = weft.join(format!("phase-{}", phase + 1));
            fs::write(&file, script(lists, steps, phase == 1)).with_context(|| format!("write {}", file.display()))?;
        }
        let archive = self.dir.join("weft.tar");
        let tar = ["--owner=0", "--group=0", "-cf"];
        run::capture(self.ws.command("tar").args(tar).arg(&archive).arg("-C").arg(&self.dir).arg("weft"))?;
        fs::remove_dir_all(&weft).with_context(|| format!("remove {}", weft.display()))?;
        Ok(archive)
    }

    /// Runs a phase's steps in a machine; what goes wrong is an outcome too, as the other machine's still counts.
    fn tests(&self, n: usize, access: &Access, release: &str, phase: usize, steps: &[Step]) -> Outcome {
        let name = format!("{} {}", self.provider.tool(), self.kernels[n - 1]);
        let mut console = Console::new(steps);
        let started = Instant::now();
        let mut command = self.ssh_command(access, &format!("sudo sh /weft/phase-{phase} {n}"));
        let ended = run::stream(&mut command, Read::Both, TESTS_LIMIT, |line| {
            let line = plain(line);
            println!("{name:>6} | {line}");
            if let Some(progress) = console.line(&line) {
                ui::note(&format!("{name}: {progress}"));
            }
        });
        let wall = started.elapsed();
        let logs = self.dir.join(format!("weft-{n}-logs-{phase}.tar"));
        let fetched = self.copy(access, Path::new("/tmp/weft-out.tar"), Some(&logs));
        let broken = match ended {
            Ok(Ended::Well) => console.unfinished().or_else(|| fetched.err().map(|e| format!("{e:#}"))),
            Ok(Ended::TimedOut) => Some(format!("its tests still ran after {}", ui::seconds(TESTS_LIMIT))),
            Ok(Ended::Badly(code)) => Some(format!("ssh ended with {code:?}; what it said is above")),
            Err(e) => Some(format!("{e:#}")),
        };
        let Console { runs, verified, .. } = console;
        Outcome { name, release: release.to_owned(), verified, runs, wall, emulated: false, broken }
    }
}

/// Asks the tools whether they can read their files, for every kernel; a tool that is not here counts as skipped.
pub fn validate(ws: &Workspace) -> Result<Counts> {
    setup::ensure(ws, &[Need::Providers])?;
    let mut counts = Counts::default();
    let scratch = ws.target.join("vm/validate");
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let lists = Lists::read(ws)?;
    for pair in &lists.pairs {
        let mut command = ws.command("vagrant");
        command
            .current_dir(ws.root.join(FILES))
            .env("VAGRANT_DOTFILE_PATH", &scratch)
            .env("WEFT_VM_KERNELS", pair.join(","))
            .args(["validate", "--ignore-provider"]);
        judge(&mut counts, &format!("{FILES}/Vagrantfile with {}", pair.join(" and ")), run::capture(&mut command));
    }
    let template = fs::read_to_string(ws.root.join(FILES).join("lima.yaml")).context("read lima.yaml")?;
    fs::copy(ws.root.join(FILES).join("provision.sh"), scratch.join("provision.sh")).context("copy provision.sh")?;
    for kernel in lists.pairs.iter().flatten() {
        let what = format!("{FILES}/lima.yaml for {kernel}");
        if which("limactl").is_none() {
            ui::note(&format!(
                "{what} is not validated, and counted as skipped: no limactl here; {}",
                Provider::Lima.cure()
            ));
            counts.skipped += 1;
            continue;
        }
        let file = scratch.join(format!("{kernel}.yaml"));
        fs::write(&file, lima_of(&template, kernel)?).with_context(|| format!("write {}", file.display()))?;
        judge(&mut counts, &what, run::capture(&mut lima_validate(ws, &file, &scratch)));
    }
    Ok(counts)
}

/// `limactl`, which refuses root: where this is root, as another user of a namespace, in which files are still ours.
fn lima_validate(ws: &Workspace, file: &Path, home: &Path) -> Command {
    let mut command = ws.command(if workspace::is_root() { "unshare" } else { "limactl" });
    if workspace::is_root() {
        command.args(["--user", "--map-user=1000", "--map-group=1000", "limactl"]);
    }
    command.env("LIMA_HOME", home.join("lima")).arg("validate").arg(file);
    command
}

fn judge(counts: &mut Counts, what: &str, answer: Result<String>) {
    match answer {
        Ok(_) => {
            println!("{what}: valid");
            counts.passed += 1;
        }
        Err(e) => counts.fail(format!("{what}: {e:#}")),
    }
}

/// A phase's script, whose argument is the machine's number.
fn script(lists: &Lists, steps: &[Step], pair: bool) -> String {
    let modules = lists.modules.join(" ");
    format!(
        "for m in {modules}; do modprobe -q $m; done # what is built in or not there needs none\n\
         {}rm -rf /out; mkdir -p /out\n{}{}tar -C /out -cf /tmp/weft-out.tar . && chmod 644 /tmp/weft-out.tar\n",
        if pair { WIRE } else { "" },
        guest::runs(steps),
        guest::GATHER,
    )
}

/// The file for a machine of this kernel.
fn lima_of(template: &str, kernel: &str) -> Result<String> {
    let image = match kernel {
        "5.10" => "debian-11",
        "6.1" => "debian-12",
        "6.12" | "newest" => "debian-13",
        _ => bail!("no image for kernel {kernel} is known"),
    };
    let mut text = template.to_owned();
    for (from, to) in
        [("_images/debian-11", format!("_images/{image}")), ("kernel: \"5.10\"", format!("kernel: \"{kernel}\""))]
    {
        if !text.contains(from) {
            bail!("{FILES}/lima.yaml has no `{from}`, which stands for the kernel");
        }
        text = text.replace(from, &to);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Stands for every program: notes how it was called, and answers as the real ones would.
    const FAKE: &str = "#!/bin/sh\n\
        echo \"$(basename \"$0\") $*\" >>\"$(dirname \"$0\")/calls\"\n\
        case \"$*\" in\n\
        ssh-config*) echo Host weft ;;\n\
        list*) echo /etc/ssh.config ;;\n\
        *'uname -r') echo 6.1.0-50 ;;\n\
        *phase-*) echo 'weft-vm: begin 0'; echo 'running 1 test'; echo 'test a ... ok'\n\
        echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'; echo 'weft-vm: end 0 0' ;;\n\
        esac\n";

    /// Runs a cluster of fakes, and gives the calls by who was called, and the outcomes.
    fn calls(provider: Provider, kernels: &[&'static str], test: &str) -> (Vec<String>, Vec<Outcome>) {
        let ws = Workspace::find().unwrap();
        let dir = std::env::temp_dir().join(format!("weft-provider-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for program in ["vagrant", "limactl", "ssh", "scp"] {
            fs::write(dir.join(program), FAKE).unwrap();
            fs::set_permissions(dir.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let find = |program: &str| Some(dir.join(program));
        let cluster = Cluster { ws: &ws, provider, find: &find, kernels: kernels.to_vec(), dir: dir.clone() };
        let steps = [[Step::for_tests("packets", "pins")], [Step::for_tests("lab", "pair")]];
        let outcomes = cluster.run(&dir.join("weft.tar"), [&steps[0], &steps[1]]).unwrap();
        cluster.down().unwrap();
        let text = fs::read_to_string(dir.join("calls")).unwrap().replace(&*dir.to_string_lossy(), "DIR");
        fs::remove_dir_all(&dir).unwrap();
        (text.lines().map(str::to_owned).collect(), outcomes)
    }

    #[test]
    fn one_machine_by_vagrant_runs_what_one_can() {
        let (calls, outcomes) = calls(Provider::Vagrant, &["6.1"], "one");
        let expected = [
            "vagrant up",
            "vagrant ssh-config weft-1",
            "scp -F DIR/ssh-weft-1 DIR/weft.tar weft-1:",
            "ssh -F DIR/ssh-weft-1 weft-1 sudo tar -x -C / -f weft.tar",
            "ssh -F DIR/ssh-weft-1 weft-1 uname -r",
            "ssh -F DIR/ssh-weft-1 weft-1 sudo sh /weft/phase-1 1",
            "scp -F DIR/ssh-weft-1 weft-1:/tmp/weft-out.tar DIR/weft-1-logs-1.tar",
            "vagrant destroy --force",
        ];
        assert_eq!(calls, expected);
        let [outcome] = outcomes.as_slice() else { panic!("one machine, one phase") };
        assert_eq!((outcome.name.as_str(), outcome.release.as_str()), ("vagrant 6.1", "6.1.0-50"));
        assert_eq!((outcome.runs[0].counts.passed, outcome.failure()), (1, None));
    }

    #[test]
    fn two_machines_by_lima_are_a_pair_and_the_newest_kernel_needs_a_second_start() {
        let (calls, outcomes) = calls(Provider::Lima, &["5.10", "newest"], "two");
        let expected = [
            "limactl start --tty=false --name=weft-1 DIR/weft-1.yaml",
            "limactl start --tty=false --name=weft-2 DIR/weft-2.yaml",
            "limactl stop weft-2",
            "limactl start --tty=false weft-2",
            "limactl list --format {{.SSHConfigFile}} weft-1",
            "limactl list --format {{.SSHConfigFile}} weft-2",
            "limactl delete --force weft-1 weft-2",
        ];
        assert_eq!(
            calls.iter().filter(|c| c.starts_with("limactl")).collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
        for phase in ["phase-1 1", "phase-1 2", "phase-2 1", "phase-2 2"] {
            let host = &phase[phase.len() - 1..];
            let call = format!("ssh -F /etc/ssh.config lima-weft-{host} sudo sh /weft/{phase}");
            assert_eq!(calls.iter().filter(|c| **c == call).count(), 1, "{call} in {calls:#?}");
        }
        assert_eq!(outcomes.iter().map(|o| o.runs.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);
    }

    #[test]
    fn a_machine_whose_tests_do_not_come_to_their_end_is_broken() {
        let ws = Workspace::find().unwrap();
        let find = |_: &str| Some(PathBuf::from("/bin/false"));
        let cluster =
            Cluster { ws: &ws, provider: Provider::Vagrant, find: &find, kernels: vec!["6.1"], dir: "/".into() };
        let access = Access { config: "/dev/null".into(), host: "weft-1".to_owned() };
        let outcome = cluster.tests(1, &access, "6.1.0", 1, &[Step::for_tests("packets", "pins")]);
        assert!(outcome.failure().unwrap().contains("ssh ended with Some(1)"));
        assert!(cluster.up().is_err());
    }

    #[test]
    fn a_missing_tool_is_named_with_its_cure() {
        let ws = Workspace::find().unwrap();
        let cluster = |provider, find| Cluster { ws: &ws, provider, find, kernels: vec!["6.1"], dir: "/".into() };
        let refusal = |provider| format!("{:#}", cluster(provider, &|_| None).require_tools().unwrap_err());
        assert!(refusal(Provider::Vagrant).contains("vagrant is missing: install it with a provider"));
        assert!(refusal(Provider::Lima).contains("limactl is missing: install Lima 2.0"));
        let no_ssh = |program: &str| (program == "vagrant").then(PathBuf::new);
        let text = format!("{:#}", cluster(Provider::Vagrant, &no_ssh).require_tools().unwrap_err());
        assert!(text.contains("ssh is missing"), "{text}");
    }

    #[test]
    fn the_pairs_script_gives_each_machine_its_address_and_its_peers() {
        let lists = Lists::read(&Workspace::find().unwrap()).unwrap();
        let pair = script(&lists, &[Step::for_tests("lab", "pair")], true);
        let at = |what: &str| pair.find(what).unwrap_or_else(|| panic!("no {what} in {pair}"));
        assert!(at("for m in virtio_pci ") < at("192.168.77.$1/24") && at("WEFT_VM_PEER_V4") < at("\nrun 0 lab/pair"));
        assert!(!script(&lists, &[], false).contains("192.168.77"));
    }

    #[test]
    fn limas_file_is_made_for_each_kernel() {
        let ws = Workspace::find().unwrap();
        let template = fs::read_to_string(ws.root.join(FILES).join("lima.yaml")).unwrap();
        for (kernel, image) in [("5.10", 11), ("6.1", 12), ("6.12", 13), ("newest", 13)] {
            let text = lima_of(&template, kernel).unwrap();
            assert!(text.contains(&format!("\nbase: template:_images/debian-{image}\n")), "{text}");
            assert!(text.contains(&format!("\n  kernel: \"{kernel}\"\n")), "{text}");
        }
        assert!(lima_of("", "5.10").is_err());
    }
}
