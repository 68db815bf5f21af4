//! Pinned programs: what an agent goes on with when the kernel refuses those that it brings.
//!
//! Each hook's program is pinned as `prog_<name>` once all are loaded. The pin is replaced by a rename, so that there is no moment without
//! one; an agent that dies between two renames leaves a mix, as it would on the hooks, of programs that the kernel took and that share their maps.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::SystemTime,
};

use aya::{maps::MapData, programs::ProgramInfo};
use cni_common::schema::{self, Role};

use super::{RawMap, object, pins, pins::PinError, syscall};
use crate::{
    error_chain,
    fault::{self, Point},
};

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Its descriptor.
    pub fd: OwnedFd,
    /// The kernel's number of it.
    pub id: u32,
}

/// Why an agent cannot go on with what a former one left.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Nobody left anything.
    #[error("no earlier agent has left programs in {} to go on with", .0.display())]
    Nothing(PathBuf),
    /// One of the hooks has no program there.
    #[error("of the programs that an earlier agent has left, {} is missing", .0.display())]
    Program(PathBuf),
    /// A map of this build is not pinned.
    #[error("the programs that an earlier agent has left have no map {}: they are another build's", .0.display())]
    Map(PathBuf),
    /// What is pinned is not of one piece.
    #[error("the program {program} that an earlier agent has left uses another map {map} than the pinned one")]
    OtherMap {
        /// The program.
        program: &'static str,
        /// The map's name.
        map: String,
    },
    /// A map that this agent would write in vain.
    #[error("none of the programs that an earlier agent has left uses the map {0}: they are another build's")]
    Unused(&'static str),
    /// A pin cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel does not tell of a program.
    #[error("ask for the program pinned at {}: {cause}", path.display())]
    Ask {
        /// The pin.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

/// What a former agent left, whole and of this build's layout.
pub(super) struct Left {
    pub programs: BTreeMap<&'static str, Program>,
    pub maps: BTreeMap<&'static str, RawMap>,
    /// When the newest of the programs was loaded.
    pub since: Option<SystemTime>,
}

/// Maps that a program uses: number and name.
type Uses = Vec<(u32, String)>;

/// Where a hook's program is pinned.
pub fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{PREFIX}{name}"))
}

/// How the names of their pins begin.
pub(super) const PREFIX: &str = "prog_";

/// Pins the programs in the place of a former agent's, and removes those of hooks that this build does not have.
pub(super) fn keep(dir: &Path, programs: &BTreeMap<&'static str, Program>) -> Result<(), PinError> {
    for (name, program) in programs {
        let path = path(dir, name);
        let staged = dir.join(format!("new_{PREFIX}{name}"));
        let placed = absent_is_done(fs::remove_file(&staged))
            .and_then(|()| syscall::pin(program.fd.as_fd(), &staged))
            .inspect(|()| fault::pass(Point::ProgramStaged))
            .and_then(|()| fs::rename(&staged, &path));
        placed.map_err(|source| PinError::Make { path, source })?;
        fault::pass(Point::ProgramPlaced);
    }
    let failed = |source| PinError::Open { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hook = path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX));
        if hook.is_some_and(|hook| !object::HOOKS.contains(&hook)) {
            absent_is_done(fs::remove_file(&path)).map_err(|source| PinError::Make { path, source })?;
        }
    }
    Ok(())
}

