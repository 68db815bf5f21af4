//! DEL by the real plugin while no agent runs, against the running kernel, in namespaces that vanish with the test. Needs root
//! and `cargo xtask build`.
use std::{
    env, fs,
    io::Write as _,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use cni_agent::netlink::{
    Socket,
    link::{self, End},
    names, netns,
};
use serde_json::{Value, json};

/// An interface index as Weft gives it to endpoint 7.
const OURS: u32 = names::FIRST_IFINDEX + 7;

#[test]
fn the_device_that_weft_made_is_deleted_and_a_tombstone_left() {
    let pod = Pod::new();
    pod.pair("eth0", Some(OURS));
    pod.pair("net1", Some(OURS + 1));
    assert_eq!(pod.del("eth0"), "");
    assert_eq!(pod.there(&["eth0", "net1"]), [false, true]);
    let tombstones = pod.run_dir.path().join("tombstones");
    let file = tombstones.join("c1:eth0.json");
    assert_eq!(
        serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap(),
        json!({"containerId": "c1", "ifname": "eth0"})
    );
    assert_eq!(mode(&tombstones), 0o700);
    assert_eq!(mode(&file), 0o600);
    assert_eq!(fs::read_dir(&tombstones).unwrap().count(), 1);
    // And once more, as runtimes do.
    assert_eq!(pod.del("eth0"), "");
}

#[test]
fn devices_of_others_stay() {
    let pod = Pod::new();
    pod.pair("eth0", None);
    pod.vxlan("net1", OURS);
    assert_eq!([pod.del("eth0"), pod.del("net1"), pod.del("lo")], ["", "", ""]);
    assert_eq!(pod.there(&["eth0", "net1", "lo"]), [true, true, true]);
}

#[test]
fn a_namespace_that_is_gone_has_no_device_to_delete() {
    let pod = Pod::new();
    let file = pod.run_dir.path().join("not-a-namespace");
    fs::write(&file, "").unwrap();
    for netns in ["", "/nonexistent/netns", file.to_str().unwrap()] {
        let output = pod.call("eth0", netns, None);
        assert!(output.status.success(), "{netns}: {output:?}");
    }
}

#[test]
fn a_namespace_that_cannot_be_entered_is_an_error() {
    let pod = Pod::new();
    pod.pair("eth0", Some(OURS));
    // The capability to enter is taken away, all else may be done.
    let output = pod.call("eth0", &pod.path(), Some("setpriv"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 102, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
    assert_eq!(pod.there(&["eth0"]), [true]);
}

/// A container's namespace, and the directory in which an agent's socket would be.
struct Pod {
    netns: OwnedFd,
    run_dir: tempfile::TempDir,
}

impl Pod {
    fn new() -> Self {
        let netns = netns::anonymous().expect("a network namespace (these tests need root)");
        Self { netns, run_dir: tempfile::tempdir().unwrap() }
    }
    fn socket(&self) -> Socket {
        Socket::open_in(self.netns.as_fd()).unwrap()
    }
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd())
    }
    fn pair(&self, name: &str, index: Option<u32>) {
        let peer = format!("{name}-peer");
        let pair = link::create_veth(&End { name, index, ..End::default() }, &End { name: &peer, ..End::default() });
        self.socket().run(pair).unwrap();
    }
    fn vxlan(&self, name: &str, index: u32) {
        let index = index.to_string();
        let mut command = Command::new("ip");
        command.args(["link", "add", "name", name, "index", &index, "type", "vxlan", "id", "7", "dstport", "4789"]);
        let output = netns::in_netns(self.netns.as_fd(), || command.output()).unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    fn there<const N: usize>(&self, names: &[&str; N]) -> [bool; N] {
        let mut socket = self.socket();
        names.map(|name| link::by_name(&mut socket, name).unwrap().is_some())
    }
    /// What a DEL that succeeds prints.
    fn del(&self, ifname: &str) -> String {
        let output = self.call(ifname, &self.path(), None);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
    fn call(&self, ifname: &str, netns: &str, without: Option<&str>) -> Output {
        let plugin =
            PathBuf::from(env::var_os("WEFT_BIN_DIR").expect("WEFT_BIN_DIR: run `cargo xtask build`")).join("weft-cni");
        let mut command = match without {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]).arg(plugin);
                command
            }
            None => Command::new(plugin),
        };
        let mut conf = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        conf["agentSocket"] = json!(self.run_dir.path().join("cni.sock"));
        let mut child = command
            .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", ifname), ("CNI_NETNS", netns)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
