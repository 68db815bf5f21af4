//! Policies between real pods: agents that follow real objects, and packets that pass or do not. Needs root and `cargo xtask build`; run it
//! with `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use lab::{
    Ending, Lab, LabConfig, PodSpec, Port,
    pair::until,
    probe::{self, Family, Flow, Place},
};
use policies::{GONE, apply, connects, of, policy, settle};
use serde_json::{Value, json};

/// The port that policies here are about, and another one.
const ALLOWED: u16 = 8080;
const OTHER: u16 = 8081;

/// `web` is isolated for ingress, but for what these rules allow.
fn into_web(rules: Value) -> Value {
    policy("web", json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": rules}))
}
fn tcp_port(port: impl Into<Value>) -> Value {
    json!([{"protocol": "TCP", "port": port.into()}])
}
fn spec(name: &str) -> PodSpec {
    let port = Port { name: "http".into(), protocol: "TCP".into(), port: ALLOWED };
    PodSpec { namespace: "shop".into(), ports: vec![port], ..PodSpec::named(name) }.label("app", name)
}

/// `web` and `near` on node-1, `far` on node-2.
struct Rig {
    lab: Lab,
    web: Place,
    near: Place,
    far: Place,
}
impl Rig {
    fn up(config: LabConfig) -> Self {
        let mut lab = Lab::up(config).expect("a lab of two nodes");
        let [web, near, far] = [("node-1", "web"), ("node-1", "near"), ("node-2", "far")]
            .map(|(node, name)| lab.pod_add(node, &spec(name)).expect("a pod").pod.place().unwrap());
        Self { lab, web, near, far }
    }
    fn new() -> Self {
        Self::up(LabConfig::default())
    }
    fn policies(&self, node: &str) -> Value {
        self.lab.node(node).unwrap().ask("/v1/policies").unwrap()
    }
    /// Waits until node-1 knows a pod's object: in a cluster, its node is chosen long before its device is made.
    fn await_object(&self, pod: &str) {
        let node = self.lab.node("node-1").unwrap();
        until("node-1 knows the pod's object", || {
            node.ask("/v1/pods").unwrap().as_array().unwrap().iter().any(|p| p["name"] == pod)
        })
        .unwrap();
        settle(&self.lab);
    }
    fn delete(&self, objects: &[Value], left: usize) {
        self.lab.delete(objects).unwrap();
        for node in self.lab.nodes() {
            until("the policies are gone", || {
                let all = node.ask("/v1/policies").unwrap();
                all["policies"].as_array().unwrap().len() == left
            })
            .unwrap();
        }
        settle(&self.lab);
    }
    /// How many packets were judged on node-1 that only pass for audit.
    fn audited(&self) -> u64 {
        let all = self.lab.node("node-1").unwrap().ask("/v1/drops").unwrap();
        let of = |v: &&Value| v["verdict"].as_str().unwrap().starts_with("audit-");
        all["verdicts"].as_array().unwrap().iter().filter(of).map(|v| v["packets"].as_u64().unwrap()).sum()
    }
    fn writes(&self, node: &str) -> u64 {
        self.policies(node)["summary"]["writes"].as_u64().unwrap()
    }
}

/// Whether a datagram to this port arrives, and its answer.
fn answers(from: &Place, to: &Place, family: Family, port: u16) -> bool {
    let server = to.run(|| UdpSocket::bind(SocketAddr::new(family.any(), port))).unwrap();
    let client = from.run(|| UdpSocket::bind(SocketAddr::new(family.any(), 0))).unwrap();
    server.set_read_timeout(Some(GONE)).unwrap();
    client.set_read_timeout(Some(GONE)).unwrap();
    client.send_to(b"?", SocketAddr::new(to.address(family).unwrap(), port)).unwrap();
    let mut buffer = [0; 8];
    let Ok((_, asker)) = server.recv_from(&mut buffer) else { return false };
    server.send_to(b"!", asker).unwrap();
    client.recv_from(&mut buffer).is_ok()
}
fn pings(from: &Place, to: &Place, family: Family) -> bool {
    probe::ping(from, to, family).is_ok()
}

#[test]
fn an_isolated_pod_is_reached_by_whom_a_rule_names_and_by_its_own_node_over_each_protocol() {
    let rig = Rig::new();
    let node = rig.lab.node("node-1").unwrap().place().unwrap();
    let other_node = rig.lab.node("node-2").unwrap().place().unwrap();
    for family in Family::BOTH {
        assert!(connects(&rig.far, &rig.web, family, OTHER), "without a policy");
    }
    apply(&rig.lab, &[into_web(json!([]))]);
    for family in Family::BOTH {
        for from in [&rig.near, &rig.far, &other_node] {
            assert!(!connects(from, &rig.web, family, ALLOWED), "{} {family}", from.name);
            assert!(!answers(from, &rig.web, family, ALLOWED), "{} {family}", from.name);
            assert!(!pings(from, &rig.web, family), "{} {family}", from.name);
        }
        assert!(connects(&node, &rig.web, family, ALLOWED) && pings(&node, &rig.web, family), "its own node");
        assert!(connects(&rig.web, &rig.far, family, OTHER), "egress is not isolated");
        assert!(connects(&rig.web, &rig.web, family, OTHER), "itself");
    }
    apply(&rig.lab, &[into_web(json!([{"from": [of("far")], "ports": tcp_port("http")}, {"from": [of("near")]}]))]);
    for family in Family::BOTH {
        until("it is in force", || connects(&rig.far, &rig.web, family, ALLOWED)).unwrap();
        assert!(!connects(&rig.far, &rig.web, family, OTHER));
        assert!(!answers(&rig.far, &rig.web, family, ALLOWED), "another protocol");
        assert!(!pings(&rig.far, &rig.web, family), "a rule with ports says nothing of echoes");
        assert!(connects(&rig.near, &rig.web, family, OTHER));
        assert!(answers(&rig.near, &rig.web, family, OTHER));
        assert!(pings(&rig.near, &rig.web, family));
        assert!(!connects(&other_node, &rig.web, family, ALLOWED));
    }
    let shown = rig.policies("node-1");
    assert_eq!(shown["policies"][0]["pods"], json!(["shop/web"]), "{shown:#}");
    assert_eq!(rig.policies("node-2")["policies"][0]["pods"], json!([]));
    rig.delete(&[into_web(json!([]))], 0);
    for family in Family::BOTH {
        assert!(connects(&rig.far, &rig.web, family, OTHER), "without a policy again");
    }
    rig.lab.down().unwrap();
}

#[test]
fn egress_is_judged_at_the_sender_by_namespaces_blocks_and_tiers() {
    let mut rig = Rig::new();
    let elsewhere = PodSpec { namespace: "bank".into(), ..PodSpec::named("vault") };
    let vault = rig.lab.pod_add("node-2", &elsewhere).unwrap().pod.place().unwrap();
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bank", "labels": {"safe": "yes"}}});
    rig.lab.apply(&[namespace]).unwrap();
    let far = rig.far.address(Family::V4).unwrap();
    let egress = |to: Value| {
        policy(
            "near",
            json!({"podSelector": {"matchLabels": {"app": "near"}}, "policyTypes": ["Egress"], "egress": [{"to": to}]}),
        )
    };
    apply(&rig.lab, &[egress(json!([{"namespaceSelector": {"matchLabels": {"safe": "yes"}}}]))]);
    for family in Family::BOTH {
        until("the namespace's labels are known", || connects(&rig.near, &vault, family, OTHER)).unwrap();
        assert!(!connects(&rig.near, &rig.far, family, OTHER));
        assert!(!connects(&rig.near, &rig.web, family, OTHER), "on one node");
        assert!(connects(&rig.far, &rig.near, family, OTHER), "ingress is not isolated, and answers come with it");
    }
    apply(&rig.lab, &[egress(json!([{"ipBlock": {"cidr": format!("{far}/32")}}]))]);
    until("it is in force", || connects(&rig.near, &rig.far, Family::V4, OTHER)).unwrap();
    assert!(!connects(&rig.near, &rig.far, Family::V6, OTHER) && !connects(&rig.near, &vault, Family::V4, OTHER));
    // A deny of the Admin tier comes before, and its smaller number before a larger one.
    let tier = |name: &str, priority: u32, action: &str| {
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": priority, "subject": {"pods": {"podSelector": {"matchLabels": {"app": "near"}}}},
                "egress": [{"action": action, "to": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "far"}}}}]}]},
        })
    };
    apply(&rig.lab, &[tier("deny", 10, "Deny")]);
    assert!(!connects(&rig.near, &rig.far, Family::V4, OTHER));
    apply(&rig.lab, &[tier("accept", 5, "Accept")]);
    for family in Family::BOTH {
        assert!(connects(&rig.near, &rig.far, family, OTHER));
    }
    rig.lab.down().unwrap();
}

