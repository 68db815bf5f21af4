//! DELs that were answered while no agent ran.
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use cni_plugin::{
    spec::{CniError, ErrorCode},
    tombstone::{self, Tombstone},
};
use tracing::{info, warn};

use super::manager::EndpointManager;
use crate::{
    cni::server::Lines,
    error_chain,
    fault::{self, Point},
};

/// What is added to the name of a file that is no tombstone.
const CORRUPT: &str = "corrupt";

/// How long to wait before what could not be made up for is tried again, at first and at most; in between it doubles.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

impl EndpointManager {
    /// Makes up for what was left before the agent listens, when no call is under way.
    pub fn replay_tombstones(&self) {
        replay(&self.tombstones, |left| self.bury(&left.container_id, &left.ifname));
    }

    /// The same once it listens, for those that were left meanwhile and those that failed: each in the line of its attachment, where an
    /// ADD or DEL may have come first and seen to it. Tries until nothing is left, or `stop` has no sender any more.
    pub fn replay_in_line(self: &Arc<Self>, lines: &Lines, stop: &Receiver<()>) {
        replay_until_done(&self.tombstones, stop, |left| {
            let (manager, left) = (Arc::clone(self), left.clone());
            let attachment = (left.container_id.clone(), left.ifname.clone());
            lines.run(attachment, move || manager.bury(&left.container_id, &left.ifname)).unwrap_or_else(|| {
                Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, "too many calls wait for this container's interface"))
            })
        });
    }

    /// Disconnects an attachment whose DEL no agent has seen; whether there was one. To be called where no other call for the attachment
    /// is at work: what comes after a DEL must not be taken for what it was about.
    pub(super) fn bury(&self, container_id: &str, ifname: &str) -> Result<bool, CniError> {
        let tombstone = Tombstone::new(container_id, ifname);
        bury(&self.tombstones, &tombstone, || self.disconnect(container_id, ifname))
    }

    /// Removes a tombstone; whether it was there.
    pub(super) fn take(&self, tombstone: &Tombstone) -> Result<bool, CniError> {
        tombstone.take(&self.tombstones).map_err(|e| io_failure(&self.tombstones, &e))
    }
}

/// The tombstone goes last: it must outlive a failure, and an agent that ends meanwhile.
fn bury(
    directory: &Path,
    tombstone: &Tombstone,
    disconnect: impl FnOnce() -> Result<(), CniError>,
) -> Result<bool, CniError> {
    if !tombstone.stands(directory).map_err(|e| io_failure(directory, &e))? {
        return Ok(false);
    }
    info!(container = tombstone.container_id, ifname = tombstone.ifname, "making up for a DEL that no agent has seen");
    disconnect()?;
    fault::pass(Point::TombstoneServed);
    tombstone.take(directory).map_err(|e| io_failure(directory, &e))?;
    Ok(true)
}

/// Has `bury` done for every tombstone there is; whether nothing is left to do.
fn replay(directory: &Path, mut bury: impl FnMut(&Tombstone) -> Result<bool, CniError>) -> bool {
    let (found, bad) = match tombstone::list(directory) {
        Ok(listed) => listed,
        Err(e) => {
            warn!(path = %directory.display(), error = %e, "cannot read what DEL has left while no agent ran");
            return false;
        }
    };
    bad.iter().for_each(set_aside);
    let (mut replayed, mut failed) = (0, 0);
    for left in &found {
        match bury(left) {
            Ok(there) => replayed += usize::from(there),
            Err(e) => {
                failed += 1;
                warn!(container = left.container_id, ifname = left.ifname, error = %e, "cannot make up for a DEL yet");
            }
        }
    }
    if !found.is_empty() {
        info!(replayed, failed, "made up for DELs that came while no agent ran");
    }
    failed == 0
}

fn replay_until_done(
    directory: &Path,
    stop: &Receiver<()>,
    mut bury: impl FnMut(&Tombstone) -> Result<bool, CniError>,
) {
    let mut wait = AGAIN.0;
    while !replay(directory, &mut bury) && stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        wait = wait.saturating_mul(2).min(AGAIN.1);
    }
}

fn io_failure(directory: &Path, error: &io::Error) -> CniError {
    let text = format!("look for a tombstone in {}, or remove it: {}", directory.display(), error_chain(error));
    CniError::new(ErrorCode::IO_FAILURE, text).with_details("the directory of --run-dir must be writable")
}

fn set_aside(path: &PathBuf) {
    let aside = path.with_extension(CORRUPT);
    match std::fs::rename(path, &aside) {
        Ok(()) => warn!(path = %aside.display(), "a file among the tombstones is none, and was set aside"),
        Err(e) => {
            warn!(path = %path.display(), error = %e, "a file among the tombstones is none, and cannot be set aside")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn an_add_that_came_between_is_not_undone() {
        let (dir, left) = one();
        let done = replay(dir.path(), |listed| {
            // The ADD has made up for the DEL before it, and its pod lives.
            assert!(left.take(dir.path()).unwrap());
            bury(dir.path(), listed, || panic!("the new pod is cut off"))
        });
        assert!(done);
    }

    #[test]
    fn what_fails_is_tried_again_until_it_succeeds() {
        let (dir, left) = one();
        let (_running, stop) = channel();
        let mut tries = 0;
        replay_until_done(dir.path(), &stop, |listed| {
            bury(dir.path(), listed, || {
                tries += 1;
                assert!(left.stands(dir.path()).unwrap(), "an agent that ends now leaves nothing to the next");
                if tries < 3 { Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, "not yet")) } else { Ok(()) }
            })
        });
        assert_eq!((tries, left.stands(dir.path()).unwrap()), (3, false));
    }

    #[test]
    fn an_agent_that_stops_does_not_go_on_trying() {
        let (dir, left) = one();
        let (running, stop) = channel();
        drop(running);
        replay_until_done(dir.path(), &stop, |_| Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, "not yet")));
        assert!(left.stands(dir.path()).unwrap());
    }

    /// A directory with one tombstone.
    fn one() -> (tempfile::TempDir, Tombstone) {
        let dir = tempfile::tempdir().unwrap();
        let left = Tombstone::new("c1", "eth0");
        left.leave(dir.path()).unwrap();
        (dir, left)
    }
}
