//! The thread that takes flows out of the tables: those that are over, every few seconds, and those that somebody asks it to, at once.
use std::{
    collections::BTreeSet,
    io, iter,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use cni_common::{
    maps::CtEntry,
    schema::{self, MapSpec},
};
use nix::time::{ClockId, clock_gettime};
use tracing::{debug, error, warn};

use super::{
    flow::Ends,
    pass::{Pass, expired},
    table::{Kernel, Table},
};
use crate::datapath::{Clock, Datapath, features::Features};

/// The least time from one pass to the next. The shortest life of a flow is 10 seconds.
const EVERY: Duration = Duration::from_secs(5);
/// For how many times the time that a lot took the sweep rests behind it, so that looking costs 1.5 % of one core however much there is
/// to look at: a full table takes longer. Deleting comes on top, at a rate that those who make flows choose.
const RESTS: u32 = 66;

/// How long to rest behind a lot that took so much of a core.
pub fn pause(cost: Duration) -> Duration {
    cost.saturating_mul(RESTS)
}

/// Takes out of a table what is over, and calls `rest` behind each lot for as long as it should rest; the pass when it is through, none when
/// `rest` says that it is to end. `now` is the time in jiffies.
///
/// # Errors
/// What the kernel says.
pub fn sweep<T: Table>(
    table: &T,
    now: impl Fn() -> io::Result<u64>,
    mut rest: impl FnMut(Duration) -> bool,
) -> io::Result<Option<Pass<T::Walk>>> {
    let mut pass = Pass::new(table.walk());
    loop {
        let now = now()?;
        let began = spent();
        let (doomed, more) = pass.look(table, |_, entry| expired(entry, now))?;
        let cost = spent().saturating_sub(began);
        pass.delete(table, &doomed, |_, entry| expired(entry, now))?;
        if !rest(pause(cost)) {
            return Ok(None);
        }
        if !more {
            return Ok(Some(pass));
        }
    }
}

/// Of a family: flows that both ends have spoken in, those that wait, and the endpoints' accounts of the former.
pub(super) const FAMILIES: [(MapSpec, MapSpec, MapSpec); 2] =
    [(schema::CT4, schema::CT_NEW4, schema::CT_HELD4), (schema::CT6, schema::CT_NEW6, schema::CT_HELD6)];

/// Which flows are to go, from key and value.
type Which = Box<dyn Fn(&[u8], &CtEntry) -> bool + Send>;
/// Is told how many went.
type Done = Box<dyn FnOnce(io::Result<u64>) + Send>;

struct Request {
    which: Which,
    done: Done,
}

/// Asks the thread, which ends with the last of these.
#[derive(Clone)]
pub struct Sweeper {
    requests: Sender<Request>,
}

impl Sweeper {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(datapath: Arc<Datapath>, features: &Features) -> io::Result<Self> {
        let clock = Clock::load()
            .inspect_err(
                |e| error!(error = %e, "cannot read the programs' clock: flows that are over stay in the tables"),
            )
            .ok()
            .map(Arc::new);
        let (requests, inbox) = mpsc::channel();
        let worker = Worker { datapath, clock, by_lots: lots(features), inbox, served: 0 };
        thread::Builder::new().name("conntrack".into()).spawn(move || worker.run())?;
        Ok(Self { requests })
    }

    /// Removes the flows of which `which` says so, from all tables; `done` is told how many they were. Those that come meanwhile may stay.
    pub fn remove(
        &self,
        which: impl Fn(&[u8], &CtEntry) -> bool + Send + 'static,
        done: impl FnOnce(io::Result<u64>) + Send + 'static,
    ) {
        let request = Request { which: Box::new(which), done: Box::new(done) };
        if let Err(mpsc::SendError(request)) = self.requests.send(request) {
            (request.done)(Err(io::ErrorKind::BrokenPipe.into()));
        }
    }

    /// Removes the flows of addresses whose pod is gone; then calls `done`, also if it could not.
    pub fn forget(&self, addresses: impl IntoIterator<Item = IpAddr>, done: impl FnOnce() + Send + 'static) {
        let gone: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if gone.is_empty() {
            return done();
        }
        let told = gone.clone();
        let which = move |key: &[u8], _: &CtEntry| {
            Ends::read(key).is_some_and(|e| [e.lo.0, e.hi.0].iter().any(|a| gone.contains(a)))
        };
        self.remove(which, move |removed| {
            match removed {
                Ok(flows) => debug!(?told, flows, "the flows of a pod that is gone were removed"),
                Err(e) => warn!(?told, error = %e, "cannot remove the flows of a pod that is gone; they expire"),
            }
            done();
        });
    }

    /// Waits until all that was asked for before is done; whether that came in time.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (tell, done) = mpsc::channel();
        // It goes through the tables once more only if it is not served together with others.
        self.remove(
            |_, _| false,
            move |_| {
                // Nobody waits any more when it took too long.
                let _told = tell.send(());
            },
        );
        done.recv_timeout(timeout).is_ok()
    }
}

