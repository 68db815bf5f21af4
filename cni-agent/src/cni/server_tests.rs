//! The server over a real socket, with a handler that does nothing or what a test wants.
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use cni_plugin::{
    client::{SocketTransport, Transport},
    protocol::{MAX_REQUEST, PROTOCOL, Request, Response, Verb},
    spec::{AddResult, CniError, ErrorCode, Interface},
};
use serde_json::json;

use super::{
    CniHandler,
    server::{Server, ServerConfig},
};

/// Far beyond what anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn add_and_del_reach_the_handler_and_its_answers_come_back() {
    let node = Node::new(|request: &Request| match request.ifname.as_str() {
        "full" => Err(CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "full").with_details("add a CIDR")),
        _ => Ok(result_of(request)),
    });
    assert_eq!(node.call(Verb::Add, "c1", "eth0"), Response::Done(Some(result_of(&request(Verb::Add, "c1", "eth0")))));
    assert_eq!(node.call(Verb::Del, "c1", "eth0"), Response::Done(None));
    let full = CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "full").with_details("add a CIDR");
    assert_eq!(node.call(Verb::Add, "c1", "full"), Response::Failed(full));
}

#[test]
fn only_its_owner_may_open_the_socket() {
    let node = Node::idle();
    let mode = std::fs::metadata(&node.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn another_user_is_refused_whatever_the_mode_of_the_socket() {
    let node = Node::with(|config| config.uid += 1, |request: &Request| Ok(result_of(request)));
    let Response::Failed(e) = node.call(Verb::Add, "c1", "eth0") else { panic!("served") };
    assert_eq!(e.code, ErrorCode::NOT_PERMITTED);
    assert_eq!(node.calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a_bad_request_is_answered_with_an_error_and_never_handled() {
    let node = Node::idle();
    let too_large = vec![b' '; MAX_REQUEST + 1];
    for (bytes, code) in [
        (&b""[..], ErrorCode::DECODING_FAILURE),
        (b"{", ErrorCode::DECODING_FAILURE),
        (b"\xff\x00", ErrorCode::DECODING_FAILURE),
        (br#"{"protocol":3}"#, ErrorCode::VERSION_SKEW),
        (br#"{"protocol":1,"command":"PING"}"#, ErrorCode::DECODING_FAILURE),
        (
            br#"{"protocol":1,"command":"ADD","containerId":"../x","netns":"/n","ifname":"eth0"}"#,
            ErrorCode::INVALID_ENVIRONMENT,
        ),
        (&too_large, ErrorCode::IO_FAILURE),
    ] {
        let Response::Failed(e) = node.send(bytes) else { panic!("served") };
        assert_eq!(e.code, code, "{e}");
        assert!(!e.details.is_empty(), "no cure: {e}");
    }
    assert_eq!(node.calls.load(Ordering::SeqCst), 0);
}

#[test]
fn a_caller_that_sends_nothing_is_let_go_after_the_timeout() {
    let node = Node::with(|config| config.io_timeout = Duration::from_millis(30), |r: &Request| Ok(result_of(r)));
    let mut stream = UnixStream::connect(&node.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let Ok(Response::Failed(e)) = Response::decode(&answer) else { panic!("{answer:?}") };
    assert!(e.msg.contains("in time"), "{e}");
}

#[test]
fn a_panic_of_the_handler_becomes_an_error_and_the_server_lives_on() {
    let node = Node::new(|request: &Request| match request.container_id.as_str() {
        "bad" => panic!("index 7 is out of range"),
        _ => Ok(result_of(request)),
    });
    // More often than there are workers, and the attachment must be free again each time.
    for _ in 0..6 {
        let Response::Failed(e) = node.call(Verb::Add, "bad", "eth0") else { panic!("served") };
        assert_eq!(e.code, ErrorCode::AGENT_FAULT);
        assert!(e.msg.contains("index 7 is out of range"), "{e}");
    }
    assert!(matches!(node.call(Verb::Add, "good", "eth0"), Response::Done(Some(_))));
}

#[test]
fn calls_for_one_attachment_never_run_at_the_same_time() {
    const CALLS: usize = 8;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let node = Node::new({
        let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
        move |request: &Request| {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            for _ in 0..100 {
                thread::yield_now();
            }
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(result_of(request))
        }
    });
    thread::scope(|scope| {
        for _ in 0..CALLS {
            scope.spawn(|| assert!(matches!(node.call(Verb::Add, "c1", "eth0"), Response::Done(Some(_)))));
        }
    });
    assert_eq!(node.calls.load(Ordering::SeqCst), CALLS);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn calls_for_different_attachments_run_at_the_same_time() {
    // Each call waits until all four are inside: done one after the other they would never end.
    let together = Arc::new(Barrier::new(4));
    let node = Node::new({
        let together = Arc::clone(&together);
        move |request: &Request| {
            together.wait();
            Ok(result_of(request))
        }
    });
    thread::scope(|scope| {
        for (container, ifname) in [("c1", "eth0"), ("c1", "net1"), ("c2", "eth0"), ("c3", "eth0")] {
            let node = &node;
            scope.spawn(move || assert!(matches!(node.call(Verb::Add, container, ifname), Response::Done(Some(_)))));
        }
    });
}

#[test]
fn calls_that_wait_for_a_busy_attachment_do_not_hold_up_others() {
    let (gate, node) = gated_node("slow");
    thread::scope(|scope| {
        let slow: Vec<_> = (0..8).map(|_| scope.spawn(|| node.call(Verb::Add, "slow", "eth0"))).collect();
        gate.entered.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(node.call(Verb::Add, "quick", "eth0"), Response::Done(Some(_))));
        for _ in &slow {
            gate.open.send(()).unwrap();
        }
        for call in slow {
            assert!(matches!(call.join().unwrap(), Response::Done(Some(_))));
        }
    });
}

#[test]
fn gc_holds_up_neither_status_nor_the_gc_of_another_network() {
    let (gate, node) = node_gated_for(|r| r.command == Verb::Gc && r.config["name"] == "slow");
    thread::scope(|scope| {
        let slow = scope.spawn(|| about(&node.socket, Verb::Gc, "slow"));
        gate.entered.recv_timeout(PATIENCE).unwrap();
        // More than may wait for one attachment.
        for _ in 0..10 {
            assert_eq!(about(&node.socket, Verb::Status, "slow"), Response::Done(None));
        }
        assert_eq!(about(&node.socket, Verb::Gc, "other"), Response::Done(None));
        gate.open.send(()).unwrap();
        assert_eq!(slow.join().unwrap(), Response::Done(None), "GC was waited for");
    });
}

#[test]
fn adds_that_hang_hold_up_neither_del_nor_status_and_are_all_served_in_the_end() {
    const ADDS: usize = 12;
    let (gate, node) = node_gated_for(|r| r.command == Verb::Add);
    thread::scope(|scope| {
        let node = &node;
        let adds: Vec<_> =
            (0..ADDS).map(|n| scope.spawn(move || node.call(Verb::Add, &format!("c{n}"), "eth0"))).collect();
        for _ in 0..ServerConfig::new("").adds {
            gate.entered.recv_timeout(PATIENCE).unwrap();
        }
        assert_eq!(node.call(Verb::Del, "gone", "eth0"), Response::Done(None));
        assert_eq!(about(&node.socket, Verb::Status, "weft"), Response::Done(None));
        for _ in 0..ADDS {
            gate.open.send(()).unwrap();
        }
        for add in adds {
            assert!(matches!(add.join().unwrap(), Response::Done(Some(_))), "an ADD was waited for");
        }
    });
}

#[test]
fn a_call_whose_caller_has_gone_is_not_begun_unless_it_is_a_del() {
    let (gate, node) = gated_node("c1");
    thread::scope(|scope| {
        let first = scope.spawn(|| node.call(Verb::Add, "c1", "eth0"));
        gate.entered.recv_timeout(PATIENCE).unwrap();
        let given_up = |command| {
            let mut stream = UnixStream::connect(&node.socket).unwrap();
            stream.write_all(&request(command, "c1", "eth0").encode().unwrap()).unwrap();
        };
        [Verb::Add, Verb::Check, Verb::Del].into_iter().for_each(given_up);
        gate.open.send(()).unwrap();
        assert!(matches!(first.join().unwrap(), Response::Done(Some(_))));
        // The DEL.
        gate.entered.recv_timeout(PATIENCE).unwrap();
        gate.open.send(()).unwrap();
    });
    let Node { server, calls, .. } = node;
    server.unwrap().shutdown();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn what_the_agent_does_of_itself_waits_in_the_line_of_its_attachment() {
    let (gate, node) = gated_node("c1");
    let lines = node.server.as_ref().unwrap().lines();
    let key = |container: &str| (container.to_owned(), "eth0".to_owned());
    thread::scope(|scope| {
        let add = scope.spawn(|| node.call(Verb::Add, "c1", "eth0"));
        gate.entered.recv_timeout(PATIENCE).unwrap();
        let (began, begins) = channel();
        let own = scope.spawn(|| lines.run(key("c1"), move || began.send(()).is_ok()));
        assert_eq!(lines.run(key("c2"), || 7), Some(7), "another attachment's line is free");
        begins.recv_timeout(Duration::from_millis(100)).unwrap_err();
        gate.open.send(()).unwrap();
        assert!(matches!(add.join().unwrap(), Response::Done(Some(_))));
        assert_eq!(own.join().unwrap(), Some(true));
    });
    assert_eq!(lines.run(key("c1"), || panic!("a fault")), None::<()>);
    assert_eq!(lines.run(key("c1"), || 8), Some(8), "the line goes on");
}

#[test]
fn shutdown_finishes_the_call_under_way_and_removes_the_socket() {
    let (gate, mut node) = gated_node("slow");
    let (socket, server) = (node.socket.clone(), node.server.take().unwrap());
    thread::scope(|scope| {
        let call = scope.spawn(|| call(&socket, Verb::Add, "slow", "eth0"));
        gate.entered.recv_timeout(PATIENCE).unwrap();
        let stopped = scope.spawn(|| server.shutdown());
        gate.open.send(()).unwrap();
        assert!(matches!(call.join().unwrap(), Ok(Response::Done(Some(_)))));
        stopped.join().unwrap();
    });
    assert!(!socket.exists());
    let e = call(&socket, Verb::Add, "c1", "eth0").unwrap_err();
    assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_younger_agents_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let handler: Arc<dyn CniHandler> = Arc::new(Fake { calls: Arc::default(), answer: |r: &Request| Ok(result_of(r)) });
    let config = ServerConfig { uid: nix::unistd::getuid().as_raw(), ..ServerConfig::new(&socket) };
    let old = Server::start(config.clone(), Arc::clone(&handler)).unwrap();
    let young = Server::start(config, handler).unwrap();
    old.shutdown();
    assert!(matches!(call(&socket, Verb::Add, "c1", "eth0"), Ok(Response::Done(Some(_)))));
    drop(young);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left in the directory");
}

#[test]
fn a_directory_that_is_not_there_is_an_error_with_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let handler = Arc::new(Fake { calls: Arc::default(), answer: |r: &Request| Ok(result_of(r)) });
    let e = Server::start(ServerConfig::new(dir.path().join("none/cni.sock")), handler).unwrap_err();
    assert!(e.to_string().contains("none/cni.sock"), "{e}");
}

/// Answers every verb by `answer`.
struct Fake<F> {
    calls: Arc<AtomicUsize>,
    answer: F,
}

impl<F: Fn(&Request) -> Result<AddResult, CniError> + Send + Sync> CniHandler for Fake<F> {
    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.answer)(request)
    }
    fn del(&self, request: &Request) -> Result<(), CniError> {
        self.add(request).map(drop)
    }
    fn check(&self, request: &Request) -> Result<(), CniError> {
        self.del(request)
    }
    fn gc(&self, request: &Request, _: Instant) -> Result<(), CniError> {
        self.del(request)
    }
    fn status(&self, request: &Request) -> Result<(), CniError> {
        self.del(request)
    }
}

/// A server in a directory of its own.
struct Node {
    socket: PathBuf,
    server: Option<Server>,
    calls: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new(answer: impl Fn(&Request) -> Result<AddResult, CniError> + Send + Sync + 'static) -> Self {
        Self::with(|_| {}, answer)
    }
    fn idle() -> Self {
        Self::new(|request: &Request| Ok(result_of(request)))
    }
    fn with(
        change: impl FnOnce(&mut ServerConfig),
        answer: impl Fn(&Request) -> Result<AddResult, CniError> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("cni.sock");
        let mut config = ServerConfig { uid: nix::unistd::getuid().as_raw(), ..ServerConfig::new(&socket) };
        change(&mut config);
        let calls = Arc::new(AtomicUsize::new(0));
        let server = Server::start(config, Arc::new(Fake { calls: Arc::clone(&calls), answer })).unwrap();
        Self { socket, server: Some(server), calls, _dir: dir }
    }
    fn call(&self, command: Verb, container: &str, ifname: &str) -> Response {
        call(&self.socket, command, container, ifname).unwrap()
    }
    fn send(&self, bytes: &[u8]) -> Response {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        // The server may have hung up already on what it does not want to read.
        drop(stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        Response::decode(&answer).unwrap()
    }
}

/// The outside of a handler that waits in the middle of a call.
struct Gate {
    entered: Receiver<()>,
    open: Sender<()>,
}

/// A node on which calls for `container` wait for a message each.
fn gated_node(container: &'static str) -> (Gate, Node) {
    node_gated_for(move |request| request.container_id == container)
}

/// The same for the calls that `held` names.
fn node_gated_for(held: impl Fn(&Request) -> bool + Send + Sync + 'static) -> (Gate, Node) {
    let (enter, entered) = channel();
    let (open, opened) = channel();
    let opened = Mutex::new(opened);
    let node = Node::new(move |request: &Request| {
        if held(request) {
            enter.send(()).unwrap();
            opened.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        Ok(result_of(request))
    });
    (Gate { entered, open }, node)
}

fn call(socket: &std::path::Path, command: Verb, container: &str, ifname: &str) -> Result<Response, CniError> {
    SocketTransport::default().call(socket, &request(command, container, ifname)).map_err(|failed| failed.error)
}

/// A call about a network.
fn about(socket: &std::path::Path, command: Verb, network: &str) -> Response {
    let request = Request::about_network(command, json!({"cniVersion": "1.1.0", "name": network}));
    SocketTransport::default().call(socket, &request).unwrap()
}

fn request(command: Verb, container: &str, ifname: &str) -> Request {
    Request {
        protocol: PROTOCOL,
        command,
        container_id: container.into(),
        netns: "/run/netns/pod".into(),
        ifname: ifname.into(),
        args: BTreeMap::new(),
        ipam: None,
        config: json!({"cniVersion": "1.1.0", "name": "weft"}),
    }
}

fn result_of(request: &Request) -> AddResult {
    let pod = Interface { name: request.ifname.clone(), sandbox: request.netns.clone(), ..Interface::default() };
    AddResult { interfaces: vec![pod], ..AddResult::default() }
}
