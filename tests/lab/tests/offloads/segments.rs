//! Segmentation and coalescing.
use lab::{
    layout::NODE_DEVICE,
    offload::{LARGE_PACKETS, Received},
    probe::{Datagrams, Family, Flow, Place},
};

use crate::Rig;

/// More than a hundred large packets.
const STREAM: usize = 4 << 20;
/// As many datagrams as fit into one packet of 64 KiB.
const DATAGRAMS: usize = 44;
/// Of a size that QUIC uses.
const SIZE: usize = 1300;

/// How often it is measured whether packets are large: on a busy machine the receiving side is woken for a few segments at a time, and the best
/// round shows what the path can carry.
const ROUNDS: usize = 4;

/// Sends a stream to `web` and gives the average packet, in bytes, that `device` of `at` received meanwhile.
fn average_packet(rig: &Rig, family: Family, at: &Place, device: &str) -> f64 {
    let mut flow = Flow::open(&rig.client, &rig.web, family).unwrap();
    let before = Received::by(at, device).unwrap();
    flow.push(STREAM).unwrap();
    Received::by(at, device).unwrap().average_since(before).expect("packets arrived")
}

/// Packets that `device` of `at` receives are large.
fn assert_large(rig: &Rig, family: Family, at: &Place, device: &str) {
    let mut averages = Vec::new();
    while averages.len() < ROUNDS && !averages.last().is_some_and(|last| *last >= LARGE_PACKETS) {
        averages.push(average_packet(rig, family, at, device));
    }
    let best = averages.iter().copied().fold(0.0, f64::max);
    println!("{family} over {}: up to {best:.0} bytes per packet into {device} of {}", rig.underlay, at.name);
    assert!(best >= LARGE_PACKETS, "{family} over {}: {averages:.0?} bytes per packet into {device}", rig.underlay);
}

/// All datagrams of several large packets arrive, whole and in order.
fn assert_quic_arrives(rig: &Rig, family: Family, wire: &str) {
    let udp = Datagrams::open(&rig.client, &rig.web, family).unwrap();
    for round in 0..3u8 {
        let payload: Vec<u8> =
            (0..DATAGRAMS).flat_map(|n| [vec![n as u8, round], vec![0x57; SIZE - 2]].concat()).collect();
        udp.send_segmented(&payload, SIZE as u16).unwrap();
        let what = format!("{family} over {} ({wire}), large packet {round}", rig.underlay);
        for (n, sent) in payload.chunks(SIZE).enumerate() {
            let arrived = udp.receive().unwrap().unwrap_or_else(|| panic!("{what}: {n} of {DATAGRAMS} arrived"));
            assert_eq!(arrived.payload.get(..2), sent.get(..2), "{what}: datagram {n} is another one");
            assert!(arrived.payload == sent, "{what}: datagram {n} has other contents");
        }
        assert_eq!(udp.pending().unwrap(), None, "{what}: more arrived than was sent");
    }
}

fn on_a_wire_that_takes_large_packets(underlay: Family) {
    let rig = Rig::new(underlay);
    for family in Family::BOTH {
        // Counted on the wire: on 5.10 the pod's own device counts nothing that was redirected into it.
        assert_large(&rig, family, &rig.nodes[0], NODE_DEVICE);
        assert_quic_arrives(&rig, family, "takes large packets");
    }
    rig.lab.down().unwrap();
}

fn on_a_wire_without_segmentation(underlay: Family) {
    let rig = Rig::new(underlay);
    let coalesces = rig.without_segmentation();
    for family in Family::BOTH {
        let wire = average_packet(&rig, family, &rig.nodes[0], NODE_DEVICE);
        assert!(
            wire < 1600.0,
            "{wire:.0} bytes per packet on the wire: it segments still, and this test shows nothing"
        );
        // Before 5.13 a veth can not coalesce, and on 5.10 the pod's device counts nothing that was redirected into it.
        if coalesces {
            assert_large(&rig, family, &rig.web, "eth0");
        } else {
            println!(
                "this kernel's veth can not coalesce (that came with 5.13): the size of packets into the pod is not judged"
            );
        }
        assert_quic_arrives(&rig, family, "without segmentation");
    }
    rig.lab.down().unwrap();
}

#[test]
fn streams_and_quic_cross_a_wire_that_takes_large_packets_in_large_packets_over_ipv4() {
    on_a_wire_that_takes_large_packets(Family::V4);
}

#[test]
fn streams_and_quic_cross_a_wire_that_takes_large_packets_in_large_packets_over_ipv6() {
    on_a_wire_that_takes_large_packets(Family::V6);
}

#[test]
fn streams_reach_the_pod_in_large_packets_and_quic_whole_when_the_wire_can_not_segment_over_ipv4() {
    on_a_wire_without_segmentation(Family::V4);
}

#[test]
fn streams_reach_the_pod_in_large_packets_and_quic_whole_when_the_wire_can_not_segment_over_ipv6() {
    on_a_wire_without_segmentation(Family::V6);
}
