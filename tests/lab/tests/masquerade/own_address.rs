//! Pods that keep their own addresses: because masquerade is off, the destination's CIDR is spared, or the world has opened the flow.
use lab::{
    hostile::Policy,
    probe::{self, Family, Flow, Place, Wire},
};

use crate::{
    DEVICE, MUCH, OFF, Rig,
    ends::{ask, hear_echo, hear_udp, port_of, udp_at},
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
fn open_up(rig: &Rig) {
    for node in rig.lab.nodes() {
        rig.lab.world().unwrap().learn_pods(node).unwrap();
    }
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
}

#[test]
fn without_masquerade_pods_appear_as_themselves_and_only_who_knows_them_answers() {
    let rig = Rig::new(OFF);
    rig.lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
    rig.each(|_, pod, family| {
        let wire = Wire::open(&rig.near, DEVICE).unwrap();
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let lost = ask(&client, &server, rig.near.address(family).unwrap()).unwrap_err();
        assert!(format!("{lost:#}").contains("in vain"), "{lost:#}");
        let seen = hear_udp(&wire, port_of(&server)).unwrap();
        assert_eq!((seen.ip(), seen.port()), (pod.address(family).unwrap(), port_of(&client)));
    });
    open_up(&rig);
    rig.each(|_, pod, family| [&rig.near, &rig.narrow].into_iter().for_each(|h| keeps_its_address(pod, h, family)));
    rig.lab.down().unwrap();
}
