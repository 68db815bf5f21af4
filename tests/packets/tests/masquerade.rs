//! Pods that speak to the world through the loaded programs: what leaves, what comes back, and why it does not.
use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd as _,
};

use bytemuck::bytes_of;
use cni_common::{
    drop::{DropReason, Outcome, Point},
    net::Mac,
    schema::{self, MapSpec, SHARES},
    wire::SCTP,
};
use cni_ebpf::fake::Fake;
use packets::{
    fill,
    frame::{self, Ip},
    kernel::{Kernel, REDIRECT, Ran, SHOT, UNSPEC},
    node::Node,
    world::*,
};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

type L4 = (u8, Vec<u8>);

/// A node whose pods leave, its programs, and one family.
struct Masquerade {
    k: Kernel,
    w: Fake,
    v6: bool,
}

/// In a namespace with a way out, for each family; `bend` changes the maps first.
fn each(bend: impl Fn(&mut Fake) + Sync, test: impl Fn(Masquerade) + Sync) {
    let node = Node::new();
    for v6 in [false, true] {
        let mut w = node.world();
        bend(&mut w);
        let mut k = Kernel::empty();
        fill::fill(k.datapath(), &w);
        node.run(|| test(Masquerade { k, w, v6 }));
    }
}

fn whole(src: IpAddr, dst: IpAddr, ip: &Ip, l4: L4) -> (u16, Vec<u8>) {
    ip.packet(src, dst, frame::summed(src, dst, l4, false))
}

impl Masquerade {
    fn node(&self) -> IpAddr {
        underlay(self.v6, 0)
    }
    fn world(&self) -> IpAddr {
        outside(self.v6)
    }
    /// The client sends to the world.
    fn sends(&mut self, l4: L4) -> Ran {
        let packet = whole(client(self.v6), self.world(), &Ip::default(), l4);
        self.k.run(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet)).expect("an ordinary frame")
    }
    /// The other pod does: test frames come in by one device, which is its for this one.
    fn other_sends(&mut self, l4: L4) -> Ran {
        let client = self.w.endpoints[&CLIENT_IFINDEX];
        let mut other = cni_common::maps::Endpoint { id: 12, mac: SERVER_MAC, ..client };
        match (server(false), server(true)) {
            (IpAddr::V4(a), IpAddr::V6(b)) => (other.addr4, other.addr6) = (a.into(), b.into()),
            _ => unreachable!("one of each family"),
        }
        let key = CLIENT_IFINDEX.to_ne_bytes();
        self.put(&schema::ENDPOINTS, &key, bytes_of(&other));
        let packet = whole(server(self.v6), self.world(), &Ip::default(), l4);
        let ran = self.k.run(Point::FromPod, &frame::eth(SERVER_MAC, Mac::WEFT, packet)).expect("an ordinary frame");
        self.put(&schema::ENDPOINTS, &key, bytes_of(&client));
        ran
    }
    /// The world sends to the node.
    fn receives(&mut self, l4: L4) -> Ran {
        let packet = whole(self.world(), self.node(), &Ip::default(), l4);
        self.k.run(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, packet)).expect("an ordinary frame")
    }
    fn put(&mut self, map: &MapSpec, key: &[u8], value: &[u8]) {
        self.k.datapath().map(map).update(key, value).unwrap_or_else(|e| panic!("{}: {e}", map.name));
    }
    fn by_family(&self, v4: &'static MapSpec, v6: &'static MapSpec) -> &'static MapSpec {
        if self.v6 { v6 } else { v4 }
    }
    /// What leaves is this, from the node.
    fn left(&self, ran: &Ran, l4: L4) {
        assert_eq!((ran.code, &ran.counted[..]), (REDIRECT, &[(Point::FromPod, Ok(Outcome::Neigh))][..]));
        let want = whole(self.node(), self.world(), &Ip { ttl: 63, ..Ip::default() }, l4);
        assert_eq!(ran.data[14..], want.1, "{:02x?} not {:02x?}", &ran.data[14..], want.1);
    }
    /// What the client receives is this.
    fn came(&self, ran: &Ran, l4: L4) {
        assert_eq!((ran.code, &ran.counted[..]), (REDIRECT, &[(Point::FromNetdev, Ok(Outcome::Peer))][..]));
        let want = whole(self.world(), client(self.v6), &Ip { ttl: 63, ..Ip::default() }, l4);
        assert_eq!(ran.data, frame::eth(Mac::WEFT, CLIENT_MAC, want));
    }
    /// It is the node's own.
    fn passed(&self, ran: &Ran) {
        assert_eq!((ran.code, &ran.counted[..]), (UNSPEC, &[(Point::FromNetdev, Ok(Outcome::Pass))][..]));
    }
    fn dropped(&self, ran: &Ran, reason: DropReason) {
        assert_eq!((ran.code, &ran.counted[..]), (SHOT, &[(Point::FromPod, Err(reason))][..]));
        let [e] = ran.events[..] else { panic!("{} events", ran.events.len()) };
        assert_eq!((e.reason, e.src.canonical(), e.dst.canonical()), (reason as u8, client(self.v6), self.world()));
    }
    /// The port of the packet that left, if it is not the pod's.
    fn port(&self, ran: &Ran) -> u16 {
        assert_eq!(ran.counted, [(Point::FromPod, Ok(Outcome::Neigh))]);
        let at = if self.v6 { 54 } else { 34 };
        u16::from_be_bytes([ran.data[at], ran.data[at + 1]])
    }
}

