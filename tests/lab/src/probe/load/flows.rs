//! Connections that ask and answer all the time.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Progress;
use crate::{
    machine,
    probe::{Family, LIMIT, Place},
};

/// From an answer to the next question of a connection. All hundred of them together are 2,000 exchanges a second, which two
/// processors do beside all else.
const PACE: Duration = Duration::from_millis(50);
/// What has no answer by then is broken: longer than three retransmissions.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a question, and of an answer.
const LENGTH: usize = 256;
/// Longest sleep of the thread, milliseconds.
const NAP: u8 = 5;

/// Connections between places.
#[derive(Debug)]
pub struct Flows {
    all: Vec<Ends>,
    broken: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Ends {
    what: String,
    client: TcpStream,
    server: TcpStream,
}

/// How far one is.
struct Turn {
    number: u64,
    /// When the question went that is not answered yet.
    asked: Option<Instant>,
    next: Instant,
    answer: Vec<u8>,
    over: bool,
}

impl Flows {
    pub(super) fn open(parts: &[(&Place, &Place, Family)], count: usize) -> Result<Self> {
        let all = parts.iter().cycle().take(count).map(|(from, to, family)| Ends::open(from, to, *family));
        Ok(Self { all: all.collect::<Result<_>>()?, broken: Mutex::default() })
    }

    /// Asks and answers until `stop`, and from then on until every question is answered.
    pub(super) fn run(&self, stop: &AtomicBool, progress: &Progress) -> Result<()> {
        let begin = Instant::now();
        let mut turns: Vec<Turn> = (0_u32..)
            .zip(&self.all)
            // Not all at once.
            .map(|(n, _)| Turn {
                number: 0,
                asked: None,
                next: begin + PACE * (n % 25) / 25,
                answer: Vec::new(),
                over: false,
            })
            .collect();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            let mut under_way = false;
            for (ends, turn) in self.all.iter().zip(&mut turns).filter(|(_, turn)| !turn.over) {
                let went = if turn.asked.is_none() && !stopping && turn.next <= Instant::now() {
                    ends.ask(turn)
                } else {
                    ends.look(turn, progress)
                };
                if let Err(e) = went {
                    turn.over = true;
                    self.broken.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{e:#}"));
                }
                under_way |= turn.asked.is_some() && !turn.over;
            }
            if stopping && !under_way {
                return Ok(());
            }
            let ends = self.all.iter().zip(&turns).filter(|(_, turn)| !turn.over);
            let mut readable: Vec<PollFd<'_>> = ends
                .flat_map(|(ends, _)| [&ends.client, &ends.server])
                .map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
                .collect();
            poll(&mut readable, PollTimeout::from(NAP)).context("wait for connections")?;
        }
    }

    /// Those that broke.
    pub(super) fn broken(&self) -> Vec<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Ends {
    fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let what = format!("TCP {family} {} → {}", from.name, to.name);
        let address = to.address(family)?;
        let opened = || -> Result<(TcpStream, TcpStream)> {
            let listener = to.run(|| TcpListener::bind(SocketAddr::new(family.any(), 0)))?;
            let port = listener.local_addr()?.port();
            let client = from.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT))?;
            let (server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_nodelay(true)?;
                end.set_nonblocking(true)?;
            }
            Ok((client, server))
        };
        let (client, server) = opened().with_context(|| format!("{what}: no connection"))?;
        Ok(Self { what, client, server })
    }

    fn ask(&self, turn: &mut Turn) -> Result<()> {
        turn.number += 1;
        turn.asked = Some(Instant::now());
        (&self.client).write_all(&question(turn.number)).with_context(|| format!("{}: ask", self.what))
    }

    /// Answers what was asked, and takes the answer.
    fn look(&self, turn: &mut Turn, progress: &Progress) -> Result<()> {
        let Some(asked) = turn.asked else { return Ok(()) };
        let mut buffer = [0; LENGTH];
        if let Some(length) = read(&self.server, &mut buffer).with_context(|| format!("{}: answer", self.what))? {
            (&self.server)
                .write_all(buffer.get(..length).unwrap_or_default())
                .with_context(|| format!("{}: answer", self.what))?;
        }
        if let Some(length) = read(&self.client, &mut buffer).with_context(|| format!("{}: the answer", self.what))? {
            turn.answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
        if turn.answer.len() >= LENGTH {
            anyhow::ensure!(turn.answer == question(turn.number), "{}: other bytes came back", self.what);
            turn.answer.clear();
            turn.asked = None;
            turn.next = Instant::now() + PACE;
            progress.exchanges.fetch_add(1, Ordering::Relaxed);
        } else {
            anyhow::ensure!(
                asked.elapsed() < machine::bound(PATIENCE),
                "{}: question {} has no answer after {PATIENCE:?}",
                self.what,
                turn.number
            );
        }
        Ok(())
    }
}

fn question(number: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    for (byte, from) in bytes.iter_mut().zip(number.to_be_bytes().iter().cycle()) {
        *byte = *from;
    }
    bytes
}

/// What is there; none if there is nothing yet.
fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> Result<Option<usize>> {
    match stream.read(buffer) {
        Ok(0) => anyhow::bail!("the other end has closed the connection"),
        Ok(length) => Ok(Some(length)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
