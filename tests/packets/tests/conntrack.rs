//! Flows through the loaded programs, and what they leave in the maps.
use std::net::IpAddr;

use bytemuck::{Zeroable, bytes_of};
use cni_common::{
    drop::{Outcome, Point},
    maps::{CT_HI_ALLOWED, CT_HI_OPENED, CT_LO_ALLOWED, CtEntry, CtKey4, Endpoint},
    net::{Be16, Ip4, Mac},
    schema::{self, MAX_NEW_FLOWS, SHARES},
};
use cni_ebpf::ct::{
    entry::{Stage, stage},
    lifetime,
};
use packets::{
    frame::{self, Ip},
    kernel::{Flows, Kernel, REDIRECT},
    world::*,
};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const BOTH: u64 = CT_LO_ALLOWED | CT_HI_ALLOWED;

/// A client here, and its peer: the other pod here, a pod of another node, or somebody who is reached through the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Here,
    There,
    BehindDevice,
    Outside,
}

struct Pair {
    k: Kernel,
    v6: bool,
    peer: Peer,
}

impl Pair {
    fn new(v6: bool, peer: Peer) -> Self {
        Self { k: Kernel::loaded(), v6, peer }
    }
    fn all() -> impl Iterator<Item = Self> {
        let peers = [Peer::Here, Peer::There, Peer::BehindDevice, Peer::Outside];
        [false, true].into_iter().flat_map(move |v6| peers.map(|peer| Self::new(v6, peer)))
    }

    /// Of the table that nothing is pushed out of: it follows this machine's memory.
    fn size(&mut self) -> u32 {
        self.k.datapath().map(&schema::CT4).spec().max_entries
    }

    fn address(&self) -> IpAddr {
        match self.peer {
            Peer::Here => server(self.v6),
            Peer::There | Peer::BehindDevice => pod(self.v6, 1, 7),
            Peer::Outside => outside(self.v6),
        }
    }

    fn run(&mut self, point: Point, frame: &[u8]) -> Vec<(Point, Outcome)> {
        let ran = self.k.run(point, frame).expect("a whole frame");
        assert_eq!(ran.code, REDIRECT, "{:?} {:?}: {:?}", self.peer, point, ran.counted);
        ran.counted.into_iter().map(|(point, what)| (point, what.expect("no drop"))).collect()
    }

    /// The client sends.
    fn c(&mut self, l4: (u8, Vec<u8>)) -> Vec<(Point, Outcome)> {
        let packet = Ip::default().packet(client(self.v6), self.address(), l4);
        self.run(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet))
    }

    /// The peer sends, by whatever way leads here.
    fn s(&mut self, l4: (u8, Vec<u8>)) -> Vec<(Point, Outcome)> {
        let packet = Ip::default().packet(self.address(), client(self.v6), l4);
        match self.peer {
            Peer::Here => {
                // Test frames come in by one device: it is the server's for this one.
                let key = CLIENT_IFINDEX.to_ne_bytes();
                let endpoints = |k: &mut Kernel, e: &Endpoint| {
                    k.datapath().map(&schema::ENDPOINTS).update(&key, bytes_of(e)).expect("is written");
                };
                let mut e = Endpoint { id: 12, mac: SERVER_MAC, ..Endpoint::zeroed() };
                if let IpAddr::V4(a) = server(false) {
                    e.addr4 = a.into();
                }
                if let IpAddr::V6(a) = server(true) {
                    e.addr6 = a.into();
                }
                endpoints(&mut self.k, &e);
                let counted = self.run(Point::FromPod, &frame::eth(SERVER_MAC, Mac::WEFT, packet));
                endpoints(&mut self.k, &world().endpoints[&CLIENT_IFINDEX]);
                counted
            }
            Peer::There => {
                let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, packet);
                // In the same family: to change it takes a kernel of 6.3.
                let outer =
                    Ip::default().packet(underlay(self.v6, 1), underlay(self.v6, 0), frame::vxlan(PORT, 0, &inner));
                self.run(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer))
            }
            // A test frame has no tunnel key; the stack may have decapsulated it as well.
            Peer::BehindDevice | Peer::Outside => self.run(Point::FromHost, &frame::eth(Mac::WEFT, Mac::WEFT, packet)),
        }
    }

    fn flows(&self) -> Flows {
        let [v4, v6] = self.k.flows();
        let (ours, others) = if self.v6 { (v6, v4) } else { (v4, v6) };
        assert!(others.settled.is_empty() && others.new.is_empty());
        ours
    }
    fn counts(&self) -> (usize, usize) {
        let flows = self.flows();
        (flows.settled.len(), flows.new.len())
    }
    fn flow(&self) -> CtEntry {
        let flows = self.flows();
        let all: Vec<_> = flows.settled.into_values().chain(flows.new.into_values()).collect();
        assert_eq!(all.len(), 1, "{:?}: {all:?}", self.peer);
        all[0]
    }
    fn stage(&self) -> Stage {
        let e = self.flow();
        stage(e.lo_sent.into(), e.hi_sent.into())
    }
    /// The table of settled flows, of this family.
    fn settled(&self) -> &'static schema::MapSpec {
        if self.v6 { &schema::CT6 } else { &schema::CT4 }
    }
}

