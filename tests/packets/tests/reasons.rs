//! Every drop has a reason, and here is the packet that provokes it in the loaded program: counted once under program and reason, and told
//! in an event with the right tuple. `Vlan` needs a device (`tagged.rs`), masquerade routes (`masquerade.rs`).
use std::{collections::BTreeSet, net::IpAddr};

use cni_common::{
    drop::{DropReason, Outcome, Point},
    net::Mac,
    wire::UDP,
};
use cni_ebpf::fake::policy;
use packets::{
    frame::{self, Ip},
    kernel::{Kernel, REDIRECT, SHOT},
    world::*,
};

/// A frame, the program it enters, and what becomes of it.
struct Case {
    point: Point,
    reason: DropReason,
    frame: Vec<u8>,
    /// What the event says of source and destination; `None` when no header was read.
    ends: Option<(IpAddr, IpAddr)>,
}

fn case(point: Point, reason: DropReason, frame: Vec<u8>, ends: Option<(IpAddr, IpAddr)>) -> Case {
    Case { point, reason, frame, ends }
}
fn from_client(v6: bool, dst: IpAddr, ip: &Ip, body: (u8, Vec<u8>)) -> Vec<u8> {
    frame::eth(CLIENT_MAC, Mac::WEFT, ip.packet(client(v6), dst, body))
}
fn tunnelled(outer: (IpAddr, IpAddr), inner: (IpAddr, IpAddr), tos: u8) -> Vec<u8> {
    let i = Ip::default().packet(inner.0, inner.1, frame::udp(4000, 53, b"question"));
    let body = frame::vxlan(PORT, 5, &frame::eth(Mac::WEFT, Mac::WEFT, i));
    frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, Ip { tos, ..Ip::default() }.packet(outer.0, outer.1, body))
}

fn gateway(v6: bool) -> IpAddr {
    if v6 { "fe80::1" } else { "169.254.1.1" }.parse().expect("an address")
}

