//! Both ends of conversations: TCP, SCTP (one-to-one style) and UDP over the same sockets.
use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lab::probe::Place;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Longer than a few retransmissions, also of SCTP, which waits three seconds before the first.
const LIMIT: Duration = Duration::from_secs(15);
/// Bytes that are written in one call: one message of SCTP, which must fit into the socket's buffer.
const CHUNK: usize = 32 * 1024;

/// Of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

fn open(place: &Place, transport: Transport, address: IpAddr) -> Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Sctp => (Type::STREAM, Protocol::SCTP),
    };
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = place.run(|| Socket::new(domain, kind, Some(protocol)))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Answers one connection, or so many datagrams, with what it hears. Gives the port and, in the end, whom it has seen.
pub fn echo(
    place: &Place,
    transport: Transport,
    any: IpAddr,
    datagrams: usize,
) -> Result<(u16, JoinHandle<io::Result<IpAddr>>)> {
    let socket = open(place, transport, any)?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    if transport != Transport::Udp {
        socket.listen(1)?;
    }
    let port = socket.local_addr()?.as_socket().context("a port")?.port();
    let served = thread::spawn(move || {
        let peer = match transport {
            Transport::Udp => answer_datagrams(&socket, datagrams)?,
            Transport::Tcp | Transport::Sctp => answer_connection(&socket)?,
        };
        peer.as_socket().map(|peer| peer.ip()).ok_or_else(|| io::ErrorKind::Unsupported.into())
    });
    Ok((port, served))
}

fn answer_connection(listener: &Socket) -> io::Result<SockAddr> {
    let (socket, peer) = listener.accept()?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match (&socket).read(&mut buffer)? {
            0 => return Ok(peer),
            length => (&socket).write_all(&buffer[..length])?,
        }
    }
}

fn answer_datagrams(mut socket: &Socket, count: usize) -> io::Result<SockAddr> {
    let peer = socket.peek_sender()?;
    socket.connect(&peer)?;
    let mut buffer = vec![0; 65_536];
    for _ in 0..count {
        let length = socket.read(&mut buffer)?;
        socket.write_all(&buffer[..length])?;
    }
    Ok(peer)
}

/// Sends a message of each size and compares what comes back.
pub fn call(place: &Place, transport: Transport, to: SocketAddr, sizes: &[usize]) -> Result<()> {
    let socket = open(place, transport, to.ip())?;
    socket.connect_timeout(&to.into(), LIMIT).context("no connection")?;
    for size in sizes {
        let data: Vec<u8> = (0..*size).map(|i| (i % 251) as u8).collect();
        let back = match transport {
            Transport::Udp => datagram_there_and_back(&socket, &data),
            Transport::Tcp | Transport::Sctp => stream_there_and_back(&socket, &data),
        };
        if back.with_context(|| format!("{size} bytes there and back"))? != data {
            bail!("of {size} bytes others came back");
        }
    }
    Ok(())
}

fn datagram_there_and_back(mut socket: &Socket, data: &[u8]) -> io::Result<Vec<u8>> {
    socket.write_all(data)?;
    let mut back = vec![0; 65_536];
    let length = socket.read(&mut back)?;
    back.truncate(length);
    Ok(back)
}

fn stream_there_and_back(mut socket: &Socket, data: &[u8]) -> io::Result<Vec<u8>> {
    let mut back = vec![0; data.len()];
    thread::scope(|scope| {
        // More than the sockets' buffers hold: both directions at the same time.
        let sender = scope.spawn(move || data.chunks(CHUNK).try_for_each(|chunk| (&mut &*socket).write_all(chunk)));
        let result = socket.read_exact(&mut back);
        sender.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).and(result)
    })?;
    Ok(back)
}
