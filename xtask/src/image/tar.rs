//! Writes tar archives in the form of POSIX.1-1988 (`ustar`), without anything that differs from run to run: owner root, time 0,
//! entries in the order of their names.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// All is counted in blocks.
const BLOCK: usize = 512;
/// Where a header has its fields: POSIX.1-1988, section 10.1.1.
const MODE: usize = 100;
const UID: usize = 108;
const GID: usize = 116;
const SIZE: usize = 124;
const TIME: usize = 136;
const CHECKSUM: usize = 148;
const KIND: usize = 156;
const MAGIC: usize = 257;

/// An archive; paths have no leading slash.
#[derive(Default)]
pub struct Archive {
    /// Permissions and content; none of a directory, whose path ends in a slash.
    entries: BTreeMap<String, (u32, Option<Vec<u8>>)>,
}

impl Archive {
    /// Adds a file, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        for (at, _) in path.match_indices('/') {
            self.entries.insert(path[..=at].to_owned(), (0o755, None));
        }
        self.entries.insert(path.to_owned(), (mode, Some(data)));
    }

    /// The archive.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (path, (mode, data)) in &self.entries {
            let data = data.as_deref();
            out.extend(header(path, *mode, data.map_or(0, <[u8]>::len), data.is_none())?);
            out.extend(data.unwrap_or_default());
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        // Its end are two empty blocks.
        out.resize(out.len() + 2 * BLOCK, 0);
        Ok(out)
    }
}

fn header(path: &str, mode: u32, size: usize, is_directory: bool) -> Result<[u8; BLOCK]> {
    if path.len() > MODE {
        bail!("`{path}` is too long for a tar header");
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| -> Result<()> {
        block.get_mut(at..at + text.len()).context("a field of a tar header")?.copy_from_slice(text.as_bytes());
        Ok(())
    };
    put(0, path)?;
    put(MODE, &format!("{mode:07o}\0"))?;
    put(UID, "0000000\0")?;
    put(GID, "0000000\0")?;
    put(SIZE, &format!("{size:011o}\0"))?;
    put(TIME, "00000000000\0")?;
    // The sum is over a header in which its own field is blank.
    put(CHECKSUM, "        ")?;
    put(KIND, if is_directory { "5" } else { "0" })?;
    put(MAGIC, "ustar\x0000")?;
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    let field = format!("{sum:06o}\0 ");
    block[CHECKSUM..CHECKSUM + field.len()].copy_from_slice(field.as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn tar_reads_what_we_write() {
        let mut archive = Archive::default();
        archive.file("a/b/program", 0o755, vec![7; 700]);
        archive.file("a/text", 0o644, Vec::new());
        let mut tar = Command::new("tar")
            .args(["-tv", "--numeric-owner"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&archive.bytes().unwrap()).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let fields: Vec<Vec<&str>> = text.lines().map(|l| l.split_ascii_whitespace().collect()).collect();
        let facts: Vec<(&str, &str, &str)> = fields.iter().map(|f| (f[0], f[2], f[5])).collect();
        assert_eq!(
            facts,
            [
                ("drwxr-xr-x", "0", "a/"),
                ("drwxr-xr-x", "0", "a/b/"),
                ("-rwxr-xr-x", "700", "a/b/program"),
                ("-rw-r--r--", "0", "a/text"),
            ]
        );
    }
}
