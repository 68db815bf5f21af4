//! Forwarding natively: by example, and by property over the corpus and over any bytes.
use std::net::IpAddr;

use bytemuck::Zeroable;
use cni_common::{drop::Point, event::DropEvent, maps::CONFIG_ENCAP_L2_ETH, net::Mac, wire::*};
use proptest::prelude::*;

use super::{
    Fake, Frame,
    corpus::{self, Rng},
    frame::{self, Ip},
    world::*,
};
use crate::{DropReason as D, Res, Verdict, decap, event, flow, packet::TunnelEnd};

fn from_pod(frame: &mut Frame, w: &Fake) -> Res<Verdict> {
    flow::from_pod(frame, w)
}
fn to(dst: IpAddr, ip: &Ip) -> Frame {
    let v6 = dst.is_ipv6();
    let packet = ip.packet(client(v6), dst, frame::udp(4000, 53, b"question"));
    Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX)
}

#[test]
fn a_pod_of_this_node_is_reached_directly_and_costs_one_hop() {
    for v6 in [false, true] {
        let mut f = to(server(v6), &Ip::default());
        assert_eq!(from_pod(&mut f, &world()), Ok(Verdict::Peer(SERVER_IFINDEX)));
        let want = Ip { ttl: 63, ..Ip::default() }.packet(client(v6), server(v6), frame::udp(4000, 53, b"question"));
        // The whole frame, so the IPv4 header's checksum as well.
        assert_eq!(f.data, frame::eth(Mac::WEFT, SERVER_MAC, want));
    }
}

#[test]
fn a_pod_of_this_node_is_reached_whatever_range_its_address_is_of() {
    for v6 in [false, true] {
        let mut w = world();
        let c = w.config.expect("is there");
        // No range, as with an IPAM plugin that gives addresses of its own; and the usual one.
        for ranges in [Zeroable::zeroed(), c] {
            *w.config.as_mut().expect("is there") = cni_common::maps::Config {
                pods4: ranges.pods4,
                mask4: ranges.mask4,
                pods6: ranges.pods6,
                mask6: ranges.mask6,
                ..w.config.expect("is there")
            };
            assert_eq!(from_pod(&mut to(server(v6), &Ip::default()), &w), Ok(Verdict::Peer(SERVER_IFINDEX)));
            assert_eq!(
                from_pod(&mut to(pod(v6, NODE_V4 as u8, 1), &Ip::default()), &w),
                Ok(Verdict::Device(UNDERLAY_IFINDEX))
            );
        }
    }
}

#[test]
fn the_last_hop_is_used_up_here_whether_the_pod_is_near_or_far() {
    for v6 in [false, true] {
        for dst in [server(v6), pod(v6, NODE_V4 as u8, 1)] {
            for ttl in [0, 1] {
                assert_eq!(from_pod(&mut to(dst, &Ip { ttl, ..Ip::default() }), &world()), Err(D::TtlExceeded));
            }
            assert!(from_pod(&mut to(dst, &Ip { ttl: 2, ..Ip::default() }), &world()).is_ok());
        }
    }
}

