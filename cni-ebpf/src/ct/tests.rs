//! Flows by example, protocol by protocol, and by property.
use std::cell::{Cell, RefCell};

use cni_common::{
    drop::{Outcome, Point},
    maps::{CT_HI_ALLOWED, CT_HI_OPENED, CT_LO_ALLOWED, CtEntry, Fragments},
    net::{Be16, Mac, Ports},
    schema::MAX_HELD,
    wire::{ETH_LEN, SCTP},
};
use proptest::prelude::*;

use super::{
    Ask, CtEnv,
    Direction::{self, Back, Forth},
    Ends, Flow, Flows, Granted, Promotion, Tracked,
    entry::{Stage, stage},
    key::{self, Asker, Rest},
    lifetime, signal, track,
};
use crate::{
    DropReason, Res,
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        world,
    },
    family::{self, Family, V4, V6},
};

const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const HZ: u64 = 250;

/// Two pods of one node, and who was asked.
struct Pair {
    w: Fake,
    v6: bool,
    ends: Ends,
    asked: RefCell<Vec<Direction>>,
    refuse: Cell<Option<DropReason>>,
}

fn pairs() -> impl Iterator<Item = Pair> {
    [false, true].into_iter().map(|v6| Pair {
        w: Fake::default(),
        v6,
        ends: Ends { from: 11, to: 12 },
        asked: RefCell::default(),
        refuse: Cell::new(None),
    })
}

impl Pair {
    fn send_as<F: Family>(&self, f: &mut Frame, ends: Ends) -> Res<()>
    where
        Fake: Flows<F>,
    {
        let ip = family::parse::<F, _>(f, ETH_LEN, 4)?;
        let judge = |direction| {
            self.asked.borrow_mut().push(direction);
            self.refuse.get().map_or(Ok(()), Err)
        };
        let ask = Ask::new(Point::FromPod, ETH_LEN, &ip, ends);
        let heard = if ip.part.is_later() { signal::NOTHING } else { signal::hear(f, ask) };
        let ask = Ask { heard, ..ask };
        let Tracked::Judge(direction) = track::<F, _, _>(f, &self.w, ask, Granted::NO)? else { return Ok(()) };
        judge(direction)?;
        let granted = Granted::by(self.w.ct_config.epoch);
        assert_eq!(track::<F, _, _>(f, &self.w, ask, granted)?, Tracked::Known);
        Ok(())
    }

    fn send_frame(&self, f: &mut Frame, ends: Ends) -> Res<()> {
        if self.v6 { self.send_as::<V6>(f, ends) } else { self.send_as::<V4>(f, ends) }
    }

    fn send_ip(&self, from_client: bool, ip: &Ip, l4: (u8, Vec<u8>)) -> Res<()> {
        let (c, s, Ends { from, to }) = (world::client(self.v6), world::server(self.v6), self.ends);
        let (src, dst, ends) = if from_client { (c, s, self.ends) } else { (s, c, Ends { from: to, to: from }) };
        let mut f = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, ip.packet(src, dst, l4)), 1);
        self.send_frame(&mut f, ends)
    }

    /// The client sends.
    fn c(&self, l4: (u8, Vec<u8>)) -> &Self {
        self.send_ip(true, &Ip::default(), l4).expect("is allowed");
        self
    }
    /// The server sends.
    fn s(&self, l4: (u8, Vec<u8>)) -> &Self {
        self.send_ip(false, &Ip::default(), l4).expect("is allowed");
        self
    }

    fn after(&self, seconds: u64) -> &Self {
        self.w.now.set(self.w.now.get() + seconds * HZ);
        self
    }

    fn tables(&self) -> &crate::fake::flows::FlowTables {
        if self.v6 { &self.w.ct6 } else { &self.w.ct4 }
    }
    /// Settled flows and new ones.
    fn counts(&self) -> (usize, usize) {
        (self.tables().flows.dump().len(), self.tables().new.dump().len())
    }
    /// The only flow.
    fn flow(&self) -> CtEntry {
        let all: Vec<_> =
            self.tables().flows.dump().into_values().chain(self.tables().new.dump().into_values()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }
    fn stage(&self) -> Stage {
        let e = self.flow();
        stage(e.lo_sent.into(), e.hi_sent.into())
    }
    /// Seconds.
    fn lifetime(&self) -> u32 {
        self.flow().lifetime / HZ as u32
    }
    fn asked(&self) -> Vec<Direction> {
        self.asked.take()
    }
    /// With an established TCP flow, client to server.
    fn established(self) -> Self {
        self.c(tcp(SYN)).s(tcp_back(SYN_ACK)).c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!((self.stage(), self.counts(), self.asked()), (Stage::Established, (1, 0), vec![Forth]));
        self
    }
}

