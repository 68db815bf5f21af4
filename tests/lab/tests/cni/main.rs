//! The verbs of CNI against the real agent, asked on its socket as the plugin asks. Needs root and `cargo xtask build`; run it
//! with `cargo xtask test --suite lab`.
mod again;
mod asked;
mod dead;
mod delegated;
mod down;
mod flows;
mod gc;
mod several;
mod status;

use std::{collections::BTreeMap, fs, net::IpAddr, os::fd::AsFd as _};

use cni_agent::netlink::{Socket, link, netns, route, rule};
use cni_plugin::{
    client::{SocketTransport, Transport as _},
    protocol::{Request, Response, Verb},
    spec::{AddResult, CniError, Parameters},
};
use lab::{
    Lab, LabConfig, Node,
    layout::pod_netns,
    probe::{self, Family, Place},
};
use serde_json::{Value, json};

/// The node that is as nodes should be, and the one that is as they are.
const ORDINARY: &str = "node-1";
const HOSTILE: &str = "node-2";

/// A container that has a network namespace and no network yet. The namespace goes with the value.
struct Container {
    id: String,
    netns: String,
}

impl Container {
    fn new(name: &str) -> Self {
        let netns = pod_netns(name);
        drop(netns::create(&netns).expect("a network namespace"));
        Self { id: format!("{name}-1"), netns }
    }

    fn path(&self) -> String {
        netns::path_of(&self.netns).display().to_string()
    }

    /// As an end of probes, at the addresses of a result.
    fn at(&self, result: &AddResult) -> Place {
        Place::new(&self.id, &self.netns, ips(result)).expect("its namespace")
    }

    fn socket(&self) -> Socket {
        Socket::open_in(netns::open(self.path()).expect("its namespace").as_fd()).expect("a socket in it")
    }

    /// Names of its devices, sorted: kernels list them in orders of their own.
    fn devices(&self) -> Vec<String> {
        let mut names: Vec<String> = link::list(&mut self.socket()).unwrap().into_iter().map(|l| l.name).collect();
        names.sort();
        names
    }

    /// Addresses with a rule of ours.
    fn ruled(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = rule::list(&mut self.socket()).unwrap().into_iter().map(|r| r.from).collect();
        all.sort();
        all
    }

    /// Destinations of the routes in the main table that are ours.
    fn routes(&self) -> Vec<String> {
        let all = route::list(&mut self.socket()).unwrap().into_iter();
        all.filter(|r| r.protocol == cni_agent::netlink::names::ROUTE_PROTOCOL).map(|r| r.dst.to_string()).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(netns::delete(&self.netns));
    }
}

/// A call for a container's interface, with further keys of the configuration.
fn request(verb: Verb, container: &Container, ifname: &str, further: &Value) -> Request {
    let parameters = Parameters {
        container_id: container.id.clone(),
        netns: container.path(),
        ifname: ifname.to_owned(),
        args: BTreeMap::new(),
        path: Vec::new(),
    };
    Request::new(verb, parameters, config(further))
}

/// A call about no container.
fn about_all(verb: Verb, further: &Value) -> Request {
    let parameters = Parameters {
        container_id: String::new(),
        netns: String::new(),
        ifname: String::new(),
        args: BTreeMap::new(),
        path: Vec::new(),
    };
    Request::new(verb, parameters, config(further))
}

fn config(further: &Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
    for (key, value) in further.as_object().expect("keys") {
        config[key] = value.clone();
    }
    config
}

/// Calls the agent of a node.
fn call(node: &Node, request: &Request) -> Result<Option<AddResult>, CniError> {
    match SocketTransport::default().call(&node.paths().cni_socket(), request).map_err(|e| e.error)? {
        Response::Done(result) => Ok(result),
        Response::Failed(e) => Err(e),
    }
}

fn add(node: &Node, container: &Container, ifname: &str, further: &Value) -> AddResult {
    let result = call(node, &request(Verb::Add, container, ifname, further)).unwrap_or_else(|e| panic!("ADD: {e}"));
    result.expect("ADD has a result")
}

fn del(node: &Node, container: &Container, ifname: &str) {
    call(node, &request(Verb::Del, container, ifname, &json!({}))).unwrap_or_else(|e| panic!("DEL: {e}"));
}

/// What ADD refuses.
fn refused(node: &Node, container: &Container, further: &Value, ipam: Option<Value>) -> CniError {
    let ipam = ipam.map(|text| serde_json::from_value(text).expect("a result"));
    let asked = Request { ipam, ..request(Verb::Add, container, "eth0", further) };
    call(node, &asked).expect_err("it cannot be served")
}

/// The addresses of a result, IPv4 first.
fn ips(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Every protocol gets from one to the other, at all its addresses, and back.
fn assert_reaches(from: &Place, to: &Place) {
    for target in &to.addresses {
        let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
        let mut only = to.clone();
        only.addresses = vec![*target];
        probe::udp_bound(from, family.any(), &only, *target).unwrap_or_else(|e| panic!("{target}: {e:#}"));
        probe::tcp(from, &only, family).unwrap_or_else(|e| panic!("{target}: {e:#}"));
        probe::ping(from, &only, family).unwrap_or_else(|e| panic!("{target}: {e:#}"));
    }
}

/// Ids of the endpoints that a node serves, and how many addresses it counts as given.
fn served(node: &Node) -> (usize, u64) {
    let endpoints = node.ask("/v1/endpoints").unwrap().as_array().expect("a list").len();
    let status = node.ask("/v1/status").unwrap();
    let used = status["addresses"].as_array().expect("a list").iter().filter_map(|a| a["used"].as_u64()).sum();
    (endpoints, used)
}

/// Entries in a map of a node.
fn entries(node: &Node, map: &str) -> usize {
    node.ask(&format!("/v1/maps/{map}")).unwrap().as_array().expect("entries").len()
}

/// Records in a node's state directory.
fn records(node: &Node) -> usize {
    node.paths().records().unwrap().len()
}

/// Nothing of a container is left on its node: no endpoint, no address, no record, no map entry.
fn assert_clean(node: &Node) {
    assert_eq!(served(node), (0, 0), "endpoints and addresses of {}", node.name());
    assert_eq!(records(node), 0, "records of {}", node.name());
    for map in ["endpoints", "local4", "local6"] {
        assert_eq!(entries(node, map), 0, "entries in {map} of {}", node.name());
    }
}

/// The agents test no wire of their own at their start: its endpoint and addresses would be counted too.
fn lab(nodes: u8) -> Lab {
    let agent_args = ["--cni-install", "no"].map(str::to_owned).to_vec();
    Lab::up(LabConfig { agent_args, ..LabConfig::with_nodes(nodes) }).expect("a lab")
}

fn one_node() -> Lab {
    lab(1)
}

/// The second one is hostile.
fn two_nodes() -> Lab {
    lab(2)
}
