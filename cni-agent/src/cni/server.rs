//! The server on `cni.sock`.
//!
//! One thread accepts, a few work: the kernel does the network's part of all calls one after the other under one lock
//! (RTNL), so more threads would only wait there; there must be enough that one slow call does not hold up the rest. ADD, which
//! may wait for a node that is not ready, never has them all.
use std::{
    fmt, fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cni_plugin::{
    protocol::{MAX_REQUEST, Request, Response, Verb},
    spec::{AddResult, CniError, ErrorCode},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{Shutdown, getsockopt, shutdown, sockopt::PeerCredentials},
};
use tracing::{debug, error, info, warn};

use super::{
    CniHandler,
    attachments::{Attachment, Attachments, Entered, Turns},
    calls::Calls,
    steps,
};

/// Connections that are accepted and wait for a worker. More wait in the kernel's queue of the socket.
const MAX_QUEUED: usize = 256;
/// A pause for a failure of `accept` that does not go away by trying again, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens. The directory must exist.
    pub socket: PathBuf,
    /// How many ADDs run at the same time. One thread more works on what is no ADD.
    pub adds: usize,
    /// The user whose processes may call. The mode of the socket says the same; this holds if somebody changes it.
    pub uid: u32,
    /// How long a caller may take to send its request, and to take the answer.
    pub io_timeout: Duration,
    /// Where calls are counted.
    pub calls: Calls,
}

impl ServerConfig {
    /// For root on `socket`, with four ADDs at a time.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), adds: 4, uid: 0, io_timeout: Duration::from_secs(5), calls: Calls::default() }
    }
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be made.
    #[error("listen on {path} (its directory must exist and be writable, its path have less than 100 bytes)")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("start a thread of the CNI server")]
    Thread {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The running server. Dropping it is [`shutdown`](Self::shutdown).
#[derive(Debug)]
pub struct Server {
    socket: PathBuf,
    /// Device and inode of the socket: another agent's socket on the same path is not ours to remove.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    lines: Lines,
}

/// The lines in which calls wait for their attachments, for what the agent does of itself.
#[derive(Clone)]
pub struct Lines {
    worker: Arc<Worker>,
}

impl Lines {
    /// Does `job` when no call for the attachment is at work, and waits for it. `None` if it was not done: too many calls wait, or it
    /// has panicked.
    pub fn run<T: Send + 'static>(
        &self,
        attachment: Attachment,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = channel();
        // The receiver waits below.
        let job = Job::Own(Box::new(move || drop(tell.send(job()))));
        match self.worker.attachments.enter(&attachment, job) {
            Entered::Mine(job) => self.worker.line(attachment, job),
            Entered::Queued => {}
            Entered::TooMany(_) => return None,
        }
        told.recv().ok()
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Server {
    /// Listens and serves until it is shut down. A socket that a dead agent left on the path is replaced.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(config: ServerConfig, handler: Arc<dyn CniHandler>) -> Result<Self, ServerError> {
        let listen_error = |source| ServerError::Listen { path: config.socket.clone(), source };
        let listener = Arc::new(listen(&config.socket).map_err(listen_error)?);
        let identity = identity(&config.socket).map_err(listen_error)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(MAX_QUEUED);
        let worker = Arc::new(Worker {
            handler,
            attachments: Attachments::new(),
            turns: Turns::new(config.adds.max(1)),
            connections: Mutex::new(receiver),
            uid: config.uid,
            io_timeout: config.io_timeout,
            calls: config.calls,
        });
        let mut server = Self {
            socket: config.socket.clone(),
            identity,
            listener,
            stopping,
            threads: Vec::new(),
            lines: Lines { worker: Arc::clone(&worker) },
        };
        // First the thread that holds the sender: should another one fail to start, its end is what ends the workers.
        let (listener, stopping) = (Arc::clone(&server.listener), Arc::clone(&server.stopping));
        server.spawn("cni-accept", move || accept(&listener, &stopping, &sender))?;
        for n in 0..=config.adds.max(1) {
            let worker = Arc::clone(&worker);
            server.spawn(&format!("cni-{n}"), move || worker.run())?;
        }
        info!(socket = %server.socket.display(), "CNI server listens");
        Ok(server)
    }

    /// The lines of this server's calls.
    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Stops accepting, finishes every call that was accepted, removes the socket. Waits for the handler's calls.
    pub fn shutdown(self) {
        drop(self);
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ServerError> {
        let thread =
            thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| ServerError::Thread { source })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if identity(&self.socket).is_ok_and(|found| found == self.identity)
            && let Err(e) = fs::remove_file(&self.socket)
        {
            warn!(socket = %self.socket.display(), error = %e, "cannot remove the CNI socket");
        }
        // Ends the `accept` that waits; then the sender goes, and the workers end when their queue is empty.
        if let Err(e) = shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            warn!(error = %e, "cannot shut down the CNI socket");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread of the CNI server has panicked");
            }
        }
    }
}

