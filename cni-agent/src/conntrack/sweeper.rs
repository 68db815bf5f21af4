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
    maps::{CtConfig, CtEntry},
    schema::{self, MapSpec},
};
use cni_ebpf::{
    ct::lifetime,
    family::{V4, V6},
};
use nix::time::{ClockId, clock_gettime};
use tracing::{debug, error, warn};

use super::{
    flow::Ends,
    nat::{self, Holds},
    pass::{Pass, expired},
    table::{Kernel, Table},
    translation::{Tables, Translated},
};
use crate::datapath::{Clock, Datapath, features::Features};

/// The least time from one pass to the next. The shortest life of a flow is 10 seconds.
const EVERY: Duration = Duration::from_secs(5);
/// How often to look whether what was asked for can be done.
const LOOK: Duration = Duration::from_millis(50);
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

/// The maps of a family.
pub(super) struct Specs {
    /// Flows that both ends have spoken in.
    pub(super) flows: MapSpec,
    /// Those that wait for the other end.
    pub(super) new: MapSpec,
    /// The endpoints' accounts of the former.
    accounts: MapSpec,
    /// Translations of masqueraded flows, by what the world writes.
    pub(super) back: MapSpec,
    /// The same by flow.
    forth: MapSpec,
    /// The endpoints' accounts of them.
    translated: MapSpec,
}

/// IPv4 and IPv6.
pub(super) const FAMILIES: [Specs; 2] = [
    Specs {
        flows: schema::CT4,
        new: schema::CT_NEW4,
        accounts: schema::CT_HELD4,
        back: schema::NAT_BACK4,
        forth: schema::NAT_FORTH4,
        translated: schema::NAT_HELD4,
    },
    Specs {
        flows: schema::CT6,
        new: schema::CT_NEW6,
        accounts: schema::CT_HELD6,
        back: schema::NAT_BACK6,
        forth: schema::NAT_FORTH6,
        translated: schema::NAT_HELD6,
    },
];

impl Specs {
    /// The kernel's tables; `by_lots` as [`lots`] says.
    pub(super) fn tables<'a>(&self, datapath: &'a Datapath, by_lots: (bool, bool)) -> Tables<Kernel<'a>> {
        let of = |spec, by_lots| Kernel { map: datapath.map(spec), by_lots };
        Tables {
            flows: of(&self.flows, by_lots.0),
            new: of(&self.new, by_lots.1),
            back: of(&self.back, by_lots.0),
            forth: of(&self.forth, by_lots.0),
            accounts: of(&self.translated, by_lots.0),
        }
    }
}

/// Which flows are to go, from key and value.
type Which = Box<dyn Fn(&[u8], &CtEntry) -> bool + Send>;
/// Whether an address is of a pod that is gone.
type Whose = Box<dyn Fn(IpAddr) -> bool + Send>;
/// Is told how many went.
type Done = Box<dyn FnOnce(io::Result<u64>) + Send>;

/// What is to be removed.
enum What {
    /// These flows. Their translations stay for as long as the flows may go on.
    Flows(Which),
    /// All flows of these addresses, with their translations.
    Pods(Whose),
}

impl What {
    fn takes(&self, key: &[u8], entry: &CtEntry) -> bool {
        match self {
            Self::Flows(which) => which(key, entry),
            Self::Pods(whose) => Ends::read(key).is_some_and(|e| whose(e.lo.0) || whose(e.hi.0)),
        }
    }
}

struct Request {
    what: What,
    done: Done,
}

/// Asks the thread, which ends with the last of these.
#[derive(Clone)]
pub struct Sweeper {
    requests: Sender<Request>,
}

