//! Deletes pods' devices after DEL has answered: a deletion costs its caller a grace period of RCU, 15 to 30 ms.
//!
//! One by one while few wait, so that a device's name is free as soon as the kernel gets to it; many together by link group, which
//! waits once for all of them. A device that can not be deleted is tried again, later and later: as long as it is there its address
//! must not be given to another pod, and nobody else would ever try.
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sys::utsname::uname;
use tracing::{debug, warn};

use crate::{
    fault::{self, Point},
    netlink::{MissingIsDone as _, NetlinkError, Socket, link, names},
    tables::Endpoint,
};

/// With so many waiting they are deleted together.
const GROUP_FROM: usize = 8;
/// So many at once at most. RTNL is held for all of a group in one go, some 0.25 ms a device (6.18), and nobody shall wait for it
/// longer than 5 ms, on a busy machine neither.
const GROUP_MOST: usize = 8;
/// The first kernel on which a group waits for RCU once, and not under RTNL: on 5.10 it waits once a device, 1.6 s for a hundred,
/// and everybody waits with it. This can not be found by trying, as trying is what does the harm.
const GROUPS_SINCE: (u32, u32) = (6, 1);
/// How long to wait before a deletion that failed is tried again, at first and at most; in between it doubles.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// What is called when a device is gone.
type Gone = Box<dyn FnOnce() + Send>;

/// What does the deleting: the kernel, or a stand-in in tests. A device that is not there is deleted.
trait Kernel: Send {
    /// Deletes one.
    fn delete(&mut self, index: u32) -> Result<(), NetlinkError>;
    /// Deletes all or none.
    fn delete_together(&mut self, indexes: &[u32]) -> Result<(), NetlinkError>;
}

impl Kernel for Socket {
    fn delete(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.run(link::delete(index)).missing_is_done()
    }

    fn delete_together(&mut self, indexes: &[u32]) -> Result<(), NetlinkError> {
        let mut batch: Vec<_> = indexes.iter().map(|index| link::set_group(*index, names::DOOMED_GROUP)).collect();
        let last = batch.len();
        batch.push(link::delete_group(names::DOOMED_GROUP));
        match self.batch(batch) {
            // The kernel goes on behind a refusal: the runtime has removed the namespace of one of them, and the pair with it.
            Err(e) if e.is_missing() && e.index() != Some(last) => {
                // What came of the last message the error does not say.
                self.run(link::delete_group(names::DOOMED_GROUP)).missing_is_done()
            }
            result => result.missing_is_done(),
        }
    }
}

/// A device to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// The network namespace and the name of its other end, which goes with it; empty if nobody knows.
    pub peer: (String, String),
}
impl From<u32> for Device {
    fn from(index: u32) -> Self {
        Self { index, peer: Default::default() }
    }
}
impl From<&Endpoint> for Device {
    fn from(e: &Endpoint) -> Self {
        Self { index: e.ifindex, peer: (e.netns.clone(), e.ifname.clone()) }
    }
}

/// One that waits.
struct Doomed {
    /// In the order of their coming.
    number: u64,
    device: Device,
    gone: Gone,
    /// Not before.
    due: Instant,
    failures: u32,
    /// How many flushes there had been when it was last tried.
    tried: u64,
}

#[derive(Default)]
struct State {
    /// In the order of their coming.
    waiting: VecDeque<Doomed>,
    /// Those that are being deleted, with their numbers.
    in_hand: Vec<(u64, Device)>,
    /// How many have come.
    came: u64,
    flushes: u64,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled on every change of `state`.
    moved: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that deletes. It ends when this is dropped; what it has not deleted then, the next agent does.
pub struct Reaper {
    shared: Arc<Shared>,
}

impl Reaper {
    /// Starts it in the calling thread's network namespace.
    pub fn start() -> Result<Self, NetlinkError> {
        Self::with(Socket::open()?, groups_are_quick())
    }

    fn with(kernel: impl Kernel + 'static, by_group: bool) -> Result<Self, NetlinkError> {
        let shared = Arc::new(Shared::default());
        let worker = Worker { shared: Arc::clone(&shared), kernel, by_group };
        thread::Builder::new()
            .name("reaper".into())
            .spawn(move || worker.run())
            .map_err(|e: io::Error| NetlinkError::socket("start the thread that deletes devices")(e))?;
        Ok(Self { shared })
    }

    /// Deletes a device; `gone` is called when it is.
    pub fn delete(&self, device: impl Into<Device>, gone: impl FnOnce() + Send + 'static) {
        let (device, gone) = (device.into(), Box::new(gone));
        let mut state = self.shared.lock();
        state.came += 1;
        let number = state.came;
        state.waiting.push_back(Doomed { number, device, gone, due: Instant::now(), failures: 0, tried: 0 });
        drop(state);
        self.shared.moved.notify_all();
    }