pub(super) fn absent_is_done(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Opens what a former agent left, if this one can serve with it. The maps' layouts must have been compared before ([`pins::check`]).
pub(super) fn left(dir: &Path) -> Result<Left, Unfit> {
    let (mut programs, mut uses, mut since) = (BTreeMap::new(), BTreeMap::new(), None);
    for name in object::HOOKS {
        let path = path(dir, name);
        let opened = syscall::open_pin(&path).map_err(|source| PinError::Open { path: path.clone(), source })?;
        let Some(fd) = opened else { continue };
        let (info, used) = ask(&path).map_err(|cause| Unfit::Ask { path, cause })?;
        since = since.max(info.loaded_at());
        programs.insert(name, Program { fd, id: info.id() });
        uses.insert(name, used);
    }
    let mut maps = BTreeMap::new();
    for spec in schema::ALL {
        maps.extend(pins::open(dir, spec)?.map(|map| (spec.name, map)));
    }
    let ids = maps.iter().map(|(name, map)| (*name, map.id())).collect();
    match unfit(dir, &uses, &ids) {
        Some(why) => Err(why),
        None => Ok(Left { programs, maps, since }),
    }
}

fn ask(path: &Path) -> Result<(ProgramInfo, Uses), String> {
    let info = ProgramInfo::from_pin(path).map_err(|e| error_chain(&e))?;
    let ids = info.map_ids().map_err(|e| error_chain(&e))?.unwrap_or_default();
    let name = |id| MapData::from_id(id)?.info().map(|i| String::from_utf8_lossy(i.name()).into_owned());
    let uses = ids.into_iter().map(|id| Ok((id, name(id)?))).collect::<Result<_, aya::maps::MapError>>();
    Ok((info, uses.map_err(|e| error_chain(&e))?))
}

/// Why programs that use these maps and the pinned maps of these numbers are not of one piece, or not of this build.
fn unfit(dir: &Path, programs: &BTreeMap<&'static str, Uses>, maps: &BTreeMap<&'static str, u32>) -> Option<Unfit> {
    if programs.is_empty() {
        return Some(Unfit::Nothing(dir.to_owned()));
    }
    if let Some(name) = object::HOOKS.into_iter().find(|name| !programs.contains_key(name)) {
        return Some(Unfit::Program(path(dir, name)));
    }
    if let Some(spec) = schema::ALL.iter().find(|spec| !maps.contains_key(spec.name)) {
        return Some(Unfit::Map(pins::path(dir, spec)));
    }
    // What has none of our names is the object's own, as constants are.
    let other = |(id, name): &&(u32, String)| maps.get(name.as_str()).is_some_and(|pinned| pinned != id);
    let found = programs.iter().find_map(|(program, uses)| Some((*program, uses.iter().find(other)?.1.clone())));
    if let Some((program, map)) = found {
        return Some(Unfit::OtherMap { program, map });
    }
    let used: BTreeSet<u32> = programs.values().flatten().map(|(id, _)| *id).collect();
    // The agent's only.
    let records: BTreeSet<&str> = schema::ALL.iter().filter(|s| s.role == Role::Record).map(|s| s.name).collect();
    let unused = maps.iter().find(|(name, id)| !records.contains(*name) && !used.contains(id));
    unused.map(|(name, _)| Unfit::Unused(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Set = (BTreeMap<&'static str, Uses>, BTreeMap<&'static str, u32>);

    /// Every program uses every map, and constants of its own.
    fn whole() -> Set {
        let maps: BTreeMap<&'static str, u32> = schema::ALL.iter().map(|spec| (spec.name, 100 + spec.id)).collect();
        let mut uses: Uses = maps.iter().map(|(name, id)| (*id, (*name).to_owned())).collect();
        uses.retain(|(_, name)| ![schema::SCHEMA.name, schema::LAYOUTS.name].contains(&name.as_str()));
        uses.push((7, ".rodata".to_owned()));
        (object::HOOKS.into_iter().map(|name| (name, uses.clone())).collect(), maps)
    }

    fn after(change: impl FnOnce(&mut Set)) -> String {
        let mut set = whole();
        change(&mut set);
        unfit(Path::new("/pins"), &set.0, &set.1).map_or_else(String::new, |why| why.to_string())
    }

    #[test]
    fn a_whole_set_on_the_pinned_maps_fits() {
        assert_eq!(after(|_| {}), "");
        // Not every program needs every map.
        assert_eq!(after(|(programs, _)| drop(programs.insert(object::FROM_HOST, Vec::new()))), "");
    }

    #[test]
    fn a_set_that_lacks_something_does_not_and_says_what() {
        assert!(after(|(programs, _)| programs.clear()).starts_with("no earlier agent"));
        for name in object::HOOKS {
            let why = after(|(programs, _)| drop(programs.remove(name)));
            assert!(why.contains(&format!("/pins/prog_{name} is missing")), "{why}");
        }
        let why = after(|(_, maps)| maps.retain(|name, _| *name != "local4_v2"));
        assert!(why.contains("no map /pins/local4_v2"), "{why}");
    }

    #[test]
    fn a_set_on_other_maps_than_the_pinned_ones_does_not() {
        // Somebody removed the pin, and the next agent made another map.
        let why = after(|(_, maps)| maps.extend([("local4_v2", 9)]));
        assert!(why.contains("uses another map local4_v2"), "{why}");
        let why = after(|(programs, _)| programs.values_mut().for_each(|uses| uses.retain(|(_, n)| n != "own6_v2")));
        assert!(why.contains("uses the map own6_v2"), "{why}");
    }
}