#[test]
fn what_goes_in_on_one_node_comes_out_on_the_other() {
    for (inner_v6, node) in [(false, NODE_V4), (true, NODE_V4), (false, NODE_V6), (true, NODE_V6)] {
        let mut f = to(pod(inner_v6, node as u8, 7), &Ip { tos: 0xba, ..Ip::default() });
        assert_eq!(from_pod(&mut f, &world()), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        // The world of the other node: its pod is the destination, and we are its node 1.
        let mut there = Fake { config: world().config, ..Fake::default() };
        let c = there.config.as_mut().expect("is there");
        let outer_v6 = node == NODE_V6;
        (c.tunnel4, c.tunnel6) = match underlay(outer_v6, node as u8) {
            IpAddr::V4(a) => (a.into(), c.tunnel6),
            IpAddr::V6(a) => (c.tunnel4, a.into()),
        };
        match underlay(outer_v6, 0) {
            IpAddr::V4(a) => drop(there.v4.nodes.insert(a.into(), 1)),
            IpAddr::V6(a) => drop(there.v6.nodes.insert(a.into(), 1)),
        }
        let target = world().v4.local[&match server(false) {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        }];
        let sender = cni_common::maps::Remote { node: 1, ..Zeroable::zeroed() };
        let mut back: cni_common::maps::Tunnel = Zeroable::zeroed();
        match underlay(outer_v6, 0) {
            IpAddr::V4(a) => back.addr4 = a.into(),
            IpAddr::V6(a) => back.addr6 = a.into(),
        }
        there.tunnels.insert(1, back);
        match (client(inner_v6), pod(inner_v6, node as u8, 7)) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                there.v4.remote.insert(s.into(), sender);
                there.v4.local.insert(d.into(), target);
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                there.v6.remote.insert(s.into(), sender);
                there.v6.local.insert(d.into(), target);
            }
            _ => unreachable!("one family"),
        }
        assert_eq!(&f.data[..12], &[NEXT_HOP_MAC.bytes, UNDERLAY_MAC.bytes].concat()[..]);
        let at = if outer_v6 { 14 + 40 } else { 14 + 20 };
        assert_eq!(f.data[at + 2..at + 4], PORT.to_be_bytes());
        assert_eq!(f.data[at + 12..at + 15], CLIENT_VNI.to_be_bytes()[1..]);
        assert_eq!(decap::from_netdev(&mut f, &there), Ok(Verdict::Peer(SERVER_IFINDEX)));
        let want = Ip { ttl: 63, tos: 0xba, ..Ip::default() }.packet(
            client(inner_v6),
            pod(inner_v6, node as u8, 7),
            frame::udp(4000, 53, b"question"),
        );
        assert_eq!(f.data, frame::eth(Mac::WEFT, SERVER_MAC, want));
        assert!(f.this_host);
    }
}

#[test]
fn without_a_next_hop_the_kernel_resolves() {
    let mut f = to(pod(false, NODE_UNRESOLVED as u8, 1), &Ip::default());
    assert_eq!(from_pod(&mut f, &world()), Ok(Verdict::Neigh(UNDERLAY_IFINDEX)));
}

#[test]
fn what_is_not_in_the_cluster_goes_to_the_stack_unchanged() {
    for v6 in [false, true] {
        for dst in [outside(v6), underlay(v6, 0)] {
            let mut f = to(dst, &Ip { ttl: 1, ..Ip::default() });
            let before = f.data.clone();
            // Whatever MAC the pod wrote: the stack would not take another one.
            f.data[..6].copy_from_slice(&SERVER_MAC.bytes);
            assert_eq!(from_pod(&mut f, &world()), Ok(Verdict::Host));
            assert_eq!(f.data, before);
        }
    }
}

