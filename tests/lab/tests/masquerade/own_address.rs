//! Pods that keep their own addresses: because masquerade is off, the destination's CIDR is spared, or the world has opened the flow.
use std::net::SocketAddr;

use lab::{
    Ending,
    hostile::Policy,
    probe::{self, Family, Flow, Place, Wire},
    tool,
};

use crate::{
    DEVICE, MUCH, OFF, Rig, cases,
    ends::{ask, hear_echo, hear_udp, listen, port_of, udp_at},
    fragments,
};

/// It is answered by the world under its own address, by every protocol.
fn keeps_its_address(pod: &Place, host: &Place, family: Family) {
    let own = pod.address(family).unwrap();
    assert_eq!(probe::udp(pod, host, family).unwrap().seen, Some(own), "{} → {}", pod.name, host.name);
    let wire = Wire::open(host, DEVICE).unwrap();
    probe::ping(pod, host, family).unwrap();
    assert_eq!(hear_echo(&wire, family).unwrap().0, own, "{} → {}", pod.name, host.name);
    let mut flow = Flow::open(pod, host, family).unwrap();
    assert_eq!(flow.seen(), flow.client().unwrap(), "{} → {}", pod.name, host.name);
    flow.exchange(MUCH).unwrap();
}

/// Both nodes' pods are known to the world, and may be forwarded to it.
pub fn open_up(rig: &Rig) {
    for node in rig.lab.nodes() {
        rig.lab.world().unwrap().learn_pods(node).unwrap();
    }
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
}

fn pods_appear_as_themselves_and_who_does_not_know_them_cannot_answer(rig: &Rig) {
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
    rig.each(|_, pod, family| {
        let wire = Wire::open(&rig.near, DEVICE).unwrap();
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let lost = ask(&client, &server, rig.near.address(family).unwrap()).unwrap_err();
        assert!(format!("{lost:#}").contains("in vain"), "{lost:#}");
        let seen = hear_udp(&wire, port_of(&server)).unwrap();
        assert_eq!((seen.ip(), seen.port()), (pod.address(family).unwrap(), port_of(&client)));
    });
}

fn who_knows_them_answers(rig: &Rig) {
    open_up(rig);
    rig.each(|_, pod, family| [&rig.near, &rig.narrow].into_iter().for_each(|h| keeps_its_address(pod, h, family)));
}

#[test]
fn without_masquerade_pods_appear_as_themselves() {
    Rig::new(OFF).run(cases!(
        pods_appear_as_themselves_and_who_does_not_know_them_cannot_answer,
        who_knows_them_answers,
        fragments::large_datagrams_go_there_and_back_under_the_pods_own_address,
    ));
}

/// Whom the world sees that knows no pod, and whether it answers in time.
fn is_masqueraded(rig: &Rig, masqueraded: bool) {
    rig.each(|side, pod, family| {
        let wire = Wire::open(&rig.near, DEVICE).unwrap();
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let answered = ask(&client, &server, rig.near.address(family).unwrap());
        assert_eq!(answered.is_ok(), masqueraded, "{answered:?}");
        let expected = if masqueraded { side.address(family) } else { pod.address(family).unwrap() };
        assert_eq!(hear_udp(&wire, port_of(&server)).unwrap().ip(), expected);
    });
}

#[test]
fn masquerade_is_switched_off_and_on_with_the_agents_start() {
    let mut rig = Rig::new(&[]);
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
    is_masqueraded(&rig, true);
    for (args, masqueraded) in [(OFF, false), (&[], true)] {
        rig.lab.set_agent_args(args);
        for node in ["node-1", "node-2"] {
            rig.lab.restart_agent(node, Ending::Asked).unwrap();
        }
        is_masqueraded(&rig, masqueraded);
    }
    rig.lab.down().unwrap();
}

