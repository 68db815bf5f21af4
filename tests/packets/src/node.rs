//! A network namespace with a way out, for programs that ask the node's routes and sockets.
use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::Command,
};

use cni_agent::netlink::{Socket, link, netns};
use cni_ebpf::fake::{Fake, nat::addr};

use crate::world::{MTU, underlay, world};

/// The stack's device, the device by which packets leave, and the namespace that has both.
#[derive(Debug)]
pub struct Node {
    netns: OwnedFd,
    weft_host: u32,
    out: u32,
}

/// What is done in the namespace: routers in the underlay, which nobody has ever heard of.
const SETUP: [&str; 13] = [
    "link set lo up",
    "link add weft_host type veth peer name weft_net",
    "link add eth0 type veth peer name wire",
    "link set weft_host up",
    "link set weft_net up",
    "link set eth0 up",
    "link set wire up",
    "addr add 10.77.0.1/24 dev eth0",
    "addr add fd77::1/64 dev eth0 nodad",
    "route add default via 10.77.0.254",
    "route add default via fd77::fe",
    "neigh add 10.77.0.254 lladdr 02:00:00:00:00:fe dev eth0",
    "neigh add fd77::fe lladdr 02:00:00:00:00:fe dev eth0",
];

impl Node {
    /// Makes the namespace, which goes with this.
    pub fn new() -> Self {
        let netns = netns::anonymous().expect("a namespace (needs root)");
        for words in SETUP {
            let status = netns::in_netns(netns.as_fd(), || Command::new("ip").args(words.split(' ')).status());
            let status = status.expect("the namespace is there").unwrap_or_else(|e| panic!("ip (iproute2): {e}"));
            assert!(status.success(), "ip {words}: {status}");
        }
        for key in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            netns::set_sysctl(netns.as_fd(), key, "1").unwrap_or_else(|e| panic!("{key}: {e}"));
        }
        let mut socket = Socket::open_in(netns.as_fd()).expect("netlink");
        let mut index = |name| link::by_name(&mut socket, name).expect("lists").expect("was made").index;
        let (weft_host, out) = (index("weft_host"), index("eth0"));
        Self { netns, weft_host, out }
    }

    /// The cluster as this node sees it: pods leave under its address.
    pub fn world(&self) -> Fake {
        let mut w = world();
        w.config.as_mut().expect("is there").weft_host = self.weft_host;
        (w.v4.default_route, w.v6.default_route) = (self.out, self.out);
        w.v4.leave.insert(self.out, (addr(underlay(false, 0)), MTU));
        w.v6.leave.insert(self.out, (addr(underlay(true, 0)), MTU));
        w
    }

    /// Runs something in the namespace.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        netns::in_netns(self.netns.as_fd(), work).expect("the namespace is there")
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}
