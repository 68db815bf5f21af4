//! `cargo xtask setup`: installs what the other verbs need and what is missing.
//!
//! What is there is found by looking at the files and asking the tools for their versions, each time: nothing is
//! remembered that could be wrong tomorrow.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use object::read::elf::{ElfFile64, ProgramHeader as _};

use crate::{
    deb::Suite,
    promtool,
    run::{self, Ended, Read},
    ui::{self, Stage},
    workspace::{self, Workspace, which},
};

/// The linker for BPF objects. A newer one may generate other code: move on only with the verifier's table at hand.
const BPF_LINKER: &str = "0.10.3";
/// The checker of licences, sources and advisories.
const CARGO_DENY: &str = "0.20.2";
/// Debian suites that may hold the sources of the standard library for our rustc, likeliest first.
const RUST_SRC_SUITES: [&str; 5] = ["trixie-backports", "bookworm-backports", "trixie", "forky", "sid"];
/// Written beside library sources that came from a Debian package: the version that they are.
const RUST_SRC_MARK: &str = ".weft-rust-src";

/// Install what is missing to build, check and test Weft.
///
/// Installs, each only when missing: rust-src of exactly rustc's version (rustup component, else from a Debian suite that
/// has it), bpf-linker and cargo-deny (pinned), and the distribution's packages that the lab, the tests and the virtual
/// machines use. Every verb does this for what it needs itself, so running it by hand is never necessary; it is useful
/// to prepare a machine. Takes well under a second when nothing is missing. Installing packages needs root.
#[derive(clap::Args)]
pub struct Args {}

/// What a verb is about to do, and so needs tools for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Build the BPF object.
    Bpf,
    /// Check sources.
    Lint,
    /// Run the lab, packet tests and benches on this machine.
    Lab,
    /// Boot other kernels.
    Vm,
    /// Build the CNI project's own programs.
    Reference,
    /// Run container runtimes.
    Clients,
    /// Fuzz.
    Fuzz,
    /// Check the files of Vagrant and Lima.
    Providers,
    /// Run Kubernetes.
    Cluster,
    /// Run upstream's tests in it.
    Conformance,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Bpf,
        Self::Lint,
        Self::Lab,
        Self::Vm,
        Self::Reference,
        Self::Clients,
        Self::Fuzz,
        Self::Providers,
        Self::Cluster,
        Self::Conformance,
    ];
}

/// A program of the distribution: what is looked for, the Debian package that has it, and what it is needed for.
struct Tool {
    program: &'static str,
    package: &'static str,
    needs: &'static [Need],
}

