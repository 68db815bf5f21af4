//! `weft doctor` on an ordinary and on a hostile node. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    fs,
    process::{Command, Stdio},
};

use cni_agent::netlink::netns;
use lab::{Ending, Lab, LabConfig, hostile::Policy};
use serde_json::Value;

/// Exit code and report of `weft doctor --json` on a node. The directory of configurations is named, as not every agent runs.
fn doctor(lab: &Lab, node: &str) -> (i32, Value) {
    let node = lab.node(node).unwrap();
    let place = node.place().unwrap();
    let mut weft = Command::new(lab.bin_dir().join("weft"));
    weft.args(["doctor", "--json", "--socket"])
        .arg(node.paths().api_socket())
        .arg("--cni-conf-dir")
        .arg(node.paths().cni_conf())
        .stdout(Stdio::piped());
    let output = netns::spawn_in(place.netns(), &mut weft).unwrap().wait_with_output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

/// What hinders, by id.
fn hindering(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().filter(|f| f["hinders"] == true).map(|f| f["id"].as_str().unwrap()).collect()
}

fn cure<'a>(report: &'a Value, id: &str) -> &'a str {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|f| f["id"] == id).unwrap()["cure"].as_str().unwrap()
}

#[test]
fn the_doctor_finds_nothing_on_an_ordinary_node_and_names_what_stands_in_the_way_on_a_hostile_one() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let (code, report) = doctor(&lab, "node-1");
    assert_eq!((code, hindering(&report)), (0, vec![]), "{report:#}");
    let programs = report["programs"].as_array().unwrap();
    assert!(programs.iter().any(|p| p["program"] == "from_netdev" && p["device"] == "eth0"), "{report:#}");

    let (code, report) = doctor(&lab, "node-2");
    assert_eq!((code, hindering(&report)), (1, vec!["forward-policy", "forward-policy"]), "{report:#}");
    assert!(cure(&report, "forward-policy").starts_with("nft insert rule ip"), "{report:#}");
    lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
    let (code, report) = doctor(&lab, "node-2");
    assert_eq!((code, hindering(&report)), (0, vec![]), "{report:#}");

    let place = lab.node("node-1").unwrap().place().unwrap();
    netns::set_sysctl(place.netns(), "ipv4/ip_forward", "0").unwrap();
    let paths = lab.node("node-1").unwrap().paths().clone();
    fs::write(paths.cni_conf().join("00-other.conflist"), r#"{"name":"other","plugins":[{"type":"bridge"}]}"#).unwrap();
    let shaped = r#"{"name":"x","plugins":[{"type":"weft-cni"},{"type":"bandwidth"}]}"#;
    fs::write(paths.cni_conf().join("10-shaped.conflist"), shaped).unwrap();
    let (code, report) = doctor(&lab, "node-1");
    assert_eq!((code, hindering(&report)), (1, vec!["ip-forward4", "cni-foreign", "cni-bandwidth"]), "{report:#}");
    assert!(cure(&report, "cni-bandwidth").contains("10-shaped.conflist"), "{report:#}");
    fs::remove_file(paths.cni_conf().join("10-shaped.conflist")).unwrap();
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let (code, report) = doctor(&lab, "node-1");
    assert_eq!((code, hindering(&report)), (1, vec!["agent", "ip-forward4", "cni-foreign"]), "{report:#}");
    assert!(cure(&report, "cni-foreign").contains("00-other.conflist.disabled"), "{report:#}");
    lab.down().unwrap();
}