fn tcp(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(40_000, 443, flags, b"")
}
fn tcp_back(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(443, 40_000, flags, b"")
}
fn sctp(sport: u16, dport: u16, chunk: u8) -> (u8, Vec<u8>) {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    body.extend([0, 0, 0, 7, 0, 0, 0, 0, chunk, 0, 0, 4]);
    (SCTP, body)
}
fn echo(v6: bool, reply: bool) -> (u8, Vec<u8>) {
    let (proto, mut body) = frame::ping(v6);
    body[0] = match (v6, reply) {
        (false, false) => 8,
        (false, true) => 0,
        (true, false) => 128,
        (true, true) => 129,
    };
    (proto, body)
}

#[test]
fn a_tcp_flow_is_judged_once_and_settles_with_the_answer() {
    for p in pairs() {
        p.c(tcp(SYN));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Handshake, (0, 1), lifetime::HANDSHAKE));
        p.s(tcp_back(SYN_ACK));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Handshake, (1, 0), lifetime::HANDSHAKE));
        p.c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Established, (1, 0), lifetime::ESTABLISHED));
        assert_eq!(p.asked(), [Forth]);
        assert_eq!(p.flow().charged, 11, "the opener pays");
        assert_eq!(p.tables().held.borrow()[&11], 1);
    }
}

#[test]
fn a_refused_connection_never_settles() {
    for p in pairs() {
        p.c(tcp(SYN)).s(tcp_back(RST | ACK));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Closed, (0, 1), lifetime::CLOSED));
        p.c(tcp(SYN));
        assert_eq!((p.stage(), p.counts(), p.asked()), (Stage::Handshake, (0, 1), vec![Forth, Forth]));
    }
}

#[test]
fn each_end_closes_its_direction_and_the_ports_are_used_again() {
    for p in pairs().map(Pair::established) {
        p.c(tcp(FIN));
        assert_eq!((p.stage(), p.lifetime()), (Stage::Closing, lifetime::CLOSING));
        p.s(tcp_back(ACK)).after(200).s(tcp_back(ACK)).after(200).s(tcp_back(ACK));
        assert_eq!(p.stage(), Stage::Closing, "the other direction lives on");
        p.s(tcp_back(FIN)).c(tcp(ACK));
        assert_eq!((p.stage(), p.lifetime(), p.asked()), (Stage::Closed, lifetime::CLOSED, vec![]));
        // From the other side this time.
        p.s(tcp_back(SYN));
        assert_eq!((p.stage(), p.counts(), p.asked()), (Stage::Handshake, (1, 0), vec![Forth]));
        p.c(tcp(SYN_ACK)).s(tcp_back(ACK));
        assert_eq!((p.stage(), p.asked()), (Stage::Established, vec![]));
        assert_eq!(p.tables().held.borrow()[&11], 1);
        p.policy_changes();
        p.c(tcp(ACK));
        assert_eq!(p.asked(), [Back], "the server opened it");
    }
}

impl Pair {
    /// Policy has changed.
    fn policy_changes(&self) {
        let raise = |e: &mut CtEntry| e.verdicts = e.verdicts & !0xffff_ffff | 7;
        for table in [&self.tables().flows, &self.tables().new] {
            for (key, mut e) in table.dump() {
                raise(&mut e);
                table.replace(&key, &e);
            }
        }
    }
}

