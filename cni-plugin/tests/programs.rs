//! The program itself, with an agent that answers on a real socket and an IPAM plugin that is a real process.
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use cni_plugin::{
    delegate::{Plugins as _, Processes},
    protocol::{Request, Verb},
    spec::ErrorCode,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

const GIVEN: &str = r#"echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.9.0.5/24","gateway":"10.9.0.1"}}'"#;

#[test]
fn the_program_prints_the_result_and_nothing_else() {
    let node = Node::new();
    let _requests = node.agent(1, r#"{"ok":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/32"}]}}"#);
    let output = node.plugin("ADD", &node.config("0.3.1"));
    assert_eq!(output.code, Some(0));
    assert_eq!(output.document(), json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.1/32"}]}));
    assert_eq!(output.stderr, "");
}

#[test]
fn the_program_fails_with_json_on_standard_output_and_a_line_on_standard_error() {
    let node = Node::new();
    let output = node.plugin("ADD", &node.config("1.0.0"));
    assert_eq!(output.code, Some(1));
    let error = output.document();
    assert_eq!((&error["cniVersion"], &error["code"]), (&json!("1.0.0"), &json!(11)));
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

#[test]
fn the_program_says_what_it_is_to_who_runs_it_by_hand() {
    for (arguments, code) in [(&[][..], 1), (&["--help"], 0), (&["--version"], 0)] {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .env_clear()
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code));
        let said = if code == 0 { output.stdout } else { output.stderr };
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("weft-cni ") && said.contains("container runtime"), "{said}");
    }
}

#[test]
fn the_ipam_plugin_gets_the_same_environment_and_the_same_configuration() {
    let node = Node::new();
    node.ipam("ADD", GIVEN);
    let requests = node.agent(1, r#"{"ok":{"cniVersion":"1.1.0"}}"#);
    let conf = node.delegated();
    let output = node.plugin("ADD", &conf);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(node.read("ADD.stdin"), conf.to_string());
    let home = node.home().display().to_string();
    let wanted = format!(
        "CNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=/nonexistent/netns\nCNI_PATH={home}\n\
         FAKE_IPAM={home}\n"
    );
    assert_eq!(node.read("ADD.env"), wanted);
    let given = requests.recv().unwrap().ipam.unwrap();
    assert_eq!(given.ips[0].address.to_string(), "10.9.0.5/24");
}

#[test]
fn what_the_ipam_plugin_writes_to_standard_error_is_passed_on() {
    let node = Node::new();
    node.ipam("DEL", r#"echo "lease is gone" >&2; echo '{"code":99,"msg":"no such lease"}'; exit 3"#);
    let _requests = node.agent(1, r#"{"ok":null}"#);
    let output = node.plugin("DEL", &node.delegated());
    assert_eq!((output.code, &output.document()["code"]), (Some(1), &json!(99)));
    assert!(output.stderr.starts_with("lease is gone\n"), "{}", output.stderr);
    assert!(output.stderr.contains("weft-cni: the IPAM plugin fake-ipam: no such lease"), "{}", output.stderr);
}

#[test]
fn an_add_that_the_agent_refuses_is_undone_with_the_command_del() {
    let node = Node::new();
    node.ipam("ADD", GIVEN);
    let _requests = node.agent(1, r#"{"error":{"code":104,"msg":"no veth"}}"#);
    let output = node.plugin("ADD", &node.delegated());
    assert_eq!(output.document()["code"], 104);
    assert_eq!(node.read("calls"), "ADD\nDEL\n");
    assert!(node.read("DEL.env").contains("CNI_COMMAND=DEL\n"));
    assert_eq!(node.read("DEL.stdin"), node.read("ADD.stdin"));
}

#[test]
fn an_ipam_plugin_that_does_not_read_is_none_the_worse_for_it() {
    let node = Node::new();
    let large = vec![b' '; 1 << 20];
    let ended = Processes::default().run(Path::new("/bin/true"), Verb::Status, &large).unwrap();
    assert!(ended.success && ended.stdout.is_empty());
    drop(node);
}

#[test]
fn an_ipam_plugin_that_hangs_is_killed_with_all_that_it_started() {
    let node = Node::new();
    let hanging = node.home().join("hangs");
    std::os::unix::fs::symlink(program("hanging-ipam"), &hanging).unwrap();
    let pipe = node.home().join("alive");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let (sender, all_gone) = channel();
    // Opens when the plugin has started, and ends when nobody is left of it.
    thread::spawn(move || sender.send(fs::read(pipe).unwrap()));
    let error = Processes { limit: Duration::from_millis(500) }.run(&hanging, Verb::Add, b"{}").unwrap_err();
    assert_eq!(error.code, ErrorCode::TRY_AGAIN_LATER);
    assert!(error.msg.contains("did not end its ADD"), "{error}");
    assert_eq!(all_gone.recv_timeout(Duration::from_secs(20)), Ok(vec![]));
}

#[test]
fn an_ipam_plugin_that_talks_without_end_is_stopped() {
    let error = Processes::default().run(Path::new("/usr/bin/yes"), Verb::Add, b"{}").unwrap_err();
    assert!(error.msg.contains("larger than"), "{error}");
}

#[test]
fn what_is_no_program_is_named() {
    let node = Node::new();
    let error = Processes::default().run(&node.home().join("absent"), Verb::Add, b"{}").unwrap_err();
    assert_eq!(error.code, ErrorCode::IO_FAILURE);
    assert!(error.msg.contains("cannot start") && error.msg.contains("absent"), "{error}");
}

/// A directory with the agent's socket and the fake IPAM plugin.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        // A link and not a copy: while a copy is written, another test's child may hold it open, and then it cannot be
        // executed.
        std::os::unix::fs::symlink(program("fake-ipam"), node.home().join("fake-ipam")).unwrap();
        node
    }
    fn home(&self) -> &Path {
        self.0.path()
    }
    /// What the fake IPAM plugin does at a verb.
    fn ipam(&self, verb: &str, shell: &str) {
        fs::write(self.home().join(format!("{verb}.do")), shell).unwrap();
    }
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.home().join(name)).unwrap()
    }
    fn socket(&self) -> PathBuf {
        self.home().join("cni.sock")
    }
    /// An agent that gives the same answer to so many calls.
    fn agent(&self, calls: usize, answer: &'static str) -> Receiver<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (sender, requests) = channel();
        thread::spawn(move || {
            for _ in 0..calls {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                stream.read_to_end(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                drop(sender.send(Request::decode(&request).unwrap()));
            }
        });
        requests
    }
    fn config(&self, version: &str) -> Value {
        json!({"cniVersion": version, "name": "weft", "type": "weft-cni", "agentSocket": self.socket()})
    }
    fn delegated(&self) -> Value {
        let mut conf = self.config("1.0.0");
        conf["ipam"] = json!({"type": "fake-ipam"});
        conf
    }
    fn plugin(&self, command: &str, config: &Value) -> Output {
        let variables = [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/nonexistent/netns"),
            ("CNI_IFNAME", "eth0"),
            ("PATH", "/usr/bin:/bin"),
        ];
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .env_clear()
            .envs(variables)
            .envs([("CNI_PATH", self.home()), ("FAKE_IPAM", self.home())])
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A file of `tests/programs`.
fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

#[derive(Debug)]
struct Output {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Output {
    fn document(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("standard output is not JSON ({e}): {self:?}"))
    }
}
