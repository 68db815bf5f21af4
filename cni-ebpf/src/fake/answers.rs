//! What is answered: ICMP errors about drops, ARP and neighbour discovery; and what is left to the kernel's own device.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_common::{
    drop::Point,
    net::{GATEWAY4, GATEWAY6, Mac},
    wire::*,
};
use proptest::prelude::*;

use super::{
    Fake, Frame,
    corpus::{self, Rng},
    frame::{self, Ip, checksum},
    world::*,
};
use crate::{DropReason as D, Verdict, decap, flow, icmp, packet::TunnelEnd};

fn gateway(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from(GATEWAY6).into() } else { Ipv4Addr::from(GATEWAY4).into() }
}
/// From the client, dropped, and perhaps answered.
fn dropped(w: &Fake, data: Vec<u8>) -> (D, Option<Verdict>, Frame) {
    let mut f = Frame::new(data, CLIENT_IFINDEX);
    let reason = flow::from_pod(&mut f, w).expect_err("a drop");
    let answer = icmp::answer(&mut f, w, Point::FromPod, reason);
    (reason, answer, f)
}
fn sent(ip: &Ip, dst: IpAddr, body: (u8, Vec<u8>)) -> Vec<u8> {
    frame::eth(CLIENT_MAC, Mac::WEFT, ip.packet(client(dst.is_ipv6()), dst, body))
}

/// Source, destination, type, code and the four bytes behind the checksum of an ICMP message whose checksums are right.
fn read(f: &Frame) -> (IpAddr, IpAddr, u8, u8, u32, Vec<u8>) {
    let ip = &f.data[14..];
    let (src, dst, body): (IpAddr, IpAddr, &[u8]) = if f.data[12..14] == [0x08, 0x00] {
        assert_eq!(checksum(&ip[..20]), 0, "the header's checksum");
        assert_eq!((usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip[9]), (ip.len(), ICMP));
        let a = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("four bytes"));
        assert_eq!(checksum(&ip[20..]), 0, "the message's checksum");
        (a(12).into(), a(16).into(), &ip[20..])
    } else {
        assert_eq!((usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip[6]), (ip.len() - 40, ICMP6));
        let a = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes"));
        let pseudo = [&ip[8..40], &((ip.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, ICMP6], &ip[40..]].concat();
        assert_eq!(checksum(&pseudo), 0, "the message's checksum, with its pseudo header");
        (a(8).into(), a(24).into(), &ip[40..])
    };
    let rest = u32::from_be_bytes(body[4..8].try_into().expect("four bytes"));
    (src, dst, body[0], body[1], rest, body[8..].to_vec())
}

#[test]
fn who_sent_too_much_hears_from_the_node_how_much_it_may_be() {
    for (v6, node) in [(false, NODE_V4), (true, NODE_V4), (false, NODE_V6), (true, NODE_V6)] {
        let dst = pod(v6, node as u8, 1);
        // With DF or without.
        let frag = if node == NODE_V4 { 0x4000 } else { 0 };
        let data = sent(&Ip { frag, ..Ip::default() }, dst, frame::udp(4000, 53, &[7; 1480]));
        let (reason, answer, f) = dropped(&world(), data.clone());
        assert_eq!((reason, answer), (D::TooBig, Some(Verdict::Answer(CLIENT_IFINDEX))));
        assert_eq!(f.data[..12], [CLIENT_MAC.bytes, Mac::WEFT.bytes].concat());
        assert!(f.this_host);
        let (src, to, kind, code, mtu, quote) = read(&f);
        assert_eq!((src, to), (underlay(v6, 0), client(v6)));
        assert_eq!((kind, code), if v6 { (2, 0) } else { (3, 4) });
        assert_eq!(mtu, if node == NODE_V4 { 1450 } else { 1430 });
        // All but the hop that the packet has lost.
        let skip = if v6 { 8 } else { 12 };
        assert_eq!((quote.len(), &quote[skip..]), (128, &data[14 + skip..14 + 128]));
    }
}

