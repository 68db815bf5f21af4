//! Every protocol, and whom the world sees.
use std::net::IpAddr;

use lab::{
    pair::until,
    probe::{self, Family, Flow, Place, Wire},
    tool,
};

use crate::{
    DEVICE, MUCH, Rig, cases,
    ends::{ask, hear_echo, port_of, udp_at},
    world,
};

/// The host answers by every protocol, and sees the pod under `seen` and its own port.
fn reaches_as(pod: &Place, host: &Place, seen: IpAddr) {
    let family = if seen.is_ipv4() { Family::V4 } else { Family::V6 };
    let what = format!("{} → {} over {family}", pod.name, host.name);
    let client = udp_at(pod, family, 0);
    let server = udp_at(host, family, 0);
    for _ in 0..2 {
        let by = ask(&client, &server, host.address(family).unwrap()).unwrap_or_else(|e| panic!("UDP {what}: {e:#}"));
        assert_eq!((by.ip(), by.port()), (seen, port_of(&client)), "UDP {what}");
    }
    let mut flow = Flow::open(pod, host, family).unwrap();
    assert_eq!((flow.seen().ip(), flow.seen().port()), (seen, flow.client().unwrap().port()), "TCP {what}");
    flow.exchange(MUCH).unwrap();
    let wire = Wire::open(host, DEVICE).unwrap();
    probe::ping(pod, host, family).unwrap();
    assert_eq!(hear_echo(&wire, family).unwrap().0, seen, "echo {what}");
}

fn the_world_sees_the_node_and_the_pods_own_port(rig: &Rig) {
    rig.each(|side, pod, family| {
        for host in [&rig.near, &rig.narrow, &rig.router] {
            reaches_as(pod, host, side.address(family));
        }
    });
}

fn nobody_of_the_cluster_sees_the_node_in_a_pods_place(rig: &Rig) {
    let [ordinary, hostile] = &rig.sides;
    for family in Family::BOTH {
        for (pod, to) in [
            (&ordinary.pods[0], &ordinary.pods[1]),
            (&ordinary.pods[0], &hostile.pods[0]),
            (&hostile.pods[0], &ordinary.pods[0]),
            (&ordinary.pods[0], &ordinary.node),
            (&ordinary.pods[0], &hostile.node),
            (&hostile.pods[0], &hostile.node),
            (&hostile.pods[0], &ordinary.node),
        ] {
            let own = Some(pod.address(family).unwrap());
            assert_eq!(probe::udp(pod, to, family).unwrap().seen, own, "{} → {}", pod.name, to.name);
            assert_eq!(probe::tcp(pod, to, family).unwrap().seen, own, "{} → {}", pod.name, to.name);
            probe::ping(pod, to, family).unwrap();
        }
    }
}

fn the_address_is_that_of_the_device_by_which_the_route_leaves(rig: &Rig) {
    let pod = &rig.sides[1].pods[0];
    let hostile = rig.lab.hostile().unwrap();
    let (outside, nic) = (hostile.outside().unwrap(), hostile.on_second_nic().unwrap());
    // A device that nobody is said to be behind is none that pods leave by.
    for family in Family::BOTH {
        let via = outside.address(family).unwrap();
        let words = format!("ip {} route add default via {via} dev eth1 metric 5000", crate::option(family));
        tool::succeeds(&nic, &words).unwrap();
    }
    until("the agent watches the second NIC", || {
        let status = rig.lab.node("node-2").unwrap().ask("/v1/status").unwrap();
        status["datapath"]["programs"].to_string().contains("eth1")
    })
    .unwrap();
    for family in Family::BOTH {
        reaches_as(pod, &outside, nic.address(family).unwrap());
        reaches_as(pod, &rig.near, rig.sides[1].address(family));
    }
}

#[test]
fn pods_appear_to_the_world_as_their_node() {
    Rig::new(&[]).run(cases!(
        world::nodes_reach_the_world_and_are_told_how_narrow_it_is,
        the_world_sees_the_node_and_the_pods_own_port,
        nobody_of_the_cluster_sees_the_node_in_a_pods_place,
        the_address_is_that_of_the_device_by_which_the_route_leaves,
    ));
}

#[test]
fn pods_appear_to_the_world_as_their_node_when_tunnels_are_over_ipv6() {
    Rig::new(&["--underlay", "ipv6"]).run(cases!(
        the_world_sees_the_node_and_the_pods_own_port,
        nobody_of_the_cluster_sees_the_node_in_a_pods_place
    ));
}
