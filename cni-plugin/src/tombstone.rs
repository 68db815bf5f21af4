//! Tombstones: the DELs that were answered while no agent ran.
//!
//! A DEL must not wait for the agent (a node would not be drained while it is down). The plugin then removes the
//! container's device itself and leaves a file beside the agent's socket, in the directory [`DIRECTORY`]. The agent
//! replays what it finds before it listens and once more right after; the plugin, after it has left one, tries the socket
//! again: so no tombstone is left unread by an agent that was starting meanwhile.
use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::spec::{validate_container_id, validate_ifname};

/// The directory of tombstones, beside the agent's socket.
pub const DIRECTORY: &str = "tombstones";
/// The ending of a tombstone's name. What is being written has another.
const ENDING: &str = ".json";
/// The longest container id that stands in a file's name as it is: a name has 255 bytes at most.
const MAX_PLAIN_ID: usize = 200;

/// A DEL that no agent has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// The container, as the runtime names it.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
}

impl Tombstone {
    /// For this attachment.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into() }
    }

    /// Leaves it in the directory, which is made (for root only) if it is not there. Written whole or not at all.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave(&self, directory: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = self.path(directory);
        let temporary = path.with_extension(format!("tmp{}", std::process::id()));
        let text = serde_json::to_vec(self)?;
        let mut options = fs::OpenOptions::new();
        let mut write = || {
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(&text)?;
            fs::rename(&temporary, &path)
        };
        // On a full disk every byte counts; the failure to report is the first.
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Takes it away. One that is not there is a success; says whether it was.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self, directory: &Path) -> io::Result<bool> {
        match fs::remove_file(self.path(directory)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether container and interface may be called so.
    fn is_of_an_attachment(&self) -> bool {
        validate_container_id(&self.container_id).is_ok() && validate_ifname(&self.ifname).is_ok()
    }

    /// Whether it is in the directory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stands(&self, directory: &Path) -> io::Result<bool> {
        self.path(directory).try_exists()
    }

    fn path(&self, directory: &Path) -> PathBuf {
        // Names hold no colon, so two attachments never share a file; a hash stands in for an id that is too long.
        let id = if self.container_id.len() <= MAX_PLAIN_ID {
            self.container_id.clone()
        } else {
            // FNV-1a: plugin and agent, of whatever release, must come to the same name.
            let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            format!("~{:016x}", self.container_id.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
        };
        directory.join(format!("{id}:{}{ENDING}", self.ifname))
    }
}

/// Where tombstones are left and taken: in files, or by a stand-in in tests.
pub trait Tombstones {
    /// As [`Tombstone::leave`].
    ///
    /// # Errors
    /// What the kernel says.
    fn leave(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<()>;

    /// As [`Tombstone::take`].
    ///
    /// # Errors
    /// What the kernel says.
    fn take(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<bool>;
}

/// Tombstones as files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Tombstones for Files {
    fn leave(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<()> {
        tombstone.leave(directory)
    }

    fn take(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<bool> {
        tombstone.take(directory)
    }
}

/// All tombstones of a directory, in the order of their names, and the files that are none. No directory has none.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> io::Result<(Vec<Tombstone>, Vec<PathBuf>)> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        other => other?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.to_string_lossy().ends_with(ENDING));
    paths.sort();
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for path in paths {
        match fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Tombstone>(&text).ok()) {
            Some(tombstone) if tombstone.is_of_an_attachment() && tombstone.path(directory) == path => {
                found.push(tombstone);
            }
            _ => bad.push(path),
        }
    }
    Ok((found, bad))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_left_is_found_and_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("run").join(DIRECTORY);
        assert_eq!(list(&directory).unwrap(), (vec![], vec![]));
        let long = "a".repeat(300);
        let all = [Tombstone::new("c1", "eth0"), Tombstone::new("c1", "net1"), Tombstone::new(long, "eth0")];
        for tombstone in &all {
            tombstone.leave(&directory).unwrap();
            tombstone.leave(&directory).unwrap();
        }
        assert_eq!(list(&directory).unwrap(), (all.to_vec(), vec![]));
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(all[0].take(&directory).unwrap());
        assert!(!all[0].take(&directory).unwrap());
        assert_eq!(list(&directory).unwrap().0, all[1..]);
    }

    #[test]
    fn what_is_no_tombstone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("cut.json", "{\"contai"), ("c9:eth0.json", r#"{"containerId":"c1","ifname":"eth0"}"#)] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        fs::write(dir.path().join("c1:eth0.tmp7"), "{").unwrap();
        let (found, bad) = list(dir.path()).unwrap();
        assert!(found.is_empty());
        assert_eq!(bad, [dir.path().join("c9:eth0.json"), dir.path().join("cut.json")]);
    }
}
