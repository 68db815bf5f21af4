//! `weft uninstall --node`: a node is afterwards as it was before the agent came. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cni_agent::netlink::{Socket, link, names, netns, nftables::own, rule};
use lab::{
    Ending, Lab, LabConfig, PodSpec, Watch,
    hostile::Hostile,
    layout::NodePaths,
    probe::{self, Family, Place},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// The last step of a lab before agents start.
const BEFORE_AGENTS: &str = "write the Node objects";

fn run_in(netns: &str, command: &mut Command) -> Output {
    let netns = netns::open(netns::path_of(netns)).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    netns::spawn_in(std::os::fd::AsFd::as_fd(&netns), command).unwrap().wait_with_output().unwrap()
}

/// All that `ip`, `tc`, `bpftool` and sysctl show of node-1, a line a fact, without what ages.
fn facts() -> BTreeSet<String> {
    let netns = "weft-node-1";
    let mut facts = BTreeSet::new();
    let mut show = |words: &str| {
        let mut words_of = words.split(' ');
        let output = run_in(netns, Command::new(words_of.next().unwrap()).args(words_of));
        assert!(output.status.success(), "{words}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        facts.extend(text.lines().map(|l| format!("{words}: {}", ageless(l))));
        text
    };
    for words in [
        "ip -o link",
        "ip -o -4 addr",
        "ip -o -6 addr",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 rule",
        "ip -6 rule",
        "ip neigh show nud permanent",
        "tc qdisc show",
    ] {
        show(words);
    }
    for device in devices() {
        show(&format!("tc filter show dev {device} ingress"));
        show(&format!("tc filter show dev {device} egress"));
    }
    // The machine's: what an agent loads is in no namespace.
    for kind in ["prog", "map", "link"] {
        let ids = show_ids(kind);
        facts.extend(ids.into_iter().map(|id| format!("bpf {kind} {id}")));
    }
    facts.extend(sysctls());
    let node = netns::open(netns::path_of(netns)).unwrap();
    let table = netns::in_netns(std::os::fd::AsFd::as_fd(&node), || own::read().unwrap()).unwrap();
    facts.extend(table.map(|table| format!("nftables {table:?}")));
    let paths = NodePaths::of("node-1");
    for dir in [paths.bpf(), paths.run(), paths.state(), paths.cni_bin(), paths.cni_conf()] {
        files(&dir, &mut facts);
    }
    facts
}

fn devices() -> Vec<String> {
    let netns = netns::open(netns::path_of("weft-node-1")).unwrap();
    let mut socket = Socket::open_in(std::os::fd::AsFd::as_fd(&netns)).unwrap();
    link::list(&mut socket).unwrap().into_iter().map(|l| l.name).collect()
}

/// Without lifetimes that count down, and states that follow carriers when the kernel gets to it.
fn ageless(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    while let Some(at) = words.iter().position(|w| ["expires", "valid_lft", "preferred_lft", "state"].contains(w)) {
        words.drain(at..(at + 2).min(words.len()));
    }
    words.join(" ")
}

fn show_ids(kind: &str) -> Vec<u64> {
    let output = Command::new("bpftool").args(["-j", kind, "show"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list.as_array().into_iter().flatten().filter_map(|o| o["id"].as_u64()).collect()
}

fn sysctls() -> Vec<String> {
    let netns = netns::open(netns::path_of("weft-node-1")).unwrap();
    let read = || {
        let mut all = Vec::new();
        let mut todo = vec![Path::new("/proc/sys/net").to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap().filter_map(Result::ok) {
                let path = entry.path();
                if path.is_dir() {
                    todo.push(path);
                } else if path.ends_with("nf_conntrack_count") {
                    // It counts what goes on.
                } else if let Ok(value) = fs::read_to_string(&path) {
                    all.push(format!("{} = {}", path.display(), value.trim()));
                }
            }
        }
        all
    };
    netns::in_netns(std::os::fd::AsFd::as_fd(&netns), read).unwrap()
}

fn files(dir: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            files(&path, facts);
        } else {
            facts.insert(format!("file {}", path.display()));
        }
    }
}

/// The facts become those: the kernel frees programs and maps behind our backs.
fn assert_becomes(before: &BTreeSet<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = facts();
        let came: Vec<_> = now.difference(before).collect();
        // Of the machine's BPF objects an earlier lab's may have been freed meanwhile.
        let went: Vec<_> = before.difference(&now).filter(|f| !f.starts_with("bpf ")).collect();
        if came.is_empty() && went.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "came: {came:#?}\nwent: {went:#?}");
        lab::pause();
    }
}

