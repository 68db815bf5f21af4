//! What the agent installs for a container runtime. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    fs,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use cni_agent::netlink::{
    Socket, link, names,
    tc::{self, Place},
};
use lab::{
    Ending, Lab, LabConfig, Node, PodSpec,
    probe::{self, Family},
};
use notify::{Event, EventKind, RecursiveMode, Watcher as _, event::ModifyKind};
use serde_json::Value;

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const CONTAINER: &str = "weft-self-test";

fn install(node: &Node) -> Value {
    node.ask("/v1/status").unwrap()["install"].clone()
}

fn await_stage(node: &Node, stage: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let install = install(node);
        if install["stage"] == stage {
            return install;
        }
        assert!(Instant::now() < deadline, "it never was {stage}: {install:#}\n{}", node.log_tail());
        lab::pause();
    }
}

/// Nothing is left of a self-test: no endpoint, no record, no map entry, no device. One may still be going on, and devices are
/// deleted behind the answer.
fn assert_nothing_left(node: &Node) {
    let place = node.place().unwrap();
    let left = || {
        let mut socket = Socket::open_in(place.netns()).unwrap();
        let links = link::list(&mut socket).unwrap();
        let devices: Vec<_> = links.into_iter().map(|l| l.name).filter(|n| names::endpoint_of(n).is_some()).collect();
        let records = node.paths().records().unwrap().len();
        let ask = |path| node.ask(path).unwrap();
        (ask("/v1/endpoints"), ask("/v1/maps/endpoints_v1"), ask("/v1/maps/local4_v2"), records, devices)
    };
    let empty = || Value::Array(vec![]);
    let nothing = (empty(), empty(), empty(), 0, vec![]);
    let deadline = Instant::now() + PATIENCE;
    while left() != nothing {
        assert!(Instant::now() < deadline, "{:?}", left());
    }
}

#[test]
fn a_runtime_finds_whole_files_only_and_the_configuration_last() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let paths = lab.node("node-1").unwrap().paths().clone();
    let (bin, conf, conflist) = (paths.cni_bin(), paths.cni_conf(), paths.conflist());
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    fs::remove_file(&conflist).unwrap();
    fs::remove_file(bin.join("weft-cni")).unwrap();
    let (seen, events) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| drop(seen.send(event))).unwrap();
    for directory in [&bin, &conf] {
        watcher.watch(directory, RecursiveMode::NonRecursive).unwrap();
    }
    lab.start_agent("node-1").unwrap();
    drop(watcher);
    let mut order: Vec<&Path> = Vec::new();
    let plugin = bin.join("weft-cni");
    for event in events.iter().map(Result::unwrap) {
        for path in [plugin.as_path(), conflist.as_path()] {
            if event.paths.iter().any(|p| p == path) {
                let whole = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_));
                assert!(whole, "a runtime could have seen a part: {event:?}");
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
    }
    assert_eq!(order, [plugin.as_path(), conflist.as_path()]);
    assert_eq!(fs::read(&plugin).unwrap(), fs::read(lab.bin_dir().join("weft-cni")).unwrap());

    let node = lab.node("node-1").unwrap();
    let install = install(node);
    assert_eq!(install["stage"], "installed");
    let result = install["self_test"].as_str().unwrap();
    assert!(result.starts_with("packets went in IPv4 and IPv6"), "{result}");
    assert_nothing_left(node);
    lab.down().unwrap();
}

#[test]
fn packets_that_do_not_go_leave_no_configuration_and_a_restart_that_cures_it_installs() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let node = lab.node("node-1").unwrap();
    let (place, paths) = (node.place().unwrap(), node.paths().clone());
    // The program that pods' packets meet first goes; then somebody removes the configuration.
    let mut socket = Socket::open_in(place.netns()).unwrap();
    let block = Place::Block(names::BLOCK_INDEX);
    assert_eq!(tc::filters(&mut socket, block).unwrap().len(), 1);
    socket.run(tc::delete_filter(block)).unwrap();
    fs::remove_file(paths.conflist()).unwrap();
    let install = await_stage(node, "failed");
    let why = install["why"].as_str().unwrap();
    assert!(why.contains("a datagram from the probe to the node did not arrive in IPv4"), "{why}");
    assert!(why.contains("`weft drops`"), "{why}");
    assert!(!paths.conflist().exists());
    assert!(node.log_tail().contains("Weft is not installed for the container runtime"), "{}", node.log_tail());
    assert_nothing_left(node);

    lab.restart_agent("node-1", Ending::Asked).unwrap();
    let node = lab.node("node-1").unwrap();
    await_stage(node, "installed");
    assert!(paths.conflist().exists());
    lab.down().unwrap();
}

#[test]
fn what_a_killed_agent_left_of_its_self_test_is_removed() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    // As if the agent had been killed in its self-test: an endpoint of that container, in a namespace that is there.
    let added = lab.pod_add("node-1", &PodSpec::named("probe")).unwrap();
    let node = lab.node("node-1").unwrap();
    let (state, paths) = (node.paths().state(), node.paths().clone());
    lab.stop_agent("node-1", Ending::Killed).unwrap();
    let record = paths.records().unwrap().remove(0);
    let text = fs::read_to_string(&record).unwrap().replace(&added.pod.container_id, CONTAINER);
    fs::remove_file(&record).unwrap();
    let name = record.file_name().unwrap().to_str().unwrap().replace(&added.pod.container_id, CONTAINER);
    fs::write(state.join(name), text).unwrap();
    lab.start_agent("node-1").unwrap();
    assert_nothing_left(lab.node("node-1").unwrap());
    lab.down().unwrap();
}

#[test]
fn pods_are_wired_by_the_installed_plugin_and_foreign_configurations_stay_as_they_are() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let conf = lab.node("node-1").unwrap().paths().cni_conf();
    let other = r#"{"cniVersion":"1.0.0","name":"other","type":"bridge"}"#;
    fs::write(conf.join("00-other.conf"), other).unwrap();
    let node = lab.node("node-1").unwrap();
    let foreign = &install(node)["foreign"];
    assert_eq!(foreign[0]["path"].as_str().unwrap(), conf.join("00-other.conf").to_str().unwrap());
    assert_eq!(foreign[0]["first"], true);
    lab.restart_agent("node-1", Ending::Asked).unwrap();
    let node = lab.node("node-1").unwrap();
    await_stage(node, "installed");
    assert!(node.log_tail().contains("the container runtime takes another CNI configuration"), "{}", node.log_tail());
    assert_eq!(fs::read_to_string(conf.join("00-other.conf")).unwrap(), other);
    let web = lab.pod_add("node-1", &PodSpec::named("web")).unwrap().pod.place().unwrap();
    let place = lab.node("node-1").unwrap().place().unwrap();
    for family in Family::BOTH {
        probe::udp(&web, &place, family).unwrap();
    }
    lab.down().unwrap();
}