#[test]
fn pods_keep_their_address_towards_a_cidr_that_is_spared() {
    let rig = Rig::new(&["--no-masquerade-cidr", "198.51.100.0/24", "--no-masquerade-cidr", "2001:db8:51::/64"]);
    open_up(&rig);
    rig.each(|side, pod, family| {
        keeps_its_address(pod, &rig.near, family);
        let seen = probe::tcp(pod, &rig.narrow, family).unwrap().seen;
        assert_eq!(seen, Some(side.address(family)), "{} → {}", pod.name, rig.narrow.name);
    });
    rig.lab.down().unwrap();
}

/// Who opens a flow to the pod's own address is answered from there, by the way that it came.
fn is_answered(rig: &Rig, node: &Place, from: &Place, pod: &Place, family: Family) {
    let what = format!("{} → {}", from.name, pod.name);
    let (own, theirs) = (pod.address(family).unwrap(), from.address(family).unwrap());
    let wire = Wire::open(node, "weft_host").unwrap();
    let (client, server) = (udp_at(from, family, 0), udp_at(pod, family, 0));
    let seen = ask(&client, &server, own).unwrap_or_else(|e| panic!("{what}: {e:#}"));
    assert_eq!((seen.ip(), seen.port()), (theirs, port_of(&client)), "{what}");
    assert_eq!(
        hear_udp(&wire, port_of(&client)).unwrap().ip(),
        own,
        "{what}: the answer goes through the node's stack"
    );
    probe::ping(from, pod, family).unwrap();
    let mut flow = Flow::open(from, pod, family).unwrap();
    assert_eq!(flow.seen(), flow.client().unwrap(), "{what}");
    flow.exchange(MUCH).unwrap();
    // A packet of another flow in between changes nothing.
    if from.name == rig.near.name {
        assert_ne!(probe::udp(pod, from, family).unwrap().seen, Some(own), "{what}: its own flow");
        flow.exchange(MUCH).unwrap();
    }
}

fn the_world_is_answered_by_the_address_that_it_asked(rig: &Rig) {
    open_up(rig);
    rig.each(|side, pod, family| is_answered(rig, &side.node, &rig.near, pod, family));
}

fn who_came_through_the_nodes_stack_is_answered_through_it(rig: &Rig) {
    let hostile = rig.lab.hostile().unwrap();
    hostile.set_forward(Policy::Accept).unwrap();
    let side = &rig.sides[1];
    for family in Family::BOTH {
        for from in [hostile.container().unwrap(), hostile.outside().unwrap()] {
            is_answered(rig, &side.node, &from, &side.pods[0], family);
        }
    }
}

/// A host port, as portmap or kube-proxy make it: who asks the node is answered by a pod, and must not see that.
fn a_pod_behind_a_port_of_its_node_answers_as_the_node(rig: &Rig) {
    const PORT: u16 = 8080;
    if tool::says(&rig.near, "nft --version").is_err() {
        // The guests have none. The clients' suite tries portmap.
        eprintln!("there is no nft here");
        return;
    }
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
    rig.each(|side, pod, family| {
        let listener = listen(pod, family);
        let to = SocketAddr::new(pod.address(family).unwrap(), listener.local_addr().unwrap().port());
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let lines = format!(
            "nft add table {ip} hostport
             nft add chain {ip} hostport pre {{ type nat hook prerouting priority -100 ; }}
             nft add rule {ip} hostport pre tcp dport {PORT} dnat to {to}"
        );
        tool::script(&side.node, &lines).unwrap();
        let mut flow = Flow::open_from(&rig.near, 0, &listener, SocketAddr::new(side.address(family), PORT)).unwrap();
        assert_eq!(flow.seen().ip(), rig.near.address(family).unwrap(), "{}", pod.name);
        flow.exchange(MUCH).unwrap();
    });
}

#[test]
fn who_opens_a_flow_to_a_pod_is_answered_by_the_address_that_it_asked() {
    Rig::new(&[]).run(cases!(
        who_came_through_the_nodes_stack_is_answered_through_it,
        a_pod_behind_a_port_of_its_node_answers_as_the_node,
        the_world_is_answered_by_the_address_that_it_asked,
    ));
}
