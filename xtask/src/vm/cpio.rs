//! Writes the archive that Linux unpacks as its first root file system: cpio in its "new" ASCII form (`newc`), as
//! described in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

/// What a path is.
enum Node {
    Dir,
    File { mode: u32, data: Vec<u8> },
    Link(String),
    CharDevice { major: u32, minor: u32 },
}

/// A file system tree; paths are relative to its root and without a leading slash.
#[derive(Default)]
pub struct Archive {
    // Ordered by path, so that a directory stands before what is in it.
    nodes: BTreeMap<String, Node>,
}

/// Types of inodes in the mode field.
const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHAR: u32 = 0o020_000;

impl Archive {
    /// Adds a directory and those above it.
    pub fn dir(&mut self, path: &str) {
        let mut end = 0;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            end = path[end..].find(part).map_or(end, |at| end + at) + part.len();
            self.nodes.entry(path[..end].trim_start_matches('/').to_owned()).or_insert(Node::Dir);
        }
    }

    /// Adds a file with its permissions.
    pub fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.put(path, Node::File { mode, data });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.put(path, Node::Link(to.to_owned()));
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Node::CharDevice { major, minor });
    }

    /// Whether a path is there.
    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_start_matches('/'))
    }

    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the archive and gives its length in bytes.
    pub fn write(&self, out: impl Write) -> io::Result<u64> {
        let mut out = Counted { out, written: 0 };
        for (number, (path, node)) in (1..).zip(&self.nodes) {
            let (mode, data, device): (u32, &[u8], (u32, u32)) = match node {
                Node::Dir => (DIR | 0o755, &[], (0, 0)),
                Node::File { mode, data } => (FILE | mode, data, (0, 0)),
                Node::Link(to) => (LINK | 0o777, to.as_bytes(), (0, 0)),
                Node::CharDevice { major, minor } => (CHAR | 0o600, &[], (*major, *minor)),
            };
            entry(&mut out, number, path, mode, data, device)?;
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0))?;
        Ok(out.written)
    }
}

struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Counted<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) -> io::Result<()> {
        while !self.written.is_multiple_of(4) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

fn entry<W: Write>(
    out: &mut Counted<W>,
    number: u32,
    path: &str,
    mode: u32,
    data: &[u8],
    device: (u32, u32),
) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too large for a cpio archive"));
    let size = u32::try_from(data.len()).map_err(too_large)?;
    let name = u32::try_from(path.len() + 1).map_err(too_large)?;
    // Inode, mode, owner, group, links, time, size, device of the file, device that it is, length of the name, checksum.
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
    out.put(b"070701")?;
    for field in fields {
        out.put(format!("{field:08x}").as_bytes())?;
    }
    out.put(path.as_bytes())?;
    out.put(&[0])?;
    out.pad()?;
    out.put(data)?;
    out.pad()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file("/bin/tool", 0o755, b"abc".to_vec());
        archive.link("init", "bin/tool");
        archive.char_device("dev/console", 5, 1);
        assert!(archive.has("/bin/tool") && archive.has("bin") && !archive.has("tool"));
        let mut bytes = Vec::new();
        assert_eq!(archive.write(&mut bytes).unwrap(), bytes.len() as u64);
        bytes
    }

    /// Names and modes, read back as the kernel does.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut found) = (0, Vec::new());
        let round = |n: usize| n.next_multiple_of(4);
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let start = at + 6 + n * 8;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap() as usize
            };
            let (mode, size, name_len) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_len - 1].to_vec()).unwrap();
            let data = round(at + 110 + name_len);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, u32::try_from(mode).unwrap(), bytes[data..data + size].to_vec()));
            at = round(data + size);
        }
    }

    #[test]
    fn directories_stand_before_their_files() {
        let names: Vec<String> = entries(&archive()).into_iter().map(|(n, _, _)| n).collect();
        assert_eq!(names, ["bin", "bin/tool", "dev", "dev/console", "init"]);
    }

    #[test]
    fn contents_and_modes_survive() {
        let entries = entries(&archive());
        assert_eq!(entries[1], ("bin/tool".to_owned(), FILE | 0o755, b"abc".to_vec()));
        assert_eq!(entries[4], ("init".to_owned(), LINK | 0o777, b"bin/tool".to_vec()));
        assert_eq!(entries[0].1, DIR | 0o755);
    }
}