#[test]
fn a_traceroute_hears_from_the_node() {
    for v6 in [false, true] {
        for dst in [server(v6), pod(v6, 1, 1)] {
            // The shortest question there is, one whose length is odd, and one with everything.
            for body in [frame::ping(v6), frame::udp(33434, 33435, b"x"), frame::tcp(1, 2, 2, &[0; 300])] {
                let (reason, answer, f) = dropped(&world(), sent(&Ip { ttl: 1, ..Ip::default() }, dst, body));
                assert_eq!((reason, answer), (D::TtlExceeded, Some(Verdict::Answer(CLIENT_IFINDEX))));
                let (src, to, kind, code, rest, _) = read(&f);
                assert_eq!((src, to), (underlay(v6, 0), client(v6)));
                assert_eq!((kind, code, rest), (if v6 { 3 } else { 11 }, 0, 0));
            }
        }
    }
}

#[test]
fn a_node_without_an_address_of_the_family_answers_as_the_gateway() {
    for v6 in [false, true] {
        let mut w = world();
        let c = w.config.as_mut().expect("is there");
        (c.node4, c.node6) = (bytemuck::Zeroable::zeroed(), bytemuck::Zeroable::zeroed());
        let (_, answer, f) = dropped(&w, sent(&Ip { ttl: 1, ..Ip::default() }, server(v6), frame::ping(v6)));
        assert!(answer.is_some());
        assert_eq!(read(&f).0, gateway(v6));
    }
}

#[test]
fn errors_and_later_fragments_and_what_is_over_the_limit_are_dropped_without_a_word() {
    let late = Ip { ttl: 1, frag: 0x0009, ..Ip::default() };
    let last_hop = Ip { ttl: 1, ..Ip::default() };
    let errors_of = |v6: bool, kind: u8| {
        let proto = if v6 { ICMP6 } else { ICMP };
        sent(&last_hop, server(v6), (proto, vec![kind, 0, 0, 0, 0, 0, 0, 0]))
    };
    for data in [
        sent(&late, server(false), frame::udp(1, 2, b"x")),
        errors_of(false, 3),
        errors_of(false, 11),
        errors_of(true, 1),
        errors_of(true, 3),
        errors_of(true, 137),
    ] {
        assert_eq!(dropped(&world(), data).1, None);
    }
    assert!(dropped(&world(), errors_of(false, 8)).1.is_some(), "a question is answered");
    let w = world();
    w.answers.set(2);
    let answered = (0..5).filter(|_| dropped(&w, errors_of(true, 128)).1.is_some()).count();
    assert_eq!(answered, 2);
}

#[test]
fn no_other_drop_is_answered() {
    let mut f = Frame::new(sent(&Ip::default(), server(false), frame::ping(false)), CLIENT_IFINDEX);
    for reason in D::ALL.iter().filter(|r| !matches!(r, D::TooBig | D::TtlExceeded)) {
        assert_eq!(icmp::answer(&mut f, &world(), Point::FromPod, *reason), None);
    }
}

#[test]
fn the_stack_hears_under_an_address_that_lies_behind_weft_host_and_a_pod_at_once() {
    for v6 in [false, true] {
        let dst = pod(v6, 1, 1);
        for (src, mac, want) in
            [(underlay(v6, 0), Mac::WEFT, Verdict::Host), (server(v6), SERVER_MAC, Verdict::Answer(SERVER_IFINDEX))]
        {
            let packet = Ip::default().packet(src, dst, frame::udp(1, 2, &[0; 1480]));
            let mut f = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 9);
            assert_eq!(flow::from_host(&mut f, &world()), Err(D::TooBig));
            assert_eq!(icmp::answer(&mut f, &world(), Point::FromHost, D::TooBig), Some(want));
            assert_eq!(f.data[..6], mac.bytes);
            let (from, to, ..) = read(&f);
            assert_eq!((from, to), (dst, src));
        }
    }
}

