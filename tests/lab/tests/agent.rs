//! The agent under odd circumstances. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::BorrowedFd,
    process::{Command, Stdio},
};

use cni_agent::netlink::netns;
use lab::{
    Ending, Lab, LabConfig, PodSpec,
    pair::until,
    probe::{self, Family, Place},
};

fn lab() -> Lab {
    Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node")
}
fn pod(lab: &mut Lab, node: &str, name: &str) -> Place {
    lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap()
}
fn assert_reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::udp(from, to, family).unwrap();
        probe::tcp(from, to, family).unwrap();
        probe::ping(from, to, family).unwrap();
    }
}
/// Sends a datagram from a pod, to wherever.
fn send(netns: BorrowedFd<'_>, to: SocketAddr) {
    let sent = netns::in_netns(netns, || UdpSocket::bind("0.0.0.0:0")?.send_to(b"lost", to));
    sent.expect("enters the namespace").expect("sends");
}

#[test]
fn a_pod_whose_record_was_lost_is_served_on_and_its_address_is_not_given_again() {
    let mut lab = lab();
    let old = pod(&mut lab, "node-1", "old");
    lab.stop_agent("node-1", Ending::Killed).unwrap();
    let state = lab.node("node-1").unwrap().paths().state();
    for record in fs::read_dir(&state).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    lab.start_agent("node-1").unwrap();
    let node = lab.node("node-1").unwrap().place().unwrap();
    assert_reaches(&old, &node);
    let new = pod(&mut lab, "node-1", "new");
    assert!(new.addresses.iter().all(|a| !old.addresses.contains(a)), "{:?} and {:?}", new.addresses, old.addresses);
    assert_reaches(&new, &old);
    assert_reaches(&node, &old);
    let status = lab.node("node-1").unwrap().ask("/v1/status").unwrap();
    assert_eq!(status["reconciler"]["pruning"], false, "what no row asks for stays");
    lab.down().unwrap();
}

#[test]
fn weft_observe_names_pod_tuple_and_reason_of_a_drop() {
    let mut lab = lab();
    let web = pod(&mut lab, "node-1", "web");
    let api = lab.node("node-1").unwrap().paths().api_socket();
    let mut weft = Command::new(lab.bin_dir().join("weft"))
        .args(["observe", "--json", "--reason", "NoPod", "--pod", "web", "--address", "10.244.1.222"])
        .args(["--count", "1", "--timeout", "20", "--socket"])
        .arg(&api)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(weft.stdout.take().unwrap()).lines();
    // Nobody knows when the other process listens: packets go out until it has told of one.
    let nobody = SocketAddr::new("10.244.1.222".parse::<IpAddr>().unwrap(), 7);
    let line = std::thread::scope(|scope| {
        let heard = scope.spawn(|| lines.next());
        while !heard.is_finished() {
            send(web.netns(), nobody);
            lab::pause();
        }
        heard.join().unwrap()
    });
    let event: serde_json::Value = serde_json::from_str(&line.expect("a line").unwrap()).unwrap();
    assert_eq!((&event["reason"], &event["pod"]), (&"NoPod".into(), &"default/web".into()), "{event}");
    assert_eq!((&event["dst"], &event["dst_port"]), (&"10.244.1.222".into(), &7.into()), "{event}");
    assert!(weft.wait().unwrap().success());
    lab.down().unwrap();
}

#[test]
fn a_second_agent_leaves_with_a_clear_sentence() {
    let lab = lab();
    let node = lab.node("node-1").unwrap();
    let second = Command::new(lab.bin_dir().join("weft-agent"))
        .args(["--node-name", "node-1", "--cni-install", "no", "--run-dir"])
        .arg(node.paths().run())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another weft-agent runs"), "{said}");
    lab.down().unwrap();
}

#[test]
fn an_agent_without_its_node_object_says_so_and_add_is_to_be_tried_again() {
    let mut lab = lab();
    let manifests = lab.node("node-1").unwrap().paths().manifests();
    let hidden = manifests.with_extension("hidden");
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    fs::rename(&manifests, &hidden).unwrap();
    let waits_for = lab.start_waiting_agent("node-1").unwrap();
    assert!(waits_for.contains("no Node object of the name node-1"), "{waits_for}");
    let error = lab.pod_add("node-1", &PodSpec::named("early")).unwrap_err();
    assert!(format!("{error:#}").contains("cannot take pods yet"), "{error:#}");
    // Object by object: the agent follows the directory that it has made.
    for file in fs::read_dir(&hidden).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), manifests.join(file.file_name())).unwrap();
    }
    let ready = || lab.node("node-1").unwrap().ask("/v1/status").unwrap()["not_ready"].is_null();
    until("the agent has seen its Node object, and the devices that it names", ready).unwrap();
    let web = pod(&mut lab, "node-1", "web");
    assert_reaches(&web, &lab.node("node-1").unwrap().place().unwrap());
    fs::remove_dir_all(&hidden).unwrap();
    lab.down().unwrap();
}
