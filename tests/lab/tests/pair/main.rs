//! Two machines with kernels of their own as two nodes, over virtio-net: `cargo xtask vm --suite two-node`.
//!
//! The same program runs in both. On the second machine only [`both_machines_are_nodes_of_one_cluster`] is run, and does there
//! what it is asked; on the first one all tests are.
mod ask;
mod does;
mod frames;
mod talk;
mod xdp;

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use ask::{About, Ask, Side, Who};
use cni_common::net::Mac;
use cni_ebpf::fake::frame::{self, Ip};
use does::{Does, Traced};
use frames::Heard;
use lab::{
    layout::{self, NODE_DEVICE},
    pair::until,
    probe::Family,
};
use serde_json::Value;
use talk::Transport;

/// The agent's default tunnel port.
const PORT: u16 = 8472;
/// The agent's own device of the kernel's VXLAN.
const VXLAN_DEVICE: &str = "weft_vxlan";
/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 3 << 20;
/// There and back.
const WAYS: [(usize, usize); 2] = [(0, 1), (1, 0)];

/// Both machines.
struct Rig {
    sides: [Side; 2],
    about: [About; 2],
    underlay: Family,
}

/// The number that the runner has given this machine.
fn number() -> u8 {
    let number = env::var("WEFT_VM_MACHINE").expect("two virtual machines: run `cargo xtask vm --suite two-node`");
    number.parse().expect("WEFT_VM_MACHINE is a number")
}

/// Both machines, with agents that speak over an underlay of this family.
fn rig(underlay: Family) -> MutexGuard<'static, Rig> {
    static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
    let rig = RIG.get_or_init(|| {
        assert_eq!(number(), 1, "the first machine conducts");
        let mut sides = [Side::Here(Does::up(1).unwrap()), Side::connect().unwrap()];
        let about: [About; 2] = sides.each_mut().map(|side| side.ask(&Ask::About).unwrap());
        println!("machines with {} and {}", about[0].kernel, about[1].kernel);
        Mutex::new(Rig { sides, about, underlay: Family::V4 })
    });
    // One test's failure is not the next one's.
    let mut rig = rig.lock().unwrap_or_else(PoisonError::into_inner);
    rig.speak_over(underlay);
    rig
}

#[test]
fn both_machines_are_nodes_of_one_cluster() {
    if number() == 2 {
        // The first one may ask as soon as it can; it waits until the agent is ready.
        let listener = ask::listen().unwrap();
        ask::serve(&listener, &mut Does::up(2).unwrap()).unwrap();
        return;
    }
    let mut rig = rig(Family::V4);
    assert_ne!(rig.about[0].kernel, rig.about[1].kernel, "one kernel twice shows little");
    for side in 0..2 {
        let nodes: Value = rig.ask(side, &Ask::Agent { path: "/v1/nodes".into() });
        assert_eq!(nodes.as_array().expect("a list").len(), 2, "{nodes}");
    }
}

impl Rig {
    fn ask<T: serde::de::DeserializeOwned>(&mut self, side: usize, ask: &Ask) -> T {
        let kernel = &self.about[side].kernel;
        self.sides[side].ask(ask).unwrap_or_else(|e| panic!("{kernel}: {e:#}"))
    }

    fn address(&self, side: usize, who: Who, family: Family) -> IpAddr {
        let of_family = |a: &&IpAddr| a.is_ipv4() == (family == Family::V4);
        *self.about[side].addresses[&who].iter().find(of_family).expect("addresses of both families")
    }

    /// MTU of the pods.
    fn mtu(&self) -> usize {
        if self.underlay == Family::V4 { 1450 } else { 1430 }
    }

    fn speak_over(&mut self, underlay: Family) {
        if self.underlay == underlay {
            return;
        }
        self.underlay = underlay;
        let arguments = ["--underlay".to_owned(), underlay.to_string().to_lowercase()].to_vec();
        for side in 0..2 {
            self.ask(side, &Ask::Restart { arguments: arguments.clone() })
        }
        let mtu = self.mtu();
        for side in 0..2 {
            until("the pods have the MTU of the other underlay", || {
                let endpoints: Value = self.ask(side, &Ask::Agent { path: "/v1/endpoints".into() });
                endpoints.as_array().expect("a list").iter().all(|e| e["mtu"] == mtu)
            })
            .unwrap();
        }
    }

