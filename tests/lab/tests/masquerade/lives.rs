//! Flows of pods to the world outlive agents, and a node's address is theirs only while it is the node's.
use std::net::IpAddr;

use cni_agent::netlink::{Socket, addr, link};
use ipnet::IpNet;
use lab::{
    Ending, Node,
    layout::NODE_DEVICE,
    pair::until,
    probe::{self, Family, Flow},
    tool,
};

use crate::{
    Rig,
    ends::{ask, port_of, udp_at},
    option,
};

#[test]
fn flows_go_on_while_agents_are_dead_and_after_they_are_back() {
    let mut rig = Rig::new(&[]);
    let mut flows = Vec::new();
    let mut datagrams = Vec::new();
    rig.each(|_, pod, family| {
        flows.push(Flow::open(pod, &rig.near, family).unwrap());
        datagrams.push((udp_at(pod, family, 0), udp_at(&rig.near, family, 0), rig.near.address(family).unwrap()));
    });
    let seen: Vec<_> = datagrams.iter().map(|(client, server, to)| ask(client, server, *to).unwrap()).collect();
    let mut exchange = |when: &str| {
        for flow in &mut flows {
            flow.exchange(100_000).unwrap_or_else(|e| panic!("{when}: {e:#}"));
        }
        for ((client, server, to), seen) in datagrams.iter().zip(&seen) {
            let now = ask(client, server, *to).unwrap_or_else(|e| panic!("{when}: {e:#}"));
            assert_eq!(now, *seen, "{when}");
        }
    };
    for ending in [Ending::Killed, Ending::Asked] {
        for node in ["node-1", "node-2"] {
            rig.lab.stop_agent(node, ending).unwrap();
        }
        exchange(&format!("agents dead ({ending:?})"));
        rig.each(|side, pod, family| {
            let flow = Flow::open(pod, &rig.near, family).unwrap();
            assert_eq!(flow.seen().ip(), side.address(family), "a new flow while agents are dead");
        });
        for node in ["node-1", "node-2"] {
            rig.lab.start_agent(node).unwrap();
        }
        exchange(&format!("agents back ({ending:?})"));
        rig.each(|side, pod, family| {
            let flow = Flow::open(pod, &rig.near, family).unwrap();
            assert_eq!(flow.seen().ip(), side.address(family), "a new flow when agents are back");
        });
    }
    // And nothing is lost while they are replaced.
    let Rig { lab, sides, near, .. } = &mut rig;
    let pairs = sides.each_ref().map(|side| (&side.pods[0], &*near));
    let (restarted, _) = probe::while_sending(&pairs, || {
        ["node-1", "node-2"].into_iter().try_for_each(|node| lab.restart_agent(node, Ending::Killed).map(drop))
    })
    .unwrap();
    restarted.unwrap();
    rig.lab.down().unwrap();
}

/// Which of the node's maps of translations name the pod.
fn translations_of(node: &Node, address: IpAddr) -> Vec<String> {
    let family = if address.is_ipv4() { 4 } else { 6 };
    let maps = ["nat_back", "nat_forth"].map(|map| format!("{map}{family}"));
    let names = |map: &String| node.ask(&format!("/v1/maps/{map}")).unwrap().to_string().contains(&address.to_string());
    maps.into_iter().filter(names).collect()
}

#[test]
fn what_a_pod_has_of_the_node_is_free_when_it_is_deleted() {
    let mut rig = Rig::new(&[]);
    let mut flows = Vec::new();
    rig.each(|side, pod, family| {
        let (client, server) = (udp_at(pod, family, 0), udp_at(&rig.near, family, 0));
        let seen = ask(&client, &server, rig.near.address(family).unwrap()).unwrap();
        let address = pod.address(family).unwrap();
        let maps = translations_of(rig.lab.node(&side.node.name).unwrap(), address);
        assert_eq!(maps.len(), 2, "{address} is named by {maps:?}");
        flows.push((address, port_of(&client), seen, server));
    });
    for side in &rig.sides {
        rig.lab.pod_del(&side.pods[0].name).unwrap();
    }
    for (n, (address, port, seen, server)) in flows.into_iter().enumerate() {
        let side = &rig.sides[n / 2];
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let node = rig.lab.node(&side.node.name).unwrap();
        until("no translation is the deleted pod's", || translations_of(node, address).is_empty()).unwrap();
        let client = udp_at(&side.pods[1], family, port);
        assert_eq!(ask(&client, &server, rig.near.address(family).unwrap()).unwrap(), seen, "as the other pod was");
    }
    rig.lab.down().unwrap();
}

/// The agent's maps name this address as one under which pods leave.
fn leaves_as(node: &Node, net: &IpNet) -> bool {
    let map = if net.addr().is_ipv4() { "leave4" } else { "leave6" };
    node.ask(&format!("/v1/maps/{map}")).unwrap().to_string().contains(&format!("\"{}\"", net.addr()))
}

#[test]
fn flows_take_the_nodes_new_address_when_it_gets_one() {
    const OLD: [&str; 2] = ["10.99.0.1/24", "fd99::1/64"];
    const NEW: [&str; 2] = ["10.99.0.77/24", "fd99::77/64"];
    let mut rig = Rig::new(&[]);
    let pod = rig.sides[0].pods[0].clone();
    let ends = Family::BOTH.map(|family| {
        let ends = (udp_at(&pod, family, 0), udp_at(&rig.near, family, 0), rig.near.address(family).unwrap());
        assert_eq!(ask(&ends.0, &ends.1, ends.2).unwrap().ip(), rig.sides[0].address(family));
        ends
    });
    let node = rig.lab.place("node-1").unwrap();
    let [old, new] = [OLD, NEW].map(|nets| nets.map(|net| net.parse::<IpNet>().unwrap()));
    let mut socket = Socket::open_in(node.netns()).unwrap();
    let device = link::by_name(&mut socket, NODE_DEVICE).unwrap().unwrap().index;
    for (old, new) in old.iter().zip(new) {
        // In this order: the kernel takes the others of a subnet away with its first address. And the routes with the last one.
        socket.run(addr::delete(device, *old)).unwrap();
        socket.run(addr::add(device, new)).unwrap();
    }
    for family in Family::BOTH {
        let router = rig.router.address(family).unwrap();
        let line = format!("ip {} route replace default via {router} dev {NODE_DEVICE} metric 100", option(family));
        tool::succeeds(&node, &line).unwrap();
    }
    rig.lab.readdress("node-1", &new).unwrap();
    let node = rig.lab.node("node-1").unwrap();
    until("the agent knows how pods leave now", || new.iter().all(|net| leaves_as(node, net))).unwrap();
    assert!(!old.iter().any(|net| leaves_as(node, net)));
    for ((client, server, to), new) in ends.iter().zip(new) {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        // The pod's socket knows of nothing.
        let seen = ask(client, server, *to).unwrap();
        assert_eq!((seen.ip(), seen.port()), (new.addr(), port_of(client)));
        let mut flow = Flow::open(&pod, &rig.near, family).unwrap();
        assert_eq!(flow.seen().ip(), new.addr());
        flow.exchange(100_000).unwrap();
    }
    rig.lab.down().unwrap();
}
