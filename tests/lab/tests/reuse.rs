//! A pod that gets what a deleted pod had: its addresses, and its endpoint id with its device's name. It inherits nothing of it. Needs root and `cargo xtask build`;
//! run it with `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use ipnet::IpNet;
use lab::{
    Ending, Lab, LabConfig, Node, Pod, PodSpec,
    hostile::Hostile,
    pair::until,
    probe::{Family, Flow, Place},
};
use policies::{GONE, apply, connects, of, policy, settle};
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// The former pod's ports of datagrams to the own node and to the other one.
const ASKS: [u16; 2] = [4100, 4101];

/// So few that each comes again soon: two of IPv4, three of IPv6.
fn few(node: u8) -> Vec<IpNet> {
    [format!("10.244.{node}.0/30"), format!("fd10:244:{node}::/126")].map(|net| net.parse().unwrap()).into()
}
/// Ends a pod of node-1, and waits until its device is gone and its addresses are free.
fn end(lab: &mut Lab, name: &str) {
    lab.pod_del(name).unwrap();
    until("its addresses are free", || {
        let status = lab.node("node-1").unwrap().ask("/v1/status").unwrap();
        status["addresses"].as_array().unwrap().iter().all(|range| range["quarantined"] == 0)
    })
    .unwrap();
}

fn pod(lab: &mut Lab, node: &str, name: &str, app: &str) -> Pod {
    let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(name) }.label("app", app);
    lab.pod_add(node, &spec).expect("a pod").pod
}

/// `app` is reached by these apps and by nobody else.
fn only(app: &str, from: &str) -> Value {
    policy(
        app,
        json!({
            "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": [{"from": [of(from)]}],
        }),
    )
}

fn id_of(node: &Node, pod: &str) -> u64 {
    let all = node.ask("/v1/endpoints").unwrap();
    all.as_array().unwrap().iter().find(|e| e["pod"] == pod).expect("its endpoint")["id"].as_u64().unwrap()
}
/// Flows with an address at either end.
fn flows(node: &Node, address: IpAddr) -> u64 {
    node.ask(&format!("/v1/flows?address={address}")).unwrap()["matched"].as_u64().unwrap()
}
/// Flows on the accounts of endpoints.
fn accounts(node: &Node) -> BTreeMap<u64, u64> {
    let maps =
        ["ct_held4_v1", "ct_held6_v1", "nat_held4_v1", "nat_held6_v1"].map(|m| node.ask(&format!("/v1/maps/{m}")));
    let mut all = BTreeMap::new();
    for e in maps.iter().flat_map(|map| map.as_ref().unwrap().as_array().unwrap()) {
        *all.entry(e["key"].as_u64().unwrap()).or_default() += e["value"].as_u64().unwrap();
    }
    all
}

/// Whether a datagram from this port arrives.
fn arrives(from: &Place, port: u16, to: &Place, family: Family) -> bool {
    let server = to.run(|| UdpSocket::bind(SocketAddr::new(family.any(), PORT))).unwrap();
    let client = from.run(|| UdpSocket::bind(SocketAddr::new(family.any(), port))).unwrap();
    server.set_read_timeout(Some(GONE)).unwrap();
    client.set_read_timeout(Some(GONE)).unwrap();
    client.send_to(b"?", SocketAddr::new(to.address(family).unwrap(), PORT)).unwrap();
    let mut buffer = [0; 8];
    let Ok((_, asker)) = server.recv_from(&mut buffer) else { return false };
    // Both ends have spoken: the flow is one that lasts.
    server.send_to(b"!", asker).unwrap();
    client.recv_from(&mut buffer).unwrap();
    true
}