const TOOLS: [Tool; 34] = [
    Tool { program: "ip", package: "iproute2", needs: &[Need::Lab, Need::Vm, Need::Cluster] },
    Tool { program: "tc", package: "iproute2", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "ping", package: "iputils-ping", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "tracepath", package: "iputils-tracepath", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "traceroute", package: "traceroute", needs: &[Need::Lab, Need::Vm] },
    // Sends by its helper mtr-packet, of the same package.
    Tool { program: "mtr", package: "mtr-tiny", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "bpftool", package: "bpftool", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "ethtool", package: "ethtool", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "tcpdump", package: "tcpdump", needs: &[Need::Lab] },
    Tool { program: "iptables", package: "iptables", needs: &[Need::Lab] },
    Tool { program: "nft", package: "nftables", needs: &[Need::Lab] },
    Tool { program: "modprobe", package: "kmod", needs: &[Need::Lab] },
    Tool { program: "strace", package: "strace", needs: &[Need::Lab, Need::Vm] },
    Tool { program: "depmod", package: "kmod", needs: &[Need::Vm] },
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", needs: &[Need::Vm] },
    Tool { program: "busybox", package: "busybox-static", needs: &[Need::Vm, Need::Clients] },
    Tool { program: "dash", package: "dash", needs: &[Need::Vm, Need::Conformance] },
    // Go into the image that upstream's tests call them in.
    Tool { program: "curl", package: "curl", needs: &[Need::Conformance] },
    Tool { program: "nc.openbsd", package: "netcat-openbsd", needs: &[Need::Conformance] },
    Tool { program: "ldd", package: "libc-bin", needs: &[Need::Conformance] },
    Tool { program: "xz", package: "xz-utils", needs: &[Need::Vm] },
    Tool { program: "strip", package: "binutils", needs: &[Need::Vm] },
    Tool { program: "dpkg-deb", package: "dpkg", needs: &[Need::Vm] },
    Tool { program: "podman", package: "podman", needs: &[Need::Clients] },
    Tool { program: "containerd", package: "containerd", needs: &[Need::Clients, Need::Cluster] },
    Tool { program: "ctr", package: "containerd", needs: &[Need::Clients, Need::Cluster] },
    Tool { program: "runc", package: "runc", needs: &[Need::Clients, Need::Cluster] },
    // A machine of its own for each test of a container runtime.
    Tool { program: "unshare", package: "util-linux", needs: &[Need::Clients, Need::Providers, Need::Cluster] },
    Tool { program: "nsenter", package: "util-linux", needs: &[Need::Cluster] },
    Tool { program: "openssl", package: "openssl", needs: &[Need::Cluster] },
    Tool { program: "setpriv", package: "util-linux", needs: &[Need::Clients, Need::Vm] },
    Tool { program: "cc", package: "gcc", needs: &[Need::Bpf] },
    Tool { program: "vagrant", package: "vagrant", needs: &[Need::Providers] },
    Tool { program: "c++", package: "g++", needs: &[Need::Fuzz] },
];

/// The verb: installs everything and says what is there.
pub fn main(ws: &Workspace, _: &Args) -> Result<ExitCode> {
    let stage = Stage::start("setup");
    ensure(ws, &Need::ALL)?;
    promtool::path(ws).context("promtool, which checks the metrics, is missing: put that of Prometheus on PATH")?;
    stage.done(&format!(
        "rust-src, bpf-linker {BPF_LINKER}, cargo-deny {CARGO_DENY}, distribution packages, promtool, Go: all there"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Installs what `needs` asks for and is missing. Says nothing when nothing is.
pub fn ensure(ws: &Workspace, needs: &[Need]) -> Result<()> {
    packages(ws, needs)?;
    if needs.contains(&Need::Bpf) || needs.contains(&Need::Lint) {
        rust_src(ws)?;
        cargo_tool(ws, "bpf-linker", BPF_LINKER, "links the BPF object")?;
    }
    if needs.contains(&Need::Lint) {
        components(ws)?;
        cargo_tool(ws, "cargo-deny", CARGO_DENY, "checks licences and sources of dependencies")?;
    }
    if needs.iter().any(|n| matches!(n, Need::Reference | Need::Cluster)) && which("go").is_none() {
        bail!(
            "Go is missing: it builds Kubernetes, cnitool and the CNI project's plugins for the tests. Install Go 1.25 or newer and put it on PATH"
        );
    }
    Ok(())
}

/// The packages whose programs are missing, each once.
fn missing_packages(needs: &[Need], present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    for tool in TOOLS.iter().filter(|t| t.needs.iter().any(|n| needs.contains(n))) {
        if !present(tool.program) && !missing.contains(&tool.package) {
            missing.push(tool.package);
        }
    }
    missing
}

/// Whether a program is there, in the form that we need.
fn present(program: &str) -> bool {
    let Some(file) = which(program) else { return false };
    // A dynamic busybox would find no libraries in the virtual machine.
    program != "busybox" || is_static(&file)
}

/// Whether an ELF file asks for no dynamic loader.
pub fn is_static(file: &Path) -> bool {
    let Ok(data) = fs::read(file) else { return false };
    let Ok(elf) = ElfFile64::<object::Endianness>::parse(&*data) else { return false };
    elf.elf_program_headers().iter().all(|h| h.p_type(elf.endian()) != object::elf::PT_INTERP)
}

fn packages(ws: &Workspace, needs: &[Need]) -> Result<()> {
    let missing = missing_packages(needs, present);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if which("apt-get").is_none() {
        bail!(
            "missing: {list} (Debian's names), and there is no apt-get here: install them with this distribution's means"
        );
    }
    if !workspace::is_root() {
        bail!(
            "missing packages: {list}. Install them by `sudo apt-get install {list}`, or run `cargo xtask setup` as root"
        );
    }
    let stage = Stage::start(format!("install packages: {list}"));
    let apt = || {
        let mut command = ws.command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "Dpkg::Use-Pty=0", "-o", "Acquire::Retries=3"]);
        command
    };
    let mut log = String::new();
    let mut go = |command: &mut Command| -> Result<()> {
        let ended = run::stream(command, Read::Both, Duration::from_secs(1800), |line| {
            if line.starts_with("Get:") || line.starts_with("Setting up ") {
                eprintln!("    {line}");
            }
            log.push_str(line);
            log.push('\n');
        })?;
        if ended != Ended::Well {
            bail!("`{}` failed:\n{}", run::show(command), run::tail(&log, 12));
        }
        Ok(())
    };
    let cure = || {
        format!("could not install {list}: check apt's sources and the network, or install by hand and run this again")
    };
    go(apt().arg("update")).with_context(cure)?;
    go(apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing)).with_context(cure)?;
    let still = missing_packages(needs, present);
    if !still.is_empty() {
        bail!("{} installed without error, but their programs are still missing", still.join(" "));
    }
    stage.done("");
    Ok(())
}

