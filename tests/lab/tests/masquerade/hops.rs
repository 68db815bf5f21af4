//! Who is on a pod's way to the world: its node, the router, the host.
use std::net::IpAddr;

use lab::tool;

use crate::{
    Rig,
    hops_said::{hops, lossless},
    option,
};

/// The tool shows the hops in order, from a line that begins with the hop's number and `separator`.
fn shows(command: &str, separator: &str) {
    let rig = Rig::new(&[]);
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
    rig.lab.down().unwrap();
}

#[test]
fn traceroute_by_udp_shows_node_router_and_host() {
    shows("traceroute -46 -n -q 1 -w 2 -m 5", " ");
}

#[test]
fn traceroute_by_echo_requests_shows_the_same() {
    shows("traceroute -46 -I -n -q 1 -w 2 -m 5", " ");
}

#[test]
fn traceroute_by_tcp_shows_the_same() {
    shows("traceroute -46 -T -n -q 1 -w 2 -m 5", " ");
}

#[test]
fn mtr_shows_the_same_and_loses_nothing() {
    shows("mtr -46 --report --report-cycles 3 --interval 0.1 --gracetime 0.5 --no-dns -m 5", ".|--");
}
