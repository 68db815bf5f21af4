//! The reference client, `cnitool`, on a node: a network's configuration, and pods that it connects.
use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use cni_agent::netlink::{Socket, link, monitor::Monitor, netns};
use lab::{Node, layout, probe::Place};
use serde_json::{Value, json};

use crate::machine::{self, CONFIGURATIONS, PLUGINS};

/// Where libcni keeps the results of ADD.
const RESULTS: &str = "/var/lib/cni/results";

/// A network on one node, by its configuration list.
pub struct Network<'a> {
    node: &'a Node,
    list: Value,
    /// `CAP_ARGS`: what the runtime asks for by capability.
    asked: Value,
}

impl<'a> Network<'a> {
    /// The network `weft-NODE` with Weft's plugin alone, in this version of the specification.
    pub fn of(node: &'a Node, version: &str) -> Self {
        let socket = node.paths().cni_socket();
        let name = format!("weft-{}", node.name());
        let plugin = json!({"type": "weft-cni", "agentSocket": socket});
        Self { node, list: json!({"cniVersion": version, "name": name, "plugins": [plugin]}), asked: json!({}) }
    }

    /// The network as the agent has configured it.
    pub fn installed(node: &'a Node) -> Self {
        let list = serde_json::from_slice(&fs::read(node.paths().conflist()).unwrap()).unwrap();
        Self { node, list, asked: json!({}) }
    }

    /// With further keys in our plugin's configuration.
    pub fn with(mut self, keys: &Value) -> Self {
        for (key, value) in keys.as_object().expect("an object of keys") {
            self.list["plugins"][0][key] = value.clone();
        }
        self
    }

    /// Another network on the node, of these plugins.
    pub fn made_of(node: &'a Node, name: &str, plugins: Value) -> Self {
        Self { node, list: json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}), asked: json!({}) }
    }

    /// With another plugin behind ours.
    pub fn then(mut self, plugin: Value) -> Self {
        self.list["plugins"].as_array_mut().expect("a list of plugins").push(plugin);
        self
    }

    /// Asking for this.
    pub fn asking(mut self, asked: Value) -> Self {
        self.asked = asked;
        self
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.list["name"].as_str().expect("a name")
    }

    /// Makes the namespace of a pod, which the lab removes when it goes down.
    pub fn pod(&'a self, name: &'a str) -> Attachment<'a> {
        netns::create(&layout::pod_netns(name)).unwrap();
        self.known_pod(name)
    }

    /// A pod whose namespace is there already.
    pub fn known_pod(&'a self, name: &'a str) -> Attachment<'a> {
        Attachment { network: self, pod: name, interface: "eth0" }
    }

    /// The configuration of the first plugin.
    pub fn plugin(&self) -> &Value {
        &self.list["plugins"][0]
    }

    /// Calls a verb that is about the network as a whole: `gc` or `status`.
    pub fn call(&self, verb: &str) -> Output {
        self.run(verb, Path::new("/"), "eth0", "")
    }

    /// Calls GC with a list of what the runtime still has: container and interface.
    pub fn collect(&self, valid: &[(&str, &str)]) -> Output {
        self.write();
        let mut command = Command::new(machine::reference("libcni-gc"));
        command.arg(self.name()).args(valid.iter().map(|(container, interface)| format!("{container}/{interface}")));
        self.start(&mut command)
    }

    fn write(&self) {
        let file = Path::new(CONFIGURATIONS).join(format!("{}.conflist", self.name()));
        fs::write(file, self.list.to_string()).unwrap();
    }

    fn start(&self, command: &mut Command) -> Output {
        command
            .env("NETCONFPATH", CONFIGURATIONS)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let place = self.node.place().unwrap();
        netns::spawn_in(place.netns(), command).unwrap().wait_with_output().unwrap()
    }

    fn run(&self, verb: &str, sandbox: &Path, interface: &str, args: &str) -> Output {
        self.write();
        let mut command = Command::new(machine::reference("cnitool"));
        command
            .args([verb, self.name()])
            .arg(sandbox)
            .env("CNI_IFNAME", interface)
            .env("CNI_ARGS", args)
            .env("CAP_ARGS", self.asked.to_string());
        self.start(&mut command)
    }
}

