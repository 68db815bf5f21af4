//! The system inside a virtual machine: an archive of our programs, a few tools and the modules they use, and its init.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{
    accel,
    cpio::Archive,
    kernel::Kernel,
    modules,
    suites::{self, Lists, Step},
};
use crate::{
    build::{self, Built},
    run,
    setup::is_static,
    ui,
    workspace::{Workspace, which},
};

/// Lines of init for the host begin so.
pub const MARK: &str = "weft-vm: ";

/// Lines of init that give a person a shell instead of running tests.
pub const SHELL: &str = "echo 'Programs are in /weft/bin, tests in /weft/tests; `poweroff` or Ctrl-D ends.'\n\
    export PATH=/weft/bin:$PATH TERM=vt100; cd /weft; setsid cttyhack bash; poweroff";

/// Our programs in the guest.
const PROGRAMS: [&str; 4] = ["weft-agent", "weft", "weft-cni", "weft-lab"];

/// Where our programs are on the host.
pub struct Programs {
    /// All of them.
    pub directory: PathBuf,
    /// The agent of the second build and what goes with it.
    pub second: Option<PathBuf>,
}

impl Programs {
    /// Of these builds; the second one is made.
    pub fn of(ws: &Workspace, built: &Built, second: bool) -> Result<Self> {
        let second = second.then(|| build::other_layout(ws, built)).transpose()?;
        Ok(Self { directory: built.bin_dir.clone(), second })
    }

    /// The files that are copied, each with its place under /weft.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let second = self.second.iter().map(|dir| (dir.join("weft-agent"), "second/weft-agent".to_owned()));
        PROGRAMS.iter().map(|name| (self.directory.join(name), format!("bin/{name}"))).chain(second)
    }

    /// Links under /weft, and to where: the second build is another agent, and the rest of the first one.
    pub fn links(&self) -> impl Iterator<Item = (String, String)> {
        let names = self.second.iter().flat_map(|_| ["weft", "weft-cni"]);
        names.map(|name| (format!("second/{name}"), format!("../bin/{name}")))
    }
}

/// Seconds that one test binary may take in the guest.
const STEP_LIMIT: u32 = 20 * 60;

/// What machines of all kernels have in common, packed once.
pub struct Image {
    file: PathBuf,
    modules: Vec<String>,
    steps: Vec<Step>,
}

impl Image {
    /// Packs tools and test binaries, and our programs where they are needed.
    pub fn pack(
        ws: &Workspace,
        lists: &Lists,
        programs: Option<&Programs>,
        steps: Vec<Step>,
        file: PathBuf,
    ) -> Result<Self> {
        let mut archive = Archive::default();
        for dir in ["proc", "sys", "dev", "tmp", "run", "etc", "root", "out", "var/tmp"] {
            archive.dir(dir);
        }
        archive.char_device("dev/console", 5, 1);
        archive.link("var/run", "../run");
        archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
        archive.file("etc/group", 0o644, b"root:x:0:\n".to_vec());
        archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n".to_vec());
        let busybox = which("busybox").context("busybox is missing")?;
        archive.file("bin/busybox", 0o755, read(&busybox)?);
        // The usual one asks an init that is more than a script.
        archive.file("sbin/poweroff", 0o755, b"#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n".to_vec());
        // busybox's own shell would run its built-in `ip` and `ping` before the real ones.
        let shell = which("dash").context("dash is missing")?;
        add_program(ws, &mut archive, &shell, "bin/dash")?;
        archive.link("bin/sh", "dash");
        for tool in &lists.tools {
            let file = which(tool).with_context(|| format!("{tool} is missing"))?;
            add_program(ws, &mut archive, &file, &format!("sbin/{tool}"))?;
        }
        for (from, to) in programs.iter().flat_map(|p| p.files()) {
            add_ours(ws, &mut archive, &from, &format!("weft/{to}"), &file)?;
        }
        for (path, to) in programs.iter().flat_map(|p| p.links()) {
            archive.link(&format!("weft/{path}"), &to);
        }
        for step in &steps {
            add_ours(ws, &mut archive, &step.binary.file, &format!("weft/tests/{}", step.name()), &file)?;
        }
        write(&archive, &fs::File::create(&file).with_context(|| format!("create {}", file.display()))?)?;
        Ok(Self { file, modules: lists.modules.clone(), steps })
    }

