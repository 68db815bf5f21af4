//! Which port of the node a flow gets.
use std::{collections::BTreeSet, net::SocketAddr, ops::RangeInclusive};

use lab::{
    PodSpec,
    probe::{Family, Flow, Place},
};

use crate::{
    Rig, Side, cases,
    ends::{ask, dropped, listen, port_of, udp_at},
};

/// What a flow gets whose own port is not free.
const GIVEN: RangeInclusive<u16> = 61_000..=65_535;

/// A flow of this port is seen as the node's, under a port that was given.
fn is_given(side: &Side, own: u16, seen: SocketAddr) {
    let family = if seen.is_ipv4() { Family::V4 } else { Family::V6 };
    assert_eq!(seen.ip(), side.address(family), "{}", side.node.name);
    assert!(GIVEN.contains(&seen.port()) && seen.port() != own, "{seen} for port {own} on {}", side.node.name);
}

fn two_pods_with_one_port_speak_to_one_destination(rig: &Rig) {
    rig.each(|side, first, family| {
        let second = &side.pods[1];
        let [server, other] = [0; 2].map(|port| udp_at(&rig.near, family, port));
        let to = rig.near.address(family).unwrap();
        let a = udp_at(first, family, 0);
        let port = port_of(&a);
        let b = udp_at(second, family, port);
        let (seen_a, seen_b) = (ask(&a, &server, to).unwrap(), ask(&b, &server, to).unwrap());
        assert_eq!(seen_a, SocketAddr::new(side.address(family), port), "who comes first has its own");
        is_given(side, port, seen_b);
        for _ in 0..3 {
            assert_eq!((ask(&a, &server, to).unwrap(), ask(&b, &server, to).unwrap()), (seen_a, seen_b));
        }
        // Towards another one it is free.
        assert_eq!(ask(&b, &other, to).unwrap(), seen_a);

        let listener = listen(&rig.near, family);
        let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let mut a = Flow::open_from(first, 0, &listener, to).unwrap();
        let port = a.client().unwrap().port();
        let mut b = Flow::open_from(second, port, &listener, to).unwrap();
        assert_eq!(a.seen(), SocketAddr::new(side.address(family), port));
        is_given(side, port, b.seen());
        for flow in [&mut a, &mut b] {
            flow.exchange(100_000).unwrap();
        }
    });
}

/// Names who is wrong.
fn asks(what: &str, result: anyhow::Result<SocketAddr>) -> SocketAddr {
    result.unwrap_or_else(|e| panic!("{what}: {e:#}"))
}

fn what_the_node_uses_itself_no_pod_gets(rig: &Rig) {
    rig.each(|side, pod, family| {
        let to = rig.near.address(family).unwrap();
        let listener = listen(&rig.near, family);
        let tcp = SocketAddr::new(to, listener.local_addr().unwrap().port());
        let mut own = Flow::open_from(&side.node, 0, &listener, tcp).unwrap();
        let port = own.client().unwrap().port();
        let mut theirs = Flow::open_from(pod, port, &listener, tcp).unwrap();
        is_given(side, port, theirs.seen());
        for flow in [&mut own, &mut theirs] {
            flow.exchange(100_000).unwrap();
        }

        let server = udp_at(&rig.near, family, 0);
        let own = udp_at(&side.node, family, 0);
        let port = port_of(&own);
        own.connect(SocketAddr::new(to, port_of(&server))).unwrap();
        let theirs = udp_at(pod, family, port);
        // Before the node has sent anything, too: the socket is there.
        is_given(side, port, asks("the pod", ask(&theirs, &server, to)));
        own.send(b"mine").unwrap();
        let (_, seen) = server.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(seen, SocketAddr::new(side.address(family), port));
        server.send_to(b"yours", seen).unwrap();
        own.recv(&mut [0; 8]).unwrap();
        is_given(side, port, asks("the pod again", ask(&theirs, &server, to)));
    });
}

fn a_pod_gives_up_what_the_node_begins_to_use(rig: &Rig) {
    rig.each(|side, pod, family| {
        let to = rig.near.address(family).unwrap();
        let server = udp_at(&rig.near, family, 0);
        let theirs = udp_at(pod, family, 0);
        let port = port_of(&theirs);
        let own = SocketAddr::new(side.address(family), port);
        assert_eq!(asks("the pod", ask(&theirs, &server, to)), own);
        let node = udp_at(&side.node, family, port);
        // Whom the world answers is seen by this alone: a server that is bound to the port speaks to everybody.
        node.connect(SocketAddr::new(to, port_of(&server))).unwrap();
        assert_eq!(asks("the node", ask(&node, &server, to)), own);
        is_given(side, port, asks("the pod afterwards", ask(&theirs, &server, to)));
        assert_eq!(asks("the node again", ask(&node, &server, to)), own);
    });
}

