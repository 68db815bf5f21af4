//! What the router says about the size of packets is for the pod that sent them.
use std::net::SocketAddr;

use lab::{
    layout::NARROW_MTU,
    probe::{Family, Flow, Place},
    tool,
};
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::IpMtu},
};

use crate::{
    MUCH, Rig, cases,
    ends::{ask_with, port_of, udp_at},
    option,
};

/// More than fits, with headers, and less than the pod's own MTU.
const TOO_MUCH: usize = 1350;

/// The pod's kernel knows nothing of the way any more.
fn forgets(pod: &Place, family: Family) {
    tool::succeeds(pod, &format!("ip {} route flush cache", option(family))).unwrap();
}

/// What the pod's kernel thinks of the way.
fn knows(pod: &Place, to: &Place, family: Family) -> String {
    let line = format!("ip {} route get {}", option(family), to.address(family).unwrap());
    tool::succeeds(pod, &line).unwrap()
}

fn knows_it_is_narrow(rig: &Rig, pod: &Place, family: Family) {
    let way = knows(pod, &rig.narrow, family);
    assert!(way.contains(&format!("mtu {NARROW_MTU}")), "{} does not know it: {way}", pod.name);
    let other = knows(&rig.sides[0].node, &rig.narrow, family);
    assert!(!other.contains(&format!("mtu {NARROW_MTU}")), "the node was told in the pod's place: {other}");
}

fn a_stream_through_the_narrow_way_recovers_by_what_the_pod_is_told(rig: &Rig) {
    rig.each(|_, pod, family| {
        forgets(pod, family);
        let mut flow = Flow::open(pod, &rig.narrow, family).unwrap();
        flow.exchange(MUCH).unwrap();
        knows_it_is_narrow(rig, pod, family);
    });
}

fn a_datagram_that_is_too_large_is_refused(rig: &Rig) {
    rig.each(|_, pod, family| {
        forgets(pod, family);
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.narrow, family, 0));
        let to = rig.narrow.address(family).unwrap();
        client.connect(SocketAddr::new(to, port_of(&server))).unwrap();
        client.send(&[7; TOO_MUCH]).unwrap();
        let refused = client.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EMSGSIZE as i32), "{} over {family}: {refused}", pod.name);
        knows_it_is_narrow(rig, pod, family);
        if family == Family::V4 {
            assert_eq!(getsockopt(&client, IpMtu).unwrap(), NARROW_MTU.cast_signed());
        }
    });
}

fn what_is_too_large_comes_in_fragments_once_the_pod_knows(rig: &Rig) {
    rig.each(|side, pod, family| {
        forgets(pod, family);
        let mut flow = Flow::open(pod, &rig.narrow, family).unwrap();
        flow.exchange(MUCH).unwrap();
        knows_it_is_narrow(rig, pod, family);
        let (free, server) = (udp_at(pod, family, 0), udp_at(&rig.narrow, family, 0));
        let to = rig.narrow.address(family).unwrap();
        let data: Vec<u8> = (0..TOO_MUCH).map(|i| (i % 251) as u8).collect();
        let seen = ask_with(&free, &server, to, &data).unwrap();
        assert_eq!((seen.ip(), seen.port()), (side.address(family), port_of(&free)));
    });
}

fn ping_is_told_by_the_router(rig: &Rig) {
    rig.each(|_, pod, family| {
        forgets(pod, family);
        let (to, router) = (rig.narrow.address(family).unwrap(), rig.router.address(family).unwrap());
        let ping = |size: u32| {
            let headers = if family == Family::V4 { 28 } else { 48 };
            let line = format!("ping {} -n -c 1 -W 1 -M do -s {} {to}", option(family), size - headers);
            tool::says(pod, &line).unwrap()
        };
        let big = ping(NARROW_MTU + 1);
        let told = match family {
            Family::V4 => format!("From {router} icmp_seq=1 Frag needed and DF set (mtu = {NARROW_MTU})"),
            Family::V6 => format!("From {router} icmp_seq=1 Packet too big: mtu={NARROW_MTU}"),
        };
        assert!(!big.well && big.text.contains(&told), "not `{told}` but:\n{}", big.text);
        let again = ping(NARROW_MTU + 1);
        assert!(again.text.contains("local error"), "{}", again.text);
        let fits = ping(NARROW_MTU);
        assert!(fits.well, "{}", fits.text);
    });
}

fn what_is_too_large_may_be_cut_by_the_router_if_it_may(rig: &Rig) {
    for side in &rig.sides {
        let pod = &side.pods[0];
        forgets(pod, Family::V4);
        let line = format!("ping -4 -n -c 1 -W 1 -M dont -s {TOO_MUCH} {}", rig.narrow.address(Family::V4).unwrap());
        let said = tool::says(pod, &line).unwrap();
        assert!(said.well, "{}: {}", pod.name, said.text);
    }
}

fn tracepath_finds_the_narrow_place(rig: &Rig) {
    rig.each(|_, pod, family| {
        forgets(pod, family);
        let line = format!("tracepath {} -n -m 5 {}", option(family), rig.narrow.address(family).unwrap());
        let said = tool::succeeds(pod, &line).unwrap();
        let resume = format!("Resume: pmtu {NARROW_MTU} hops 3");
        assert!(said.contains(&resume), "{}: no `{resume}`; {line} says:\n{said}", pod.name);
    });
}

#[test]
fn pods_learn_how_narrow_the_way_is() {
    Rig::new(&[]).run(cases!(
        a_stream_through_the_narrow_way_recovers_by_what_the_pod_is_told,
        a_datagram_that_is_too_large_is_refused,
        what_is_too_large_comes_in_fragments_once_the_pod_knows,
        ping_is_told_by_the_router,
        what_is_too_large_may_be_cut_by_the_router_if_it_may,
        tracepath_finds_the_narrow_place
    ));
}