#[test]
fn two_syns_that_cross_are_one_flow() {
    for p in pairs() {
        p.c(tcp(SYN)).s(tcp_back(SYN));
        assert_eq!((p.stage(), p.counts()), (Stage::Handshake, (1, 0)));
        p.c(tcp(SYN_ACK)).s(tcp_back(SYN_ACK));
        assert_eq!((p.stage(), p.lifetime(), p.asked()), (Stage::Established, lifetime::ESTABLISHED, vec![Forth]));
    }
}

#[test]
fn a_reset_is_believed_until_its_sender_goes_on() {
    for p in pairs().map(Pair::established) {
        p.s(tcp_back(RST)).c(tcp(ACK));
        assert_eq!((p.stage(), p.lifetime()), (Stage::Closed, lifetime::CLOSED));
        p.s(tcp_back(ACK));
        assert_eq!((p.stage(), p.lifetime()), (Stage::Established, lifetime::ESTABLISHED));
        p.s(tcp_back(RST)).c(tcp(SYN));
        assert_eq!((p.stage(), p.asked()), (Stage::Handshake, vec![Forth]), "a reset flow's ports are free");
    }
}

#[test]
fn a_syn_of_the_other_end_is_judged_by_itself_and_leaves_a_living_flow_alone() {
    for p in pairs().map(Pair::established) {
        let before = p.flow();
        p.s(tcp_back(SYN));
        assert_eq!((p.flow(), p.asked()), (before, vec![Forth]));
        p.refuse.set(Some(DropReason::Unroutable));
        assert_eq!(p.send_ip(false, &Ip::default(), tcp_back(SYN)), Err(DropReason::Unroutable));
        // The opener's is of the flow, as its verdict says.
        p.c(tcp(SYN)).c(tcp(ACK));
        assert_eq!(p.stage(), Stage::Established);
        // While the handshake lasts it cannot be a second opening once the first was answered.
        let q = Pair { w: Fake::default(), v6: p.v6, ends: p.ends, asked: RefCell::default(), refuse: Cell::new(None) };
        q.c(tcp(SYN)).s(tcp_back(SYN_ACK));
        q.asked();
        q.s(tcp_back(SYN));
        assert_eq!((q.asked(), q.stage()), (vec![Forth], Stage::Handshake));
    }
}

#[test]
fn what_answers_or_ends_begins_no_flow() {
    for p in pairs() {
        for l4 in [tcp(SYN_ACK), tcp(RST), tcp(FIN), sctp(1, 2, 6), sctp(1, 2, 14), sctp(1, 2, 2), echo(p.v6, true)] {
            p.c(l4);
            assert_eq!((p.counts(), p.asked()), ((0, 0), vec![Forth]));
        }
        // One that was there before there was a table.
        p.s(tcp_back(ACK)).c(tcp(ACK));
        assert_eq!((p.stage(), p.counts(), p.asked()), (Stage::Established, (1, 0), vec![Forth]));
    }
}

#[test]
fn what_is_refused_leaves_no_trace() {
    for p in pairs() {
        p.refuse.set(Some(DropReason::Unroutable));
        for l4 in [tcp(SYN), frame::udp(1, 2, b""), echo(p.v6, false)] {
            assert_eq!(p.send_ip(true, &Ip::default(), l4), Err(DropReason::Unroutable));
        }
        assert_eq!(p.counts(), (0, 0));
    }
}

#[test]
fn a_flow_without_packets_is_over_and_the_next_packet_begins_another() {
    for p in pairs().map(Pair::established) {
        p.after(u64::from(lifetime::ESTABLISHED) - 1).c(tcp(ACK));
        assert_eq!(p.asked(), []);
        p.after(u64::from(lifetime::ESTABLISHED)).s(tcp_back(FIN));
        assert_eq!((p.asked(), p.stage()), (vec![Forth], Stage::Established), "judged, not remembered");
        p.s(tcp_back(ACK));
        assert_eq!((p.asked(), p.stage(), p.counts()), (vec![Forth], Stage::Handshake, (1, 0)));
        assert_eq!(p.lifetime(), lifetime::HANDSHAKE);
        p.c(tcp(ACK));
        assert_eq!((p.asked(), p.stage()), (vec![], Stage::Established));
    }
}