    /// Messages of these sizes from one to the other and back. The other one sees who it is.
    fn talk(&mut self, from: (usize, Who), to: (usize, Who), transport: Transport, family: Family, sizes: &[usize]) {
        let address = self.address(to.0, to.1, family);
        let any = family.any();
        let serve = Ask::Serve { who: to.1, transport, any, datagrams: sizes.len() };
        let to_socket = SocketAddr::new(address, self.ask(to.0, &serve));
        self.ask::<()>(from.0, &Ask::Call { who: from.1, transport, to: to_socket, sizes: sizes.to_vec() });
        let seen: IpAddr = self.ask(to.0, &Ask::Served);
        assert_eq!(seen, self.address(from.0, from.1, family), "{transport:?}: nobody may translate the address");
    }

    fn ping(&mut self, from: (usize, Who), to: (usize, Who), family: Family, sizes: &[usize]) {
        for size in sizes {
            let to = self.address(to.0, to.1, family);
            self.ask::<()>(from.0, &Ask::Ping { who: from.1, to, size: *size, seconds: 5 });
        }
    }

    /// Packets that anybody has counted as damaged or dropped, by machine, place and counter.
    fn harm(&mut self) -> Vec<BTreeMap<String, u64>> {
        let mut counters = Vec::new();
        for side in 0..2 {
            counters.extend([Who::Pod, Who::Node].map(|who| self.ask(side, &Ask::Damaged { who })));
            let drops = self.drops(side);
            // A pod's kernel looks for routers and groups on its own.
            counters.push(drops.into_iter().filter(|(k, _)| !k.ends_with("Multicast")).collect());
        }
        counters
    }

    /// Nobody counts a damaged or dropped packet meanwhile.
    fn unharmed(&mut self, work: impl FnOnce(&mut Self)) {
        let before = self.harm();
        assert!(before[0].contains_key("Udp6InCsumErrors"), "the counters are not read: {before:?}");
        work(self);
        assert_eq!(self.harm(), before);
    }

    /// Payload of the largest datagram or echo request that is not fragmented.
    fn largest(&self, family: Family) -> usize {
        self.mtu() - if family == Family::V4 { 28 } else { 48 }
    }

    /// Packets that a machine has dropped, by program and reason.
    fn drops(&mut self, side: usize) -> BTreeMap<String, u64> {
        let drops: Value = self.ask(side, &Ask::Agent { path: "/v1/drops".into() });
        let text = |v: &Value| v.as_str().expect("a name").to_owned();
        let entry = |d: &Value| {
            (format!("{} {}", text(&d["point"]), text(&d["reason"])), d["packets"].as_u64().expect("a count"))
        };
        drops["drops"].as_array().expect("a list").iter().map(entry).collect()
    }

    /// Packets that a machine has dropped so.
    fn dropped(&mut self, side: usize, so: &str) -> u64 {
        self.drops(side).get(so).copied().unwrap_or(0)
    }

    /// Everything between pods of the two machines, of every size.
    fn between_pods(&mut self, transport: Transport, sizes: &dyn Fn(usize) -> Vec<usize>) {
        self.unharmed(|rig| {
            for family in Family::BOTH {
                let sizes = sizes(rig.largest(family));
                for (from, to) in WAYS {
                    rig.talk((from, Who::Pod), (to, Who::Pod), transport, family, &sizes);
                }
            }
        });
    }
}

fn datagrams(largest: usize) -> Vec<usize> {
    vec![1, 2, 99, 100, 101, 512, largest - 1, largest, largest + 1, 4000, 9001, 60_000]
}

#[test]
fn pods_exchange_tcp_streams_small_and_large() {
    rig(Family::V4).between_pods(Transport::Tcp, &|_| vec![1, 100, 1400, 1, MUCH]);
}

#[test]
fn pods_exchange_datagrams_of_every_size_whole_and_in_fragments() {
    rig(Family::V4).between_pods(Transport::Udp, &datagrams);
}

#[test]
fn pods_exchange_sctp_messages_small_and_large_across_machines() {
    rig(Family::V4).between_pods(Transport::Sctp, &|_| vec![1, 100, 1400, 1, MUCH / 3]);
}

#[test]
fn pods_exchange_sctp_messages_within_a_machine() {
    let mut rig = rig(Family::V4);
    rig.unharmed(|rig| {
        for side in 0..2 {
            for family in Family::BOTH {
                let sizes = [1, 100, 1400, 1, MUCH / 3];
                rig.talk((side, Who::Pod), (side, Who::Neighbour), Transport::Sctp, family, &sizes);
            }
        }
    });
}