fn cases(v6: bool) -> Vec<Case> {
    use DropReason as D;
    use Point::{FromHost, FromNetdev, FromOverlay, FromPod};
    let question = || frame::udp(4000, 53, b"question");
    let plain = Ip::default();
    let (me, srv, far) = (client(v6), server(v6), pod(v6, 1, 1));
    let ours = (underlay(v6, 1), underlay(v6, 0));
    let mut all = vec![
        case(
            FromPod,
            D::SourceMac,
            frame::eth(Mac::new([2; 6]), Mac::WEFT, plain.packet(me, srv, question())),
            Some((me, srv)),
        ),
        case(
            FromPod,
            D::SourceAddress,
            frame::eth(CLIENT_MAC, Mac::WEFT, plain.packet(pod(v6, 0, 99), srv, question())),
            Some((pod(v6, 0, 99), srv)),
        ),
        case(
            FromPod,
            D::Multicast,
            frame::eth(CLIENT_MAC, Mac::new([0xff; 6]), plain.packet(me, srv, question())),
            Some((me, srv)),
        ),
        case(
            FromPod,
            D::TtlExceeded,
            from_client(v6, srv, &Ip { ttl: 1, ..Ip::default() }, question()),
            Some((me, srv)),
        ),
        case(
            FromPod,
            D::TtlExceeded,
            from_client(v6, far, &Ip { ttl: 1, ..Ip::default() }, question()),
            Some((me, far)),
        ),
        case(FromPod, D::TunnelPort, from_client(v6, ours.0, &plain, frame::udp(4000, PORT, b"x")), Some((me, ours.0))),
        case(FromPod, D::TunnelPort, from_client(v6, ours.1, &plain, frame::udp(4000, PORT, b"x")), Some((me, ours.1))),
        case(
            FromPod,
            D::UnknownNode,
            from_client(v6, pod(v6, NODE_EMPTY as u8, 1), &plain, question()),
            Some((me, pod(v6, NODE_EMPTY as u8, 1))),
        ),
        case(FromPod, D::NoPod, from_client(v6, pod(v6, 0, 99), &plain, question()), Some((me, pod(v6, 0, 99)))),
        case(
            FromPod,
            D::TooBig,
            from_client(v6, far, &Ip { frag: 0x4000, ..Ip::default() }, frame::udp(1, 2, &[0; 1450])),
            Some((me, far)),
        ),
        case(FromPod, D::Unroutable, from_client(v6, gateway(v6), &plain, frame::ping(v6)), Some((me, gateway(v6)))),
        case(
            FromHost,
            D::ForeignSource,
            frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(outside(v6), far, question())),
            Some((outside(v6), far)),
        ),
        case(
            FromHost,
            D::TooBig,
            frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(ours.1, far, frame::udp(1, 2, &[0; 1450]))),
            Some((ours.1, far)),
        ),
        case(
            FromNetdev,
            D::HostAddress,
            frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, plain.packet(pod(v6, 0, 77), ours.1, question())),
            Some((pod(v6, 0, 77), ours.1)),
        ),
        case(
            FromHost,
            D::NoPod,
            frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(ours.1, pod(v6, 0, 99), question())),
            Some((ours.1, pod(v6, 0, 99))),
        ),
        case(
            FromHost,
            D::NoService,
            frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(me, service(v6), question())),
            Some((me, service(v6))),
        ),
        case(
            FromHost,
            D::Multicast,
            frame::eth(Mac::WEFT, Mac::new([0xff; 6]), plain.packet(ours.1, srv, question())),
            Some((ours.1, srv)),
        ),
        case(
            FromNetdev,
            D::UnknownNode,
            tunnelled((underlay(v6, 9), ours.1), (far, srv), 0),
            Some((underlay(v6, 9), ours.1)),
        ),
        case(FromNetdev, D::InnerSource, tunnelled(ours, (pod(v6, 2, 1), srv), 0), Some((pod(v6, 2, 1), srv))),
        case(FromNetdev, D::InnerSource, tunnelled(ours, (outside(v6), srv), 0), Some((outside(v6), srv))),
        case(FromNetdev, D::EcnNotCapable, tunnelled(ours, (far, srv), 3), Some((far, srv))),
        case(
            FromNetdev,
            D::HostAddress,
            frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, plain.packet(ours.1, srv, question())),
            Some((ours.1, srv)),
        ),
        case(
            FromOverlay,
            D::UnknownNode,
            frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(far, srv, question())),
            Some((far, srv)),
        ),
    ];
    // A UDP header of which two bytes are there.
    let mut short = from_client(v6, srv, &plain, (UDP, vec![0; 2]));
    short.truncate(if v6 { 56 } else { 36 });
    all.push(case(FromPod, D::Short, short, Some((me, srv))));
    let mut bad = from_client(v6, srv, &plain, question());
    bad[14] = 0x10;
    all.push(case(FromPod, D::BadHeader, bad, None));
    let mut no_vni = tunnelled(ours, (far, srv), 0);
    no_vni[14 + if v6 { 40 } else { 20 } + 8] = 0;
    all.push(case(FromNetdev, D::BadTunnel, no_vni, Some(ours)));
    let multicast: IpAddr = if v6 { "ff05::1" } else { "239.1.1.1" }.parse().expect("an address");
    all.push(case(FromPod, D::Multicast, from_client(v6, multicast, &plain, question()), Some((me, multicast))));
    if let (IpAddr::V6(unspecified), IpAddr::V6(target)) = ("::".parse().expect("an address"), gateway(v6)) {
        // A probe for duplicates.
        let probe = frame::solicitation(CLIENT_MAC, unspecified, target, 255);
        let group = "ff02::1:ff00:1".parse().expect("an address");
        all.push(case(FromPod, D::NotGateway, probe, Some((unspecified.into(), group))));
    }
    if v6 {
        let extensions = vec![(60, vec![0; 8]); 5];
        all.push(case(
            FromPod,
            D::ExtHdrLimit,
            from_client(v6, srv, &Ip { extensions, ..Ip::default() }, question()),
            None,
        ));
    } else {
        let second = std::net::Ipv4Addr::from(second_own()).into();
        all.push(case(
            FromNetdev,
            D::TunnelAddress,
            tunnelled((ours.0, second), (far, srv), 0),
            Some((ours.0, second)),
        ));
        let mut lldp = from_client(v6, srv, &plain, question());
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        all.push(case(FromPod, D::UnknownL3, lldp, None));
        all.push(case(FromPod, D::NotGateway, frame::arp(1, CLIENT_MAC, [10, 244, 0, 11], [10, 244, 0, 12]), None));
    }
    all
}