#[test]
fn udp_settles_with_the_first_reply() {
    for p in pairs() {
        for (port, seconds) in [(8000, lifetime::UDP_FLOW), (53, lifetime::UDP_SERVICE)] {
            p.c(frame::udp(4000, port, b"?")).c(frame::udp(4000, port, b"?"));
            assert_eq!((p.counts(), p.lifetime()), ((0, 1), seconds));
            p.s(frame::udp(port, 4000, b"!"));
            assert_eq!((p.counts(), p.lifetime(), p.asked()), ((1, 0), seconds, vec![Forth]));
            p.after(seconds.into()).s(frame::udp(port, 4000, b"!"));
            assert_eq!(p.asked(), [Forth]);
            p.tables().flows.remove(&p.tables().flows.dump().into_keys().next().expect("one"));
        }
    }
}

#[test]
fn echoes_under_one_identifier_are_two_flows_if_both_ends_ask() {
    for p in pairs() {
        p.c(echo(p.v6, false));
        assert_eq!(p.counts(), (0, 1));
        p.s(echo(p.v6, true));
        assert_eq!((p.counts(), p.lifetime(), p.asked()), ((1, 0), lifetime::ECHO, vec![Forth]));
        p.s(echo(p.v6, false));
        assert_eq!((p.counts(), p.asked()), ((1, 1), vec![Forth]), "judged as the server's");
        p.c(echo(p.v6, true)).c(echo(p.v6, false)).s(echo(p.v6, true));
        assert_eq!((p.counts(), p.asked()), ((2, 0), vec![]));
        // Another identifier.
        let (proto, mut other) = echo(p.v6, false);
        other[5] ^= 1;
        p.c((proto, other));
        assert_eq!(p.counts(), (2, 1));
    }
}

#[test]
fn sctp_opens_and_shuts_down() {
    let (there, back) = (|chunk| sctp(5000, 36_412, chunk), |chunk| sctp(36_412, 5000, chunk));
    for p in pairs() {
        p.c(there(1));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Handshake, (0, 1), lifetime::HANDSHAKE));
        // INIT ACK, COOKIE ECHO, COOKIE ACK, DATA.
        p.s(back(2)).c(there(10)).s(back(11)).c(there(0));
        assert_eq!((p.stage(), p.counts(), p.lifetime()), (Stage::Established, (1, 0), lifetime::ESTABLISHED));
        // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
        p.c(there(7));
        assert_eq!((p.stage(), p.lifetime()), (Stage::Closing, lifetime::CLOSING));
        p.s(back(8)).c(there(14));
        assert_eq!((p.stage(), p.lifetime(), p.asked()), (Stage::Closed, lifetime::CLOSED, vec![Forth]));
        p.s(back(1)).c(there(2)).s(back(10)).c(there(6));
        assert_eq!((p.stage(), p.asked()), (Stage::Closed, vec![Forth]), "ABORT");
    }
}

#[test]
fn an_sctp_super_packet_is_data_whatever_lies_in_its_list() {
    for p in pairs() {
        p.c(sctp(1, 2, 1)).s(sctp(2, 1, 2)).c(sctp(1, 2, 10));
        let packet = Ip::default().packet(world::client(p.v6), world::server(p.v6), sctp(1, 2, 7));
        let data = frame::eth(Mac::WEFT, Mac::WEFT, packet);
        let linear = data.len() - 4;
        let mut f = Frame { gso: 0xffff, linear, ..Frame::new(data, 1) };
        let ends = p.ends;
        let before = p.flow();
        p.send_frame(&mut f, ends).expect("is allowed");
        assert_eq!((p.flow(), f.pulls.get()), (before, 0));
        // Any other one's bytes are pulled.
        f.gso = 0;
        p.send_frame(&mut f, ends).expect("is allowed");
        assert_eq!(p.stage(), Stage::Closing);
    }
}

