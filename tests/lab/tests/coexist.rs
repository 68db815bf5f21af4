//! Weft beside what else is on a node. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cni_agent::{
    datapath::syscall,
    netlink::{
        Socket, addr,
        link::{self, Link},
        names, netns,
        route::{self, Route},
        tc,
    },
};
use cni_common::net::Mac;
use lab::{
    Ending, Lab, LabConfig, Node, PodSpec,
    hostile::{Direction, Foreign, Side},
    probe::{self, Family, Place},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn pods(lab: &mut Lab) -> [Place; 2] {
    [("node-1", "one"), ("node-2", "two")]
        .map(|(node, name)| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap())
}
fn assert_reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::udp(from, to, family).unwrap();
        probe::tcp(from, to, family).unwrap();
        probe::ping(from, to, family).unwrap();
    }
}
fn socket(node: &Node) -> Socket {
    Socket::open_in(node.place().unwrap().netns()).unwrap()
}
fn device(socket: &mut Socket, name: &str) -> Link {
    link::by_name(socket, name).unwrap().unwrap_or_else(|| panic!("no device {name}"))
}
/// Devices that `from_netdev` is on, as the agent says.
fn watched(node: &Node) -> Vec<String> {
    let status = node.ask("/v1/status").unwrap();
    let programs = status["datapath"]["programs"].as_array().unwrap();
    let ours = programs.iter().filter(|p| p["program"] == "from_netdev");
    ours.map(|p| p["device"].as_str().unwrap().to_owned()).collect()
}
fn await_watched(node: &Node, wanted: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while watched(node) != wanted {
        assert!(Instant::now() < deadline, "{:?} and not {wanted:?}\n{}", watched(node), node.log_tail());
        lab::pause();
    }
}
/// An agent's last words when it is started on a node whose own agent has ended, with further arguments.
fn last_words(lab: &Lab, node: &str, further: &[&str]) -> String {
    let node = lab.node(node).unwrap();
    let paths = node.paths();
    let mut agent = Command::new(lab.bin_dir().join("weft-agent"));
    agent
        .args(["--node-name", node.name(), "--log-format", "text", "--manifests"])
        .arg(paths.manifests())
        .arg("--state-dir")
        .arg(paths.state())
        .arg("--run-dir")
        .arg(paths.run())
        .arg("--bpffs")
        .arg(paths.bpf())
        .args(["--cni-install", "no"])
        .args(further)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = netns::spawn_in(node.place().unwrap().netns(), &mut agent).unwrap().wait_with_output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn another_vxlan_device_on_the_port_is_a_clear_error_and_stays() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let mut socket = socket(lab.node("node-1").unwrap());
    let other = Mac::new([2, 0, 0, 0, 0, 9]);
    socket.run(link::create_vxlan("flannel.1", 4789, other, None)).unwrap();
    let index = device(&mut socket, "flannel.1").index;
    socket.run(link::up(index)).unwrap();
    let said = last_words(&lab, "node-1", &["--tunnel-port", "4789"]);
    assert!(said.contains("UDP port 4789 is in use") && said.contains("--tunnel-port"), "{said}");
    assert_eq!(device(&mut socket, "flannel.1").vxlan_port, Some(4789));
    // The other port still does.
    lab.start_agent("node-1").unwrap();
    lab.down().unwrap();
}

#[test]
fn a_device_of_another_port_is_made_anew_and_pods_reach_each_other_through_it() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let [one, two] = pods(&mut lab);
    for node in ["node-1", "node-2"] {
        lab.stop_agent(node, Ending::Asked).unwrap();
        let mut socket = socket(lab.node(node).unwrap());
        // As an agent with --tunnel-port 4789 leaves it.
        let old = device(&mut socket, names::VXLAN);
        assert_eq!(old.vxlan_port, Some(names::VXLAN_PORT));
        socket.run(link::delete(old.index)).unwrap();
        socket.run(link::create_vxlan(names::VXLAN, 4789, Mac::WEFT, None)).unwrap();
        lab.start_agent(node).unwrap();
        assert_eq!(device(&mut socket, names::VXLAN).vxlan_port, Some(names::VXLAN_PORT));
    }
    assert_reaches(&one, &two);
    assert_reaches(&two, &one);
    lab.down().unwrap();
}

#[test]
fn a_bridge_that_takes_the_nodes_device_and_addresses_is_watched_in_its_place() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let [one, two] = pods(&mut lab);
    let node = lab.node("node-1").unwrap();
    let mut socket = socket(node);
    let eth0 = device(&mut socket, "eth0");
    let addresses: Vec<_> = addr::list(&mut socket).unwrap().into_iter().filter(|a| a.index == eth0.index).collect();
    let routes: Vec<Route> = route::list(&mut socket).unwrap();
    socket.run(link::create_bridge("br0")).unwrap();
    let bridge = device(&mut socket, "br0").index;
    netns::set_sysctl(node.place().unwrap().netns(), "ipv6/conf/br0/accept_dad", "0").unwrap();
    socket.batch(vec![link::set_master(eth0.index, Some(bridge)), link::up(bridge)]).unwrap();
    for own in node.addresses() {
        let net = addresses.iter().find(|a| a.net.addr() == own).unwrap().net;
        socket.run(addr::delete(eth0.index, net)).unwrap();
        socket.run(addr::add(bridge, net)).unwrap();
    }
    // What the device's end took with it.
    for lost in routes.into_iter().filter(|r| r.index == eth0.index && r.gateway.is_some()) {
        socket.run(route::replace(&Route { index: bridge, ..lost })).unwrap();
    }
    await_watched(node, &["br0"]);
    assert_reaches(&one, &two);
    assert_reaches(&two, &one);
    lab.down().unwrap();
}

