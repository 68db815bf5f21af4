//! What the world says about a pod's packets, and a pod about the world's.
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
};

use lab::probe::{Family, LIMIT};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};

use crate::{
    Rig, cases,
    ends::{ask, port_of, udp_at},
};

fn a_port_at_which_nobody_is_refuses_the_pod(rig: &Rig) {
    rig.each(|_, pod, family| {
        for host in [&rig.near, &rig.narrow, &rig.router] {
            let to = SocketAddr::new(host.address(family).unwrap(), 7);
            let client = udp_at(pod, family, 0);
            client.connect(to).unwrap();
            client.send(b"anybody?").unwrap();
            let refused = client.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "UDP {} → {to}: {refused}", pod.name);
            let refused = pod.run(|| Ok(TcpStream::connect_timeout(&to, LIMIT).unwrap_err())).unwrap();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "TCP {} → {to}: {refused}", pod.name);
        }
    });
}

fn the_router_tells_the_pod_what_it_has_no_way_to(rig: &Rig) {
    rig.each(|_, pod, family| {
        let nowhere = match family {
            Family::V4 => "192.0.2.7:7",
            Family::V6 => "[2001:db8:2::7]:7",
        };
        let client = udp_at(pod, family, 0);
        // Without it a socket hears only of what will never change.
        match family {
            Family::V4 => setsockopt(&client, Ipv4RecvErr, &true).unwrap(),
            Family::V6 => setsockopt(&client, Ipv6RecvErr, &true).unwrap(),
        }
        client.connect(nowhere).unwrap();
        client.send(b"anybody?").unwrap();
        let refused = client.recv(&mut [0; 8]).unwrap_err();
        let says = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable].contains(&refused.kind());
        assert!(says, "{} → {nowhere}: {refused}", pod.name);
    });
}

fn a_pod_that_has_gone_away_refuses_the_world(rig: &Rig) {
    rig.each(|_, pod, family| {
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let seen = ask(&client, &server, rig.near.address(family).unwrap()).unwrap();
        drop(client);
        server.connect(seen).unwrap();
        server.send(b"still there?").unwrap();
        let refused = server.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "{} → {seen}, of {}: {refused}",
            rig.near.name,
            port_of(&server)
        );
    });
}

/// The pod's port at the node is open to the one that it has asked.
fn who_was_not_asked_speaks_to_the_node(rig: &Rig) {
    rig.each(|_, pod, family| {
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let to = rig.near.address(family).unwrap();
        let seen = ask(&client, &server, to).unwrap();
        for (who, port) in [(&rig.narrow, port_of(&server)), (&rig.near, 0), (&rig.router, 0)] {
            let stranger = udp_at(who, family, port);
            stranger.connect(seen).unwrap();
            stranger.send(b"let me in").unwrap();
            let refused = stranger.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{} → {seen}: {refused}", who.name);
        }
        // The next that the pod hears is what it has asked for.
        ask(&client, &server, to).unwrap();
    });
}

#[test]
fn errors_are_told_to_whom_they_are_about() {
    Rig::new(&[]).run(cases!(
        a_port_at_which_nobody_is_refuses_the_pod,
        the_router_tells_the_pod_what_it_has_no_way_to,
        a_pod_that_has_gone_away_refuses_the_world,
        who_was_not_asked_speaks_to_the_node,
    ));
}
