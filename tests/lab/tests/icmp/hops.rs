//! Who is on the way: traceroute, tracepath, mtr.
use std::net::IpAddr;

use lab::{
    probe::{Family, Place},
    tool,
};

use crate::{
    Rig,
    hops_said::{hops, lossless},
    option,
};

/// Where a packet of the client may go, and whom it meets, the destination last.
fn ways(rig: &Rig, family: Family) -> Vec<(&Place, Vec<IpAddr>)> {
    let address = |place: &Place| place.address(family).unwrap();
    let first = address(&rig.near_node);
    vec![
        (&rig.near, vec![first, address(&rig.near)]),
        (&rig.far, vec![first, address(&rig.far)]),
        (&rig.far_node, vec![first, address(&rig.far_node)]),
        // Nobody is in between.
        (&rig.near_node, vec![first]),
    ]
}

fn assert_hops(rig: &Rig, family: Family, command: &str, separator: &str) {
    for (to, expected) in ways(rig, family) {
        let line = format!("{command} {}", to.address(family).unwrap());
        let said = tool::succeeds(&rig.client, &line).unwrap();
        let expected: Vec<_> = expected.into_iter().map(Some).collect();
        assert_eq!(hops(&said, separator), expected, "to {}: {line} says:\n{said}", to.name);
    }
}

/// On these underlays: one tool sees that hops do not depend on them.
fn on(underlays: &[Family], test: impl Fn(&Rig, Family)) {
    for underlay in underlays.iter().copied() {
        let rig = Rig::new(underlay);
        for family in Family::BOTH {
            test(&rig, family);
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn traceroute_by_udp_shows_the_node_and_then_the_destination() {
    on(&[Family::V4], |rig, family| {
        assert_hops(rig, family, &format!("traceroute {} -n -q 1 -w 2 -m 4", option(family)), " ")
    });
}

#[test]
fn traceroute_by_echo_requests_shows_the_same() {
    on(&[Family::V4], |rig, family| {
        assert_hops(rig, family, &format!("traceroute {} -I -n -q 1 -w 2 -m 4", option(family)), " ")
    });
}

#[test]
fn traceroute_by_tcp_shows_the_same() {
    on(&[Family::V4], |rig, family| {
        assert_hops(rig, family, &format!("traceroute {} -T -n -q 1 -w 2 -m 4", option(family)), " ")
    });
}

#[test]
fn mtr_shows_the_same_and_loses_nothing() {
    on(&[Family::V4], |rig, family| {
        for (to, expected) in ways(rig, family) {
            let line = format!(
                "mtr {} --report --report-cycles 3 --interval 0.1 --gracetime 0.5 --no-dns -m 4 {}",
                option(family),
                to.address(family).unwrap()
            );
            let said = tool::succeeds(&rig.client, &line).unwrap();
            let expected: Vec<_> = expected.into_iter().map(Some).collect();
            assert_eq!(hops(&said, ".|--"), expected, "to {}: {line} says:\n{said}", to.name);
            assert!(lossless(&said), "to {}: {line} says:\n{said}", to.name);
        }
    });
}

#[test]
fn tracepath_shows_the_same_and_the_mtu_of_the_way() {
    on(&Family::BOTH, |rig, family| {
        for (to, expected) in ways(rig, family) {
            let line = format!("tracepath {} -n -m 4 {}", option(family), to.address(family).unwrap());
            let said = tool::succeeds(&rig.client, &line).unwrap();
            let count = expected.len();
            // What a node itself sends loses no hop in its own programs.
            let back = if [&rig.near_node.name, &rig.far_node.name].contains(&&to.name) { 1 } else { count };
            let expected: Vec<_> = expected.into_iter().map(Some).collect();
            assert_eq!(hops(&said, ":"), expected, "to {}: {line} says:\n{said}", to.name);
            let resume = format!("Resume: pmtu {} hops {count} back {back}", rig.mtu);
            assert!(said.contains(&resume), "to {}: no `{resume}`; {line} says:\n{said}", to.name);
        }
    });
}
