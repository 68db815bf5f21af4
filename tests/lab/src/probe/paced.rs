//! A small load for tests of what must lose nothing: paced datagrams with sequence numbers, and a connection beside them.
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::{Family, Flow, LIMIT, Place};
use crate::machine;

/// Between two datagrams of a way, in milliseconds; where the processor is emulated, others need it.
const PACE: (u64, u64) = (2, 50);
/// Room for all datagrams of a test: none is lost because a reader is slow.
const BACKLOG: usize = 32 * 1024 * 1024;
/// Datagrams of each way, at least.
const LEAST: u64 = 100;

struct Way {
    what: String,
    client: UdpSocket,
    server: UdpSocket,
    flow: Flow,
    sent: u64,
}

impl Way {
    fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let what = format!("{family} {} → {}", from.name, to.name);
        let bound = |place: &Place| place.run(|| UdpSocket::bind(SocketAddr::new(family.any(), 0)));
        let (client, server) = (bound(from)?, bound(to)?);
        setsockopt(&server, RcvBufForce, &BACKLOG).with_context(|| what.clone())?;
        server.set_read_timeout(Some(LIMIT))?;
        client.connect(SocketAddr::new(to.address(family)?, server.local_addr()?.port()))?;
        Ok(Self { what, client, server, flow: Flow::open(from, to, family)?, sent: 0 })
    }

    fn send(&mut self) -> Result<()> {
        self.client.send(&self.sent.to_be_bytes()).with_context(|| self.what.clone())?;
        self.sent += 1;
        if self.sent.is_multiple_of(32) { self.flow.exchange(4096).map(drop) } else { Ok(()) }
    }

    /// Sequence numbers that were sent and have not arrived.
    fn lost(&self) -> BTreeSet<u64> {
        let (mut missing, mut buffer): (BTreeSet<u64>, _) = ((0..self.sent).collect(), [0; 8]);
        while !missing.is_empty() && self.server.recv(&mut buffer).is_ok() {
            missing.remove(&u64::from_be_bytes(buffer));
        }
        missing
    }
}

/// Sends in both families from the first to the second of each pair while `event` happens, and a while after it; gives the event's
/// result and how many datagrams were sent.
///
/// # Errors
/// When a datagram is lost or a connection breaks.
pub fn while_sending<T>(pairs: &[(&Place, &Place)], event: impl FnOnce() -> T) -> Result<(T, u64)> {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let both = pairs.iter().flat_map(|(from, to)| Family::BOTH.map(|family| Way::open(from, to, family)));
    let mut ways = both.collect::<Result<Vec<Way>>>()?;
    let pace = Duration::from_millis(if machine::is_virtual() { PACE.1 } else { PACE.0 });
    let stopped = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        let stop = Stop(&stopped);
        let sender = scope.spawn(|| {
            while !stopped.load(Relaxed) || ways[0].sent < LEAST {
                ways.iter_mut().try_for_each(Way::send)?;
                thread::park_timeout(pace);
            }
            anyhow::Ok(())
        });
        let done = event();
        drop(stop);
        match sender.join() {
            Ok(sent) => sent.map(|()| done),
            Err(_) => bail!("the sender has panicked"),
        }
    })?;
    let lost = ways.iter().map(|w| (w.what.as_str(), w.lost())).filter(|(_, lost)| !lost.is_empty());
    let lost: Vec<String> = lost.map(|(what, lost)| format!("{what}: {lost:?}")).collect();
    let sent = ways.iter().map(|w| w.sent).sum();
    if !lost.is_empty() {
        bail!("of {sent} datagrams on {} ways lost: {}", ways.len(), lost.join("; "));
    }
    Ok((done, sent))
}