/// How `from_netdev` came to the node's device.
fn how(node: &Node) -> String {
    let status = node.ask("/v1/status").unwrap();
    let programs = status["datapath"]["programs"].as_array().unwrap().clone();
    programs.iter().find(|p| p["program"] == "from_netdev").unwrap()["how"].as_str().unwrap().to_owned()
}

#[test]
fn somebody_elses_filters_see_on_and_stay_when_the_agent_comes_and_goes() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let [one, two] = pods(&mut lab);
    let count = |lab: &Lab| {
        let hostile = lab.hostile().unwrap();
        [Direction::Ingress, Direction::Egress]
            .map(|direction| Side::BOTH.map(|side| hostile.foreign(direction).unwrap().seen(side).unwrap()))
    };
    // By TCX, which comes before all filters of tc, ours would hide from the first what it decapsulates.
    assert_eq!(how(lab.node("node-2").unwrap()), "clsact");
    let address = lab.node("node-2").unwrap().place().unwrap();
    for ending in [Ending::Asked, Ending::Killed] {
        lab.stop_agent("node-2", ending).unwrap();
        for agent in [false, true] {
            if agent {
                lab.start_agent("node-2").unwrap();
            }
            let before = count(&lab);
            assert_reaches(&one, &two);
            // Not ours to consume.
            assert_reaches(&lab.node("node-1").unwrap().place().unwrap(), &address);
            let after = count(&lab);
            let [[first, last], egress] = [0, 1].map(|d| [0, 1].map(|s| after[d][s] - before[d][s]));
            // TCP alone takes more than that each way.
            assert!(last > 4 && egress.iter().all(|n| *n > 4), "{before:?} and {after:?}");
            assert!(first > last + 4, "what comes for pods, to the first alone: {before:?} and {after:?}");
        }
    }
    lab.down().unwrap();
}

#[test]
fn somebody_elses_tcx_programs_before_and_after_ours_see_packets() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let [one, two] = pods(&mut lab);
    let node = lab.node("node-1").unwrap();
    let foreign = Foreign::load().unwrap();
    let index = device(&mut socket(node), "eth0").index;
    let place = node.place().unwrap();
    let other = lab.node("node-2").unwrap().place().unwrap();
    let attach = |side| {
        let program = foreign.program(side);
        let attach = match side {
            Side::Before => syscall::attach_tcx_ingress_first,
            Side::After => syscall::attach_tcx_ingress,
        };
        netns::in_netns(place.netns(), || attach(program, index)).expect("enters the namespace")
    };
    let links = match attach(Side::Before) {
        // A kernel without TCX: the filters on clsact are what there is.
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) && how(node) == "clsact" => return lab.down().unwrap(),
        first => [first.unwrap(), attach(Side::After).unwrap()],
    };
    let seen = || Side::BOTH.map(|side| foreign.seen(side).unwrap());
    let [first, last] = seen();
    assert_reaches(&two, &one);
    assert_reaches(&other, &place);
    let [first, last] = [seen()[0] - first, seen()[1] - last];
    // What ours has decapsulated does not come to the last.
    assert!(last > 4 && first > last + 4, "{first} and {last}");
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    let [first, last] = seen();
    assert_reaches(&two, &one);
    assert_reaches(&other, &place);
    assert!(seen()[0] > first + 8 && seen()[1] > last + 4, "{first} and {last}");
    drop(links);
    lab.down().unwrap();
}

#[test]
fn an_ingress_qdisc_that_is_there_takes_our_filter_and_stays() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let [one, two] = pods(&mut lab);
    let clsact = how(lab.node("node-1").unwrap()) == "clsact";
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let node = lab.node("node-1").unwrap();
    let place = node.place().unwrap();
    let mut socket = socket(node);
    let index = device(&mut socket, "eth0").index;
    let kinds = |socket: &mut Socket| -> Vec<String> {
        tc::qdiscs(socket).unwrap().into_iter().filter(|q| q.index == index).map(|q| q.kind).collect()
    };
    // On a kernel without TCX the former agent's is in the way of the other kind.
    if clsact {
        socket.run(tc::delete_clsact(index)).unwrap();
    }
    let mut command = Command::new("tc");
    command.args(["qdisc", "add", "dev", "eth0", "ingress"]);
    assert!(netns::spawn_in(place.netns(), &mut command).unwrap().wait().unwrap().success());
    lab.start_agent("node-1").unwrap();
    await_watched(lab.node("node-1").unwrap(), &["eth0"]);
    assert_reaches(&one, &two);
    assert_reaches(&two, &one);
    let there = kinds(&mut socket);
    assert!(there.contains(&"ingress".to_owned()) && !there.contains(&"clsact".to_owned()), "{there:?}");
    lab.down().unwrap();
}