#[test]
fn pods_ping_each_other_with_packets_up_to_the_mtu_and_no_larger() {
    let mut rig = rig(Family::V4);
    rig.unharmed(|rig| {
        for family in Family::BOTH {
            let largest = rig.largest(family);
            let too_large = rig.address(1, Who::Pod, family);
            for (from, to) in WAYS {
                rig.ping((from, Who::Pod), (to, Who::Pod), family, &[16, 56, 100, 1400, largest]);
            }
            let refused =
                rig.sides[0].ask::<()>(&Ask::Ping { who: Who::Pod, to: too_large, size: largest + 1, seconds: 5 });
            assert!(format!("{:#}", refused.unwrap_err()).contains("too long"), "a pod sends more than its MTU");
        }
    });
}

#[test]
fn nodes_and_pods_of_the_other_machine_reach_each_other() {
    let mut rig = rig(Family::V4);
    rig.unharmed(|rig| {
        for family in Family::BOTH {
            let largest = rig.largest(family);
            for (here, there) in WAYS {
                for (from, to) in [((here, Who::Node), (there, Who::Pod)), ((here, Who::Pod), (there, Who::Node))] {
                    rig.ping(from, to, family, &[56, 1400, largest]);
                    rig.talk(from, to, Transport::Udp, family, &[1, 1400, largest, 4000]);
                    rig.talk(from, to, Transport::Tcp, family, &[1, 1400, MUCH / 6]);
                    rig.talk(from, to, Transport::Sctp, family, &[1, 1400]);
                }
            }
        }
    });
}

/// With coalescing off, no packet is put together by the receiving machine, which would leave out the checksum.
#[test]
fn every_packet_reaches_the_pod_with_its_whole_and_right_checksum() {
    let mut rig = rig(Family::V4);
    let gro = |rig: &mut Rig, state: &str| {
        // The kernel's own VXLAN device coalesces as well.
        for (side, device) in [(0, NODE_DEVICE), (0, VXLAN_DEVICE), (1, NODE_DEVICE), (1, VXLAN_DEVICE)] {
            rig.ask::<String>(side, &Ask::Run { line: format!("ethtool -K {device} gro {state}") });
        }
    };
    gro(&mut rig, "off");
    for side in 0..2 {
        rig.ask::<()>(side, &Ask::Listen);
    }
    for family in Family::BOTH {
        for (from, to) in WAYS {
            for transport in Transport::ALL {
                rig.talk((from, Who::Pod), (to, Who::Pod), transport, family, &[1, 100, 1400, 4000]);
            }
            let largest = rig.largest(family);
            rig.ping((from, Who::Pod), (to, Who::Pod), family, &[56, 1400, largest]);
        }
    }
    for side in 0..2 {
        let heard: Heard = rig.ask(side, &Ask::Heard);
        println!("{}: {heard:?}", rig.about[side].kernel);
        assert_eq!(heard.wrong, [""; 0], "{}", rig.about[side].kernel);
        for kind in ["4/1", "4/6", "4/17", "4/132", "6/6", "6/17", "6/58", "6/132"] {
            assert!(heard.right.contains_key(kind), "{}: no packet of {kind}: {heard:?}", rig.about[side].kernel);
        }
        assert!(heard.fragments > 0, "{}: datagrams of 4000 bytes are no fragments", rig.about[side].kernel);
    }
    gro(&mut rig, "on");
}

/// Until 5.13 (fb32856b16ad, "virtio-net: page_to_skb() use build_skb when there's sufficient tailroom") the driver leaves no more
/// than the Ethernet header in the linear part of a packet that is larger than its copy of 128 bytes.
fn leaves_headers_out(kernel: &str) -> bool {
    let mut numbers = kernel.split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(5), Some(13))
}

#[test]
fn packets_whose_headers_are_not_linear_pass_and_nobody_vouches_for_them() {
    let mut rig = rig(Family::V4);
    for side in 0..2 {
        rig.ask::<()>(side, &Ask::Trace);
    }
    for family in Family::BOTH {
        for (from, to) in WAYS {
            rig.ping((from, Who::Pod), (to, Who::Pod), family, &[200, 1000, 1400]);
            rig.talk((from, Who::Pod), (to, Who::Pod), Transport::Udp, family, &[200, 1400, 4000]);
            rig.talk((from, Who::Pod), (to, Who::Node), Transport::Udp, family, &[200, 1400, 4000]);
        }
    }
    for side in 0..2 {
        let traced: Traced = rig.ask(side, &Ask::Traced);
        let kernel = &rig.about[side].kernel;
        println!("{kernel}: {traced:?}");
        assert!(traced.packets >= 40, "{kernel}: {traced:?}");
        assert_eq!(traced.vouched, 0, "{kernel}: then the checksums here are not this test's to judge");
        if leaves_headers_out(kernel) {
            assert_eq!(traced.bare, traced.packets, "{kernel}: this test shows nothing");
        }
    }
}

