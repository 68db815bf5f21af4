//! Writes a compressed tar archive (`ustar`, POSIX.1-1988), file by file.
use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

/// All is counted in blocks.
const BLOCK: usize = 512;
/// Where a header has its fields, and how long they are: POSIX.1-1988, section 10.1.1.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const UID: (usize, usize) = (108, 8);
const GID: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const MAGIC: (usize, usize) = (257, 8);
const PREFIX: (usize, usize) = (345, 155);

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    to: GzEncoder<W>,
    /// Seconds since 1970: all files are of this time.
    time: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W, time: u64) -> Self {
        Self { to: GzEncoder::new(to, Compression::default()), time }
    }

    /// Adds a file. Its path must fit into a header: 255 bytes, with a slash at the right place.
    pub(super) fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.to.write_all(&header(path, data.len(), self.time)?)?;
        self.to.write_all(data)?;
        let rest = data.len().next_multiple_of(BLOCK) - data.len();
        self.to.write_all(&vec![0; rest])
    }

    /// Its end: two empty blocks.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.to.finish()
    }
}

fn header(path: &str, size: usize, time: u64) -> io::Result<[u8; BLOCK]> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too long for a tar archive"));
    let (prefix, name) = match path.len() {
        length if length <= NAME.1 => ("", path),
        _ => {
            let fits = |(at, _): &(usize, &str)| *at <= PREFIX.1 && path.len() - at - 1 <= NAME.1;
            path.match_indices('/').find(fits).map(|(at, _)| (&path[..at], &path[at + 1..])).ok_or_else(too_long)?
        }
    };
    let mut block = [0; BLOCK];
    let mut put = |(at, length): (usize, usize), text: &str| {
        let field = block.get_mut(at..at + text.len()).filter(|_| text.len() <= length);
        field.map(|field| field.copy_from_slice(text.as_bytes())).ok_or_else(too_long)
    };
    put(NAME, name)?;
    put(MODE, "0000600\0")?;
    put(UID, "0000000\0")?;
    put(GID, "0000000\0")?;
    put(SIZE, &format!("{size:011o}\0"))?;
    put(TIME, &format!("{time:011o}\0"))?;
    put(MAGIC, "ustar\x0000")?;
    put(PREFIX, prefix)?;
    // The sum is made with blanks in its own place.
    put(CHECKSUM, "        ")?;
    block[KIND] = b'0';
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    let text = format!("{sum:06o}\0 ");
    block[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].copy_from_slice(text.as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar.gz");
        let mut archive = Archive::new(std::fs::File::create(&file).unwrap(), 1_000_000_000);
        let long = format!("a/{}/{}", "d".repeat(90), "f".repeat(90));
        archive.file("a/short.json", b"{}").unwrap();
        archive.file(&long, &[b'x'; 1000]).unwrap();
        assert!(archive.file(&"n".repeat(101), b"").is_err());
        drop(archive.finish().unwrap());
        let output = Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(dir.path().join("a/short.json")).unwrap(), b"{}");
        assert_eq!(std::fs::read(dir.path().join(long)).unwrap(), [b'x'; 1000]);
    }
}
