//! Maps without room.
use cni_agent::datapath::pins;
use cni_common::schema::{self, MapSpec};
use lab::LabConfig;

use super::*;

/// Fills a map with what nobody asks for, and gives the keys.
fn fill(node: &Node, spec: &MapSpec) -> Vec<Vec<u8>> {
    let map = pins::open(&node.paths().bpf().join("weft"), spec).unwrap().expect("is pinned");
    let value = vec![0; spec.value_size as usize];
    let mut keys = Vec::new();
    for n in 0_u32.. {
        // Addresses of the last class, which nobody has.
        let mut key = vec![0xf7; spec.key_size as usize];
        key[..4].copy_from_slice(&(0xf000_0000 | n).to_be_bytes());
        match map.update(&key, &value) {
            Ok(()) => keys.push(key),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(nix::libc::E2BIG), "{e}");
                break;
            }
        }
    }
    assert!(!keys.is_empty() && keys.len() <= spec.max_entries as usize, "{}", keys.len());
    keys
}

fn empty(node: &Node, spec: &MapSpec, keys: &[Vec<u8>]) {
    let map = pins::open(&node.paths().bpf().join("weft"), spec).unwrap().expect("is pinned");
    keys.iter().for_each(|key| map.delete(key).unwrap());
}

#[test]
fn a_full_map_refuses_new_pods_by_its_name_and_harms_none_that_is_there() {
    let mut lab = lab();
    let (one, two) = (pod(&mut lab, "one"), pod(&mut lab, "two"));
    // One that is written last, and one that is written first: what was written before the refusal goes again.
    for spec in [schema::ENDPOINTS, schema::LOCAL6] {
        let plain = spec.name.split_once('_').unwrap().0;
        let entries = |node: &Node| node.ask("/v1/maps/local4").unwrap().as_array().unwrap().len();
        let junk = fill(node(&lab), &spec);
        let why = refused(&mut lab, "three");
        let holds = format!("the map is full: it holds {} entries", spec.max_entries);
        for part in [format!("write map {plain}"), holds, "weft map list".to_owned()] {
            assert!(why.contains(&part), "no {part:?} in: {why}");
        }
        until("nothing is left of it", || counts(node(&lab)) == [2, 4, 2] && entries(node(&lab)) == 2).unwrap();
        assert_reaches(&one, &two);
        empty(node(&lab), &spec, &junk);
        assert_reaches(&one, &pod(&mut lab, "three"));
        lab.pod_del("three").unwrap();
        until("the pod is gone", || counts(node(&lab)) == [2, 4, 2]).unwrap();
    }
    lab.down().unwrap();
}

#[test]
fn a_node_that_finds_a_full_map_is_told_of_and_served_as_soon_as_there_is_room() {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
    let one = pod(&mut lab, "one");
    let far = lab.pod_add("node-2", &PodSpec::named("far")).unwrap().pod.place().unwrap();
    let object = node(&lab).paths().manifests().join("node.node-2.json");
    let text = fs::read(&object).unwrap();
    fs::remove_file(&object).unwrap();
    let nodes = |lab: &Lab| node(lab).ask("/v1/maps/nodes4").unwrap().as_array().unwrap().len();
    until("the other node goes", || nodes(&lab) == 0).unwrap();
    let junk = fill(node(&lab), &schema::NODES4);
    fs::write(&object, &text).unwrap();
    let failed = |lab: &Lab| node(lab).ask("/v1/status").unwrap()["reconciler"]["failed"].to_string();
    until("the status tells why it is not served", || {
        let failed = failed(&lab);
        failed.contains("node-2") && failed.contains("the map is full")
    })
    .unwrap();
    empty(node(&lab), &schema::NODES4, &junk);
    until("it is tried again", || failed(&lab) == "[]").unwrap();
    assert_reaches(&one, &far);
    lab.down().unwrap();
}
