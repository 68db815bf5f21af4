//! The way to the agent: one call over its unix socket, with a limit on every wait.
use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt},
    time::{TimeVal, TimeValLike},
};

use crate::{
    protocol::{MAX_RESPONSE, Request, Response},
    spec::{CniError, ErrorCode},
};

/// The step before anything is said, as it stands in errors.
const CONNECT: &str = "connect";

/// How a request reaches the agent: a socket, or a stand-in in tests.
pub trait Transport {
    /// Hands `request` to the agent behind `socket` and waits for its answer.
    ///
    /// # Errors
    /// What kept the request from being answered. What the agent itself refuses is a [`Response::Failed`].
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CallError>;
}

/// A call that was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// How far it came.
    pub unanswered: Unanswered,
    /// Cause and cure.
    pub error: CniError,
}

/// How far a call came that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody listens on the socket.
    Absent,
    /// The request was not sent: it is too large, or the socket is not for the caller.
    NotSent,
    /// The agent hung up without an answer: it is being restarted, or has crashed.
    HungUp,
    /// There was no answer in time.
    Silent,
    /// There was an answer, but not one that can be read.
    Unreadable,
}

impl Unanswered {
    /// Whether there is no agent that does its work.
    pub const fn agent_is_down(self) -> bool {
        matches!(self, Self::Absent | Self::HungUp | Self::Silent)
    }

    /// Whether the agent may have acted, or may still act, upon the request.
    pub const fn may_be_done(self) -> bool {
        matches!(self, Self::HungUp | Self::Silent | Self::Unreadable)
    }
}

/// How long the parts of a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the agent's queue has taken the connection.
    pub connect: Duration,
    /// Until the request is written.
    pub write: Duration,
    /// From then until the answer has arrived whole.
    pub answer: Duration,
}

impl Default for Timeouts {
    /// Far above what a call needs (milliseconds), and below the two minutes after which kubelet gives up a sandbox: so
    /// the error that is seen is ours, which says more.
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), write: Duration::from_secs(5), answer: Duration::from_secs(60) }
    }
}

/// The agent's unix socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketTransport {
    /// How long to wait.
    pub timeouts: Timeouts,
}

impl Transport for SocketTransport {
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CallError> {
        let bytes = request.encode().map_err(|error| CallError { unanswered: Unanswered::NotSent, error })?;
        let mut stream = connect(socket, self.timeouts.connect)?;
        let written = write(&mut stream, &bytes, self.timeouts.write);
        // An agent that refuses the request may answer before it has read all of it: its reason is worth more than the
        // broken pipe.
        match (written, read(&mut stream, self.timeouts.answer)) {
            (Ok(()), Ok(answer)) => decode(&answer),
            (Err(e), Ok(answer)) if is_hang_up(&e) && !answer.is_empty() => decode(&answer),
            (Err(e), _) => Err(failed(socket, "send the request", &e)),
            (Ok(()), Err(e)) => Err(failed(socket, "read the answer", &e)),
        }
    }
}

fn decode(answer: &[u8]) -> Result<Response, CallError> {
    let unanswered = if answer.is_empty() { Unanswered::HungUp } else { Unanswered::Unreadable };
    Response::decode(answer).map_err(|error| CallError { unanswered, error })
}

/// Connects with a time limit, which the standard library does not have for unix sockets: `connect` waits as long as the agent's
/// queue is full, but not longer than the socket may send (unix(7), `SO_SNDTIMEO`).
fn connect(socket: &Path, timeout: Duration) -> Result<UnixStream, CallError> {
    let connect = || -> io::Result<UnixStream> {
        let address = UnixAddr::new(socket)?;
        let stream = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Zero would mean no limit.
        let limit = TimeVal::microseconds(i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1));
        socket::setsockopt(&stream, sockopt::SendTimeout, &limit)?;
        socket::connect(stream.as_raw_fd(), &address)?;
        Ok(stream.into())
    };
    connect().map_err(|e| failed(socket, CONNECT, &e))
}