/// An interface of a pod in a network.
pub struct Attachment<'a> {
    network: &'a Network<'a>,
    pod: &'a str,
    interface: &'a str,
}

impl<'a> Attachment<'a> {
    /// The same pod with another interface, or in another network.
    pub fn also(&self, network: &'a Network<'a>, interface: &'a str) -> Self {
        Self { network, pod: self.pod, interface }
    }

    /// Calls a verb that is about this attachment: `add`, `check` or `del`.
    pub fn call(&self, verb: &str) -> Output {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.pod);
        self.network.run(verb, &self.sandbox(), self.interface, &args)
    }

    /// What it prints; it must succeed.
    pub fn says(&self, verb: &str) -> String {
        let output = self.call(verb);
        assert!(output.status.success(), "cnitool {verb}: {output:?}\n{}", self.network.node.log_tail());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on standard error; it must fail.
    pub fn fails(&self, verb: &str) -> String {
        let output = self.call(verb);
        assert!(!output.status.success(), "cnitool {verb}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Connects it and gives the result.
    pub fn add(&self) -> Value {
        serde_json::from_str(&self.says("add")).unwrap()
    }

    /// Connects it and gives the pod as an end of a probe.
    pub fn place(&self) -> Place {
        self.place_of(&self.add())
    }

    /// The pod with the addresses of a result.
    pub fn place_of(&self, result: &Value) -> Place {
        Place::new(self.pod, &layout::pod_netns(self.pod), addresses(result)).unwrap()
    }

    /// Disconnects it. Ends when the device is gone: the agent answers DEL when the pod is cut off, and the kernel takes some
    /// 20 ms to remove the device behind that.
    pub fn del(&self) {
        let (mut monitor, _stop) = Monitor::open_in(self.netns().as_fd()).unwrap();
        self.says("del");
        while self.devices().iter().any(|name| name == self.interface) {
            let event = monitor.next_within(Duration::from_secs(5)).unwrap();
            assert!(event.is_some(), "the pod keeps {:?}", self.devices());
        }
    }

    /// Names of all devices in the pod.
    pub fn devices(&self) -> Vec<String> {
        let mut socket = Socket::open_in(self.netns().as_fd()).unwrap();
        link::list(&mut socket).unwrap().into_iter().map(|l| l.name).collect()
    }

    /// The container, as cnitool calls it.
    pub fn container(&self) -> String {
        self.cached().1["containerId"].as_str().unwrap().to_owned()
    }

    /// The runtime forgets it, as if it had died before it wrote down what it has connected.
    pub fn forget(&self) {
        fs::remove_file(self.cached().0).unwrap();
    }

    /// What libcni has written down of it.
    fn cached(&self) -> (PathBuf, Value) {
        let files = fs::read_dir(RESULTS).unwrap().map(|e| e.unwrap().path());
        let read = |file: PathBuf| (file.clone(), serde_json::from_slice(&fs::read(file).unwrap()).unwrap());
        let wanted = [
            ("networkName", json!(self.network.name())),
            ("ifName", json!(self.interface)),
            ("netns", json!(self.sandbox())),
        ];
        let is_ours = |value: &Value| wanted.iter().all(|(key, wanted)| value[key] == *wanted);
        let found = files.map(read).find(|(_, value)| is_ours(value));
        found.unwrap_or_else(|| panic!("libcni knows no {} of {}", self.interface, self.pod))
    }

    fn netns(&self) -> OwnedFd {
        netns::open(self.sandbox()).unwrap()
    }

    fn sandbox(&self) -> PathBuf {
        netns::path_of(&layout::pod_netns(self.pod))
    }
}

/// The addresses in a result of any version, IPv4 first.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap_or_else(|| panic!("no addresses in {result}"));
    let text = ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap());
    let mut addresses: Vec<IpAddr> = text.map(|a| a.parse().unwrap()).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}
