//! Histories of many flows: none ever shares with another what the world writes to it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_common::{
    maps::NatConfig,
    wire::{ICMP, TCP, UDP},
};
use proptest::prelude::*;

use super::{
    Pair,
    port::{PROBES, probe},
    rig::{ACK, HZ, Node, SYN, Tested, echo, pod, syn},
};
use crate::{
    DropReason as D,
    fake::{frame, world},
    family::{V4, V6},
};

/// What pods do: who, its port, to which of two, by what, seconds before.
fn history() -> impl Strategy<Value = Vec<(u8, u16, bool, u8, u64)>> {
    let one = (
        11u8..15,
        1u16..4,
        any::<bool>(),
        prop::sample::select(vec![TCP, UDP, ICMP]),
        prop::sample::select(vec![0u64, 1, 30, 100, 250]),
    );
    prop::collection::vec(one, 1..80)
}

/// One of their packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct User {
    who: u8,
    port: u16,
}

fn peer(v6: bool, far: bool) -> IpAddr {
    if far { world::outside(v6) } else { world::underlay(v6, 200) }
}
fn question(v6: bool, proto: u8, port: u16) -> (u8, Vec<u8>) {
    match proto {
        TCP => syn(port),
        UDP => frame::udp(port, 4000, b"question"),
        _ => echo(v6, port, false),
    }
}
fn answer(v6: bool, proto: u8, port: u16) -> (u8, Vec<u8>) {
    match proto {
        TCP => frame::tcp(443, port, SYN | ACK, b""),
        UDP => frame::udp(4000, port, b"answer"),
        _ => echo(v6, port, true),
    }
}

fn no_two_flows_share<F: Tested>(history: &[(u8, u16, bool, u8, u64)]) {
    let mut n = Node::<F>::new();
    // So few that they are used again, and run out.
    n.w.nat_config.ports = 3;
    let mut users: BTreeMap<(bool, u8, u16), User> = BTreeMap::new();
    for &(who, port, far, proto, seconds) in history {
        n.after(seconds);
        let has_flow = |u: &User| {
            let (proto, body) = question(F::IS_6, proto, u.port);
            let mut f = Node::<F>::frame(pod(F::IS_6, u.who), peer(F::IS_6, far), (proto, body));
            let (ip, rest) = Node::<F>::read(&mut f);
            F::has_flow(&n.w, &Pair::sent(&ip.src, &ip.dst, rest))
        };
        let living = || -> BTreeSet<User> {
            users.iter().filter(|((f, p, _), u)| (*f, *p) == (far, proto) && has_flow(u)).map(|(_, u)| *u).collect()
        };
        let alive = living();
        // What has ended in this second is not free yet.
        n.w.now.set(n.w.now.get() - HZ);
        let kept = living().len();
        n.w.now.set(n.w.now.get() + HZ);
        match n.port_of(pod(F::IS_6, who), question(F::IS_6, proto, port), peer(F::IS_6, far)) {
            Ok(got) => {
                let before = users.insert((far, proto, got), User { who, port });
                let other = before.filter(|u| *u != User { who, port });
                assert!(other.is_none_or(|u| !alive.contains(&u)), "{got} was another living flow's");
            }
            Err(e) => {
                assert_eq!(e, D::NatExhausted);
                assert!(kept >= 4, "{kept} flows only");
            }
        }
        // Who used a port last gets the answers to it while its flow lives, and nobody else ever does.
        for ((far, proto, got), u) in &users {
            let from = peer(F::IS_6, *far);
            let mut f = Node::<F>::frame(from, n.here(), answer(F::IS_6, *proto, *got));
            if n.translate_back(&mut f).unwrap_or(false) {
                assert_eq!(f.data, Node::<F>::frame(from, pod(F::IS_6, u.who), answer(F::IS_6, *proto, u.port)).data);
            }
        }
    }
    assert!(n.tables().back.borrow().keys().all(|k| k[if F::IS_6 { 37 } else { 13 }] == 0), "a hold is left");
}

proptest! {
    #[test]
    fn two_flows_never_share_what_the_world_writes(history in history()) {
        no_two_flows_share::<V4>(&history);
        no_two_flows_share::<V6>(&history);
    }

    #[test]
    fn probes_are_in_the_range_and_spread(hash in any::<u32>(), first in 1024u32..65_000, ports in 1u32..70_000) {
        let ports = ports.min(65_536 - first);
        let cfg = NatConfig { first_port: first, ports };
        let probes: BTreeSet<u32> =
            (1..=PROBES).map(|n| u32::from(probe(&cfg, hash, n).to_host())).collect();
        prop_assert!(probes.iter().all(|p| (first..first + ports).contains(p)));
        prop_assert!(ports < 4 * PROBES || probes.len() == PROBES as usize, "{probes:?}");
    }
}
