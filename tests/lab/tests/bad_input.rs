//! CNI calls that ask for what cannot be, and bytes on the agent's socket that are no request: each gets an error with cause and cure, and
//! nothing on the node changes. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use cni_agent::netlink::{Socket, link, netns};
use lab::{Lab, LabConfig, Node, PodSpec, layout, pair::until};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

/// A name that the lab cleans up.
const POD: &str = "victim";

struct Rig {
    lab: Lab,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
        lab.pod_add("node-1", &PodSpec::named("neighbour")).unwrap();
        netns::create(&layout::pod_netns(POD)).unwrap();
        Self { lab }
    }

    fn node(&self) -> &Node {
        self.lab.node("node-1").unwrap()
    }

    fn pod_netns() -> String {
        netns::path_of(&layout::pod_netns(POD)).display().to_string()
    }

    /// What a runtime sets for a good ADD.
    fn good(&self) -> (BTreeMap<&'static str, String>, Value) {
        let env = [
            ("CNI_COMMAND", "ADD".to_owned()),
            ("CNI_CONTAINERID", "victim-1".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_NETNS", Self::pod_netns()),
            ("CNI_PATH", self.lab.bin_dir().display().to_string()),
        ];
        let socket = self.node().paths().cni_socket();
        (env.into(), json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentSocket": socket}))
    }

    /// Calls the plugin; what it prints, and whether it succeeded.
    fn call(&self, env: &BTreeMap<&str, String>, stdin: &[u8]) -> (bool, Value) {
        let mut command = Command::new(self.lab.bin_dir().join("weft-cni"));
        command.env_clear().envs(env).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let inside = self.node().place().unwrap();
        let mut child = netns::spawn_in(inside.netns(), &mut command).unwrap();
        // One that refuses the environment may end before it has read.
        drop(child.stdin.take().unwrap().write_all(stdin));
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text:?}")))
    }

    /// Devices of node and pod, records, addresses.
    fn state(&self) -> Vec<String> {
        let mut state = Vec::new();
        for place in [
            self.node().place().unwrap().netns().try_clone_to_owned().unwrap(),
            netns::open(Self::pod_netns()).unwrap(),
        ] {
            let mut socket = Socket::open_in(place.as_fd()).unwrap();
            state.extend(link::list(&mut socket).unwrap().into_iter().map(|l| format!("{} {:?}", l.name, l.mac)));
        }
        let records = fs::read_dir(self.node().paths().state()).unwrap();
        state.extend(records.map(|r| r.unwrap().file_name().to_string_lossy().into_owned()));
        let status = self.node().ask("/v1/status").unwrap();
        state.push(format!("{} {}", status["addresses"], status["endpoints"]));
        state.sort();
        state
    }

    fn refuses(&self, what: &str, env: &BTreeMap<&str, String>, stdin: &[u8], code: u32) {
        let before = self.state();
        let (succeeded, answer) = self.call(env, stdin);
        assert!(!succeeded, "{what}: served: {answer}");
        assert_eq!(answer["code"], code, "{what}: {answer}");
        assert!(!answer["msg"].as_str().unwrap().is_empty() && answer["details"].is_string(), "{what}: {answer}");
        // An address that the call had for a moment rests until nothing of its flows and translations is left.
        drop(until(what, || self.state() == before));
        assert_eq!(self.state(), before, "{what}");
    }
}

#[test]
fn a_bad_environment_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let (good, config) = rig.good();
    let scratch = rig.node().paths().run().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let fifo = scratch.join("fifo");
    mkfifo(&fifo, Mode::S_IRUSR).unwrap();
    let file = scratch.join("file");
    fs::write(&file, "").unwrap();
    let text = |path: &Path| path.display().to_string();
    let long = "x".repeat(70_000);
    for (name, value) in [
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", ""),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "lo\n"),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "netns/relative"),
        ("CNI_NETNS", "/run/netns/there-is-none"),
        ("CNI_NETNS", "/"),
        ("CNI_NETNS", "/dev/null"),
        ("CNI_NETNS", "/proc/self/ns/mnt"),
        ("CNI_NETNS", &text(&file)),
        ("CNI_NETNS", &text(&fifo)),
        ("CNI_NETNS", &format!("/{long}")),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_ARGS", "=x"),
        ("CNI_ARGS", "UNKNOWN=1"),
    ] {
        let mut env = good.clone();
        env.insert(name, value.to_owned());
        let shown: String = value.chars().take(60).collect();
        rig.refuses(&format!("{name}={shown}"), &env, config.to_string().as_bytes(), 4);
    }
    // The node's own namespace is no container's: its routes would be ours.
    let mut env = good.clone();
    env.insert("CNI_NETNS", netns::path_of(&rig.node().netns()).display().to_string());
    rig.refuses("the node's own namespace", &env, config.to_string().as_bytes(), 4);
    fs::remove_dir_all(&scratch).unwrap();
    rig.lab.down().unwrap();
}

