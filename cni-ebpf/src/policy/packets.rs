//! Packets through the programs' logic at pods that policies isolate.
use std::net::IpAddr;

use cni_common::{
    drop::Point,
    net::{Ip6, Mac},
    policy::{RULE_PORT_BITS, RULES_ALLOW_ALL, RULES_FIRST, Rule, RuleKey, SENDER_BITS, SenderKey, VERDICT_ALLOW},
    wire::{ICMP, ICMP6, SCTP, TCP, UDP},
};

use crate::{
    DropReason as D, Res, Verdict, decap,
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        nat::addr,
        policy::hold,
        world::{self, *},
    },
    flow,
    packet::TunnelEnd,
};

/// Policy sets, identities and a rule set, as numbers of the agent's.
const IN: u32 = 5;
const OUT: u32 = 6;
const CLIENT: u32 = 70;
const FAR: u32 = 71;
const RULES: u32 = RULES_FIRST;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// The server is isolated for ingress: TCP 443 from the client and from pod 1 of another node.
fn isolated() -> Fake {
    let mut w = world();
    for v6 in [false, true] {
        let identities = [(client(v6), CLIENT), (pod(v6, 1, 1), FAR)];
        for (a, identity) in identities {
            hold(&mut w, a, identity, 0);
        }
    }
    w.v4.local.get_mut(&addr(server(false))).expect("is there").set_in = IN;
    w.v6.local.get_mut(&addr(server(true))).expect("is there").set_in = IN;
    for identity in [CLIENT, FAR] {
        w.policy.peers.insert((IN, identity), RULES);
    }
    let key = RuleKey { rules: RULES, proto: TCP, port: 443_u16.to_be_bytes(), pad: 0 };
    w.policy.rules.push((RULE_PORT_BITS, key, Rule { verdict: VERDICT_ALLOW, cookie: 9 }));
    w
}

fn run(w: &Fake, point: Point, frame: Vec<u8>) -> Res<Verdict> {
    let mut f = Frame::new(frame, CLIENT_IFINDEX);
    match point {
        Point::FromPod => flow::from_pod(&mut f, w),
        Point::FromHost => flow::from_host(&mut f, w),
        Point::FromNetdev => decap::from_netdev(&mut f, w),
        Point::FromOverlay => decap::from_overlay(&mut f, w),
    }
}
/// The client to the server.
fn asks(w: &Fake, v6: bool, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    run(w, Point::FromPod, frame::eth(CLIENT_MAC, Mac::WEFT, Ip::default().packet(client(v6), server(v6), l4)))
}
/// The server to somebody.
fn answers(w: &Fake, v6: bool, dst: IpAddr, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    as_server(w, frame::eth(SERVER_MAC, Mac::WEFT, Ip::default().packet(server(v6), dst, l4)))
}
/// The frame comes in by the server's device.
fn as_server(w: &Fake, frame: Vec<u8>) -> Res<Verdict> {
    let mut w = w.clone();
    let ep = w.endpoints.get_mut(&CLIENT_IFINDEX).expect("is there");
    (ep.id, ep.mac, ep.addr4, ep.addr6) = (12, SERVER_MAC, addr(server(false)), addr(server(true)));
    (ep.set_in, ep.set_out) = (IN, 0);
    run(&w, Point::FromPod, frame)
}
/// Pod 1 of another node to the server, through the tunnel.
fn from_far(w: &Fake, v6: bool, src: IpAddr, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    named(w, v6, false, src, 0, l4)
}
/// The same under a label class, over an underlay of either family.
fn named(w: &Fake, v6: bool, outer6: bool, src: IpAddr, class: u32, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, Ip::default().packet(src, server(v6), l4));
    let outer = Ip::default().packet(underlay(outer6, 1), underlay(outer6, 0), frame::vxlan(PORT, class, &inner));
    run(w, Point::FromNetdev, frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer))
}
/// What the kernel's device decapsulated, from node 1 over such an underlay.
fn overlaid(w: &Fake, v6: bool, outer6: bool, src: IpAddr, class: u32, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    let packet = Ip::default().packet(src, server(v6), l4);
    let from = match underlay(outer6, 1) {
        IpAddr::V4(a) => TunnelEnd::V4(a.into()),
        IpAddr::V6(a) => TunnelEnd::V6(a.into()),
    };
    let frame = frame::eth(Mac::OVERLAY, Mac::WEFT, packet);
    let frame = Frame { tunnel: Some(from), tunnel_class: class, ..Frame::new(frame, VXLAN_IFINDEX) };
    decap::from_overlay(&mut { frame }, w)
}
fn tcp(port: u16, flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(40_000, port, flags, b"")
}

