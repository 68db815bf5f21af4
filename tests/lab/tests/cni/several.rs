//! Several interfaces of one container.
use super::*;

/// Two interfaces of a container on `name`, and a pod on each node that talks to both.
fn two_interfaces(name: &str) {
    let mut lab = two_nodes();
    let others = [ORDINARY, HOSTILE].map(|on| {
        let spec = lab::PodSpec::named(if on == ORDINARY { "one" } else { "two" });
        lab.pod_add(on, &spec).unwrap().pod.place().unwrap()
    });
    let node = lab.node(name).unwrap();
    let stack = node.place().unwrap();
    let container = Container::new("many");
    let eth0 = container.at(&add(node, &container, "eth0", &json!({})));
    assert_eq!(container.ruled(), [] as [IpAddr; 0], "the first interface needs none");
    let result = add(node, &container, "net1", &json!({}));
    let net1 = container.at(&result);
    assert!(net1.addresses.len() == 2 && net1.addresses.iter().all(|a| !eth0.addresses.contains(a)));
    assert_eq!(container.ruled(), net1.addresses);
    let table = result.routes.iter().map(|r| r.table).collect::<Vec<_>>();
    assert!(table.len() == 2 && table.iter().all(Option::is_some), "its routes are told with their table: {table:?}");

    // An answer by the other interface would carry a source that is not that interface's, and be dropped.
    for from in others.iter().chain([&stack]) {
        assert_reaches(from, &eth0);
        assert_reaches(from, &net1);
    }
    for other in &others {
        assert_reaches(&eth0, other);
        for (source, target) in net1.addresses.iter().zip(&other.addresses) {
            let seen = probe::udp_bound(&net1, *source, other, *target).unwrap().seen;
            assert_eq!(seen, Some(*source), "what is sent as {source} leaves by net1");
        }
    }

    del(node, &container, "net1");
    assert_eq!(container.ruled(), [] as [IpAddr; 0]);
    assert_eq!(container.routes(), ["0.0.0.0/0", "::/0"]);
    others.iter().for_each(|from| assert_reaches(from, &eth0));
    let net1 = container.at(&add(node, &container, "net1", &json!({})));
    del(node, &container, "eth0");
    others.iter().for_each(|from| assert_reaches(from, &net1));
    del(node, &container, "net1");
    assert_eq!(container.ruled(), [] as [IpAddr; 0]);
    lab::pair::until("its routes go with the device", || container.routes().is_empty()).unwrap();
    lab.down().unwrap();
}

#[test]
fn two_interfaces_of_a_container_answer_each_under_its_own_address() {
    two_interfaces(ORDINARY);
}

#[test]
fn two_interfaces_of_a_container_on_a_hostile_node_answer_each_under_its_own_address() {
    two_interfaces(HOSTILE);
}

#[test]
fn an_interface_whose_name_is_taken_by_another_network_is_refused_and_leaves_nothing() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("taken");
    container.socket().run(link::create_bridge("eth0")).unwrap();
    let e = refused(node, &container, &json!({}), None);
    assert!(e.msg.contains("eth0 is there already") && e.details.contains("CNI_IFNAME"), "{e}");
    assert_clean(node);
    lab.down().unwrap();
}

/// MTU of the device and of the routes in the main table and in the one of its own.
fn mtus_of(container: &Container, ifname: &str) -> (u32, Vec<u32>, Vec<u32>) {
    let mut socket = container.socket();
    let device = link::by_name(&mut socket, ifname).unwrap().unwrap();
    let mut of = |table| -> Vec<u32> {
        let all = route::list_table(&mut socket, table).unwrap().into_iter();
        all.filter(|r| r.index == device.index && r.dst.prefix_len() == 0).map(|r| r.mtu.unwrap_or(0)).collect()
    };
    (device.mtu, of(route::MAIN), of(device.index))
}

#[test]
fn a_change_of_the_mtu_reaches_every_interface_and_its_own_table() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("many");
    for ifname in ["eth0", "net1"] {
        add(node, &container, ifname, &json!({}));
    }
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = link::by_name(&mut socket, lab::layout::NODE_DEVICE).unwrap().unwrap();
    for mtu in [1400, 1500] {
        socket.run(link::set_mtu(device.index, mtu)).unwrap();
        let wanted = |ifname| match ifname {
            "eth0" => (mtu, vec![mtu - 50; 2], vec![]),
            _ => (mtu, vec![], vec![mtu - 50; 2]),
        };
        for ifname in ["eth0", "net1"] {
            lab::pair::until(&format!("{ifname} follows"), || mtus_of(&container, ifname) == wanted(ifname)).unwrap();
        }
    }
    lab.down().unwrap();
}

#[test]
fn a_pod_has_its_ipv6_address_on_an_underlay_that_is_too_narrow_for_ipv6() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = link::by_name(&mut socket, lab::layout::NODE_DEVICE).unwrap().unwrap();
    socket.run(link::set_mtu(device.index, 1000)).unwrap();
    lab::pair::until("the agent knows", || node.ask("/v1/status").unwrap()["datapath"]["pod_mtu"] == 950).unwrap();
    let [one, two] = ["one", "two"].map(Container::new);
    let places = [&one, &two].map(|c| c.at(&add(node, c, "eth0", &json!({}))));
    // The device is as wide as IPv6 demands, the routes say what the way can carry.
    assert_eq!(mtus_of(&one, "eth0"), (1280, vec![950; 2], vec![]));
    assert_reaches(&places[0], &places[1]);
    lab.down().unwrap();
}
