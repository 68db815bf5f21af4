//! Endpoint records: what a restarted agent needs to know its pods by.
//!
//! One JSON file for each (container, interface) in the state directory. It is written with state
//! [`Adding`](State::Adding) before the kernel is touched and with [`Ready`](State::Ready) when all is in place, each
//! time to a temporary name and then renamed, so a reader finds the old or the new one whole. There is no fsync: the
//! records describe kernel objects, and those do not survive what a lost page cache means. Records of another boot are
//! void for the same reason; the boot id in each tells them.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{self, ErrorKind, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cni_common::net::Mac;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The number of the records' shape. Raised when a field changes its meaning or a new one is indispensable.
pub const SCHEMA: u32 = 1;

/// The ending of a record's name.
const RECORD: &str = ".json";
/// What is added to the name of one that cannot be read.
const CORRUPT: &str = ".corrupt";
/// The ending of a record that is being written. Such names begin with a dot.
const TEMPORARY: &str = ".tmp";
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
    /// [`RecordError::Open`] when the directory itself cannot be read.
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
            match self.read(&path, &name) {
                Ok((record, true)) => loaded.records.push(record),
                Ok((record, false)) => loaded.stale.push(record),
                Err(reason) => loaded.corrupt.push(set_aside(path, &name, reason)),
            }
        }
        Ok(loaded)
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
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let text = fs::read(path).map_err(|e| format!("it cannot be read: {e}"))?;
        let Schema { schema } = serde_json::from_slice(&text).map_err(|e| format!("it is not a record: {e}"))?;
        if schema != SCHEMA {
            return Err(format!("it has schema {schema}, and this agent knows {SCHEMA} only"));
        }
        let file: File<EndpointRecord> =
            serde_json::from_slice(&text).map_err(|e| format!("it is not a record: {e}"))?;
        let record = file.endpoint;
        if file_name(&record.container_id, &record.ifname) != name {
            return Err(format!("it is the record of {} {}", record.container_id, record.ifname));
        }
        Ok((record, file.boot_id == self.boot_id))
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const BOOT: &str = "6f3c1d2e-0000-4000-8000-000000000001\n";
    const OTHER_BOOT: &str = "6f3c1d2e-0000-4000-8000-000000000002";

    #[test]
    fn a_record_comes_back_as_it_was_saved() {
        let (dir, store) = store();
        let all = [record("c1", "eth0"), record("c1", "net1"), record("c2", "eth0")];
        for record in &all {
            store.save(record).unwrap();
        }
        // A restarted agent opens the same directory anew.
        let loaded = RecordStore::open(dir.path(), BOOT).unwrap().load_all().unwrap();
        assert_eq!(loaded.records, all);
        assert!(loaded.stale.is_empty() && loaded.corrupt.is_empty());
    }

    #[test]
    fn a_record_gets_another_mtu_and_a_removed_one_does_not_come_back() {
        let (dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        store.set_mtu("c1", "eth0", 7, 1350).unwrap();
        store.set_mtu("c1", "eth0", 8, 1200).unwrap();
        let expected = EndpointRecord { mtu: 1350, ..record("c1", "eth0") };
        assert_eq!(store.load_all().unwrap().records, [expected], "endpoint 8 is another one");
        store.remove("c1", "eth0").unwrap();
        store.clone().set_mtu("c1", "eth0", 7, 1450).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_last_state_saved_counts() {
        let (_dir, store) = store();
        let adding = EndpointRecord { state: State::Adding, ..record("c1", "eth0") };
        store.save(&adding).unwrap();
        assert_eq!(store.load_all().unwrap().records, [adding]);
        store.save(&record("c1", "eth0")).unwrap();
        assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
    }

    #[test]
    fn a_removed_record_is_gone_and_removing_it_again_succeeds() {
        let (_dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        store.save(&record("c1", "net1")).unwrap();
        store.remove("c1", "eth0").unwrap();
        store.remove("c1", "eth0").unwrap();
        assert_eq!(store.load_all().unwrap().records, [record("c1", "net1")]);
    }

    #[test]
    fn the_file_is_what_the_documentation_says_and_readable_by_its_owner_only() {
        let (dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        let path = dir.path().join("c1:eth0.json");
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            file,
            json!({"schema": 1, "bootId": BOOT.trim(), "endpoint": {
                "state": "ready", "endpointId": 7, "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/c1",
                "hostIfindex": 65543, "hostDevice": "weft7", "mac": "02:00:00:00:00:07", "ipv4": "10.0.1.7",
                "ipv6": "fd00:1::7", "mtu": 1500, "pod": {"namespace": "default", "name": "web", "uid": "u-1"},
                "created": 1_700_000_000
            }})
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_corrupt_record_is_set_aside_and_the_others_are_read() {
        let (dir, store) = store();
        let good = record("good", "eth0");
        store.save(&good).unwrap();
        let name_of_another = fs::read(dir.path().join("good:eth0.json")).unwrap();
        for (name, text) in [
            ("cut:eth0.json", &name_of_another[..name_of_another.len() / 2]),
            ("empty:eth0.json", b""),
            ("future:eth0.json", br#"{"schema": 2, "what": "ever"}"#),
            ("mac:eth0.json", br#"{"schema": 1, "bootId": "x", "endpoint": {"mac": "no"}}"#),
            ("moved:eth0.json", &name_of_another),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let loaded = store.load_all().unwrap();
        assert_eq!(loaded.records, [good]);
        let found: Vec<_> = loaded.corrupt.iter().map(|c| c.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, ["cut", "empty", "future", "mac", "moved"].map(|name| format!("{name}:eth0.json.corrupt")));
        assert!(loaded.corrupt.iter().all(|c| c.path.exists() && !c.reason.is_empty()));
        assert!(loaded.corrupt[2].reason.contains("schema 2"), "{}", loaded.corrupt[2].reason);
        assert!(store.load_all().unwrap().corrupt.is_empty(), "reported at every start");
    }

    #[test]
    fn records_of_another_boot_are_stale_and_stay_until_they_are_removed() {
        let (dir, before) = store();
        before.save(&record("c1", "eth0")).unwrap();
        let after = RecordStore::open(dir.path(), OTHER_BOOT).unwrap();
        let loaded = after.load_all().unwrap();
        assert_eq!((loaded.records.len(), loaded.stale.len()), (0, 1));
        for stale in after.load_all().unwrap().stale {
            after.remove(&stale.container_id, &stale.ifname).unwrap();
        }
        assert!(after.load_all().unwrap().stale.is_empty());
    }

    #[test]
    fn what_a_killed_agent_left_half_written_is_removed_and_foreign_files_are_left_alone() {
        let (dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        fs::write(dir.path().join(".c1:eth0.json.tmp"), b"{\"sch").unwrap();
        fs::write(dir.path().join("README"), b"x").unwrap();
        assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["README", "c1:eth0.json"]);
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_the_older_one() {
        let (dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        // A directory in the way of the temporary file: fails for root too.
        fs::create_dir(dir.path().join(".c1:eth0.json.tmp")).unwrap();
        let e = store.save(&EndpointRecord { mtu: 9000, ..record("c1", "eth0") }).unwrap_err();
        assert!(e.to_string().contains("c1:eth0.json"), "{e}");
        assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
    }

    #[test]
    fn ids_of_any_length_and_kind_have_names_of_their_own() {
        let (dir, store) = store();
        let long = "a".repeat(1000);
        let ids = [long.as_str(), &long[1..], "../../etc/passwd", "a/b", ".hidden", "ä", "a:b"];
        for id in ids {
            store.save(&record(id, "eth0")).unwrap();
        }
        assert_eq!(store.load_all().unwrap().records.len(), ids.len());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), ids.len());
        for id in ids {
            store.remove(id, "eth0").unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn any_file_is_loaded_or_set_aside(text in prop::collection::vec(any::<u8>(), 0..100), edit in any::<prop::sample::Index>()) {
            let (dir, store) = store();
            store.save(&record("c1", "eth0")).unwrap();
            let path = dir.path().join("c1:eth0.json");
            let mut bytes = fs::read(&path).unwrap();
            let at = edit.index(bytes.len());
            bytes.splice(at..at, text);
            fs::write(&path, bytes).unwrap();
            let loaded = store.load_all().unwrap();
            prop_assert_eq!(loaded.records.len() + loaded.stale.len() + loaded.corrupt.len(), 1);
        }
    }

    fn store() -> (tempfile::TempDir, RecordStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::open(dir.path(), BOOT).unwrap();
        (dir, store)
    }

    fn record(container: &str, ifname: &str) -> EndpointRecord {
        EndpointRecord {
            state: State::Ready,
            endpoint_id: 7,
            container_id: container.to_owned(),
            ifname: ifname.to_owned(),
            netns: format!("/run/netns/{container}").into(),
            host_ifindex: 65_543,
            host_device: "weft7".to_owned(),
            mac: Mac::new([2, 0, 0, 0, 0, 7]),
            ipv4: Some([10, 0, 1, 7].into()),
            ipv6: "fd00:1::7".parse().ok(),
            mtu: 1500,
            pod: Some(PodName { namespace: "default".to_owned(), name: "web".to_owned(), uid: Some("u-1".to_owned()) }),
            created: 1_700_000_000,
        }
    }
}