#[test]
fn a_flow_that_is_allowed_is_asked_about_once_and_answered_without() {
    for v6 in [false, true] {
        let w = isolated();
        let into_server = Ok(Verdict::Peer(SERVER_IFINDEX));
        assert_eq!(asks(&w, v6, tcp(443, SYN)), into_server);
        let asked = *w.policy.asked.borrow();
        assert!(asked > 0);
        assert!(answers(&w, v6, client(v6), frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
        assert_eq!(asks(&w, v6, tcp(443, ACK)), into_server);
        assert_eq!(*w.policy.asked.borrow(), asked);
    }
}

#[test]
fn what_no_rule_allows_is_dropped_and_leaves_no_trace() {
    for v6 in [false, true] {
        let w = isolated();
        for l4 in [tcp(444, SYN), frame::udp(40_000, 443, b""), frame::ping(v6)] {
            assert_eq!(asks(&w, v6, l4.clone()), Err(D::PolicyIngress));
            assert_eq!(from_far(&w, v6, pod(v6, 1, 1), l4), Err(D::PolicyIngress));
        }
        assert_eq!(w.ct4.new.dump().len() + w.ct6.new.dump().len(), 0);
        assert_eq!(from_far(&w, v6, pod(v6, 1, 1), tcp(443, SYN)), Ok(Verdict::Peer(SERVER_IFINDEX)));
        // Of a pod CIDR, but of which pod nobody knows.
        assert_eq!(from_far(&w, v6, pod(v6, 1, 7), tcp(443, SYN)), Err(D::PolicyUnknown));
    }
}

#[test]
fn sctp_has_ports_and_an_echo_is_asked_about_under_none_whatever_its_identifier() {
    for v6 in [false, true] {
        let mut w = isolated();
        for (proto, port) in [(SCTP, 443_u16), (if v6 { ICMP6 } else { ICMP }, 0)] {
            let key = RuleKey { rules: RULES, proto, port: port.to_be_bytes(), pad: 0 };
            w.policy.rules.push((RULE_PORT_BITS, key, Rule { verdict: VERDICT_ALLOW, cookie: 9 }));
        }
        let into_server = Ok(Verdict::Peer(SERVER_IFINDEX));
        assert_eq!(asks(&w, v6, frame::sctp(40_000, 443)), into_server);
        assert_eq!(asks(&w, v6, frame::sctp(40_000, 444)), Err(D::PolicyIngress));
        assert_eq!(asks(&w, v6, frame::ping(v6)), into_server);
    }
}

#[test]
fn what_the_kernels_device_decapsulated_is_judged_as_what_was_decapsulated_here() {
    for v6 in [false, true] {
        let w = isolated();
        let overlay = |src: IpAddr, l4| {
            let packet = Ip::default().packet(src, server(v6), l4);
            let from = TunnelEnd::V4(addr(underlay(false, 1)));
            let frame = frame::eth(Mac::OVERLAY, Mac::WEFT, packet);
            decap::from_overlay(&mut Frame { tunnel: Some(from), ..Frame::new(frame, VXLAN_IFINDEX) }, &w)
        };
        assert_eq!(overlay(pod(v6, 1, 1), tcp(443, SYN)), Ok(Verdict::Peer(SERVER_IFINDEX)));
        assert_eq!(overlay(pod(v6, 1, 1), tcp(444, SYN)), Err(D::PolicyIngress));
        assert_eq!(overlay(pod(v6, 1, 7), tcp(443, SYN)), Err(D::PolicyUnknown));
        // What policy has found is what the other path finds.
        assert_eq!(from_far(&w, v6, pod(v6, 1, 1), tcp(443, ACK)), Ok(Verdict::Peer(SERVER_IFINDEX)));
    }
}

#[test]
fn the_pods_own_node_gets_in_and_who_it_forwards_for_does_not() {
    for v6 in [false, true] {
        let w = isolated();
        let by_stack = |src, l4| {
            run(&w, Point::FromHost, frame::eth(Mac::WEFT, Mac::WEFT, Ip::default().packet(src, server(v6), l4)))
        };
        assert_eq!(by_stack(underlay(v6, 0), tcp(80, SYN)), Ok(Verdict::Peer(SERVER_IFINDEX)));
        assert_eq!(by_stack(outside(v6), tcp(80, SYN)), Err(D::PolicyIngress));
    }
}

#[test]
fn a_pod_that_is_isolated_for_egress_asks_whom_it_may_and_hears_who_has_asked_it() {
    for v6 in [false, true] {
        let mut w = world();
        w.endpoints.get_mut(&CLIENT_IFINDEX).expect("is there").set_out = OUT;
        w.v4.local.get_mut(&addr(client(false))).expect("is there").set_out = OUT;
        w.v6.local.get_mut(&addr(client(true))).expect("is there").set_out = OUT;
        assert_eq!(asks(&w, v6, frame::udp(40_000, 53, b"")), Err(D::PolicyUnknown));
        hold(&mut w, server(v6), 72, 0);
        assert_eq!(asks(&w, v6, frame::udp(40_000, 53, b"")), Err(D::PolicyEgress));
        w.policy.peers.insert((OUT, 72), RULES_ALLOW_ALL);
        assert!(asks(&w, v6, frame::udp(40_000, 53, b"")).is_ok());
        w.policy.peers.clear();
        // Somebody asks it; the answer is of that flow.
        let by_stack = Ip::default().packet(underlay(v6, 0), client(v6), tcp(80, SYN));
        assert!(run(&w, Point::FromHost, frame::eth(Mac::WEFT, Mac::WEFT, by_stack)).is_ok());
        let answer = Ip::default().packet(client(v6), underlay(v6, 0), frame::tcp(80, 40_000, SYN_ACK, b""));
        assert!(run(&w, Point::FromPod, frame::eth(CLIENT_MAC, Mac::WEFT, answer)).is_ok());
    }
}

#[test]
fn a_flow_that_is_revoked_is_cut_at_its_next_packet_in_either_direction_and_others_go_on() {
    for v6 in [false, true] {
        let mut w = isolated();
        assert!(asks(&w, v6, tcp(443, SYN)).is_ok());
        assert!(answers(&w, v6, client(v6), frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
        assert!(from_far(&w, v6, pod(v6, 1, 1), tcp(443, SYN)).is_ok());
        w.policy.peers.remove(&(IN, CLIENT));
        // Not before the epoch says so.
        assert!(asks(&w, v6, tcp(443, ACK)).is_ok());
        w.ct_config.epoch += 1;
        assert_eq!(asks(&w, v6, tcp(443, ACK)), Err(D::PolicyIngress));
        assert_eq!(answers(&w, v6, client(v6), frame::tcp(443, 40_000, ACK, b"")), Err(D::PolicyIngress));
        assert!(from_far(&w, v6, pod(v6, 1, 1), tcp(443, ACK)).is_ok());
    }
}

/// An ICMP error that quotes this packet.
fn error(v6: bool, (src, dst): (IpAddr, IpAddr), quoted: (u8, Vec<u8>)) -> (u8, Vec<u8>) {
    let quote = Ip::default().packet(src, dst, quoted).1;
    (if v6 { 58 } else { 1 }, [&[if v6 { 1 } else { 3 }, 0, 0, 0, 0, 0, 0, 0][..], &quote].concat())
}

#[test]
fn errors_about_a_flow_pass_with_it_and_others_are_judged() {
    for v6 in [false, true] {
        let mut w = isolated();
        let (srv, far) = (server(v6), pod(v6, 1, 1));
        assert!(from_far(&w, v6, far, tcp(443, SYN)).is_ok());
        assert!(answers(&w, v6, far, frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
        let about_it = || error(v6, (srv, far), frame::tcp(443, 40_000, ACK, b""));
        let about_another = error(v6, (srv, far), frame::tcp(443, 40_001, ACK, b""));
        assert!(from_far(&w, v6, far, about_it()).is_ok());
        assert_eq!(from_far(&w, v6, far, about_another), Err(D::PolicyIngress));
        // Whoever is on the way may say it, if it is nobody whom policy keeps out here.
        assert!(from_far(&w, v6, pod(v6, 1, 7), about_it()).is_ok());
        // It is judged with its flow, also where it is the first to be met by another policy.
        w.ct_config.epoch += 1;
        assert!(from_far(&w, v6, far, about_it()).is_ok());
        w.policy.peers.remove(&(IN, FAR));
        assert_eq!(from_far(&w, v6, far, about_it()), Err(D::PolicyIngress));
    }
}

#[test]
fn errors_of_a_pod_count_only_about_what_was_sent_to_it() {
    for v6 in [false, true] {
        let mut w = isolated();
        let (me, srv, far) = (client(v6), server(v6), pod(v6, 1, 1));
        w.policy.peers.remove(&(IN, CLIENT));
        assert!(from_far(&w, v6, far, tcp(443, SYN)).is_ok());
        assert!(answers(&w, v6, far, frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
        let quote = frame::tcp(443, 40_000, ACK, b"");
        // Another pod's flow, and none at all.
        assert_eq!(asks(&w, v6, error(v6, (srv, far), quote.clone())), Err(D::PolicyIngress));
        assert_eq!(asks(&w, v6, error(v6, (srv, me), quote)), Err(D::PolicyIngress));
    }
}

#[test]
fn what_the_node_has_opened_goes_on_whoever_of_both_meets_another_policy_first() {
    for v6 in [false, true] {
        for first in [true, false] {
            let mut w = isolated();
            let node = underlay(v6, 0);
            let by_stack = |w: &Fake, l4| {
                run(w, Point::FromHost, frame::eth(Mac::WEFT, Mac::WEFT, Ip::default().packet(node, server(v6), l4)))
            };
            assert!(by_stack(&w, tcp(80, SYN)).is_ok());
            assert!(answers(&w, v6, node, frame::tcp(80, 40_000, SYN_ACK, b"")).is_ok());
            w.ct_config.epoch += 1;
            if first {
                let refused = error(v6, (node, server(v6)), tcp(80, ACK));
                assert!(answers(&w, v6, node, refused).is_ok());
                assert!(answers(&w, v6, node, frame::tcp(80, 40_000, ACK, b"")).is_ok());
            }
            assert!(by_stack(&w, tcp(80, ACK)).is_ok());
        }
    }
}

#[test]
fn a_later_fragment_is_judged_with_its_first_and_dropped_without() {
    for v6 in [false, true] {
        let mut w = isolated();
        let key = RuleKey { rules: RULES, proto: UDP, port: 53_u16.to_be_bytes(), pad: 0 };
        w.policy.rules.push((RULE_PORT_BITS, key, Rule { verdict: VERDICT_ALLOW, cookie: 9 }));
        let part = |frag: u16, field: [u8; 2], body: &[u8]| {
            let [a, b] = field;
            let extensions = if v6 { vec![(44, vec![0, 0, a, b, 0, 0, 0, 9])] } else { Vec::new() };
            let ip = Ip { frag, extensions, ..Ip::default() };
            let packet = ip.packet(client(v6), world::server(v6), (UDP, body.to_vec()));
            run(&w, Point::FromPod, frame::eth(CLIENT_MAC, Mac::WEFT, packet))
        };
        let later = || part(2, [0, 16], &[7; 16]);
        assert_eq!(later(), Err(D::FragmentOrder));
        assert!(part(0x2000, [0, 1], &frame::udp(4000, 53, &[7; 8]).1).is_ok());
        assert!(later().is_ok());
        // Who is isolated for what comes in may send one of which nothing is known.
        let out = Ip {
            frag: 2,
            extensions: if v6 { vec![(44, vec![0, 0, 0, 16, 0, 0, 0, 8])] } else { Vec::new() },
            ..Ip::default()
        };
        let packet = out.packet(server(v6), client(v6), (UDP, vec![7; 16]));
        assert!(as_server(&w, frame::eth(SERVER_MAC, Mac::WEFT, packet)).is_ok());
    }
}

/// The server's policies know pods of this label class on node 1, as who may, and of another, as who may not.
fn classes(w: &mut Fake, v6: bool) -> (u32, u32) {
    let (friend, stranger) = (0x12_3456, 0x12_3457);
    let (addr, bits) = match pod(v6, 1, 0) {
        IpAddr::V4(a) => (Ip6::mapped(a.into()), 96 + 24),
        IpAddr::V6(a) => (a.into(), 64),
    };
    for (class, identity) in [(friend, FAR), (stranger, 79)] {
        w.policy.senders.push((SENDER_BITS + bits, SenderKey { node: 1, class, addr }, identity));
    }
    (friend, stranger)
}

#[test]
fn a_new_pods_first_packet_is_judged_by_the_label_class_that_the_tunnel_names() {
    let into_server = Ok(Verdict::Peer(SERVER_IFINDEX));
    for (v6, outer6) in [(false, false), (false, true), (true, false), (true, true)] {
        for way in [named, overlaid] {
            let mut w = isolated();
            let (friend, stranger) = classes(&mut w, v6);
            let (new, known) = (pod(v6, 1, 9), pod(v6, 1, 1));
            assert_eq!(way(&w, v6, outer6, new, 0, tcp(443, SYN)), Err(D::PolicyUnknown));
            assert_eq!(way(&w, v6, outer6, new, 99, tcp(443, SYN)), Err(D::PolicyUnknown), "a class of nobody's");
            assert_eq!(way(&w, v6, outer6, new, stranger, tcp(443, SYN)), Err(D::PolicyIngress));
            assert_eq!(w.policy.told.get().blame.class, stranger, "the event says who it was");
            assert_eq!(way(&w, v6, outer6, new, friend, tcp(444, SYN)), Err(D::PolicyIngress));
            assert_eq!(way(&w, v6, outer6, new, friend, tcp(443, SYN)), into_server);
            // Of another node's pods nobody can say that he is one.
            assert_eq!(way(&w, v6, outer6, pod(v6, 2, 9), friend, tcp(443, SYN)), Err(D::InnerSource));
            // An address that another pod had before.
            assert_eq!(way(&w, v6, outer6, known, stranger, frame::tcp(41_000, 443, SYN, b"")), Err(D::PolicyIngress));
            assert_eq!(way(&w, v6, outer6, known, 99, frame::tcp(41_000, 443, SYN, b"")), into_server);
        }
    }
}

#[test]
fn a_flow_that_was_judged_by_a_label_class_goes_on_before_its_address_is_known_and_after() {
    for v6 in [false, true] {
        for first in ["opener", "answer"] {
            let mut w = isolated();
            let (friend, _) = classes(&mut w, v6);
            let new = pod(v6, 1, 9);
            let forth = |w: &Fake| named(w, v6, false, new, friend, tcp(443, ACK));
            let back = |w: &Fake| answers(w, v6, new, frame::tcp(443, 40_000, ACK, b""));
            assert!(named(&w, v6, false, new, friend, tcp(443, SYN)).is_ok());
            assert!(answers(&w, v6, new, frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
            let goes_on = |w: &Fake| match first {
                "answer" => back(w).is_ok() && forth(w).is_ok(),
                _ => forth(w).is_ok() && back(w).is_ok(),
            };
            // Some other policy has changed: each direction is judged again, by who met it first.
            w.ct_config.epoch += 1;
            assert!(goes_on(&w), "{first}, v6: {v6}");
            // Its error, too.
            let about_it = error(v6, (server(v6), new), frame::tcp(443, 40_000, ACK, b""));
            w.ct_config.epoch += 1;
            assert!(named(&w, v6, false, pod(v6, 1, 7), 0, about_it).is_ok());
            // The address comes, and the class stays or goes.
            hold(&mut w, new, FAR, friend);
            w.ct_config.epoch += 1;
            assert!(goes_on(&w));
            w.policy.senders.clear();
            w.ct_config.epoch += 1;
            assert!(goes_on(&w));
            // Revoked, it is cut in either direction.
            w.policy.peers.remove(&(IN, FAR));
            w.ct_config.epoch += 1;
            assert_eq!(back(&w), Err(D::PolicyIngress));
            assert_eq!(forth(&w), Err(D::PolicyIngress));
        }
    }
}
