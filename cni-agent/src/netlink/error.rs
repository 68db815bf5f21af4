//! What can go wrong with a request.
use std::io;

use nix::errno::Errno;

/// A request that failed. The text says what was attempted; [`errno`](Self::errno) and its friends are for callers that act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{what}: {}{}", .errno.desc(), .detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// What was attempted.
        what: String,
        /// Its place in the batch, from 0. Requests after it may have succeeded.
        index: usize,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words (extended ACK), if it gave any.
        detail: Option<String>,
    },
    /// The socket failed.
    #[error("{what}")]
    Socket {
        /// What was attempted.
        what: String,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer does not have the form that it should have.
    #[error("{what}: the kernel's answer can not be read: {detail}")]
    Unreadable {
        /// What was attempted.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It did not happen in time.
    #[error("{what}: it took too long")]
    TimedOut {
        /// What was waited for.
        what: String,
    },
    /// The table changed under every attempt to list it.
    #[error(
        "{what}: the list changed while it was read, {attempts} times in a row; try again when the node is quieter"
    )]
    Interrupted {
        /// What was attempted.
        what: String,
        /// How often.
        attempts: u32,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Unreadable { .. } | Self::TimedOut { .. } | Self::Interrupted { .. } => None,
        }
    }

    /// Place of the failed request in its batch, from 0.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::Refused { index, .. } => Some(*index),
            Self::Socket { .. } | Self::Unreadable { .. } | Self::TimedOut { .. } | Self::Interrupted { .. } => None,
        }
    }

    /// Something of that name, index or place is there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// What was to be changed, read or deleted is not there: device, entry or route.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO))
    }

    pub(crate) fn socket(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Socket { what, source }
    }
}

/// Makes success of "it is not there", for deletions.
pub trait MissingIsDone {
    /// `Ok` unless it failed for another reason than absence.
    ///
    /// # Errors
    /// Every error but [`NetlinkError::is_missing`].
    fn missing_is_done(self) -> Result<(), NetlinkError>;
}
impl MissingIsDone for Result<(), NetlinkError> {
    fn missing_is_done(self) -> Result<(), NetlinkError> {
        match self {
            Err(e) if e.is_missing() => Ok(()),
            other => other,
        }
    }
}
