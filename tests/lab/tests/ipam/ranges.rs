//! Ranges: none of a family, several of one, used up, and changed while pods are there.
use super::*;

#[test]
fn a_used_up_range_says_its_numbers_and_has_room_again_when_a_pod_is_gone() {
    let mut lab = lab_of(1, |n| nets(&[format!("10.244.{n}.0/30"), format!("fd10:{n}::/64")]));
    for name in ["a", "b"] {
        pod(&mut lab, "node-1", name);
    }
    let error = refused(&mut lab, "node-1", "c");
    for part in ["all 2 IPv4 addresses of 10.244.1.0/30 are taken", "2 in use", "further pod CIDR"] {
        assert!(error.contains(part), "{error}");
    }
    let before = lab.pod("a").unwrap().addresses.clone();
    lab.pod_del("a").unwrap();
    await_settled(lab.node("node-1").unwrap());
    let again = pod(&mut lab, "node-1", "c");
    assert_eq!(again.addresses[0], before[0], "the one that is left");
    assert_ne!(again.addresses[1], before[1], "of a family with room, not what was given back just now");
    let node = lab.node("node-1").unwrap().place().unwrap();
    assert_talk(&again, &node, &Family::BOTH);
    lab.down().unwrap();
}

#[test]
fn nodes_of_one_family_give_addresses_of_that_family() {
    let cases: [(Family, PodCidrs); 2] = [
        (Family::V4, |n| nets(&[format!("10.244.{n}.0/24")])),
        (Family::V6, |n| nets(&[format!("fd10:244:{n}::/64")])),
    ];
    for (family, pod_cidrs) in cases {
        let mut lab = lab_of(2, pod_cidrs);
        let [a, b] = [("node-1", "a"), ("node-2", "b")].map(|(node, name)| pod(&mut lab, node, name));
        for place in [&a, &b] {
            assert_eq!(place.addresses.len(), 1);
            assert_eq!(place.addresses[0].is_ipv4(), family == Family::V4);
        }
        assert_talk(&a, &b, &[family]);
        assert_talk(&b, &lab.node("node-2").unwrap().place().unwrap(), &[family]);
        let install = &lab.node("node-1").unwrap().ask("/v1/status").unwrap()["install"];
        assert!(
            install["self_test"].as_str().unwrap().starts_with(&format!("packets went in {family}, ")),
            "{install}"
        );
        lab.down().unwrap();
    }
}

#[test]
fn pods_of_several_ranges_of_one_family_talk() {
    let mut lab = lab_of(2, |n| {
        nets(&[
            format!("10.244.{n}.0/30"),
            format!("10.245.{n}.0/30"),
            format!("fd10:{n}::/126"),
            format!("fd11:{n}::/64"),
        ])
    });
    let names = ["a", "b", "c", "d"];
    let here = names.map(|name| pod(&mut lab, "node-1", name));
    let there = pod(&mut lab, "node-2", "there");
    let in_second = |place: &Place| place.addresses[0].to_string().starts_with("10.245.1.");
    assert_eq!(here.iter().filter(|p| in_second(p)).count(), 2, "{here:?}");
    for place in &here {
        assert_talk(&there, place, &Family::BOTH);
        assert_talk(place, &there, &Family::BOTH);
    }
    assert_talk(&here[0], &here[3], &Family::BOTH);
    assert!(refused(&mut lab, "node-1", "e").contains("all 4 IPv4 addresses of 10.244.1.0/30, 10.245.1.0/30"));
    lab.down().unwrap();
}

#[test]
fn a_range_that_comes_gives_and_one_that_goes_drains() {
    let mut lab = lab_of(2, |n| nets(&[format!("10.244.{n}.0/30")]));
    let there = pod(&mut lab, "node-2", "there");
    for name in ["a", "b"] {
        pod(&mut lab, "node-1", name);
    }
    assert!(refused(&mut lab, "node-1", "c").contains("all 2 IPv4 addresses"));
    let [first, second] = ["10.244.1.0/30", "10.245.1.0/30"].map(|net| net.parse::<IpNet>().unwrap());
    lab.set_pod_cidrs("node-1", &[first, second]).unwrap();
    await_ranges(lab.node("node-1").unwrap(), |all| all.len() == 2);
    let c = pod(&mut lab, "node-1", "c");
    assert!(second.contains(&c.addresses[0]), "{c:?}");
    // The other node knows the new range by the same object.
    await_cidr(lab.node("node-2").unwrap(), &second);
    assert_talk(&there, &c, &[Family::V4]);

    lab.set_pod_cidrs("node-1", &[second]).unwrap();
    let drains = |all: &[Value]| all.iter().any(|r| r["cidr"] == first.to_string() && r["draining"] == true);
    await_ranges(lab.node("node-1").unwrap(), drains);
    lab.pod_del("a").unwrap();
    await_settled(lab.node("node-1").unwrap());
    let d = pod(&mut lab, "node-1", "d");
    assert!(second.contains(&d.addresses[0]), "nothing more is given of a range that goes: {d:?}");
    lab.pod_del("b").unwrap();
    await_ranges(lab.node("node-1").unwrap(), |all| all.iter().all(|r| r["cidr"] == second.to_string()));
    assert_talk(&there, &d, &[Family::V4]);
    lab.down().unwrap();
}

/// Waits until a node has the range of another in the kernel.
fn await_cidr(node: &Node, cidr: &IpNet) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let nodes = node.ask("/v1/nodes").unwrap();
        let knows = |n: &Value| n["pod_cidrs"].as_array().unwrap().iter().any(|c| c == &cidr.to_string());
        if nodes.as_array().unwrap().iter().any(|n| knows(n) && n["kernel"] == "applied") {
            return;
        }
        assert!(Instant::now() < deadline, "{nodes:#}");
    }
}
