//! An agent whose programs the kernel's verifier refuses: what ran runs on, and the agent serves with it. Needs root and `cargo xtask build`;
//! run it with `cargo xtask test --suite lab`.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cni_agent::{
    datapath::{object, programs},
    netlink::{
        Socket, link, names, netns, route,
        tc::{self, Place as Hook},
    },
};
use lab::{
    CniCall, Ending, Hostile, Lab, LabConfig, Node, PodSpec,
    layout::NODE_DEVICE,
    probe::{self, Family, Place, while_sending},
    tool,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// How long it goes on while nothing happens.
const CONTROL: Duration = Duration::from_secs(1);

/// Sends over all ways while `event` happens; nothing may be lost, and no connection break.
fn under_traffic<T>(lab: &mut Lab, pairs: &[(&Place, &Place)], name: &str, event: impl FnOnce(&mut Lab) -> T) -> T {
    let sent = while_sending(pairs, || event(lab));
    let drops = || lab.nodes().iter().map(|n| n.ask("/v1/drops").unwrap()["drops"].to_string()).collect::<Vec<_>>();
    let (done, sent) = sent.unwrap_or_else(|e| panic!("{name}: {e:#}; dropped: {:#?}", drops()));
    println!("{name}: {sent} datagrams, lost 0");
    done
}

fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// The programs on a node's hooks, as the kernel has them.
fn attached(node: &Node) -> BTreeMap<String, u64> {
    let place = node.place().unwrap();
    let mut socket = Socket::open_in(place.netns()).unwrap();
    let mut hooks = vec![("pods".to_owned(), Hook::Block(names::BLOCK_INDEX))];
    for name in [names::NET, names::VXLAN, NODE_DEVICE] {
        let device = link::by_name(&mut socket, name).unwrap().expect("is there");
        hooks.push((name.to_owned(), Hook::Ingress(device.index)));
    }
    let mut all = BTreeMap::new();
    for (name, hook) in hooks {
        let ours = tc::filters(&mut socket, hook).unwrap().into_iter().find(tc::Filter::is_ours);
        all.extend(ours.and_then(|f| Some((name, f.program_id?.into()))));
    }
    for pin in fs::read_dir(node.paths().bpf().join("weft")).unwrap().map(|e| e.unwrap().path()) {
        let name = pin.file_name().unwrap().to_str().unwrap();
        if name.starts_with("link_") {
            let said = tool::succeeds(&place, &format!("bpftool -j link show pinned {}", pin.display())).unwrap();
            let link: Value = serde_json::from_str(&said).unwrap();
            all.insert(name.to_owned(), link["prog_id"].as_u64().expect("a program"));
        }
    }
    assert_eq!(all.len(), 4, "{all:?}");
    all
}

fn assert_reach(one: &Place, other: &Place) {
    for (from, to) in [(one, other), (other, one)] {
        for family in Family::BOTH {
            probe::tcp(from, to, family).unwrap();
            probe::udp(from, to, family).unwrap();
            probe::ping(from, to, family).unwrap();
        }
    }
}

/// What `weft` prints on a node, and whether it ended with 0.
fn weft(lab: &Lab, node: &str, args: &str) -> (bool, String) {
    let node = lab.node(node).unwrap();
    let (socket, conf) = (node.paths().api_socket(), node.paths().cni_conf());
    let args = args.replace("CONF", &conf.display().to_string());
    let line = format!("{} {args} --socket {}", lab.bin_dir().join("weft").display(), socket.display());
    let said = tool::says(&node.place().unwrap(), &line).unwrap();
    (said.well, said.text)
}

fn pod(lab: &mut Lab, node: &str, name: &str) -> Place {
    lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap()
}

/// A file with an object whose `program` is refused.
fn refused(program: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), packets::refused::object(program)).unwrap();
    file
}