/// A tunnelled UDP datagram between pods as the second machine would send it, but for what `change` does with its parts.
fn forged(rig: &Rig, family: Family, from: IpAddr, damage: Option<Range<usize>>) -> Vec<u8> {
    let [to, by] = [0, 1].map(|side| rig.address(side, Who::Pod, family));
    let inner = Ip::default().packet(by, to, frame::udp(4000, 4001, b"weft"));
    let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, inner);
    let outer = Ip::default().packet(from, rig.address(0, Who::Node, Family::V4), frame::vxlan(PORT, 0, &inner));
    let [to, by] = [0, 1].map(|side| Mac::new(rig.about[side].mac));
    let mut frame = frame::eth(by, to, outer);
    if let Some(range) = damage {
        frame[range].fill(0);
    }
    frame
}

#[test]
fn what_is_dropped_between_machines_is_counted_by_reason() {
    let mut rig = rig(Family::V4);
    let stranger = "192.168.77.99".parse().unwrap();
    let node = rig.address(1, Who::Node, Family::V4);
    // Ethernet, IPv4, UDP; then the flags, of which one says that the VNI is valid.
    let flags = 14 + 20 + 8..14 + 20 + 8 + 1;
    for family in Family::BOTH {
        for (reason, frame) in [
            ("from_netdev UnknownNode", forged(&rig, family, stranger, None)),
            ("from_netdev BadTunnel", forged(&rig, family, node, Some(flags.clone()))),
        ] {
            let before = rig.dropped(0, reason);
            rig.ask::<()>(1, &Ask::Send { frame });
            until(reason, || rig.dropped(0, reason) == before + 1).unwrap();
        }
        // To an address that no pod has: dropped on the other machine, which is the one to know.
        for (here, there) in WAYS {
            let before = rig.dropped(there, "from_overlay NoPod");
            let nobody = match layout::pod_cidrs(there as u8 + 1)[usize::from(family == Family::V6)].network() {
                IpAddr::V4(net) => IpAddr::from((u32::from(net) + 200).to_be_bytes()),
                IpAddr::V6(net) => IpAddr::from((u128::from(net) + 200).to_be_bytes()),
            };
            let lost = rig.sides[here].ask::<()>(&Ask::Ping { who: Who::Pod, to: nobody, size: 1000, seconds: 1 });
            lost.expect_err("nobody answers");
            let dropped = rig.dropped(there, "from_overlay NoPod") - before;
            assert!(dropped >= 2, "{}: {dropped} of two echo requests at least", rig.about[there].kernel);
        }
    }
}

#[test]
fn the_device_takes_an_xdp_program_in_its_driver_and_everything_passes_under_it() {
    let mut rig = rig(Family::V4);
    for on in [true, false] {
        for side in 0..2 {
            rig.ask::<()>(side, &Ask::Xdp { on });
        }
        for family in Family::BOTH {
            for (from, to) in WAYS {
                rig.ping((from, Who::Pod), (to, Who::Pod), family, &[56, 1400]);
                rig.talk((from, Who::Pod), (to, Who::Pod), Transport::Tcp, family, &[1, 100_000]);
            }
        }
    }
}

#[test]
fn pods_talk_over_an_ipv6_underlay_after_the_agents_have_changed_to_it() {
    let mut rig = rig(Family::V6);
    for side in 0..2 {
        let status: Value = rig.ask(side, &Ask::Agent { path: "/v1/status".into() });
        assert_eq!(status["datapath"]["tunnel_address"], rig.address(side, Who::Node, Family::V6).to_string());
    }
    rig.unharmed(|rig| {
        for family in Family::BOTH {
            let largest = rig.largest(family);
            for (from, to) in WAYS {
                let (from, to) = ((from, Who::Pod), (to, Who::Pod));
                rig.ping(from, to, family, &[56, 1400 - 20, largest]);
                rig.talk(from, to, Transport::Udp, family, &[1, 512, largest, 4000]);
                rig.talk(from, to, Transport::Tcp, family, &[1, MUCH / 3]);
                rig.talk(from, to, Transport::Sctp, family, &[1, 100_000]);
            }
        }
    });
}
