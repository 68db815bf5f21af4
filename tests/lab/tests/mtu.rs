//! Packets stay as small as the way between nodes is, while that changes. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::time::{Duration, Instant};

use cni_agent::netlink::{Socket, link, route};
use lab::{
    Lab, LabConfig, PodSpec,
    layout::NODE_DEVICE,
    probe::{Family, Flow, Place},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 4 * 1024 * 1024;
/// MTU of the underlay in the beginning, and afterwards.
const MTUS: [u32; 3] = [1500, 1400, 1500];

/// The lab, the pods `web` on node-1 and `client` on node-2, and a connection of each family between them.
struct Rig {
    lab: Lab,
    pods: [Place; 2],
    flows: Vec<Flow>,
}

impl Rig {
    fn new(config: LabConfig) -> Self {
        let mut lab = Lab::up(config).expect("a lab of two nodes");
        let pods = [("node-1", "web"), ("node-2", "client")]
            .map(|(node, name)| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap());
        let open = |family| Flow::open(&pods[1], &pods[0], family).unwrap();
        let flows = Family::BOTH.into_iter().map(open).collect();
        Self { lab, pods, flows }
    }

    fn exchange(&mut self, when: &str) {
        for flow in &mut self.flows {
            flow.exchange(MUCH).unwrap_or_else(|e| panic!("{when}: {e:#}"));
        }
    }

    /// What `ip link set eth0 mtu` does on every node.
    fn set_underlay(&self, mtu: u32) {
        for node in self.lab.nodes() {
            let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
            let device = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap();
            socket.run(link::set_mtu(device.index, mtu)).unwrap();
        }
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
        std::thread::yield_now();
    }
}

fn pods_follow(agent_args: &[&str], overhead: u32) {
    let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
    let mut rig = Rig::new(LabConfig { agent_args, ..LabConfig::default() });
    for mtu in MTUS {
        rig.set_underlay(mtu);
        rig.exchange(&format!("while the pods learn of {mtu}"));
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
        rig.exchange(&format!("after the pods have learnt of {mtu}"));
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
