//! Datagrams larger than any MTU, both ways.
use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use cni_common::{net::Mac, wire::UDP};
use cni_ebpf::fake::frame::{self, Ip};
use lab::probe::{Family, Place, Wire};

use crate::{
    DEVICE, Rig, Side, cases,
    ends::{ask, ask_with, dropped, port_of, udp_at},
};

/// As large as a DNS answer or an NFS request may be.
const LARGE: usize = 8192;
/// Bytes in a fragment; a multiple of 8.
const PART: usize = 1200;

fn large() -> Vec<u8> {
    (0..LARGE).map(|i| (i % 251) as u8).collect()
}

/// A UDP datagram in fragments, as packets: the first comes first.
fn cut(from: SocketAddr, to: SocketAddr) -> Vec<(u16, Vec<u8>)> {
    // Of no datagram before: what is known of one is known for half a minute.
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let (proto, body) = frame::summed(from.ip(), to.ip(), frame::udp(from.port(), to.port(), &large()), false);
    let parts = body.chunks(PART).enumerate();
    let packet = |(n, part): (usize, &[u8])| {
        let (words, more) = (n * PART / 8, (n + 1) * PART < body.len());
        let mut ip = Ip { frag: words as u16 | u16::from(more) << 13, ..Ip::default() };
        if from.is_ipv6() {
            // RFC 8200 section 4.5.
            let field = (words as u16) << 3 | u16::from(more);
            ip.extensions = vec![(44, [&[0, 0][..], &field.to_be_bytes(), &[0, 0], &id.to_be_bytes()].concat())];
        }
        let (kind, mut packet) = ip.packet(from.ip(), to.ip(), (proto, part.to_vec()));
        if from.is_ipv4() {
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let sum = frame::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (kind, packet)
    };
    assert_eq!(proto, UDP);
    parts.map(packet).collect()
}

/// Both ends of a flow that is known.
struct Ends {
    client: UdpSocket,
    server: UdpSocket,
    /// The pod's end.
    own: SocketAddr,
    /// As which the server sees it.
    seen: SocketAddr,
    /// The server's.
    host: SocketAddr,
}

fn receives(what: &str, socket: &UdpSocket, from: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, who) = socket.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(buffer[..length] == large()[..], "{what}: other bytes arrived");
    assert_eq!(who, from, "{what}");
}

/// The pod's frames go to its gateway, the world's to the router.
fn send(place: &Place, to: Mac, parts: &[(u16, Vec<u8>)]) {
    let wire = Wire::open(place, DEVICE).unwrap();
    for packet in parts {
        wire.send(&frame::eth(Mac::new(wire.mac()), to, packet.clone())).unwrap();
    }
}

/// The router's MAC, as the near host knows it.
fn router(rig: &Rig) -> Mac {
    Mac::new(Wire::open(&rig.router, &rig.near.name).unwrap().mac())
}

fn fragments_that_overtake_each_other_behind_the_first_arrive(rig: &Rig) {
    let router = router(rig);
    rig.each(|side, pod, family| {
        let ends = open(rig, side, pod, family);
        // Twice: what is known of the first datagram must not be taken for the second one's.
        for _ in 0..2 {
            let mut parts = cut(ends.own, ends.host);
            parts[1..].reverse();
            send(pod, Mac::WEFT, &parts);
            receives(&format!("{} → {}", pod.name, rig.near.name), &ends.server, ends.seen);
            let mut parts = cut(ends.host, ends.seen);
            parts[1..].reverse();
            send(&rig.near, router, &parts);
            receives(&format!("{} → {}", rig.near.name, pod.name), &ends.client, ends.host);
        }
    });
}

/// Nobody knows whose they are: they are not kept until the first one comes.
fn fragments_that_come_before_the_first_are_dropped_by_name(rig: &Rig) {
    let router = router(rig);
    rig.each(|side, pod, family| {
        let ends = open(rig, side, pod, family);
        let node = rig.lab.node(&side.node.name).unwrap();
        let before = dropped(node, "FragmentOrder");
        let mut parts = cut(ends.own, ends.host);
        parts.reverse();
        send(pod, Mac::WEFT, &parts);
        assert_eq!(dropped(node, "FragmentOrder"), before + parts.len() as u64 - 1);
        let mut parts = cut(ends.host, ends.seen);
        parts.reverse();
        send(&rig.near, router, &parts);
        // And the next that both hear is a whole one.
        let seen = ask(&ends.client, &ends.server, ends.host.ip()).unwrap();
        assert_eq!(seen, ends.seen);
    });
}

fn open(rig: &Rig, side: &Side, pod: &Place, family: Family) -> Ends {
    let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
    let [own, node, host] = [pod, &side.node, &rig.near].map(|place| place.address(family).unwrap());
    let seen = ask(&client, &server, host).unwrap();
    assert_eq!(seen, SocketAddr::new(node, port_of(&client)));
    let (own, host) = (SocketAddr::new(own, port_of(&client)), SocketAddr::new(host, port_of(&server)));
    Ends { client, server, own, seen, host }
}

fn large_datagrams_go_there_and_back(rig: &Rig) {
    rig.each(|side, pod, family| {
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        // The very first packet of the flow is a fragment.
        for _ in 0..3 {
            let seen = ask_with(&client, &server, rig.near.address(family).unwrap(), &large()).unwrap();
            assert_eq!((seen.ip(), seen.port()), (side.address(family), port_of(&client)));
        }
    });
}

/// Without masquerade, towards a world that knows the pods.
pub fn large_datagrams_go_there_and_back_under_the_pods_own_address(rig: &Rig) {
    rig.each(|_, pod, family| {
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let to = rig.near.address(family).unwrap();
        // The node's routes to pods leave room for a tunnel, which the host is told when it has sent more.
        let mut asked = ask_with(&client, &server, to, &large());
        for _ in 0..3 {
            asked = ask_with(&client, &server, to, &large());
        }
        assert_eq!(asked.unwrap().ip(), pod.address(family).unwrap());
    });
}

fn large_datagrams_of_two_pods_with_one_port_do_not_mix(rig: &Rig) {
    rig.each(|side, first, family| {
        let server = udp_at(&rig.near, family, 0);
        let to = rig.near.address(family).unwrap();
        let a = udp_at(first, family, 0);
        let b = udp_at(&side.pods[1], family, port_of(&a));
        for _ in 0..3 {
            let [seen_a, seen_b] = [&a, &b].map(|client| ask_with(client, &server, to, &large()).unwrap());
            assert_ne!(seen_a, seen_b);
        }
    });
}

#[test]
fn datagrams_in_fragments_arrive_whole() {
    Rig::new(&[]).run(cases!(
        large_datagrams_go_there_and_back,
        large_datagrams_of_two_pods_with_one_port_do_not_mix,
        fragments_that_overtake_each_other_behind_the_first_arrive,
        fragments_that_come_before_the_first_are_dropped_by_name,
    ));
}
