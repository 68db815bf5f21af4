//! Tables that are full, or held by one.
use cni_common::{drop::Outcome, schema::MAX_HELD};

use super::*;

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