    /// Waits until every device that waits is deleted or was at least tried once more; whether that came in time.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.hurry(timeout, |_| true)
    }

    /// The same for the device whose other end is called `ifname` in `netns`, as they were given to [`delete`](Self::delete): it is
    /// the next in turn. If there is none, there is nothing to wait for.
    pub fn flush_peer(&self, netns: &str, ifname: &str, timeout: Duration) -> bool {
        self.hurry(timeout, |device| device.peer.0 == netns && device.peer.1 == ifname)
    }

    fn hurry(&self, timeout: Duration, wanted: impl Fn(&Device) -> bool) -> bool {
        let mut state = self.shared.lock();
        state.flushes += 1;
        let flush = state.flushes;
        let (mut first, rest): (Vec<_>, Vec<_>) = state.waiting.drain(..).partition(|d| wanted(&d.device));
        first.iter_mut().for_each(|doomed| doomed.due = Instant::now());
        state.waiting = first.into_iter().chain(rest).collect();
        self.shared.moved.notify_all();
        // What comes from now on is not waited for.
        let last = state.came;
        let left = |state: &mut State| {
            state.in_hand.iter().any(|(number, device)| *number <= last && wanted(device))
                || state.waiting.iter().any(|d| d.number <= last && d.tried < flush && wanted(&d.device))
        };
        let waited = self.shared.moved.wait_timeout_while(state, timeout, left);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.moved.notify_all();
    }
}

struct Worker<K> {
    shared: Arc<Shared>,
    kernel: K,
    by_group: bool,
}

impl<K: Kernel> Worker<K> {
    fn run(mut self) {
        while let Some(batch) = self.next() {
            self.delete(batch);
        }
        let left = self.shared.lock().waiting.len();
        debug!(left, "the reaper ends; the next agent deletes the rest");
    }

    /// Waits for something to do. None when it is to end.
    fn next(&self) -> Option<Vec<Doomed>> {
        let mut state = self.shared.lock();
        loop {
            if state.stopping {
                return None;
            }
            let now = Instant::now();
            let due = state.waiting.iter().filter(|d| d.due <= now).count();
            let most = if self.by_group && due >= GROUP_FROM { GROUP_MOST } else { 1 };
            if due > 0 {
                let (mut batch, mut rest) = (Vec::new(), VecDeque::new());
                let flushes = state.flushes;
                for mut doomed in state.waiting.drain(..) {
                    if batch.len() < most && doomed.due <= now {
                        doomed.tried = flushes;
                        batch.push(doomed);
                    } else {
                        rest.push_back(doomed);
                    }
                }
                state.waiting = rest;
                state.in_hand = batch.iter().map(|d| (d.number, d.device.clone())).collect();
                return Some(batch);
            }
            let next = state.waiting.iter().map(|d| d.due).min();
            let wait = next.map_or(AGAIN.1, |due| due.saturating_duration_since(now));
            state = self.shared.moved.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn delete(&mut self, batch: Vec<Doomed>) {
        let indexes: Vec<u32> = batch.iter().map(|d| d.device.index).collect();
        fault::pass(Point::DeviceDoomed);
        let together = indexes.len() > 1
            && self.kernel.delete_together(&indexes).inspect_err(|e| {
                warn!(devices = indexes.len(), error = %e, "cannot delete pods' devices together; deleting one by one");
            }).is_ok();
        for doomed in batch {
            let deleted = if together { Ok(()) } else { self.kernel.delete(doomed.device.index) };
            let index = doomed.device.index;
            let again = match deleted {
                Ok(()) => {
                    fault::pass(Point::DeviceDeleted);
                    // Before anybody who waits for this device goes on.
                    (doomed.gone)();
                    None
                }
                Err(e) => {
                    let wait = AGAIN.0.saturating_mul(1 << doomed.failures.min(16)).min(AGAIN.1);
                    warn!(index, error = %e, again_in = ?wait, "cannot delete a pod's device");
                    Some(Doomed { due: Instant::now() + wait, failures: doomed.failures + 1, ..doomed })
                }
            };
            let mut state = self.shared.lock();
            state.in_hand.retain(|(_, device)| device.index != index);
            state.waiting.extend(again);
            self.shared.moved.notify_all();
        }
    }
}

/// Whether this kernel deletes a group of devices with one wait for all.
fn groups_are_quick() -> bool {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    release.ok().and_then(|text| version(&text)).is_some_and(|version| version >= GROUPS_SINCE)
}

/// Major and minor number of a kernel's release, `6.1.0-50-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests;
