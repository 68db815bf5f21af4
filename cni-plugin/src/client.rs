//! The way to the agent: one call over its unix socket, with a limit on every wait.
use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    protocol::{MAX_RESPONSE, Request, Response},
    spec::{CniError, ErrorCode},
};

/// How a request reaches the agent: a socket, or a stand-in in tests.
pub trait Transport {
    /// Hands `request` to the agent behind `socket` and waits for its answer.
    ///
    /// # Errors
    /// What kept the request from being answered. What the agent itself refuses is a [`Response::Failed`].
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CniError>;
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
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CniError> {
        let bytes = request.encode()?;
        let mut stream = connect(socket, self.timeouts.connect)?;
        let written = write(&mut stream, &bytes, self.timeouts.write);
        // An agent that refuses the request may answer before it has read all of it: its reason is worth more than the
        // broken pipe.
        match (written, read(&mut stream, self.timeouts.answer)) {
            (Ok(()), Ok(answer)) => Response::decode(&answer),
            (Err(e), Ok(answer)) if is_hang_up(&e) && !answer.is_empty() => Response::decode(&answer),
            (Err(e), _) => Err(failed(socket, "send the request", &e)),
            (Ok(()), Err(e)) => Err(failed(socket, "read the answer", &e)),
        }
    }
}

/// Connects in a thread of its own: the standard library has no time limit for unix sockets, and `connect` waits as long
/// as the agent's queue is full. When the time is up the thread is left behind; the process is about to end.
fn connect(socket: &Path, timeout: Duration) -> Result<UnixStream, CniError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = socket.to_owned();
    let connect = move || {
        // Nobody listens any more after the time limit.
        drop(sender.send(UnixStream::connect(path)));
    };
    thread::Builder::new()
        .name("connect".to_owned())
        .stack_size(64 << 10)
        .spawn(connect)
        .map_err(|e| CniError::new(ErrorCode::IO_FAILURE, format!("cannot start a thread: {e}")))?;
    receiver
        .recv_timeout(timeout)
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        .map_err(|e| failed(socket, "connect", &e))
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
fn failed(socket: &Path, step: &str, error: &io::Error) -> CniError {
    let path = socket.display();
    let inspect = "`systemctl status weft-agent`, or the log of the weft pod of this node, says why";
    let (code, msg, cure) = match error.kind() {
        ErrorKind::NotFound => (
            ErrorCode::TRY_AGAIN_LATER,
            format!("weft-agent is not running on this node: there is no socket {path}"),
            format!(
                "start weft-agent (its --run-dir must hold this socket, or set \"agentSocket\" in the network \
                 configuration); {inspect}"
            ),
        ),
        ErrorKind::ConnectionRefused => (
            ErrorCode::TRY_AGAIN_LATER,
            format!("weft-agent is not running on this node: nobody listens on {path}"),
            format!("start weft-agent; {inspect}"),
        ),
        ErrorKind::PermissionDenied => (
            ErrorCode::NOT_PERMITTED,
            format!("no permission to connect to weft-agent at {path}"),
            "run the container runtime as root: only root may change the node's network".to_owned(),
        ),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => (
            ErrorCode::TRY_AGAIN_LATER,
            format!("weft-agent does not answer on {path}: cannot {step} in time"),
            format!("it hangs or the node is overloaded; {inspect}"),
        ),
        _ if is_hang_up(error) => (
            ErrorCode::TRY_AGAIN_LATER,
            format!("weft-agent closed the connection on {path}: cannot {step}: {error}"),
            format!("it is being restarted, or has crashed; {inspect}"),
        ),
        _ => (ErrorCode::IO_FAILURE, format!("cannot {step}: weft-agent at {path}: {error}"), inspect.to_owned()),
    };
    CniError::new(code, msg).with_details(cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_names_the_socket_and_a_cure() {
        let again = ErrorCode::TRY_AGAIN_LATER;
        for (kind, code) in [
            (ErrorKind::NotFound, again),
            (ErrorKind::ConnectionRefused, again),
            (ErrorKind::TimedOut, again),
            (ErrorKind::WouldBlock, again),
            (ErrorKind::BrokenPipe, again),
            (ErrorKind::ConnectionReset, again),
            (ErrorKind::PermissionDenied, ErrorCode::NOT_PERMITTED),
            (ErrorKind::InvalidInput, ErrorCode::IO_FAILURE),
        ] {
            let e = failed(Path::new("/run/x.sock"), "connect", &kind.into());
            assert_eq!(e.code, code, "{kind}");
            assert!(e.msg.contains("/run/x.sock") && !e.details.is_empty(), "{e}");
        }
    }
}
