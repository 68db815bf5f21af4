//! A file that is placed whole.
use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What placing a file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The file is there with that content already; nothing was written.
    Same,
    /// There was none.
    New,
    /// There was one with other content or another mode.
    Changed,
}

/// What placing a file would come to.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn compare(path: &Path, content: &[u8], mode: u32) -> io::Result<Placed> {
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Placed::New),
        other => other?,
    };
    let same = meta.is_file() && meta.mode() & 0o7777 == mode && meta.len() == content.len() as u64;
    Ok(if same && fs::read(path)? == content { Placed::Same } else { Placed::Changed })
}

/// The name that a file is written under before it gets its own; `None` where the path names no file.
pub(crate) fn temporary(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(format!(".{}.new", path.file_name()?.to_string_lossy())))
}

/// Makes the file's content and mode these. Whoever looks meanwhile sees the old file or the new one; the name that is written
/// under is hidden and has none of the endings that runtimes take for a configuration. There is no fsync: what a crash of the
/// machine spoils the next agent's start makes whole.
///
/// # Errors
/// When the directory or the file cannot be made. The file is as it was.
pub(crate) fn place(path: &Path, content: &[u8], mode: u32) -> io::Result<Placed> {
    let placed = compare(path, content, mode)?;
    if placed == Placed::Same {
        return Ok(placed);
    }
    let (Some(directory), Some(temporary)) = (path.parent(), temporary(path)) else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path names no file"));
    };
    fs::create_dir_all(directory)?;
    // What a former attempt left: it may have another mode, or be a link to somewhere.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // Not as `mode` above alone, of which the process' umask takes away.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The error that counts is the one above.
        drop(fs::remove_file(&temporary));
    }
    written.map(|()| placed)
}
