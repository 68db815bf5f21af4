//! Each unit's cgroup, in every hierarchy: below that of whoever brings the cluster up, so that his limits hold for it.
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{layout::ROOT, wait::until};

/// Paths of all cgroups that were made; written before they are, so that `down` finds those of a crashed `up` as well.
fn list() -> PathBuf {
    Path::new(ROOT).join("cgroups")
}

/// Where the cgroups of `unit` are, one in each hierarchy.
///
/// # Errors
/// When /proc can not be read.
fn of(unit: &str) -> Result<Vec<PathBuf>> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let root = Path::new("/sys/fs/cgroup");
    let unified = if root.join("cgroup.controllers").exists() { root.to_owned() } else { root.join("unified") };
    let place = |line: &str| {
        // ID:CONTROLLERS:PATH; that of version 2 has no controllers.
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let hierarchy = if controllers.is_empty() {
            unified.clone()
        } else {
            root.join(controllers.strip_prefix("name=").unwrap_or(controllers))
        };
        let above = hierarchy.join(path.trim_start_matches('/'));
        above.exists().then(|| above.join(format!("weft-cluster-{unit}")))
    };
    Ok(own.lines().filter_map(place).collect())
}

/// The names of version 1's hierarchies that this process is in.
///
/// # Errors
/// When /proc can not be read.
pub(crate) fn hierarchies() -> Result<Vec<String>> {
    let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let name = |line: &str| line.split(':').nth(1).filter(|c| !c.is_empty()).map(str::to_owned);
    Ok(own.lines().filter_map(name).collect())
}

/// Makes the cgroups of `unit` and moves this process into them.
///
/// # Errors
/// When a hierarchy does not take it.
pub(crate) fn enter(unit: &str) -> Result<()> {
    let places = of(unit)?;
    let lines: String = places.iter().map(|p| format!("{}\n", p.display())).collect();
    io::Write::write_all(
        &mut fs::OpenOptions::new().create(true).append(true).open(list()).context("open the list of cgroups")?,
        lines.as_bytes(),
    )
    .context("write the list of cgroups")?;
    for place in places {
        let what = || format!("enter the cgroup {}", place.display());
        fs::create_dir_all(&place).with_context(what)?;
        // Of version 1 a cpuset is empty at first, and takes no process so.
        for file in ["cpuset.cpus", "cpuset.mems"].map(|f| place.join(f)).iter().filter(|f| f.exists()) {
            let above = place.with_file_name("").join(file.file_name().unwrap_or_default());
            fs::write(file, fs::read(above).with_context(what)?).with_context(what)?;
        }
        let inherit = place.join("cgroup.clone_children");
        if inherit.exists() {
            fs::write(inherit, "1").with_context(what)?;
        }
        fs::write(place.join("cgroup.procs"), std::process::id().to_string()).with_context(what)?;
    }
    Ok(())
}

/// Removes all that were made. Their processes have ended.
///
/// # Errors
/// When one does not go.
pub(crate) fn remove_all() -> Result<()> {
    let lines = match fs::read_to_string(list()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.context("read the list of cgroups")?,
    };
    lines.lines().map(Path::new).try_for_each(|place| {
        // The kernel lets go of a killed process' cgroup a moment after the process is gone.
        until(&format!("end of the cgroup {}", place.display()), Duration::from_secs(10), || {
            remove(place)?;
            Ok(Some(()))
        })
    })
}

/// The innermost first: a cgroup's files can not be removed, and go with it.
fn remove(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", place.display())),
        _ => Ok(()),
    }
}
