use super::*;
use crate::tables::Terms;

fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: 7,
        container_id: "web".into(),
        ifname: "eth0".into(),
        namespace: String::new(),
        pod_name: String::new(),
        netns: "/run/netns/web".into(),
        ifindex: 107,
        device: "weft7".into(),
        mac: cni_common::net::Mac::WEFT,
        ipv4: Some([10, 0, 0, 7].into()),
        ipv6: "fd00::7".parse().ok(),
        mtu: 1450,
        terms: Terms::default(),
    }
}

/// One pod, and all agree on it; one address waits for its device to go.
fn agreeing() -> Snapshot {
    let e = endpoint();
    let both = BTreeSet::from([addr("10.0.0.7"), addr("fd00::7")]);
    let mut addresses: BTreeMap<IpAddr, State> = both.iter().map(|a| (*a, State::Used)).collect();
    addresses.insert(addr("10.0.0.6"), State::Quarantined);
    Snapshot {
        addresses,
        records: vec![EndpointRecord::of_endpoint(&e)],
        devices: [(e.device.clone(), e.ifindex)].into(),
        served: [(e.ifindex, both.clone())].into(),
        local: both.iter().map(|a| (*a, e.ifindex)).collect(),
        pods: [(e.id, PodEnd::There(both))].into(),
        endpoints: vec![e],
        unread: Vec::new(),
    }
}

fn ids(s: &Snapshot) -> Vec<String> {
    compare(s).differences.into_iter().map(|d| d.id).collect()
}

#[test]
fn nothing_is_said_where_all_agree() {
    let audit = compare(&agreeing());
    assert_eq!(audit, Audit { addresses: 3, endpoints: 1, differences: vec![] });
}

type Break = fn(&mut Snapshot);

#[test]
fn each_difference_is_named_with_its_cure() {
    let breaks: [(&str, &str, Break); 20] = [
        ("leaked", "10.0.0.9", |s| _ = s.addresses.insert(addr("10.0.0.9"), State::Used)),
        ("not-out", "10.0.0.7", |s| _ = s.addresses.remove(&addr("10.0.0.7"))),
        ("not-out", "fd00::7", |s| _ = s.addresses.insert(addr("fd00::7"), State::Quarantined)),
        ("no-record", "web eth0", |s| s.records.clear()),
        ("record", "web eth0", |s| s.records[0].ipv4 = None),
        ("stray-record", "old eth0", |s| {
            let e = Endpoint { container_id: "old".into(), ..endpoint() };
            s.records.push(EndpointRecord::of_endpoint(&e));
        }),
        ("device", "weft7", |s| s.devices.clear()),
        ("stray-device", "weft8", |s| _ = s.devices.insert("weft8".into(), 108)),
        ("map", "lacks web eth0", |s| s.served.clear()),
        ("map", "gives 10.0.0.7 to web", |s| _ = s.served.insert(107, [addr("10.0.0.7")].into())),
        ("map", "lacks fd00::7", |s| _ = s.local.remove(&addr("fd00::7"))),
        ("map", "to device 9, not to 107", |s| _ = s.local.insert(addr("fd00::7"), 9)),
        ("stray-entry", "10.0.0.1 at device 200", |s| _ = s.served.insert(200, [addr("10.0.0.1")].into())),
        ("stray-entry", "leads 10.0.0.1", |s| _ = s.local.insert(addr("10.0.0.1"), 200)),
        ("pod-gone", "no such file", |s| _ = s.pods.insert(7, PodEnd::Gone("no such file".into()))),
        ("pod-device", "no such interface", |s| _ = s.pods.insert(7, PodEnd::Missing)),
        ("pod-address", "lacks fd00::7", |s| _ = s.pods.insert(7, PodEnd::There([addr("10.0.0.7")].into()))),
        ("unread", "EPERM", |s| s.unread.push("EPERM".into())),
        ("device", "has index 9", |s| _ = s.devices.insert("weft7".into(), 9)),
        ("lost-record", "device 108", |s| {
            s.devices.insert("weft8".into(), 108);
            s.served.insert(108, [addr("10.0.0.8")].into());
            s.local.insert(addr("10.0.0.8"), 108);
            s.addresses.insert(addr("10.0.0.8"), State::Used);
        }),
    ];
    for (id, part, break_it) in breaks {
        let mut s = agreeing();
        break_it(&mut s);
        let audit = compare(&s);
        let found = audit.differences.iter().find(|d| d.id == id);
        let found = found.unwrap_or_else(|| panic!("{id} is not among {audit:#?}"));
        assert!(found.what.contains(part) && !found.cure.is_empty(), "{found:#?}");
        // A device of the wrong index is a stray one too; all else is told once.
        assert!(audit.differences.len() == 1 || part == "has index 9", "{audit:#?}");
    }
}

#[test]
fn an_address_that_two_have_is_named() {
    let mut s = agreeing();
    let other = Endpoint { id: 8, container_id: "api".into(), ifindex: 108, device: "weft8".into(), ..endpoint() };
    s.records.push(EndpointRecord::of_endpoint(&other));
    s.endpoints.push(other);
    assert!(ids(&s).contains(&"twice".to_owned()), "{:?}", ids(&s));
}