/// Makes the socket under a name of its own and moves it into place: on the final path it is never without its mode, and
/// a caller finds the old socket or the new one, never none.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let name = socket.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = socket.with_file_name(format!(".{name}.{}", process::id()));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    let placed = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&temporary, socket));
    if let Err(e) = placed {
        // The first failure is the one to report.
        drop(fs::remove_file(&temporary));
        return Err(e);
    }
    Ok(listener)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

fn accept(listener: &UnixListener, stopping: &AtomicBool, connections: &SyncSender<Accepted>) {
    while !stopping.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                if connections.send(Accepted { stream, since: Instant::now() }).is_err() {
                    return;
                }
            }
            Err(_) if stopping.load(Ordering::Acquire) => return,
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(e) => {
                warn!(error = %e, "cannot accept a CNI call");
                thread::park_timeout(ACCEPT_PAUSE);
            }
        }
    }
}

/// A connection that nobody has read from yet.
#[derive(Debug)]
struct Accepted {
    stream: UnixStream,
    since: Instant,
}

/// A call that was read and waits for its turn.
#[derive(Debug)]
struct Call {
    request: Request,
    stream: UnixStream,
    since: Instant,
}

/// What waits in a line.
enum Job {
    Call(Box<Call>),
    Own(Box<dyn FnOnce() + Send>),
}

/// What the worker threads share.
struct Worker {
    handler: Arc<dyn CniHandler>,
    attachments: Attachments<Job>,
    /// For ADDs. The line of who waits here is held: what comes for its attachment comes after it.
    turns: Turns<(Attachment, Job)>,
    connections: Mutex<Receiver<Accepted>>,
    uid: u32,
    io_timeout: Duration,
    calls: Calls,
}

impl Worker {
    fn run(&self) {
        loop {
            // One worker waits in `recv` and the others for the lock: who has a connection lets the next one in.
            let next = self.connections.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match next {
                Ok(accepted) => self.connection(accepted),
                Err(_) => return,
            }
        }
    }

    fn connection(&self, Accepted { mut stream, since }: Accepted) {
        steps::take();
        steps::note("queue", since.elapsed());
        let request = self.check_peer(&stream).and_then(|()| steps::timed("read", || self.read(&mut stream)));
        let request = match request {
            Ok(request) => request,
            Err(e) => {
                warn!(error = %e, "CNI call refused");
                return self.reply(&mut stream, &Response::Failed(e));
            }
        };
        let attachment = kept_apart_by(&request);
        let call = Call { request, stream, since };
        let Some(attachment) = attachment else { return self.call(call) };
        match self.attachments.enter(&attachment, Job::Call(Box::new(call))) {
            Entered::Queued => debug!(container = attachment.0, ifname = attachment.1, "CNI call waits for its turn"),
            Entered::TooMany(Job::Own(_)) => {}
            Entered::TooMany(Job::Call(mut call)) => {
                let what = match call.request.command {
                    Verb::Gc => "too many GCs of this network wait",
                    _ => "too many calls wait for this container's interface",
                };
                let e = CniError::new(ErrorCode::TRY_AGAIN_LATER, what)
                    .with_details("an earlier call hangs: see the agent's log");
                self.reply(&mut call.stream, &Response::Failed(e));
            }
            Entered::Mine(job) => self.line(attachment, job),
        }
    }

    /// Does a job and those that wait for its attachment; with a turn for ADDs, then the lines that wait for one.
    fn line(&self, attachment: Attachment, job: Job) {
        let mut has_turn = false;
        let mut next = Some((attachment, job));
        while let Some(mut first) = next {
            if matches!(&first.1, Job::Call(call) if call.request.command == Verb::Add) && !has_turn {
                let Some(now) = self.turns.take(first) else { return };
                (first, has_turn) = (now, true);
            }
            let (attachment, job) = first;
            match job {
                Job::Call(call) => self.call(*call),
                // The panic hook has told of it, and who waits hears that it was not done.
                Job::Own(job) => drop(catch_unwind(AssertUnwindSafe(job))),
            }
            next = self.attachments.next(&attachment).map(|job| (attachment, job));
            if next.is_none() && has_turn {
                next = self.turns.pass();
                has_turn = next.is_some();
            }
        }
    }

