//! Endpoint records: what a restarted agent needs to know its pods by.
//!
//! One JSON file for each (container, interface) in the state directory. It is written with state
//! [`Adding`](State::Adding) before the kernel is touched and with [`Ready`](State::Ready) when all is in place, each
//! time to a temporary name and then renamed, so a reader finds the old or the new one whole. There is no fsync: the
//! records describe kernel objects, and those do not survive what a lost page cache means. Records of another boot are
//! void for the same reason; the boot id in each tells them.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, ErrorKind, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cni_common::net::Mac;
use cni_plugin::spec::short;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    fault::{self, Point},
    tables::Terms,
};

/// The number of the records' shape. Raised when a field changes its meaning or a new one is indispensable.
pub const SCHEMA: u32 = 1;

/// The ending of a record's name.
const RECORD: &str = ".json";
/// What is added to the name of one that cannot be read.
const CORRUPT: &str = ".corrupt";
/// The ending of a record that is being written. Such names begin with a dot.
const TEMPORARY: &str = ".tmp";
/// The state stands in the first bytes of a record, behind schema and boot id.
const HEAD: usize = 512;
/// The longest container id that stands in a file's name as it is: a name has 255 bytes at most.
const MAX_PLAIN_ID: usize = 200;

/// An endpoint as it is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRecord {
    /// How far ADD had come.
    pub state: State,
    /// The endpoint's number on this node.
    pub endpoint_id: u32,
    /// The container, as the runtime names it.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// The path of the container's network namespace.
    pub netns: PathBuf,
    /// The index of the host's end of the veth pair.
    pub host_ifindex: u32,
    /// The name of the host's end.
    pub host_device: String,
    /// The MAC address of the container's end.
    #[serde(with = "mac_as_text")]
    pub mac: Mac,
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// The MTU of the pod's routes, in bytes.
    pub mtu: u32,
    /// The pod, when the runtime named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// What was agreed with CNI: its fields stand among these.
    #[serde(flatten)]
    pub terms: Terms,
    /// When ADD began, in seconds since 1970 (UTC).
    pub created: u64,
}

/// How far the ADD of an endpoint had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not to its end: whatever there is must be removed.
    Adding,
    /// To its end: the endpoint is served.
    Ready,
}

