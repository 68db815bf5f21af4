//! MAC and addresses that the runtime asks for.
use super::*;

fn asks(mac: &str, ips: &[&str]) -> Value {
    let mut asked = json!({});
    if !mac.is_empty() {
        asked["mac"] = mac.into();
    }
    if !ips.is_empty() {
        asked["ips"] = ips.into();
    }
    json!({ "runtimeConfig": asked })
}

fn asked_for_on(name: &str) {
    let mut lab = two_nodes();
    let other = lab.pod_add(if name == ORDINARY { HOSTILE } else { ORDINARY }, &lab::PodSpec::named("other")).unwrap();
    let other = other.pod.place().unwrap();
    let node = lab.node(name).unwrap();
    let n = if name == ORDINARY { 1 } else { 2 };
    let (v4, v6) = (format!("10.244.{n}.77"), node.pod_cidrs()[1].hosts().nth(0x77).unwrap().to_string());
    let mac = "0a:58:0a:f4:01:4d";
    let containers = ["asks", "asks-too"].map(Container::new);
    let result = add(node, &containers[0], "eth0", &asks(mac, &[&format!("{v4}/24"), &v6]));
    assert_eq!(ips(&result).iter().map(IpAddr::to_string).collect::<Vec<_>>(), [v4.clone(), v6.clone()]);
    assert_eq!(result.interfaces[1].mac, mac);
    let device = link::by_name(&mut containers[0].socket(), "eth0").unwrap().unwrap();
    assert_eq!(device.mac.map(|m| m.to_string()).as_deref(), Some(mac));
    let place = containers[0].at(&result);
    for from in [&other, &node.place().unwrap()] {
        assert_reaches(from, &place);
    }

    // The address is another pod's; the MAC may be.
    let before = served(node);
    let e = refused(node, &containers[1], &asks("", &[&v4]), None);
    assert!(
        e.code.0 == 103 && e.msg.contains(&format!("{v4} is in use")) && e.details.contains("of 254 in use"),
        "{e}"
    );
    assert_eq!(served(node), before, "a refused ADD takes nothing");
    let second = add(node, &containers[1], "eth0", &asks(mac, &[]));
    assert!(second.interfaces[1].mac == mac && ips(&second).len() == 2);
    assert_reaches(&containers[1].at(&second), &place);
    del(node, &containers[1], "eth0");

    // DEL and at once ADD again with the same address: its former device is waited for.
    for _ in 0..5 {
        del(node, &containers[0], "eth0");
        let again = add(node, &containers[0], "eth0", &asks("", &[&v4, &v6]));
        assert_eq!(ips(&again), ips(&result));
    }
    assert_reaches(&other, &place);
    del(node, &containers[0], "eth0");
    lab.down().unwrap();
}

#[test]
fn a_mac_and_addresses_that_are_asked_for_are_given() {
    asked_for_on(ORDINARY);
}

#[test]
fn a_mac_and_addresses_that_are_asked_for_are_given_on_a_hostile_node() {
    asked_for_on(HOSTILE);
}

#[test]
fn what_cannot_be_given_is_refused_with_the_ranges_and_nothing_is_taken() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("wants");
    for (mac, list, code, part) in [
        ("", vec!["10.99.0.1"], 7, "10.99.0.1 is in none of this node's pod CIDRs (10.244.1.0/24)"),
        ("", vec!["10.244.1.9", "fd99::1"], 7, "fd99::1 is in none"),
        ("", vec!["10.244.1.0"], 103, "10.244.1.0 is not for pods"),
        ("", vec!["10.244.1.5", "10.244.1.6"], 7, "two addresses of one family"),
        ("", vec!["ten"], 7, "is not a list of addresses"),
        ("01:00:5e:00:00:01", vec![], 7, "01:00:5e:00:00:01"),
        (cni_common::net::Mac::WEFT.to_string().as_str(), vec![], 7, "Weft's own devices"),
    ] {
        let e = refused(node, &container, &asks(mac, &list), None);
        assert!(e.code.0 == code && e.msg.contains(part), "{list:?} {mac}: {} {e}", e.code.0);
        assert!(!e.details.is_empty(), "no cure: {e}");
    }
    assert_clean(node);
    // One family is asked for, the other is Weft's choice.
    let result = add(node, &container, "eth0", &asks("", &["10.244.1.9"]));
    assert!(ips(&result).len() == 2 && ips(&result)[0] == IpAddr::from([10, 244, 1, 9]));
    assert_eq!(served(node), (1, 2));
    lab.down().unwrap();
}
