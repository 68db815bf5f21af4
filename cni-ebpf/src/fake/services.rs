//! Pods behind Services that the node's stack translates: questions come out of it, so answers must go back there.
use std::net::IpAddr;

use bytemuck::Zeroable;
use cni_common::{
    drop::Point,
    maps::Endpoint,
    net::Mac,
    wire::{ICMP, ICMP6, MARK_ANSWER},
};

use super::{
    Fake, Frame,
    frame::{self, Ip},
    nat::addr,
    policy::isolate,
    world::*,
};
use crate::{DropReason as D, Res, Verdict, decap, flow, packet::TunnelEnd};

/// Also the server can send.
fn with_server(mut w: Fake) -> Fake {
    let of_server = Endpoint {
        addr4: addr(server(false)),
        addr6: addr(server(true)),
        id: 12,
        mac: SERVER_MAC,
        ..Endpoint::zeroed()
    };
    w.endpoints.insert(SERVER_IFINDEX, of_server);
    w
}

/// A packet, by the program that meets it.
fn run(w: &Fake, point: Point, src: IpAddr, dst: IpAddr, body: (u8, Vec<u8>)) -> (Res<Verdict>, Frame) {
    let inner = Ip::default().packet(src, dst, body);
    let (mac, ifindex) =
        if src == server(src.is_ipv6()) { (SERVER_MAC, SERVER_IFINDEX) } else { (CLIENT_MAC, CLIENT_IFINDEX) };
    let data = match point {
        Point::FromPod => frame::eth(mac, Mac::WEFT, inner),
        Point::FromHost | Point::FromOverlay => frame::eth(Mac::WEFT, Mac::WEFT, inner),
        Point::FromNetdev => {
            let vxlan = frame::vxlan(PORT, 0, &frame::eth(Mac::OVERLAY, Mac::WEFT, inner));
            frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, Ip::default().packet(underlay(false, 1), underlay(false, 0), vxlan))
        }
    };
    let mut f = Frame::new(data, ifindex);
    let r = match point {
        Point::FromPod => flow::from_pod(&mut f, w),
        Point::FromHost => flow::from_host(&mut f, w),
        Point::FromNetdev => decap::from_netdev(&mut f, w),
        Point::FromOverlay => {
            f.tunnel = Some(TunnelEnd::V4(addr(underlay(false, 1))));
            decap::from_overlay(&mut f, w)
        }
    };
    (r, f)
}

fn from_stack(src: IpAddr, dst: IpAddr, body: (u8, Vec<u8>)) -> Frame {
    Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, Ip::default().packet(src, dst, body)), 1)
}

const CLIENTS: Res<Verdict> = Ok(Verdict::Peer(CLIENT_IFINDEX));
const SERVERS: Res<Verdict> = Ok(Verdict::Peer(SERVER_IFINDEX));
const HOST: Res<Verdict> = Ok(Verdict::Host);

#[test]
fn a_pod_that_was_asked_out_of_the_stack_answers_into_it_and_one_that_was_asked_straight_does_not() {
    for v6 in [false, true] {
        let w = with_server(world());
        let (c, s) = (client(v6), server(v6));
        let (question, answer) = (|| frame::udp(4000, 53, b"who"), || frame::udp(53, 4000, b"me"));
        assert_eq!(run(&w, Point::FromPod, c, service(v6), frame::udp(4000, 53, b"who")).0, HOST);
        assert_eq!(run(&w, Point::FromHost, c, s, question()).0, SERVERS);
        let (r, f) = run(&w, Point::FromPod, s, c, answer());
        assert_eq!(r, HOST);
        assert_eq!(f.data[..6], Mac::WEFT.bytes, "the stack takes it by the device's MAC");
        // The stack gives it the Service's address.
        assert_eq!(run(&w, Point::FromHost, service(v6), c, answer()).0, CLIENTS);
        // From now on the table that forgets nothing has the flow.
        assert_eq!(run(&w, Point::FromPod, s, c, answer()).0, HOST);
        // The last question says where the answer belongs.
        assert_eq!(run(&w, Point::FromPod, c, s, question()).0, SERVERS);
        assert_eq!(run(&w, Point::FromPod, s, c, answer()).0, CLIENTS);
        assert_eq!(run(&w, Point::FromHost, c, s, question()).0, SERVERS);
        assert_eq!(run(&w, Point::FromPod, s, c, answer()).0, HOST);
    }
}

#[test]
fn what_answers_from_another_node_goes_to_the_stack_that_has_translated_the_question() {
    for v6 in [false, true] {
        let w = with_server(world());
        let (c, far) = (client(v6), pod(v6, 1, 1));
        let (r, f) = run(&w, Point::FromHost, c, far, frame::tcp(4000, 80, 2, &[]));
        assert!(matches!(r, Ok(Verdict::Device(UNDERLAY_IFINDEX))), "{r:?}");
        // VXLAN ends with the VNI, which names the asking pod's label class.
        assert_eq!(f.data[46..49], CLIENT_VNI.to_be_bytes()[1..]);
        for point in [Point::FromNetdev, Point::FromOverlay] {
            let (r, f) = run(&w, point, far, c, frame::tcp(80, 4000, 0x12, &[]));
            assert_eq!(r, HOST, "{point:?}");
            assert_eq!(f.data[..6], Mac::WEFT.bytes);
            // Another one of its flows goes on as ever.
            assert_eq!(run(&w, point, far, c, frame::tcp(81, 4000, 2, &[])).0, CLIENTS);
        }
    }
}

