//! How often rules and policy sets have decided, as the loaded programs count it. Needs root.
use std::net::IpAddr;

use bytemuck::bytes_of;
use cni_agent::datapath::hits::{Hits, Judged, forget_sets};
use cni_common::{
    drop::{DropReason as D, Outcome, Point},
    net::Mac,
    policy::{HitKey, VERDICT_ALLOW},
    schema,
    wire::TCP,
};
use cni_ebpf::fake::{
    Fake,
    policy::{CLIENT_OUT, CLIENT_OUT_AUDITED, SERVER_IN, audit, isolate},
};
use packets::{
    fill,
    frame::{self, Ip},
    kernel::Kernel,
    world::*,
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A node with isolated pods (see [`isolate`]), its programs, and one family.
struct Isolated {
    k: Kernel,
    w: Fake,
    v6: bool,
}

fn each(prepare: impl Fn(&mut Fake), test: impl Fn(Isolated)) {
    for v6 in [false, true] {
        let mut w = world();
        isolate(&mut w);
        prepare(&mut w);
        let mut k = Kernel::empty();
        fill::fill(k.datapath(), &w);
        test(Isolated { k, w, v6 });
    }
}

impl Isolated {
    /// What becomes of a packet of the client's.
    fn sends(&mut self, dst: IpAddr, port: u16, flags: u8) -> Result<Outcome, D> {
        let src = client(self.v6);
        let l4 = frame::summed(src, dst, frame::tcp(40_000, port, flags, b""), false);
        let packet = frame::eth(CLIENT_MAC, Mac::WEFT, Ip::default().packet(src, dst, l4));
        self.k.run(Point::FromPod, &packet).expect("an ordinary frame").counted[0].1
    }
    fn opens(&mut self, port: u16) -> Result<Outcome, D> {
        self.sends(server(self.v6), port, SYN)
    }
    fn raise_epoch(&mut self) {
        self.w.ct_config.epoch += 1;
        fill::fill(self.k.datapath(), &self.w);
    }
    /// The cookie of a rule set's entry for this port of TCP.
    fn cookie(&self, rules: u32, port: u16) -> u32 {
        let is_it =
            |key: &cni_common::policy::RuleKey| (key.rules, key.proto, key.port) == (rules, TCP, port.to_be_bytes());
        self.w.policy.rules.iter().find(|(_, key, _)| is_it(key)).expect("is there").2.cookie
    }
    fn hits(&mut self) -> Hits {
        Hits::read(self.k.datapath()).expect("is read")
    }
}

fn allowed(n: u64) -> Judged {
    Judged { allowed: n, ..Judged::default() }
}
fn denied(n: u64) -> Judged {
    Judged { denied: n, ..Judged::default() }
}
fn audited(n: u64) -> Judged {
    Judged { audited: n, ..Judged::default() }
}

#[test]
fn a_flow_counts_at_both_ends_once_for_each_judgement() {
    each(
        |_| {},
        |mut n| {
            let (out, into) = (n.cookie(19, 80), n.cookie(16, 80));
            assert_eq!(n.opens(80), Ok(Outcome::Peer));
            assert_eq!((n.hits().of_rule(out), n.hits().of_rule(into)), (allowed(1), allowed(1)));
            // Its flow is known, until policies change.
            assert_eq!(n.sends(server(n.v6), 80, ACK), Ok(Outcome::Peer));
            assert_eq!((n.hits().of_rule(out), n.hits().of_rule(into)), (allowed(1), allowed(1)));
            n.raise_epoch();
            assert_eq!(n.sends(server(n.v6), 80, ACK), Ok(Outcome::Peer));
            assert_eq!((n.hits().of_rule(out), n.hits().of_rule(into)), (allowed(2), allowed(2)));
            assert_eq!(n.hits().of_set(CLIENT_OUT), Judged::default());
        },
    );
}

#[test]
fn what_is_denied_counts_packet_by_packet_for_the_rule_that_says_so_or_for_the_policy_set() {
    each(
        |_| {},
        |mut n| {
            let out = outside(n.v6);
            let by_rule = n.cookie(20, 53);
            for times in 1..=2 {
                assert_eq!(n.sends(out, 53, SYN), Err(D::PolicyEgress));
                assert_eq!(n.hits().of_rule(by_rule), denied(times));
            }
            // No rule of the sender's allows it, and the other end is not asked.
            assert_eq!(n.opens(79), Err(D::PolicyEgress));
            assert_eq!((n.hits().of_set(CLIENT_OUT), n.hits().of_set(SERVER_IN)), (denied(1), Judged::default()));
            // The sender's rule allows it, and no rule of the other end.
            let out = n.cookie(19, 443);
            assert_eq!(n.opens(443), Err(D::PolicyIngress));
            assert_eq!((n.hits().of_rule(out), n.hits().of_set(SERVER_IN)), (allowed(1), denied(1)));
        },
    );
}

#[test]
fn what_passes_for_audit_counts_by_itself() {
    each(audit, |mut n| {
        let into = n.cookie(16, 80);
        assert_eq!(n.opens(80), Ok(Outcome::Peer));
        assert_eq!(n.hits().of_rule(into), audited(1));
        assert_eq!(n.opens(79), Err(D::PolicyIngress));
        assert_eq!((n.hits().of_set(CLIENT_OUT_AUDITED), n.hits().of_set(SERVER_IN)), (audited(1), denied(1)));
    });
}

#[test]
fn a_full_map_forgets_and_counts_on_and_numbers_of_policy_sets_are_forgotten_alone() {
    each(
        |_| {},
        |mut n| {
            let of_others = (0..2 * schema::MAX_HITS).map(|by| HitKey::of_rule(1_000_000 + by, VERDICT_ALLOW));
            for key in of_others {
                n.k.datapath().map(&schema::HITS).update(bytes_of(&key), &1_u64.to_ne_bytes()).expect("is written");
            }
            let (out, into) = (n.cookie(19, 80), n.cookie(16, 80));
            for times in 1..=3 {
                assert_eq!(n.opens(80), Ok(Outcome::Peer));
                assert_eq!((n.hits().of_rule(out), n.hits().of_rule(into)), (allowed(times), allowed(times)));
                n.raise_epoch();
            }
            let entries = n.k.datapath().map(&schema::HITS).keys().expect("is read").len();
            assert!(entries <= schema::MAX_HITS as usize, "{entries}");
            assert_eq!(n.opens(79), Err(D::PolicyEgress));
            assert_eq!(n.hits().of_set(CLIENT_OUT), denied(1));
            forget_sets(n.k.datapath()).expect("is written");
            assert_eq!((n.hits().of_set(CLIENT_OUT), n.hits().of_rule(out)), (Judged::default(), allowed(3)));
        },
    );
}
