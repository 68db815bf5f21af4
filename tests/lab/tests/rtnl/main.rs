//! No step of a CNI call holds RTNL for long: everything else on the node that changes its network waits meanwhile, other pods' calls
//! first. Needs root and `cargo xtask build`.
//!
//! What the tests look for is a wait for RCU under the lock, 7 ms and more, in every call: a device that is moved or renamed, a TCX
//! program. Before 6.1 the kernel waits even in what is done here (see `docs/cni.md`), and the tests say so and do nothing.
mod prober;
#[expect(dead_code, reason = "the reaper's own tests look at more")]
#[path = "../support/reaper_rig.rs"]
mod reaper_rig;

use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use cni_agent::netlink::{
    Socket,
    link::{self, End},
    monitor::{Event, Monitor},
    names, netns,
};
use lab::{CniCall, Hostile, Lab, LabConfig, Node, layout};
use prober::{Prober, Waits};
use reaper_rig::Rig;
use serde_json::json;

/// The longest that anything may hold the lock.
const LIMIT: Duration = Duration::from_millis(5);
/// How often each thing is done.
const ROUNDS: usize = 24;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the kernel can add and delete pods' devices without waiting under RTNL. Since 6.1; when between 5.10 and that is not known.
fn kernel_is_quick() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
    let quick = (numbers.next(), numbers.next()) >= (Some(6), Some(1));
    if !quick {
        println!("kernel {} waits for RCU under RTNL: nothing to see here", release.trim());
    }
    quick
}

/// The namespace of a pod, with a name by which the lab removes it when it goes down.
fn pod_netns(name: &str) -> OwnedFd {
    netns::create(&layout::pod_netns(name)).unwrap()
}

fn call(lab: &Lab, node: &Node, command: &'static str, pod: &str) {
    let call = CniCall {
        command,
        config: json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentSocket": node.paths().cni_socket(),
        }),
        container_id: pod.into(),
        netns: Some(netns::path_of(&layout::pod_netns(pod)).display().to_string()),
        args: String::new(),
    };
    call.run(lab.bin_dir(), node).unwrap();
}

#[test]
fn no_step_of_add_or_del_holds_rtnl_for_long() {
    if !kernel_is_quick() {
        return;
    }
    let lab = Lab::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(1) }).expect("a lab of one node");
    let node = lab.node("node-1").unwrap();
    let pods: Vec<String> = (0..ROUNDS).map(|n| format!("rtnl-{n}")).collect();
    let namespaces: Vec<OwnedFd> = pods.iter().map(|pod| pod_netns(pod)).collect();
    let prober = Prober::start();

    // A call takes some milliseconds; as long is nothing done here.
    let idle = Waits::of(&prober, ROUNDS, |_| thread::park_timeout(Duration::from_millis(4)));
    idle.assert_within("nothing", LIMIT);
    Waits::of(&prober, ROUNDS, |n| call(&lab, node, "ADD", &pods[n])).assert_within("ADD", LIMIT);
    let inside = netns::open(netns::path_of(&node.netns())).unwrap();
    let (mut monitor, _stop) = Monitor::open_in(inside.as_fd()).unwrap();
    let del = Waits::of(&prober, ROUNDS, |n| {
        call(&lab, node, "DEL", &pods[n]);
        // The device goes after the answer.
        loop {
            match monitor.next_within(PATIENCE).unwrap().expect("the device goes") {
                Event::LinkGone(link) if names::endpoint_of(&link.name).is_some() => break,
                _ => {}
            }
        }
    });
    del.assert_within("DEL and the deletion of the device", LIMIT);
    drop(namespaces);
    lab.down().unwrap();
}

#[test]
fn the_prober_sees_a_device_that_moves_between_namespaces() {
    let (from, to) = (netns::anonymous().unwrap(), netns::anonymous().unwrap());
    let mut socket = Socket::open_in(from.as_fd()).unwrap();
    // `ip` knows a namespace that has no name by a process in it.
    let mut inside =
        netns::spawn_in(to.as_fd(), Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null())).unwrap();
    let target = inside.id().to_string();
    let prober = Prober::start();
    let moved = Waits::of(&prober, 8, |n| {
        let (a, b) = (format!("a{n}"), format!("b{n}"));
        socket
            .run(link::create_veth(&End { name: &a, ..End::default() }, &End { name: &b, ..End::default() }))
            .unwrap();
        let mut ip = Command::new("ip");
        let ip = ip.args(["link", "set", &b, "netns", &target]);
        assert!(netns::in_netns(from.as_fd(), || ip.status()).unwrap().unwrap().success());
    });
    drop(inside.stdin.take());
    inside.wait().unwrap();
    println!("others wait during a move: {moved:?}");
    assert!(
        moved.median() > LIMIT,
        "the kernel waits for RCU under RTNL here, and the prober does not see it: {moved:?}"
    );
}

#[test]
fn the_deletion_of_many_devices_does_not_hold_rtnl_for_long() {
    if !kernel_is_quick() {
        return;
    }
    let mut rig = Rig::new();
    let prober = Prober::start();
    // The namespaces stay until the end: the kernel takes RTNL to remove them.
    let (mut waits, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 2 {
        // One goes alone, the rest meanwhile becomes a group and a few more.
        let pods: Vec<_> = (1..=20).map(|n| rig.pod(n)).collect();
        let ((), wait) = prober.during(|| {
            pods.iter().for_each(|(index, _)| rig.delete(*index));
            assert!(rig.reaper.flush(PATIENCE));
        });
        waits.push(wait);
        kept.extend(pods);
    }
    Waits::from(waits).assert_within("the deletion of many devices", LIMIT);
}
