//! The system inside a virtual machine: an archive of our programs, a few tools and the modules they use, and its init.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{Plan, cpio::Archive, kernel::Kernel, modules};
use crate::{
    build::Built,
    run,
    setup::is_static,
    test::{TestBinary, count_tests},
    ui,
    workspace::{Workspace, which},
};

/// Lines of init for the host begin so.
pub const MARK: &str = "weft-vm: ";

/// The lab's tests that are run in a machine: those of packets' ways, and of what else is on a node.
const LAB_TESTS: [&str; 10] =
    ["two_pods", "two_nodes", "paths", "mtu", "neighbours", "moves", "offloads", "icmp", "coexist", "doctor"];

/// Modules that disks, the console's luck and our datapath may need, in a sensible order; their own needs are added.
const MODULES: [&str; 21] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_rng",
    "virtio_net",
    "ipv6",
    "veth",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "bridge",
    "dummy",
    "tun",
    "overlay",
    "nf_tables",
    "nf_nat",
    "nft_chain_nat",
    "nft_masq",
    "8021q",
];

/// Tools of the host that tests and people use in the guest; their shared libraries come along.
const TOOLS: [&str; 9] = ["ip", "tc", "bpftool", "ping", "ethtool", "tracepath", "traceroute", "mtr", "mtr-packet"];

/// Seconds that one test binary may take in the guest.
const STEP_LIMIT: u32 = 20 * 60;

/// A test binary to run in the guest.
pub struct Step {
    /// Its name in tables.
    pub name: String,
    file: PathBuf,
    args: Vec<String>,
}

impl Step {
    /// A step that is never run.
    #[cfg(test)]
    pub fn for_tests(name: &str) -> Self {
        Self { name: name.to_owned(), file: PathBuf::new(), args: Vec::new() }
    }
}

/// Chooses the test binaries, and the tests in them.
pub fn steps(ws: &Workspace, plan: Plan, binaries: &[TestBinary]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for binary in binaries {
        let filter = match (binary.package.as_str(), plan) {
            ("packets", Plan::Tests) => "",
            ("packets", Plan::Verifier) => "verified",
            ("lab", Plan::Tests) if LAB_TESTS.contains(&binary.name.as_str()) => "",
            _ => continue,
        };
        if count_tests(ws, binary, filter)? == 0 {
            continue;
        }
        let mut args = vec!["--show-output".to_owned(), "--test-threads=1".to_owned()];
        if !filter.is_empty() {
            args.push(filter.to_owned());
        }
        steps.push(Step { name: format!("{}/{}", binary.package, binary.name), file: binary.file.clone(), args });
    }
    for package in if plan == Plan::Tests { ["packets", "lab"].as_slice() } else { &["packets"] } {
        if !steps.iter().any(|s| s.name.starts_with(package)) {
            bail!("tests/{package} has no test to run in a virtual machine");
        }
    }
    Ok(steps)
}

/// Packs the system and gives its size in bytes.
pub fn pack(ws: &Workspace, kernel: &Kernel, plan: Plan, built: &Built, steps: &[Step], out: &Path) -> Result<u64> {
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
    // busybox's own shell would run its built-in `ip` and `ping` before the real ones.
    let shell = which("dash").context("dash is missing")?;
    add_program(ws, &mut archive, &shell, "bin/dash")?;
    archive.link("bin/sh", "dash");
    for tool in TOOLS {
        let file = which(tool).with_context(|| format!("{tool} is missing"))?;
        add_program(ws, &mut archive, &file, &format!("sbin/{tool}"))?;
    }
    // To load programs the test binary is enough.
    let programs: &[&str] = if plan == Plan::Tests { &["weft-agent", "weft", "weft-cni", "weft-lab"] } else { &[] };
    for program in programs {
        add_ours(ws, &mut archive, &built.bin_dir.join(program), &format!("weft/bin/{program}"), out)?;
    }
    for (n, step) in steps.iter().enumerate() {
        add_ours(ws, &mut archive, &step.file, &format!("weft/tests/{n}"), out)?;
    }
    add_modules(ws, &mut archive, kernel)?;
    archive.file("init", 0o755, init(steps).into_bytes());
    let file = fs::File::create(out).with_context(|| format!("create {}", out.display()))?;
    archive.write(BufWriter::new(file)).with_context(|| format!("write {}", out.display()))
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

fn add_modules(ws: &Workspace, archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let text = |name: &str| {
        let file = kernel.modules.join(name);
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    // Kernels from 7.x on come without the list of what is built in; then nothing can be said to be missing.
    let built_in = text("modules.builtin").ok();
    let order = modules::order(&text("modules.dep")?, built_in.as_deref().unwrap_or_default(), &MODULES);
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

/// The guest's first and only script: mounts, modules, tests one after another, results, off.
fn init(steps: &[Step]) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin 2>/dev/null # names that are taken stay as they are\n\
         export PATH=/sbin:/bin HOME=/root WEFT_BIN_DIR=/weft/bin WEFT_VM=1 WEFT_CORPUS=150 RUST_BACKTRACE=1\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mkdir -p /run/netns /dev/pts\n\
         mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cg /sys/fs/cgroup; mount -t tracefs t /sys/kernel/tracing\n\
         for m in /modules/*; do insmod $m || echo \"insmod $m failed\"; done\n\
         ip link set lo up; hostname guest\n\
         echo \"{MARK}up: kernel $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s\"\n\
         run() {{ n=$1; shift; echo \"{MARK}begin $n\"; timeout -k 5 {STEP_LIMIT} /weft/tests/$n \"$@\" 2>&1; echo \"{MARK}end $n $?\"; }}\n"
    );
    for (n, step) in steps.iter().enumerate() {
        script.push_str(&format!("run {n} {}\n", step.args.join(" ")));
    }
    // The results go back as an archive on the first disk: Debian's cloud kernels have no port to hand QEMU an exit code.
    script.push_str(
        "dmesg >/out/dmesg.txt\n\
         for f in /run/weft-lab/*/agent.log; do [ -e $f ] && cp $f /out/$(basename $(dirname $f))-agent.log; done\n\
         touch /out/done; tar -cf /dev/vda -C /out .; sync; poweroff -f\n",
    );
    script
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
    fn init_runs_the_steps_in_order_and_powers_off() {
        let mut steps = [Step::for_tests("a"), Step::for_tests("b")];
        steps[1].args = vec!["two_pods".to_owned()];
        let script = init(&steps);
        let at = |what: &str| script.find(what).unwrap_or_else(|| panic!("no {what} in {script}"));
        assert!(at("\nrun 0") < at("\nrun 1 two_pods") && at("\nrun 1") < at("poweroff"));
    }
}