/// rustc's release, such as `1.95.0`.
fn rustc_release(ws: &Workspace) -> Result<String> {
    let text = run::capture(ws.command("rustc").arg("-vV")).context("rustc is missing: install Rust by rustup")?;
    let release = text.lines().find_map(|l| l.strip_prefix("release: ")).map(str::to_owned);
    release.ok_or_else(|| anyhow!("`rustc -vV` names no release"))
}

fn sysroot(ws: &Workspace) -> Result<PathBuf> {
    let text = run::capture(ws.command("rustc").args(["--print", "sysroot"]))
        .context("rustc is missing: install Rust by rustup")?;
    Ok(PathBuf::from(text.trim()))
}

/// The standard library's sources, of exactly rustc's version: `-Zbuild-std=core` compiles them for BPF.
fn rust_src(ws: &Workspace) -> Result<()> {
    let sysroot = sysroot(ws)?;
    let library = sysroot.join("lib/rustlib/src/rust/library");
    let mark = fs::read_to_string(library.join(RUST_SRC_MARK)).ok();
    let there = library.join("core/src/lib.rs").exists();
    // Sources from rustup change together with rustc; those from a package are asked for their version.
    if there && mark.is_none() {
        return Ok(());
    }
    let release = rustc_release(ws)?;
    if there && mark.as_deref() == Some(release.as_str()) {
        return Ok(());
    }
    let stage = Stage::start(format!("install rust-src {release}"));
    let by_rustup = || -> Result<()> {
        let mut command = ws.command("rustup");
        // The toolchain is named by its directory, as rustup knows it.
        if let Some(name) = sysroot.file_name() {
            command.args(["component", "add", "rust-src", "--toolchain"]).arg(name);
        }
        run::capture(&mut command)?;
        Ok(())
    };
    if mark.is_none() && which("rustup").is_some() {
        match by_rustup() {
            Ok(()) if library.join("core/src/lib.rs").exists() => {
                stage.done("rustup component");
                return Ok(());
            }
            Ok(()) => ui::note("rustup added rust-src, but not where rustc looks for it; trying Debian's package"),
            Err(e) => ui::note(&format!("rustup has no rust-src for us ({e:#}); trying Debian's package")),
        }
    }
    let from = rust_src_from_debian(ws, &release, &library).with_context(|| {
        format!(
            "rust-src {release} is missing: run `rustup component add rust-src`, or put the library's sources at {}",
            library.display()
        )
    })?;
    stage.done(&from);
    Ok(())
}

