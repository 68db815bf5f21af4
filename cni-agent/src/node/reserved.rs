//! Ports of the node that its own programs do not get by chance, as masquerade gives them to pods: `net.ipv4.ip_local_reserved_ports`.
//!
//! Others may have reserved some as well, which stay. What we have added is noted in the state directory before it is added, so whatever
//! becomes of the agent, the next one and `weft uninstall` know what to take out again. A note of another boot is void, as what it tells of
//! is gone: the kernel begins without any.
use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::ports::{NoPorts, PortRange, PortSet};

/// Where the kernel shows and takes them: of the network namespace of the thread that opens it.
pub const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The range that the kernel chooses from, for a socket that names no port: first and last, with blanks between.
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Name of the note in the state directory.
pub const NOTE: &str = "reserved-ports";
/// Its name while it is written.
pub const NOTE_STAGED: &str = ".reserved-ports.new";

/// Ports cannot be reserved, or given back.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// A file cannot be read or written.
    #[error("{verb} {}", path.display())]
    File {
        /// `read`, `write` or `remove`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NoPorts,
    },
    /// The node's own programs would have none left.
    #[error(
        "with {range} (--masquerade-ports) no port would be left to the node's own programs, whom the kernel gives {local} \
         (net.ipv4.ip_local_port_range): give masquerade another range, or the node a wider one"
    )]
    NoneLeft {
        /// What masquerade is to have.
        range: PortRange,
        /// What the kernel chooses from.
        local: PortRange,
    },
}

/// What is written down of what was added.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    /// In which boot.
    boot_id: String,
    /// Ports, as the kernel writes them.
    added: String,
}

/// The node's reserved ports, and our part in them.
#[derive(Clone, Debug)]
pub struct ReservedPorts {
    /// [`RESERVED`], or another name of it.
    reserved: PathBuf,
    /// [`LOCAL`]: only read, which a container may too.
    local: PathBuf,
    state_dir: PathBuf,
    boot_id: String,
}

impl ReservedPorts {
    /// `reserved` is [`RESERVED`], of the network namespace of the threads that use it, or what stands for it in a container, whose own may not be
    /// written; `boot_id` is the content of `/proc/sys/kernel/random/boot_id`.
    pub fn new(reserved: &Path, state_dir: &Path, boot_id: &str) -> Self {
        Self {
            reserved: reserved.to_owned(),
            local: PathBuf::from(LOCAL),
            state_dir: state_dir.to_owned(),
            boot_id: boot_id.trim().to_owned(),
        }
    }

    /// Makes these ports, and no others, our part.
    ///
    /// # Errors
    /// [`ReserveError`]. What was ours before may still be, and is noted.
    pub fn reserve(&self, range: PortRange) -> Result<(), ReserveError> {
        let (there, ours) = (self.there()?, self.ours()?);
        let plan = Plan::new(&there, &ours, &range.into());
        if let Some(local) = self.local()?
            && PortSet::from(local).minus(&plan.after).is_empty()
        {
            return Err(ReserveError::NoneLeft { range, local });
        }
        self.change(&there, &ours, &plan)
    }