#[test]
fn an_agent_whose_programs_are_refused_serves_with_those_that_run_and_loses_nothing() {
    let config = LabConfig { hostile: Hostile::Nobody, ..LabConfig::default() };
    let mut lab = Lab::up(config).expect("a lab of two nodes");
    let (web, near, far) =
        (pod(&mut lab, "node-1", "web"), pod(&mut lab, "node-1", "near"), pod(&mut lab, "node-2", "far"));
    let ways = [(&near, &web), (&far, &web), (&web, &far)];
    under_traffic(&mut lab, &ways, "nothing happens", |_| pass(CONTROL));
    let before = attached(lab.node("node-1").unwrap());

    for program in [object::FROM_POD, object::FROM_NETDEV] {
        let object = refused(program);
        lab.set_agent_args(&["--bpf-object", object.path().to_str().unwrap()]);
        let restart = |lab: &mut Lab| lab.restart_agent("node-1", Ending::Killed).unwrap();
        under_traffic(&mut lab, &ways, &format!("{program} is refused"), restart);
        let node = lab.node("node-1").unwrap();
        assert_eq!(attached(node), before, "other programs run");
        let load = &node.ask("/v1/status").unwrap()["datapath"]["refused"];
        let words = load["log"].as_array().unwrap().last().unwrap().as_str().unwrap();
        assert!(load["what"] == program && words.contains("stack"), "{load:#}");
        let log = fs::read_to_string(node.paths().log()).unwrap();
        let told = |l: &&str| l.contains("ERROR") && l.contains(&format!("what=\"{program}\""));
        assert_eq!(log.lines().filter(told).count(), 1, "{log}");
        assert!(log.lines().any(|l| l.trim_start() == words), "{log}");
        let (_, status) = weft(&lab, "node-1", "status");
        assert!(status.contains(&format!("Refused    ! {program} at 20")), "{status}");
        assert!(status.lines().any(|l| l.trim_start() == format!("| {words}")), "{status}");
        let (healthy, report) = weft(&lab, "node-1", "doctor --json --cni-conf-dir CONF");
        let report: Value = serde_json::from_str(&report).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = |f: &Value| f["id"] == "load-refused" && f["hinders"] == true;
        assert!(!healthy && findings.iter().any(found), "{report:#}");
    }

    let late = under_traffic(&mut lab, &ways, "a pod comes", |lab| pod(lab, "node-1", "late"));
    for other in [&web, &far, &lab.node("node-1").unwrap().place().unwrap()] {
        assert_reach(&late, other);
    }
    let node = lab.node("node-1").unwrap();
    let call = CniCall::of("STATUS", lab.pod("late").unwrap(), node.paths());
    call.run(&node.paths().cni_bin(), node).expect("CNI STATUS is well");
    lab.pod_del("late").unwrap();

    let object = refused(object::FROM_POD);
    lab.stop_agent("node-1", Ending::Killed).unwrap();
    let pin = programs::path(&lab.node("node-1").unwrap().paths().bpf().join("weft"), object::FROM_HOST);
    fs::remove_file(&pin).unwrap();
    lab.set_agent_args(&["--bpf-object", object.path().to_str().unwrap()]);
    let start = |lab: &mut Lab| lab.start_agent("node-1");
    let error = under_traffic(&mut lab, &ways, "nothing is left to go on with", start).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("refuses the program from_pod") && error.contains("prog_from_host is missing"), "{error}");

    lab.set_agent_args(&[]);
    under_traffic(&mut lab, &ways, "the next agent's are loaded", start).unwrap();
    let node = lab.node("node-1").unwrap();
    let after = attached(node);
    assert!(after.keys().eq(before.keys()) && !after.values().any(|id| before.values().any(|b| b == id)), "{after:?}");
    assert_eq!(node.ask("/v1/status").unwrap()["datapath"]["refused"], Value::Null);
    let (healthy, report) = weft(&lab, "node-1", "doctor --cni-conf-dir CONF");
    assert!(healthy, "{report}");
    assert_reach(&web, &far);
    lab.down().unwrap();
}

/// A BPF file system that goes with the test.
struct Bpffs<'a>(&'a Path);
impl<'a> Bpffs<'a> {
    fn mounted(path: &'a Path) -> Self {
        fs::create_dir(path).unwrap();
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).expect("needs root");
        Self(path)
    }
}
impl Drop for Bpffs<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Devices, queueing disciplines, routes and pins.
fn traces(netns: BorrowedFd<'_>, bpffs: &Path) -> BTreeSet<String> {
    let mut socket = Socket::open_in(netns).unwrap();
    let devices = link::list(&mut socket).unwrap().into_iter().map(|l| format!("{l:?}"));
    let mut all: BTreeSet<String> = devices.collect();
    all.extend(tc::qdiscs(&mut socket).unwrap().into_iter().map(|q| format!("{q:?}")));
    all.extend(route::list(&mut socket).unwrap().into_iter().map(|r| format!("{r:?}")));
    all.extend(fs::read_dir(bpffs).unwrap().map(|e| e.unwrap().path().display().to_string()));
    all
}

#[test]
fn a_first_agent_whose_programs_are_refused_ends_with_a_sentence_and_leaves_the_node_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let [bpf, run, manifests] = ["bpf", "run", "manifests"].map(|name| directory.path().join(name));
    let _bpffs = Bpffs::mounted(&bpf);
    let netns = netns::anonymous().unwrap();
    let before = traces(netns.as_fd(), &bpf);
    let object = refused(object::FROM_OVERLAY);
    let program = std::env::var_os("WEFT_BIN_DIR").expect("WEFT_BIN_DIR: run `cargo xtask build`");
    let mut agent = Command::new(Path::new(&program).join("weft-agent"));
    agent.args(["--node-name", "node-1", "--cni-install", "no", "--bpf-object"]).arg(object.path());
    agent.arg("--bpffs").arg(&bpf).arg("--run-dir").arg(&run).arg("--state-dir").arg(run.join("state"));
    agent.arg("--manifests").arg(&manifests).stdout(Stdio::null()).stderr(Stdio::piped());
    let ended = netns::spawn_in(netns.as_fd(), &mut agent).unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    println!("{said}");
    let last = said.lines().last().unwrap();
    for part in ["weft-agent: ", "refuses the program from_overlay", "stack", "no earlier agent has left programs"] {
        assert!(last.contains(part), "no {part:?} in: {said}");
    }
    assert!(ended.status.code() == Some(1) && said.lines().any(|l| l.contains("r0 = *(u64 *)(r10 +8)")), "{said}");
    assert_eq!(traces(netns.as_fd(), &bpf), before);
}
