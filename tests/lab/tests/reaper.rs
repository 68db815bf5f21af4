//! The reaper on real devices, in namespaces that vanish with the test. Needs root.
#[path = "support/reaper_rig.rs"]
mod reaper_rig;

use std::{os::fd::AsFd as _, process::Command, time::Duration};

use cni_agent::{
    endpoint::reaper::Device,
    netlink::{Socket, link, names, netns},
};
use reaper_rig::Rig;

/// What takes longer has failed; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn many_devices_are_deleted_and_others_are_left_alone() {
    let mut rig = Rig::new();
    let pods: Vec<_> = (1..=40).map(|n| rig.pod(n)).collect();
    let kept = rig.pod(99);
    // One whose namespace the runtime has removed before, and the device with it.
    rig.socket.run(link::delete(pods[20].0)).unwrap();
    for (index, _) in &pods {
        rig.delete(*index);
    }
    assert!(rig.reaper.flush(PATIENCE));
    assert_eq!((rig.gone(), rig.devices()), (40, vec!["lo".to_owned(), "weft63".into()]));
    drop(kept);
}

#[test]
fn what_spoils_a_group_spoils_no_deletion() {
    let mut rig = Rig::new();
    let pods: Vec<_> = (1..=20).map(|n| rig.pod(n)).collect();
    // Loopback can not be deleted: the kernel refuses every group that it is in.
    let group = names::DOOMED_GROUP.to_string();
    let mut ip = Command::new("ip");
    let ip = ip.args(["link", "set", "lo", "group", &group]);
    assert!(netns::in_netns(rig.netns.as_fd(), || ip.status()).unwrap().unwrap().success());
    for (index, _) in &pods {
        rig.delete(*index);
    }
    assert!(rig.reaper.flush(PATIENCE));
    assert_eq!((rig.gone(), rig.devices()), (20, vec!["lo".to_owned()]));
}

#[test]
fn a_name_in_a_pod_is_free_when_the_flush_for_it_returns() {
    let mut rig = Rig::new();
    let pods: Vec<_> = (1..=60).map(|n| rig.pod(n)).collect();
    for (index, _) in &pods {
        rig.delete(Device { index: *index, peer: (format!("/run/netns/{index}"), "eth0".into()) });
    }
    let (last, netns) = pods.last().unwrap();
    assert!(rig.reaper.flush_peer(&format!("/run/netns/{last}"), "eth0", PATIENCE));
    let mut inside = Socket::open_in(netns.as_fd()).unwrap();
    assert_eq!(link::by_name(&mut inside, "eth0").unwrap(), None);
    assert!(rig.gone() < 60, "it did not wait for the others");
    assert!(rig.reaper.flush(PATIENCE));
}

#[test]
fn a_device_that_can_not_be_deleted_keeps_its_address_until_it_is() {
    let mut rig = Rig::new();
    rig.delete(link::LOOPBACK);
    let (index, _pod) = rig.pod(1);
    rig.delete(index);
    assert!(rig.reaper.flush(PATIENCE));
    assert_eq!((rig.gone(), rig.devices()), (1, vec!["lo".to_owned()]), "loopback stays, and is not reported as gone");
}
