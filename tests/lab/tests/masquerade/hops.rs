//! Who is on a pod's way to the world: its node, the router, the host.
use std::net::IpAddr;

use lab::tool;

use crate::{
    Rig, cases,
    hops_said::{hops, lossless},
    option,
};

/// The tool shows the hops in order, from a line that begins with the hop's number and `separator`.
fn shows(rig: &Rig, command: &str, separator: &str) {
    rig.each(|side, pod, family| {
        for host in [&rig.near, &rig.narrow] {
            let [node, router, to] =
                [side.address(family), rig.router.address(family).unwrap(), host.address(family).unwrap()];
            let line = format!("{} {to}", command.replace("-46", option(family)));
            let said = tool::succeeds(pod, &line).unwrap();
            let expected: Vec<Option<IpAddr>> = vec![Some(node), Some(router), Some(to)];
            assert_eq!(hops(&said, separator), expected, "{line} in {} says:\n{said}", pod.name);
            assert!(separator != ".|--" || lossless(&said), "{line} in {} says:\n{said}", pod.name);
        }
    });
}

fn traceroute_by_udp_shows_node_router_and_host(rig: &Rig) {
    shows(rig, "traceroute -46 -n -q 1 -w 2 -m 5", " ");
}

fn traceroute_by_echo_requests_shows_the_same(rig: &Rig) {
    shows(rig, "traceroute -46 -I -n -q 1 -w 2 -m 5", " ");
}

fn traceroute_by_tcp_shows_the_same(rig: &Rig) {
    shows(rig, "traceroute -46 -T -n -q 1 -w 2 -m 5", " ");
}

fn mtr_shows_the_same(rig: &Rig) {
    shows(rig, "mtr -46 --report --report-cycles 3 --interval 0.1 --gracetime 0.5 --no-dns -m 5", ".|--");
}

// Each test with a lab of its own: where the node's stack tells of the first hop, it does so six times, and then once a second.

#[test]
fn everybody_on_the_way_is_shown() {
    Rig::new(&[]).run(cases!(
        traceroute_by_udp_shows_node_router_and_host,
        traceroute_by_echo_requests_shows_the_same,
        traceroute_by_tcp_shows_the_same,
    ));
}

#[test]
fn mtr_shows_everybody_and_loses_nothing() {
    Rig::new(&[]).run(cases!(mtr_shows_the_same));
}