/// A pod, as the runtime names it (`K8S_POD_*` in `CNI_ARGS`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID; older runtimes do not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Why records cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory cannot be made or read.
    #[error("open the state directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A record cannot be written.
    #[error("write the endpoint record {path}")]
    Write {
        /// The record.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A record cannot be removed.
    #[error("remove the endpoint record {path}")]
    Remove {
        /// The record.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Records of this boot, by their file names.
    pub records: Vec<EndpointRecord>,
    /// Records of another boot: what they describe is gone. They stay on disk until the caller removes them.
    pub stale: Vec<EndpointRecord>,
    /// What could not be read, and where it lies now.
    pub corrupt: Vec<CorruptRecord>,
}

/// A record that was set aside.
#[derive(Debug, PartialEq, Eq)]
pub struct CorruptRecord {
    /// Where it lies now, for a person to look at.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The directory of records; its clones are the same one.
#[derive(Clone, Debug)]
pub struct RecordStore {
    dir: PathBuf,
    boot_id: String,
    /// Held while files change: a record that is being changed cannot be removed meanwhile, to come back by the change.
    changing: Arc<Mutex<()>>,
}

/// A file's content.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File<E> {
    schema: u32,
    boot_id: String,
    endpoint: E,
}

impl RecordStore {
    /// Opens the directory, making it (for root only) if it is not there. `boot_id` is the content of
    /// `/proc/sys/kernel/random/boot_id`.
    ///
    /// # Errors
    /// [`RecordError::Open`].
    pub fn open(dir: impl Into<PathBuf>, boot_id: &str) -> Result<Self, RecordError> {
        let dir = dir.into();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| RecordError::Open { path: dir.clone(), source })?;
        Ok(Self { dir, boot_id: boot_id.trim().to_owned(), changing: Arc::default() })
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record, in place of an older one of the same attachment.
    ///
    /// # Errors
    /// [`RecordError::Write`]; the older one is still there.
    pub fn save(&self, record: &EndpointRecord) -> Result<(), RecordError> {
        let _change = self.change();
        self.write(record)
    }

    /// Writes another MTU into the record of an attachment, if there is one and it is that endpoint's.
    ///
    /// # Errors
    /// [`RecordError::Write`]; the record is as it was.
    pub fn set_mtu(&self, container_id: &str, ifname: &str, endpoint: u16, mtu: u32) -> Result<(), RecordError> {
        let _change = self.change();
        let name = file_name(container_id, ifname);
        let path = self.dir.join(&name);
        if !path.exists() {
            return Ok(());
        }
        match self.read(&path, &name) {
            Ok((record, _)) if record.endpoint_id == u32::from(endpoint) => {
                self.write(&EndpointRecord { mtu, ..record })
            }
            Ok(_) => Ok(()),
            Err(reason) => Err(RecordError::Write { path, source: io::Error::other(reason) }),
        }
    }

    /// Writes that ADD has come to its end. The MTU is that of the record as it stands: it may have changed since `record` was made.
    ///
    /// # Errors
    /// [`RecordError::Write`]; the record is as it was.
    pub fn finish(&self, record: &EndpointRecord) -> Result<(), RecordError> {
        let _change = self.change();
        let name = file_name(&record.container_id, &record.ifname);
        let path = self.dir.join(&name);
        // Nothing but the state has changed since it was saved, unless the pod turned out to need a table of its own.
        if !record.terms.own_table {
            match mark_ready(&path) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(source) => return Err(RecordError::Write { path, source }),
            }
        }
        let (there, _) =
            self.read(&path, &name).map_err(|e| RecordError::Write { path, source: io::Error::other(e) })?;
        self.write(&EndpointRecord { state: State::Ready, mtu: there.mtu, ..record.clone() })
    }

    fn write(&self, record: &EndpointRecord) -> Result<(), RecordError> {
        let name = file_name(&record.container_id, &record.ifname);
        let path = self.dir.join(&name);
        let temporary = self.dir.join(format!(".{name}{TEMPORARY}"));
        let file = File { schema: SCHEMA, boot_id: self.boot_id.clone(), endpoint: record };
        let write = || {
            let mut text = serde_json::to_vec_pretty(&file)?;
            text.push(b'\n');
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?.write_all(&text)?;
            fault::pass(Point::RecordStaged);
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| {
            // On a full disk every byte counts; the failure to report is the first.
            drop(fs::remove_file(&temporary));
            RecordError::Write { path: path.clone(), source }
        })
    }

    /// Removes the record of an attachment. One that is not there is a success.
    ///
    /// # Errors
    /// [`RecordError::Remove`].
    pub fn remove(&self, container_id: &str, ifname: &str) -> Result<(), RecordError> {
        let _change = self.change();
        let path = self.dir.join(file_name(container_id, ifname));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(RecordError::Remove { path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Reads all records. What cannot be read is set aside as `*.corrupt`, and the rest is read all the same; what a
    /// dead agent left half-written is removed.
    ///
    /// # Errors
    /// [`RecordError::Open`] when the directory itself cannot be read, or a record only just now, for a lack of descriptors or memory.
    pub fn load_all(&self) -> Result<Loaded, RecordError> {
        let mut loaded = Loaded::default();
        for name in self.names()? {
            let path = self.dir.join(&name);
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                // Should it not go, the next write of the same record replaces it.
                drop(fs::remove_file(&path));
                continue;
            }
            if !name.ends_with(RECORD) {
                continue;
            }
            let text = match fs::read(&path) {
                // Nothing is wrong with the record; the next start finds it whole.
                Err(source) if is_lack(&source) => return Err(RecordError::Open { path, source }),
                text => text,
            };
            match self.parse(text, &name) {
                Ok((record, true)) => loaded.records.push(record),
                Ok((record, false)) => loaded.stale.push(record),
                Err(reason) => loaded.corrupt.push(set_aside(path, &name, reason)),
            }
        }
        Ok(loaded)
    }

    /// Reads the records of this boot and changes nothing: what is being written meanwhile, or cannot be read, is left out.
    ///
    /// # Errors
    /// [`RecordError::Open`] when the directory itself cannot be read.
    pub fn read_all(&self) -> Result<Vec<EndpointRecord>, RecordError> {
        let names = self.names()?.into_iter().filter(|name| !name.starts_with('.') && name.ends_with(RECORD));
        let read = |name: String| self.read(&self.dir.join(&name), &name).ok();
        Ok(names.filter_map(read).filter(|(_, of_this_boot)| *of_this_boot).map(|(record, _)| record).collect())
    }

    fn names(&self) -> Result<Vec<String>, RecordError> {
        let list = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        let mut names = list().map_err(|source| RecordError::Open { path: self.dir.clone(), source })?;
        // The same order at every start, for logs and tests.
        names.sort();
        Ok(names)
    }

    /// A record, and whether it is of this boot.
    fn read(&self, path: &Path, name: &str) -> Result<(EndpointRecord, bool), String> {
        self.parse(fs::read(path), name)
    }

    fn parse(&self, text: io::Result<Vec<u8>>, name: &str) -> Result<(EndpointRecord, bool), String> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let text = text.map_err(|e| format!("it cannot be read: {e}"))?;
        let Schema { schema } =
            serde_json::from_slice(&text).map_err(|e| format!("it is not a record: {}", short(e)))?;
        if schema != SCHEMA {
            return Err(format!("it has schema {schema}, and this agent knows {SCHEMA} only"));
        }
        let file: File<EndpointRecord> =
            serde_json::from_slice(&text).map_err(|e| format!("it is not a record: {}", short(e)))?;
        let record = file.endpoint;
        if file_name(&record.container_id, &record.ifname) != name {
            return Err(format!("it is the record of {} {}", short(&record.container_id), short(&record.ifname)));
        }
        Ok((record, file.boot_id == self.boot_id))
    }
}

/// The state as it stands in a record.
const ADDING: &[u8] = br#""state": "adding""#;
/// The same bytes as [`ADDING`], so that it can take its place: to write the file anew would be a good part of ADD's time.
const READY: &[u8] = br#""state": "ready" "#;

/// Changes the state in its place, by one write of a few bytes: a reader finds the old or the new one. Says whether it stood there.
fn mark_ready(path: &Path) -> io::Result<bool> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut text = [0; HEAD];
    let read = file.read_at(&mut text, 0)?;
    let Some(at) = text.get(..read).and_then(|text| text.windows(ADDING.len()).position(|part| part == ADDING)) else {
        return Ok(false);
    };
    file.write_all_at(READY, at as u64)?;
    Ok(true)
}

