//! The flows that conntrack knows, as the agent shows them, takes them out when they are over, and removes them when it is asked to. Needs
//! root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Output},
};

use cni_agent::datapath::{Clock, RawMap, features::Features, walk::Walk};
use cni_common::schema::{self, MapSpec};
use lab::{
    Lab, LabConfig, Node, PodSpec,
    pair::until,
    probe::{self, Family, Flow, Place},
};
use serde_json::{Value, json};

/// A lab of one node with two pods.
fn two_pods() -> (Lab, [Place; 2]) {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let pods = ["web", "client"].map(|name| {
        let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(name) };
        lab.pod_add("node-1", &spec).expect("a pod").pod.place().unwrap()
    });
    (lab, pods)
}

fn weft(lab: &Lab, args: &[&str]) -> Output {
    let socket = lab.node("node-1").unwrap().paths().api_socket();
    let mut command = Command::new(lab.bin_dir().join("weft"));
    command.arg("--socket").arg(socket).arg("ct").args(args).output().expect("weft runs")
}

fn answer(lab: &Lab, args: &[&str]) -> Value {
    let output = weft(lab, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn list(lab: &Lab, filters: &[&str]) -> Vec<Value> {
    let listed = answer(lab, &[&["list"], filters].concat());
    let flows = listed["flows"].as_array().expect("flows").clone();
    assert_eq!(listed["matched"], flows.len(), "all are shown: {listed}");
    flows
}

/// Flows between two pods, by protocol and state.
fn kinds(flows: &[Value]) -> BTreeSet<(u64, String)> {
    flows.iter().map(|f| (f["protocol"].as_u64().unwrap(), f["state"].as_str().unwrap().to_owned())).collect()
}

/// What the endpoints hold by their accounts, in both families.
fn held(node: &Node) -> u64 {
    let of = |map: &str| {
        let Value::Array(rows) = node.ask(&format!("/v1/maps/{map}")).expect("a map") else { panic!("{map}") };
        rows.iter().map(|row| row["value"].as_u64().expect("a number")).sum::<u64>()
    };
    of("ct_held4") + of("ct_held6")
}

#[test]
fn the_programs_clock_goes_on_and_is_that_of_the_entries() {
    let clock = Clock::load().expect("a program");
    let first = clock.now().unwrap();
    // It is in 64 bits: the kernel begins a little before the 32nd one is full, so that who forgets it is found out.
    assert!(first > 1 << 32 || first > u64::from(u32::MAX) - 100_000_000, "{first}");
    until("it moves", || clock.now().unwrap() > first).unwrap();
}

#[test]
fn a_walk_sees_every_entry_once_however_large_its_lots_and_the_tables_buckets_are() {
    const ENTRIES: u32 = 1000;
    // As many buckets as entries: some have several.
    let map =
        RawMap::create(MapSpec { name: "walked", max_entries: ENTRIES.next_power_of_two(), ..schema::CT4 }).unwrap();
    let key = |n: u32| [n; 4].map(u32::to_ne_bytes).concat();
    for n in 0..ENTRIES {
        map.update(&key(n), &vec![n as u8; map.spec().value_size as usize]).unwrap();
    }
    let by_lots = Features::try_all(&[]).has("batch-hash");
    for (most, by_lots) in [(1, by_lots), (7, by_lots), (4096, by_lots), (7, false)] {
        let (mut walk, mut seen, mut calls) = (Walk::in_lots_of(most, by_lots), BTreeMap::new(), 1);
        let mut each = |key: &[u8], value: &[u8]| {
            let before = seen.insert(key.to_vec(), value[0]);
            assert_eq!(before, None, "{key:?} was seen before");
        };
        while map.lot(&mut walk, &mut each).unwrap() {
            calls += 1;
        }
        let all = (0..ENTRIES).map(|n| (key(n), n as u8));
        assert!(seen == all.collect(), "lots of {most}: {} entries", seen.len());
        assert!(calls >= ENTRIES / most.max(16) || most > ENTRIES, "{calls} lots of {most}");
        assert!(!map.lot(&mut walk, &mut |_, _| panic!("it is at its end")).unwrap());
    }
}

fn are_shown_and_flushed(family: Family) {
    let (lab, [web, client]) = two_pods();
    let (v6, echo) = if family == Family::V6 { (true, 58) } else { (false, 1) };
    let mut open = Flow::open(&client, &web, family).unwrap();
    open.exchange(1000).unwrap();
    probe::udp(&client, &web, family).unwrap();
    probe::ping(&client, &web, family).unwrap();

    let own = if v6 { "-6" } else { "-4" };
    let flows = list(&lab, &["--pod", "shop/web", "--pod", "shop/client", own]);
    let expected = [(6, "established"), (17, "established"), (echo, "established")].map(|(p, s)| (p, s.to_owned()));
    assert_eq!(kinds(&flows), BTreeSet::from(expected), "{flows:#?}");
    let (from, to) = (client.address(family).unwrap(), web.address(family).unwrap());
    for f in &flows {
        let ends = (&f["source"], &f["destination"], &f["source_pod"], &f["destination_pod"]);
        assert_eq!(ends, (&json!(from), &json!(to), &json!("shop/client"), &json!("shop/web")), "who asks comes first");
        assert_eq!(f["table"], "settled", "{f}");
    }
    let tcp = flows.iter().find(|f| f["protocol"] == 6).unwrap();
    assert_eq!(tcp["source_port"], open.seen().port());
    let left = tcp["seconds_left"].as_u64().unwrap();
    assert!((7900..=8000).contains(&left), "{tcp}");
    let ping = flows.iter().find(|f| f["protocol"] == echo).unwrap();
    assert!(ping["echo_id"].is_u64() && ping["source_port"].is_null(), "{ping}");

    // Each filter by itself, and what is shown to people.
    let port = open.seen().port().to_string();
    for filters in [&["--port", &port][..], &["--protocol", "tcp", "--address", &from.to_string()]] {
        assert_eq!(kinds(&list(&lab, filters)), BTreeSet::from([(6, "established".into())]), "{filters:?}");
    }
    assert_eq!(list(&lab, &["--pod", "shop/web", if v6 { "-4" } else { "-6" }]), [] as [Value; 0]);
    assert_eq!(list(&lab, &["--state", "handshake", "--pod", "shop/web"]), [] as [Value; 0]);
    let text = String::from_utf8(weft(&lab, &["list", "--protocol", "tcp"]).stdout).unwrap();
    assert!(text.contains("TCP") && text.contains("shop/client") && text.contains("2h 13m"), "{text}");
    let one = answer(&lab, &["list", "--pod", "shop/web", own, "--limit", "1"]);
    assert_eq!((one["flows"].as_array().unwrap().len(), &one["matched"]), (1, &json!(3)));
    let status = lab.node("node-1").unwrap().ask("/v1/status").unwrap();
    let fill = &status["conntrack"]["tables"][usize::from(v6)];
    let size = fill["size"].as_u64().unwrap();
    // By the memory of this machine.
    assert!(size.is_power_of_two() && (16_384..=131_072).contains(&size), "{status:#}");
    assert!(fill["flows"].as_u64().unwrap() >= 3, "{status:#}");
    let counts = answer(&lab, &["count"]);
    let settled = &counts["tables"].as_array().unwrap()[2 * usize::from(v6)];
    assert!(settled["table"] == "settled" && settled["states"]["established"].as_u64().unwrap() >= 3, "{counts:#}");

    // One that nobody asked for stays; so does the connection, whose next packet is judged anew.
    let unasked = weft(&lab, &["flush"]);
    assert_eq!(unasked.status.code(), Some(2), "{unasked:?}");
    let nobody = weft(&lab, &["flush", "--pod", "shop/nobody"]);
    assert!(
        nobody.status.code() == Some(1) && String::from_utf8_lossy(&nobody.stderr).contains("pod list"),
        "{nobody:?}"
    );
    assert_eq!(answer(&lab, &["flush", "--protocol", "udp", "--pod", "shop/web", own]), json!({"flushed": 1}));
    assert_eq!(kinds(&list(&lab, &["--pod", "shop/web", own])).len(), 2);
    assert_eq!(answer(&lab, &["flush", "--protocol", "tcp", "--port", &port]), json!({"flushed": 1}));
    open.exchange(1000).unwrap();
    assert_eq!(list(&lab, &["--port", &port]).len(), 1);
    assert!(weft(&lab, &["flush", "--all"]).status.success());
    assert_eq!(held(lab.node("node-1").unwrap()), 0, "nobody holds what is not there");
    lab.down().unwrap();
}

#[test]
fn ipv4_flows_are_shown_by_who_opened_them_and_how_far_they_are_and_flushed() {
    are_shown_and_flushed(Family::V4);
}

#[test]
fn ipv6_flows_are_shown_by_who_opened_them_and_how_far_they_are_and_flushed() {
    are_shown_and_flushed(Family::V6);
}

#[test]
fn a_flow_that_is_over_is_taken_out_and_one_that_lives_is_not() {
    let (lab, [web, client]) = two_pods();
    let mut lives = Flow::open(&client, &web, Family::V4).unwrap();
    lives.exchange(1000).unwrap();
    let mut ends = Flow::open(&client, &web, Family::V4).unwrap();
    ends.exchange(1000).unwrap();
    let [lives_port, ends_port] = [&lives, &ends].map(|f| f.seen().port().to_string());
    let before = held(lab.node("node-1").unwrap());
    drop(ends);
    until("both ends have said that they are done", || {
        list(&lab, &["--port", &ends_port]).iter().all(|f| f["state"] == "closed")
    })
    .unwrap();
    assert_eq!(list(&lab, &["--port", &ends_port]).len(), 1, "it is not gone at once");
    // 10 seconds of life, and 5 at most until the next pass.
    until("it is gone", || list(&lab, &["--port", &ends_port]).is_empty()).unwrap();
    assert_eq!(list(&lab, &["--port", &lives_port]).len(), 1);
    until("its endpoint holds one less", || held(lab.node("node-1").unwrap()) < before).unwrap();
    lives.exchange(1000).unwrap();
    lab.down().unwrap();
}