    /// The same for so many machines, which share the work.
    pub fn deal(&self, machines: usize) -> Vec<Self> {
        let part = |steps| Self { file: self.file.clone(), modules: self.modules.clone(), steps };
        suites::deal(&self.steps, machines).into_iter().map(part).collect()
    }

    /// What the machines run.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The file system of one machine: what all have, its kernel's modules, and its init with lines of its own, which run
    /// before the first test. Linux unpacks archives one after another.
    pub fn complete(&self, ws: &Workspace, kernel: &Kernel, setup: &str, out: &Path) -> Result<()> {
        fs::copy(&self.file, out).with_context(|| format!("create {}", out.display()))?;
        let mut archive = Archive::default();
        add_modules(ws, &mut archive, kernel, &self.modules)?;
        archive.file("init", 0o755, init(&self.steps, setup).into_bytes());
        let file = fs::File::options().append(true).open(out).with_context(|| format!("open {}", out.display()))?;
        write(&archive, &file)
    }
}

/// Packs a system that says that it is up and ends.
pub fn pack_probe(out: &Path) -> Result<()> {
    let mut archive = Archive::default();
    archive.char_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, read(&which("busybox").context("busybox is missing")?)?);
    let init = format!("#!/bin/busybox sh\necho '{}'\n{OFF}\n", accel::UP);
    archive.file("init", 0o755, init.into_bytes());
    write(&archive, &fs::File::create(out).with_context(|| format!("create {}", out.display()))?)
}

