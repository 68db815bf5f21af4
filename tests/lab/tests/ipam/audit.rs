//! `weft ipam list` and `weft ipam audit`: each thing that can differ is made to, and named.
use std::{
    fs,
    process::{Command, Stdio},
};

use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
};

use super::*;

/// Exit code and answer of `weft ipam … --json` on node-1.
fn ipam(lab: &Lab, verb: &str) -> (i32, Value) {
    let node = lab.node("node-1").unwrap();
    let mut weft = Command::new(lab.bin_dir().join("weft"));
    weft.args(["ipam", verb, "--json", "--socket"]).arg(node.paths().api_socket()).stdout(Stdio::piped());
    let output = weft.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn assert_agrees(lab: &Lab) {
    let (code, audit) = ipam(lab, "audit");
    assert_eq!((code, &audit["differences"]), (0, &Value::Array(vec![])), "{audit:#}");
}

/// The audit fails, and these are the differences, by id and a part of their text; each has a cure.
fn assert_names(lab: &Lab, expected: &[(&str, &str)]) {
    let (code, audit) = ipam(lab, "audit");
    let found = audit["differences"].as_array().unwrap();
    assert_eq!((code, found.len()), (1, expected.len()), "{audit:#}");
    for (id, part) in expected {
        let named = |d: &&Value| d["id"] == *id && d["what"].as_str().unwrap().contains(part);
        let difference = found.iter().find(named).unwrap_or_else(|| panic!("{id} {part} is not in {audit:#}"));
        assert!(!difference["cure"].as_str().unwrap().is_empty());
    }
}

fn dual(n: u8) -> Vec<IpNet> {
    lab::layout::pod_cidrs(n).into()
}

#[test]
fn the_list_shows_whose_each_address_is() {
    let mut lab = lab_of(1, dual);
    assert_eq!(ipam(&lab, "list"), (0, Value::Array(vec![])));
    let web = pod(&mut lab, "node-1", "web");
    let (code, list) = ipam(&lab, "list");
    assert_eq!(code, 0);
    let container = lab.pod("web").unwrap().container_id.clone();
    for (entry, address) in list.as_array().unwrap().iter().zip(&web.addresses) {
        assert_eq!(entry["address"], address.to_string());
        assert_eq!((&entry["state"], &entry["pod"]), (&"used".into(), &"web".into()), "{entry}");
        assert_eq!((&entry["container_id"], &entry["ifname"]), (&container.clone().into(), &"eth0".into()), "{entry}");
        assert!(entry["device"].as_str().unwrap().starts_with("weft") && entry["age_seconds"].as_u64().unwrap() < 3600);
    }
    assert_eq!(list.as_array().unwrap().len(), 2);
    lab.down().unwrap();
}

#[test]
fn the_audit_finds_nothing_where_pods_come_and_go() {
    let mut lab = lab_of(1, dual);
    for name in ["a", "b", "c"] {
        pod(&mut lab, "node-1", name);
        assert_agrees(&lab);
    }
    lab.pod_del("b").unwrap();
    assert_agrees(&lab);
    lab.restart_agent("node-1", lab::Ending::Killed).unwrap();
    assert_agrees(&lab);
    lab.down().unwrap();
}

#[test]
fn the_audit_names_what_does_not_agree() {
    let mut lab = lab_of(1, dual);
    let [a, b, c] = ["a", "b", "c"].map(|name| pod(&mut lab, "node-1", name));
    let node = lab.node("node-1").unwrap();
    let (state, place) = (node.paths().state(), node.place().unwrap());

    let record = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path());
    let record = record.into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("a-")).unwrap();
    let text = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert_names(&lab, &[("no-record", &a.addresses[0].to_string())]);
    let other = record.with_file_name("gone-1:eth0.json");
    let gone = String::from_utf8(text.clone()).unwrap().replace(&lab.pod("a").unwrap().container_id, "gone-1");
    fs::write(&other, gone).unwrap();
    fs::write(&record, &text).unwrap();
    assert_names(&lab, &[("stray-record", "gone-1 eth0")]);
    fs::remove_file(&other).unwrap();
    assert_agrees(&lab);

    let mut host = Socket::open_in(place.netns()).unwrap();
    let end = |name| End { name, index: None, mac: None, mtu: None, netns: None, queues: None };
    host.run(link::create_veth(&end("weft999"), &end("other"))).unwrap();
    assert_names(&lab, &[("stray-device", "weft999")]);
    let stray = link::by_name(&mut host, "weft999").unwrap().unwrap();
    host.run(link::delete(stray.index)).unwrap();
    assert_agrees(&lab);

    let mut inside = Socket::open_in(b.netns()).unwrap();
    let eth0 = link::by_name(&mut inside, "eth0").unwrap().unwrap();
    inside.run(addr::delete(eth0.index, IpNet::from(b.addresses[1]))).unwrap();
    assert_names(&lab, &[("pod-address", &b.addresses[1].to_string())]);
    inside.run(link::delete(eth0.index)).unwrap();
    assert_names(&lab, &[("device", "of b-"), ("pod-device", "b-")]);

    // The runtime took a pod's namespace away and never called DEL: the agent sees to it, and the audit has no more to say than before.
    drop(c);
    netns::delete(&lab.pod("c").unwrap().netns()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while ipam(&lab, "audit").1["endpoints"] != 2 {
        assert!(Instant::now() < deadline, "{:#}", ipam(&lab, "audit").1);
    }
    assert_names(&lab, &[("device", "of b-"), ("pod-device", "b-")]);
    lab.down().unwrap();
}
