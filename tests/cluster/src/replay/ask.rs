//! Asks flows by sockets inside the network namespaces of those who ask.
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;

use super::world::World;

/// Whoever has not answered by then is taken to be silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// To this agnhost answers in one datagram.
const REQUEST: &[u8] = b"hostname\n";

/// A way from one end to an address of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who asks: its place in the world's list.
    pub from: usize,
    /// Who is asked.
    pub to: usize,
    /// Under which address.
    pub address: IpAddr,
    /// By which protocol and port, as `TCP/80`.
    pub probe: &'static str,
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There was an answer.
    Came,
    /// There was none.
    None,
    /// The kernel says something else, which is what no policy brings about.
    Other(String),
}

/// Asks all at once; gives the answers in the order of `flows`.
pub fn ask(world: &World, flows: &[Flow]) -> Result<Vec<Answer>> {
    let mut answers = vec![None; flows.len()];
    let of = |n: usize| flows.iter().enumerate().filter(move |(_, flow)| flow.from == n);
    let asked = thread::scope(|all| {
        let from = |(n, end): (usize, &'_ super::world::End)| {
            let place = end.netns.try_clone().with_context(|| format!("the network namespace of {}", end.name))?;
            let name = end.name.clone();
            // A thread has the network namespace of the one that started it.
            let all_of_it = move || -> Result<Vec<(usize, Answer)>> {
                let work = || {
                    thread::scope(|each| {
                        let threads: Vec<_> = of(n).map(|(at, flow)| (at, each.spawn(|| one(*flow)))).collect();
                        threads.into_iter().map(|(at, t)| Some((at, t.join().ok()?))).collect::<Option<Vec<_>>>()
                    })
                };
                let done = netns::in_netns(place.as_fd(), work).with_context(|| format!("ask from {name}"))?;
                done.with_context(|| format!("a thread of {name} panicked"))
            };
            Ok(all.spawn(all_of_it))
        };
        let threads = world.ends.iter().enumerate().map(from).collect::<Result<Vec<_>>>()?;
        let joined = threads.into_iter().map(|t| t.join());
        joined.map(|t| t.unwrap_or_else(|_| bail!("a thread panicked"))).collect::<Result<Vec<_>>>()
    })?;
    for (at, answer) in asked.into_iter().flatten() {
        answers[at] = Some(answer);
    }
    answers.into_iter().collect::<Option<Vec<_>>>().context("a flow was not asked")
}

fn one(flow: Flow) -> Answer {
    match flow.probe.split_once('/').and_then(|(protocol, port)| Some((protocol, port.parse().ok()?))) {
        Some(("TCP", port)) => answer(tcp(SocketAddr::new(flow.address, port))),
        Some(("UDP", port)) => answer(udp(SocketAddr::new(flow.address, port))),
        _ => Answer::Other(format!("{} is no probe", flow.probe)),
    }
}

fn answer(result: io::Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Came,
        Err(e) if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Answer::None,
        Err(e) => Answer::Other(e.to_string()),
    }
}

fn tcp(to: SocketAddr) -> io::Result<()> {
    TcpStream::connect_timeout(&to, PATIENCE).map(drop)
}

fn udp(to: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(REQUEST)?;
    socket.recv(&mut [0; 256]).map(drop)
}