    /// Takes our part out again. Nothing to do where there is none.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn give_back(&self) -> Result<(), ReserveError> {
        let ours = self.ours()?;
        if ours.is_empty() {
            return self.forget();
        }
        let there = self.there()?;
        self.change(&there, &ours, &Plan::new(&there, &ours, &PortSet::EMPTY))
    }

    /// Our part: what we have added in this boot.
    ///
    /// # Errors
    /// When the note is there and cannot be read.
    pub fn ours(&self) -> Result<PortSet, ReserveError> {
        let path = self.note();
        let text = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(PortSet::EMPTY),
            other => other.map_err(failed("read", &path))?,
        };
        // Renamed into its place whole, so what cannot be read is somebody else's.
        let note: Note = serde_json::from_slice(&text).map_err(|e| failed("read", &path)(e.into()))?;
        if note.boot_id != self.boot_id {
            return Ok(PortSet::EMPTY);
        }
        note.added.parse().map_err(|source| ReserveError::Unreadable { path, source })
    }

    /// Only what is noted is ever taken out, so the note covers both what is ours and what is to be, until that is so.
    fn change(&self, there: &PortSet, ours: &PortSet, plan: &Plan) -> Result<(), ReserveError> {
        if *there != plan.after {
            self.write_note(&ours.union(&plan.added))?;
            let path = self.reserved.clone();
            // An empty write is none: the line's end says that the list is empty.
            fs::write(&path, format!("{}\n", plan.after)).map_err(failed("write", &path))?;
            info!(before = %there, now = %plan.after, "net.ipv4.ip_local_reserved_ports is another one");
        }
        if plan.added.is_empty() {
            return self.forget();
        }
        if plan.added == self.ours()? { Ok(()) } else { self.write_note(&plan.added) }
    }

    fn there(&self) -> Result<PortSet, ReserveError> {
        let path = self.reserved.clone();
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        text.parse().map_err(|source| ReserveError::Unreadable { path, source })
    }

    /// `None`: it has another form than ours.
    fn local(&self) -> Result<Option<PortRange>, ReserveError> {
        let path = self.local.clone();
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let mut numbers = text.split_whitespace().map(str::parse);
        Ok(match (numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(last))) => PortRange::new(first, last),
            _ => None,
        })
    }

    fn note(&self) -> PathBuf {
        self.state_dir.join(NOTE)
    }

    fn write_note(&self, added: &PortSet) -> Result<(), ReserveError> {
        let (path, staged) = (self.note(), self.state_dir.join(NOTE_STAGED));
        let note = Note { boot_id: self.boot_id.clone(), added: added.to_string() };
        let write = || {
            let mut text = serde_json::to_vec(&note)?;
            text.push(b'\n');
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?.write_all(&text)?;
            fs::rename(&staged, &path)
        };
        write().map_err(failed("write", &path))
    }

    fn forget(&self) -> Result<(), ReserveError> {
        let path = self.note();
        // Where nothing can be written, removing what is not there fails too.
        if path.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReserveError {
    let path = path.to_owned();
    move |source| ReserveError::File { verb, path, source }
}

/// What the list is to become. Pure.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The list.
    after: PortSet,
    /// What of it is our part: not what others have reserved too.
    added: PortSet,
}