#[test]
fn a_bad_configuration_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let (env, good) = rig.good();
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for (what, stdin, code) in [
        ("nothing", &b""[..], 6),
        ("no JSON", b"{", 6),
        ("no UTF-8", b"{\"name\": \"\xff\"}", 6),
        ("too deep", deep.as_bytes(), 6),
        ("no object", b"[]", 7),
        ("no version", b"{}", 1),
    ] {
        rig.refuses(what, &env, stdin, code);
    }
    for (extra, code) in [
        (json!({"cniVersion": "0.2.0"}), 1),
        (json!({"cniVersion": "9.9.9"}), 1),
        (json!({"name": ""}), 7),
        (json!({"name": "../x"}), 7),
        (json!({"agentSocket": "relative"}), 7),
        (json!({"ipam": []}), 6),
        (json!({"ipam": {"type": 4}}), 7),
        (json!({"ipam": {"type": "../../bin/sh"}}), 7),
        (json!({"ipam": {"type": "there-is-none"}}), 7),
        (json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}}), 2),
        (json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}}), 2),
        (json!({"runtimeConfig": {"something": 1}}), 2),
        (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), 7),
        (json!({"runtimeConfig": {"mac": 4}}), 7),
        (json!({"runtimeConfig": {"ips": ["no address"]}}), 7),
        (json!({"runtimeConfig": {"ips": "10.244.1.7"}}), 7),
        (json!({"prevResult": {"ips": "no list"}}), 6),
        (
            json!({"prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": Rig::pod_netns()}]}}),
            7,
        ),
    ] {
        let mut config = good.clone();
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        rig.refuses(&extra.to_string(), &env, config.to_string().as_bytes(), code);
    }
    // An address that is another pod's, or not of this node.
    let taken = rig.lab.pod("neighbour").unwrap().addresses[0].to_string();
    for ip in [taken.as_str(), "192.0.2.1", "10.244.1.0"] {
        let mut config = good.clone();
        config["runtimeConfig"] = json!({"ips": [ip]});
        let before = rig.state();
        let (succeeded, answer) = rig.call(&env, config.to_string().as_bytes());
        assert!(!succeeded && answer["msg"].as_str().unwrap().contains(ip), "{ip}: {answer}");
        assert_eq!(rig.state(), before, "{ip}");
    }
    rig.lab.down().unwrap();
}

#[test]
fn what_is_no_request_is_answered_and_changes_nothing() {
    let rig = Rig::new();
    let socket = rig.node().paths().cni_socket();
    let before = rig.state();
    let huge = vec![b'['; 2 << 20];
    let good =
        json!({"protocol": 2, "command": "ADD", "containerId": "c1", "netns": Rig::pod_netns(), "ifname": "eth0"});
    let with = |key: &str, value: Value| {
        let mut request = good.clone();
        request[key] = value;
        request.to_string().into_bytes()
    };
    for bytes in [
        b"".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        huge,
        with("protocol", json!(99)),
        with("command", json!("FORMAT")),
        with("containerId", json!("../x")),
        with("netns", json!("relative")),
        with("ifname", json!("a/b")),
        with("config", json!({"cniVersion": "1.1.0", "name": "weft", "runtimeConfig": {"mac": "x"}})),
        with("ipam", json!({"ips": [{"address": "10.0.0.1"}]})),
        with("ipam", json!({"cniVersion": "1.1.0", "ips": []})),
        with("ipam", json!({"cniVersion": "1.1.0", "ips": [{"address": "127.0.0.1/8"}]})),
        with("ipam", json!({"cniVersion": "1.1.0", "ips": [{"address": "224.0.0.1/4"}, {"address": "ff02::1/64"}]})),
        with("ipam", json!({"cniVersion": "1.1.0", "ips": [{"address": "0.0.0.0/0"}]})),
        with("ipam", json!({"cniVersion": "1.1.0", "ips": [{"address": "169.254.1.1/32"}]})),
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // The agent may have refused before it has read all.
        drop(stream.write_all(&bytes));
        drop(stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        if let Err(e) = stream.read_to_end(&mut answer) {
            // What it has not read makes of its end a reset, behind the answer.
            assert!(e.kind() == ErrorKind::ConnectionReset && bytes.len() > 1 << 20, "{e}");
        }
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(answer["error"]["msg"].is_string() && answer["error"]["details"].is_string(), "{shown}: {answer}");
        assert_eq!(rig.state(), before, "{shown}");
    }
    rig.lab.down().unwrap();
}

#[test]
fn who_is_not_root_is_refused() {
    let rig = Rig::new();
    let socket = rig.node().paths().cni_socket();
    let refused = std::thread::spawn(move || {
        // The thread's own user id: the system call, not the C library's function, which sets that of all threads.
        rustix::thread::set_thread_uid(rustix::thread::Uid::from_raw(65_534)).unwrap();
        UnixStream::connect(socket).unwrap_err().kind()
    });
    assert_eq!(refused.join().unwrap(), std::io::ErrorKind::PermissionDenied);
    rig.lab.down().unwrap();
}
