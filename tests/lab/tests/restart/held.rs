//! What the kernel holds for a node, as `bpftool` would show it: numbers of maps, links and programs, filters, entries.
use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use cni_agent::{
    datapath::{object, programs, syscall},
    netlink::{
        Socket, link, names,
        tc::{self, Filter, Place},
    },
};
use lab::Node;
use serde_json::Value;

/// What must be the same before and after an agent's death.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// Numbers of the pinned maps by their pins.
    pub maps: BTreeMap<String, String>,
    /// Numbers of the pinned links by their pins.
    pub links: BTreeMap<String, String>,
    /// Where filters of ours stand.
    pub filters: Vec<String>,
    /// Entries of the maps that say where packets go.
    pub entries: BTreeMap<&'static str, Vec<String>>,
    /// Endpoints that the agent serves.
    pub endpoints: usize,
}

/// Maps whose entries follow the cluster alone; counters do not.
const FOLLOWING: [&str; 11] =
    ["tunnels", "nodes4", "nodes6", "own4", "own6", "cidr4", "cidr6", "remote4", "remote6", "config", "endpoints"];
const LOCAL: [&str; 2] = ["local4", "local6"];

impl Held {
    /// Looks; every hook must hold what is pinned.
    pub fn look(node: &Node) -> Self {
        let dir = node.paths().bpf().join("weft");
        let (mut maps, mut links) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(&dir).expect("the pins") {
            let entry = entry.expect("a pin");
            let name = entry.file_name().to_string_lossy().into_owned();
            // A note on a qdisc, see `attach::made_clsact`, and no object.
            if entry.file_type().expect("its type").is_symlink() {
                continue;
            }
            let facts = facts(&dir.join(&name));
            if let Some(id) = facts.get("map_id") {
                maps.insert(name, id.clone());
            } else if let Some(id) = facts.get("link_id") {
                // The link is the former one, the program in it the new one's.
                let hook =
                    name.strip_prefix("link_").and_then(|n| object::HOOKS.into_iter().find(|h| n.starts_with(h)));
                let hook = hook.unwrap_or_else(|| panic!("a link of no hook is pinned as {name}"));
                assert_eq!(facts.get("prog_id"), Some(&program(&dir, hook)), "the program in {name}");
                links.insert(name, id.clone());
            }
        }
        let entries = |map| {
            let Value::Array(entries) = node.ask(&format!("/v1/maps/{map}")).expect("a map") else { panic!("{map}") };
            let mut lines: Vec<String> = entries.iter().map(ToString::to_string).collect();
            lines.sort();
            lines
        };
        Self {
            maps,
            links,
            filters: filters(node, &dir),
            entries: FOLLOWING.into_iter().chain(LOCAL).map(|map| (map, entries(map))).collect(),
            endpoints: node.ask("/v1/endpoints").expect("the endpoints").as_array().expect("a list").len(),
        }
    }
}

/// Our filters, each with the pinned program; two in one place would ask a packet twice.
fn filters(node: &Node, dir: &Path) -> Vec<String> {
    let mut socket = Socket::open_in(node.place().expect("the node").netns()).expect("a socket");
    let mut places = vec![Place::Block(names::BLOCK_INDEX)];
    places.extend(link::list(&mut socket).expect("devices").iter().map(|l| Place::Ingress(l.index)));
    let mut found = Vec::new();
    for place in places {
        let all = tc::filters(&mut socket, place).expect("filters");
        let ours: Vec<&Filter> = all.iter().filter(|f| f.is_ours()).collect();
        assert!(ours.len() < 2, "several of ours at {place}: {ours:?}");
        for filter in ours {
            let name = filter.name.clone().unwrap_or_default();
            // Devices that joined the block show its filter as theirs.
            let hook = object::HOOKS.into_iter().find(|hook| name.starts_with(hook));
            let hook = hook.unwrap_or_else(|| panic!("{name} at {place} is no hook of ours"));
            assert_eq!(filter.program_id.map(|id| id.to_string()), Some(program(dir, hook)), "{name} at {place}");
            found.push(format!("{name} at {place}"));
        }
    }
    found
}

/// Number of the program that is pinned for a hook.
fn program(dir: &Path, hook: &str) -> String {
    facts(&programs::path(dir, hook)).remove("prog_id").expect("a program is pinned")
}

/// What the kernel tells of a pinned object by its descriptor.
fn facts(path: &Path) -> BTreeMap<String, String> {
    let fd =
        syscall::open_pin(path).expect("a pin can be opened").unwrap_or_else(|| panic!("{} is gone", path.display()));
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).expect("fdinfo");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}
