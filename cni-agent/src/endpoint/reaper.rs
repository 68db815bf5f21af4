//! Deletes pods' devices after DEL has answered: a deletion costs its caller a grace period of RCU, 15 to 30 ms.
use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tracing::{debug, warn};

use crate::netlink::{NetlinkError, Socket, link};

/// What is called when a device is gone.
type Gone = Box<dyn FnOnce() + Send>;

/// The thread that deletes.
pub struct Reaper {
    queue: mpsc::Sender<(u32, Gone)>,
    waiting: Arc<(Mutex<usize>, Condvar)>,
}

impl Reaper {
    /// Starts it.
    pub fn start() -> Result<Self, NetlinkError> {
        let mut socket = Socket::open()?;
        let (queue, devices) = mpsc::channel::<(u32, Gone)>();
        let waiting = Arc::new((Mutex::new(0), Condvar::new()));
        let done = Arc::clone(&waiting);
        let work = move || {
            for (index, gone) in devices {
                match socket.run(link::delete(index)) {
                    Ok(()) => gone(),
                    // The runtime has removed the namespace, and the pair with it.
                    Err(e) if e.is_missing() => gone(),
                    // The address stays in quarantine: the device may still hold it.
                    Err(e) => warn!(index, error = %e, "cannot delete a pod's device"),
                }
                *done.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                done.1.notify_all();
            }
        };
        thread::Builder::new()
            .name("reaper".into())
            .spawn(work)
            .map_err(|e: io::Error| NetlinkError::socket("start the thread that deletes devices")(e))?;
        Ok(Self { queue, waiting })
    }

    /// Deletes a device; `gone` is called when it is.
    pub fn delete(&self, index: u32, gone: impl FnOnce() + Send + 'static) {
        *self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        if self.queue.send((index, Box::new(gone))).is_err() {
            debug!(index, "the reaper has ended; the next agent deletes the device");
        }
    }

    /// Waits until nothing is left to delete; whether that came in time.
    pub fn flush(&self, timeout: Duration) -> bool {
        let waiting = self.waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, _) =
            self.waiting.1.wait_timeout_while(waiting, timeout, |n| *n > 0).unwrap_or_else(PoisonError::into_inner);
        *left == 0
    }
}
