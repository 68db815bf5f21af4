//! All that Weft has on a node and in a container, as lines that can be compared.
use std::{collections::BTreeSet, fs, os::fd::AsFd as _, path::Path};

use cni_agent::netlink::{Socket, addr, link, netns, route, rule};
use lab::Node;
use serde_json::Value;

/// Of the node, and of the container whose namespace has this name.
pub fn state(node: &Node, container: Option<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut host = Socket::open_in(node.place().expect("the node").netns()).expect("a socket");
    network("node", &mut host, &mut found);
    if let Some(name) = container {
        let inside = netns::open(netns::path_of(name)).expect("the container's namespace");
        let mut pod = Socket::open_in(inside.as_fd()).expect("a socket");
        network("container", &mut pod, &mut found);
        found.extend(rule::list(&mut pod).expect("rules").iter().map(|r| format!("container: rule {r:?}")));
    }
    let paths = node.paths();
    files("record", &paths.state(), &mut found);
    files("pin", &paths.bpf().join("weft"), &mut found);
    files("tombstone", &paths.run().join(cni_plugin::tombstone::DIRECTORY), &mut found);
    for map in ["endpoints", "local4", "local6"] {
        let Value::Array(entries) = node.ask(&format!("/v1/maps/{map}")).expect("a map") else {
            panic!("{map} is no list")
        };
        found.extend(entries.iter().map(|entry| format!("map {map} {entry}")));
    }
    let status = node.ask("/v1/status").expect("a status");
    for range in status["addresses"].as_array().expect("a list") {
        found.insert(format!(
            "addresses of {}: {} used, {} quarantined",
            range["cidr"], range["used"], range["quarantined"]
        ));
    }
    found.insert(format!("{} endpoints", status["endpoints"]));
    found
}

fn network(whose: &str, socket: &mut Socket, found: &mut BTreeSet<String>) {
    let links = link::list(socket).expect("devices");
    // A device that is made anew has another index, and is the same to everybody.
    let name = |index| links.iter().find(|l| l.index == index).map_or("?", |l| l.name.as_str());
    found.extend(links.iter().map(|l| format!("{whose}: device {} up {} mtu {}", l.name, l.up, l.mtu)));
    for r in route::list(socket).expect("routes") {
        found.insert(format!(
            "{whose}: route to {} through {:?} by {} from {:?}",
            r.dst,
            r.gateway,
            name(r.index),
            r.source
        ));
    }
    found.extend(
        addr::list(socket)
            .expect("addresses")
            .iter()
            .map(|a| format!("{whose}: address {} on {}", a.net, name(a.index))),
    );
}

fn files(what: &str, dir: &Path, found: &mut BTreeSet<String>) {
    // Nobody has left anything in a directory that is not there.
    let entries = fs::read_dir(dir).into_iter().flatten();
    found.extend(entries.map(|entry| format!("{what} {}", entry.expect("an entry").file_name().to_string_lossy())));
}
