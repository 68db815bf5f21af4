//! A pod that forgets its gateway's MAC asks for it and is answered; nothing else is.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni_common::net::Mac;
use cni_ebpf::fake::frame::{self, Ip};
use lab::{
    probe::{self, Family, LIMIT, Wire},
    tool,
};

use crate::{Rig, checksum::with_checksum, option};

/// The gateway's addresses in every pod.
const GATEWAY: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(169, 254, 1, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const ARP: u16 = 0x0806;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => GATEWAY.0.into(),
        Family::V6 => GATEWAY.1.into(),
    }
}

/// Who asks for the MAC of whom, as a frame that goes to everybody.
fn question(mac: [u8; 6], asks: IpAddr, whom: IpAddr) -> Vec<u8> {
    match (asks, whom) {
        (IpAddr::V4(asks), IpAddr::V4(whom)) => {
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
            arp.extend(mac);
            arp.extend(asks.octets());
            arp.extend([0; 6]);
            arp.extend(whom.octets());
            frame::eth(Mac::new(mac), Mac::new([0xff; 6]), (ARP, arp))
        }
        (IpAddr::V6(asks), IpAddr::V6(whom)) => {
            let [.., x, y, z] = whom.octets();
            // RFC 4291 section 2.7.1.
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from(y) << 8 | u16::from(z));
            let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            body.extend(whom.octets());
            // A probe for duplicates names no sender (RFC 4862 section 5.4.2).
            if !asks.is_unspecified() {
                body.extend([1, 1]);
                body.extend(mac);
            }
            let ends = (asks.into(), group.into());
            let packet = Ip { ttl: 255, ..Ip::default() }.packet(ends.0, ends.1, with_checksum(ends, (58, body)));
            frame::eth(Mac::new(mac), Mac::new([0x33, 0x33, 0xff, x, y, z]), packet)
        }
        _ => panic!("{asks} and {whom} are of different families"),
    }
}

/// Whose MAC an answer tells, and which.
fn answer(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let bytes = |at: usize| frame.get(at..at + 6).and_then(|b| b.try_into().ok());
    match frame.get(12..14)? {
        [0x08, 0x06] if frame.get(20..22)? == [0, 2] => {
            let who: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
            Some((who.into(), bytes(22)?))
        }
        [0x86, 0xdd] if frame.get(54)? == &ADVERTISEMENT => {
            let who: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            Some((who.into(), bytes(80)?))
        }
        _ => None,
    }
}

#[test]
fn a_pod_that_forgets_its_gateway_asks_again_and_talks_on() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        for family in Family::BOTH {
            for to in [&rig.near, &rig.far, &rig.near_node, &rig.far_node] {
                let ip = format!("ip {} neigh", option(family));
                tool::succeeds(&rig.client, &format!("{ip} del {} dev eth0", gateway(family))).unwrap();
                let what = format!("{family} over {underlay} to {}", to.name);
                probe::udp(&rig.client, to, family).unwrap_or_else(|e| panic!("{what}: {e:#}"));
                let learnt = tool::succeeds(&rig.client, &format!("{ip} show {} dev eth0", gateway(family))).unwrap();
                let mac = Mac::WEFT.bytes.map(|b| format!("{b:02x}")).join(":");
                assert!(learnt.contains(&mac) && !learnt.contains("PERMANENT"), "{what}: {learnt}");
            }
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn only_the_gateways_address_is_answered_for_and_only_to_the_pod_itself() {
    let rig = Rig::new(Family::V4);
    let wire = Wire::open(&rig.client, "eth0").unwrap();
    for family in Family::BOTH {
        let [me, near, far, node] =
            [&rig.client, &rig.near, &rig.far, &rig.near_node].map(|place| place.address(family).unwrap());
        let gateway = gateway(family);
        let nobody = family.any();
        let others = [
            (me, near, "a neighbour's"),
            (me, far, "a far pod's"),
            (me, node, "the node's"),
            (me, me, "its own"),
            (near, gateway, "the gateway's, under a neighbour's address"),
            (nobody, gateway, "the gateway's, as a probe for duplicates"),
            (nobody, near, "a neighbour's, as a probe for duplicates"),
            (nobody, me, "its own, as a probe for duplicates"),
        ];
        for (asks, whom, what) in others {
            let before = rig.drops("NotGateway");
            wire.send(&question(wire.mac(), asks, whom)).unwrap();
            assert_eq!(rig.drops("NotGateway"), before + 1, "{family}: it asks for {what}");
        }
        wire.send(&question(wire.mac(), me, gateway)).unwrap();
        // An answer to any of the others would have come first.
        let (who, mac) = wire.hear(LIMIT, answer).unwrap();
        assert_eq!((who, mac), (gateway, Mac::WEFT.bytes), "{family}");
        wire.hear(LIMIT, answer).expect_err("one question, one answer");
    }
    rig.lab.down().unwrap();
}
