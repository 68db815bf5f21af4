//! `cargo xtask build`: the BPF object, then the programs that carry it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run,
    setup::{self, Need},
    ui::{self, Stage},
    workspace::{STATIC_TARGET, Workspace},
};

/// The flags of the BPF target: BTF out of full debug information, and the instruction set that every kernel from 5.10
/// on has.
const BPF_RUSTFLAGS: &str = r#"-Clink-arg=--btf -Cdebuginfo=2 -Ctarget-cpu=v3 --cfg bpf_target_arch="x86_64""#;
/// The largest plugin that we ship, in bytes: a container runtime starts it for every pod.
const PLUGIN_LIMIT: u64 = 2 << 20;
/// Our programs and the packages that they come from.
const PROGRAMS: [(&str, &str); 6] = [
    ("weft-agent", "cni-agent"),
    ("weft", "cni-agent"),
    ("weft-cni", "cni-plugin"),
    ("weft-lab", "lab"),
    ("weft-cluster", "cluster"),
    ("weft-bench", "bench"),
];

/// Build the BPF object, the agent, the weft command, the CNI plugin, the lab, the cluster and the bench.
///
/// The BPF object is built first and then put into the agent. All programs are linked statically, so that they run in
/// any container and in the virtual machines of `cargo xtask vm`. Prints each file with its size; a plugin of more than
/// 2 MiB is an error.
#[derive(clap::Args)]
pub struct Args {
    /// Optimised programs; this is the default
    #[arg(long, conflicts_with = "dev")]
    release: bool,
    /// Programs that compile faster, run slower, keep line numbers, and log every packet's verdict (with
    /// WEFT_LOG_LEVEL=debug) from the BPF programs
    #[arg(long)]
    dev: bool,
}

/// How programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As shipped.
    Release,
    /// For development.
    Dev,
}

impl Profile {
    /// The directory that cargo puts it in.
    pub fn dir(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    setup::ensure(ws, &[Need::Bpf])?;
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let stage = Stage::start("BPF object");
    let object = match profile {
        Profile::Release => bpf_object(ws)?,
        Profile::Dev => logging_object(ws)?,
    };
    stage.done(&size(&object)?);
    let stage = Stage::start(format!("programs ({})", profile.dir()));
    programs(ws, &object, profile)?;
    stage.done("");
    let mut rows = vec![vec![ws.show(&object).to_string(), size(&object)?]];
    for (program, _) in PROGRAMS {
        let file = ws.bin_dir(profile.dir()).join(program);
        rows.push(vec![ws.show(&file).to_string(), size(&file)?]);
    }
    print!("{}", ui::table(&["file", "size"], &rows));
    Ok(ExitCode::SUCCESS)
}

/// Builds everything that a verb runs, and says something only when there is something to do.
pub fn all(ws: &Workspace, profile: Profile) -> Result<Built> {
    let object = bpf_object(ws)?;
    programs(ws, &object, profile)?;
    Ok(Built { object, bin_dir: ws.bin_dir(profile.dir()) })
}

/// What was built.
pub struct Built {
    /// The BPF object.
    pub object: PathBuf,
    /// The directory with our programs.
    pub bin_dir: PathBuf,
}

/// A cargo command for the BPF target; `verb` is `build` or `clippy`.
pub fn bpf_cargo(ws: &Workspace, verb: &str) -> Command {
    let mut command = ws.cargo();
    command
        // The BPF target and build-std are unstable features; this lets the stable compiler take them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", BPF_RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", ws.target.join("bpf"))
        .args([verb, "-p", "cni-ebpf", "--bin", "weft-bpf", "--profile", "bpf"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"]);
    command
}

/// Builds the BPF object; gives its path.
pub fn bpf_object(ws: &Workspace) -> Result<PathBuf> {
    run::cargo(&mut bpf_cargo(ws, "build")).context("build the BPF object")?;
    let object = ws.target.join("bpf/bpfel-unknown-none/bpf/weft-bpf");
    if !object.exists() {
        bail!("cargo built the BPF object, but it is not at {}", object.display());
    }
    Ok(object)
}

/// Builds the BPF object that logs, beside the one that is shipped; gives its path.
fn logging_object(ws: &Workspace) -> Result<PathBuf> {
    let target = ws.target.join("bpf-log");
    let mut cargo = bpf_cargo(ws, "build");
    cargo.env("CARGO_TARGET_DIR", &target).args(["--features", "log"]);
    run::cargo(&mut cargo).context("build the BPF object that logs")?;
    Ok(target.join("bpfel-unknown-none/bpf/weft-bpf"))
}

/// Builds the agent a second time, with other layouts of some maps, for the tests of upgrades; gives the directory with it and the other
/// programs. It shares what both builds have in common with the first build, which is put in its place again.
pub fn other_layout(ws: &Workspace, built: &Built) -> Result<PathBuf> {
    const FEATURE: &str = "cni-agent/test-layout";
    let dir = ws.target.join("layout");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let copy = |from: &Path, name: &str| {
        // Beside it first: it may be running.
        let staged = dir.join(format!("new-{name}"));
        let copied = fs::copy(from, &staged).and_then(|_| fs::rename(&staged, dir.join(name)));
        copied.with_context(|| format!("copy {} to {}", from.display(), dir.display()))
    };
    let made = (|| {
        run::cargo(bpf_cargo(ws, "build").args(["--features", "test-layout"])).context("build the other BPF object")?;
        copy(&built.object, "weft-bpf")?;
        let mut command = ws.cargo();
        command.arg("build");
        embed(&mut command, &dir.join("weft-bpf"));
        // With the packages of the first build: what it needs of others is as it was then.
        select(&mut command);
        command.args(["--release", "--bin", "weft-agent", "--features", FEATURE]);
        run::cargo(&mut command).context("build the agent of the other layout")?;
        copy(&built.bin_dir.join("weft-agent"), "weft-agent")
    })();
    all(ws, Profile::Release)?;
    made?;
    copy(&built.bin_dir.join("weft"), "weft")?;
    copy(&built.bin_dir.join("weft-cni"), "weft-cni")?;
    Ok(dir)
}

/// Makes a cargo command link statically and embed the BPF object.
pub fn embed(command: &mut Command, object: &Path) {
    command
        .env("WEFT_BPF_OBJECT", object)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["--target", STATIC_TARGET]);
}

/// Makes cargo look at the packages of all programs: by those it chooses the features that everything is built with, and with others it
/// builds the agent once more.
fn select(command: &mut Command) {
    let mut packages: Vec<&str> = PROGRAMS.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    for package in packages {
        command.args(["-p", package]);
    }
}

fn programs(ws: &Workspace, object: &Path, profile: Profile) -> Result<()> {
    let mut command = ws.cargo();
    command.arg("build");
    embed(&mut command, object);
    select(&mut command);
    command.arg("--bins");
    match profile {
        Profile::Release => command.arg("--release"),
        Profile::Dev => command.args(["--features", "cni-agent/bpf-log"]),
    };
    run::cargo(&mut command).context("build the programs")?;
    let plugin = ws.bin_dir(profile.dir()).join("weft-cni");
    let bytes = fs::metadata(&plugin).with_context(|| format!("look at {}", plugin.display()))?.len();
    if profile == Profile::Release && bytes > PLUGIN_LIMIT {
        bail!(
            "the plugin has {bytes} bytes, and may have {PLUGIN_LIMIT}: `cargo tree -p cni-plugin` shows what it brings along"
        );
    }
    Ok(())
}

fn size(file: &Path) -> Result<String> {
    let bytes = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len();
    Ok(format!("{} KiB", bytes.div_ceil(1024)))
}