#[test]
fn a_segment_that_fits_may_be_part_of_a_packet_that_does_not() {
    let w = world();
    let dont_cut = Ip { frag: 0x4000, ..Ip::default() };
    let big = |payload: usize, gso: u32| {
        let packet = dont_cut.packet(client(false), pod(false, 1, 1), frame::tcp(4000, 80, 0x10, &vec![0; payload]));
        let mut f = Frame { gso, ..Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX) };
        from_pod(&mut f, &w)
    };
    let fits = MTU - OVERHEAD4 - 40;
    assert_eq!(big(fits as usize, 0), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
    assert_eq!(big(fits as usize + 1, 0), Err(D::TooBig));
    assert_eq!(big(60_000, fits), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
    assert_eq!(big(60_000, fits + 1), Err(D::TooBig));
    // Datagrams of QUIC that fill the pod's MTU to the last byte.
    let datagrams = |gso: u32| {
        let packet = dont_cut.packet(client(false), pod(false, 1, 1), frame::udp(4000, 443, &vec![0; 40_000]));
        let mut f = Frame { gso, ..Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX) };
        from_pod(&mut f, &w)
    };
    let fits = MTU - OVERHEAD4 - 28;
    assert_eq!(datagrams(fits), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
    assert_eq!(datagrams(fits + 1), Err(D::TooBig));
    // SCTP's segments have sizes of their own.
    let (proto, init) = frame::sctp(4000, 36412);
    let packet = dont_cut.packet(client(false), pod(false, 1, 1), (proto, [init, vec![0; 40_000]].concat()));
    let mut f = Frame { gso: 0xffff, ..Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX) };
    assert_eq!(from_pod(&mut f, &w), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
    // Options of TCP are in every segment: twelve bytes of timestamps here.
    let timestamps = |gso: u32| {
        let (proto, mut body) = frame::tcp(4000, 80, 0x10, &vec![0; 60_000]);
        body[12] = 0x80;
        let packet = dont_cut.packet(client(false), pod(false, 1, 1), (proto, body));
        let mut f = Frame { gso, ..Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX) };
        from_pod(&mut f, &w)
    };
    let fits = MTU - OVERHEAD4 - 52;
    assert_eq!(timestamps(fits), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
    assert_eq!(timestamps(fits + 1), Err(D::TooBig));
}

#[test]
fn fragments_of_one_datagram_take_one_way_and_later_ones_need_no_ports() {
    let w = world();
    let mut sources = std::collections::BTreeSet::new();
    for (frag, body) in
        [(0x2000, frame::udp(4000, 53, &[0; 64])), (0x2009, (UDP, vec![0xaa; 3])), (0x0012, (UDP, Vec::new()))]
    {
        let packet = Ip { frag, ..Ip::default() }.packet(client(false), pod(false, 1, 1), body);
        let mut f = Frame::new(frame::eth(CLIENT_MAC, Mac::WEFT, packet), CLIENT_IFINDEX);
        assert_eq!(from_pod(&mut f, &w), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        sources.insert(f.data[34..36].to_vec());
    }
    assert_eq!(sources.len(), 1, "outer source ports {sources:?}");
}

#[test]
fn both_directions_of_a_flow_have_one_outer_source_port() {
    use crate::encap::flow_hash;
    assert_eq!(flow_hash(1, 2, 0x0050_9c40), flow_hash(2, 1, 0x9c40_0050));
    assert_ne!(flow_hash(1, 2, 0x0050_9c40), flow_hash(1, 2, 0x0050_9c41));
}

#[test]
fn udp_segments_and_other_families_on_old_kernels_are_left_to_the_device() {
    let w = world();
    let tunnelled = |v6: bool| {
        let inner = Ip::default().packet(pod(v6, 1, 1), server(v6), frame::udp(1, 2, &[0; 64]));
        let outer = frame::vxlan(PORT, 1, &frame::eth(Mac::WEFT, Mac::WEFT, inner));
        frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, Ip::default().packet(underlay(false, 1), underlay(false, 0), outer))
    };
    for (v6, gso, decap_l3, want) in [
        (false, 0, true, Ok(Verdict::Peer(SERVER_IFINDEX))),
        (false, 1300, true, Ok(Verdict::Pass)),
        (false, 0, false, Ok(Verdict::Peer(SERVER_IFINDEX))),
        (true, 0, true, Ok(Verdict::Peer(SERVER_IFINDEX))),
        (true, 0, false, Ok(Verdict::Pass)),
    ] {
        let mut f = Frame { gso, decap_l3, ..Frame::new(tunnelled(v6), UNDERLAY_IFINDEX) };
        let before = f.data.clone();
        assert_eq!(decap::from_netdev(&mut f, &w), want, "v6 {v6}, gso {gso}, decap_l3 {decap_l3}");
        assert!(want != Ok(Verdict::Pass) || f.data == before);
    }
}

#[test]
fn congestion_on_the_underlay_reaches_the_pod() {
    let w = world();
    for v6 in [false, true] {
        let inner = Ip { tos: 0x02, ..Ip::default() }.packet(pod(v6, 1, 1), server(v6), frame::udp(1, 2, b"x"));
        let outer = frame::vxlan(PORT, 1, &frame::eth(Mac::WEFT, Mac::WEFT, inner));
        let outer = Ip { tos: 0x03, ..Ip::default() }.packet(underlay(v6, 1), underlay(v6, 0), outer);
        let mut f = Frame::new(frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer), UNDERLAY_IFINDEX);
        assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Peer(SERVER_IFINDEX)));
        let want = Ip { tos: 0x03, ..Ip::default() }.packet(pod(v6, 1, 1), server(v6), frame::udp(1, 2, b"x"));
        assert_eq!(f.data, frame::eth(Mac::WEFT, SERVER_MAC, want));
    }
}