#[test]
fn errors_about_a_translated_flow_go_to_the_stack_as_well() {
    for v6 in [false, true] {
        for isolated in [false, true] {
            let mut w = with_server(world());
            if isolated {
                isolate(&mut w);
            }
            let (c, s) = (client(v6), server(v6));
            let question = frame::udp(4000, 53, b"who");
            let quote = Ip::default().packet(c, s, question.clone());
            let error = || {
                let (proto, kind) = if v6 { (ICMP6, [1, 4]) } else { (ICMP, [3, 3]) };
                (proto, [&kind[..], &[0; 6], &quote.1].concat())
            };
            assert_eq!(run(&w, Point::FromPod, c, s, question.clone()).0, SERVERS);
            assert_eq!(run(&w, Point::FromPod, s, c, error()).0, CLIENTS);
            assert_eq!(run(&w, Point::FromHost, c, s, question).0, SERVERS);
            assert_eq!(run(&w, Point::FromPod, s, c, error()).0, HOST, "isolated: {isolated}");
        }
    }
}

#[test]
fn whom_the_stack_has_chosen_is_judged_and_not_the_services_address() {
    for v6 in [false, true] {
        let mut w = with_server(world());
        isolate(&mut w);
        let (c, s, far) = (client(v6), server(v6), pod(v6, 1, 1));
        let tcp = |to| frame::tcp(4000, to, 2, &[]);
        assert_eq!(run(&w, Point::FromPod, c, service(v6), tcp(7)).0, HOST);
        // The client's egress allows the server on 80, and its ingress too; on 443 only the former, on 81 neither.
        assert_eq!(run(&w, Point::FromHost, c, s, tcp(80)).0, SERVERS);
        assert_eq!(run(&w, Point::FromHost, c, s, tcp(443)).0, Err(D::PolicyIngress));
        assert_eq!(run(&w, Point::FromHost, c, s, tcp(81)).0, Err(D::PolicyEgress));
        let (r, f) = run(&w, Point::FromPod, s, c, frame::tcp(80, 4000, 0x12, &[]));
        assert_eq!((r, f.mark), (HOST, MARK_ANSWER));
        // Until a judged pod has answered, what comes in its place is of somebody else: the node, or who is outside.
        let answer = || frame::tcp(7, 4000, 0x12, &[]);
        assert_eq!(run(&w, Point::FromHost, service(v6), c, answer()).0, Err(D::PolicyEgress));
        let mut marked = Frame { mark: f.mark | 1, ..from_stack(service(v6), c, answer()) };
        assert_eq!((flow::from_host(&mut marked, &w), marked.mark), (CLIENTS, 1));
        assert_eq!(run(&w, Point::FromHost, service(v6), c, answer()).0, CLIENTS);
        // Another policy is obeyed from the next packet on.
        w.ct_config.epoch += 1;
        assert_eq!(run(&w, Point::FromHost, service(v6), c, answer()).0, Err(D::PolicyEgress));
        assert_eq!(run(&w, Point::FromPod, c, service(v6), frame::tcp(4000, 7, 0x10, &[])).0, HOST);
        assert_eq!(run(&w, Point::FromHost, service(v6), c, answer()).0, Err(D::PolicyEgress));
        // A backend elsewhere is judged by the client's policy here, and by its own there.
        assert!(matches!(run(&w, Point::FromHost, c, far, tcp(9)).0, Ok(Verdict::Device(_))));
        assert_eq!(run(&w, Point::FromHost, c, pod(v6, 2, 1), tcp(9)).0, Err(D::PolicyUnknown));
        // What nothing translates ends here.
        assert_eq!(run(&w, Point::FromHost, c, service(v6), tcp(7)).0, Err(D::NoService));
        // An address that only looks like a Service's.
        assert_eq!(run(&w, Point::FromPod, c, outside(v6), frame::udp(4000, 53, b"x")).0, Err(D::PolicyEgress));
    }
}

#[test]
fn who_is_outside_cannot_turn_a_pods_flow_away_from_its_way() {
    for v6 in [false, true] {
        let w = with_server(world());
        let (c, far) = (client(v6), pod(v6, 1, 1));
        let to_far = || frame::udp(4000, 53, b"who");
        assert!(matches!(run(&w, Point::FromPod, c, far, to_far()).0, Ok(Verdict::Device(_))));
        // Under the other pod's address, forwarded by the stack.
        assert_eq!(run(&w, Point::FromHost, far, c, frame::udp(53, 4000, b"false")).0, CLIENTS);
        assert!(matches!(run(&w, Point::FromPod, c, far, to_far()).0, Ok(Verdict::Device(_))));
    }
}