/// Whether a file of the state directory with this name is ours: a record, one that was set aside, or one that was being written.
pub fn is_record_file(name: &str) -> bool {
    let name = name.strip_suffix(CORRUPT).or_else(|| name.strip_prefix('.')?.strip_suffix(TEMPORARY)).unwrap_or(name);
    name.contains(':') && name.ends_with(RECORD)
}

/// Descriptors or memory are lacking, which says nothing of the file.
fn is_lack(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}

fn set_aside(path: PathBuf, name: &str, reason: String) -> CorruptRecord {
    let aside = path.with_file_name(format!("{name}{CORRUPT}"));
    match fs::rename(&path, &aside) {
        Ok(()) => CorruptRecord { path: aside, reason },
        Err(e) => CorruptRecord { path, reason: format!("{reason}; it cannot be set aside: {e}") },
    }
}

/// The name of an attachment's record. Neither a container id nor an interface's name may hold a colon, so two
/// attachments never share a name.
fn file_name(container_id: &str, ifname: &str) -> String {
    format!("{}:{}{RECORD}", plain_or_hash(container_id), plain_or_hash(ifname))
}

/// The text itself, or for one that cannot stand in a file's name its SHA-256, marked by a character that no id holds.
fn plain_or_hash(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if starts_well && text.len() <= MAX_PLAIN_ID && text.bytes().all(plain) {
        return text.to_owned();
    }
    Sha256::digest(text).iter().fold("~".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// A MAC address as people write it.
mod mac_as_text {
    use cni_common::net::Mac;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
