//! Maps of one build beside those of another, from the load until this build's programs run.
//!
//! A start that finds all its maps pinned takes them over. One that finds another build's makes its own beside them, pins nothing, and
//! leaves the hooks alone: the other build's programs run on with their maps until the reconciler has filled the new ones and swaps the
//! programs ([`Datapath::migrate`], the hooks, [`Datapath::settle`]). An agent that dies before has changed nothing, one that dies within has
//! left two whole sets of maps, and either build starts as it would have.
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cni_common::schema::{self, MapSpec, Role};
use tracing::{info, warn};

use super::{
    Datapath, RawMap,
    layout::{self, Layout, Plan},
    load::LoadError,
    map::Contents,
    pins::{self, PinError},
    programs, syscall,
};
use crate::fault::{self, Point};

/// What a start finds pinned.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Maps to take over.
    pub adopted: Vec<&'static str>,
    /// Pins of other layouts and other builds' maps.
    pub others: Vec<String>,
    /// A former agent's programs may run on other maps than this build's.
    pub waits: bool,
}

/// Of the names in the directory of pins. Layouts of maps under our own names must have been compared before ([`pins::check`]).
pub fn survey(names: &BTreeSet<String>) -> Survey {
    let has = |spec: &&MapSpec| names.contains(spec.name);
    let rebuild = schema::ALL.iter().any(|s| s.role == Role::Derived && !has(&s));
    let lacks = schema::ALL.iter().any(|s| s.role != Role::Record && !has(&s));
    let others: Vec<String> = names.iter().filter(|n| is_other(n)).cloned().collect();
    let former = !others.is_empty() || names.iter().any(|n| n.starts_with(programs::PREFIX)) || {
        schema::ALL.iter().any(|s| s.role != Role::Record && has(&s))
    };
    let adopted = schema::ALL.iter().filter(has).filter(|s| !(rebuild && s.role == Role::Derived));
    Survey { adopted: adopted.map(|s| s.name).collect(), others, waits: lacks && former }
}

/// A map's pin, but none of this build's: the names of all maps but the records end with the version of their layout.
fn is_other(name: &str) -> bool {
    plain(name) != name
        && !name.starts_with("link_")
        && !name.starts_with("new_")
        && !schema::ALL.iter().any(|s| s.name == name)
}

/// A map's name without the version.
fn plain(name: &str) -> &str {
    match name.rsplit_once("_v") {
        Some((plain, version)) if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => name,
    }
}

