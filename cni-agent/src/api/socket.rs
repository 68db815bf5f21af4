//! The unix socket: nobody but its owner may connect, not even for a moment, and a living agent's is never taken away.
use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, listen, socket};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens.
    #[error("another process already listens on {}: stop the other agent, or give this one another --run-dir", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file of another kind has the name.
    #[error("{} is not a socket: move it away, or give the agent another --run-dir", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refuses a step.
    #[error("{step} {}", path.display())]
    Io {
        /// What was attempted.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A listening socket. Dropping it removes the file, if it is still its own.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: SocketFile,
}
impl Listener {
    /// For the runtime that serves it. The file lives as long as the second part.
    pub(super) fn into_parts(self) -> io::Result<(tokio::net::UnixListener, SocketFile)> {
        self.socket.set_nonblocking(true)?;
        Ok((tokio::net::UnixListener::from_std(self.socket)?, self.file))
    }
}

/// Removes the socket's file in the end, unless a later agent has put its own there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}
impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "socket file stays behind, the next agent removes it");
        }
    }
}

/// Makes the socket, mode 0600, in place of one that nobody listens on any more.
pub fn bind(path: &Path) -> Result<Listener, BindError> {
    let failed = |step: &'static str, source: io::Error| BindError::Io { step, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|e| failed("remove the abandoned socket", e))?;
            }
            // Also when the answer is another error: only a refusal tells that nobody listens.
            _ => return Err(BindError::InUse { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at the socket", error)),
    }
    let address = UnixAddr::new(path).map_err(|e| failed("make an address of", e.into()))?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| failed("make a socket for", e.into()))?;
    bind_to(socket.as_raw_fd(), &address).map_err(|e| failed("bind the socket", e.into()))?;
    // Until it listens, everybody who connects is refused: so the mode is right before the first connection.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| failed("set mode 0600 on", e))?;
    listen(&socket, Backlog::MAXCONN).map_err(|e| failed("listen on", e.into()))?;
    let meta = fs::symlink_metadata(path).map_err(|e| failed("look at the socket", e))?;
    let file = SocketFile { path: path.to_owned(), inode: (meta.dev(), meta.ino()) };
    Ok(Listener { socket: UnixListener::from(socket), file })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_the_owner_may_connect() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        let _listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_listens_on_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        let _listener = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }) && error.to_string().contains("--run-dir"), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn an_abandoned_socket_is_replaced() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_removed() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).unwrap_err(), BindError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_file_goes_with_the_listener_but_not_another_ones() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("api.sock");
        drop(bind(&path).unwrap());
        assert!(!path.exists());
        let first = bind(&path).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_that_names_it() {
        let path = Path::new("/tmp").join("x".repeat(200));
        assert!(format!("{}", bind(&path).unwrap_err()).contains(&"x".repeat(200)));
    }
}