fn sctp(sport: u16, dport: u16) -> L4 {
    frame::sctp(sport, dport)
}

#[test]
fn every_protocol_leaves_under_the_node_s_address_and_its_answer_comes_back() {
    each(
        |_| {},
        |mut m| {
            let echo = |reply: bool| {
                let (proto, mut body) = frame::ping(m.v6);
                body[0] = match (m.v6, reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                (proto, body)
            };
            let talks = [
                (frame::tcp(40_000, 443, SYN, b""), frame::tcp(443, 40_000, SYN_ACK, b"")),
                (frame::udp(40_000, 53, b"question"), frame::udp(53, 40_000, b"answer")),
                (sctp(40_000, 5000), sctp(5000, 40_000)),
                (echo(false), echo(true)),
                // GRE.
                ((47, vec![0; 20]), (47, vec![1; 20])),
            ];
            for (question, answer) in talks {
                for _ in 0..3 {
                    let ran = m.sends(question.clone());
                    m.left(&ran, question.clone());
                    let ran = m.receives(answer.clone());
                    m.came(&ran, answer.clone());
                }
            }
        },
    );
}

#[test]
fn a_port_that_another_pod_has_is_not_given_twice() {
    each(
        |_| {},
        |mut m| {
            let question = frame::udp(40_000, 53, b"question");
            let ran = m.sends(question.clone());
            m.left(&ran, question.clone());
            let ran = m.other_sends(question.clone());
            let port = m.port(&ran);
            assert!((61_000..=65_535).contains(&port), "{port}");
            // The same again, and the answer to whom it is for.
            let ran = m.other_sends(question);
            assert_eq!(m.port(&ran), port);
            let ran = m.receives(frame::udp(53, port, b"answer"));
            assert_eq!(ran.counted, [(Point::FromNetdev, Ok(Outcome::Peer))]);
            let want =
                whole(m.world(), server(m.v6), &Ip { ttl: 63, ..Ip::default() }, frame::udp(53, 40_000, b"answer"));
            assert_eq!(ran.data, frame::eth(Mac::WEFT, SERVER_MAC, want));
        },
    );
}

#[test]
fn a_port_of_the_node_s_own_sockets_is_not_given() {
    each(
        |_| {},
        |mut m| {
            let here = SocketAddr::new(m.node(), 40_000);
            let udp = UdpSocket::bind(here).expect("the node's address");
            let ran = m.sends(frame::udp(40_000, 53, b"question"));
            assert_ne!(m.port(&ran), 40_000);
            let tcp = TcpListener::bind(here).expect("the node's address");
            let ran = m.sends(frame::tcp(40_000, 443, SYN, b""));
            assert_ne!(m.port(&ran), 40_000);
            assert!(udp.as_raw_fd() >= 0 && tcp.as_raw_fd() >= 0);
            drop((udp, tcp));
            let again = frame::udp(40_000, 54, b"question");
            let ran = m.sends(again.clone());
            m.left(&ran, again);
        },
    );
}

#[test]
fn the_node_s_own_connection_wins_over_a_pod_s_port() {
    each(
        |_| {},
        |mut m| {
            let question = frame::udp(40_000, 53, b"question");
            let ran = m.sends(question.clone());
            m.left(&ran, question.clone());
            let answer = frame::udp(53, 40_000, b"answer");
            let ran = m.receives(answer.clone());
            m.came(&ran, answer.clone());
            let socket = UdpSocket::bind(SocketAddr::new(m.node(), 40_000)).expect("the node's address");
            socket.send_to(b"question", SocketAddr::new(m.world(), 53)).expect("there is a route");
            let ran = m.receives(answer);
            m.passed(&ran);
            // The pod goes on under another port.
            let ran = m.sends(question);
            let port = m.port(&ran);
            assert_ne!(port, 40_000);
            let ran = m.receives(frame::udp(53, port, b"answer"));
            m.came(&ran, frame::udp(53, 40_000, b"answer"));
        },
    );
}

#[test]
fn what_no_pod_has_asked_is_the_node_s() {
    each(
        |_| {},
        |mut m| {
            for l4 in [frame::udp(53, 40_000, b"answer"), frame::tcp(443, 40_000, SYN_ACK, b""), frame::ping(m.v6)] {
                let ran = m.receives(l4);
                m.passed(&ran);
            }
        },
    );
}

#[test]
fn a_pod_s_error_about_a_flow_that_the_world_has_opened_leaves_as_it_is() {
    each(
        |_| {},
        |mut m| {
            let question = frame::udp(53, 40_000, b"question");
            let packet = whole(m.world(), client(m.v6), &Ip::default(), question);
            let (kind, proto) = if m.v6 { ([1, 4], 58) } else { ([3, 3], 1) };
            let refusal = (proto, [&[kind[0], kind[1], 0, 0, 0, 0, 0, 0][..], &packet.1].concat());
            // About nothing that is known.
            let ran = m.sends(refusal.clone());
            m.dropped(&ran, DropReason::NatOrphan);
            let ran = m.k.run(Point::FromHost, &frame::eth(Mac::WEFT, Mac::WEFT, packet)).expect("an ordinary frame");
            assert_eq!(ran.counted, [(Point::FromHost, Ok(Outcome::Peer))]);
            let ran = m.sends(refusal.clone());
            assert_eq!(ran.counted, [(Point::FromPod, Ok(Outcome::Host))]);
            assert_eq!(ran.data[14..], whole(client(m.v6), m.world(), &Ip::default(), refusal).1);
        },
    );
}

#[test]
fn whom_the_settings_spare_sees_the_pod() {
    each(
        |w| {
            let prefix = |a: IpAddr| match a {
                IpAddr::V4(a) => a.into(),
                IpAddr::V6(_) => unreachable!("IPv4"),
            };
            w.v4.spared.push((24, prefix(outside(false))));
            if let IpAddr::V6(a) = outside(true) {
                w.v6.spared.push((64, a.into()));
            }
        },
        |mut m| {
            let ran = m.sends(frame::udp(40_000, 53, b"question"));
            assert_eq!(ran.counted, [(Point::FromPod, Ok(Outcome::Host))]);
        },
    );
}

#[test]
fn what_is_too_big_for_the_way_out_is_answered() {
    each(
        |_| {},
        |mut m| {
            let large = |bytes| frame::udp(40_000, 53, &vec![0; bytes]);
            let headers = if m.v6 { 48 } else { 28 };
            let fits = large(MTU as usize - headers);
            let ran = m.sends(fits.clone());
            m.left(&ran, fits);
            let ran = m.sends(large(MTU as usize - headers + 1));
            let drop = [(Point::FromPod, Err(DropReason::TooBig)), (Point::FromPod, Ok(Outcome::Answer))];
            assert_eq!(ran.counted, drop);
            // Behind both headers: destination unreachable, fragmentation needed; or packet too big.
            let message = &ran.data[if m.v6 { 54 } else { 34 }..];
            let want: &[u8] = if m.v6 { &[2, 0] } else { &[3, 4] };
            assert_eq!((&message[..2], u16::from_be_bytes([message[6], message[7]])), (want, MTU as u16));
        },
    );
}

#[test]
fn each_reason_of_masquerade_has_a_packet_that_provokes_it() {
    each(
        |_| {},
        |mut m| {
            let v6 = m.v6;
            // A timestamp request, and a router's solicitation: of no flow, and no errors.
            let ran = m.sends((if v6 { 58 } else { 1 }, vec![if v6 { 133 } else { 13 }; 20]));
            m.dropped(&ran, DropReason::NatOrphan);
            // SCTP's checksum covers the ports, so another one cannot be given.
            let ran = m.other_sends(sctp(40_000, 5000));
            assert_eq!(m.port(&ran), 40_000);
            let ran = m.sends(sctp(40_000, 5000));
            m.dropped(&ran, DropReason::NatExhausted);
            assert_eq!(SCTP, 132);
            let held = m.by_family(&schema::NAT_HELD4, &schema::NAT_HELD6);
            let back = m.by_family(&schema::NAT_BACK4, &schema::NAT_BACK6);
            let room = m.k.datapath().map(back).spec().max_entries;
            m.put(held, &CLIENT_ID.to_ne_bytes(), &u64::from(room / SHARES).to_ne_bytes());
            let ran = m.sends(frame::udp(40_001, 53, b""));
            m.dropped(&ran, DropReason::NatQuota);
            m.put(held, &CLIENT_ID.to_ne_bytes(), &[0; 8]);
            // A later fragment alone.
            let ip = if v6 {
                Ip { extensions: vec![(44, vec![0, 0, 0, 9, 0, 0, 0, 9])], ..Ip::default() }
            } else {
                Ip { frag: 5, ..Ip::default() }
            };
            let packet = ip.packet(client(v6), m.world(), frame::udp(1, 2, &[0; 16]));
            let ran = m.k.run(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet)).expect("an ordinary frame");
            m.dropped(&ran, DropReason::FragmentOrder);
            // Translations of others, as many as there is room for.
            let map = m.k.datapath().map(back);
            for n in 0..room {
                let mut key = vec![0xff; back.key_size as usize];
                key[..4].copy_from_slice(&n.to_ne_bytes());
                if map.update(&key, &vec![0xff; back.value_size as usize]).is_err() {
                    break;
                }
            }
            let ran = m.sends(frame::udp(40_002, 53, b""));
            m.dropped(&ran, DropReason::NatFull);
        },
    );
}
