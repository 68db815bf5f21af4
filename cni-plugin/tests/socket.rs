//! The client over real sockets, and the program itself: what happens when the agent is absent, mute, slow or broken.
use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cni_plugin::{
    client::{SocketTransport, Timeouts, Transport},
    protocol::{MAX_RESPONSE, Request, Response, Verb},
    spec::{CniError, ErrorCode, Parameters},
};
use serde_json::{Value, json};

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
    assert_eq!(agent.call().unwrap_err().code, ErrorCode::IO_FAILURE);
}

#[test]
fn an_absent_agent_is_named_with_its_socket_and_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("cni.sock");
    let dead = dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [missing, dead] {
        let e = call(&socket, PATIENCE).unwrap_err();
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
    let e = call(&socket, Duration::from_millis(50)).unwrap_err();
    assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(e.msg.contains("does not answer"), "{e}");
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn an_agent_that_dies_during_the_call_may_be_asked_again() {
    let e = Agent::that(|_| Vec::new()).call().unwrap_err();
    assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(e.msg.contains("before it answered"), "{e}");
}

#[test]
fn an_answer_that_cannot_be_read_tells_of_different_releases() {
    for answer in ["{}", "null", r#"{"ok":{"ips":[{"address":"x"}]}}"#, "{\"ok\":"] {
        let e = Agent::that(move |_| answer.as_bytes().to_vec()).call().unwrap_err();
        assert_eq!(e.code, ErrorCode::VERSION_SKEW, "{answer}");
        assert!(e.details.contains("release"), "{e}");
    }
}

#[test]
fn the_program_prints_the_result_and_nothing_else() {
    let agent = Agent::that(|_| br#"{"ok":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/32"}]}}"#.to_vec());
    let output = plugin("ADD", &json!({"cniVersion": "0.3.1", "name": "weft", "agentSocket": agent.socket}));
    assert_eq!(output.code, Some(0));
    assert_eq!(output.stdout, json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.1/32"}]}));
    assert_eq!(output.stderr, "");
}

#[test]
fn the_program_fails_with_json_on_standard_output_and_a_line_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cni.sock");
    let output = plugin("ADD", &json!({"cniVersion": "1.0.0", "name": "weft", "agentSocket": socket}));
    assert_eq!(output.code, Some(1));
    assert_eq!((&output.stdout["cniVersion"], &output.stdout["code"]), (&json!("1.0.0"), &json!(11)));
    assert_eq!(output.stderr.lines().count(), 1);
}

#[test]
fn the_program_answers_version_without_a_configuration() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["cniVersion"], "1.1.0");
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
    fn call(&self) -> Result<Response, CniError> {
        call(&self.socket, PATIENCE)
    }
}

fn call(socket: &Path, patience: Duration) -> Result<Response, CniError> {
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

struct Output {
    code: Option<i32>,
    stdout: Value,
    stderr: String,
}

fn plugin(command: &str, config: &Value) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Output {
        code: output.status.code(),
        stdout: serde_json::from_slice(&output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