#[test]
fn other_protocols_are_known_by_their_addresses() {
    for p in pairs() {
        p.c((47, vec![1; 8])).c((47, vec![2; 8]));
        assert_eq!((p.counts(), p.lifetime()), ((0, 1), lifetime::OTHER));
        p.s((47, vec![3; 8]));
        assert_eq!((p.counts(), p.asked()), ((1, 0), vec![Forth]));
        p.c((50, vec![3; 8]));
        assert_eq!(p.counts(), (1, 1));
    }
}

#[test]
fn later_fragments_of_which_nothing_is_known_and_errors_are_judged_each_time() {
    for p in pairs() {
        let error = if p.v6 { (58, vec![1, 4, 0, 0, 0, 0, 0, 0]) } else { (1, vec![3, 3, 0, 0, 0, 0, 0, 0]) };
        p.c(error);
        let late = Ip { frag: 0x2001, extensions: vec![(44, vec![0, 0, 0, 9, 0, 0, 0, 1])], ..Ip::default() };
        p.send_ip(true, &late, frame::udp(1, 2, b"middle")).expect("passes");
        assert_eq!((p.counts(), p.asked()), ((0, 0), vec![Forth, Forth]));
        let first = Ip { frag: 0x2000, extensions: vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 1])], ..Ip::default() };
        p.send_ip(true, &first, frame::udp(1, 2, b"begin")).expect("passes");
        assert_eq!((p.counts(), p.asked()), ((0, 1), vec![Forth]));
    }
}

#[test]
fn a_frame_that_ends_before_the_flags_is_short() {
    for p in pairs() {
        let (proto, mut body) = tcp(SYN);
        body.truncate(13);
        assert_eq!(p.send_ip(true, &Ip::default(), (proto, body)), Err(DropReason::Short));
        let (proto, mut body) = sctp(1, 2, 1);
        body.truncate(12);
        assert_eq!(p.send_ip(true, &Ip::default(), (proto, body)), Err(DropReason::Short));
    }
}

#[test]
fn an_older_epoch_is_judged_again_once_and_in_the_openers_direction() {
    for p in pairs().map(Pair::established) {
        p.policy_changes();
        p.s(tcp_back(ACK)).s(tcp_back(ACK)).c(tcp(ACK));
        assert_eq!(p.asked(), [Back]);
        for _ in 0..2 {
            p.policy_changes();
            p.c(tcp(ACK)).s(tcp_back(ACK));
            assert_eq!(p.asked(), [Forth]);
        }
        p.policy_changes();
        p.refuse.set(Some(DropReason::Unroutable));
        let before = p.flow();
        for _ in 0..2 {
            assert_eq!(p.send_ip(true, &Ip::default(), tcp(ACK)), Err(DropReason::Unroutable));
            assert_eq!(p.send_ip(false, &Ip::default(), tcp_back(ACK)), Err(DropReason::Unroutable));
        }
        assert_eq!(p.flow(), before, "nothing is remembered of a refusal");
        p.refuse.set(None);
        p.c(tcp(ACK));
        assert_eq!(p.stage(), Stage::Established, "allowed again");
    }
}

#[test]
fn an_end_that_was_elsewhere_is_judged_when_it_is_here() {
    for mut p in pairs() {
        p.ends = Ends { from: 11, to: 0 };
        p.c(tcp(SYN)).s(tcp_back(SYN_ACK)).c(tcp(ACK));
        let both = CT_LO_ALLOWED | CT_HI_ALLOWED;
        assert_eq!((p.flow().verdicts & both).count_ones(), 1);
        p.asked();
        p.ends = Ends { from: 11, to: 12 };
        p.s(tcp_back(ACK));
        assert_eq!((p.asked(), p.flow().verdicts & both), (vec![Back], both));
        // What is judged for both is good for one.
        p.ends = Ends { from: 0, to: 12 };
        p.c(tcp(ACK));
        assert_eq!(p.asked(), []);
        // And somebody pays, if the opener is elsewhere.
        p.tables().flows.remove(&p.tables().flows.dump().into_keys().next().expect("one"));
        p.c(tcp(SYN));
        assert_eq!(p.flow().charged, 12);
    }
}

