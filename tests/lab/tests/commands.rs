//! The lab's commands, each a process of its own as a person runs them. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::{
    fs,
    process::{Command, Output},
};

use lab::{Ending, Lab, LabConfig, PodSpec, Quiet, layout, layout::NodePaths};
use serde_json::{Value, json};

/// Takes the lab down however the test ends.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        Lab::remove().unwrap();
    }
}

fn weft_lab(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-lab")).args(args).env(lab::HELD_BY_PARENT, "1").output().unwrap()
}

/// What it prints; it must succeed.
fn succeeds(args: &[&str]) -> String {
    let output = weft_lab(args);
    assert!(output.status.success(), "weft-lab {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it prints on standard error; it must fail.
fn fails(args: &[&str]) -> String {
    let output = weft_lab(args);
    assert!(!output.status.success(), "weft-lab {args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn pod_object(node: &str) -> Option<Value> {
    let file = NodePaths::of(node).manifests().join("pod.team.web.json");
    Some(serde_json::from_slice(&fs::read(file).ok()?).unwrap())
}

#[test]
fn a_lab_lives_from_command_to_command() {
    let _quiet = Quiet::wait().unwrap();
    // Fails if a person's lab is up: it is not ours to take down.
    Lab::remove_leftovers().unwrap();
    assert!(fails(&["status"]).contains("no lab is up"), "and it says how to get one");

    let _down = Down;
    succeeds(&["up", "--nodes", "2"]);
    assert!(fails(&["up"]).contains("a lab is up"));
    succeeds(&["pod", "add", "node-1", "web", "--namespace", "team", "--label", "app=web", "--port", "http=TCP/80"]);
    succeeds(&["pod", "add", "node-2", "client"]);

    let status: Value = serde_json::from_str(&succeeds(&["status", "--json"])).unwrap();
    let node = json!({"name": "node-1", "addresses": ["10.99.0.1", "fd99::1"], "podCIDRs": ["10.244.1.0/24", "fd10:244:1::/64"]});
    assert_eq!(status["nodes"][0], node);
    let web = &status["pods"][0];
    assert_eq!((&web["namespace"], &web["name"], &web["node"]), (&json!("team"), &json!("web"), &json!("node-1")));
    assert_eq!(web["labels"], json!({"app": "web"}));
    let addresses = web["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 2);

    for node in ["node-1", "node-2"] {
        let object = pod_object(node).expect("every node sees every pod");
        assert_eq!(object["status"]["podIP"], addresses[0]);
        assert_eq!(object["status"]["podIPs"], json!([{"ip": addresses[0]}, {"ip": addresses[1]}]));
        let port = json!({"name": "http", "protocol": "TCP", "containerPort": 80});
        assert_eq!(object["spec"]["containers"][0]["ports"], json!([port]));
    }

    let inside = weft_lab(&["exec", "web", "--", "sh", "-c", "cat /proc/net/fib_trie; exit 7"]);
    assert_eq!(inside.status.code(), Some(7), "the command's own exit code");
    assert!(String::from_utf8_lossy(&inside.stdout).contains(addresses[0].as_str().unwrap()), "it runs inside the pod");
    assert!(fails(&["exec", "nobody", "--", "true"]).contains("neither a pod nor a node is called `nobody`"));

    assert!(succeeds(&["restart-agent", "node-1", "--kill"]).contains("ready again"));
    succeeds(&["restart-agent", "node-2"]);

    succeeds(&["pod", "del", "web"]);
    assert_eq!((pod_object("node-1"), pod_object("node-2")), (None, None));
    let status: Value = serde_json::from_str(&succeeds(&["status", "--json"])).unwrap();
    assert_eq!(status["pods"].as_array().unwrap().len(), 1);

    succeeds(&["down"]);
    assert!(fails(&["status"]).contains("no lab is up"));
    succeeds(&["down"]);
}

#[test]
fn a_pod_that_can_not_be_made_leaves_nothing() {
    // The other test's quiet would let both labs be built at once.
    let _quiet = Quiet::wait().unwrap();
    let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let spec = PodSpec { namespace: "team".into(), ..PodSpec::named("web") };
    let refused = lab.pod_add("node-1", &spec).unwrap_err();
    assert!(refused.to_string().starts_with("CNI ADD for web-"), "{refused:#}");
    assert!(lab.pods().is_empty() && pod_object("node-1").is_none());
    assert!(!cni_agent::netlink::netns::names().unwrap().contains(&layout::pod_netns("web")));

    lab.start_agent("node-1").unwrap();
    lab.pod_add("node-1", &spec).unwrap();
    let twice = lab.pod_add("node-1", &spec).unwrap_err();
    assert_eq!(twice.to_string(), "a pod called `web` is there already");
    lab.down().unwrap();
}
