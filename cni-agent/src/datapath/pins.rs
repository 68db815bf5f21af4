//! Pinned maps, compared with what this build expects before anything is loaded: aya 0.14 opens a pin of another shape without
//! a word, and then reads and writes past the end of values.
use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use cni_common::schema::{self, MapSpec};

use super::{RawMap, syscall};

/// A pin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel said no.
    #[error("open pinned map {path}")]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be made, or not removed.
    #[error("pin {}", path.display())]
    Make {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is of another layout.
    #[error(
        "pinned map {path} has another layout ({found}; this build expects {expected}): it was made by another build of Weft. \
         Start that build, or remove the pin when no pod runs on this node"
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// It is of another layout, and what it holds cannot be taken over.
    #[error(
        "pinned map {} is another build's, and its entries cannot be taken over: {why}. Start the build that made it, or remove the \
         pin: its entries are lost then",
        path.display()
    )]
    Unknown {
        /// The pin.
        path: PathBuf,
        /// What is not known of it, or not the same.
        why: String,
    },
}

/// Where a map is pinned.
pub fn path(dir: &Path, spec: &MapSpec) -> PathBuf {
    dir.join(spec.name)
}

/// Opens a pinned map of the right layout; `None` when there is none.
pub fn open(dir: &Path, spec: &MapSpec) -> Result<Option<RawMap>, PinError> {
    open_at(&path(dir, spec), spec)
}

/// The same, pinned under another name.
pub(super) fn open_at(path: &Path, spec: &MapSpec) -> Result<Option<RawMap>, PinError> {
    let path = path.to_owned();
    let failed = |source| PinError::Open { path: path.clone(), source };
    let Some(fd) = syscall::open_pin(&path).map_err(failed)? else { return Ok(None) };
    let f = syscall::map_facts(fd.as_fd()).map_err(failed)?;
    let found = (f.kind, f.key_size, f.value_size, f.max_entries, f.flags);
    // Made for the memory that the node had then.
    let max_entries = if spec.is_scaled() { f.max_entries } else { spec.max_entries };
    let expected = (spec.kind as u32, spec.key_size, spec.value_size, max_entries, spec.flags);
    if found != expected {
        let text = |(kind, key, value, max, flags): (u32, u32, u32, u32, u32)| {
            format!("type {kind}, key {key} B, value {value} B, {max} entries, flags {flags:#x}")
        };
        return Err(PinError::Layout { path, found: text(found), expected: text(expected) });
    }
    RawMap::new(fd, *spec).map(Some).map_err(failed)
}

/// Compares all pins in a directory, and the fingerprints that the `schema` map keeps. An empty directory is fine.
pub fn check(dir: &Path) -> Result<(), PinError> {
    let fingerprints = open(dir, &schema::SCHEMA)?;
    for spec in schema::ALL {
        let Some(_) = open(dir, spec)? else { continue };
        let path = path(dir, spec);
        let failed = |source| PinError::Open { path: path.clone(), source };
        let Some(fingerprints) = &fingerprints else { continue };
        let Some(value) = fingerprints.lookup(&spec.id.to_ne_bytes()).map_err(failed)? else { continue };
        // 0: pinned, but the agent died before it wrote the fingerprint; name, type and sizes agree.
        if value != spec.fingerprint.to_ne_bytes() && value != [0; 8] {
            return Err(PinError::Layout {
                path,
                found: format!("fields {value:02x?}"),
                expected: format!("fields {:02x?}", spec.fingerprint.to_ne_bytes()),
            });
        }
    }
    Ok(())
}
