//! The emulator: without KVM the tests' time is mostly its own, and QEMU 10 took a sixth less of it, on 5.10, than the 7.2 of Debian 12. So there a newer one
//! is unpacked beside the installed one, of packages that Debian builds for the same release, as other kernels are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    deb::{self, Suite},
    run,
    ui::{self, Stage},
    workspace::{self, Workspace},
};

/// What is called where nothing newer is to be had.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// The release whose own one is slow, and the suite with a newer one.
const RELEASE: &str = "bookworm";
const SUITE: &str = "bookworm-backports";
/// The packages that a machine of ours takes something from; libraries are those that the installed one brought.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
/// Firmware: in the packages, and what others installed, such as a network card's.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// An emulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// Where it was unpacked; `None`: the installed one.
    root: Option<PathBuf>,
}

impl Emulator {
    /// The fastest that is to be had. What hinders that is said, and the installed one serves.
    pub fn get(ws: &Workspace) -> Self {
        if deb::codename().as_deref() != Some(RELEASE) {
            return Self { root: None };
        }
        let root = unpacked(ws).and_then(|root| {
            let emulator = Self { root: Some(root.clone()) };
            run::capture(emulator.command(ws).arg("--version")).context("start it")?;
            Ok(root)
        });
        let root = root.inspect_err(|e| ui::note(&format!("machines take longer, by the installed QEMU: {e:#}"))).ok();
        Self { root }
    }

    /// The program, which finds its firmware.
    pub fn program(&self) -> PathBuf {
        self.root.as_ref().map_or_else(|| PROGRAM.into(), |root| root.join("usr/bin").join(PROGRAM))
    }

    /// Its first arguments.
    pub fn arguments(&self) -> Vec<PathBuf> {
        let Some(root) = &self.root else { return Vec::new() };
        let places =
            FIRMWARE.iter().map(|dir| root.join(dir)).chain(FIRMWARE.iter().map(|dir| Path::new("/").join(dir)));
        places.flat_map(|place| ["-L".into(), place]).collect()
    }

    fn command(&self, ws: &Workspace) -> Command {
        let mut command = ws.command(self.program());
        command.args(self.arguments());
        command
    }
}

/// Where the packages are unpacked, now or before.
fn unpacked(ws: &Workspace) -> Result<PathBuf> {
    let dir = workspace::cache()?.join("qemu");
    let _alone = workspace::lock(&dir.join(".lock"))?;
    let kept = dir.join(SUITE);
    if kept.exists() {
        return Ok(kept);
    }
    let stage = Stage::start(format!("unpack QEMU of {SUITE}"));
    let suite = Suite::new(ws, SUITE)?;
    suite.update()?;
    let unfinished = dir.join(".unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    suite.unpack(&PACKAGES.map(str::to_owned), &unfinished)?;
    fs::rename(&unfinished, &kept).with_context(|| format!("keep {}", kept.display()))?;
    stage.done("");
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_one_looks_for_its_own_firmware_first() {
        let emulator = Emulator { root: Some("/c/q".into()) };
        assert_eq!(emulator.program(), Path::new("/c/q/usr/bin/qemu-system-x86_64"));
        let arguments = emulator.arguments();
        assert_eq!(arguments[..2], [PathBuf::from("-L"), "/c/q/usr/share/qemu".into()]);
        assert_eq!(arguments.last().unwrap(), Path::new("/usr/lib/ipxe/qemu"));
        let installed = Emulator { root: None };
        assert_eq!((installed.program(), installed.arguments()), (PROGRAM.into(), vec![]));
    }
}
