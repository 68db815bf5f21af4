//! The reference client, `cnitool` of containernetworking/cni, calls the plugin. Needs root, `cargo xtask build` and the tool;
//! run it with `cargo xtask test --suite cnitool`.
use std::{
    env,
    ffi::OsString,
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use cni_agent::netlink::{Socket, link, monitor::Monitor, netns};
use lab::{
    Lab, LabConfig, PodSpec, layout,
    probe::{self, Family, Place},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};

/// The name of the pod that cnitool connects.
const POD: &str = "cnitool";

fn tool() -> OsString {
    env::var_os("WEFT_CNITOOL").expect("WEFT_CNITOOL names the cnitool program: run `cargo xtask test --suite cnitool`")
}

/// A lab of one node with a pod of its own, and an empty namespace for cnitool.
struct Bench {
    lab: Lab,
    neighbour: Place,
}

impl Bench {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
        let neighbour = lab.pod_add("node-1", &PodSpec::named("neighbour")).unwrap().pod.place().unwrap();
        // The lab knows the name as a pod's and removes it when it goes down.
        netns::create(&layout::pod_netns(POD)).unwrap();
        Self { lab, neighbour }
    }

    /// Writes the network's configuration, in this version of the specification, where cnitool looks for it.
    fn configure(&self, directory: &Path, version: &str) {
        let socket = self.lab.node("node-1").unwrap().paths().cni_socket();
        let list = json!({
            "cniVersion": version, "name": "weft", "plugins": [{"type": "weft-cni", "agentSocket": socket}],
        });
        fs::write(directory.join("10-weft.conflist"), list.to_string()).unwrap();
    }

    fn call(&self, directory: &Path, verb: &str) -> Output {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={POD}");
        Command::new(tool())
            .args([verb, "weft"])
            .arg(netns::path_of(&layout::pod_netns(POD)))
            .env("NETCONFPATH", directory)
            .env("CNI_PATH", self.lab.bin_dir())
            .env("CNI_ARGS", args)
            .output()
            .unwrap()
    }

    fn add(&self, directory: &Path) -> Value {
        let output = self.call(directory, "add");
        assert!(output.status.success(), "cnitool add: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends when the pod has nothing but loopback: the agent answers DEL when the pod is cut off, and the kernel takes some
    /// 20 ms to remove the device behind that.
    fn del(&self, directory: &Path) {
        let (mut monitor, _stop) = Monitor::open_in(pod_netns().as_fd()).unwrap();
        let output = self.call(directory, "del");
        assert!(output.status.success(), "cnitool del: {output:?}");
        while devices_in_pod() != ["lo"] {
            let event = monitor.next_within(Duration::from_secs(5)).unwrap();
            assert!(event.is_some(), "the pod keeps {:?}", devices_in_pod());
        }
    }
}

fn pod_netns() -> OwnedFd {
    netns::open(netns::path_of(&layout::pod_netns(POD))).unwrap()
}

fn devices_in_pod() -> Vec<String> {
    let mut socket = Socket::open_in(pod_netns().as_fd()).unwrap();
    link::list(&mut socket).unwrap().into_iter().map(|l| l.name).collect()
}

/// Runs `test` on a thread for which /var/lib is a file system of its own, and gives it a directory there: libcni keeps its
/// results under /var/lib/cni, and the host's is none of our business.
fn apart(test: impl FnOnce(&Path) + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let directory = Path::new("/var/lib/net.d");
            fs::create_dir(directory).unwrap();
            test(directory);
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// The addresses in a result of any version.
fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    let ips = result["ips"].as_array().unwrap_or_else(|| panic!("no addresses in {result}"));
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn cnitool_connects_and_disconnects_a_pod_in_every_version_of_the_specification() {
    let bench = Bench::new();
    apart(|directory| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            bench.configure(directory, version);
            let result = bench.add(directory);
            assert_eq!(result["cniVersion"], version, "{result}");
            let ips = result["ips"].as_array().unwrap();
            assert_eq!(ips.len(), 2, "an address of each family: {result}");
            // The family stood beside the address until 1.0.0 dropped it.
            let families: Vec<_> = ips.iter().filter_map(|ip| ip["version"].as_str()).collect();
            assert_eq!(families.is_empty(), version.starts_with('1'), "{result}");
            let interfaces = result["interfaces"].as_array().unwrap();
            let inside: Vec<_> =
                interfaces.iter().filter(|i| i["sandbox"].as_str().is_some_and(|s| !s.is_empty())).collect();
            assert_eq!(inside.iter().map(|i| &i["name"]).collect::<Vec<_>>(), ["eth0"], "{result}");

            let pod = Place::new(POD, &layout::pod_netns(POD), addresses(&result)).unwrap();
            for family in Family::BOTH {
                probe::tcp(&pod, &bench.neighbour, family).unwrap();
                probe::udp(&bench.neighbour, &pod, family).unwrap();
            }

            bench.del(directory);
            // Once more: there is nothing left to do, and that is success.
            bench.del(directory);
        }
    });
    bench.lab.down().unwrap();
}

#[test]
fn cnitool_gets_the_plugins_error_with_cause_and_cure() {
    let mut bench = Bench::new();
    apart(|directory| {
        bench.configure(directory, "1.1.0");
        bench.lab.stop_agent("node-1", lab::Ending::Asked).unwrap();
        let output = bench.call(directory, "add");
        assert!(!output.status.success());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.contains("weft-agent"), "it says who does not answer: {words}");
        assert_eq!(devices_in_pod(), ["lo"]);
        bench.lab.start_agent("node-1").unwrap();
        let result = bench.add(directory);
        assert_eq!(addresses(&result).len(), 2);
    });
    bench.lab.down().unwrap();
}