#[test]
fn a_source_that_the_other_node_would_refuse_is_refused_here() {
    for v6 in [false, true] {
        let run = |src: IpAddr, dst: IpAddr| {
            let packet = Ip::default().packet(src, dst, frame::udp(1, 2, b"x"));
            flow::from_host(&mut Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 9), &world())
        };
        let far = pod(v6, 1, 1);
        assert_eq!(run(underlay(v6, 0), far), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        assert_eq!(run(client(v6), far), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        assert_eq!(run(outside(v6), far), Err(D::ForeignSource));
        assert_eq!(run(outside(v6), server(v6)), Ok(Verdict::Peer(SERVER_IFINDEX)), "a pod here may hear from anybody");
    }
    let packet = Ip::default().packet(Ipv4Addr::from(second_own()).into(), pod(false, 1, 1), frame::udp(1, 2, b"x"));
    let mut f = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 9);
    assert_eq!(flow::from_host(&mut f, &world()), Err(D::ForeignSource), "own, but in no Node object");
}

#[test]
fn what_is_a_tunnels_already_or_has_no_ethernet_way_goes_by_the_kernels_device() {
    for v6 in [false, true] {
        let ip = Ip { tos: 0xbb, ..Ip::default() };
        for (node, encapsulated) in [(NODE_V4, true), (NODE_V6, true), (NODE_BY_STACK, false)] {
            let data = sent(&ip, pod(v6, node as u8, 1), frame::udp(1, 2, b"x"));
            let mut f = Frame { encapsulated, ..Frame::new(data.clone(), CLIENT_IFINDEX) };
            assert_eq!(flow::from_pod(&mut f, &world()), Ok(Verdict::Overlay(VXLAN_IFINDEX)));
            let end = match underlay(node != NODE_V4, node as u8) {
                IpAddr::V4(a) => TunnelEnd::V4(a.into()),
                IpAddr::V6(a) => TunnelEnd::V6(a.into()),
            };
            assert_eq!(f.tunnel_out, Some((end, CLIENT_VNI, 0xb8)));
            assert_eq!((f.data.len(), &f.data[..6]), (data.len(), &Mac::WEFT.bytes[..]));
            assert_eq!(f.data[6..12], Mac::OVERLAY.bytes);
        }
    }
}

#[test]
fn a_tunnel_in_the_tunnel_is_not_opened() {
    let tunnel = Some(TunnelEnd::V4(match underlay(false, 1) {
        IpAddr::V4(a) => a.into(),
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    }));
    let packet = Ip::default().packet(pod(false, 1, 1), underlay(false, 0), frame::udp(1, PORT, b"x"));
    let mut f = Frame { tunnel, ..Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 4) };
    assert_eq!(decap::from_overlay(&mut f, &world()), Err(D::TunnelPort));
}

#[test]
fn addresses_that_are_never_forwarded_stay_in_the_pod() {
    for dst in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.1.1", "::", "::1", "fe80::1", "fe80::1234", "febf::1"] {
        let dst: IpAddr = dst.parse().expect("an address");
        let (reason, answer, _) = dropped(&world(), sent(&Ip::default(), dst, frame::ping(dst.is_ipv6())));
        assert_eq!((reason, answer), (D::Unroutable, None), "{dst}");
    }
    // The cloud's metadata service is for the stack.
    for dst in ["169.254.169.254", "fec0::1", "::2"] {
        let dst: IpAddr = dst.parse().expect("an address");
        let mut f = Frame::new(sent(&Ip::default(), dst, frame::ping(dst.is_ipv6())), CLIENT_IFINDEX);
        assert_eq!(flow::from_pod(&mut f, &world()), Ok(Verdict::Host), "{dst}");
    }
}

const ME4: [u8; 4] = [10, 244, 0, 11];
fn me6() -> Ipv6Addr {
    match client(true) {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => unreachable!("asked for IPv6"),
    }
}
fn ask(data: Vec<u8>) -> (Result<Verdict, D>, Frame) {
    let mut f = Frame::new(data, CLIENT_IFINDEX);
    (flow::from_pod(&mut f, &world()), f)
}