fn write(archive: &Archive, file: &fs::File) -> Result<()> {
    archive.write(BufWriter::new(file)).context("write a file system for machines")?;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// A program of ours: static, or it would find no libraries; without debug information, as memory is scarce there.
fn add_ours(ws: &Workspace, archive: &mut Archive, file: &Path, to: &str, scratch: &Path) -> Result<()> {
    if !is_static(file) {
        bail!("{} is not linked statically: it could not run in the guest", file.display());
    }
    let stripped = scratch.with_extension("stripped");
    run::capture(ws.command("strip").arg("-o").arg(&stripped).arg(file))?;
    archive.file(to, 0o755, read(&stripped)?);
    fs::remove_file(&stripped).with_context(|| format!("remove {}", stripped.display()))
}

/// A program of the host, with the shared libraries that it names.
fn add_program(ws: &Workspace, archive: &mut Archive, file: &Path, to: &str) -> Result<()> {
    archive.file(to, 0o755, read(file)?);
    if is_static(file) {
        return Ok(());
    }
    let listed = run::capture(ws.command("ldd").arg(file))?;
    for library in libraries(&listed) {
        if !archive.has(library) {
            archive.file(library, 0o755, read(Path::new(library))?);
        }
    }
    Ok(())
}

/// The files in the output of `ldd`: `name => /path (address)`, or `/path (address)` for the loader.
fn libraries(listed: &str) -> Vec<&str> {
    listed.lines().filter_map(|l| l.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

fn add_modules(ws: &Workspace, archive: &mut Archive, kernel: &Kernel, wanted: &[String]) -> Result<()> {
    let text = |name: &str| {
        let file = kernel.modules.join(name);
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    // Kernels from 7.x on come without the list of what is built in; then nothing can be said to be missing.
    let built_in = text("modules.builtin").ok();
    let order = modules::order(&text("modules.dep")?, built_in.as_deref().unwrap_or_default(), wanted);
    if built_in.is_some() && !order.missing.is_empty() {
        ui::note(&format!("kernel {} has no {}", kernel.release, order.missing.join(", ")));
    }
    for (n, path) in order.load.iter().enumerate() {
        let file = kernel.modules.join(path);
        let name = path.rsplit('/').next().unwrap_or(path).split(".ko").next().unwrap_or(path);
        let unpack = match file.extension().and_then(|e| e.to_str()) {
            Some("xz") => Some("xz"),
            Some("zst") => Some("zstd"),
            Some("gz") => Some("gzip"),
            _ => None,
        };
        let data = match unpack {
            None => read(&file)?,
            Some(program) => {
                let output =
                    ws.command(program).arg("-dc").arg(&file).output().with_context(|| format!("start {program}"))?;
                if !output.status.success() {
                    bail!("{program} cannot unpack {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
                }
                output.stdout
            }
        };
        archive.file(&format!("modules/{n:03}-{name}.ko"), 0o644, data);
    }
    Ok(())
}

/// What tests find in their environment.
const ENVIRONMENT: &str =
    "WEFT_BIN_DIR=/weft/bin WEFT_TEST_LAYOUT_DIR=/weft/second WEFT_VM=1 WEFT_CORPUS=150 RUST_BACKTRACE=1";

/// Gathers the kernel's messages and the agents' logs in /out.
pub const GATHER: &str = "dmesg >/out/dmesg.txt\n\
    for f in /run/weft-lab/*/agent.log; do [ -e $f ] && cp $f /out/$(basename $(dirname $f))-agent.log; done\n";

/// Lines of shell that run the steps one after another, each between its marks.
pub fn runs(steps: &[Step]) -> String {
    let mut script = format!(
        "export {ENVIRONMENT}\n\
         run() {{ n=$1; t=$2; shift 2; echo \"{MARK}begin $n\"; \
         timeout -k 5 {STEP_LIMIT} /weft/tests/$t --show-output --test-threads=1 \"$@\" $WEFT_VM_TESTS 2>&1; echo \"{MARK}end $n $?\"; }}\n"
    );
    for (n, step) in steps.iter().enumerate() {
        script.push_str(&format!("run {n} {} {}\n", step.name(), step.filter));
    }
    script
}

/// Ends the machine. QEMU takes a moment to obey, in which the first process must not end: the kernel would panic.
const OFF: &str = "/bin/busybox poweroff -f; exec /bin/busybox sleep 60";

/// The guest's first and only script: mounts, modules, tests one after another, results, off.
fn init(steps: &[Step], setup: &str) -> String {
    let runs = runs(steps);
    // The results go back as an archive on the first disk: Debian's cloud kernels have no port to hand QEMU an exit code.
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin 2>/dev/null # names that are taken stay as they are\n\
         export PATH=/sbin:/bin HOME=/root {ENVIRONMENT}\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mkdir -p /run/netns /dev/pts\n\
         mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cg /sys/fs/cgroup; mount -t tracefs t /sys/kernel/tracing\n\
         for m in /modules/*; do insmod $m || echo \"insmod $m failed\"; done\n\
         ip link set lo up; hostname guest\n\
         {setup}\n\
         echo \"{MARK}up: kernel $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s\"\n\
         {runs}{GATHER}touch /out/done; tar -cf /dev/vda -C /out .; sync; {OFF}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_libraries_and_the_loader() {
        let listed = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(libraries(listed), ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn init_sets_up_runs_the_steps_in_order_and_powers_off() {
        let steps = [Step::for_tests("lab", "two_pods"), Step::for_tests("packets", "pins")];
        let script = init(&steps, "export WEFT_VM_MACHINE=1");
        let at = |what: &str| script.find(what).unwrap_or_else(|| panic!("no {what} in {script}"));
        assert!(at("WEFT_VM_MACHINE=1") < at("\nrun 0 lab/two_pods"));
        assert!(at("\nrun 0 lab/two_pods") < at("\nrun 1 packets/pins") && at("\nrun 1") < at("poweroff"));
    }
}