impl Plan {
    /// From the list as it is, our part in it so far, and what is to be in it.
    fn new(there: &PortSet, ours: &PortSet, wanted: &PortSet) -> Self {
        let others = there.minus(ours);
        Self { after: others.union(wanted), added: wanted.minus(&others) }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::netlink::netns;

    const NAME: &str = "ip_local_reserved_ports";
    const RANGE_NAME: &str = "ip_local_port_range";
    const RANGE: PortRange = PortRange::new(61_000, 65_535).unwrap();

    struct Node {
        root: TempDir,
    }
    impl Node {
        fn new(reserved: &str) -> Self {
            let node = Self { root: tempfile::tempdir().unwrap() };
            fs::write(node.root.path().join(NAME), format!("{reserved}\n")).unwrap();
            fs::write(node.root.path().join(RANGE_NAME), "32768\t60999\n").unwrap();
            node
        }
        fn ports(&self, boot: &str) -> ReservedPorts {
            let root = self.root.path();
            let ports = ReservedPorts::new(&root.join(NAME), root, boot);
            ReservedPorts { local: root.join(RANGE_NAME), ..ports }
        }
        fn reserved(&self) -> String {
            fs::read_to_string(self.root.path().join(NAME)).unwrap().trim().to_owned()
        }
        fn has_note(&self) -> bool {
            self.root.path().join(NOTE).exists()
        }
    }

    #[test]
    fn what_others_have_reserved_stays_whatever_comes_and_goes() {
        for (others, with) in [
            ("", "61000-65535"),
            ("8080", "8080,61000-65535"),
            ("60990-61010,62000", "60990-65535"),
            ("61000-65535", "61000-65535"),
            ("1-65535", "1-65535"),
        ] {
            let node = Node::new(others);
            fs::write(node.root.path().join(RANGE_NAME), "0 65535").unwrap();
            for _ in 0..2 {
                node.ports("b").reserve(RANGE).unwrap();
                assert_eq!(node.reserved(), with, "{others}");
            }
            node.ports("b").give_back().unwrap();
            assert_eq!((node.reserved().as_str(), node.has_note()), (others, false));
            node.ports("b").give_back().unwrap();
            assert_eq!(node.reserved(), others, "a second time");
        }
    }

    #[test]
    fn another_range_takes_the_place_of_the_former_one() {
        let node = Node::new("8080");
        node.ports("b").reserve(RANGE).unwrap();
        node.ports("b").reserve(PortRange::new(50_000, 61_500).unwrap()).unwrap();
        assert_eq!(node.reserved(), "8080,50000-61500");
        // Somebody else has reserved some in the middle of ours meanwhile, and all of ours went.
        fs::write(node.root.path().join(NAME), "8080,55000\n").unwrap();
        node.ports("b").reserve(RANGE).unwrap();
        assert_eq!(node.reserved(), "8080,61000-65535", "nobody can tell whose 55000 is");
        node.ports("b").give_back().unwrap();
        assert_eq!(node.reserved(), "8080");
    }

    #[test]
    fn an_agent_that_dies_between_note_and_kernel_leaves_nothing_behind() {
        let node = Node::new("8080");
        node.ports("b").write_note(&RANGE.into()).unwrap();
        node.ports("b").give_back().unwrap();
        assert_eq!((node.reserved().as_str(), node.has_note()), ("8080", false));
        node.ports("b").write_note(&RANGE.into()).unwrap();
        node.ports("b").reserve(RANGE).unwrap();
        node.ports("b").give_back().unwrap();
        assert_eq!(node.reserved(), "8080");
    }

    #[test]
    fn it_is_noted_before_it_is_done() {
        let node = Node::new("");
        let sysctl = node.root.path().join(NAME);
        fs::remove_file(&sysctl).unwrap();
        // A number that nobody may write, root neither.
        std::os::unix::fs::symlink("/proc/sys/kernel/random/poolsize", &sysctl).unwrap();
        let error = node.ports("b").reserve(RANGE).unwrap_err().to_string();
        assert!(error.starts_with("write ") && error.contains(NAME), "{error}");
        // As if the agent had died behind the write.
        fs::remove_file(&sysctl).unwrap();
        fs::write(&sysctl, "61000-65535\n").unwrap();
        node.ports("b").give_back().unwrap();
        assert_eq!((node.reserved().as_str(), node.has_note()), ("", false));
    }

    #[test]
    fn a_note_of_another_boot_is_void() {
        let node = Node::new("");
        node.ports("one").reserve(RANGE).unwrap();
        // After the reboot somebody's sysctl.d reserves a part.
        fs::write(node.root.path().join(NAME), "62000\n").unwrap();
        assert!(node.ports("two").ours().unwrap().is_empty());
        node.ports("two").reserve(RANGE).unwrap();
        node.ports("two").give_back().unwrap();
        assert_eq!((node.reserved().as_str(), node.has_note()), ("62000", false));
        node.ports("one").reserve(RANGE).unwrap();
        node.ports("two").give_back().unwrap();
        assert_eq!((node.reserved().as_str(), node.has_note()), ("61000-65535", false), "not ours to take out");
    }

    #[test]
    fn the_node_keeps_ports_of_its_own() {
        let node = Node::new("32768-50000");
        let error = node.ports("b").reserve(PortRange::new(50_001, 60_999).unwrap()).unwrap_err().to_string();
        assert!(error.contains("50001-60999 (--masquerade-ports)") && error.contains("32768-60999"), "{error}");
        assert_eq!((node.reserved().as_str(), node.has_note()), ("32768-50000", false));
        node.ports("b").reserve(PortRange::new(50_001, 60_998).unwrap()).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let node = Node::new("");
        fs::remove_file(node.root.path().join(NAME)).unwrap();
        let error = crate::error_chain(&node.ports("b").reserve(RANGE).unwrap_err());
        assert!(error.contains("read ") && error.contains(NAME) && error.contains("No such file"), "{error}");
        node.ports("b").give_back().unwrap();
    }

    #[test]
    #[ignore = "makes a network namespace"]
    fn the_kernel_takes_and_shows_what_is_written() {
        let (ns, state) = (netns::anonymous().unwrap(), tempfile::tempdir().unwrap());
        let in_it = || {
            let ports = ReservedPorts::new(Path::new(RESERVED), state.path(), "b");
            let path = Path::new(RESERVED);
            fs::write(path, "8080,9000-9010,61005\n").unwrap();
            ports.reserve(RANGE).unwrap();
            let with = fs::read_to_string(path).unwrap();
            ports.give_back().unwrap();
            let after = fs::read_to_string(path).unwrap();
            fs::write(path, "\n").unwrap();
            ports.reserve(RANGE).unwrap();
            ports.give_back().unwrap();
            (with, after, fs::read_to_string(path).unwrap())
        };
        use std::os::fd::AsFd as _;
        let (with, after, empty) = netns::in_netns(ns.as_fd(), in_it).unwrap();
        assert_eq!(
            (with.trim(), after.trim(), empty.trim()),
            ("8080,9000-9010,61000-65535", "8080,9000-9010,61005", "")
        );
    }
}