#[test]
fn an_established_packet_writes_one_word_a_second() {
    for p in pairs().map(Pair::established) {
        let before = p.flow();
        for _ in 0..3 {
            p.c(tcp(ACK)).s(tcp_back(ACK));
        }
        assert_eq!(p.flow(), before);
        p.after(1).c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!(p.flow(), CtEntry { seen: before.seen + HZ, ..before });
    }
}

#[test]
fn without_room_a_flow_stays_where_it_is_and_passes() {
    for mut p in pairs() {
        if p.v6 { &mut p.w.ct6 } else { &mut p.w.ct4 }.flows.room = 0;
        p.c(tcp(SYN)).s(tcp_back(SYN_ACK)).c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!((p.counts(), p.stage(), p.asked()), ((0, 1), Stage::Established, vec![Forth]));
        assert!(p.w.notes.borrow().iter().all(|n| *n == (Point::FromPod, Outcome::CtFull)));
        let tries = p.w.notes.take().len();
        assert!(tries > 0);
        p.c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!(p.w.notes.take().len(), 0, "not tried with each packet");
        if p.v6 { &mut p.w.ct6 } else { &mut p.w.ct4 }.flows.room = 1;
        p.after(1).c(tcp(ACK));
        assert_eq!((p.counts(), p.stage()), ((1, 0), Stage::Established), "there is room again");
    }
}

#[test]
fn an_endpoint_with_its_share_of_the_table_gets_no_more_of_it() {
    for p in pairs() {
        p.tables().held.borrow_mut().insert(11, u64::from(MAX_HELD));
        p.c(tcp(SYN)).s(tcp_back(SYN_ACK)).c(tcp(ACK));
        assert_eq!((p.counts(), p.stage()), ((0, 1), Stage::Established));
        assert!(p.w.notes.take().contains(&(Point::FromPod, Outcome::CtQuota)));
        p.s(frame::tcp(7, 8, SYN, b"")).c(frame::tcp(8, 7, SYN_ACK, b""));
        assert_eq!(p.counts(), (1, 1), "another one does");
    }
}

#[test]
fn a_flood_of_new_flows_moves_no_established_one() {
    for mut p in pairs() {
        let tables = if p.v6 { &mut p.w.ct6 } else { &mut p.w.ct4 };
        (tables.flows.room, tables.new.room) = (128, 64);
        for port in 0..100 {
            p.c(frame::tcp(port, 443, SYN, b""))
                .s(frame::tcp(443, port, SYN_ACK, b""))
                .c(frame::tcp(port, 443, ACK, b""));
        }
        let established = p.tables().flows.dump();
        p.asked();
        for n in 0..5 * (128 + 64) {
            p.c(frame::tcp(1000 + n, 80, SYN, b""));
            p.c(frame::tcp(n % 100, 443, ACK, b"")).s(frame::tcp(443, n % 100, ACK, b""));
        }
        assert_eq!(p.asked().len(), 5 * (128 + 64), "only the flood is judged");
        assert_eq!(p.tables().flows.dump().len(), established.len());
        assert_eq!(p.tables().new.dump().len(), 64);
    }
}

