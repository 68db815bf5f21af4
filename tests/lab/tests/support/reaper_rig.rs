//! A node in a namespace of its own with a reaper, and pods that are connected as the agent connects them.
use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cni_agent::{
    endpoint::reaper::{Device, Reaper},
    netlink::{Socket, link, names, netns, pod::PodLink},
};
use cni_common::net::Mac;

/// A node and a reaper in it.
pub struct Rig {
    pub netns: OwnedFd,
    pub socket: Socket,
    pub reaper: Reaper,
    gone: Arc<AtomicUsize>,
}

impl Rig {
    pub fn new() -> Self {
        let netns = netns::anonymous().expect("a network namespace (these tests need root)");
        let socket = Socket::open_in(netns.as_fd()).unwrap();
        let reaper = netns::in_netns(netns.as_fd(), Reaper::start).unwrap().unwrap();
        Self { netns, socket, reaper, gone: Arc::default() }
    }

    /// Connects a pod as the agent does; the index of the node's end, and the pod's namespace.
    pub fn pod(&mut self, n: u32) -> (u32, OwnedFd) {
        let pod = netns::anonymous().unwrap();
        let index = names::FIRST_IFINDEX + n;
        let link = PodLink {
            host_ifindex: index,
            host_name: &format!("weft{n:x}"),
            pod_ifindex: index,
            pod_ifname: "eth0",
            pod_mac: Mac::new([2, 0, 0, 0, 0, 7]),
            mtu_device: 1500,
            route_mtu: 1450,
            addresses: vec!["10.244.1.9".parse().unwrap(), "fd10:244:1::9".parse().unwrap()],
            routes: Vec::new(),
            block: names::BLOCK_INDEX,
            netns: pod.as_fd(),
        };
        link.wire(&mut self.socket).unwrap();
        (index, pod)
    }

    pub fn delete(&self, device: impl Into<Device>) {
        let gone = Arc::clone(&self.gone);
        self.reaper.delete(device, move || {
            gone.fetch_add(1, Ordering::SeqCst);
        });
    }

    pub fn devices(&mut self) -> Vec<String> {
        link::list(&mut self.socket).unwrap().into_iter().map(|l| l.name).collect()
    }

    pub fn gone(&self) -> usize {
        self.gone.load(Ordering::SeqCst)
    }
}