impl Sweeper {
    /// Starts it; `hz`: jiffies in a second.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(datapath: Arc<Datapath>, features: &Features, hz: u32) -> io::Result<Self> {
        let clock = Clock::load()
            .inspect_err(
                |e| error!(error = %e, "cannot read the programs' clock: flows that are over stay in the tables"),
            )
            .ok()
            .map(Arc::new);
        let (requests, inbox) = mpsc::channel();
        // The policy epoch is no matter of time.
        let lifetimes = lifetime::config(0, hz);
        let holds = Default::default();
        let worker =
            Worker { datapath, clock, by_lots: lots(features), inbox, kept: Vec::new(), served: 0, lifetimes, holds };
        thread::Builder::new().name("conntrack".into()).spawn(move || worker.run())?;
        Ok(Self { requests })
    }

    /// Removes the flows of which `which` says so, from all tables; `done` is told how many they were. Those that come meanwhile may stay.
    pub fn remove(
        &self,
        which: impl Fn(&[u8], &CtEntry) -> bool + Send + 'static,
        done: impl FnOnce(io::Result<u64>) + Send + 'static,
    ) {
        self.ask(What::Flows(Box::new(which)), done);
    }

    /// Removes the flows of all addresses of which `whose` says so, and what they are masqueraded as; `done` is told how many flows they were.
    pub fn remove_pods(
        &self,
        whose: impl Fn(IpAddr) -> bool + Send + 'static,
        done: impl FnOnce(io::Result<u64>) + Send + 'static,
    ) {
        self.ask(What::Pods(Box::new(whose)), done);
    }

    fn ask(&self, what: What, done: impl FnOnce(io::Result<u64>) + Send + 'static) {
        let request = Request { what, done: Box::new(done) };
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
        self.remove_pods(
            move |a| gone.contains(&a),
            move |removed| {
                match removed {
                    Ok(flows) => debug!(?told, flows, "the flows of a pod that is gone were removed"),
                    Err(e) => warn!(?told, error = %e, "cannot remove the flows of a pod that is gone; they expire"),
                }
                done();
            },
        );
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
    /// What was asked for while another build's programs ran: its maps are not ours to sweep, and ours are to become what they are.
    kept: Vec<Request>,
    /// How many requests there have been.
    served: u64,
    /// How long flows without packets live.
    lifetimes: CtConfig,
    /// Holds that the last pass has found, by family.
    holds: [Holds; 2],
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
            let left = until.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(if self.kept.is_empty() { left } else { left.min(LOOK) }) {
                Ok(first) => self.kept.extend(iter::once(first).chain(self.inbox.try_iter())),
                Err(RecvTimeoutError::Timeout) if left > LOOK => {}
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if !self.kept.is_empty() && !self.datapath.waits() {
                let all = std::mem::take(&mut self.kept);
                self.serve(all);
            }
        }
    }

    /// Takes out what is over, resting between lots.
    fn sweep(&mut self) -> io::Result<()> {
        // While another build's programs run, our tables are not what they go by; the endpoints' accounts may be.
        if self.datapath.waits() {
            return Ok(());
        }
        let (datapath, Some(clock)) = (Arc::clone(&self.datapath), self.clock.clone()) else { return Ok(()) };
        for (n, specs) in FAMILIES.iter().enumerate() {
            let tables = specs.tables(&datapath, self.by_lots);
            let served = self.served;
            let Some(pass) = sweep(&tables.flows, || clock.now(), |time| self.wait(time))? else { return Ok(()) };
            if pass.deleted > 0 {
                debug!(
                    map = specs.flows.name,
                    seen = pass.seen,
                    deleted = pass.deleted,
                    "flows that were over are gone"
                );
            }
            // Who was served meanwhile has made the accounts right, and this pass has counted what went then.
            if self.served == served {
                pass.settle(&Kernel { map: datapath.map(&specs.accounts), by_lots: self.by_lots.0 })?;
            }
            let is_through = match n {
                0 => self.sweep_translations::<V4>(n, &tables, &clock)?,
                _ => self.sweep_translations::<V6>(n, &tables, &clock)?,
            };
            if !is_through {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same with the translations of a family; whether it was not interrupted.
    fn sweep_translations<F: Translated>(
        &mut self,
        family: usize,
        tables: &Tables<Kernel<'_>>,
        clock: &Clock,
    ) -> io::Result<bool> {
        let (lifetimes, before, served) = (self.lifetimes, std::mem::take(&mut self.holds[family]), self.served);
        let swept = nat::sweep::<F, _>(tables, &lifetimes, &before, || clock.now(), |time| self.wait(time))?;
        let Some(mut swept) = swept else { return Ok(false) };
        if swept.deleted > 0 {
            let (seen, deleted) = (swept.seen, swept.deleted);
            debug!(map = tables.back.map.spec().name, seen, deleted, "translations of flows that were over are gone");
        }
        if self.served == served {
            swept.settle(&tables.accounts)?;
        }
        self.holds[family] = std::mem::take(&mut swept.holds);
        Ok(true)
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
        for (n, specs) in FAMILIES.iter().enumerate() {
            let tables = specs.tables(&self.datapath, self.by_lots);
            // Before the flows: those say on whose account a translation is.
            match n {
                0 => self.forget_translations::<V4>(&tables, all)?,
                _ => self.forget_translations::<V6>(&tables, all)?,
            }
            let accounts = Kernel { map: self.datapath.map(&specs.accounts), by_lots: self.by_lots.0 };
            take_out_of(&tables.new, all, counts)?;
            take_out_of(&tables.flows, all, counts)?.settle(&accounts)?;
        }
        Ok(())
    }

    fn forget_translations<F: Translated>(&self, tables: &Tables<Kernel<'_>>, all: &[Request]) -> io::Result<()> {
        let gone: Vec<&Whose> =
            all.iter().filter_map(|r| if let What::Pods(whose) = &r.what { Some(whose) } else { None }).collect();
        if gone.is_empty() {
            return Ok(());
        }
        // It stands in holds, which are gone at once: a clock that cannot be read is no reason to leave anything.
        let now = self.clock.as_ref().and_then(|clock| clock.now().ok()).unwrap_or(0);
        let removed = nat::remove::<F, _>(tables, now, &|a| gone.iter().any(|whose| whose(a)))?;
        if removed > 0 {
            debug!(map = tables.back.map.spec().name, removed, "translations of pods that are gone were removed");
        }
        Ok(())
    }
}

fn take_out_of<T: Table>(table: &T, all: &[Request], counts: &mut [u64]) -> io::Result<Pass<T::Walk>> {
    let mut pass = Pass::new(table.walk());
    loop {
        let (doomed, more) = pass.look(table, |key, entry| all.iter().any(|r| r.what.takes(key, entry)))?;
        pass.delete(table, &doomed, |key, entry| {
            let wanted = all.iter().zip(counts.iter_mut()).filter(|(r, _)| r.what.takes(key, entry));
            wanted.map(|(_, count)| *count += 1).count() > 0
        })?;
        if !more {
            return Ok(pass);
        }
    }
}

/// What this thread has had of a core.
pub(super) fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