#[test]
fn a_flow_that_another_cpu_moves_between_two_look_ups_is_found() {
    // Such a run sees neither table hold it; the model in `races` has no tables.
    struct Moving<'a> {
        pair: &'a Pair,
        looked: Cell<u32>,
    }
    impl CtEnv for Moving<'_> {
        fn blur(&self, n: u64, _: u64) -> u64 {
            n
        }
        fn ct_config(&self) -> Option<&cni_common::maps::CtConfig> {
            self.pair.w.ct_config()
        }
        fn jiffies(&self) -> u64 {
            self.pair.w.jiffies()
        }
        fn note(&self, point: Point, what: Outcome) {
            self.pair.w.note(point, what);
        }
    }
    impl Flows<V4> for Moving<'_> {
        fn flow(&self, key: &cni_common::maps::CtKey4) -> Option<&Flow> {
            self.looked.set(self.looked.get() + 1);
            // The first look-up was before, the second is after.
            if self.looked.get() == 1 { None } else { Flows::<V4>::flow(&self.pair.w, key) }
        }
        fn new_flow(&self, _: &cni_common::maps::CtKey4) -> Option<&Flow> {
            None
        }
        fn begin(&self, _: &cni_common::maps::CtKey4, _: &CtEntry) {
            panic!("it is no new flow");
        }
        fn replace(&self, _: &cni_common::maps::CtKey4, _: &CtEntry) {
            panic!("it is not over");
        }
        fn promote(&self, _: &cni_common::maps::CtKey4, _: &CtEntry) -> Promotion {
            panic!("it is settled");
        }
        fn forget(&self, _: &cni_common::maps::CtKey4) {
            panic!("it is settled");
        }
        fn fragments(&self, _: &cni_common::maps::FragKey4) -> Option<Fragments> {
            panic!("it is whole");
        }
        fn remember(&self, _: &cni_common::maps::FragKey4, _: &Fragments) {
            panic!("it is whole");
        }
        fn held(&self, _: u32) -> u64 {
            0
        }
        fn hold(&self, _: u32) {}
    }
    let p = pairs().next().expect("IPv4").established();
    let s = Moving { pair: &p, looked: Cell::new(0) };
    let packet = Ip::default().packet(world::server(false), world::client(false), tcp_back(ACK));
    let mut f = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1);
    let ip = family::parse::<V4, _>(&mut f, ETH_LEN, 4).expect("parses");
    let ask = Ask::new(Point::FromPod, ETH_LEN, &ip, Ends { from: 12, to: 11 });
    let ask = Ask { heard: signal::hear(&mut f, ask), ..ask };
    assert_eq!(track::<V4, _, _>(&mut f, &s, ask, Granted::NO), Ok(Tracked::Known));
}

fn rest(ports: (u16, u16), proto: u8, asker: Asker) -> Rest {
    let ports = Ports::new(Be16::from_host(ports.0), Be16::from_host(ports.1));
    Rest { ports, proto: proto.into(), asker }
}

/// A packet of TCP, by what it says.
fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![SYN, SYN_ACK, ACK, FIN, RST, RST | ACK, 0x18, 0x00, 0x29])
}

