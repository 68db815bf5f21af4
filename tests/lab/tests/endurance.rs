//! Many pods and many restarts leave an agent and a node as they were: memory, descriptors, threads, maps, programs, links, pins.
//! `WEFT_ENDURANCE=PODS,RESTARTS` says how many; a few by default. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`, and with ten thousand pods and a thousand restarts with `cargo xtask test --suite long`.
use std::{collections::BTreeMap, fs, process::Command};

use lab::{
    CniCall, Ending, Lab, LabConfig, Node, Pod, PodSpec,
    pair::until,
    probe::{self, Family},
};
use serde_json::Value;

/// Pods and restarts of an ordinary run.
const FEW: (usize, usize) = (150, 10);
/// So much may the agent's memory differ, KiB: an allocator does not give back all that it has had.
const SLACK: u64 = 1024;
/// So many threads of the API's runtime may be there that were not before.
const FURTHER_THREADS: usize = 2;

fn wanted() -> (usize, usize) {
    let Ok(text) = std::env::var("WEFT_ENDURANCE") else { return FEW };
    let figures = text.split_once(',').and_then(|(pods, restarts)| Some((pods.parse().ok()?, restarts.parse().ok()?)));
    figures.unwrap_or_else(|| panic!("WEFT_ENDURANCE is `{text}` and not PODS,RESTARTS"))
}

fn lab() -> Lab {
    let agent_args = ["--cni-install", "no"].map(str::to_owned).to_vec();
    Lab::up(LabConfig { agent_args, ..LabConfig::with_nodes(1) }).expect("a lab of one node")
}

fn node(lab: &Lab) -> &Node {
    lab.node("node-1").unwrap()
}

/// The agent's resident memory, KiB.
fn memory(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent_pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What the agent and the kernel hold, by kind.
fn handles(node: &Node) -> BTreeMap<String, usize> {
    let pid = node.agent_pid().unwrap();
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let mut held = BTreeMap::from([
        ("descriptors".to_owned(), count(&format!("/proc/{pid}/fd"))),
        ("threads".to_owned(), count(&format!("/proc/{pid}/task"))),
        ("pins".to_owned(), count(&node.paths().bpf().join("weft").display().to_string())),
        ("records".to_owned(), count(&node.paths().state().display().to_string())),
        ("files".to_owned(), count(&node.paths().run().display().to_string())),
    ]);
    for kind in ["map", "prog", "link"] {
        let listed = Command::new("bpftool").args(["-j", kind, "list"]).output().expect("bpftool");
        assert!(listed.status.success(), "bpftool {kind} list: {}", String::from_utf8_lossy(&listed.stderr));
        let Value::Array(all) = serde_json::from_slice(&listed.stdout).unwrap() else { panic!("{kind}: no list") };
        held.insert(format!("{kind}s"), all.len());
    }
    for map in ["endpoints", "local4", "local6"] {
        held.insert(map.to_owned(), node.ask(&format!("/v1/maps/{map}")).unwrap().as_array().unwrap().len());
    }
    held
}

/// Waits until the node holds no more than it held: what was on its way out at the first look may be gone. The API's runtime starts and
/// ends threads as it likes.
fn assert_held(node: &Node, before: &BTreeMap<String, usize>, when: &str) {
    let most = |kind: &str| before[kind] + if kind == "threads" { FURTHER_THREADS } else { 0 };
    let same = until("nothing is left", || handles(node).iter().all(|(kind, count)| *count <= most(kind)));
    assert!(same.is_ok(), "{when}: {:?} was {before:?}", handles(node));
}

fn assert_memory(node: &Node, before: u64, when: &str) {
    let now = memory(node);
    println!("{when}: {before} KiB before, {now} KiB after");
    assert!(now <= before + SLACK, "{when}: {now} KiB, and {before} KiB before");
}

fn connect_and_disconnect(lab: &Lab, pod: &Pod) {
    for verb in ["ADD", "DEL"] {
        let call = CniCall::of(verb, pod, node(lab).paths());
        call.run(lab.bin_dir(), node(lab)).unwrap_or_else(|e| panic!("{verb}: {e:#}"));
    }
}

#[test]
fn many_pods_leave_nothing_behind() {
    let (pods, _) = wanted();
    let mut lab = lab();
    let pod = lab.pod_add("node-1", &PodSpec::named("one")).unwrap().pod;
    CniCall::of("DEL", &pod, node(&lab).paths()).run(lab.bin_dir(), node(&lab)).unwrap();
    let before = handles(node(&lab));
    // What is kept for the next call is there after some.
    for _ in 0..pods / 10 {
        connect_and_disconnect(&lab, &pod);
    }
    assert_held(node(&lab), &before, "after a tenth of the pods");
    let warm = memory(node(&lab));
    for _ in 0..pods {
        connect_and_disconnect(&lab, &pod);
    }
    assert_held(node(&lab), &before, &format!("after {pods} pods"));
    assert_memory(node(&lab), warm, &format!("{pods} pods"));
    lab.down().unwrap();
}

#[test]
fn many_restarts_leave_nothing_behind() {
    let (_, restarts) = wanted();
    let mut lab = lab();
    let [one, two] =
        ["one", "two"].map(|name| lab.pod_add("node-1", &PodSpec::named(name)).unwrap().pod.place().unwrap());
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    let (before, warm) = (handles(node(&lab)), memory(node(&lab)));
    for n in 0..restarts {
        lab.restart_agent("node-1", if n % 2 == 0 { Ending::Killed } else { Ending::Asked }).unwrap();
    }
    assert_held(node(&lab), &before, &format!("after {restarts} restarts"));
    assert_memory(node(&lab), warm, &format!("{restarts} restarts"));
    for family in Family::BOTH {
        probe::udp(&one, &two, family).unwrap();
    }
    lab.down().unwrap();
}