/// Whether the agent ends between the two pods: only then an endpoint id is given again before all others were.
fn comes_again(restarted: bool) {
    let mut lab =
        Lab::up(LabConfig { pod_cidrs: few, hostile: Hostile::Nobody, ..LabConfig::with_nodes(2) }).expect("a lab");
    let web = pod(&mut lab, "node-1", "web", "web").place().unwrap();
    let [far, beyond] = ["far", "beyond"].map(|name| pod(&mut lab, "node-2", name, name).place().unwrap());
    // The self-test of an agent that begins has an id, too: the next one after those that are there.
    pod(&mut lab, "node-1", "early", "early");
    end(&mut lab, "early");
    let former = pod(&mut lab, "node-1", "former", "former");
    let id = id_of(lab.node("node-1").unwrap(), "former");
    // Who may reach the former pod, and whom it may reach alone, on both nodes.
    apply(&lab, &[only("former", "beyond"), only("web", "former"), only("far", "former")]);
    let place = former.place().unwrap();
    let mut open = None;
    for family in Family::BOTH {
        for (to, port) in [&web, &far].into_iter().zip(ASKS) {
            assert!(arrives(&place, port, to, family), "the former pod may");
        }
        assert!(!connects(&far, &place, family, PORT));
        for (from, to) in [(&place, &web), (&place, &far), (&beyond, &place)] {
            let mut flow = Flow::open(from, to, family).unwrap();
            flow.exchange(1000).unwrap();
            open = Some(flow);
        }
    }
    drop(place);
    end(&mut lab, "former");
    if restarted {
        lab.restart_agent("node-1", Ending::Killed).unwrap();
    }
    let mut tried = 0;
    let heir = loop {
        tried += 1;
        assert!(tried < 9, "id or addresses do not come again");
        let name = format!("heir-{tried}");
        let heir = pod(&mut lab, "node-1", &name, "heir");
        let is_it = if restarted {
            id_of(lab.node("node-1").unwrap(), &name) == id
        } else {
            heir.addresses == former.addresses
        };
        if is_it {
            break heir;
        }
        end(&mut lab, &name);
    };
    let came_again = |family: &Family| {
        let of = |pod: &Pod| pod.addresses.iter().find(|a| a.is_ipv4() == (*family == Family::V4)).copied();
        of(&heir) == of(&former)
    };
    let families: Vec<Family> = Family::BOTH.into_iter().filter(came_again).collect();
    assert!(families.contains(&Family::V4) && (restarted || families.len() == 2), "{:?}", heir.addresses);
    let (name, place) = (format!("shop/{}", heir.name), heir.place().unwrap());
    let node = lab.node("node-1").unwrap();
    for address in &heir.addresses {
        assert_eq!(flows(node, *address), 0, "{address}");
    }
    let held = accounts(node);
    assert_eq!(held.get(&id_of(node, &heir.name)).copied().unwrap_or_default(), 0, "{held:?}");
    settle(&lab);
    for family in families {
        // From the same ports as the former pod's, whose flows the other ends' nodes have known.
        for (to, port) in [&web, &far].into_iter().zip(ASKS) {
            assert!(!arrives(&place, port, to, family), "{family} {}: a flow is inherited", to.name);
            assert!(!connects(&place, to, family, PORT), "{family} {}: an identity is inherited", to.name);
        }
        for from in [&web, &far] {
            assert!(connects(from, &place, family, PORT), "{family} {}: a policy is inherited", from.name);
        }
        let address = heir.place().unwrap().address(family).unwrap();
        let event = lab.observed("node-1", &["--address", &address.to_string()], || {
            assert!(!connects(&place, &web, family, PORT))
        });
        let event = event.unwrap();
        assert_eq!(event["ends"], json!([name, "shop/web"]), "{event:#}");
        let node = lab.node("node-1").unwrap();
        let path = format!("/v1/explain?from={address}&to=shop/web&probe=TCP/{PORT}");
        let explained = node.ask(&path).unwrap();
        assert_eq!(explained["flows"][0]["allowed"], false, "{explained:#}");
        assert!(
            explained.to_string().contains(&name) && !explained.to_string().contains("shop/former"),
            "{explained:#}"
        );
    }
    // What somebody has still open to the former pod ends there.
    assert!(open.expect("the last one").push(1000).is_err());
    for node in lab.nodes() {
        until("nobody is called after the former pod", || {
            let all = ["/v1/endpoints", "/v1/pods", "/v1/flows"].map(|path| node.ask(path).unwrap().to_string());
            !all.iter().any(|text| text.contains("former\""))
        })
        .unwrap();
        let policies = node.ask("/v1/policies").unwrap();
        let of_former =
            policies["policies"].as_array().unwrap().iter().find(|p| p["name"] == "NetworkPolicy shop/former");
        assert_eq!(of_former.expect("the policy is still there")["pods"], json!([]), "{policies:#}");
        assert_eq!(node.ask("/v1/verify").unwrap()["items"], json!([]));
    }
    lab.down().unwrap();
}

#[test]
fn a_pod_with_the_addresses_of_a_deleted_one_inherits_nothing() {
    comes_again(false);
}

#[test]
fn a_pod_with_the_addresses_and_the_endpoint_id_of_a_deleted_one_inherits_nothing() {
    comes_again(true);
}