fn tcp(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(40_000, 443, flags, b"")
}
fn tcp_back(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(443, 40_000, flags, b"")
}

#[test]
fn a_tcp_flow_is_one_entry_from_the_first_packet_to_the_last_on_every_way() {
    for mut p in Pair::all() {
        p.c(tcp(SYN));
        assert_eq!((p.stage(), p.counts()), (Stage::Handshake, (0, 1)), "{:?}", p.peer);
        p.s(tcp_back(SYN_ACK));
        assert_eq!((p.stage(), p.counts()), (Stage::Handshake, (1, 0)), "{:?}", p.peer);
        p.c(tcp(ACK));
        p.s(tcp_back(ACK));
        assert_eq!((p.stage(), p.counts()), (Stage::Established, (1, 0)), "{:?}", p.peer);
        let e = p.flow();
        assert_eq!((e.charged, e.lifetime), (CLIENT_ID, lifetime::ESTABLISHED * 250));
        assert_eq!(p.flows().held.get(&CLIENT_ID), Some(&1));
        // Which end comes first is up to the addresses; the client opened, and an end that is elsewhere is not allowed.
        let lo_sent_syn = e.lo_sent & 1 != 0;
        assert_eq!(e.verdicts & CT_HI_OPENED == 0, lo_sent_syn);
        let client = if lo_sent_syn { CT_LO_ALLOWED } else { CT_HI_ALLOWED };
        assert_eq!(e.verdicts & BOTH, if p.peer == Peer::Here { BOTH } else { client });
        assert_eq!(e.verdicts as u32, 1, "the epoch");
        p.c(tcp(FIN));
        assert_eq!(p.stage(), Stage::Closing);
        p.s(tcp_back(FIN));
        assert_eq!((p.stage(), p.flow().lifetime), (Stage::Closed, lifetime::CLOSED * 250));
        p.c(tcp(SYN));
        assert_eq!((p.stage(), p.counts()), (Stage::Handshake, (1, 0)));
    }
}

#[test]
fn udp_echo_and_sctp_settle_with_the_reply() {
    for mut p in Pair::all() {
        let (reply, mut answer) = frame::ping(p.v6);
        answer[0] = if p.v6 { 129 } else { 0 };
        let chunk = |sport: u16, dport: u16, kind: u8| {
            let ports = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
            (132, [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 0, kind, 0, 0, 4]].concat())
        };
        let exchanges = [
            (frame::udp(4000, 53, b"?"), frame::udp(53, 4000, b"!"), lifetime::UDP_SERVICE),
            (frame::udp(4000, 5300, b"?"), frame::udp(5300, 4000, b"!"), lifetime::UDP_FLOW),
            (frame::ping(p.v6), (reply, answer), lifetime::ECHO),
            (chunk(1, 2, 1), chunk(2, 1, 2), lifetime::HANDSHAKE),
            ((47, vec![0; 8]), (47, vec![1; 8]), lifetime::OTHER),
        ];
        for (n, (there, back, seconds)) in exchanges.into_iter().enumerate() {
            p.c(there);
            assert_eq!(p.counts(), (n, 1), "{:?}", p.peer);
            assert!(p.flows().new.values().all(|e| e.lifetime == seconds * 250));
            p.s(back);
            assert_eq!(p.counts(), (n + 1, 0), "{:?}", p.peer);
        }
    }
}

#[test]
fn a_flow_that_is_over_gives_its_place_to_the_next_and_a_living_one_is_renewed() {
    for mut p in Pair::all() {
        p.c(tcp(SYN));
        p.s(tcp_back(SYN_ACK));
        p.c(tcp(ACK));
        let (key, e) = p.flows().settled.pop_first().expect("one");
        let put = |p: &mut Pair, e: &CtEntry| {
            let spec = p.settled();
            p.k.datapath().map(spec).update(&key, bytes_of(e)).expect("is written");
        };
        // Some seconds ago.
        put(&mut p, &CtEntry { seen: e.seen - 5000, ..e });
        p.c(tcp(ACK));
        assert!(p.flow().seen >= e.seen, "renewed");
        put(&mut p, &CtEntry { seen: e.seen - u64::from(e.lifetime), ..e });
        p.s(tcp_back(ACK));
        let after = p.flow();
        assert_ne!(after.verdicts & CT_HI_OPENED, e.verdicts & CT_HI_OPENED, "the peer has opened it now");
        assert_eq!((p.stage(), after.lifetime), (Stage::Handshake, lifetime::HANDSHAKE * 250));
        // Judged under another policy.
        put(&mut p, &CtEntry { verdicts: e.verdicts & !0xffff_ffff | 9, ..e });
        p.c(tcp(ACK));
        assert_eq!(p.flow().verdicts, e.verdicts);
    }
}

