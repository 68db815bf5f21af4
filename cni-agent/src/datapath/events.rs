//! The ring of drop events.
use std::{io, os::fd::AsFd, time::Duration};

use aya::maps::{Map, MapData, MapError, RingBuf};
use cni_common::event::DropEvent;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Reads drop events. It blocks: it belongs on a thread of its own (tokio's `AsyncFd` would need an unsafe promise for the
/// ring's descriptor).
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Takes the ring. Fails when the map is none.
    pub fn new(map: Map) -> Result<Self, MapError> {
        Ok(Self { ring: RingBuf::try_from(map)? })
    }

    /// Waits for events, `timeout` at most, and hands each to `sink`.
    pub fn wait(&mut self, timeout: Duration, sink: impl FnMut(DropEvent)) -> io::Result<()> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        self.drain(sink);
        Ok(())
    }

    /// Hands what is there to `sink`.
    pub fn drain(&mut self, mut sink: impl FnMut(DropEvent)) {
        while let Some(item) = self.ring.next() {
            // A record of another length would be another build's: the map's name and fingerprint forbid it.
            if let Ok(event) = bytemuck::try_pod_read_unaligned::<DropEvent>(&item) {
                sink(event);
            }
        }
    }
}
