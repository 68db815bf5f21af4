//! How often policies and their rules have decided, by real flows. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use std::process::Command;

use lab::{
    Ending, Lab, LabConfig, PodSpec,
    pair::until,
    probe::{Family, Place},
};
use policies::{apply, connects, of, policy, settle};
use serde_json::{Value, json};

/// The port that a rule is about, and another one.
const ALLOWED: u16 = 8080;
const OTHER: u16 = 8081;

fn shown(lab: &Lab) -> Value {
    lab.node("node-1").unwrap().ask("/v1/policies").unwrap()["policies"][0].clone()
}
/// What a rule of the policy has allowed, by where it stands.
fn allowed(lab: &Lab, n: usize) -> Value {
    let policy = shown(lab);
    assert_eq!(policy["rules"][n]["rule"], format!("spec.ingress[{n}]"), "{policy:#}");
    policy["rules"][n]["hits"]["allowed"].clone()
}
/// What the policy has denied where none of its rules decides.
fn denied(lab: &Lab) -> u64 {
    shown(lab)["hits"]["denied"].as_u64().unwrap()
}
fn says(lab: &Lab, words: &[&str]) -> String {
    let mut weft = Command::new(lab.bin_dir().join("weft"));
    let output =
        weft.args(words).arg("--socket").arg(lab.node("node-1").unwrap().paths().api_socket()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `web` lets in `near` on one port and `far` on all, beside what these rules allow.
fn web(more: &[Value]) -> Value {
    let mut rules = more.to_vec();
    rules.push(json!({"from": [of("near")], "ports": [{"protocol": "TCP", "port": ALLOWED}]}));
    rules.push(json!({"from": [of("far")]}));
    policy("web", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules}))
}

#[test]
fn flows_count_for_the_rule_that_decides_over_changes_of_its_policy_and_agents_that_come_back() {
    let mut lab = Lab::up(LabConfig::default()).expect("a lab of two nodes");
    let [target, near, far]: [Place; 3] =
        [("node-1", "web"), ("node-1", "near"), ("node-2", "far")].map(|(node, name)| {
            let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(name) };
            lab.pod_add(node, &spec.label("app", name)).expect("a pod").pod.place().unwrap()
        });
    apply(&lab, &[web(&[])]);
    for family in Family::BOTH {
        assert!(connects(&near, &target, family, ALLOWED) && connects(&near, &target, family, ALLOWED));
        assert!(connects(&far, &target, family, OTHER));
    }
    assert_eq!((allowed(&lab, 0), allowed(&lab, 1)), (json!(4), json!(2)));
    assert_eq!(denied(&lab), 0);
    assert!(!connects(&near, &target, Family::V4, OTHER));
    assert!(denied(&lab) > 0);
    // Another rule stands first now.
    let udp = json!({"from": [of("near")], "ports": [{"protocol": "UDP", "port": 53}]});
    lab.apply(&[web(&[udp])]).unwrap();
    until("the policy has another rule", || shown(&lab)["rules"].as_array().is_some_and(|rules| rules.len() == 3))
        .unwrap();
    settle(&lab);
    assert_eq!((allowed(&lab, 0), allowed(&lab, 1), allowed(&lab, 2)), (json!(0), json!(4), json!(2)));
    assert_eq!(denied(&lab), 0, "it is another policy set");
    for ending in [Ending::Killed, Ending::Asked] {
        lab.restart_agent("node-1", ending).unwrap();
        until("policies are in force", || shown(&lab)["kernel"] == "in force").unwrap();
        settle(&lab);
    }
    assert_eq!((allowed(&lab, 1), allowed(&lab, 2)), (json!(4), json!(2)));
    assert!(connects(&near, &target, Family::V6, ALLOWED));
    assert_eq!(allowed(&lab, 1), 5);
    assert!(!connects(&near, &target, Family::V6, OTHER));
    let text = says(&lab, &["policy", "get", "shop/web"]);
    for line in [
        "spec.ingress[1]: 5 allowed\n",
        "spec.ingress[2]: 2 allowed\n",
        "spec.ingress[0]: none yet\n",
        "a rule that decides: ",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let table = says(&lab, &["policy", "list"]);
    let words: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert!(words.contains(&"7"), "{table}");
    lab.down().unwrap();
}
