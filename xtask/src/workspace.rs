//! Where things are: the workspace's root, the target directory, and the environment that tools are started with.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The target that our binaries and the tests for other kernels are built for, linked statically.
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Places of this checkout.
pub struct Workspace {
    /// The directory of the workspace's Cargo.toml.
    pub root: PathBuf,
    /// Where cargo puts artefacts; ours go into subdirectories of it.
    pub target: PathBuf,
}

impl Workspace {
    /// Finds the workspace: cargo names the crate's directory; without cargo it is searched upwards from here.
    pub fn find() -> Result<Self> {
        let start = match env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => env::current_dir().context("read the current directory")?,
        };
        let is_root = |dir: &&Path| {
            fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.lines().any(|l| l.trim() == "[workspace]"))
        };
        let Some(root) = start.ancestors().find(is_root).map(Path::to_owned) else {
            bail!("no Cargo workspace at or above {}: start this inside a checkout of Weft", start.display());
        };
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir().context("read the current directory")?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// A command that starts in the workspace's root, finds the tools that `setup` installs, and does not see what
    /// `cargo run` told this process about its own crate.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("PATH", search_path()).env("CARGO_TARGET_DIR", &self.target);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Cargo itself.
    pub fn cargo(&self) -> Command {
        self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Where binaries of a profile (`release`, `debug`) are.
    pub fn bin_dir(&self, profile: &str) -> PathBuf {
        self.target.join(STATIC_TARGET).join(profile)
    }

    /// A path as it is shown: relative to the root where it is below it.
    pub fn show<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// Where downloads are kept that all checkouts share: `WEFT_CACHE`, else `weft` in the user's cache directory.
pub fn cache() -> Result<PathBuf> {
    let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("WEFT_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("weft")))
        .or_else(|| var("HOME").map(|h| h.join(".cache/weft")))
        .context("no place to keep downloads: set WEFT_CACHE, XDG_CACHE_HOME or HOME")
}

/// Keeps other runs that want this lock waiting until the file is closed.
pub fn lock(file: &Path) -> Result<fs::File> {
    let open = || {
        fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
        let lock = fs::File::create(file)?;
        lock.lock()?;
        Ok::<_, std::io::Error>(lock)
    };
    open().with_context(|| format!("lock {}", file.display()))
}

/// Cargo's own directory of installed binaries.
pub fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo"))).map(|h| h.join("bin"))
}

/// PATH and the places that a plain shell often leaves out: cargo's binaries, Go's, the administrator's tools.
fn search_path() -> std::ffi::OsString {
    let mut dirs: Vec<PathBuf> = env::var_os("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default();
    let extra = ["/usr/local/go/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    for dir in cargo_bin().into_iter().chain(extra.map(PathBuf::from)) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    // Entries came out of split_paths or are ours, so none holds a separator.
    env::join_paths(dirs).unwrap_or_default()
}

/// The file that a program's name stands for, as `command` would find it.
pub fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|dir| dir.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Refuses to go on without root, and says how to come back.
pub fn require_root(what: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "{what} needs root (network namespaces, BPF): run it again as root, e.g. by `sudo -E env \"PATH=$PATH\"`"
        );
    }
    Ok(())
}
