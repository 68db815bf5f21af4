//! TCP connections.
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::{Family, LIMIT, Place, Reply};

/// A connection must survive an agent's restart with packets lost now and then: longer than one retransmission.
const FLOW_LIMIT: Duration = Duration::from_secs(5);

/// Connects, sends a few bytes there and gets them back.
///
/// # Errors
/// When the connection is not made, or nothing comes back, within [`LIMIT`].
pub fn tcp(from: &Place, to: &Place, family: Family) -> Result<Reply> {
    let begin = Instant::now();
    let (mut flow, set_up) = Flow::open_timed(from, to, family)?;
    let opened = begin.elapsed();
    flow.exchange(16)?;
    // Without the making of sockets and threads before the SYN.
    let took = set_up + begin.elapsed().saturating_sub(opened);
    Ok(Reply { took, seen: Some(flow.seen.ip()) })
}

/// An open connection, with both ends in this process.
#[derive(Debug)]
pub struct Flow {
    client: TcpStream,
    server: TcpStream,
    seen: SocketAddr,
    what: String,
}

impl Flow {
    /// Opens one.
    ///
    /// # Errors
    /// When it is not made within [`LIMIT`].
    pub fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        Ok(Self::open_timed(from, to, family)?.0)
    }

    /// Opens one and says how long the handshake took.
    fn open_timed(from: &Place, to: &Place, family: Family) -> Result<(Self, Duration)> {
        let what = format!("TCP {family} {} → {}", from.name, to.name);
        let address = to.address(family)?;
        let listener = to.run(|| TcpListener::bind(SocketAddr::new(family.any(), 0))).with_context(|| what.clone())?;
        let port = listener.local_addr().with_context(|| what.clone())?.port();
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT);
        Self::join(from, &listener, what, connect)
    }

    /// Opens one from this port of `from` to the address `to`, where `listener` waits.
    ///
    /// # Errors
    /// When the port is taken, or the connection is not made within [`LIMIT`].
    pub fn open_from(from: &Place, port: u16, listener: &TcpListener, to: SocketAddr) -> Result<Self> {
        let what = format!("TCP {} from port {port} → {to}", from.name);
        let connect = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(if to.is_ipv4() { Family::V4 } else { Family::V6 }.any(), port).into())?;
            socket.connect_timeout(&to.into(), LIMIT)?;
            Ok(socket.into())
        };
        Ok(Self::join(from, listener, what, connect)?.0)
    }

    fn join(
        from: &Place,
        listener: &TcpListener,
        what: String,
        connect: impl FnOnce() -> io::Result<TcpStream> + Send,
    ) -> Result<(Self, Duration)> {
        let (client, took) = from
            .run(|| {
                let begin = Instant::now();
                Ok((connect()?, begin.elapsed()))
            })
            .with_context(|| format!("{what}: no connection"))?;
        // The handshake is done, so it waits in the queue; unless the last packet of it was lost.
        let timeout = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(listener), PollFlags::POLLIN)], timeout);
        if ready.with_context(|| what.clone())? == 0 {
            bail!("{what}: the listener never saw the end of the handshake");
        }
        let (server, seen) = listener.accept().with_context(|| what.clone())?;
        for end in [&client, &server] {
            end.set_nodelay(true).with_context(|| what.clone())?;
            end.set_read_timeout(Some(FLOW_LIMIT)).with_context(|| what.clone())?;
            end.set_write_timeout(Some(FLOW_LIMIT)).with_context(|| what.clone())?;
        }
        Ok((Self { client, server, seen, what }, took))
    }

    /// Sends so many bytes there and back, and compares them.
    ///
    /// # Errors
    /// When they do not arrive in five seconds, or not as they were.
    pub fn exchange(&mut self, bytes: usize) -> Result<()> {
        self.pass(&self.client, &self.server, "there", bytes)?;
        self.pass(&self.server, &self.client, "back", bytes)
    }

    /// Sends so many bytes to the server, and compares them.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn push(&mut self, bytes: usize) -> Result<()> {
        self.pass(&self.client, &self.server, "there", bytes)
    }

    fn pass(&self, from: &TcpStream, to: &TcpStream, way: &str, bytes: usize) -> Result<()> {
        let data: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let what = || format!("{}: {bytes} bytes {way}", self.what);
        let received = std::thread::scope(|scope| {
            // More than the socket buffers hold: both ends must work at the same time.
            let sender = scope.spawn(|| (&mut &*from).write_all(&data));
            let mut received = vec![0; bytes];
            let result = (&mut &*to).read_exact(&mut received);
            sender.join().unwrap_or(Ok(())).and(result).map(|()| received)
        })
        .with_context(what)?;
        if received != data {
            bail!("{}: other bytes arrived", what());
        }
        Ok(())
    }

    /// Whom the server sees.
    #[must_use]
    pub fn seen(&self) -> SocketAddr {
        self.seen
    }

    /// Where the server listens, as it takes itself for.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn server(&self) -> Result<SocketAddr> {
        self.server.local_addr().with_context(|| self.what.clone())
    }

    /// What the client takes itself for.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn client(&self) -> Result<SocketAddr> {
        self.client.local_addr().with_context(|| self.what.clone())
    }
}
