//! What happens while no agent runs, or before this boot.
use std::{os::unix::fs::PermissionsExt as _, path::Path};

use cni_plugin::tombstone::{DIRECTORY, Tombstone};
use lab::Ending;

use super::*;

/// What the plugin leaves when it cannot reach the agent.
fn leave_tombstone(node: &Node, container: &Container, ifname: &str) {
    Tombstone::new(&*container.id, ifname).leave(&node.paths().run().join(DIRECTORY)).unwrap();
}

fn tombstones(node: &Node) -> Vec<String> {
    let list = fs::read_dir(node.paths().run().join(DIRECTORY)).unwrap();
    let mut names: Vec<_> = list.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_del_that_came_while_no_agent_ran_is_made_up_for_at_its_start() {
    let mut lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let [gone, stays] = ["gone", "stays"].map(Container::new);
    add(node, &gone, "eth0", &json!({}));
    add(node, &gone, "net1", &json!({}));
    let place = stays.at(&add(node, &stays, "eth0", &json!({})));
    lab.stop_agent(ORDINARY, Ending::Killed).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    // The plugin deletes the device; of net1 it could not.
    let device = link::by_name(&mut gone.socket(), "eth0").unwrap().unwrap();
    gone.socket().run(link::delete(device.index)).unwrap();
    leave_tombstone(node, &gone, "eth0");
    leave_tombstone(node, &gone, "net1");
    leave_tombstone(node, &Container::new("unknown"), "eth0");
    let none = node.paths().run().join(DIRECTORY).join("none:eth0.json");
    fs::write(&none, "no tombstone").unwrap();
    lab.start_agent(ORDINARY).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    assert_eq!((served(node), records(node), entries(node, "endpoints")), ((1, 2), 1, 1));
    assert_eq!(gone.ruled(), [] as [IpAddr; 0]);
    assert_eq!(tombstones(node), ["none:eth0.corrupt"], "set aside, and said so");
    let log = fs::read_to_string(node.paths().log()).unwrap();
    assert!(log.contains("replayed=3") && log.contains("none:eth0.corrupt"), "{log}");
    assert_reaches(&node.place().unwrap(), &place);
    lab::pair::until("its device goes", || gone.devices() == ["lo"]).unwrap();
    add(node, &gone, "eth0", &json!({}));
    lab.down().unwrap();
}

#[test]
fn an_add_or_del_takes_the_tombstone_of_its_container() {
    let lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("back");
    add(node, &container, "eth0", &json!({}));
    // Left while the agent was starting, say. The device is another one afterwards: the first pod was over.
    leave_tombstone(node, &container, "eth0");
    let before = link::by_name(&mut container.socket(), "eth0").unwrap().unwrap().index;
    let second = container.at(&add(node, &container, "eth0", &json!({})));
    assert_ne!(link::by_name(&mut container.socket(), "eth0").unwrap().unwrap().index, before);
    assert_eq!((tombstones(node), served(node).0), (vec![], 1));
    assert_reaches(&node.place().unwrap(), &second);
    leave_tombstone(node, &container, "eth0");
    del(node, &container, "eth0");
    assert_eq!((tombstones(node), served(node).0), (vec![], 0));
    lab.down().unwrap();
}

/// Writes a record of the state directory as another boot would have left it.
fn date_back(path: &Path) {
    let mut record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    record["bootId"] = "00000000-0000-4000-8000-000000000000".into();
    fs::write(path, record.to_string()).unwrap();
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_record_of_another_boot_goes_at_the_start_and_its_address_is_free() {
    let mut lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let [old, new] = ["old", "new"].map(Container::new);
    let former = add(node, &old, "eth0", &json!({}));
    lab.stop_agent(ORDINARY, Ending::Killed).unwrap();
    // A reboot takes devices and maps.
    let node = lab.node(ORDINARY).unwrap();
    let device = link::by_name(&mut old.socket(), "eth0").unwrap().unwrap();
    old.socket().run(link::delete(device.index)).unwrap();
    for pin in fs::read_dir(node.paths().bpf().join("weft")).unwrap() {
        fs::remove_file(pin.unwrap().path()).unwrap();
    }
    date_back(&node.paths().state().join(format!("{}:eth0.json", old.id)));
    lab.start_agent(ORDINARY).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    assert_clean(node);
    let asked = ips(&former).iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let result = add(node, &new, "eth0", &json!({"runtimeConfig": {"ips": asked}}));
    assert_eq!(ips(&result), ips(&former));
    assert_reaches(&node.place().unwrap(), &new.at(&result));
    lab.down().unwrap();
}

#[test]
fn what_is_left_of_an_add_that_was_cut_off_goes_at_the_start() {
    let mut lab = one_node();
    let node = lab.node(ORDINARY).unwrap();
    let container = Container::new("cut");
    let eth0 = container.at(&add(node, &container, "eth0", &json!({})));
    let former = add(node, &container, "net1", &json!({}));
    assert_eq!(container.ruled().len(), 2);
    lab.stop_agent(ORDINARY, Ending::Killed).unwrap();
    // As it stands before the maps are written: not ready, and rules are not told of yet. The maps have no entry either.
    let node = lab.node(ORDINARY).unwrap();
    let path = node.paths().state().join(format!("{}:net1.json", container.id));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["endpoint"]["state"] = "adding".into();
    assert_eq!(record["endpoint"].as_object_mut().unwrap().remove("ownTable"), Some(true.into()));
    fs::write(&path, record.to_string()).unwrap();
    for pin in fs::read_dir(node.paths().bpf().join("weft")).unwrap() {
        let pin = pin.unwrap().path();
        if pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with("endpoints")) {
            fs::remove_file(pin).unwrap();
        }
    }
    lab.start_agent(ORDINARY).unwrap();
    let node = lab.node(ORDINARY).unwrap();
    assert_eq!((served(node), records(node), container.ruled()), ((1, 2), 1, vec![]));
    lab::pair::until("its device goes", || container.devices() == ["eth0", "lo"]).unwrap();
    assert_reaches(&node.place().unwrap(), &eth0);
    let again = add(node, &container, "net1", &json!({}));
    assert!(ips(&again).iter().all(|a| !eth0.addresses.contains(a)), "{again:?} after {former:?}");
    assert_reaches(&node.place().unwrap(), &container.at(&again));
    lab.down().unwrap();
}
