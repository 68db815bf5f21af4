//! What runs in the pods of the connectivity test: it answers, and asks others. It is in `weft`, so the test needs no image but Weft's own.
use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::cli::Failure;

/// Where each pod of the test answers, by TCP and UDP.
pub(in crate::cli) const PORT: u16 = 8099;
/// A SYN that is lost is sent again after one second, and after two more.
const CONNECT: Duration = Duration::from_millis(3500);
/// What is sent by TCP and must come back: many full segments, so that a hop with a smaller MTU shows.
const BYTES: usize = 256 << 10;
/// For all of that.
const TRANSFER: Duration = Duration::from_secs(3);
/// A datagram that fits into one packet everywhere.
const DATAGRAM: usize = 1000;
/// For each of three datagrams.
const ANSWER: Duration = Duration::from_millis(1100);

#[derive(Debug, Args)]
pub(in crate::cli) struct Probe {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Send back what comes in
    Serve,
    /// Ask who serves at these addresses; one line of JSON for each address and protocol
    Ask { addresses: Vec<SocketAddr> },
}

/// One address, asked by one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Asked {
    /// Who was asked.
    pub(in crate::cli) to: SocketAddr,
    /// `TCP` or `UDP`.
    pub(in crate::cli) protocol: String,
    /// Who asked, as far as the kernel has said it.
    pub(in crate::cli) from: Option<SocketAddr>,
    /// Microseconds until the first answer: a connection, or a datagram.
    pub(in crate::cli) micros: u64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) error: Option<String>,
}

pub(in crate::cli) async fn run(probe: &Probe, out: &mut dyn Write) -> Result<(), Failure> {
    match &probe.verb {
        Verb::Serve => Ok(serve(PORT).await?),
        Verb::Ask { addresses } => {
            for to in addresses {
                for asked in [ask_tcp(*to).await, ask_udp(*to).await] {
                    writeln!(out, "{}", serde_json::to_string(&asked).map_err(io::Error::from)?)?;
                    out.flush()?;
                }
            }
            Ok(())
        }
    }
}

/// Serves until the process ends.
async fn serve(port: u16) -> io::Result<()> {
    // Takes IPv4 as well, where there is IPv6 at all.
    let (any, v4) = (SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let listener = match TcpListener::bind(any).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(v4).await?,
    };
    let socket = match UdpSocket::bind(any).await {
        Ok(socket) => socket,
        Err(_) => UdpSocket::bind(v4).await?,
    };
    let datagrams = async {
        let mut buffer = [0; 2048];
        loop {
            // An error is about a datagram that was sent before, and about no other.
            if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _its_own_affair = socket.send_to(&buffer[..length], from).await;
            }
        }
    };
    let connections = async {
        loop {
            if let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _its_own_affair = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        }
    };
    let ((), ()) = tokio::join!(datagrams, connections);
    Ok(())
}

async fn ask_tcp(to: SocketAddr) -> Asked {
    let mut asked = Asked { to, protocol: "TCP".into(), from: None, micros: 0, error: None };
    let begin = Instant::now();
    let attempt = async {
        let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.bind(if to.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        })?;
        // Known already if nobody answers.
        asked.from = socket.local_addr().ok();
        socket.connect(to).await
    };
    let mut stream = match timeout(CONNECT, attempt).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Asked { error: Some(format!("connect: {e}")), ..asked },
        Err(_) => return Asked { error: Some("connect: nobody answers".into()), ..asked },
    };
    asked.micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    asked.from = stream.local_addr().ok().or(asked.from);
    let mut back = 0;
    asked.error = match timeout(TRANSFER, transfer(&mut stream, &mut back)).await {
        Ok(Ok(())) if back == BYTES => None,
        Ok(Ok(())) => Some(format!("{back} of {BYTES} bytes came back, then the end")),
        Ok(Err(e)) => Some(format!("{back} of {BYTES} bytes came back, then {e}")),
        Err(_) => Some(format!(
            "connected, and {back} of {BYTES} bytes came back: full packets are lost, is the MTU between the nodes what their devices say?"
        )),
    };
    asked
}

async fn transfer(stream: &mut TcpStream, back: &mut usize) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    let send = async {
        write.write_all(&vec![0x5a; BYTES]).await?;
        write.shutdown().await
    };
    let receive = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match read.read(&mut buffer).await? {
                0 => return Ok::<_, io::Error>(()),
                n => *back += n,
            }
        }
    };
    tokio::try_join!(send, receive).map(drop)
}

async fn ask_udp(to: SocketAddr) -> Asked {
    let mut asked = Asked { to, protocol: "UDP".into(), from: None, micros: 0, error: None };
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let exchange = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        asked.from = socket.local_addr().ok();
        let mut buffer = [0; 2048];
        for _ in 0..3 {
            let begin = Instant::now();
            socket.send(&[0x5a; DATAGRAM]).await?;
            if let Ok(length) = timeout(ANSWER, socket.recv(&mut buffer)).await {
                length?;
                asked.micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                return Ok(true);
            }
        }
        Ok::<_, io::Error>(false)
    };
    let answer = exchange.await;
    asked.error = match answer {
        Ok(true) => None,
        Ok(false) => Some("nobody answers".into()),
        Err(e) => Some(e.to_string()),
    };
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_serves_is_reached_and_who_does_not_is_not() {
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(ask_tcp(to).await.error.is_some_and(|e| e.starts_with("connect: ")));
        let server = tokio::spawn(serve(port));
        let reached = async {
            while ask_tcp(to).await.error.is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), reached).await.unwrap();
        let asked = ask_udp(to).await;
        assert_eq!(asked.error, None);
        assert!(asked.from.is_some_and(|from| from.port() != 0));
        server.abort();
    }
}
