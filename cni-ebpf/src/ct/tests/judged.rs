//! When a packet of a flow is judged, and what a known one costs.
use cni_common::{
    drop::Outcome,
    maps::{CT_HI_ALLOWED, CT_LO_ALLOWED, Fragments},
};

use super::{
    super::{CtEnv, Direction::Back, Flow, Promotion},
    *,
};

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
