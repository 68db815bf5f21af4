//! The inline tests: one thread owns both ends of a path.
//!
//! `send()` runs the whole path in the sender's softirq, on the same CPU, and the packet lies in the peer's socket
//! when the call returns. No thread is woken, no other CPU is interrupted, the scheduler has no say: the figure is
//! the CPU cost of the path plus the same few system calls for every layout. Where a packet does take longer (a hop
//! left to ksoftirqd), the thread waits for it and the sample counts the wait.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

use crate::layout::{Ends, Family};
use crate::{interrupt, stats};

/// A path that delivers nothing for this long is broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes moved by one batch of a stream: long enough for the clock, short enough that most batches see no timer tick.
const STREAM_BATCH: u64 = 2 << 20;
/// Connections that a stream is measured with, one after another: where a connection's memory happens to lie makes
/// some 10 % of difference to the caches.
const STREAM_CONNECTIONS: u32 = 4;
/// Batches that each connection moves before it is measured.
const STREAM_WARM_UP: u32 = 8;
/// Bytes offered to one `send()`, and room for one `recv()`. Every MTU here cuts them into two super-packets of
/// nearly full size, as in a steady stream. A little more, and the rest would travel as a third, tiny one; much more
/// overflows the receive buffer now and then, as nobody reads meanwhile.
const STREAM_CHUNK: usize = 124 << 10;
/// Fewer batches than this make no percentile; on a busy machine a measurement lasts until it has them.
const MIN_BATCHES: usize = 10;

/// What is done over a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Test {
    /// One byte there and back by UDP; ns per round trip.
    UdpRr,
    /// One byte there and back over an open TCP connection; ns per round trip.
    TcpRr,
    /// Connect, one byte there, one byte back, close; ns for all of it.
    TcpCrr,
    /// Bulk data over one TCP connection; Gbit per second of CPU time of the thread that sends and receives.
    TcpStream,
}

impl Test {
    /// All tests, in the order in which they are run and shown.
    pub const ALL: [Self; 4] = [Self::UdpRr, Self::TcpRr, Self::TcpCrr, Self::TcpStream];

    /// The name in tables, figures and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::UdpRr => "udp_rr",
            Self::TcpRr => "tcp_rr",
            Self::TcpCrr => "tcp_crr",
            Self::TcpStream => "tcp_stream",
        }
    }

    /// The unit of a sample's value.
    pub fn unit(self) -> &'static str {
        match self {
            Self::UdpRr | Self::TcpRr | Self::TcpCrr => "ns",
            Self::TcpStream => "Gbit/CPU-s",
        }
    }

    /// Operations in one batch: about 0.3 ms on current machines.
    fn batch(self) -> u32 {
        match self {
            Self::UdpRr | Self::TcpRr => 32,
            Self::TcpCrr => 8,
            Self::TcpStream => 1,
        }
    }
}

/// What one measurement found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// In the unit of the test: the 10th percentile of the costs of the batches (for a stream, as bandwidth).
    pub value: f64,
    /// How often data was not there yet and the thread had to wait: 0 where the path runs wholly inline.
    pub waits: u64,
}

/// Measures `test` over the path between `ends` for about `duration`, on `cpu`.
pub fn measure(test: Test, ends: &Ends, family: Family, duration: Duration, cpu: usize) -> Result<Sample> {
    // Client sockets are made on this thread during the test, so it lives in the client's namespace.
    ends.client.enter(|| {
        pin(cpu)?;
        let address = ends.address(family);
        match test {
            Test::UdpRr => {
                let server =
                    ends.server.enter(|| UdpSocket::bind((address, 0)).with_context(|| format!("bind {address}")))?;
                udp_rr(&server, duration)
            }
            Test::TcpRr => tcp_rr(&listen(ends, family)?, duration),
            Test::TcpCrr => tcp_crr(&listen(ends, family)?, duration),
            Test::TcpStream => tcp_stream(&listen(ends, family)?, duration),
        }
    })
}

