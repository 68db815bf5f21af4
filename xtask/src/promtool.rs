//! Prometheus' own linter of metrics, unpacked from the distribution's package and not installed: the package would bring a server that
//! starts by itself.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    deb::{self, Suite},
    ui::Stage,
    workspace::{self, Workspace, which},
};

/// Names the program to the lab's tests.
pub const VARIABLE: &str = "WEFT_PROMTOOL";
/// The package, and the program.
const PACKAGE: &str = "prometheus";
const PROGRAM: &str = "promtool";

/// The program: the machine's own, or one in our cache, which is filled the first time.
pub fn path(ws: &Workspace) -> Result<PathBuf> {
    if let Some(own) = which(PROGRAM) {
        return Ok(own);
    }
    let dir = workspace::cache()?.join(PROGRAM);
    let file = dir.join(PROGRAM);
    let _alone = workspace::lock(&dir.join("lock"))?;
    if file.exists() {
        return Ok(file);
    }
    let codename = deb::codename().context("/etc/os-release has no VERSION_CODENAME: put promtool on PATH")?;
    let stage = Stage::start(format!("unpack {PROGRAM} of the package {PACKAGE}"));
    let suite = Suite::new(ws, &codename)?;
    suite.update()?;
    let unpacked = dir.join("unpacked");
    suite.unpack(&[PACKAGE.to_owned()], &unpacked)?;
    let from = unpacked.join("usr/bin").join(PROGRAM);
    fs::rename(&from, &file).with_context(|| format!("take {} out of the package", from.display()))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
    stage.done("");
    Ok(file)
}