#[test]
fn a_full_table_drops_nothing_and_says_so() {
    let mut p = Pair::new(false, Peer::Here);
    let fill = |n: u32| CtKey4 { lo: Ip4::new(n.to_be_bytes()), proto: 17, ..CtKey4::zeroed() };
    for n in 0..p.size() {
        let map = p.k.datapath().map(&schema::CT4);
        map.update(bytes_of(&fill(n)), bytes_of(&CtEntry::zeroed())).expect("there is room");
    }
    p.c(tcp(SYN));
    let full = [(Point::FromPod, Outcome::CtFull), (Point::FromPod, Outcome::Peer)];
    let mut counted = p.s(tcp_back(SYN_ACK));
    counted.sort_by_key(|(_, what)| std::cmp::Reverse(*what as u8));
    assert_eq!(counted, full);
    p.c(tcp(ACK));
    p.s(tcp_back(ACK));
    assert_eq!((p.s(tcp_back(ACK)), p.counts().1), (vec![(Point::FromPod, Outcome::Peer)], 1));
    let e = *p.flows().new.values().next().expect("stays among the new ones");
    assert_eq!(stage(e.lo_sent.into(), e.hi_sent.into()), Stage::Established);
}

#[test]
fn an_endpoint_with_its_share_settles_no_more_flows() {
    for mut p in [Pair::new(false, Peer::Here), Pair::new(true, Peer::Here)] {
        let held = if p.v6 { &schema::CT_HELD6 } else { &schema::CT_HELD4 };
        let share = u64::from(p.size() / SHARES).to_ne_bytes();
        let less = u64::from(p.size() / SHARES - 1).to_ne_bytes();
        p.k.datapath().map(held).update(&CLIENT_ID.to_ne_bytes(), &less).expect("is written");
        p.c(frame::tcp(3, 1, SYN, b""));
        assert_eq!(p.s(frame::tcp(1, 3, SYN_ACK, b"")), [(Point::FromPod, Outcome::Peer)], "the last of its share");
        assert_eq!((p.counts(), p.flows().held.get(&CLIENT_ID)), ((1, 0), Some(&u64::from(p.size() / SHARES))));
        p.k.datapath().map(held).update(&CLIENT_ID.to_ne_bytes(), &share).expect("is written");
        p.c(tcp(SYN));
        assert!(p.s(tcp_back(SYN_ACK)).contains(&(Point::FromPod, Outcome::CtQuota)));
        assert_eq!(p.counts(), (1, 1));
        // Of which the other one has not used any.
        p.s(frame::tcp(1, 2, SYN, b""));
        p.c(frame::tcp(2, 1, SYN_ACK, b""));
        assert_eq!((p.counts(), p.flows().held.get(&12)), ((2, 1), Some(&1)));
    }
}

#[test]
fn a_flood_of_new_flows_moves_no_settled_one() {
    let mut p = Pair::new(false, Peer::There);
    for port in 0..100 {
        p.c(frame::tcp(port, 443, SYN, b""));
        p.s(frame::tcp(443, port, SYN_ACK, b""));
        p.c(frame::tcp(port, 443, ACK, b""));
    }
    let settled: Vec<_> = p.flows().settled.into_keys().collect();
    assert_eq!(settled.len(), 100);
    for n in 0..5 * MAX_NEW_FLOWS {
        let [_, high, x, y] = n.to_be_bytes();
        let syn = frame::tcp(1000 + u16::from(high), u16::from_be_bytes([x, y]), SYN, b"");
        let packet = Ip::default().packet(client(false), p.address(), syn);
        assert_eq!(p.k.run_quickly(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet)), REDIRECT);
    }
    let flows = p.flows();
    assert!(flows.new.len() <= MAX_NEW_FLOWS as usize && flows.new.len() > MAX_NEW_FLOWS as usize / 2);
    assert_eq!(flows.settled.into_keys().collect::<Vec<_>>(), settled);
}

#[test]
fn keys_say_who_speaks_with_whom() {
    let mut p = Pair::new(false, Peer::There);
    p.c(frame::udp(4000, 53, b"?"));
    let key: CtKey4 = bytemuck::pod_read_unaligned(&p.flows().new.pop_first().expect("one").0);
    let end = |a: IpAddr, port| match a {
        IpAddr::V4(a) => (Ip4::from(a), Be16::from_host(port)),
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let mut ends = [(key.lo, key.lo_port), (key.hi, key.hi_port)];
    let mut want = [end(client(false), 4000), end(pod(false, 1, 7), 53)];
    ends.sort();
    want.sort();
    assert_eq!((ends, key.proto, key.asks, key.pad), (want, 17, 0, 0));
}