#[test]
fn arp_for_the_gateway_is_answered_and_no_other() {
    let (verdict, f) = ask(frame::arp(1, CLIENT_MAC, ME4, GATEWAY4.bytes));
    assert_eq!(verdict, Ok(Verdict::Answer(CLIENT_IFINDEX)));
    let mut want = frame::arp(2, Mac::WEFT, GATEWAY4.bytes, ME4);
    want[..6].copy_from_slice(&CLIENT_MAC.bytes);
    want[32..38].copy_from_slice(&CLIENT_MAC.bytes);
    assert_eq!(f.data, want);
    // A confirmation comes to the gateway's MAC.
    let mut unicast = frame::arp(1, CLIENT_MAC, ME4, GATEWAY4.bytes);
    unicast[..6].copy_from_slice(&Mac::WEFT.bytes);
    assert_eq!(ask(unicast).0, Ok(Verdict::Answer(CLIENT_IFINDEX)));
    for (op, sender, target) in [
        (1, ME4, [10, 244, 0, 12]),
        (1, [0; 4], GATEWAY4.bytes),
        (1, [10, 244, 0, 12], GATEWAY4.bytes),
        (1, ME4, ME4),
        (2, ME4, GATEWAY4.bytes),
    ] {
        assert_eq!(ask(frame::arp(op, CLIENT_MAC, sender, target)).0, Err(D::NotGateway), "{op} {sender:?} {target:?}");
    }
    // Another MAC inside than outside.
    let mut forged = frame::arp(1, SERVER_MAC, ME4, GATEWAY4.bytes);
    forged[6..12].copy_from_slice(&CLIENT_MAC.bytes);
    assert_eq!(ask(forged).0, Err(D::NotGateway));
}

#[test]
fn solicitations_of_the_gateway_are_answered_and_no_other() {
    let gateway = Ipv6Addr::from(GATEWAY6);
    let group = frame::solicitation(CLIENT_MAC, me6(), gateway, 255);
    let mut unicast = group.clone();
    unicast[..6].copy_from_slice(&Mac::WEFT.bytes);
    unicast[38..54].copy_from_slice(&gateway.octets());
    // Without the option with the sender's MAC the answer is longer than the question.
    let mut short = unicast.clone();
    short.truncate(78);
    short[18..20].copy_from_slice(&[0, 24]);
    for question in [group.clone(), unicast, short] {
        let (verdict, f) = ask(question);
        assert_eq!(verdict, Ok(Verdict::Answer(CLIENT_IFINDEX)));
        let (src, to, kind, code, flags, rest) = read(&f);
        assert_eq!((src, to, kind, code, flags), (gateway.into(), client(true), 136, 0, 0xe000_0000));
        assert_eq!(rest, [&gateway.octets()[..], &[2, 1], &Mac::WEFT.bytes].concat());
        assert_eq!((&f.data[..6], f.data[21], f.this_host), (&CLIENT_MAC.bytes[..], 255, true));
    }
    let other: Ipv6Addr = "fd10:244::c".parse().expect("an address");
    for question in [
        frame::solicitation(CLIENT_MAC, me6(), other, 255),
        frame::solicitation(CLIENT_MAC, Ipv6Addr::UNSPECIFIED, gateway, 255),
        frame::solicitation(CLIENT_MAC, other, gateway, 255),
        frame::solicitation(CLIENT_MAC, me6(), gateway, 64),
    ] {
        assert_eq!(ask(question).0, Err(D::NotGateway));
    }
    let mut advert = group;
    advert[54] = 136;
    assert_eq!(ask(advert).0, Err(D::Multicast));
}

proptest! {
    #[test]
    fn every_answer_is_a_sound_message_to_the_sender(seed in any::<u64>(), host in any::<bool>(), keep in 14usize..200) {
        let point = if host { Point::FromHost } else { Point::FromPod };
        let mut data = corpus::frame(&mut Rng::new(seed), point);
        data.truncate(keep);
        let mut f = Frame::new(data.clone(), CLIENT_IFINDEX);
        let r = if host { flow::from_host(&mut f, &world()) } else { flow::from_pod(&mut f, &world()) };
        let Err(reason) = r else { return Ok(()) };
        if icmp::answer(&mut f, &world(), point, reason).is_some() {
            let source: IpAddr = if data[12..14] == [0x08, 0x00] {
                <[u8; 4]>::try_from(&data[26..30]).expect("four bytes").into()
            } else {
                <[u8; 16]>::try_from(&data[22..38]).expect("sixteen bytes").into()
            };
            prop_assert_eq!(read(&f).1, source);
        }
    }
}
