//! A thread that changes a device in a namespace of its own all the time: it waits as long as somebody else holds RTNL, the one lock
//! under which the kernel changes the network configuration of the whole machine.
use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cni_agent::netlink::{
    Socket,
    link::{self, End},
    netns,
};

/// A probe that has not come back by then never will.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    longest: Duration,
    /// Probes begun and ended.
    begun: u64,
    ended: u64,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// The thread. It ends when this is dropped.
pub struct Prober {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("prober".into()).spawn(move || probe(&theirs)).unwrap();
        let prober = Self { shared, thread: Some(thread) };
        let begun = prober.shared.moved.wait_while(prober.shared.lock(), |s| s.ended == 0 && !s.stop);
        assert!(!begun.unwrap().stop, "the prober can not change its device");
        prober
    }

    /// Does `work`; the longest time that the lock was waited for meanwhile.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        self.shared.lock().longest = Duration::ZERO;
        let result = work();
        // The probe that waits when the work ends belongs to it.
        let state = self.shared.lock();
        let last = state.begun;
        let waited = self.shared.moved.wait_timeout_while(state, PATIENCE, |s| s.ended < last && !s.stop).unwrap();
        assert!(!waited.1.timed_out(), "the prober waits for RTNL since {PATIENCE:?}");
        (result, waited.0.longest)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Tells those who wait that no further probe comes, however the thread ends.
struct Last<'a>(&'a Shared);
impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.moved.notify_all();
    }
}

fn probe(shared: &Shared) {
    let _last = Last(shared);
    let apart = netns::anonymous().expect("a network namespace (these tests need root)");
    let mut socket = Socket::open_in(apart.as_fd()).unwrap();
    let (a, b) = (End { name: "a", ..End::default() }, End { name: "b", ..End::default() });
    socket.run(link::create_veth(&a, &b)).unwrap();
    let index = link::by_name(&mut socket, "a").unwrap().expect("the device that was just made").index;
    let sched = File::open("/proc/thread-self/schedstat").ok();
    for mtu in [1400, 1401].into_iter().cycle() {
        {
            let mut state = shared.lock();
            if state.stop {
                return;
            }
            state.begun += 1;
        }
        let (queued, begin) = (queued(sched.as_ref()), Instant::now());
        let done = socket.run(link::set_mtu(index, mtu));
        let took = begin.elapsed();
        // The time for which this thread could have run, but other threads had the CPUs, tells nothing of the lock.
        let waited = took.saturating_sub(self::queued(sched.as_ref()).saturating_sub(queued));
        let mut state = shared.lock();
        state.longest = state.longest.max(waited);
        state.ended = state.begun;
        drop(state);
        shared.moved.notify_all();
        done.unwrap();
    }
}

/// For how long this thread has waited for a CPU so far. Zero where the kernel does not count it.
fn queued(sched: Option<&File>) -> Duration {
    let mut text = [0; 64];
    let read = sched.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    let text = str::from_utf8(&text[..read]).unwrap_or_default();
    Duration::from_nanos(text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// What the longest waits of several rounds say.
#[derive(Debug)]
pub struct Waits(Vec<Duration>);

impl From<Vec<Duration>> for Waits {
    fn from(mut waits: Vec<Duration>) -> Self {
        waits.sort();
        Self(waits)
    }
}

impl Waits {
    /// `rounds` times `work`, each with the number of its round.
    pub fn of(prober: &Prober, rounds: usize, mut work: impl FnMut(usize)) -> Self {
        (0..rounds).map(|round| prober.during(|| work(round)).1).collect::<Vec<_>>().into()
    }

    /// In half of the rounds the longest wait was not longer.
    pub fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    /// Prints the waits and fails when `what` held the lock for more than `limit`. It does when it did in nearly all rounds: a wait for
    /// RCU under the lock is in every one. Other processes lengthen the waits of many, as one that holds the lock may lose its CPU to
    /// them.
    pub fn assert_within(&self, what: &str, limit: Duration) {
        let (quiet, median, longest) = (self.0[self.0.len() / 8], self.median(), self.0[self.0.len() - 1]);
        println!("others wait during {what}: quiet {quiet:?}, median {median:?}, longest {longest:?}");
        assert!(quiet <= limit, "{what} holds RTNL over {limit:?}, round by round: {:?}", self.0);
    }
}
