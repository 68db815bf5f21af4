//! Packets through the programs' logic at pods that policies isolate.
use std::net::IpAddr;

use cni_common::{
    drop::Point,
    net::Mac,
    policy::{RULE_PORT_BITS, RULES_ALLOW_ALL, RULES_FIRST, Rule, RuleKey, VERDICT_ALLOW},
    wire::{TCP, UDP},
};

use crate::{
    DropReason as D, Res, Verdict, decap,
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        nat::addr,
        world::{self, *},
    },
    flow,
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
            match a {
                IpAddr::V4(_) => w.policy.identities4.insert(addr(a), identity),
                IpAddr::V6(_) => w.policy.identities6.insert(addr(a), identity),
            };
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
/// The server to somebody: the frame comes in by its device.
fn answers(w: &Fake, v6: bool, dst: IpAddr, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    let mut w = w.clone();
    let ep = w.endpoints.get_mut(&CLIENT_IFINDEX).expect("is there");
    (ep.id, ep.mac, ep.addr4, ep.addr6) = (12, SERVER_MAC, addr(server(false)), addr(server(true)));
    (ep.set_in, ep.set_out) = (IN, 0);
    run(&w, Point::FromPod, frame::eth(SERVER_MAC, Mac::WEFT, Ip::default().packet(server(v6), dst, l4)))
}
/// Pod 1 of another node to the server, through the tunnel.
fn from_far(w: &Fake, v6: bool, src: IpAddr, l4: (u8, Vec<u8>)) -> Res<Verdict> {
    let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, Ip::default().packet(src, server(v6), l4));
    let outer = Ip::default().packet(underlay(false, 1), underlay(false, 0), frame::vxlan(PORT, 0, &inner));
    run(w, Point::FromNetdev, frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer))
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
        match server(v6) {
            IpAddr::V4(_) => w.policy.identities4.insert(addr(server(v6)), 72),
            IpAddr::V6(_) => w.policy.identities6.insert(addr(server(v6)), 72),
        };
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

#[test]
fn errors_about_a_flow_pass_with_it_and_others_are_judged() {
    for v6 in [false, true] {
        let w = isolated();
        assert!(from_far(&w, v6, pod(v6, 1, 1), tcp(443, SYN)).is_ok());
        assert!(answers(&w, v6, pod(v6, 1, 1), frame::tcp(443, 40_000, SYN_ACK, b"")).is_ok());
        let error = |quoted: (u8, Vec<u8>)| {
            let quote = Ip::default().packet(server(v6), pod(v6, 1, 1), quoted).1;
            (if v6 { 58 } else { 1 }, [&[if v6 { 1 } else { 3 }, 0, 0, 0, 0, 0, 0, 0][..], &quote].concat())
        };
        let about_it = error(frame::tcp(443, 40_000, ACK, b""));
        assert!(from_far(&w, v6, pod(v6, 1, 1), about_it).is_ok());
        let about_another = error(frame::tcp(443, 40_001, ACK, b""));
        assert_eq!(from_far(&w, v6, pod(v6, 1, 1), about_another), Err(D::PolicyIngress));
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
    }
}