/// Whether the kernel has batch operations on hashes, and on those that forget.
pub(super) fn lots(features: &Features) -> (bool, bool) {
    (features.has("batch-hash"), features.has("batch-lru-hash"))
}

struct Worker {
    datapath: Arc<Datapath>,
    clock: Option<Arc<Clock>>,
    by_lots: (bool, bool),
    inbox: Receiver<Request>,
    /// How many requests there have been.
    served: u64,
}

impl Worker {
    fn run(mut self) {
        let mut failing = false;
        while self.wait(EVERY) {
            let swept = self.sweep();
            if let Err(e) = &swept
                && !failing
            {
                warn!(error = %e, "cannot sweep the tables of flows; trying again every {EVERY:?}");
            }
            failing = swept.is_err();
        }
    }

    /// Rests, and serves who asks; whether there is anybody left who could.
    fn wait(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    let all: Vec<Request> = iter::once(first).chain(self.inbox.try_iter()).collect();
                    self.serve(all);
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Takes out what is over, resting between lots.
    fn sweep(&mut self) -> io::Result<()> {
        let (datapath, Some(clock)) = (Arc::clone(&self.datapath), self.clock.clone()) else { return Ok(()) };
        for (flows, _, accounts) in FAMILIES {
            let table = Kernel { map: datapath.map(&flows), by_lots: self.by_lots.0 };
            let served = self.served;
            let Some(pass) = sweep(&table, || clock.now(), |time| self.wait(time))? else { return Ok(()) };
            if pass.deleted > 0 {
                debug!(map = flows.name, seen = pass.seen, deleted = pass.deleted, "flows that were over are gone");
            }
            // Who was served meanwhile has made the accounts right, and this pass has counted what went then.
            if self.served == served {
                pass.settle(&Kernel { map: datapath.map(&accounts), by_lots: self.by_lots.0 })?;
            }
        }
        Ok(())
    }

    /// Takes out what was asked for, together, without a rest.
    fn serve(&mut self, all: Vec<Request>) {
        self.served += 1;
        let mut counts = vec![0; all.len()];
        let result = self.take_out(&all, &mut counts);
        for (request, count) in all.into_iter().zip(counts) {
            let told = result.as_ref().map(|()| count).map_err(|e| io::Error::new(e.kind(), e.to_string()));
            (request.done)(told);
        }
    }

    fn take_out(&self, all: &[Request], counts: &mut [u64]) -> io::Result<()> {
        for (flows, new, accounts) in FAMILIES {
            let of = |spec, by_lots| Kernel { map: self.datapath.map(spec), by_lots };
            let accounts = of(&accounts, self.by_lots.0);
            take_out_of(&of(&new, self.by_lots.1), all, counts)?;
            take_out_of(&of(&flows, self.by_lots.0), all, counts)?.settle(&accounts)?;
        }
        Ok(())
    }
}

fn take_out_of<T: Table>(table: &T, all: &[Request], counts: &mut [u64]) -> io::Result<Pass<T::Walk>> {
    let mut pass = Pass::new(table.walk());
    loop {
        let (doomed, more) = pass.look(table, |key, entry| all.iter().any(|r| (r.which)(key, entry)))?;
        pass.delete(table, &doomed, |key, entry| {
            let wanted = all.iter().zip(counts.iter_mut()).filter(|(r, _)| (r.which)(key, entry));
            wanted.map(|(_, count)| *count += 1).count() > 0
        })?;
        if !more {
            return Ok(pass);
        }
    }
}

/// What this thread has had of a core.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
