//! Policies that the maps have no room for: they wait, and nobody else does. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use lab::{Lab, LabConfig, PodSpec, pair::until, probe::Family};
use policies::{apply, connects, of, policy};
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// Blocks of a policy that all of many pods have: so many entries has each of their sets.
const BLOCKS: usize = 300;

fn blocks(n: usize) -> Vec<Value> {
    (0..n).map(|n| json!({"ipBlock": {"cidr": format!("198.18.{}.{}/32", n / 256, n % 256)}})).collect()
}
/// Of the pods with this label, reached by these.
fn into(name: &str, app: &str, from: Value) -> Value {
    let selector = json!({"matchLabels": {"app": app}});
    policy(name, json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [{"from": from}]}))
}
/// Of `GET /v1/status`: the list of policies says all of every set.
fn summary(lab: &Lab) -> Value {
    lab.node("node-1").unwrap().ask("/v1/status").unwrap()["policy"].clone()
}

#[test]
fn policies_that_do_not_fit_wait_and_those_of_other_pods_change() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
    let add = |lab: &mut Lab, name: &str, app: &str| {
        let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(name) }.label("app", app).label("name", name);
        lab.pod_add("node-1", &spec).unwrap().pod.place().unwrap()
    };
    let [web, near, far] = ["web", "near", "far"].map(|name| add(&mut lab, name, name));
    let maps = lab.node("node-1").unwrap().ask("/v1/maps").unwrap();
    let is_peers = |m: &&Value| m["name"].as_str().is_some_and(|n| n.starts_with("policy_peer"));
    let size = maps.as_array().unwrap().iter().find(is_peers).unwrap()["max_entries"].as_u64().unwrap();
    // Each pod has a set of its own in each direction.
    let most = usize::try_from(size).unwrap() / (2 * BLOCKS) + 1;
    let shared = policy(
        "many",
        json!({
            "podSelector": {"matchLabels": {"app": "many"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": blocks(BLOCKS)}], "egress": [{"to": blocks(BLOCKS)}],
        }),
    );
    let own = |n: usize| {
        let name = format!("many-{n}");
        policy(&name, json!({"podSelector": {"matchLabels": {"name": name}}, "policyTypes": ["Ingress", "Egress"]}))
    };
    let all: Vec<Value> = (0..most).map(own).chain([shared, into("web", "web", json!([of("near")]))]).collect();
    apply(&lab, &all);
    let mut last = None;
    for n in 0..most {
        let pod = add(&mut lab, &format!("many-{n}"), "many");
        if summary(&lab)["waiting"] != 0 {
            last = Some((format!("shop/many-{n}"), pod));
            break;
        }
    }
    let (name, last) = last.expect("the maps are full");
    assert!(connects(&near, &web, Family::V4, PORT) && !connects(&far, &web, Family::V4, PORT));
    assert!(!connects(&near, &last, Family::V4, PORT), "it is isolated");
    let status = lab.node("node-1").unwrap().ask("/v1/status").unwrap();
    let problem = status["policy"]["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("policy_peer") && problem.contains(&name), "{problem}");
    assert!(status["policy"]["in_force"] == false && status["not_ready"].is_null(), "{status:#}");

    // What `web` had stays when what it is to have does not fit.
    lab.apply(&[into("web", "web", [blocks(3 * BLOCKS), vec![of("far")]].concat().into())]).unwrap();
    until("it waits", || summary(&lab)["waiting"] == 2).unwrap();
    assert!(connects(&near, &web, Family::V4, PORT) && !connects(&far, &web, Family::V4, PORT));
    // Others change.
    assert!(connects(&web, &far, Family::V4, PORT) && connects(&web, &near, Family::V4, PORT));
    lab.apply(&[into("near", "near", json!([of("far")]))]).unwrap();
    until("another pod's policy changes", || !connects(&web, &near, Family::V4, PORT)).unwrap();
    assert!(connects(&far, &near, Family::V4, PORT));

    // Room comes with pods that go.
    for n in 0..4 {
        lab.pod_del(&format!("many-{n}")).unwrap();
    }
    until("nothing waits", || summary(&lab)["waiting"] == 0).unwrap();
    assert_eq!(summary(&lab)["in_force"], true);
    assert!(!connects(&near, &web, Family::V4, PORT) && connects(&far, &web, Family::V4, PORT));
    lab.down().unwrap();
}