/// Waits until a datagram goes there and back, sending one every 50 ms, and answers with whom the server saw; `None`
/// when none did for 10 seconds. IPv6 addresses answer neighbour solicitations only when the kernel's worker has joined
/// their multicast groups, and a solicitation that is lost costs a second for each hop.
pub fn await_delivery(ends: &Ends, family: Family) -> Result<Option<IpAddr>> {
    let address = ends.address(family);
    let server = ends.server.enter(|| UdpSocket::bind((address, 0)).with_context(|| format!("bind {address}")))?;
    let client = ends.client.enter(|| connected_udp(&server))?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    client.set_read_timeout(Some(Duration::from_millis(50)))?;
    let until = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 16];
    while Instant::now() < until {
        interrupt::check()?;
        // An error here is a hop that does not answer yet.
        if client.send(b"?").is_ok()
            && let Ok((_, from)) = server.recv_from(&mut buffer)
            && server.send_to(b"!", from).is_ok()
            && client.recv(&mut buffer).is_ok()
        {
            return Ok(Some(from.ip()));
        }
    }
    Ok(None)
}

/// The CPU that all measurements of a run use: the last one this process may use, as the first takes most interrupts.
pub fn choose_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("read the CPUs this process may use")?;
    (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu) == Ok(true)).context("this process may use no CPU")
}

/// Keeps this thread on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).context("choose a CPU")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))
}

