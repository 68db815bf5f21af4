//! Pods on two nodes, over VXLAN. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::net::IpAddr;

use lab::{
    Ending, Lab, LabConfig, Node, PodSpec, Underlay,
    pair::until,
    probe::{self, Family, Flow, Place},
};

/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 8 * 1024 * 1024;

/// Two nodes with a pod each: `web` on node-1, `client` on node-2.
fn two_nodes(underlay: Underlay) -> (Lab, Place, Place) {
    with_pods(LabConfig { underlay, ..LabConfig::default() })
}
fn with_pods(config: LabConfig) -> (Lab, Place, Place) {
    let mut lab = Lab::up(config).expect("a lab of two nodes");
    let [web, client] = [("node-1", "web"), ("node-2", "client")].map(|(node, name)| {
        let added = lab.pod_add(node, &PodSpec::named(name)).expect("a pod");
        added.pod.place().unwrap()
    });
    (lab, web, client)
}

/// Every protocol gets from one to the other and back, and the other sees who it is.
fn assert_reaches(from: &Place, to: &Place, family: Family) {
    let sender = Some(from.address(family).unwrap());
    assert_eq!(probe::udp(from, to, family).unwrap().seen, sender, "nobody may translate {}'s address", from.name);
    assert_eq!(probe::tcp(from, to, family).unwrap().seen, sender, "nobody may translate {}'s address", from.name);
    probe::ping(from, to, family).unwrap();
}

/// Names of the node's maps in which the address stands.
fn maps_with(node: &Node, address: IpAddr) -> Vec<String> {
    let word = format!("\"{address}\"");
    let maps = node.ask("/v1/maps").unwrap();
    // A ring buffer holds messages, no entries.
    let tables = maps.as_array().expect("a list of maps").iter().filter(|m| m["kind"] != "RingBuf");
    let names = tables.map(|m| m["name"].as_str().expect("a name").to_owned());
    names.filter(|name| node.ask(&format!("/v1/maps/{name}")).unwrap().to_string().contains(&word)).collect()
}

fn reach_each_other_and_all_nodes(underlay: Underlay, family: Family) {
    reach_each_other_in(two_nodes(underlay), family);
}
fn reach_each_other_in((lab, web, client): (Lab, Place, Place), family: Family) {
    assert_reaches(&web, &client, family);
    assert_reaches(&client, &web, family);
    for node in lab.nodes() {
        let node = node.place().unwrap();
        for pod in [&web, &client] {
            assert_reaches(pod, &node, family);
            assert_reaches(&node, pod, family);
        }
    }
    Flow::open(&client, &web, family).unwrap().exchange(MUCH).unwrap();
    let far_node = lab.node("node-2").unwrap().place().unwrap();
    Flow::open(&far_node, &web, family).unwrap().exchange(MUCH).unwrap();
    lab.down().unwrap();
}

#[test]
fn pods_on_two_nodes_reach_each_other_and_both_nodes_over_ipv4() {
    reach_each_other_and_all_nodes(Underlay::Bridge, Family::V4);
}

#[test]
fn pods_on_two_nodes_reach_each_other_and_both_nodes_over_ipv6() {
    reach_each_other_and_all_nodes(Underlay::Bridge, Family::V6);
}

#[test]
fn pods_on_two_nodes_with_a_wire_between_them_reach_each_other() {
    reach_each_other_and_all_nodes(Underlay::Direct, Family::V4);
}

#[test]
fn nodes_talk_over_an_ipv6_underlay_too() {
    let agent_args = ["--underlay", "ipv6"].map(str::to_owned).to_vec();
    for family in Family::BOTH {
        let rig = with_pods(LabConfig { agent_args: agent_args.clone(), ..LabConfig::default() });
        let status = rig.0.node("node-1").unwrap().ask("/v1/status").unwrap();
        assert_eq!(status["datapath"]["tunnel_address"], "fd99::1");
        assert_eq!(status["datapath"]["pod_mtu"], 1430, "70 bytes less than the underlay");
        reach_each_other_in(rig, family);
    }
}

#[test]
fn connections_live_on_while_the_agents_are_dead_and_after_they_are_back() {
    let (mut lab, web, client) = two_nodes(Underlay::Bridge);
    let mut flows: Vec<Flow> =
        Family::BOTH.into_iter().map(|family| Flow::open(&client, &web, family).unwrap()).collect();
    let mut exchange = |when: &str| {
        for flow in &mut flows {
            flow.exchange(100_000).unwrap_or_else(|e| panic!("{when}: {e:#}"));
        }
    };
    exchange("before");
    for ending in [Ending::Killed, Ending::Asked] {
        for node in ["node-1", "node-2"] {
            lab.stop_agent(node, ending).unwrap();
        }
        exchange(&format!("agents dead ({ending:?})"));
        assert_reaches(&client, &web, Family::V4);
        for node in ["node-1", "node-2"] {
            lab.start_agent(node).unwrap();
        }
        exchange(&format!("agents back ({ending:?})"));
        assert_reaches(&web, &client, Family::V6);
    }
    // Who comes now is connected by the agents that adopted the others.
    let late = lab.pod_add("node-1", &PodSpec::named("late")).unwrap().pod;
    assert!(!late.addresses.iter().any(|a| web.addresses.contains(a)), "an address given twice: {:?}", late.addresses);
    assert_reaches(&late.place().unwrap(), &client, Family::V4);
    assert_reaches(&client, &late.place().unwrap(), Family::V6);
    lab.down().unwrap();
}

#[test]
fn a_deleted_pod_is_unreachable_and_its_map_entries_are_gone_on_all_nodes() {
    let (mut lab, web, client) = two_nodes(Underlay::Bridge);
    let stays = lab.pod_add("node-1", &PodSpec::named("stays")).unwrap().pod.place().unwrap();
    for address in &web.addresses {
        let known = maps_with(lab.node("node-1").unwrap(), *address);
        assert!(!known.is_empty(), "{address} must stand in a map while the pod lives, or this test shows nothing");
    }
    assert_reaches(&client, &web, Family::V4);

    lab.pod_del("web").unwrap();
    for family in Family::BOTH {
        for from in [&client, &stays] {
            let lost = probe::udp(from, &web, family).unwrap_err();
            assert!(format!("{lost:#}").contains("did not arrive"), "{lost:#}");
        }
        assert_reaches(&client, &stays, family);
    }
    for address in &web.addresses {
        // Behind the answer to DEL, and before somebody else has the address.
        let own = lab.node("node-1").unwrap();
        until("nothing of it is on its own node", || maps_with(own, *address).is_empty()).unwrap();
        // Whoever spoke with it remembers that until it is over.
        let mut left = maps_with(lab.node("node-2").unwrap(), *address);
        left.retain(|map| !map.starts_with("ct"));
        assert_eq!(left, [""; 0], "{address} on node-2");
    }
    lab.down().unwrap();
}

#[test]
fn a_new_pod_is_reachable_from_the_other_node_at_once() {
    let (mut lab, _web, client) = two_nodes(Underlay::Bridge);
    for i in 0..5 {
        let pod = lab.pod_add("node-1", &PodSpec::named(&format!("new-{i}"))).unwrap().pod.place().unwrap();
        // The very first packet of each: nothing may be lost while the other node learns of the pod.
        probe::udp(&pod, &client, Family::V4).unwrap();
        probe::udp(&client, &pod, Family::V6).unwrap();
    }
    lab.down().unwrap();
}