#[test]
fn the_overlay_delivers_to_pods_and_to_the_node_itself_and_to_nobody_else() {
    let w = world();
    for v6 in [false, true] {
        let tunnel = Some(match underlay(v6, 1) {
            IpAddr::V4(a) => TunnelEnd::V4(a.into()),
            IpAddr::V6(a) => TunnelEnd::V6(a.into()),
        });
        let run = |src, dst, tunnel| {
            let packet = Ip::default().packet(src, dst, frame::udp(1, 2, b"x"));
            let mut f = Frame { tunnel, ..Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 4) };
            decap::from_overlay(&mut f, &w)
        };
        assert_eq!(run(pod(v6, 1, 7), server(v6), tunnel), Ok(Verdict::Peer(SERVER_IFINDEX)));
        assert_eq!(run(pod(v6, 1, 7), underlay(v6, 0), tunnel), Ok(Verdict::Host));
        assert_eq!(run(underlay(v6, 1), server(v6), tunnel), Ok(Verdict::Peer(SERVER_IFINDEX)));
        assert_eq!(run(pod(v6, 1, 7), outside(v6), tunnel), Err(D::NoPod));
        assert_eq!(run(pod(v6, 2, 7), server(v6), tunnel), Err(D::InnerSource));
        assert_eq!(run(pod(v6, 1, 7), server(v6), None), Err(D::UnknownNode));
    }
}

#[test]
fn headers_in_pages_are_pulled_once_and_no_further_than_needed() {
    let w = world();
    let inner = Ip::default().packet(pod(false, 1, 1), server(false), frame::tcp(1, 2, 0x10, &[0; 600]));
    let outer = frame::vxlan(PORT, 1, &frame::eth(Mac::WEFT, Mac::WEFT, inner));
    let data =
        frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, Ip::default().packet(underlay(false, 1), underlay(false, 0), outer));
    let mut f = Frame { linear: 14, ..Frame::new(data.clone(), UNDERLAY_IFINDEX) };
    assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Peer(SERVER_IFINDEX)));
    // The tunnel's headers, the packet's own, and TCP's as far as its flags.
    assert_eq!(f.pulls.get(), 3);
    let mut f = Frame::new(data, UNDERLAY_IFINDEX);
    f.linear = 14 + 50 + 20 + 14;
    assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Peer(SERVER_IFINDEX)));
    assert_eq!(f.pulls.get(), 0);
}

#[test]
fn headers_behind_options_and_extensions_are_pulled_as_well() {
    let w = world();
    for v6 in [false, true] {
        // A first fragment of IPv6 behind hop-by-hop options; an IPv4 header of 60 bytes.
        let options = Ip { options: vec![1; 40], ..Ip::default() };
        let extensions = Ip { extensions: vec![(0, vec![0; 64]), (44, vec![0, 0, 0, 1, 0, 0, 0, 7])], ..Ip::default() };
        let ip = if v6 { extensions } else { options };
        let packet = |from| ip.packet(from, server(v6), frame::tcp(1, 2, 0x10, &[0; 600]));
        let own = frame::eth(CLIENT_MAC, Mac::WEFT, packet(client(v6)));
        let mut f = Frame { linear: 14, ..Frame::new(own, CLIENT_IFINDEX) };
        assert_eq!(from_pod(&mut f, &w), Ok(Verdict::Peer(SERVER_IFINDEX)));

        let inner = frame::eth(Mac::WEFT, Mac::WEFT, packet(pod(v6, 1, 1)));
        let outer = Ip::default().packet(underlay(false, 1), underlay(false, 0), frame::vxlan(PORT, 1, &inner));
        let outer = frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer);
        let mut f = Frame { linear: 14, ..Frame::new(outer, UNDERLAY_IFINDEX) };
        assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Peer(SERVER_IFINDEX)));
    }
}