    fn call(&self, Call { request, mut stream, since }: Call) {
        if request.command != Verb::Del && has_gone(&stream) {
            let (verb, container, ifname) = (request.command.as_str(), &request.container_id, &request.ifname);
            info!(verb, container, ifname, "CNI call dropped: its caller has gone");
            return;
        }
        let response = Response::from(self.handle(&request, since));
        steps::timed("answer", || self.reply(&mut stream, &response));
        // The runtime waits for the end of the stream, and need not wait for the log.
        drop(stream);
        let took = since.elapsed();
        let code = match &response {
            Response::Done(_) => None,
            Response::Failed(e) => Some(e.code.0),
        };
        self.calls.done(request.command.as_str(), took, code);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let (verb, container, ifname) = (request.command.as_str(), &request.container_id, &request.ifname);
        let steps = steps::take();
        match &response {
            Response::Done(_) => info!(verb, container, ifname, took_us, %steps, "CNI call done"),
            Response::Failed(e) => warn!(verb, container, ifname, took_us, %steps, error = %e, "CNI call failed"),
        }
    }

    /// A panic of the handler is a bug of ours, but not a reason for the runtime to wait for an answer that never comes.
    fn handle(&self, request: &Request, since: Instant) -> Result<Option<AddResult>, CniError> {
        let call = || match request.command {
            Verb::Add => self.handler.add(request).map(Some),
            Verb::Del => self.handler.del(request).map(|()| None),
            Verb::Check => self.handler.check(request).map(|()| None),
            Verb::Gc => self.handler.gc(request, since).map(|()| None),
            Verb::Status => self.handler.status(request).map(|()| None),
        };
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            error!(container = request.container_id, ifname = request.ifname, panic = what, "CNI handler has panicked");
            Err(CniError::new(ErrorCode::AGENT_FAULT, format!("weft-agent has failed by a fault of its own: {what}"))
                .with_details("please report it with the agent's log; the runtime may try again"))
        })
    }

    fn check_peer(&self, stream: &UnixStream) -> Result<(), CniError> {
        let denied = |msg: String| {
            CniError::new(ErrorCode::NOT_PERMITTED, msg).with_details("run the container runtime as root")
        };
        let peer = getsockopt(stream, PeerCredentials).map_err(|e| denied(format!("cannot tell who calls: {e}")))?;
        if peer.uid() != self.uid {
            return Err(denied(format!("user {} may not change this node's network", peer.uid())));
        }
        Ok(())
    }

    fn read(&self, stream: &mut UnixStream) -> Result<Request, CniError> {
        let bytes = read_bounded(stream, self.io_timeout).map_err(|e| {
            CniError::new(ErrorCode::IO_FAILURE, format!("the agent cannot read the request: {e}"))
                .with_details("the plugin must send one JSON document and close its side")
        })?;
        Request::decode(&bytes)
    }

    fn reply(&self, stream: &mut UnixStream, response: &Response) {
        let bytes = response.encode();
        let written = stream.set_write_timeout(Some(self.io_timeout)).and_then(|()| stream.write_all(&bytes));
        if let Err(e) = written {
            // The runtime gave up on its plugin; it will come with DEL, or with ADD again.
            warn!(error = %e, "nobody took the answer to a CNI call");
        }
    }
}

/// Whether the caller has closed its socket, both ways. The runtime has given up on the call then, and what it asked for may be wrong
/// by now: the list of a GC lacks the pods that came since, the pod of an ADD may be deleted.
fn has_gone(stream: &UnixStream) -> bool {
    let mut look = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    // What cannot be told is found out when the answer is written.
    poll(&mut look, PollTimeout::ZERO).is_ok()
        && look.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

/// What a call must have to itself. STATUS changes nothing, and a runtime takes the node for broken that does not answer it.
fn kept_apart_by(request: &Request) -> Option<Attachment> {
    match request.command {
        Verb::Add | Verb::Del | Verb::Check => Some((request.container_id.clone(), request.ifname.clone())),
        Verb::Gc => {
            let network = request.config.get("name").and_then(serde_json::Value::as_str);
            Some((String::new(), network.unwrap_or_default().to_owned()))
        }
        Verb::Status => None,
    }
}

/// Reads to the end of the stream, but not more than a request may have, nor longer than `timeout`.
fn read_bounded(stream: &mut UnixStream, timeout: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    while bytes.len() <= MAX_REQUEST {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "it did not arrive in time"));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend(chunk.iter().take(n)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return Err(io::Error::new(ErrorKind::TimedOut, "it did not arrive in time"));
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, format!("it is larger than {MAX_REQUEST} bytes")))
}
