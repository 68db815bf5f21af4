//! The one drop that BPF_PROG_TEST_RUN cannot provoke: a tag that stands beside the frame. So the program sits on a real device here, in
//! a namespace of its own.
use std::os::fd::{AsFd, AsRawFd};

use cni_agent::{
    datapath::{Datapath, counters, object},
    netlink::{
        Socket,
        link::{self, End},
        netns,
        tc::{self, Place},
    },
};
use cni_common::{
    drop::{DropReason, Point},
    net::Mac,
};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket},
};
use packets::{
    fill,
    frame::{self, Ip},
    world,
};

/// Sends a whole frame out of the pod's device.
fn send_raw(frame: &[u8]) -> nix::Result<usize> {
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let out = getifaddrs()?
        .filter(|i| i.interface_name == "eth0")
        .find_map(|i| i.address?.as_link_addr().copied())
        .ok_or(nix::errno::Errno::ENODEV)?;
    sendto(raw.as_raw_fd(), frame, &out, MsgFlags::empty())
}

#[test]
fn a_tagged_frame_from_a_pod_is_dropped_by_name() {
    let ns = netns::anonymous().expect("a namespace (needs root)");
    let mut socket = Socket::open_in(ns.as_fd()).expect("netlink");
    let end = |name, mac| End { name, mac: Some(mac), ..End::default() };
    socket.run(link::create_veth(&end("host", Mac::WEFT), &end("eth0", world::CLIENT_MAC))).expect("a veth pair");
    for name in ["host", "eth0"] {
        let index = link::by_name(&mut socket, name).expect("lists").expect("was made").index;
        socket.run(link::up(index)).expect("comes up");
    }
    let datapath = Datapath::load(None).unwrap_or_else(|e| panic!("{}", cni_agent::error_chain(&e)));
    let host = link::by_name(&mut socket, "host").expect("lists").expect("was made").index;
    let mut w = world::world();
    let client = w.endpoints[&world::CLIENT_IFINDEX];
    w.endpoints.insert(host, client);
    fill::fill(&datapath, &w);
    tc::ensure_clsact(&mut socket, host).expect("clsact");
    let program = datapath.program(object::FROM_POD).expect("is loaded");
    socket.run(tc::set_filter(Place::Ingress(host), program, object::FROM_POD)).expect("a filter");

    let (proto, packet) = Ip::default().packet(world::client(false), world::server(false), frame::ping(false));
    let mut tagged = vec![0, 5];
    tagged.extend(proto.to_be_bytes());
    tagged.extend(packet);
    let tagged = frame::eth(world::CLIENT_MAC, Mac::WEFT, (0x8100, tagged));
    let sent = netns::in_netns(ns.as_fd(), || send_raw(&tagged)).expect("enters").expect("sends");
    assert_eq!(sent, tagged.len());
    // send() has run the whole way: veth hands the frame on in the sender's softirq, at the latest when the thread ended.
    let ours = |c: &counters::Counted<DropReason>| c.point == Point::FromPod && c.what == DropReason::Vlan;
    let drops = counters::drops(&datapath).expect("counters are read");
    assert!(drops.iter().any(|c| ours(c) && c.count.packets == 1), "{drops:?}");
}