#[test]
fn nothing_is_pulled_out_of_the_segments_of_a_packet_that_is_yet_to_be_segmented() {
    let w = world();
    let extensions = Ip { extensions: vec![(60, vec![0; 8])], ..Ip::default() };
    for ip in [Ip::default(), extensions] {
        let (proto, init) = frame::sctp(4000, 36412);
        let packet = ip.packet(client(true), pod(true, 1, 1), (proto, [init.clone(), vec![0; 4000]].concat()));
        let frame = frame::eth(CLIENT_MAC, Mac::WEFT, packet);
        let linear = frame.len() - 4000 - (init.len() - 12);
        let mut f = Frame { gso: 0xffff, linear, ..Frame::new(frame, CLIENT_IFINDEX) };
        assert_eq!(from_pod(&mut f, &w), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        assert_eq!(f.pulls.get(), 0);
    }
}

#[test]
fn a_tag_is_dropped_from_pods_and_passed_on_the_nodes_devices() {
    let w = world();
    let mut f = Frame { vlan: true, ..to(server(false), &Ip::default()) };
    assert_eq!(from_pod(&mut f, &w), Err(D::Vlan));
    assert_eq!(flow::from_host(&mut f, &w), Err(D::Vlan));
    assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Pass));
}

#[test]
fn before_the_agent_has_configured_pods_are_cut_off_and_the_node_is_not() {
    let w = Fake::default();
    let mut f = to(server(false), &Ip::default());
    assert_eq!(from_pod(&mut f, &w), Err(D::NoConfig));
    assert_eq!(decap::from_netdev(&mut f, &w), Ok(Verdict::Pass));
    assert_eq!(flow::from_host(&mut f, &w), Ok(Verdict::Pass));
}

#[test]
fn offload_of_the_inner_ethernet_header_is_asked_for_only_where_the_kernel_takes_it() {
    let mut w = world();
    for flag in [0, CONFIG_ENCAP_L2_ETH] {
        w.config.as_mut().expect("is there").flags |= flag;
        let mut f = to(pod(false, 1, 1), &Ip::default());
        assert_eq!(from_pod(&mut f, &w), Ok(Verdict::Device(UNDERLAY_IFINDEX)));
        assert_eq!(f.inner_l2, flag != 0);
    }
}