proptest! {
    #[test]
    fn both_directions_have_one_key_and_other_tuples_have_others(
        (a, b) in any::<([u8; 4], [u8; 4])>(), (c, d) in any::<([u8; 16], [u8; 16])>(),
        (x, y) in any::<(u16, u16)>(), proto in any::<u8>(), other in any::<u16>(),
    ) {
        use cni_common::net::{Ip4, Ip6};
        let (a, b, c, d) = (Ip4::new(a), Ip4::new(b), Ip6::new(c), Ip6::new(d));
        let (there, back) = (rest((x, y), proto, Asker::NONE), rest((y, x), proto, Asker::NONE));
        let ((k, k_hi), (l, l_hi)) = (key::of4(&a, &b, there), key::of4(&b, &a, back));
        prop_assert_eq!(k, l);
        prop_assert!(k_hi != l_hi || (a, x) == (b, y));
        let first = if k_hi { (k.hi, k.hi_port, k.lo, k.lo_port) } else { (k.lo, k.lo_port, k.hi, k.hi_port) };
        prop_assert_eq!(first, (a, Be16::from_host(x), b, Be16::from_host(y)));
        prop_assert_eq!((k.proto, k.asks, k.pad), (proto, 0, 0));
        let ((k, k_hi), (l, l_hi)) = (key::of6(&c, &d, there), key::of6(&d, &c, back));
        prop_assert_eq!(k, l);
        prop_assert!(k_hi != l_hi || (c, x) == (d, y));
        let first = if k_hi { (k.hi, k.hi_port, k.lo, k.lo_port) } else { (k.lo, k.lo_port, k.hi, k.hi_port) };
        prop_assert_eq!(first, (c, Be16::from_host(x), d, Be16::from_host(y)));
        prop_assert_eq!((k.proto, k.asks, k.pad), (proto, 0, 0));
        if other != x {
            prop_assert_ne!(key::of4(&a, &b, rest((other, y), proto, Asker::NONE)).0, key::of4(&a, &b, there).0);
        }
        prop_assert_ne!(key::of6(&c, &d, rest((x, y), !proto, Asker::NONE)).0, key::of6(&c, &d, there).0);
        // Requests of the one and replies of the other are one flow, requests of both are two.
        let asks = |src: &Ip4, dst: &Ip4, asker| key::of4(src, dst, rest((x, x), 1, asker)).0;
        prop_assert_eq!(asks(&a, &b, Asker::SENDER), asks(&b, &a, Asker::RECEIVER));
        prop_assert!(a == b || asks(&a, &b, Asker::SENDER) != asks(&b, &a, Asker::SENDER));
    }

    #[test]
    fn no_packet_but_the_ends_own_fin_or_reset_brings_an_established_flow_back(
        stray in prop::collection::vec((any::<bool>(), flags(), 0u64..500), 0..40),
    ) {
        for p in pairs().map(Pair::established) {
            for (from_client, flags, seconds) in &stray {
                if *flags & (0x01 | RST) == 0 {
                    p.after(*seconds);
                    if *from_client { p.c(tcp(*flags)) } else { p.s(tcp_back(*flags)) };
                    prop_assert_eq!(p.stage(), Stage::Established);
                    prop_assert_eq!(p.counts(), (1, 0));
                }
            }
        }
    }

    #[test]
    fn whatever_is_sent_the_flow_is_one_entry_that_lives_as_its_stage_says(
        sent in prop::collection::vec((any::<bool>(), flags(), 0u64..300), 1..40),
    ) {
        for p in pairs() {
            for (from_client, flags, seconds) in &sent {
                p.after(*seconds);
                if *from_client { p.c(tcp(*flags)) } else { p.s(tcp_back(*flags)) };
                let (settled, new) = p.counts();
                prop_assert!(settled + new <= 1);
                if settled + new == 1 {
                    let want = match p.stage() {
                        Stage::Handshake => lifetime::HANDSHAKE,
                        Stage::Established => lifetime::ESTABLISHED,
                        Stage::Closing => lifetime::CLOSING,
                        Stage::Closed => lifetime::CLOSED,
                    };
                    prop_assert_eq!(p.lifetime(), want);
                    prop_assert!(p.flow().seen <= p.w.now.get());
                }
            }
            prop_assert_eq!(p.tables().held.borrow().values().sum::<u64>(), p.counts().0 as u64);
        }
    }

    #[test]
    fn a_flow_ends_when_its_lifetime_has_passed_and_not_before(
        early in 0u64..u64::from(lifetime::ESTABLISHED) * HZ, late in 0u64..1 << 40,
    ) {
        for p in pairs().map(Pair::established) {
            p.w.now.set(p.flow().seen + early);
            p.s(tcp_back(ACK));
            prop_assert_eq!(p.asked(), vec![]);
            p.w.now.set(p.flow().seen + u64::from(lifetime::ESTABLISHED) * HZ + late);
            p.s(tcp_back(ACK));
            prop_assert_eq!(p.asked(), vec![Forth]);
            let lo_is_server = p.flow().verdicts & CT_HI_OPENED != 0;
            prop_assert_eq!(lo_is_server, p.flow().hi_sent != 0);
        }
    }
}

#[test]
fn flags_and_chunks_say_what_their_names_say() {
    use super::signal::{ANSWER, DATA, END, OPEN, RESET, of_chunk, of_flags};
    for flags in 0..=255_u8 {
        let want = match (flags & RST != 0, flags & SYN != 0, flags & ACK != 0, flags & 1 != 0) {
            (true, ..) => RESET,
            (_, true, false, _) => OPEN,
            (_, true, true, _) => ANSWER,
            (.., true) => END | DATA,
            _ => DATA,
        };
        assert_eq!(of_flags(flags), want, "{flags:#x}");
        let want = match flags {
            1 => OPEN,
            2 => ANSWER,
            6 => RESET,
            7 | 8 | 14 => END | DATA,
            _ => DATA,
        };
        assert_eq!(of_chunk(flags), want, "chunk {flags}");
    }
}
