//! STATUS.
use cni_agent::netlink::{
    names,
    tc::{self, Place as Hook},
};
use lab::Ending;

use super::*;

#[test]
fn status_tells_when_the_node_lacks_something() {
    let mut lab = one_node();
    let ask = |lab: &Lab| call(lab.node(ORDINARY).unwrap(), &about_all(Verb::Status, &json!({})));
    ask(&lab).unwrap();
    let manifests = lab.node(ORDINARY).unwrap().paths().manifests();
    let hidden = manifests.with_extension("hidden");
    lab.stop_agent(ORDINARY, Ending::Asked).unwrap();
    fs::rename(&manifests, &hidden).unwrap();
    lab.start_waiting_agent(ORDINARY).unwrap();
    let e = ask(&lab).unwrap_err();
    assert!(e.code.0 == 50 && e.msg.contains("no Node object of the name node-1"), "{e}");
    fs::remove_dir_all(&hidden).unwrap();
    lab.down().unwrap();
}

#[test]
fn status_tells_when_the_addresses_are_used_up_and_by_how_many() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let object = node.paths().manifests().join("node.node-1.json");
    let wide = fs::read_to_string(&object).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
    let ask = |further| call(node, &about_all(Verb::Status, &further));
    // Two addresses of each family; the first and the last of IPv4 and the first of IPv6 are not for pods.
    let narrow = wide.replace("/24", "/30").replace("/64", "/126");
    assert_ne!(narrow, wide);
    fs::write(object.with_extension("tmp"), narrow).unwrap();
    fs::rename(object.with_extension("tmp"), &object).unwrap();
    lab::pair::until("the range is narrow", || node.ask("/v1/status").unwrap()["addresses"][0]["size"] == 2).unwrap();
    let containers = ["one", "two", "three"].map(Container::new);
    add(node, &containers[0], "eth0", &json!({}));
    ask(json!({})).unwrap();
    add(node, &containers[1], "eth0", &json!({}));
    let e = ask(json!({})).unwrap_err();
    assert!(e.code.0 == 50 && e.msg.contains("all 2 IPv4 addresses") && e.msg.contains("2 in use"), "{e}");
    let e = refused(node, &containers[2], &json!({}), None);
    assert!(e.code.0 == 103 && e.msg.contains("all 2 IPv4 addresses"), "{e}");
    ask(json!({"ipam": {"type": "host-local"}})).expect("another plugin's addresses are not Weft's");
    del(node, &containers[1], "eth0");
    // The device has to go first.
    lab::pair::until("an address is free", || ask(json!({})).is_ok()).unwrap();
    lab.down().unwrap();
}

#[test]
fn status_tells_when_what_carries_packets_is_gone() {
    let mut lab = one_node();
    let ask = |lab: &Lab| call(lab.node(ORDINARY).unwrap(), &about_all(Verb::Status, &json!({})));
    let mut socket = Socket::open_in(lab.node(ORDINARY).unwrap().place().unwrap().netns()).unwrap();
    socket.run(tc::delete_filter(Hook::Block(names::BLOCK_INDEX))).unwrap();
    let e = ask(&lab).unwrap_err();
    assert!(e.code.0 == 51 && e.msg.contains("program from_pod") && e.details.contains("restart weft-agent"), "{e}");
    lab.restart_agent(ORDINARY, Ending::Asked).unwrap();
    ask(&lab).unwrap();
    let device = link::by_name(&mut socket, names::VXLAN).unwrap().unwrap();
    socket.run(link::delete(device.index)).unwrap();
    let e = ask(&lab).unwrap_err();
    assert!(e.code.0 == 51 && e.msg.contains("device weft_vxlan"), "{e}");
    lab.down().unwrap();
}