fn write(stream: &mut UnixStream, bytes: &[u8], timeout: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end of the stream; the limit is for the whole, so a trickle does not stretch it.
fn read(stream: &mut UnixStream, timeout: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend(chunk.iter().take(n)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The end of a stream whose other end closed without having read all of ours.
            Err(e) if is_hang_up(&e) && !answer.is_empty() => return Ok(answer),
            Err(e) => return Err(e),
        }
        if answer.len() > MAX_RESPONSE {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("it is larger than {MAX_RESPONSE} bytes")));
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected)
}

/// Cause and cure of a call that did not get through.
fn failed(socket: &Path, step: &str, error: &io::Error) -> CallError {
    let path = socket.display();
    let inspect = "`systemctl status weft-agent`, or the log of the weft pod of this node, says why";
    let again = ErrorCode::TRY_AGAIN_LATER;
    let (unanswered, code, msg, cure) = match error.kind() {
        ErrorKind::NotFound => (
            Unanswered::Absent,
            again,
            format!("weft-agent is not running on this node: there is no socket {path}"),
            format!(
                "start weft-agent (its --run-dir must hold this socket, or set \"agentSocket\" in the network \
                 configuration); {inspect}"
            ),
        ),
        ErrorKind::ConnectionRefused => (
            Unanswered::Absent,
            again,
            format!("weft-agent is not running on this node: nobody listens on {path}"),
            format!("start weft-agent; {inspect}"),
        ),
        ErrorKind::PermissionDenied => (
            Unanswered::NotSent,
            ErrorCode::NOT_PERMITTED,
            format!("no permission to connect to weft-agent at {path}"),
            "run the container runtime as root: only root may change the node's network".to_owned(),
        ),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => (
            Unanswered::Silent,
            again,
            format!("weft-agent does not answer on {path}: cannot {step} in time"),
            format!("it hangs or the node is overloaded; {inspect}"),
        ),
        _ if is_hang_up(error) => (
            Unanswered::HungUp,
            again,
            format!("weft-agent closed the connection on {path}: cannot {step}: {error}"),
            format!("it is being restarted, or has crashed; {inspect}"),
        ),
        // An answer over the limit is such a case.
        ErrorKind::InvalidData => (
            Unanswered::Unreadable,
            ErrorCode::IO_FAILURE,
            format!("cannot {step}: weft-agent at {path}: {error}"),
            inspect.to_owned(),
        ),
        _ => (
            // What fails after the connection stands may have been heard.
            if step == CONNECT { Unanswered::NotSent } else { Unanswered::Unreadable },
            ErrorCode::IO_FAILURE,
            format!("cannot {step}: weft-agent at {path}: {error}"),
            inspect.to_owned(),
        ),
    };
    CallError { unanswered, error: CniError::new(code, msg).with_details(cure) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_names_the_socket_and_a_cure() {
        let again = ErrorCode::TRY_AGAIN_LATER;
        for (kind, unanswered, code) in [
            (ErrorKind::NotFound, Unanswered::Absent, again),
            (ErrorKind::ConnectionRefused, Unanswered::Absent, again),
            (ErrorKind::TimedOut, Unanswered::Silent, again),
            (ErrorKind::WouldBlock, Unanswered::Silent, again),
            (ErrorKind::BrokenPipe, Unanswered::HungUp, again),
            (ErrorKind::ConnectionReset, Unanswered::HungUp, again),
            (ErrorKind::PermissionDenied, Unanswered::NotSent, ErrorCode::NOT_PERMITTED),
            (ErrorKind::InvalidInput, Unanswered::NotSent, ErrorCode::IO_FAILURE),
            (ErrorKind::InvalidData, Unanswered::Unreadable, ErrorCode::IO_FAILURE),
        ] {
            let failed = failed(Path::new("/run/x.sock"), CONNECT, &kind.into());
            assert_eq!((failed.unanswered, failed.error.code), (unanswered, code), "{kind}");
            let e = failed.error;
            assert!(e.msg.contains("/run/x.sock") && !e.details.is_empty(), "{e}");
        }
    }
}
