//! What becomes of a pod's flows.
use lab::probe::Flow;

use super::*;

/// Flows with an address at either end.
fn flows(node: &Node, address: IpAddr) -> u64 {
    node.ask(&format!("/v1/flows?address={address}")).unwrap()["matched"].as_u64().expect("a number")
}

fn asks(ips: &[IpAddr]) -> Value {
    json!({"runtimeConfig": {"ips": ips}})
}

#[test]
fn the_flows_of_a_deleted_pod_are_gone_before_another_has_its_address() {
    let mut lab = one_node();
    let near = lab.pod_add(ORDINARY, &lab::PodSpec::named("near")).unwrap().pod.place().unwrap();
    let node = lab.node(ORDINARY).unwrap();
    let [first, second] = ["first", "second"].map(Container::new);
    let result = add(node, &first, "eth0", &json!({}));
    let place = first.at(&result);
    // From it, to it, and one that nobody answers.
    let mut open = vec![];
    for family in [Family::V4, Family::V6] {
        for (from, to) in [(&near, &place), (&place, &near)] {
            let mut flow = Flow::open(from, to, family).unwrap();
            flow.exchange(100).unwrap();
            open.push(flow);
        }
        probe::ping(&near, &place, family).unwrap();
        let silent = std::net::SocketAddr::new(near.address(family).unwrap(), 9);
        place.run(|| std::net::UdpSocket::bind((family.any(), 0))?.send_to(b"x", silent).map(drop)).unwrap();
    }
    for address in ips(&result) {
        assert_eq!(flows(node, address), 4, "flows of {address}");
    }
    let other = node.ask("/v1/flows/count").unwrap();
    assert!(other["tables"][1]["flows"].as_u64() > Some(0), "one waits: {other:#}");

    del(node, &first, "eth0");
    let again = add(node, &second, "eth0", &asks(&ips(&result)));
    assert_eq!(ips(&again), ips(&result));
    for address in ips(&result) {
        assert_eq!(flows(node, address), 0, "the new pod finds none of {address}");
    }
    drop(open);
    assert_reaches(&near, &second.at(&again));
    lab.down().unwrap();
}

#[test]
fn flows_that_a_dead_agents_pod_has_left_are_gone_before_another_has_its_address() {
    let mut lab = one_node();
    let near = lab.pod_add(ORDINARY, &lab::PodSpec::named("near")).unwrap().pod.place().unwrap();
    let node = lab.node(ORDINARY).unwrap();
    let [first, second] = ["first", "second"].map(Container::new);
    let result = add(node, &first, "eth0", &json!({}));
    let place = first.at(&result);
    for family in [Family::V4, Family::V6] {
        probe::tcp(&near, &place, family).unwrap();
    }
    // The namespace goes while no agent sees it, and so does the record.
    drop(place);
    lab.stop_agent(ORDINARY, lab::Ending::Killed).unwrap();
    netns::delete(&first.netns).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    let mut socket = Socket::open_in(node.place().unwrap().netns()).unwrap();
    let device = &result.interfaces[0].name;
    lab::pair::until("the device went with it", || link::by_name(&mut socket, device).unwrap().is_none()).unwrap();
    for record in fs::read_dir(node.paths().state()).unwrap() {
        let path = record.unwrap().path();
        if fs::read_to_string(&path).unwrap().contains(&first.id) {
            fs::remove_file(path).unwrap();
        }
    }
    lab.start_agent(ORDINARY).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    assert!(ips(&result).iter().all(|address| flows(node, *address) > 0), "nobody has removed them yet");
    let again = add(node, &second, "eth0", &asks(&ips(&result)));
    assert_eq!(ips(&again), ips(&result));
    for address in ips(&result) {
        assert_eq!(flows(node, address), 0, "the new pod finds none of {address}");
    }
    lab.down().unwrap();
}