/// At pods that are isolated.
fn policy_cases(v6: bool) -> Vec<Case> {
    use DropReason as D;
    use Point::{FromHost, FromNetdev, FromPod};
    let (me, srv, far, stranger) = (client(v6), server(v6), pod(v6, 1, 1), pod(v6, 1, 7));
    let ours = (underlay(v6, 1), underlay(v6, 0));
    let plain = Ip::default();
    let by_stack = |src| frame::eth(Mac::WEFT, Mac::WEFT, plain.packet(src, srv, frame::udp(4000, 53, b"question")));
    let to = |dst, port| from_client(v6, dst, &plain, frame::udp(4000, port, b"question"));
    // A later fragment of a datagram that began elsewhere, to who looks at ports.
    let part = Ip {
        frag: if v6 { 0 } else { 2 },
        extensions: if v6 { vec![(44, vec![0, 0, 0, 16, 0, 0, 0, 9])] } else { Vec::new() },
        ..Ip::default()
    };
    let inner = part.packet(far, srv, (UDP, vec![7; 16]));
    let outer = frame::vxlan(PORT, 5, &frame::eth(Mac::WEFT, Mac::WEFT, inner));
    let fragment = frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, plain.packet(ours.0, ours.1, outer));
    vec![
        case(FromPod, D::PolicyEgress, to(srv, 54), Some((me, srv))),
        case(FromPod, D::PolicyEgress, to(outside(v6), 53), Some((me, outside(v6)))),
        case(FromPod, D::PolicyIngress, from_client(v6, srv, &plain, frame::tcp(1, 443, 2, b"")), Some((me, srv))),
        case(FromPod, D::PolicyUnknown, to(stranger, 53), Some((me, stranger))),
        case(FromHost, D::PolicyIngress, by_stack(outside(v6)), Some((outside(v6), srv))),
        case(FromHost, D::PolicyUnknown, by_stack(stranger), Some((stranger, srv))),
        case(FromNetdev, D::PolicyIngress, tunnelled(ours, (ours.0, srv), 0), Some((ours.0, srv))),
        case(FromNetdev, D::PolicyUnknown, tunnelled(ours, (stranger, srv), 0), Some((stranger, srv))),
        case(FromNetdev, D::FragmentOrder, fragment, Some((far, srv))),
    ]
}

fn provoke(k: &mut Kernel, c: &Case) {
    let what = format!("{:?} in {:?}", c.reason, c.point);
    let ran = k.run(c.point, &c.frame).unwrap_or_else(|e| panic!("{what}: {e}"));
    let drop = (c.point, Err(c.reason));
    if matches!(c.reason, DropReason::TooBig | DropReason::TtlExceeded) {
        let answer = (c.point, Ok(Outcome::Answer));
        assert_eq!((ran.code, ran.counted.as_slice()), (REDIRECT, &[drop, answer][..]), "{what}");
    } else {
        assert_eq!((ran.code, ran.counted.as_slice()), (SHOT, &[drop][..]), "{what}");
    }
    let [e] = ran.events[..] else { panic!("{what}: {} events", ran.events.len()) };
    assert_eq!((e.reason, e.point, e.len), (c.reason as u8, c.point as u8, c.frame.len() as u32), "{what}");
    assert_eq!((e.ifindex, e.endpoint), (CLIENT_IFINDEX, CLIENT_ID), "{what}: the endpoint of the device it came by");
    assert_ne!(e.time, 0, "{what}");
    match c.ends {
        Some((src, dst)) => {
            assert_eq!((e.src.canonical(), e.dst.canonical()), (src, dst), "{what}");
            assert_eq!(e.family, if src.is_ipv4() { 4 } else { 6 }, "{what}");
        }
        None => assert_eq!(e.family, 0, "{what}"),
    }
}

