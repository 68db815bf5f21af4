//! Traffic that goes on while something happens to a node, and what of it was lost.
//!
//! TCP connections that ask and answer all the time, and datagrams at an even pace, between places, in both families. A datagram is lost
//! that was sent, did not arrive, and was not dropped by the receiving socket for want of room: that one the network has delivered.
mod counters;
mod datagrams;
mod flows;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::counters::Counters;
pub use self::{
    datagrams::{Lost, Stream},
    flows::Flows,
};
use super::{Family, Place};

/// The load's size.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// TCP connections in sum.
    pub flows: usize,
    /// Datagrams a second in sum.
    pub datagrams: u32,
}

/// Traffic under way.
#[derive(Debug)]
pub struct Load {
    begin: Instant,
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<Result<()>>>,
    streams: Vec<Arc<Stream>>,
    flows: Arc<Flows>,
    places: Vec<Place>,
    before: Vec<Counters>,
}

/// How far it is, for those who wait for it to go on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) sent: AtomicU64,
    pub(super) exchanges: AtomicU64,
}

/// What became of it.
#[derive(Debug)]
pub struct Tally {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Datagrams that the receiving sockets had no room for.
    pub no_room: u64,
    /// Datagrams that arrived twice.
    pub twice: u64,
    /// What did not arrive.
    pub missing: Vec<Lost>,
    /// Messages that a TCP connection carried there and back.
    pub exchanges: u64,
    /// Segments that the places' kernels sent again.
    pub sent_again: u64,
    /// Connections that broke, and how.
    pub broken: Vec<String>,
    /// How long it went.
    pub took: Duration,
}

impl Tally {
    /// Datagrams that the network has lost.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received).saturating_sub(self.no_room)
    }

    /// Nothing was lost, nothing broke, and there was something that could have been.
    ///
    /// # Errors
    /// With all figures and the times of the losses.
    pub fn whole(&self) -> Result<()> {
        if self.sent == 0 || self.exchanges == 0 {
            bail!("no traffic: {self}");
        }
        if self.lost() > 0 || self.twice > 0 || !self.broken.is_empty() {
            bail!("{self}");
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} datagrams sent, {} received, {} without room at the socket, {} lost, {} twice; {} exchanges by TCP, {} segments sent \
             again, {} connections broken; {:.1} s",
            self.sent,
            self.received,
            self.no_room,
            self.lost(),
            self.twice,
            self.exchanges,
            self.sent_again,
            self.broken.len(),
            self.took.as_secs_f64()
        )?;
        for lost in self.missing.iter().take(20) {
            write!(f, "\n  missing: {lost}")?;
        }
        for broken in self.broken.iter().take(20) {
            write!(f, "\n  broken: {broken}")?;
        }
        Ok(())
    }
}

impl Load {
    /// Opens all sockets and begins. Each way, from the first place to the second, gets an equal share of both kinds in each family.
    ///
    /// # Errors
    /// When a socket or a connection can not be opened.
    pub fn start(ways: &[(&Place, &Place)], size: Size) -> Result<Self> {
        let parts: Vec<(&Place, &Place, Family)> =
            ways.iter().flat_map(|(from, to)| Family::BOTH.map(|family| (*from, *to, family))).collect();
        if parts.is_empty() {
            bail!("traffic needs a way");
        }
        let streams = parts
            .iter()
            .map(|(from, to, family)| Stream::open(from, to, *family).map(Arc::new))
            .collect::<Result<_>>()?;
        let flows = Arc::new(Flows::open(&parts, size.flows)?);
        let mut places: Vec<Place> = Vec::new();
        for place in ways.iter().flat_map(|(from, to)| [*from, *to]) {
            if !places.iter().any(|p| p.name == place.name) {
                places.push(place.clone());
            }
        }
        // Only now: connections that were being made are not of the load.
        let before = places.iter().map(Counters::of).collect::<Result<_>>()?;
        let mut load = Self {
            begin: Instant::now(),
            stop: Arc::default(),
            progress: Arc::default(),
            threads: Vec::new(),
            streams,
            flows,
            places,
            before,
        };
        load.spawn_all(size.datagrams)?;
        Ok(load)
    }

    fn spawn_all(&mut self, datagrams: u32) -> Result<()> {
        let mut spawn = |name: &str, work: Box<dyn FnOnce() -> Result<()> + Send>| {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
            self.threads.push(thread.with_context(|| format!("start the thread {name}"))?);
            anyhow::Ok(())
        };
        for stream in &self.streams {
            let (stream, stop) = (Arc::clone(stream), Arc::clone(&self.stop));
            spawn("load-receive", Box::new(move || stream.receive(&stop)))?;
        }
        let (flows, stop, progress) = (Arc::clone(&self.flows), Arc::clone(&self.stop), Arc::clone(&self.progress));
        spawn("load-flows", Box::new(move || flows.run(&stop, &progress)))?;
        let (streams, stop, progress) = (self.streams.clone(), Arc::clone(&self.stop), Arc::clone(&self.progress));
        spawn("load-send", Box::new(move || datagrams::send(&streams, datagrams, &stop, &progress)))
    }

    /// How long it has been going on.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Waits until so many further datagrams have gone, and connections have exchanged something meanwhile.
    ///
    /// # Errors
    /// When the traffic does not go on.
    pub fn await_more(&self, datagrams: u64) -> Result<()> {
        let now = || (self.progress.sent.load(Ordering::Relaxed), self.progress.exchanges.load(Ordering::Relaxed));
        let (sent, exchanges) = now();
        super::super::pair::until("the traffic goes on", || {
            let (sent_by_now, exchanges_by_now) = now();
            sent_by_now >= sent + datagrams && exchanges_by_now > exchanges
        })
    }

    /// Ends the traffic, waits for what is under way, and counts.
    ///
    /// # Errors
    /// When one of the threads failed.
    pub fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let took = self.begin.elapsed();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            thread.join().map_err(|_| anyhow!("the thread {name} panicked"))?.with_context(|| name)?;
        }
        let after = self.places.iter().map(Counters::of).collect::<Result<Vec<_>>>()?;
        let grown = |count: fn(&Counters) -> u64| {
            let sum = |all: &[Counters]| all.iter().map(count).sum::<u64>();
            sum(&after).saturating_sub(sum(&self.before))
        };
        let sum = |count: fn(&Stream) -> u64| self.streams.iter().map(|s| count(s)).sum::<u64>();
        Ok(Tally {
            sent: sum(Stream::sent),
            received: sum(Stream::received),
            twice: sum(Stream::twice),
            no_room: grown(|c| c.no_room),
            missing: self.streams.iter().flat_map(|s| s.missing(self.begin)).collect(),
            exchanges: self.progress.exchanges.load(Ordering::Relaxed),
            sent_again: grown(|c| c.sent_again),
            broken: self.flows.broken(),
            took,
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The threads hold sockets only; a test that failed does not wait for them.
        self.stop.store(true, Ordering::Relaxed);
    }
}
