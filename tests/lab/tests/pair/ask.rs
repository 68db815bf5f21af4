//! What the conducting machine asks of either, and the wire to the other one: a line of JSON each way.
use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use lab::layout::machine_addresses;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{does::Does, talk::Transport};

/// Of the second machine's service, on the underlay.
const PORT: u16 = 7700;
/// The machines do not come up at the same time; one that is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than anything that is asked takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A place in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Who {
    /// A pod.
    Pod,
    /// Another pod.
    Neighbour,
    /// The machine itself.
    Node,
}

/// Something to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Gives an [`About`].
    About,
    /// Listens and echoes: one connection, or so many datagrams. Gives the port.
    Serve { who: Who, transport: Transport, any: IpAddr, datagrams: usize },
    /// Gives the address that the server has seen, after it has ended.
    Served,
    /// Sends messages of these sizes to a server and compares what comes back.
    Call { who: Who, transport: Transport, to: SocketAddr, sizes: Vec<usize> },
    /// Two echo requests with so many bytes of payload, which may not be fragmented; both are answered within so many seconds.
    Ping { who: Who, to: IpAddr, size: usize, seconds: u8 },
    /// Hears every frame of the pod's device from now on.
    Listen,
    /// Gives the [`Heard`](crate::frames::Heard) since then.
    Heard,
    /// Notes how `eth0` receives large packets from now on.
    Trace,
    /// Gives the [`Traced`](crate::does::Traced) since then.
    Traced,
    /// Gives counters of packets that were damaged, by name.
    Damaged { who: Who },
    /// Gives what the agent answers.
    Agent { path: String },
    /// A command line, run in the machine's own namespace. Gives its output.
    Run { line: String },
    /// Sends a frame out of `eth0`.
    Send { frame: Vec<u8> },
    /// Starts the agent again, with these further arguments.
    Restart { arguments: Vec<String> },
    /// Attaches a program that passes everything to `eth0`, in the driver, or removes it.
    Xdp { on: bool },
}

/// A machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct About {
    /// `uname -r`.
    pub kernel: String,
    /// MAC of `eth0`.
    pub mac: [u8; 6],
    /// Whose addresses are which.
    pub addresses: BTreeMap<Who, Vec<IpAddr>>,
}

/// One of the two machines, seen from the first.
#[expect(clippy::large_enum_variant, reason = "there are two of them in all")]
pub enum Side {
    /// This one.
    Here(Does),
    /// The other one.
    There(BufReader<TcpStream>),
}

impl Side {
    /// The other machine, once it serves.
    pub fn connect() -> Result<Self> {
        let to = SocketAddr::new(machine_addresses(2)[0].addr(), PORT);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect_timeout(&to, LIMIT) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(LIMIT))?;
                    return Ok(Self::There(BufReader::new(stream)));
                }
                Err(e) if Instant::now() > deadline => {
                    return Err(e).with_context(|| format!("reach the second machine at {to}"));
                }
                // Nothing tells when the other machine is up: it is asked ten times a second.
                Err(_) => drop(poll(&mut [], 100u16)?),
            }
        }
    }

    /// Has it done, and gives the answer.
    pub fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T> {
        let what =
            || format!("{ask:?} {}", if matches!(self, Self::Here(_)) { "here" } else { "on the other machine" });
        let context = what();
        let answer = match self {
            Self::Here(does) => does.it(ask),
            Self::There(stream) => exchange(stream, ask),
        };
        serde_json::from_value(answer.with_context(|| context.clone())?).context(context)
    }
}

fn exchange(stream: &mut BufReader<TcpStream>, ask: &Ask) -> Result<Value> {
    send(stream.get_ref(), ask)?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("it has closed the connection");
    }
    serde_json::from_str::<Result<Value, String>>(&line)?.map_err(|why| anyhow!(why))
}

fn send(mut to: &TcpStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(to.write_all(&line)?)
}

/// Serves the first machine until it goes.
pub fn serve(listener: &TcpListener, does: &mut Does) -> Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    if poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
        bail!("the first machine does not come");
    }
    let (stream, _) = listener.accept()?;
    // One that is gone without a word leaves no end of file.
    stream.set_read_timeout(Some(2 * LIMIT))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            other => other.context("wait for a word of the first machine")?,
        };
        let answer = does.it(&serde_json::from_str(&line)?).map_err(|e| format!("{e:#}"));
        send(reader.get_ref(), &answer)?;
    }
}

/// Where the second machine serves.
pub fn listen() -> Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(machine_addresses(2)[0].addr(), PORT)).context("listen for the first machine")
}