fn listen(ends: &Ends, family: Family) -> Result<TcpListener> {
    let address = ends.address(family);
    // The server closes first, so it would collect a TIME_WAIT socket for each connection: thousands a second, whose
    // timers would disturb the layouts that are measured later. Without any, the closing handshake is still complete
    // and the client's ports are free at once.
    ends.server.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
    ends.server.enter(|| {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

fn udp_rr(server: &UdpSocket, duration: Duration) -> Result<Sample> {
    let client = connected_udp(server)?;
    client.set_nonblocking(true)?;
    server.set_nonblocking(true)?;
    let mut waits = Waits::default();
    let mut buffer = [0; 16];
    let value = batches(Test::UdpRr, duration, || {
        client.send(b"?")?;
        let (_, from) = waits.for_input(server, || server.recv_from(&mut buffer))?;
        server.send_to(b"!", from)?;
        waits.for_input(&client, || client.recv(&mut buffer))?;
        Ok(())
    })?;
    Ok(Sample { value, waits: waits.0 })
}

fn connected_udp(server: &UdpSocket) -> Result<UdpSocket> {
    let address = server.local_addr()?;
    let any: SocketAddr = if address.is_ipv4() { ([0u8; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let client = UdpSocket::bind(any).context("bind the client's socket")?;
    client.connect(address).with_context(|| format!("connect to {address}"))?;
    Ok(client)
}

fn tcp_rr(listener: &TcpListener, duration: Duration) -> Result<Sample> {
    let mut waits = Waits::default();
    let (client, server) = connected(listener, &mut waits)?;
    let mut waits = Waits::default();
    let value = batches(Test::TcpRr, duration, || exchange(&client, &server, &mut waits))?;
    Ok(Sample { value, waits: waits.0 })
}

fn tcp_crr(listener: &TcpListener, duration: Duration) -> Result<Sample> {
    let mut waits = Waits::default();
    let value = batches(Test::TcpCrr, duration, || {
        let (client, server) = connected(listener, &mut waits)?;
        exchange(&client, &server, &mut waits)?;
        drop(server);
        drop(client);
        Ok(())
    })?;
    Ok(Sample { value, waits: waits.0 })
}

fn tcp_stream(listener: &TcpListener, duration: Duration) -> Result<Sample> {
    let mut costs = Vec::new();
    let mut waits = 0;
    for _ in 0..STREAM_CONNECTIONS {
        let mut stream = Stream::new(listener)?;
        // Slow start and the growth of the receive buffer are not what is asked for.
        for _ in 0..STREAM_WARM_UP {
            stream.batch()?;
        }
        let wanted = costs.len() + MIN_BATCHES;
        let (start, cpu_start) = (Instant::now(), cpu_time()?);
        let share = duration / STREAM_CONNECTIONS;
        // So much CPU time, for which a busy machine makes us wait, within reason.
        while costs.len() < wanted || (cpu_time()? - cpu_start < share && start.elapsed() < share * 4) {
            interrupt::check()?;
            let (before, waits_before) = (cpu_time()?, stream.waits.0);
            let bytes = stream.batch()?;
            let cost = (cpu_time()? - before).as_nanos() as f64 / bytes as f64;
            // While we wait, another thread does the work, and its CPU time is not in ours.
            if stream.waits.0 == waits_before {
                costs.push(cost);
            } else if start.elapsed() > PATIENCE {
                bail!("the path does not run inline: this thread has to wait for data {} times", stream.waits.0);
            }
        }
        waits += stream.waits.0;
    }
    let cost = stats::quantile(&costs, 0.1).context("no batch was measured")?;
    Ok(Sample { value: 8.0 / cost, waits })
}

/// A connection whose two ends send and receive in turn.
struct Stream {
    client: TcpStream,
    server: TcpStream,
    data: Vec<u8>,
    buffer: Vec<u8>,
    waits: Waits,
}

impl Stream {
    fn new(listener: &TcpListener) -> Result<Self> {
        let (client, server) = connected(listener, &mut Waits::default())?;
        let (data, buffer) = (vec![0x57; STREAM_CHUNK], vec![0; STREAM_CHUNK]);
        Ok(Self { client, server, data, buffer, waits: Waits::default() })
    }

    /// Moves at least [`STREAM_BATCH`] bytes and returns how many it were.
    fn batch(&mut self) -> Result<u64> {
        let mut received = 0;
        while received < STREAM_BATCH {
            let sent = once(|| self.client.write(&self.data))?;
            let mut got = 0;
            while let Some(bytes) = once(|| self.server.read(&mut self.buffer))? {
                if bytes == 0 {
                    bail!("the connection was closed in the middle of a stream");
                }
                got += bytes as u64;
            }
            if sent.is_none() && got == 0 {
                self.waits.count(&self.server, PollFlags::POLLIN)?;
            }
            received += got;
        }
        Ok(received)
    }
}

/// CPU time of this thread. Softirq work that its system calls set off is in it.
fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the CPU time of the thread")?.into())
}

/// Runs `operation` in batches for `duration`, after a short warm-up, and returns the 10th percentile of the batches'
/// averages in ns an operation.
fn batches(test: Test, duration: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut averages = Vec::new();
    let start = Instant::now();
    let (warm, end) = (start + duration / 10, start + duration + duration / 10);
    loop {
        interrupt::check()?;
        let before = Instant::now();
        for _ in 0..test.batch() {
            operation()?;
        }
        let after = Instant::now();
        if before >= warm {
            averages.push((after - before).as_nanos() as f64 / f64::from(test.batch()));
        }
        if after >= end && averages.len() >= MIN_BATCHES {
            return stats::quantile(&averages, 0.1).context("no batch was measured");
        }
    }
}

/// One byte there and one byte back.
fn exchange(client: &TcpStream, server: &TcpStream, waits: &mut Waits) -> Result<()> {
    let mut buffer = [0; 1];
    for (mut from, mut to, byte) in [(client, server, b"?"), (server, client, b"!")] {
        waits.for_output(from, || from.write(byte))?;
        if waits.for_input(to, || to.read(&mut buffer))? == 0 {
            bail!("the connection was closed before the byte came");
        }
    }
    Ok(())
}

/// Connects to `listener` from the namespace of this thread. Both sockets do not block.
fn connected(listener: &TcpListener, waits: &mut Waits) -> Result<(TcpStream, TcpStream)> {
    let address = listener.local_addr()?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match connect(client.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error).with_context(|| format!("connect to {address}")),
    }
    let client = TcpStream::from(client);
    let (server, _) = waits.for_input(listener, || listener.accept())?;
    server.set_nonblocking(true)?;
    Ok((client, server))
}

/// How often the thread had to wait for the kernel.
#[derive(Default)]
struct Waits(u64);

impl Waits {
    fn for_input<T>(&mut self, fd: &impl AsFd, operation: impl FnMut() -> io::Result<T>) -> Result<T> {
        self.until(fd, PollFlags::POLLIN, operation)
    }

    fn for_output<T>(&mut self, fd: &impl AsFd, operation: impl FnMut() -> io::Result<T>) -> Result<T> {
        self.until(fd, PollFlags::POLLOUT, operation)
    }

    fn until<T>(
        &mut self,
        fd: &impl AsFd,
        flags: PollFlags,
        mut operation: impl FnMut() -> io::Result<T>,
    ) -> Result<T> {
        loop {
            if let Some(done) = once(&mut operation)? {
                return Ok(done);
            }
            self.count(fd, flags)?;
        }
    }

    fn count(&mut self, fd: &impl AsFd, flags: PollFlags) -> Result<()> {
        self.0 += 1;
        let until = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            match poll(&mut [PollFd::new(fd.as_fd(), flags)], PollTimeout::from(100u8)) {
                Ok(0) if Instant::now() > until => bail!("nothing arrived within {PATIENCE:?}: the path loses packets"),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error).context("wait for a socket"),
            }
        }
    }
}

/// Tries a call that does not block; `None` when it would.
fn once<T>(mut operation: impl FnMut() -> io::Result<T>) -> Result<Option<T>> {
    loop {
        match operation() {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
