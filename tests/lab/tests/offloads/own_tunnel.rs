//! A tunnel of the pods' own, through ours.
use std::net::IpAddr;

use lab::{
    layout::pod_netns,
    probe::{self, Family, Flow, Place},
    tool,
};

use crate::Rig;

/// Many times what a GSO packet holds.
const MUCH: usize = 512 << 10;
/// VXLAN's port, which the pods may use as they like among themselves.
const PORT: u16 = 4789;
/// What fits into every combination of families: 1500, less twice 70.
const MTU: u16 = 1360;

/// Makes a VXLAN device in the pod `from`, to the pod `to`, and gives the pod as it is known in there.
fn tunnel(from: &Place, to: &Place, outer: Family, number: u8) -> Place {
    let [local, remote] = [from, to].map(|pod| pod.address(outer).unwrap());
    let inside: [IpAddr; 2] = [format!("192.168.77.{number}"), format!("fd77::{number}")].map(|a| a.parse().unwrap());
    let [v4, v6] = inside;
    tool::script(
        from,
        &format!(
            "ip link add own mtu {MTU} type vxlan id 7 local {local} remote {remote} dstport {PORT} dev eth0
             ip addr add {v4}/24 dev own
             ip addr add {v6}/64 dev own nodad
             ip link set own up"
        ),
    )
    .unwrap();
    Place::new(&format!("{}, in its own tunnel", from.name), &pod_netns(&from.name), inside.into()).unwrap()
}

fn through_a_tunnel_of_their_own(underlay: Family, outer: Family, wire_segments: bool) {
    let rig = Rig::new(underlay);
    if !wire_segments {
        rig.without_segmentation();
    }
    let web = tunnel(&rig.web, &rig.client, outer, 1);
    let client = tunnel(&rig.client, &rig.web, outer, 2);
    for family in Family::BOTH {
        let what = format!("{family} in {outer} over {underlay}");
        probe::ping(&client, &web, family).unwrap();
        probe::udp(&client, &web, family).unwrap();
        Flow::open(&client, &web, family).unwrap().exchange(MUCH).unwrap();
        // In a packet that is a tunnel's already, and still to be segmented, the kernel makes no room for another one's headers.
        assert!(rig.by_the_kernels_device() > 0, "{what}: nothing had to be left to the kernel's own device");
    }
    rig.lab.down().unwrap();
}

#[test]
fn a_vxlan_tunnel_of_two_pods_works_over_ipv4_with_large_packets_both_ways() {
    for outer in Family::BOTH {
        through_a_tunnel_of_their_own(Family::V4, outer, true);
    }
}

#[test]
fn a_vxlan_tunnel_of_two_pods_works_over_ipv6_with_large_packets_both_ways() {
    for outer in Family::BOTH {
        through_a_tunnel_of_their_own(Family::V6, outer, true);
    }
}

#[test]
fn a_vxlan_tunnel_of_two_pods_works_over_a_wire_without_segmentation() {
    for underlay in Family::BOTH {
        for outer in Family::BOTH {
            through_a_tunnel_of_their_own(underlay, outer, false);
        }
    }
}