#[test]
fn every_reason_has_a_packet_that_provokes_it() {
    let mut seen = BTreeSet::new();
    let mut k = Kernel::loaded();
    for v6 in [false, true] {
        for c in cases(v6) {
            provoke(&mut k, &c);
            seen.insert(c.reason);
        }
    }
    let mut w = world();
    policy::isolate(&mut w);
    let mut isolated = Kernel::empty();
    packets::fill::fill(isolated.datapath(), &w);
    for v6 in [false, true] {
        for c in policy_cases(v6) {
            provoke(&mut isolated, &c);
            seen.insert(c.reason);
        }
    }
    // Before there is a configuration, or an endpoint.
    let mut empty = Kernel::empty();
    let f = from_client(false, server(false), &Ip::default(), frame::ping(false));
    let ran = empty.run(Point::FromPod, &f).expect("an ordinary frame");
    assert_eq!((ran.code, ran.counted), (SHOT, vec![(Point::FromPod, Err(DropReason::NoConfig))]));
    seen.insert(DropReason::NoConfig);
    let mut w = world();
    w.endpoints.clear();
    let mut k = Kernel::empty();
    packets::fill::fill(k.datapath(), &w);
    let ran = k.run(Point::FromPod, &f).expect("an ordinary frame");
    assert_eq!((ran.code, ran.counted), (SHOT, vec![(Point::FromPod, Err(DropReason::NoEndpoint))]));
    seen.insert(DropReason::NoEndpoint);
    // `tagged.rs` has this one, `masquerade.rs` those below.
    seen.insert(DropReason::Vlan);
    use DropReason as D;
    seen.extend([D::NatExhausted, D::NatFull, D::NatOrphan, D::NatQuota, D::FragmentOrder]);
    // What the kernel makes no room in goes by its own device (next test); that the device's key cannot be set no packet can bring about.
    seen.insert(DropReason::AdjustRoom);
    let missing: Vec<_> = DropReason::ALL.iter().filter(|r| !seen.contains(r)).collect();
    assert!(missing.is_empty(), "no packet provokes {missing:?}");
}

#[test]
fn what_the_kernel_makes_no_room_in_goes_by_its_own_device() {
    let mut k = Kernel::loaded();
    for v6 in [false, true] {
        let f = from_client(v6, pod(v6, 1, 1), &Ip::default(), frame::udp(1, 2, &[0; 1200]));
        // A super-packet of no kind that it knows.
        let ran = k.run_gso(Point::FromPod, &f, 500).expect("an ordinary frame");
        assert_eq!((ran.code, ran.counted), (REDIRECT, vec![(Point::FromPod, Ok(Outcome::Overlay))]));
    }
}

#[test]
fn answers_are_limited_and_what_was_not_answered_is_a_drop_all_the_same() {
    let mut w = world();
    // A second that does not end while the test runs.
    w.config.as_mut().expect("is there").hz = u32::MAX;
    let mut k = Kernel::empty();
    packets::fill::fill(k.datapath(), &w);
    let f = from_client(false, server(false), &Ip { ttl: 1, ..Ip::default() }, frame::ping(false));
    // More than the rate for each CPU that this thread may be moved to.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = cni_common::event::ANSWER_RATE as usize * cpus + 100;
    let mut answered = 0;
    for _ in 0..rounds {
        let ran = k.run(Point::FromPod, &f).expect("an ordinary frame");
        assert_eq!(ran.counted[0], (Point::FromPod, Err(DropReason::TtlExceeded)));
        answered += ran.counted.len() - 1;
    }
    assert!((1000..=rounds - 100).contains(&answered), "{answered} of {rounds} answered");
}

#[test]
fn events_are_limited_and_what_was_not_sent_is_counted() {
    let mut w = world();
    w.config.as_mut().expect("is there").event_rate = 3;
    // A second that does not end while the test runs.
    w.config.as_mut().expect("is there").hz = u32::MAX;
    let mut k = Kernel::empty();
    packets::fill::fill(k.datapath(), &w);
    let f = from_client(false, pod(false, 0, 99), &Ip::default(), frame::ping(false));
    // More than three for each CPU that this thread may be moved to.
    let rounds = 20;
    let (mut sent, mut limited) = (0, 0);
    for _ in 0..rounds {
        let ran = k.run(Point::FromPod, &f).expect("an ordinary frame");
        sent += ran.events.len();
        limited += ran.counted.iter().filter(|(_, what)| *what == Ok(cni_common::drop::Outcome::EventLimited)).count();
    }
    assert_eq!(sent + limited, rounds);
    assert!(sent >= 3 && limited > 0, "{sent} sent, {limited} limited");
}
