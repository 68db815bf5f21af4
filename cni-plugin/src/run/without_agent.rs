//! DEL while no agent runs.
use std::path::{Path, PathBuf};

use super::{
    attachment::beside,
    call::{Call, NotDone},
};
use crate::{
    client::Unanswered,
    protocol::Request,
    spec::{CniError, ErrorCode},
    tombstone::{DIRECTORY, Tombstone},
};

/// Leaves a tombstone and deletes the container's device.
///
/// The tombstone comes first: an agent that starts now either finds it, or listens already when the socket is tried again
/// at the end. An agent that is there but silent may yet work off the request that it has; that neither harms nor is harmed,
/// as what both delete is deleted once.
pub fn del(call: &Call<'_>, request: &Request, down: NotDone) -> Result<(), CniError> {
    let tombstone = Tombstone::new(&request.container_id, &request.ifname);
    let directory = directory(&call.conf.agent_socket);
    let left = call.edges.tombstones.leave(&directory, &tombstone).map_err(|e| {
        CniError::new(ErrorCode::IO_FAILURE, format!("cannot leave a tombstone in {}: {e}", directory.display()))
            .with_details("start weft-agent, or make the directory writable and give it room")
    });
    let removed = call.edges.devices.remove(&request.netns, &request.ifname);
    // One that hangs would only take its time again.
    if down.unanswered != Some(Unanswered::Silent) {
        match call.ask(request) {
            Ok(_) => {
                // The agent of this release has taken it already, one of the former does not know it. One that stays
                // disconnects what is no longer connected.
                drop(call.edges.tombstones.take(&directory, &tombstone));
                return Ok(());
            }
            Err(not_done) if not_done.agent_is_down() => {}
            Err(not_done) => return Err(not_done.error),
        }
    }
    let failed = match (left, removed) {
        (Ok(()), Ok(())) => return Ok(()),
        (Err(first), Err(second)) => beside(first, &format!("and {second}")),
        (Err(only), Ok(())) | (Ok(()), Err(only)) => only,
    };
    Err(beside(failed, &format!("this had to be done because {}", down.error.msg)))
}

/// The directory of tombstones beside this socket.
fn directory(socket: &str) -> PathBuf {
    Path::new(socket).parent().unwrap_or(Path::new("/")).join(DIRECTORY)
}