#[test]
fn a_running_connection_is_cut_when_it_is_revoked_and_an_allowed_one_runs_on() {
    let rig = Rig::new();
    for family in Family::BOTH {
        let mut revoked = Flow::open(&rig.far, &rig.web, family).unwrap();
        let mut kept = Flow::open(&rig.near, &rig.web, family).unwrap();
        let mut out = Flow::open(&rig.web, &rig.far, family).unwrap();
        [&mut revoked, &mut kept, &mut out].into_iter().for_each(|f| f.exchange(10_000).unwrap());
        apply(&rig.lab, &[into_web(json!([{"from": [of("near")]}]))]);
        assert!(revoked.push(1000).is_err(), "{family}");
        kept.exchange(100_000).unwrap();
        out.exchange(100_000).unwrap();
        rig.delete(&[into_web(json!([]))], 0);
    }
    rig.lab.down().unwrap();
}

#[test]
fn flips_lose_nothing_that_both_versions_allow_and_let_nothing_through_that_both_deny() {
    const FLIPS: usize = 1000;
    let rig = Rig::new();
    let versions = [
        into_web(json!([{"from": [of("near")]}])),
        into_web(
            json!([{"from": [of("near"), of("nobody")], "ports": []}, {"from": [{"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["near", "x"]}]}}]}]),
        ),
    ];
    apply(&rig.lab, &versions[..1]);
    let denied = rig.web.run(|| UdpSocket::bind(SocketAddr::new(Family::V4.any(), OTHER))).unwrap();
    let sender = rig.far.run(|| UdpSocket::bind(SocketAddr::new(Family::V4.any(), 0))).unwrap();
    let target = SocketAddr::new(rig.web.address(Family::V4).unwrap(), OTHER);
    let before = rig.policies("node-1")["summary"]["epoch"].as_u64().unwrap();
    probe::while_sending(&[(&rig.near, &rig.web)], || {
        for n in 0..FLIPS {
            let epoch = || rig.policies("node-1")["summary"]["epoch"].as_u64().unwrap();
            let old = epoch();
            rig.lab.apply(&versions[(n + 1) % 2..=(n + 1) % 2])?;
            until("it has flipped", || {
                sender.send_to(b"x", target).unwrap();
                epoch() != old
            })?;
        }
        anyhow::Ok(())
    })
    .unwrap()
    .0
    .unwrap();
    assert!(rig.policies("node-1")["summary"]["epoch"].as_u64().unwrap() >= before + FLIPS as u64);
    denied.set_nonblocking(true).unwrap();
    assert!(denied.recv(&mut [0; 8]).is_err(), "a denied packet got through");
    rig.lab.down().unwrap();
}

#[test]
fn an_agent_that_comes_back_loses_no_packet_that_is_allowed_and_lets_none_through_that_is_not() {
    let mut rig = Rig::new();
    apply(&rig.lab, &[into_web(json!([{"from": [of("near")]}]))]);
    let denied = rig.web.run(|| UdpSocket::bind(SocketAddr::new(Family::V4.any(), OTHER))).unwrap();
    let sender = rig.far.run(|| UdpSocket::bind(SocketAddr::new(Family::V4.any(), 0))).unwrap();
    let target = SocketAddr::new(rig.web.address(Family::V4).unwrap(), OTHER);
    let (near, web, far) = (rig.near.clone(), rig.web.clone(), rig.far.clone());
    for ending in [Ending::Killed, Ending::Asked] {
        let lab = &mut rig.lab;
        probe::while_sending(&[(&near, &web)], || {
            std::thread::scope(|scope| {
                let restarted = scope.spawn(|| lab.restart_agent("node-1", ending));
                while !restarted.is_finished() {
                    sender.send_to(b"x", target)?;
                    // Another port each time, and none that was listened at before.
                    probe::tcp(&near, &web, Family::V6).context("a new connection that is allowed")?;
                }
                restarted.join().unwrap().map(drop)
            })
        })
        .unwrap()
        .0
        .unwrap();
        assert!(!connects(&far, &web, Family::V6, OTHER));
    }
    denied.set_nonblocking(true).unwrap();
    assert!(denied.recv(&mut [0; 8]).is_err(), "a denied packet got through");
    // Nothing of the former agents is left: as many entries as are compiled.
    let entries: usize = [
        "identity4_v2",
        "identity6_v2",
        "senders_v1",
        "block4_v1",
        "block6_v1",
        "policy_peer_v1",
        "policy_rule_v2",
        "policy_port_v1",
    ]
    .iter()
    .map(|m| rig.lab.node("node-1").unwrap().ask(&format!("/v1/maps/{m}")).unwrap().as_array().unwrap().len())
    .sum();
    assert_eq!(rig.policies("node-1")["summary"]["entries"], entries);
    rig.lab.down().unwrap();
}

#[test]
fn pods_whose_first_packet_is_a_connect_are_judged_rightly() {
    const PODS: usize = 50;
    let mut rig = Rig::new();
    apply(&rig.lab, &[into_web(json!([{"from": [of("friend")], "ports": tcp_port(ALLOWED)}]))]);
    let _listener = rig.web.run(|| TcpListener::bind(SocketAddr::new(Family::V4.any(), ALLOWED))).unwrap();
    let target = SocketAddr::new(rig.web.address(Family::V4).unwrap(), ALLOWED);
    for n in 0..PODS {
        let (name, is_friend) = (format!("pod-{n}"), n % 2 == 0);
        let new = PodSpec { namespace: "shop".into(), ..PodSpec::named(&name) };
        let new = new.label("app", if is_friend { "friend" } else { "stranger" });
        let pod = rig.lab.pod_add("node-1", &new).unwrap().pod.place().unwrap();
        let patience = if is_friend { Duration::from_millis(900) } else { Duration::from_millis(50) };
        let made = pod.run(|| TcpStream::connect_timeout(&target, patience));
        assert_eq!(made.is_ok(), is_friend, "{name}: {made:?}");
        rig.lab.pod_del(&name).unwrap();
    }
    rig.lab.down().unwrap();
}

/// A pod on node-2 whose address node-1 is not told.
fn held_back(rig: &mut Rig, name: &str, app: &str) -> Place {
    rig.lab.hold_back(true).unwrap();
    let new = PodSpec { namespace: "shop".into(), ..PodSpec::named(name) }.label("app", app);
    let pod = rig.lab.pod_add("node-2", &new).unwrap().pod.place().unwrap();
    rig.await_object(name);
    for (family, map) in [(Family::V4, "identity4_v2"), (Family::V6, "identity6_v2")] {
        let address = pod.address(family).unwrap().to_string();
        let known = rig.lab.node("node-1").unwrap().ask(&format!("/v1/maps/{map}")).unwrap();
        assert!(known.as_array().unwrap().iter().all(|e| e["key"] != address.as_str()), "{address} is known");
    }
    pod
}

#[test]
fn a_new_pod_of_another_node_is_judged_by_its_labels_before_its_address_is_known() {
    let mut rig = Rig::new();
    apply(&rig.lab, &[into_web(json!([{"from": [of("friend")], "ports": tcp_port(ALLOWED)}]))]);
    let friend = held_back(&mut rig, "friend", "friend");
    let stranger = held_back(&mut rig, "stranger", "stranger");
    for family in Family::BOTH {
        assert!(connects(&friend, &rig.web, family, ALLOWED), "{family}");
        assert!(!connects(&friend, &rig.web, family, OTHER), "{family}: another port");
        assert!(!connects(&stranger, &rig.web, family, ALLOWED), "{family}");
        let event = rig.lab.observed("node-1", &["--address", &stranger.address(family).unwrap().to_string()], || {
            assert!(!connects(&stranger, &rig.web, family, ALLOWED), "{family}");
        });
        let event = event.unwrap();
        assert_eq!(event["ends"], json!(["a pod of shop [app=stranger]", "shop/web"]), "{event:#}");
    }
    let drops = rig.lab.node("node-1").unwrap().ask("/v1/drops").unwrap();
    let dropped = |reason: &str| {
        let of_reason = drops["drops"].as_array().unwrap().iter().filter(|d| d["reason"] == reason);
        of_reason.map(|d| d["packets"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(dropped("PolicyIngress") > 0 && dropped("PolicyUnknown") == 0, "{drops}");
    // What runs goes on when policies change, when the address comes, and when the other way round is the first to be judged.
    apply(&rig.lab, &[into_web(json!([{"from": [of("friend")]}]))]);
    settle(&rig.lab);
    let mut flows = Family::BOTH.map(|family| Flow::open(&friend, &rig.web, family).unwrap());
    flows.iter_mut().for_each(|f| f.exchange(10_000).unwrap());
    for rules in [json!([{"from": [of("friend"), of("near")]}]), json!([{"from": [of("friend")]}])] {
        apply(&rig.lab, &[into_web(rules)]);
        settle(&rig.lab);
        flows.iter_mut().for_each(|f| f.exchange(10_000).unwrap());
    }
    rig.lab.hold_back(false).unwrap();
    settle(&rig.lab);
    flows.iter_mut().for_each(|f| f.exchange(10_000).unwrap());
    for family in Family::BOTH {
        assert!(connects(&friend, &rig.web, family, OTHER), "{family}");
        assert!(!connects(&stranger, &rig.web, family, ALLOWED), "{family}");
    }
    apply(&rig.lab, &[into_web(json!([]))]);
    settle(&rig.lab);
    flows.iter_mut().for_each(|f| assert!(f.push(1000).is_err(), "it is revoked"));
    rig.lab.down().unwrap();
}

#[test]
fn pods_of_another_node_whose_first_packet_is_a_connect_are_judged_rightly_with_the_api_held_back() {
    let pods = std::env::var("WEFT_FIRST_CONNECTS").map_or(50, |n| n.parse().expect("how many pods"));
    let mut rig = Rig::new();
    apply(&rig.lab, &[into_web(json!([{"from": [of("friend")], "ports": tcp_port(ALLOWED)}]))]);
    rig.lab.hold_back(true).unwrap();
    let listener = rig.web.run(|| TcpListener::bind(SocketAddr::new(Family::V4.any(), ALLOWED))).unwrap();
    let target = SocketAddr::new(rig.web.address(Family::V4).unwrap(), ALLOWED);
    for n in 0..pods {
        let (name, is_friend) = (format!("pod-{n}"), n % 2 == 0);
        let new = PodSpec { namespace: "shop".into(), ..PodSpec::named(&name) };
        // Each of a label class of its own.
        let new = new.label("app", if is_friend { "friend" } else { "stranger" }).label("n", &n.to_string());
        let pod = rig.lab.pod_add("node-2", &new).unwrap().pod.place().unwrap();
        rig.await_object(&name);
        let patience = if is_friend { Duration::from_millis(900) } else { Duration::from_millis(50) };
        let made = pod.run(|| TcpStream::connect_timeout(&target, patience));
        assert_eq!(made.is_ok(), is_friend, "{name}: {made:?}");
        // Else the listener's queue is full one day.
        if is_friend {
            drop(listener.accept().unwrap());
        }
        rig.lab.pod_del(&name).unwrap();
    }
    rig.lab.down().unwrap();
}

#[test]
fn an_event_costs_the_writes_that_it_needs_and_verify_finds_what_others_change() {
    let rig = Rig::new();
    settle(&rig.lab);
    let (first, second) = (rig.writes("node-1"), rig.writes("node-2"));
    apply(&rig.lab, &[into_web(json!([{"from": [of("near")], "ports": tcp_port(ALLOWED)}]))]);
    settle(&rig.lab);
    // A rule set of one port, a policy set with its default and one peer, and the addresses of two of three pods that are told apart now.
    let cost = rig.writes("node-1") - first;
    assert!((3..=12).contains(&cost), "{cost}");
    assert_eq!(rig.writes("node-2"), second, "nobody there is selected");
    apply(&rig.lab, &[into_web(json!([{"from": [of("near")], "ports": tcp_port(ALLOWED)}]))]);
    assert_eq!(rig.writes("node-1") - first, cost, "applied again");
    let node = rig.lab.node("node-1").unwrap();
    assert_eq!(node.ask("/v1/verify").unwrap()["items"], json!([]));
    rig.lab.down().unwrap();
}

#[test]
fn a_broken_policy_is_named_and_changes_nothing_and_lab_takes_files() {
    let rig = Rig::new();
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: broken}
spec: {podSelector: [x]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web}
spec: {podSelector: {matchLabels: {app: web}}}
";
    apply(&rig.lab, &Lab::read_manifests(text).unwrap()[1..]);
    rig.lab.apply(&Lab::read_manifests(text).unwrap()[..1]).unwrap();
    until("it is named", || {
        let problems = rig.policies("node-1")["problems"].to_string();
        problems.contains("NetworkPolicy shop/broken, field spec.podSelector")
    })
    .unwrap();
    assert!(!connects(&rig.near, &rig.web, Family::V4, ALLOWED), "the other one holds");
    assert!(connects(&rig.near, &rig.far, Family::V4, ALLOWED), "and nobody else is touched");
    rig.lab.down().unwrap();
}

#[test]
fn explain_says_what_becomes_of_packets_and_the_rule_that_it_prints_lets_them_in() {
    let rig = Rig::new();
    // What a node says of a flow of one family.
    let explain = |node: &str, from: &str, to: &str, probe: &str, family: Family| {
        let path = format!("/v1/explain?from={from}&to={to}&probe={probe}");
        let answer = rig.lab.node(node).unwrap().ask(&path).unwrap();
        assert_eq!(answer["problem"], Value::Null, "{answer:#}");
        let is_of = |flow: &&Value| {
            let (_, ip) = flow["to"].as_str().unwrap().split_once('@').unwrap();
            ip.parse::<IpAddr>().unwrap().is_ipv4() == (family == Family::V4)
        };
        answer["flows"].as_array().unwrap().iter().find(is_of).unwrap().clone()
    };
    apply(&rig.lab, &[into_web(json!([{"from": [of("near")], "ports": tcp_port("http")}]))]);
    for family in Family::BOTH {
        for (from, name) in [(&rig.near, "shop/near"), (&rig.far, "shop/far")] {
            for port in [ALLOWED, OTHER] {
                let probe = format!("TCP/{port}");
                let told = explain("node-1", name, "shop/web", &probe, family);
                let may = connects(from, &rig.web, family, port);
                assert_eq!(told["sides"][1]["allowed"], may, "{family} {told:#}");
                if may {
                    assert!(told["sides"][1]["why"].as_str().unwrap().contains("shop/web, ingress rule 0"), "{told:#}");
                }
            }
        }
        // Who sends from another node is asked there, and who receives here is not asked there.
        let here = explain("node-1", "shop/far", "shop/web", "TCP/80", family);
        assert_eq!((&here["sides"][0]["ask"], &here["allowed"]), (&json!("node-2"), &json!(false)), "{here:#}");
        let there = explain("node-2", "shop/far", "shop/web", "TCP/80", family);
        assert_eq!((&there["sides"][0]["allowed"], &there["allowed"]), (&json!(true), &Value::Null), "{there:#}");
        assert_eq!(there["sides"][1]["ask"], "node-1", "{there:#}");
        // The own node gets in, another one does not.
        assert_eq!(explain("node-1", "node-1", "shop/web", "ICMP/0", family)["allowed"], true);
        assert_eq!(explain("node-1", "node-2", "shop/web", "ICMP/0", family)["allowed"], false);
    }
    // A rule that is printed is right as it stands.
    let denied = explain("node-1", "shop/far", "shop/web", &format!("TCP/{OTHER}"), Family::V4);
    let rule = denied["sides"][1]["missing"]["rule"].clone();
    apply(&rig.lab, &[into_web(json!([rule, {"from": [of("near")]}]))]);
    until("it is in force", || connects(&rig.far, &rig.web, Family::V4, OTHER)).unwrap();
    assert!(!connects(&rig.far, &rig.web, Family::V4, ALLOWED));
    // After a change a known flow has the verdict from before, until its next packet.
    let mut flow = Flow::open(&rig.near, &rig.web, Family::V4).unwrap();
    flow.exchange(1000).unwrap();
    let probe = format!("TCP/{}", flow.server().unwrap().port());
    let older = || {
        let told = explain("node-1", "shop/near", "shop/web", &probe, Family::V4);
        told["older"].as_array().unwrap().len()
    };
    assert_eq!(older(), 0);
    apply(&rig.lab, &[into_web(json!([{"from": [of("near"), of("friend")]}]))]);
    until("the flow is of an earlier epoch", || older() == 1).unwrap();
    flow.exchange(1000).unwrap();
    assert_eq!(older(), 0);
    rig.lab.down().unwrap();
}

/// The same policy, with this word as its mode.
fn in_mode(mut policy: Value, mode: &str) -> Value {
    policy["metadata"]["annotations"] = json!({"weft.dev/mode": mode});
    policy
}

#[test]
fn a_policy_in_audit_mode_lets_pass_what_it_would_deny_and_tells_of_it_until_it_is_obeyed() {
    let rig = Rig::new();
    let policy = || into_web(json!([{"from": [of("near")]}]));
    apply(&rig.lab, &[in_mode(policy(), "audit")]);
    let shown = rig.policies("node-1");
    assert_eq!(
        (&shown["policies"][0]["mode"], &shown["summary"]["isolated"]),
        (&json!("audit"), &json!(0)),
        "{shown:#}"
    );
    for family in Family::BOTH {
        let before = rig.audited();
        assert!(connects(&rig.near, &rig.web, family, ALLOWED) && pings(&rig.near, &rig.web, family));
        assert_eq!(rig.audited(), before, "it is allowed anyway");
        assert!(answers(&rig.far, &rig.web, family, OTHER) && pings(&rig.far, &rig.web, family));
        assert!(rig.audited() > before);
        let far = rig.far.address(family).unwrap().to_string();
        let event = rig.lab.observed("node-1", &["--audit", "--address", &far], || {
            assert!(connects(&rig.far, &rig.web, family, ALLOWED), "{family}");
        });
        let event = event.unwrap();
        let told = json!({
            "audit": true, "reason": "PolicyIngress", "dst_port": ALLOWED, "protocol": 6, "src": far,
            "dst": rig.web.address(family).unwrap().to_string(),
            "ends": ["shop/far", "shop/web"], "policies": ["NetworkPolicy shop/web"],
        });
        for (field, value) in told.as_object().unwrap() {
            assert_eq!(event[field], *value, "{field} of {event:#}");
        }
        let path = format!("/v1/explain?from={far}&to=shop/web&probe=TCP/{ALLOWED}");
        let explained = rig.lab.node("node-1").unwrap().ask(&path).unwrap();
        let (flow, side) = (&explained["flows"][0], &explained["flows"][0]["sides"][1]);
        assert_eq!((&flow["allowed"], &flow["audited"]), (&Value::Null, &json!(true)), "{explained:#}");
        assert_eq!((&side["allowed"], &side["reason"]), (&json!(true), &json!("PolicyIngress")), "{explained:#}");
    }
    // A flow goes on at no cost, until the policy is obeyed.
    let mut flow = Flow::open(&rig.far, &rig.web, Family::V4).unwrap();
    flow.exchange(1000).unwrap();
    let before = rig.audited();
    flow.exchange(1000).unwrap();
    assert_eq!(rig.audited(), before);
    apply(&rig.lab, &[policy()]);
    until("it is obeyed", || !connects(&rig.far, &rig.web, Family::V4, ALLOWED)).unwrap();
    assert!(flow.push(1000).is_err());
    assert!(connects(&rig.near, &rig.web, Family::V6, ALLOWED) && !connects(&rig.far, &rig.web, Family::V6, ALLOWED));
    // And in audit mode again, and with a word that is none.
    apply(&rig.lab, &[in_mode(policy(), "audit")]);
    until("it is not obeyed", || connects(&rig.far, &rig.web, Family::V6, ALLOWED)).unwrap();
    apply(&rig.lab, &[in_mode(policy(), "loud")]);
    until("it is named", || rig.policies("node-1").to_string().contains("it is `loud`, neither audit nor enforce"))
        .unwrap();
    until("it is obeyed", || !connects(&rig.far, &rig.web, Family::V6, ALLOWED)).unwrap();
    rig.lab.down().unwrap();
}
