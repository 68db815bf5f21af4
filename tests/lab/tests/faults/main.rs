//! Every system call of what the agent does fails once, the first, the second and so on: in a CNI ADD and DEL, and when a node comes and
//! goes; of those of the agent's start a sample, when asked for. What was asked for then fails whole, or succeeds whole, and nothing of it
//! is left. The real agent runs; `strace` lets the kernel refuse. Needs root, strace and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
mod add;
mod del;
mod nodes;
mod start;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    os::fd::AsFd as _,
    process::{Child, Command, Stdio},
};

use cni_agent::netlink::{Socket, link, names::endpoint_of, netns};
use lab::{
    CniCall, Ending, Lab, LabConfig, Node, Pod, PodSpec,
    pair::until,
    probe::{self, Family, Place},
};
use serde_json::Value;

/// More calls of one kind than any ADD, DEL or change of a node makes.
const ENOUGH: u32 = 60;

/// A kind of system call, the error that it fails with, and the threads of the agent that make it.
struct Fault {
    calls: &'static str,
    errno: &'static str,
    threads: Threads,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    /// Those that serve CNI calls.
    Workers,
    /// The one that writes maps.
    Reconciler,
    /// All, those that are started meanwhile included: each pod's namespace is entered by a thread of its own.
    All,
}

/// Strace on the agent. Ends with the value.
struct Strace {
    child: Child,
    log: std::path::PathBuf,
}

impl Strace {
    /// Lets the `n`th call of the kind fail, in each of the threads.
    fn attach(node: &Node, fault: &Fault, n: u32) -> Self {
        let pid = node.agent_pid().expect("the agent runs");
        let log = node.paths().run().join("strace.log");
        let mut command = Command::new("strace");
        command.arg("-o").arg(&log);
        let inject = format!("inject={}:error={}:when={n}", fault.calls, fault.errno);
        command.args(["-e", &format!("trace={}", fault.calls), "-e", &inject]);
        let mut wanted = 1;
        if fault.threads == Threads::All {
            command.arg("-f").args(["-p", &pid.to_string()]);
        } else {
            let threads = threads_of(pid, fault.threads);
            wanted = threads.len();
            for thread in threads {
                command.args(["-p", &thread.to_string()]);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace, which `cargo xtask setup` installs");
        // It says of each thread that it holds it, and only then may the call begin.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for _ in 0..wanted {
            let line = lines.next().expect("a line for each thread").unwrap();
            assert!(line.contains("attached"), "strace: {line}");
        }
        // It must not die of a full or closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, log }
    }

    /// Detaches, and says how often a call was refused.
    fn detach(mut self) -> usize {
        self.end();
        fs::read_to_string(&self.log).unwrap().matches("(INJECTED)").count()
    }

    fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        // SIGINT: it detaches, and the agent runs on.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.end();
        }
    }
}

fn threads_of(pid: i32, which: Threads) -> Vec<i32> {
    let belongs = |name: &str| match which {
        Threads::Workers => name.strip_prefix("cni-").is_some_and(|n| n.parse::<u8>().is_ok()),
        Threads::Reconciler => name == "reconciler",
        Threads::All => true,
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap());
    let named = tasks.map(|task| (task.file_name(), fs::read_to_string(task.path().join("comm")).unwrap_or_default()));
    let found: Vec<i32> =
        named.filter(|(_, name)| belongs(name.trim())).map(|(id, _)| id.to_string_lossy().parse().unwrap()).collect();
    assert!(!found.is_empty(), "the agent has no such threads");
    found
}

/// All that an endpoint leaves on a node, as far as there is any.
fn traces(node: &Node, pod_netns: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut host = Socket::open_in(node.place().unwrap().netns()).unwrap();
    found.extend(link::list(&mut host).unwrap().into_iter().filter(|l| endpoint_of(&l.name).is_some()).map(|l| l.name));
    let inside = netns::open(netns::path_of(pod_netns)).unwrap();
    let mut pod = Socket::open_in(inside.as_fd()).unwrap();
    found.extend(
        link::list(&mut pod).unwrap().into_iter().filter(|l| l.name != "lo").map(|l| format!("pod {}", l.name)),
    );
    found.extend(node.paths().records().unwrap().into_iter().map(|path| format!("record {}", path.display())));
    for map in ["endpoints", "local4", "local6"] {
        let Value::Array(entries) = node.ask(&format!("/v1/maps/{map}")).unwrap() else { panic!("{map} is no list") };
        found.extend(entries.iter().map(|entry| format!("map {map} {entry}")));
    }
    for range in node.ask("/v1/status").unwrap()["addresses"].as_array().unwrap() {
        for what in ["used", "quarantined"] {
            if range[what] != 0 {
                found.insert(format!("address {what} {range}"));
            }
        }
    }
    found
}

struct Rig {
    lab: Lab,
    pod: Pod,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
        let added = lab.pod_add("node-1", &PodSpec::named("faulty")).unwrap();
        let call = CniCall::of("DEL", &added.pod, lab.node("node-1").unwrap().paths());
        call.run(lab.bin_dir(), lab.node("node-1").unwrap()).unwrap();
        let rig = Self { lab, pod: added.pod };
        rig.assert_bare("the first pod");
        rig
    }

    fn node(&self) -> &Node {
        self.lab.node("node-1").unwrap()
    }

    fn traces(&self) -> BTreeSet<String> {
        traces(self.node(), &self.pod.netns())
    }

    fn call(&self, command: &'static str) -> anyhow::Result<Value> {
        Ok(CniCall::of(command, &self.pod, self.node().paths()).run(self.lab.bin_dir(), self.node())?.0)
    }

    /// The pod talks with its node, both ways, in both families.
    fn exchange(&self, result: &Value) {
        let addresses: Vec<_> =
            result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        let addresses = addresses.iter().map(|a| a.split('/').next().unwrap().parse().unwrap()).collect();
        let (pod, node) = (Place::new("faulty", &self.pod.netns(), addresses).unwrap(), self.node().place().unwrap());
        for family in Family::BOTH {
            probe::udp(&node, &pod, family).unwrap();
            probe::udp(&pod, &node, family).unwrap();
        }
    }

    /// Nothing of the pod is on the node.
    fn assert_bare(&self, when: &str) {
        let clean = until("nothing is left", || self.traces().is_empty());
        assert!(clean.is_ok(), "{when}: left are {:?}", self.traces());
    }
}