#[test]
fn a_flow_for_which_no_port_is_left_is_dropped_by_name_and_no_other_one_is() {
    let mut rig = Rig::new(&["--masquerade-ports", "62000-62001"]);
    let more = ["c1", "d1"].map(|name| {
        let added = rig.lab.pod_add("node-1", &PodSpec::named(name)).unwrap();
        added.pod.place().unwrap()
    });
    let side = &rig.sides[0];
    for family in Family::BOTH {
        let [server, other] = [0; 2].map(|port| udp_at(&rig.near, family, port));
        let to = rig.near.address(family).unwrap();
        let pods = [&side.pods[0], &side.pods[1], &more[0], &more[1]];
        let clients = pods.map(|pod| udp_at(pod, family, 20_000));
        let [a, b, c] = [0, 1, 2].map(|n| asks("one of the first three", ask(&clients[n], &server, to)).port());
        assert_eq!((a, BTreeSet::from([b, c])), (20_000, BTreeSet::from([62_000, 62_001])));
        let before = dropped(rig.lab.node("node-1").unwrap(), "NatExhausted");
        let lost = ask(&clients[3], &server, to).unwrap_err();
        assert!(format!("{lost:#}").contains("was not asked"), "{lost:#}");
        assert_eq!(dropped(rig.lab.node("node-1").unwrap(), "NatExhausted"), before + 1);
        assert_eq!(asks("of another host", ask(&clients[3], &other, to)).port(), 20_000);
        assert_eq!(asks("the first one again", ask(&clients[0], &server, to)).port(), 20_000);
    }
    rig.lab.down().unwrap();
}

fn many_flows_with_the_same_ports_are_kept_apart(rig: &Rig) {
    const FLOWS: u16 = 200;
    rig.each(|side, first, family| {
        let server = udp_at(&rig.near, family, 0);
        let to = rig.near.address(family).unwrap();
        // Below what kernels choose themselves.
        let sockets = |pod: &Place| (20_000..20_000 + FLOWS).map(|port| udp_at(pod, family, port)).collect::<Vec<_>>();
        let mut all = sockets(first);
        all.extend(sockets(&side.pods[1]));
        let seen: Vec<_> = all.iter().map(|client| asks("a first time", ask(client, &server, to))).collect();
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), all.len(), "no two are seen as one");
        for (client, seen) in all.iter().zip(&seen) {
            assert_eq!(asks("again", ask(client, &server, to)), *seen);
        }
    });
}

fn a_server_of_the_node_in_the_range_that_is_given_is_reached(rig: &Rig) {
    const PORT: u16 = 61_234;
    rig.each(|side, pod, family| {
        let (client, server) = (udp_at(&rig.near, family, 0), udp_at(&side.node, family, PORT));
        let theirs = SocketAddr::new(rig.near.address(family).unwrap(), port_of(&client));
        assert_eq!(asks("the world", ask(&client, &server, side.address(family))), theirs);
        // And a pod that has this port of its own is another one.
        let pods = udp_at(pod, family, PORT);
        let other = udp_at(&rig.near, family, 0);
        asks("the pod", ask(&pods, &other, theirs.ip()));
        assert_eq!(asks("the world again", ask(&client, &server, side.address(family))), theirs);
    });
}

/// An identifier that both ping with is one of two flows, too.
fn two_pods_ping_under_one_identifier(rig: &Rig) {
    rig.each(|side, first, family| {
        let to = rig.near.address(family).unwrap();
        let line = format!("ping {} -n -c 2 -i 0.2 -W 1 -e 4711 {to}", crate::option(family));
        let both: [&Place; 2] = [first, &side.pods[1]];
        for pod in both.into_iter().chain(both) {
            let said = lab::tool::succeeds(pod, &line).unwrap();
            assert!(said.contains("2 received"), "{}: {said}", pod.name);
        }
    });
}

#[test]
fn no_two_flows_have_one_port_of_the_node() {
    Rig::new(&[]).run(cases!(
        two_pods_with_one_port_speak_to_one_destination,
        what_the_node_uses_itself_no_pod_gets,
        a_pod_gives_up_what_the_node_begins_to_use,
        many_flows_with_the_same_ports_are_kept_apart,
        a_server_of_the_node_in_the_range_that_is_given_is_reached,
        two_pods_ping_under_one_identifier
    ));
}
