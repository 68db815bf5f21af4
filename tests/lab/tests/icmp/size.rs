//! What fits: a pod that believes in a larger MTU is told the truth, and remembers it.
use lab::{
    probe::{Datagrams, Family, Flow, Place},
    tool,
};

use crate::{Rig, option};

/// What the pod's own device takes.
const DEVICE_MTU: u32 = 1500;
/// Many times what a GSO packet holds.
const MUCH: usize = 1 << 20;

/// Makes the pod believe that its way carries what its device does.
fn overstate_mtu(pod: &Place) {
    for family in Family::BOTH {
        let ip = format!("ip {} route", option(family));
        let routes = tool::succeeds(pod, &format!("{ip} show")).unwrap();
        let with_mtu: Vec<_> = routes.lines().filter(|line| line.contains(" mtu ")).collect();
        assert!(!with_mtu.is_empty(), "{family}: no route of {} carries an MTU:\n{routes}", pod.name);
        for route in with_mtu {
            let mut words: Vec<&str> = route.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "mtu").expect("it was found") + 1;
            let overstated = DEVICE_MTU.to_string();
            words[at] = &overstated;
            // What `ip route show` says of the kernel's own doing is no option of `change`.
            words.retain(|word| !["linkdown", "pref", "medium"].contains(word));
            tool::succeeds(pod, &format!("{ip} change {}", words.join(" "))).unwrap();
        }
    }
}

/// Bytes of IP and ICMP header around an echo request's payload.
fn headers(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

/// Seconds in which an answer comes, if there is one.
const ANSWER: &str = "5";
/// Seconds that ping waits on after an error, which comes from the sender's own node: at once.
const AFTER_AN_ERROR: &str = "0.3";

/// One echo request that makes an IP packet of so many bytes.
fn ping(rig: &Rig, to: &Place, family: Family, mode: &str, size: u32, wait: &str) -> tool::Said {
    let payload = size - headers(family);
    let to = to.address(family).unwrap();
    tool::says(&rig.client, &format!("ping {} -n -c 1 -W {wait} -M {mode} -s {payload} {to}", option(family))).unwrap()
}

#[test]
fn ping_is_told_the_mtu_and_the_pod_remembers_it() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        overstate_mtu(&rig.client);
        for family in Family::BOTH {
            for to in [&rig.far, &rig.far_node] {
                let what = format!("{family} over {underlay} to {}", to.name);
                let (mtu, from) = (rig.mtu, rig.near_node.address(family).unwrap());
                // What fits does, and leaves no mark.
                let fits = ping(&rig, to, family, "do", mtu, ANSWER);
                assert!(fits.well, "{what}, {mtu} bytes: {}", fits.text);
                for size in [mtu + 1, DEVICE_MTU] {
                    tool::succeeds(&rig.client, &format!("ip {} route flush cache", option(family))).unwrap();
                    let before = rig.drops("TooBig");
                    let big = ping(&rig, to, family, "do", size, AFTER_AN_ERROR);
                    let told = match family {
                        Family::V4 => format!("From {from} icmp_seq=1 Frag needed and DF set (mtu = {mtu})"),
                        Family::V6 => format!("From {from} icmp_seq=1 Packet too big: mtu={mtu}"),
                    };
                    assert!(
                        !big.well && big.text.contains(&told),
                        "{what}, {size} bytes: not `{told}` but:\n{}",
                        big.text
                    );
                    assert_eq!(rig.drops("TooBig"), before + 1, "{what}");
                    let route = format!("ip {} route get {}", option(family), to.address(family).unwrap());
                    let route = tool::succeeds(&rig.client, &route).unwrap();
                    assert!(route.contains(&format!("mtu {mtu}")), "{what}: the pod has forgotten it:\n{route}");
                    // Now its own kernel knows better.
                    let again = ping(&rig, to, family, "do", size, AFTER_AN_ERROR);
                    // The tool has a colon for IPv6.
                    let knows =
                        [format!("mtu={mtu}"), format!("mtu: {mtu}")].iter().any(|said| again.text.contains(said));
                    assert!(knows && again.text.contains("local error"), "{what}: {}", again.text);
                    assert_eq!(rig.drops("TooBig"), before + 1, "{what}: it was sent again");
                }
            }
            // No tunnel is in the way to a pod of the same node.
            let near = ping(&rig, &rig.near, family, "do", DEVICE_MTU, ANSWER);
            assert!(near.well, "{family} over {underlay}: {}", near.text);
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn what_may_be_fragmented_is_by_the_pod_as_soon_as_it_is_told() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        overstate_mtu(&rig.client);
        for family in Family::BOTH {
            for to in [&rig.far, &rig.far_node] {
                let what = format!("{family} over {underlay} to {}", to.name);
                let before = rig.drops("TooBig");
                let told = ping(&rig, to, family, "dont", DEVICE_MTU, AFTER_AN_ERROR);
                assert!(!told.well && told.text.contains(&rig.mtu.to_string()), "{what}: {}", told.text);
                let cut = ping(&rig, to, family, "dont", DEVICE_MTU, ANSWER);
                assert!(cut.well, "{what}: {}", cut.text);
                assert_eq!(rig.drops("TooBig"), before + 1, "{what}");
            }
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_in_fragments_of_the_pods_own() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        for family in Family::BOTH {
            for to in [&rig.near, &rig.far, &rig.far_node, &rig.near_node] {
                let udp = Datagrams::open(&rig.client, to, family).unwrap();
                for size in [1473, 4000, 30_000] {
                    let payload: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                    udp.send(&payload).unwrap();
                    let what = format!("{family} over {underlay} to {}, {size} bytes", to.name);
                    let arrived = udp.receive().unwrap().unwrap_or_else(|| panic!("{what}: lost"));
                    assert!(arrived.payload == payload, "{what}: other bytes arrived");
                }
            }
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn a_stream_of_too_large_segments_recovers_by_what_it_is_told() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        // Both ends: each tells the other at the start what it can receive.
        overstate_mtu(&rig.client);
        overstate_mtu(&rig.far);
        for family in Family::BOTH {
            let before = rig.drops("TooBig");
            let mut flow = Flow::open(&rig.client, &rig.far, family).unwrap();
            flow.exchange(MUCH).unwrap();
            assert!(
                rig.drops("TooBig") > before,
                "{family} over {underlay}: no segment was too large, this test shows nothing"
            );
        }
        rig.lab.down().unwrap();
    }
}