fn uninstall(lab: &Lab, further: &[&str]) -> (bool, String) {
    let paths = lab.node("node-1").unwrap().paths().clone();
    let mut command = Command::new(lab.bin_dir().join("weft"));
    command.args(["uninstall", "--node"]).args(further);
    for (flag, dir) in [
        ("--state-dir", paths.state()),
        ("--run-dir", paths.run()),
        ("--cache-dir", paths.run().join("cache")),
        ("--bpffs", paths.bpf()),
        ("--cni-bin-dir", paths.cni_bin()),
        ("--cni-conf-dir", paths.cni_conf()),
    ] {
        command.arg(flag).arg(dir);
    }
    let output = run_in("weft-node-1", &mut command);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn tc(words: &str) -> String {
    let output = run_in("weft-node-1", Command::new("tc").args(words.split(' ')));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A lab of one node, and what there was before its agent began.
fn lab(hostile: Hostile, agent_args: &[&str]) -> (Lab, BTreeSet<String>) {
    let before = Arc::new(Mutex::new(BTreeSet::new()));
    let noted = Arc::clone(&before);
    let watch = Watch::new(move |step| {
        if step.what.starts_with(BEFORE_AGENTS) {
            let deadline = Instant::now() + PATIENCE;
            *noted.lock().unwrap() = loop {
                // The wires come up behind the lab's back.
                let facts = facts();
                let shown = |f: &&String| f.starts_with("ip ");
                if !facts
                    .iter()
                    .filter(shown)
                    .any(|f| ["NO-CARRIER", "tentative", "linkdown"].iter().any(|w| f.contains(w)))
                {
                    break facts;
                }
                assert!(Instant::now() < deadline, "{facts:#?}");
                lab::pause();
            };
        }
    });
    let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
    let lab = Lab::up(LabConfig { hostile, watch, agent_args, ..LabConfig::with_nodes(1) }).expect("a lab of one node");
    let before = before.lock().unwrap().clone();
    assert!(before.iter().any(|f| f.contains("eth0")), "the step before the agents has another name: {before:?}");
    (lab, before)
}

/// A whole life with pods; what the list tells; then nothing of it is left.
fn leaves_the_node_as_it_was(hostile: Hostile, agent_args: &[&str]) {
    let (mut lab, before) = lab(hostile, agent_args);
    let [web, client] =
        ["web", "client"].map(|name| lab.pod_add("node-1", &PodSpec::named(name)).unwrap().pod.place().unwrap());
    reaches(&client, &web);
    lab.restart_agent("node-1", Ending::Killed).unwrap();

    let with_agent = facts();
    let (done, said) = uninstall(&lab, &[]);
    assert!(!done && said.contains("an agent runs on this node") && said.contains("--force"), "{said}");
    let (done, said) = uninstall(&lab, &["--dry-run"]);
    assert!(done && said.starts_with("Would be removed"), "{said}");
    let table = agent_args.contains(&"--service-cidr").then_some("inet weft");
    for part in table.into_iter().chain([
        "weft_host",
        "weft_vxlan",
        "05-weft.conflist",
        "weft-cni",
        "endpoints_v1",
        "the pod default/web loses its network",
    ]) {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    // The programs of the agent that was killed may be freed meanwhile.
    let network =
        |facts: BTreeSet<String>| facts.into_iter().filter(|f| !f.starts_with("bpf ")).collect::<BTreeSet<_>>();
    let (before_it, now) = (network(with_agent), network(facts()));
    let changed: Vec<_> = before_it.symmetric_difference(&now).collect();
    assert!(changed.is_empty(), "neither changes anything: {changed:#?}");

    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let pods: Vec<_> = lab.pods().iter().map(lab::Pod::netns).collect();
    let (done, said) = uninstall(&lab, &[]);
    assert!(done && said.starts_with("Removed from this node:"), "{said}");
    assert_becomes(&before);
    assert!(pods.iter().all(|name| netns::path_of(name).exists()), "namespaces are not ours to remove");

    let (done, said) = uninstall(&lab, &[]);
    assert!(done && said.contains("Nothing of Weft is on this node."), "a second time: {said}");
    assert_becomes(&before);

    // And it comes again.
    lab.start_agent("node-1").unwrap();
    let again =
        ["three", "four"].map(|name| lab.pod_add("node-1", &PodSpec::named(name)).unwrap().pod.place().unwrap());
    reaches(&again[0], &again[1]);
    lab.down().unwrap();
}

fn reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::udp(from, to, family).unwrap();
    }
}

#[test]
fn an_ordinary_node_is_as_it_was() {
    leaves_the_node_as_it_was(Hostile::Nobody, &[]);
}

#[test]
fn a_node_without_tcx_is_as_it_was_its_qdiscs_too() {
    leaves_the_node_as_it_was(Hostile::Nobody, &["--without", "tcx"]);
}

#[test]
fn a_qdisc_of_ours_stays_when_programs_move_to_tcx_and_goes_with_weft() {
    let (mut lab, before) = lab(Hostile::Nobody, &["--without", "tcx"]);
    let qdiscs = || tc("qdisc show dev eth0");
    assert!(qdiscs().contains("clsact"), "{}", qdiscs());
    lab.set_agent_args(&[]);
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    if lab.node("node-1").unwrap().ask("/v1/status").unwrap()["datapath"]["features"]["tcx"] == true {
        assert_eq!(tc("filter show dev eth0 ingress"), "");
    }
    // To take it away, the kernel would stop the device's sending.
    assert!(qdiscs().contains("clsact"), "{}", qdiscs());
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let (done, said) = uninstall(&lab, &["--dry-run"]);
    assert!(done && said.contains("clsact on eth0"), "{said}");
    assert!(uninstall(&lab, &[]).0);
    assert_becomes(&before);
    lab.down().unwrap();
}

#[test]
fn what_others_have_on_a_node_stays() {
    leaves_the_node_as_it_was(Hostile::Last, &[]);
}

#[test]
fn a_node_that_masquerades_for_services_is_as_it_was() {
    // Docker's rules are there before: what they need of the kernel, and show in its settings, is so too.
    leaves_the_node_as_it_was(Hostile::Last, &["--service-cidr", "10.96.0.0/12"]);
}

#[test]
fn an_empty_qdisc_that_was_there_before_us_stays() {
    let (mut lab, _) = lab(Hostile::Nobody, &["--without", "tcx"]);
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    assert!(uninstall(&lab, &[]).0);
    tc("qdisc add dev eth0 clsact");
    lab.start_agent("node-1").unwrap();
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    assert!(tc("filter show dev eth0 ingress").contains("from_netdev"));
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    assert!(uninstall(&lab, &[]).0);
    assert_eq!(tc("filter show dev eth0 ingress"), "");
    assert!(tc("qdisc show dev eth0").contains("clsact"));
    lab.down().unwrap();
}

#[test]
fn devices_of_our_names_that_others_made_stay_and_rules_in_pods_go() {
    let (mut lab, _) = lab(Hostile::Nobody, &[]);
    let web = lab.pod_add("node-1", &PodSpec::named("web")).unwrap().pod;
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let place = lab.node("node-1").unwrap().place().unwrap();
    let mut socket = Socket::open_in(place.netns()).unwrap();
    // As a further interface of a pod has them: its table is its device's index.
    let table = link::list(&mut socket).unwrap().iter().find(|l| names::endpoint_of(&l.name).is_some()).unwrap().index;
    let mut inside = Socket::open_in(web.place().unwrap().netns()).unwrap();
    inside.run(rule::add(rule::Rule { from: web.addresses[0], table })).unwrap();
    socket.run(link::create_bridge("weftff")).unwrap();
    let (done, said) = uninstall(&lab, &[]);
    assert!(done && said.contains("the device weftff was not made by Weft"), "{said}");
    assert!(said.contains("rules") && rule::list(&mut inside).unwrap().is_empty(), "{said}");
    assert!(link::by_name(&mut socket, "weftff").unwrap().is_some());
    lab.down().unwrap();
}