fn rust_src_from_debian(ws: &Workspace, release: &str, library: &Path) -> Result<String> {
    let mut asked = Vec::new();
    for name in RUST_SRC_SUITES {
        let suite = Suite::new(ws, name)?;
        // A suite that cannot be had is one of several; the reason is shown if none has the package.
        match suite.update().and_then(|()| suite.versions("rust-src")) {
            Err(e) => asked.push(format!("{name}: {e:#}")),
            Ok(versions) => match versions.iter().find(|v| v.starts_with(&format!("{release}+"))) {
                None => asked.push(format!(
                    "{name}: has {}",
                    if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
                )),
                Some(version) => {
                    let unpacked = ws.target.join("setup/rust-src");
                    suite.unpack(&[format!("rust-src={version}")], &unpacked)?;
                    let source = unpacked.join(format!("usr/src/rustc-{release}/library"));
                    let parent = library.parent().context("the library's directory has a parent")?;
                    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
                    if library.exists() {
                        fs::remove_dir_all(library).with_context(|| format!("remove {}", library.display()))?;
                    }
                    run::capture(ws.command("cp").arg("-a").arg(&source).arg(library))?;
                    fs::write(library.join(RUST_SRC_MARK), release)
                        .with_context(|| format!("mark {}", library.display()))?;
                    fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
                    return Ok(format!("Debian package {version} of {name}"));
                }
            },
        }
    }
    bail!("no Debian suite has it: {}", asked.join("; "))
}

/// rustfmt and clippy, which are components of the toolchain.
fn components(ws: &Workspace) -> Result<()> {
    let bin = sysroot(ws)?.join("bin");
    for (program, component) in [("rustfmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !bin.join(program).exists() && which(program).is_none() {
            let stage = Stage::start(format!("install {component}"));
            run::capture(ws.command("rustup").args(["component", "add", component]))
                .with_context(|| format!("{component} is missing: run `rustup component add {component}`"))?;
            stage.done("rustup component");
        }
    }
    Ok(())
}

/// A tool that cargo installs, at exactly one version.
fn cargo_tool(ws: &Workspace, name: &str, version: &str, purpose: &str) -> Result<()> {
    let installed = || match which(name) {
        None => None,
        Some(file) => run::capture(ws.command(file).arg("--version")).ok(),
    };
    if installed().is_some_and(|text| text.trim() == format!("{name} {version}")) {
        return Ok(());
    }
    let stage = Stage::start(format!("install {name} {version} ({purpose}; takes some minutes)"));
    let mut command = ws.cargo();
    // Built outside of our target directory and without our flags, so that neither disturbs the other.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").args([
        "install",
        "--locked",
        "--force",
        name,
        "--version",
        version,
    ]);
    run::cargo(&mut command).with_context(|| {
        format!("{name} {version} is missing: run `cargo install --locked {name} --version {version}`")
    })?;
    match installed() {
        Some(text) if text.trim() == format!("{name} {version}") => {}
        Some(text) => {
            bail!("{name} {version} was installed, but PATH finds `{}` before it: remove that one", text.trim())
        }
        None => bail!("{name} {version} was installed, but is not found: put cargo's bin directory on PATH"),
    }
    stage.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_missing_package_once_and_only_for_the_needs() {
        let none = |_: &str| false;
        assert_eq!(missing_packages(&[Need::Bpf], none), ["gcc"]);
        let lab = missing_packages(&[Need::Lab], none);
        assert_eq!(lab.iter().filter(|p| **p == "iproute2").count(), 1);
        assert!(!lab.contains(&"qemu-system-x86"));
        assert!(missing_packages(&Need::ALL, |_| true).is_empty());
    }

    #[test]
    fn tells_a_dynamic_file_from_a_static_one() {
        assert!(!is_static(&std::env::current_exe().unwrap()), "native tests are linked dynamically");
        assert!(!is_static(Path::new("/dev/null")), "no ELF file at all");
    }
}