proptest! {
    #[test]
    fn any_bytes_come_to_a_verdict(
        data in proptest::collection::vec(any::<u8>(), 0..300), linear in 0usize..300, gso in 0u32..2000, point in 0u8..4, ethertype in any::<bool>(),
    ) {
        let mut data = data;
        if data.len() > 14 {
            data[12..14].copy_from_slice(if ethertype { &[0x86, 0xdd] } else { &[0x08, 0x00] });
            data[6..12].copy_from_slice(&CLIENT_MAC.bytes);
        }
        let mut f = Frame { gso, ..Frame::new(data, CLIENT_IFINDEX) };
        f.linear = f.linear.min(linear);
        let w = world();
        let point = Point::from_number(point).expect("one of four");
        let r = decide(point, &mut f, &w);
        if let Err(reason) = r {
            let mut e = DropEvent::zeroed();
            event::describe(&f, point as u8, reason as u8, w.policy.told.get().blame, &mut e);
            prop_assert_eq!((e.reason, e.point), (reason as u8, point as u8));
        }
    }

    #[test]
    fn forwarded_frames_keep_payload_and_a_right_checksum_and_lose_one_hop(seed in any::<u64>()) {
        let w = world();
        let data = corpus::frame(&mut Rng::new(seed), Point::FromPod);
        let mut f = Frame::new(data.clone(), CLIENT_IFINDEX);
        let skip = match from_pod(&mut f, &w) {
            Ok(Verdict::Peer(_)) => 0,
            Ok(Verdict::Device(_) | Verdict::Neigh(_)) => if f.data[12..14] == [0x08, 0x00] { 50 } else { 70 },
            _ => return Ok(()),
        };
        let (before, after) = (&data[14..], &f.data[14 + skip..]);
        prop_assert_eq!(before.len(), after.len());
        if data[12..14] == [0x08, 0x00] {
            let header = usize::from(before[0] & 0x0f) * 4;
            prop_assert_eq!(after[8], before[8] - 1);
            if header <= before.len() && frame::checksum(&before[..header]) == 0 {
                prop_assert_eq!(frame::checksum(&after[..header]), 0);
            }
            prop_assert_eq!(&before[12..], &after[12..]);
        } else {
            prop_assert_eq!(after[7], before[7] - 1);
            prop_assert_eq!(&before[8..], &after[8..]);
        }
        if skip == 50 {
            prop_assert_eq!(frame::checksum(&f.data[14..34]), 0, "the outer header's checksum");
        }
    }

    #[test]
    fn nothing_that_a_pod_sends_leaves_under_another_address(seed in any::<u64>(), garble in any::<[u8; 4]>(), at in 0usize..60) {
        let mut data = corpus::frame(&mut Rng::new(seed), Point::FromPod);
        for (i, b) in garble.iter().enumerate() {
            if let Some(x) = data.get_mut(at + i) { *x = *b; }
        }
        let mut f = Frame::new(data.clone(), CLIENT_IFINDEX);
        if from_pod(&mut f, &world()).is_ok() {
            let source: &[u8] = match data[12..14] {
                [0x08, 0x00] => &data[26..30],
                [0x08, 0x06] => &data[28..32],
                _ => &data[22..38],
            };
            let own: Vec<u8> = match client(source.len() == 16) { IpAddr::V4(a) => a.octets().to_vec(), IpAddr::V6(a) => a.octets().to_vec() };
            prop_assert_eq!(source, &own[..]);
            prop_assert_eq!(&data[6..12], &CLIENT_MAC.bytes);
        }
    }
}

fn decide(point: Point, f: &mut Frame, w: &Fake) -> Res<Verdict> {
    match point {
        Point::FromPod => flow::from_pod(f, w),
        Point::FromHost => flow::from_host(f, w),
        Point::FromNetdev => decap::from_netdev(f, w),
        Point::FromOverlay => decap::from_overlay(f, w),
    }
}

#[test]
fn an_event_names_the_inner_packet_where_that_is_what_was_wrong() {
    let inner = Ip::default().packet(pod(true, 2, 1), server(true), frame::udp(1, 2, b"x"));
    let outer = frame::vxlan(PORT, 1, &frame::eth(Mac::WEFT, Mac::WEFT, inner));
    let data =
        frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, Ip::default().packet(underlay(false, 1), underlay(false, 0), outer));
    let f = Frame::new(data, UNDERLAY_IFINDEX);
    let inner_at = 14 + 20 + 8 + 8 + 14;
    let described = |reason| {
        let mut e = DropEvent::zeroed();
        let said = cni_common::event::Blame { at: inner_at, cookie: 7, class: 9 };
        event::describe(&f, Point::FromNetdev as u8, reason as u8, said, &mut e);
        assert_eq!((e.cookie, e.class), if reason == D::PolicyIngress { (7, 9) } else { (0, 0) });
        (e.src.canonical(), e.dst.canonical(), e.dport.to_host())
    };
    for reason in [D::InnerSource, D::PolicyIngress] {
        assert_eq!(described(reason), (pod(true, 2, 1), server(true), 2));
    }
    assert_eq!(described(D::UnknownNode), (underlay(false, 1), underlay(false, 0), PORT));
}