/// The names in the directory of pins.
pub fn names(dir: &Path) -> Result<BTreeSet<String>, PinError> {
    let failed = |source| PinError::Open { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    Ok(entries.into_iter().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// The other build's side, until its programs are swapped.
#[derive(Debug)]
pub(super) struct Beside {
    dir: PathBuf,
    others: Vec<String>,
    waits: AtomicBool,
}

impl Beside {
    pub(super) fn new(dir: &Path, survey: Survey) -> Self {
        Self { dir: dir.to_owned(), others: survey.others, waits: AtomicBool::new(survey.waits) }
    }
}

impl Datapath {
    /// Whether another build's programs run on until this one's maps are filled.
    pub fn waits(&self) -> bool {
        self.beside.as_ref().is_some_and(|b| b.waits.load(Ordering::Acquire))
    }

    /// Maps of other builds that are pinned.
    pub fn others(&self) -> Vec<String> {
        let here = |b: &Beside| names(&b.dir).map(|all| all.into_iter().filter(|n| is_other(n)));
        self.beside.as_ref().and_then(|b| here(b).ok()).map(Iterator::collect).unwrap_or_default()
    }

    /// What a map holds by which packets go now: that of another build's programs, as this build's layout has it, until they are swapped.
    ///
    /// # Errors
    /// When it cannot be read, or nothing tells of its layout.
    pub fn in_use(&self, spec: &MapSpec) -> Result<Contents, LoadError> {
        let failed = |source| LoadError::Map { name: spec.name, source };
        let Some(beside) = self.beside.as_ref().filter(|_| self.waits()) else {
            return self.map(spec).dump().map_err(failed);
        };
        if let Some(map) = pins::open(&beside.dir, spec)? {
            return map.dump().map_err(failed);
        }
        let Some((map, plan)) = self.other(beside, spec)? else { return Ok(Contents::new()) };
        Ok(map.dump().map_err(failed)?.into_iter().map(|(key, value)| (key, plan.value(&value))).collect())
    }

    /// Checks that entries of other layouts' maps of state can be taken over: before anything waits for it.
    pub(super) fn check_state(&self) -> Result<(), PinError> {
        self.sources().map(drop)
    }

    /// Takes over, entry by entry, what only the programs know. What they change from then until they are swapped is lost: that is a count
    /// of some packets.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn migrate(&self) -> Result<(), LoadError> {
        for (spec, from, plan) in self.sources()? {
            let failed = |source| LoadError::Map { name: spec.name, source };
            let (mut kept, mut left) = (0_usize, 0_usize);
            for (key, value) in from.dump().map_err(failed)? {
                if value.iter().all(|b| *b == 0) {
                    continue;
                }
                match self.map(&spec).update(&key, &plan.value(&value)) {
                    Ok(()) => kept += 1,
                    // A smaller map, or a shorter array.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => left += 1,
                    Err(e) => return Err(failed(e)),
                }
            }
            if left > 0 {
                warn!(map = spec.name, left, "entries of another build's map have no room in this one's");
            }
            info!(map = spec.name, kept, "entries of another build's map were taken over");
        }
        Ok(())
    }

    /// Maps of state that are new, with the map of another layout that holds their entries.
    fn sources(&self) -> Result<Vec<(MapSpec, RawMap, Plan)>, PinError> {
        let Some(beside) = self.beside.as_ref().filter(|_| self.waits()) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for spec in schema::ALL.iter().filter(|s| s.role == Role::State) {
            if pins::path(&beside.dir, spec).exists() {
                continue;
            }
            all.extend(self.other(beside, spec)?.map(|(from, plan)| (*spec, from, plan)));
        }
        Ok(all)
    }

    /// The map of another layout in the place of one of this build, and how its entries become ours.
    fn other(&self, beside: &Beside, spec: &MapSpec) -> Result<Option<(RawMap, Plan)>, PinError> {
        let mut found: Vec<_> = beside.others.iter().filter(|n| plain(n) == plain(spec.name)).collect();
        // An agent that died while it swapped may have left two: the newest programs wrote the newest.
        found.sort_by_key(|n| n.rsplit_once("_v").and_then(|(_, v)| v.parse::<u64>().ok()));
        let Some(name) = found.last() else { return Ok(None) };
        let (from, layout) = self.open_other(beside, name, spec)?;
        let plan = Plan::new(&layout, spec).map_err(|why| unknown(&beside.dir, name, why.to_string()))?;
        Ok(Some((from, plan)))
    }

    /// A map of another layout, as its record says; that must be what the kernel says.
    fn open_other(&self, beside: &Beside, name: &str, spec: &MapSpec) -> Result<(RawMap, Layout), PinError> {
        let path = beside.dir.join(name);
        let failed = |source| PinError::Open { path: path.clone(), source };
        let record = self.map(&schema::LAYOUTS).lookup(&layout::key(name)).map_err(failed)?;
        let layout = record.as_deref().and_then(layout::read);
        let Some(l) = layout else { return Err(unknown(&beside.dir, name, "nothing says what its fields are".into())) };
        if l.kind != spec.kind as u32 {
            return Err(unknown(&beside.dir, name, format!("it is of type {}", l.kind)));
        }
        let as_recorded = MapSpec {
            key_size: l.key_size,
            value_size: l.value_size,
            max_entries: l.max_entries,
            flags: l.flags,
            ..*spec
        };
        match pins::open_at(&path, &as_recorded)? {
            Some(map) => Ok((map, l)),
            None => Err(failed(io::ErrorKind::NotFound.into())),
        }
    }

    /// This build's programs are on the hooks: pins its maps and programs in the place of the former ones, and removes what other builds
    /// left. Each pin is replaced by a rename; whichever of them an agent gets to, what is pinned is filled.
    ///
    /// # Errors
    /// When a pin cannot be made or removed. Trying again is fine.
    pub fn settle(&self) -> Result<(), PinError> {
        let Some(beside) = &self.beside else { return Ok(()) };
        self.pin(&beside.dir)?;
        beside.waits.store(false, Ordering::Release);
        Ok(())
    }

    /// Pins everything that is not pinned, or pinned otherwise, and removes other builds' maps.
    pub(super) fn pin(&self, dir: &Path) -> Result<(), PinError> {
        // What is pinned has a fingerprint and a record.
        let first = schema::ALL.iter().filter(|s| s.role == Role::Record);
        for spec in first.chain(schema::ALL.iter().filter(|s| s.role != Role::Record)) {
            let path = pins::path(dir, spec);
            if pins::open(dir, spec)?.is_some_and(|there| there.id() == self.map(spec).id()) {
                continue;
            }
            let staged = dir.join(format!("new_{}", spec.name));
            let placed = programs::absent_is_done(fs::remove_file(&staged))
                .and_then(|()| syscall::pin(self.map(spec).fd(), &staged))
                .and_then(|()| fs::rename(&staged, &path));
            placed.map_err(|source| PinError::Make { path, source })?;
            fault::pass(Point::MapPinned);
        }
        self.keep_programs(dir)?;
        for name in names(dir)?.into_iter().filter(|n| is_other(n) || n.starts_with("new_")) {
            let path = dir.join(&name);
            programs::absent_is_done(fs::remove_file(&path)).map_err(|source| PinError::Make { path, source })?;
            info!(pin = name, "removed what another build has left");
        }
        Ok(())
    }
}

fn unknown(dir: &Path, name: &str, why: String) -> PinError {
    PinError::Unknown { path: dir.join(name), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<String> {
        schema::ALL
            .iter()
            .map(|s| s.name.to_owned())
            .chain(["prog_from_pod".into(), "link_from_netdev_eth_v7".into()])
            .collect()
    }
    fn without(name: &str) -> Survey {
        let mut names = all();
        names.remove(name);
        survey(&names)
    }

    #[test]
    fn an_empty_directory_and_a_whole_set_wait_for_nothing() {
        assert_eq!(survey(&BTreeSet::new()), Survey::default());
        let whole = survey(&all());
        assert_eq!((whole.adopted.len(), whole.others.len(), whole.waits), (schema::ALL.len(), 0, false));
    }

    #[test]
    fn one_derived_map_of_another_layout_makes_all_of_them_anew_and_what_runs_runs_on() {
        let s = without("endpoints_v1");
        assert!(s.waits && !s.adopted.contains(&"local4_v2") && s.adopted.contains(&"counters_v1"), "{s:?}");
        assert!(s.adopted.contains(&"schema"), "{s:?}");
    }

    #[test]
    fn a_map_of_state_of_another_layout_leaves_the_derived_ones_but_programs_wait_for_it() {
        let s = without("counters_v1");
        assert!(s.waits && s.adopted.contains(&"endpoints_v1"), "{s:?}");
    }

    #[test]
    fn records_are_nobodys_layout() {
        let s = without("layouts");
        assert!(!s.waits && s.adopted.contains(&"endpoints_v1"), "{s:?}");
    }

    #[test]
    fn maps_of_other_layouts_and_of_other_builds_are_told_apart_from_the_rest() {
        let mut names = all();
        names.extend(["endpoints_v9", "ct4_v3", "new_prog_from_pod"].map(str::to_owned));
        assert_eq!(survey(&names).others, ["ct4_v3", "endpoints_v9"]);
        let only = BTreeSet::from(["endpoints_v9".to_owned()]);
        assert!(survey(&only).waits);
    }
}
