//! Datagrams at an even pace, each with its number.
use std::{
    collections::BTreeMap,
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, setsockopt, sockopt::RcvBuf, sockopt::RcvBufForce};

use super::Progress;
use crate::probe::{Family, LIMIT, Place};

/// Bytes that the receiving socket has room for: seconds of the load, should nobody read.
const ROOM: usize = 8 * 1024 * 1024;
/// How long a receiver waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a datagram.
const LENGTH: usize = 200;

/// A stream of datagrams of one family from a place to another.
#[derive(Debug)]
pub struct Stream {
    what: String,
    client: UdpSocket,
    server: UdpSocket,
    /// When each was sent, by its number.
    sent: Mutex<Vec<Instant>>,
    /// Why the kernel did not take it, by its number: an error that came back for a former one, say.
    refused: Mutex<BTreeMap<usize, io::Error>>,
    /// How often each has arrived, by its number.
    arrived: Mutex<Vec<u8>>,
    received: AtomicU64,
    twice: AtomicU64,
}

/// A datagram that did not arrive.
#[derive(Debug, Clone)]
pub struct Lost {
    what: String,
    number: usize,
    refused: Option<String>,
    /// When it was sent, counted from the load's begin.
    pub at: Duration,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {}, sent at {:.3} s", self.what, self.number, self.at.as_secs_f64())?;
        self.refused.iter().try_for_each(|why| write!(f, ", which the kernel refused: {why}"))
    }
}

impl Stream {
    pub(super) fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let what = format!("UDP {family} {} → {}", from.name, to.name);
        let address = to.address(family)?;
        let bound = |place: &Place| place.run(|| UdpSocket::bind(SocketAddr::new(family.any(), 0)));
        let (client, server) = (bound(from)?, bound(to)?);
        let ready = || -> io::Result<()> {
            setsockopt(&server, RcvBufForce, &ROOM)?;
            if getsockopt(&server, RcvBuf)? < ROOM {
                return Err(io::Error::other("the kernel gives the receiving socket less room"));
            }
            server.set_read_timeout(Some(LOOK))?;
            client.connect(SocketAddr::new(address, server.local_addr()?.port()))
        };
        ready().with_context(|| what.clone())?;
        Ok(Self {
            what,
            client,
            server,
            sent: Mutex::default(),
            refused: Mutex::default(),
            arrived: Mutex::default(),
            received: AtomicU64::new(0),
            twice: AtomicU64::new(0),
        })
    }

    /// Sends the next one. One that the kernel refuses counts as sent: an application would have lost it.
    fn send(&self) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut payload = [0; LENGTH];
        let number = sent.len();
        payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
        sent.push(Instant::now());
        drop(sent);
        if let Err(e) = self.client.send(&payload) {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(number, e);
        }
    }

    /// Receives until `stop`, and from then on until all has come or nothing comes any more.
    pub(super) fn receive(&self, stop: &AtomicBool) -> Result<()> {
        let mut last = Instant::now();
        let mut buffer = [0; LENGTH];
        loop {
            match self.server.recv(&mut buffer) {
                Ok(_) => {
                    last = Instant::now();
                    self.note(u64::from_be_bytes(buffer[..8].try_into().unwrap_or_default()));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    let quiet = last.elapsed() > LIMIT || self.received() >= self.sent();
                    if stop.load(Ordering::Relaxed) && quiet {
                        return Ok(());
                    }
                }
                Err(e) => return Err(e).with_context(|| self.what.clone()),
            }
        }
    }

    fn note(&self, number: u64) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(at) = usize::try_from(number) else { return };
        if arrived.len() <= at {
            arrived.resize(at + 1, 0);
        }
        if arrived[at] == 0 {
            self.received.fetch_add(1, Ordering::Relaxed);
        } else {
            self.twice.fetch_add(1, Ordering::Relaxed);
        }
        arrived[at] = arrived[at].saturating_add(1);
    }

    /// How many were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// How many of them have arrived.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many arrived once more.
    #[must_use]
    pub fn twice(&self) -> u64 {
        self.twice.load(Ordering::Relaxed)
    }

    /// Those that have not arrived.
    pub(super) fn missing(&self, begin: Instant) -> Vec<Lost> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = sent.iter().enumerate().filter(|(number, _)| arrived.get(*number).is_none_or(|n| *n == 0));
        let lost = |(number, at): (usize, &Instant)| Lost {
            what: self.what.clone(),
            number,
            refused: refused.get(&number).map(ToString::to_string),
            at: at.saturating_duration_since(begin),
        };
        absent.map(lost).collect()
    }
}

/// Sends by turns on all streams, so many a second in sum, until `stop`. What fell behind is made up for: the pace is that of all the time.
pub(super) fn send(streams: &[Arc<Stream>], rate: u32, stop: &AtomicBool, progress: &Progress) -> Result<()> {
    let begin = Instant::now();
    let every = Duration::from_secs(1) / rate.max(1);
    for (number, stream) in streams.iter().cycle().enumerate() {
        let due = begin + every * u32::try_from(number).context("a load that goes on for too long")?;
        // Parking may end early.
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.send();
        progress.sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
