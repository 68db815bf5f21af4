//! Packets stay as small as the way between nodes is, while that changes. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::time::{Duration, Instant};

use cni_agent::netlink::{Socket, link, route};
use lab::{
    Ending, Hostile, Lab, LabConfig, Underlay,
    layout::{NODE_DEVICE, UNDERLAY},
    pair::Pair,
    probe::{Family, Flow, Place},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Many times what a GSO packet holds.
const MUCH: usize = 1 << 20;
/// MTU of the underlay in the beginning, and afterwards.
const MTUS: [u32; 3] = [1500, 1400, 1500];

/// What `ip link set eth0 mtu` does on every node.
fn set_underlay(lab: &Lab, mtu: u32) {
    for node in lab.nodes() {
        let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
        let device = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap();
        socket.run(link::set_mtu(device.index, mtu)).unwrap();
    }
}

/// MTU of the pod's device, and of its default routes.
fn mtus_of(pod: &Place) -> (u32, Vec<u32>) {
    let mut socket = Socket::open_in(pod.netns()).unwrap();
    let device = link::by_name(&mut socket, "eth0").unwrap().unwrap();
    let routes = route::list(&mut socket).unwrap().into_iter().filter(|r| r.dst.prefix_len() == 0);
    (device.mtu, routes.map(|r| r.mtu.unwrap_or(0)).collect())
}

fn until_equal<T: PartialEq + std::fmt::Debug>(what: &str, wanted: &T, mut now: impl FnMut() -> T) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is = now();
        if is == *wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{what} is {is:?} and does not become {wanted:?}");
        lab::pause();
    }
}

fn pods_follow(agent_args: &[&str], overhead: u32) {
    let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
    let mut rig = Pair::up(LabConfig { agent_args, ..LabConfig::default() }).unwrap();
    for mtu in MTUS {
        set_underlay(&rig.lab, mtu);
        rig.exchange(&format!("while the pods learn of {mtu}")).unwrap();
        for pod in &rig.pods {
            let wanted = (mtu, vec![mtu - overhead; 2]);
            until_equal(&format!("the MTU of {}", pod.name), &wanted, || mtus_of(pod));
        }
        for node in rig.lab.nodes() {
            let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
            let endpoints = || node.ask("/v1/endpoints").unwrap();
            until_equal("what the agent tells", &true, || endpoints()[0]["mtu"] == mtu - overhead);
            let device = endpoints()[0]["device"].as_str().expect("a device's name").to_owned();
            let ours = link::by_name(&mut socket, &device).unwrap().unwrap();
            assert_eq!(ours.mtu, mtu, "{device} of {}", node.name());
        }
        rig.exchange(&format!("after the pods have learnt of {mtu}")).unwrap();
    }
    rig.lab.down().unwrap();
}

#[test]
fn pods_that_are_there_follow_the_mtu_of_the_devices_between_nodes() {
    pods_follow(&[], 50);
}

#[test]
fn pods_that_are_there_follow_the_mtu_over_an_ipv6_underlay() {
    pods_follow(&["--underlay", "ipv6"], 70);
}

#[test]
fn pods_follow_a_change_that_no_agent_saw_as_soon_as_one_runs() {
    let mut rig = Pair::up(LabConfig::default()).unwrap();
    for node in ["node-1", "node-2"] {
        rig.lab.stop_agent(node, Ending::Killed).unwrap();
    }
    set_underlay(&rig.lab, 1400);
    for node in ["node-1", "node-2"] {
        rig.lab.start_agent(node).unwrap();
    }
    for pod in &rig.pods {
        until_equal(&format!("the MTU of {}", pod.name), &(1400, vec![1350; 2]), || mtus_of(pod));
    }
    rig.exchange("after the agents are back").unwrap();
    rig.lab.down().unwrap();
}

/// A path between nodes with a router on it, which becomes narrower without the nodes' devices knowing.
fn routed(agent_args: &[&str]) -> Pair {
    let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
    Pair::up(LabConfig { underlay: Underlay::Routed, hostile: Hostile::Nobody, agent_args, ..LabConfig::default() })
        .unwrap()
}

/// What the agents say about the way to the other node.
fn ways(rig: &Pair) -> Vec<u64> {
    let of = |nodes: serde_json::Value| {
        let other = nodes.as_array().expect("a list of nodes").iter().find(|n| n["own"] == false).cloned();
        other.expect("another node")["next_hop"]["mtu"].as_u64().unwrap_or(0)
    };
    rig.lab.nodes().iter().map(|node| of(node.ask("/v1/nodes").unwrap())).collect()
}

/// What the programs know about it.
fn tunnels(rig: &Pair) -> Vec<u64> {
    let entries = |node: &lab::Node| node.ask("/v1/maps/tunnels").unwrap().as_array().expect("entries").clone();
    rig.lab.nodes().iter().flat_map(entries).filter_map(|e| e["value"]["mtu"].as_u64()).collect()
}

#[test]
fn a_narrow_path_between_nodes_is_learnt_and_told_to_pods() {
    let mut rig = routed(&["--underlay", "ipv6"]);
    rig.exchange("at full width").unwrap();
    assert_eq!(ways(&rig), [1500, 1500]);
    rig.lab.set_path_mtu(1400).unwrap();
    rig.exchange("while the narrow path is learnt").unwrap();
    until_equal("the MTU of the ways", &vec![1400, 1400], || ways(&rig));
    until_equal("the MTU in the programs' map", &vec![1400, 1400], || tunnels(&rig));
    rig.exchange("over the narrow path").unwrap();
    // The node's own stack hears it from the programs like a pod.
    let node = rig.lab.place("node-1").unwrap();
    for family in Family::BOTH {
        Flow::open(&node, &rig.pods[1], family).unwrap().exchange(MUCH).unwrap();
    }
    let told = rig.lab.node("node-1").unwrap().ask("/v1/drops").unwrap();
    let told =
        told["drops"].as_array().expect("a list").iter().any(|d| d["point"] == "from_host" && d["reason"] == "TooBig");
    assert!(told, "nothing that the node sent was too big, so this shows nothing");
    for pod in &rig.pods {
        assert_eq!(mtus_of(pod), (1500, vec![1430; 2]), "the devices have not changed, nor what most ways allow");
    }
    rig.lab.down().unwrap();
}

/// How many IPv4 packets the router had to fragment.
fn fragmented() -> u64 {
    let router = Place::new("the router", UNDERLAY, Vec::new()).unwrap();
    let text = router.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: ")).map(str::split_whitespace);
    let (names, numbers) = (lines.next().expect("names"), lines.next().expect("numbers"));
    let (_, number) = names.zip(numbers).find(|(name, _)| *name == "FragOKs").expect("a counter of fragmented packets");
    number.parse().unwrap()
}

#[test]
fn a_narrow_path_over_ipv4_is_the_routers_to_fragment() {
    let mut rig = routed(&[]);
    rig.exchange("at full width").unwrap();
    rig.lab.set_path_mtu(1400).unwrap();
    rig.exchange("in fragments").unwrap();
    assert!(fragmented() > 0, "the router has made no fragments, so the way was not narrow");
    assert_eq!(ways(&rig), [1500, 1500], "nobody has said anything");
    rig.lab.down().unwrap();
}
