//! What each protocol says, and how far its flow is then.
use super::{
    super::{Direction::Back, lifetime},
    *,
};

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
