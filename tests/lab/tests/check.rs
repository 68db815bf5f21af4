//! CNI CHECK against the real agent: what is taken from a pod's connection or changed in it is named. Needs root and
//! `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::process::Command;

use cni_agent::netlink::netns;
use lab::{CniCall, Lab, LabConfig, Node, Pod, PodSpec};
use serde_json::Value;

/// Where something is broken.
#[derive(Clone, Copy)]
enum At {
    Node,
    Pod,
}

/// A command that breaks something, and what CHECK then says. `DEV` stands for the node's device, `V4` and `V6` for the pod's addresses,
/// `BLOCK` for the tc block.
const BROKEN: [(At, &str, &str); 17] = [
    (At::Node, "ip link set DEV down", "DEV is down"),
    (At::Node, "ip link set DEV address 02:00:00:00:00:01", "the MAC address of DEV is 02:00:00:00:00:01"),
    (At::Node, "ip link set DEV mtu 1300", "the MTU of DEV is 1300"),
    (At::Node, "tc qdisc del dev DEV clsact", "DEV has not joined tc block"),
    (At::Node, "ip link del DEV", "the node's device DEV"),
    (At::Pod, "ip link del eth0", "the pod's device eth0"),
    (At::Pod, "ip link set eth0 down", "eth0 is down"),
    (At::Pod, "ip link set eth0 address 02:00:00:00:00:02", "the MAC address of eth0 is 02:00:00:00:00:02"),
    (At::Pod, "ip link set eth0 mtu 1300", "the MTU of eth0 is 1300"),
    (At::Pod, "ip addr del V4/32 dev eth0", "eth0 has lost its address V4"),
    (At::Pod, "ip addr del V6/128 dev eth0", "eth0 has lost its address V6"),
    (At::Pod, "ip -4 route del default", "the route to 0.0.0.0/0 through eth0 is gone"),
    (At::Pod, "ip -6 route del default", "the route to ::/0 through eth0 is gone"),
    (
        At::Pod,
        "ip -4 route change default via 169.254.1.1 dev eth0 onlink mtu 1200",
        "the MTU of the route to 0.0.0.0/0 is 1200",
    ),
    (At::Pod, "ip neigh del 169.254.1.1 dev eth0", "the neighbour entry of the gateway 169.254.1.1"),
    (
        At::Pod,
        "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
        "has another MAC address",
    ),
    (At::Node, "tc filter del block BLOCK", "no program of Weft is on tc block"),
];

struct Rig {
    lab: Lab,
    pod: Pod,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
        let pod = lab.pod_add("node-1", &PodSpec::named("checked")).unwrap().pod;
        Self { lab, pod }
    }

    fn node(&self) -> &Node {
        self.lab.node("node-1").unwrap()
    }

    fn call(&self, command: &'static str, previous: Option<&Value>) -> anyhow::Result<Value> {
        let mut call = CniCall::of(command, &self.pod, self.node().paths());
        if let Some(previous) = previous {
            call.config["prevResult"] = previous.clone();
        }
        Ok(call.run(self.lab.bin_dir(), self.node())?.0)
    }

    fn check(&self, previous: &Value) -> Result<(), String> {
        self.call("CHECK", Some(previous)).map(drop).map_err(|e| format!("{e:#}"))
    }

    /// ADD again gives what there is.
    fn add(&self) -> Value {
        self.call("ADD", None).unwrap()
    }

    fn run(&self, at: At, line: &str) {
        let netns = match at {
            At::Node => self.node().netns(),
            At::Pod => self.pod.netns(),
        };
        let inside = netns::open(netns::path_of(&netns)).unwrap();
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let done = netns::spawn_in(std::os::fd::AsFd::as_fd(&inside), &mut command).unwrap().wait().unwrap();
        assert!(done.success(), "{line}");
    }
}

fn names(result: &Value) -> [(&'static str, String); 4] {
    let address = |v4: bool| {
        let all = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
        let mut plain = all.map(|a| a.split('/').next().unwrap().to_owned());
        plain.find(|a| a.contains('.') == v4).unwrap()
    };
    [
        ("DEV", result["interfaces"][0]["name"].as_str().unwrap().to_owned()),
        ("V4", address(true)),
        ("V6", address(false)),
        ("BLOCK", cni_agent::netlink::names::BLOCK_INDEX.to_string()),
    ]
}

#[test]
fn check_names_everything_that_is_gone_or_changed() {
    let rig = Rig::new();
    for (at, breaking, expected) in BROKEN {
        let result = rig.add();
        rig.check(&result).unwrap_or_else(|e| panic!("before `{breaking}`: {e}"));
        let fill = |text: &str| names(&result).iter().fold(text.to_owned(), |t, (name, value)| t.replace(name, value));
        rig.run(at, &fill(breaking));
        let said = rig.check(&result).expect_err(breaking);
        assert!(said.contains(&fill(expected)), "after `{breaking}`: {said}");
        assert!(said.contains("\"code\":105") && said.contains("\"details\""), "{said}");
        rig.call("DEL", None).unwrap();
    }
    rig.lab.down().unwrap();
}

#[test]
fn check_compares_what_the_runtime_believes() {
    let rig = Rig::new();
    let result = rig.add();
    rig.check(&result).unwrap();
    for (path, wrong, expected) in [
        ("/ips/0/address", "10.9.9.9/32", "prevResult lacks the address"),
        ("/interfaces/1/name", "eth7", "prevResult lacks the interface eth0"),
        ("/interfaces/1/mac", "02:00:00:00:00:09", "prevResult names eth0 with the MAC address 02:00:00:00:00:09"),
        ("/interfaces/1/sandbox", "/run/netns/other", "prevResult lacks the interface eth0"),
    ] {
        let mut believed = result.clone();
        *believed.pointer_mut(path).unwrap() = wrong.into();
        let said = rig.check(&believed).expect_err(path);
        assert!(said.contains(expected), "{path}: {said}");
    }
    // A plugin behind ours may have taken a route away; the list's result then lacks it.
    rig.run(At::Pod, "ip -4 route del default");
    assert!(rig.check(&result).unwrap_err().contains("the route to 0.0.0.0/0 through eth0 is gone"));
    let mut without = result.clone();
    without["routes"].as_array_mut().unwrap().retain(|route| route["dst"] != "0.0.0.0/0");
    rig.check(&without).unwrap();
    // After DEL there is nothing to be found.
    rig.call("DEL", None).unwrap();
    assert!(rig.check(&result).unwrap_err().contains("has not connected"));
    rig.lab.down().unwrap();
}
