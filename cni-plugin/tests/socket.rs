//! The client over real sockets: what happens when the agent is absent, mute, slow or broken.
use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cni_plugin::{
    client::{CallError, SocketTransport, Timeouts, Transport, Unanswered},
    protocol::{MAX_RESPONSE, Request, Response, Verb},
    spec::{ErrorCode, Parameters},
};
use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
};
use serde_json::json;

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_request_arrives_whole_and_its_answer_comes_back() {
    let agent = Agent::that(|request| {
        assert_eq!(Request::decode(request).unwrap(), self::request());
        br#"{"ok":null}"#.to_vec()
    });
    assert_eq!(agent.call(), Ok(Response::Done(None)));
}

#[test]
fn a_large_answer_comes_back_and_one_over_the_limit_is_refused() {
    let error = |n: usize| format!(r#"{{"error":{{"code":100,"msg":"{}"}}}}"#, "x".repeat(n)).into_bytes();
    let agent = Agent::that(move |_| error(MAX_RESPONSE / 2));
    assert!(matches!(agent.call(), Ok(Response::Failed(e)) if e.msg.len() == MAX_RESPONSE / 2));
    let agent = Agent::that(move |_| error(MAX_RESPONSE));
    let CallError { unanswered, error } = agent.call().unwrap_err();
    assert_eq!((unanswered, error.code), (Unanswered::Unreadable, ErrorCode::IO_FAILURE));
}

#[test]
fn an_absent_agent_is_named_with_its_socket_and_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("cni.sock");
    let dead = dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [missing, dead] {
        let CallError { unanswered, error: e } = call(&socket, PATIENCE).unwrap_err();
        assert_eq!(unanswered, Unanswered::Absent);
        assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
        assert!(e.msg.contains("not running") && e.msg.contains(socket.to_str().unwrap()), "{e}");
        assert!(e.details.contains("start weft-agent"), "{e}");
    }
}

#[test]
fn a_mute_agent_is_given_up_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    // Connections wait in the kernel's queue, nobody takes them.
    let _listener = UnixListener::bind(&socket).unwrap();
    let begin = Instant::now();
    let CallError { unanswered, error: e } = call(&socket, Duration::from_millis(50)).unwrap_err();
    assert_eq!(unanswered, Unanswered::Silent);
    assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(e.msg.contains("does not answer"), "{e}");
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn an_agent_whose_queue_stays_full_is_given_up_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    let stream = |flags| socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let address = UnixAddr::new(&socket).unwrap();
    let listener = stream(SockFlag::empty());
    socket::bind(listener.as_raw_fd(), &address).unwrap();
    socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let mut queued = Vec::new();
    loop {
        let waiting = stream(SockFlag::SOCK_NONBLOCK);
        match socket::connect(waiting.as_raw_fd(), &address) {
            Ok(()) => queued.push(waiting),
            Err(e) => break assert_eq!(e, Errno::EAGAIN),
        }
    }
    let begin = Instant::now();
    let CallError { unanswered, error: e } = call(&socket, Duration::from_millis(50)).unwrap_err();
    assert_eq!(unanswered, Unanswered::Silent);
    assert!(e.msg.contains("does not answer") && e.msg.contains("cannot connect in time"), "{e}");
    assert!((Duration::from_millis(50)..PATIENCE).contains(&begin.elapsed()));
}

#[test]
fn an_agent_that_dies_during_the_call_may_be_asked_again() {
    let CallError { unanswered, error: e } = Agent::that(|_| Vec::new()).call().unwrap_err();
    assert_eq!(unanswered, Unanswered::HungUp);
    assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(e.msg.contains("before it answered"), "{e}");
}

#[test]
fn an_answer_that_cannot_be_read_tells_of_different_releases() {
    for answer in ["{}", "null", r#"{"ok":{"ips":[{"address":"x"}]}}"#, "{\"ok\":"] {
        let failed = Agent::that(move |_| answer.as_bytes().to_vec()).call().unwrap_err();
        let CallError { unanswered, error: e } = failed;
        assert_eq!(unanswered, Unanswered::Unreadable);
        assert_eq!(e.code, ErrorCode::VERSION_SKEW, "{answer}");
        assert!(e.details.contains("release"), "{e}");
    }
}

/// An agent that answers one call.
struct Agent {
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn that(answer: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cni.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            // The client may hang up on an answer that is too long for it.
            drop(stream.write_all(&answer(&request)));
        });
        Self { socket, _dir: dir }
    }
    fn call(&self) -> Result<Response, CallError> {
        call(&self.socket, PATIENCE)
    }
}

fn call(socket: &Path, patience: Duration) -> Result<Response, CallError> {
    let timeouts = Timeouts { connect: patience, write: patience, answer: patience };
    SocketTransport { timeouts }.call(socket, &request())
}

fn request() -> Request {
    let parameters = Parameters {
        container_id: "c1".into(),
        netns: "/run/netns/blue".into(),
        ifname: "eth0".into(),
        args: [("K8S_POD_NAME".into(), "web".into())].into(),
        path: vec![],
    };
    Request::new(Verb::Add, parameters, json!({"cniVersion": "1.1.0", "name": "weft"}))
}
