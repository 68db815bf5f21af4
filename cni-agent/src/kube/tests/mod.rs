//! The source against an API server of the tests' own, on the loopback device.
mod fake;

use std::{fs, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use self::fake::{CLUSTER_POLICIES, Fake, NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICE_CIDRS, SLICES, Server};
use super::{Access, KubeApi, Own, TAINT};
use crate::{
    sources::{Running, Source as _},
    tables::{self, Contents, PodKey, Tables},
};

/// What does not happen within this is not going to.
const LONG: Duration = Duration::from_secs(20);

/// A source that follows, and its tables.
struct Rig {
    tables: Arc<Tables>,
    source: Running,
    directory: TempDir,
    ready: watch::Sender<bool>,
}

impl Rig {
    /// Asks these servers, in this order.
    fn new(servers: &[&Server]) -> Self {
        Self::with(Arc::new(Tables::of_node("n1")), servers, TempDir::new().unwrap(), None)
    }
    fn with(tables: Arc<Tables>, servers: &[&Server], directory: TempDir, token: Option<&str>) -> Self {
        let kubeconfig = token.map(|token| {
            fs::write(directory.path().join("token"), token).unwrap();
            let path = directory.path().join("kubeconfig");
            fs::write(&path, kubeconfig(&servers[0].url, &directory)).unwrap();
            path
        });
        let access = Access {
            api: servers.iter().map(|s| s.url.clone()).collect(),
            kubeconfig,
            kubelet: directory.path().join("kubelet.conf"),
            known: directory.path().join("cache/kube-api.json"),
        };
        let (ready, is_ready) = watch::channel(false);
        let own = Own { node: "n1".into(), ready: is_ready };
        let source = Box::new(KubeApi::new(access, own)).start(Arc::clone(&tables)).unwrap();
        Self { tables, source, directory, ready }
    }

    fn synced(&self) {
        assert!(self.tables.wait_synced(tables::Source::Cluster, LONG), "{:#?}", self.source.status());
    }
    fn await_rows(&self, what: &str, found: impl Fn(&Contents) -> bool) {
        let there = self.tables.wait_for(LONG, |c| found(c).then_some(()));
        assert!(there.is_some(), "{what}: {:#?} {:#?}", self.source.status(), *self.tables.read());
    }
    fn await_pods(&self, names: &[&str]) {
        self.await_rows("pods", |c| c.pods.keys().map(PodKey::name).eq(names.iter().copied()));
    }
    fn await_problem(&self, part: &str) {
        let there = self.source.report().wait_for(LONG, |s| s.problems.iter().any(|p| p.contains(part)));
        assert!(there.is_some(), "{part:?} is not in {:#?}", self.source.status());
    }
    fn await_no_problem(&self) {
        let none = self.source.report().wait_for(LONG, |s| s.problems.is_empty());
        assert!(none.is_some(), "{:#?}", self.source.status());
    }
}

#[test]
fn all_that_is_there_comes_in_and_then_each_change() {
    let (fake, server) = cluster();
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_pods(&["a", "b"]);
    assert_eq!(rig.tables.read().nodes["n2"].pod_cidrs, ["10.1.2.0/24".parse().unwrap()]);
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    fake.put(PODS, pod("c", "10.1.2.8"));
    let address: std::net::IpAddr = "10.1.2.8".parse().unwrap();
    rig.await_rows("another address", |c| c.pods.get(&PodKey::new("shop", "c")).is_some_and(|p| p.ips == [address]));
    fake.delete(PODS, "shop/a");
    rig.await_pods(&["b", "c"]);
    fake.delete(NODES, "n2");
    rig.await_rows("a node less", |c| c.nodes.keys().eq(["n1"]));
    assert!(fake.requests().iter().all(|r| r.starts_with("GET ")), "{:?}", fake.requests());
}

#[test]
fn nothing_is_deleted_and_nothing_in_sync_before_every_kind_has_come_in() {
    let (fake, server) = cluster();
    fake.hold(PODS);
    let tables = Arc::new(Tables::of_node("n1"));
    tables.set_pod(crate::tables::Pod { name: "gone".into(), ..row("gone") });
    let rig = Rig::with(tables, &[&server], TempDir::new().unwrap(), None);
    rig.await_rows("nodes", |c| c.nodes.len() == 2);
    let nodes = rig.source.report().wait_for(LONG, |s| s.kinds.iter().any(|k| k.kind == "nodes" && k.synced));
    assert!(nodes.is_some() && !rig.tables.is_synced(tables::Source::Cluster), "{:#?}", rig.source.status());
    rig.await_pods(&["gone"]);
    fake.release();
    rig.synced();
    rig.await_pods(&["a", "b"]);
}

#[test]
fn a_server_that_does_not_stream_is_read_page_by_page() {
    let (fake, server) = cluster();
    fake.streams(false, 1);
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_pods(&["a", "b"]);
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    assert!(fake.requests().iter().any(|r| r.contains("/pods?") && r.contains("continue=1")), "{:?}", fake.requests());
}

#[test]
fn what_went_away_while_the_server_forgot_is_removed() {
    let (fake, server) = cluster();
    let address = server.address;
    let rig = Rig::new(&[&server]);
    rig.synced();
    drop(server);
    rig.await_problem("ask http://");
    fake.delete(PODS, "shop/a");
    fake.put(PODS, pod("c", "10.1.2.5"));
    fake.compact();
    rig.await_pods(&["a", "b"]);
    let _again = fake.serve_at(address);
    rig.await_pods(&["b", "c"]);
    rig.await_no_problem();
    let again = rig
        .source
        .report()
        .wait_for(LONG, |s| s.kinds.iter().any(|k| k.kind == "pods" && (k.lists, k.objects) == (2, 2)));
    assert!(again.is_some(), "{:#?}", rig.source.status());
}

#[test]
fn a_short_absence_costs_no_new_list() {
    let (fake, server) = cluster();
    let address = server.address;
    let rig = Rig::new(&[&server]);
    rig.synced();
    drop(server);
    rig.await_problem("ask http://");
    fake.delete(PODS, "shop/a");
    let _again = fake.serve_at(address);
    rig.await_pods(&["b"]);
    rig.await_no_problem();
    let status = rig.source.status();
    assert!(status.kinds.iter().all(|k| k.lists == 1), "{status:#?}");
}

#[test]
fn a_node_that_has_lost_an_address_asks_by_another_connection_and_lists_nothing_anew() {
    let (fake, server) = cluster();
    let tables = Arc::new(Tables::of_node("n1"));
    tables.set_node_addresses(["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap()).into());
    let rig = Rig::with(Arc::clone(&tables), &[&server], TempDir::new().unwrap(), None);
    rig.synced();
    let watches = fake.requests().iter().filter(|r| r.contains("/pods?")).count();
    tables.set_node_addresses(["192.0.2.2".parse().unwrap()].into());
    fake.await_requests(LONG, "/pods?", watches + 1);
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    let status = rig.source.status();
    assert!(status.kinds.iter().all(|k| k.lists == 1), "{status:#?}");
    rig.await_no_problem();
}

#[test]
fn a_server_that_was_restored_from_a_backup_is_listed_anew() {
    let (fake, server) = cluster();
    let address = server.address;
    let rig = Rig::new(&[&server]);
    rig.synced();
    drop(server);
    fake.delete(PODS, "shop/a");
    fake.restore(2);
    let _again = fake.serve_at(address);
    rig.await_pods(&["b"]);
}

#[test]
fn another_server_goes_on_where_the_first_one_ended() {
    let (fake, first) = cluster();
    let second = fake.serve();
    let rig = Rig::new(&[&first, &second]);
    rig.synced();
    assert_eq!(rig.source.status().origin, first.url);
    drop(first);
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    rig.await_no_problem();
    let status = rig.source.status();
    assert_eq!(status.origin, second.url);
    assert!(status.kinds.iter().all(|k| k.lists == 1), "{status:#?}");
}

#[test]
fn where_the_servers_are_outlives_the_agent() {
    let (fake, server) = cluster();
    fake.put(
        SLICES,
        json!({
            "metadata": {"namespace": "default", "name": "kubernetes"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}, {"addresses": ["192.0.2.2"]}],
            "ports": [{"name": "https", "port": 6444}],
        }),
    );
    let rig = Rig::new(&[&server]);
    rig.synced();
    let all = rig.source.report().wait_for(LONG, |s| s.kinds.iter().all(|k| k.synced));
    assert!(all.is_some(), "{:#?}", rig.source.status());
    let access = Access { known: rig.directory.path().join("cache/kube-api.json"), ..Access::default() };
    let known: Vec<String> = access.servers().into_iter().filter(|s| s.by_address).map(|s| s.url).collect();
    assert_eq!(known, ["https://192.0.2.1:6444", "https://192.0.2.2:6444"]);
}

#[test]
fn servers_are_tried_in_the_documented_order() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("own"), kubeconfig("https://192.0.2.2:6443", &directory)).unwrap();
    fs::write(at("kubelet"), kubeconfig("https://192.0.2.4:6443", &directory)).unwrap();
    fs::write(at("known"), r#"{"servers": ["https://192.0.2.3:6443", "https://192.0.2.1:6443"]}"#).unwrap();
    let access = Access {
        api: vec!["https://192.0.2.1:6443".into()],
        kubeconfig: Some(at("own")),
        kubelet: at("kubelet"),
        known: at("known"),
    };
    let urls: Vec<String> = access.servers().into_iter().map(|s| s.url).collect();
    assert_eq!(urls[..4], [1, 2, 3, 4].map(|n| format!("https://192.0.2.{n}:6443")), "{urls:?}");
}

#[test]
fn an_object_that_makes_no_sense_is_named_and_changes_nothing_else() {
    let (fake, server) = cluster();
    fake.put(NODES, json!({"metadata": {"name": "n3"}, "spec": {"podCIDRs": ["nonsense"]}}));
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_problem("Node n3: spec.podCIDRs is `nonsense`");
    rig.await_pods(&["a", "b"]);
    // One that was good keeps what it was, also through a new list.
    fake.put(PODS, pod("a", "nonsense"));
    rig.await_problem("Pod shop/a: status.podIPs is `nonsense`");
    fake.put(PODS, json!({"metadata": {"namespace": "shop", "name": "b"}, "spec": {"nodeName": 5}}));
    rig.await_problem("spec.nodeName");
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    assert_eq!(
        rig.tables.read().pods.get(&PodKey::new("shop", "a")).unwrap().ips,
        ["10.1.2.5".parse::<std::net::IpAddr>().unwrap()]
    );
    for (collection, name) in [(NODES, "n3"), (PODS, "shop/a"), (PODS, "shop/b")] {
        fake.delete(collection, name);
    }
    rig.await_pods(&["c"]);
    rig.await_no_problem();
}

#[test]
fn pods_that_are_over_are_not_kept() {
    let (fake, server) = cluster();
    let over = |name: &str, phase: &str| {
        let mut object = pod(name, "10.1.2.9");
        object["status"]["phase"] = phase.into();
        object
    };
    fake.put(PODS, over("ended", "Succeeded"));
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_pods(&["a", "b"]);
    fake.put(PODS, over("a", "Failed"));
    rig.await_pods(&["b"]);
}

#[test]
fn a_token_that_was_rotated_is_read_anew() {
    let (fake, server) = cluster();
    fake.demand("old");
    let rig = Rig::with(Arc::new(Tables::of_node("n1")), &[&server], TempDir::new().unwrap(), Some("old"));
    rig.synced();
    // The watches that run go on; those of a server that has started anew are asked for with the new one.
    fs::write(rig.directory.path().join("token"), "new").unwrap();
    fake.demand("new");
    let address = server.address;
    drop(server);
    let _again = fake.serve_at(address);
    fake.put(PODS, pod("c", "10.1.2.7"));
    rig.await_pods(&["a", "b", "c"]);
    rig.await_no_problem();
}

#[test]
fn a_refused_token_is_said_with_its_cure() {
    let (fake, server) = cluster();
    fake.demand("right");
    let rig = Rig::with(Arc::new(Tables::of_node("n1")), &[&server], TempDir::new().unwrap(), Some("wrong"));
    rig.await_problem("it is read anew with each attempt");
    fs::write(rig.directory.path().join("token"), "right").unwrap();
    rig.synced();
    rig.await_no_problem();
}

#[test]
fn a_kind_that_the_server_does_not_have_hinders_nothing() {
    let (fake, server) = cluster();
    fake.remove_kind(SLICES);
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_pods(&["a", "b"]);
    let asked = fake.requests().iter().filter(|r| r.contains("endpointslices")).count();
    assert!(asked <= 2, "asked {asked} times");
}

#[test]
fn a_kind_whose_definition_comes_later_is_asked_for_and_hinders_nothing() {
    let (fake, server) = cluster();
    fake.remove_kind(CLUSTER_POLICIES);
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_no_problem();
    let asked = fake.requests().iter().filter(|r| r.contains("clusternetworkpolicies")).count();
    assert_eq!(asked, 1);
}

#[test]
fn addresses_of_services_come_in_and_a_server_that_is_too_old_for_them_hinders_nothing() {
    let (fake, server) = cluster();
    let cidrs = |name: &str, cidrs: &[&str]| json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
    fake.put(SERVICE_CIDRS, cidrs("kubernetes", &["10.96.0.0/16", "fd96::/112"]));
    let rig = Rig::new(&[&server]);
    rig.synced();
    let told =
        |c: &Contents| c.service_cidrs.values().flat_map(|of| &of.cidrs).map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(&rig.tables.read()), ["10.96.0.0/16", "fd96::/112"]);
    fake.put(SERVICE_CIDRS, cidrs("more", &["10.97.0.0/24"]));
    rig.await_rows("another range", |c| told(c) == ["10.96.0.0/16", "fd96::/112", "10.97.0.0/24"]);
    fake.put(SERVICE_CIDRS, cidrs("more", &["10.97.0.0/33"]));
    rig.await_problem("ServiceCIDR more: spec.cidrs is `10.97.0.0/33`");
    assert_eq!(rig.tables.read().service_cidrs.len(), 2, "as it was");
    fake.delete(SERVICE_CIDRS, "more");
    rig.await_rows("a range less", |c| c.service_cidrs.len() == 1);
    rig.await_no_problem();

    let (old, server) = cluster();
    old.remove_kind(SERVICE_CIDRS);
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.await_no_problem();
}

#[test]
fn policies_and_namespaces_come_in_and_a_broken_policy_stays_as_it_was() {
    let (fake, server) = cluster();
    let policy = |spec: Value| json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    fake.put(NAMESPACES, json!({"metadata": {"name": "shop", "labels": {"team": "a"}}}));
    fake.put(NETWORK_POLICIES, policy(json!({"podSelector": {}})));
    fake.put(
        CLUSTER_POLICIES,
        json!({"metadata": {"name": "admin"}, "spec": {
        "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}}),
    );
    let rig = Rig::new(&[&server]);
    rig.synced();
    assert_eq!(rig.tables.read().namespaces["shop"].labels["team"], "a");
    rig.await_rows("policies", |c| c.policies.len() == 2);
    let before = rig.tables.read().policies.clone();
    fake.put(NETWORK_POLICIES, policy(json!({"podSelector": 5})));
    rig.await_problem("spec.podSelector");
    assert_eq!(rig.tables.read().policies, before);
    fake.put(NETWORK_POLICIES, policy(json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]})));
    rig.await_problem("this part matches nothing");
    fake.delete(NETWORK_POLICIES, "shop/p");
    fake.delete(CLUSTER_POLICIES, "admin");
    fake.delete(NAMESPACES, "shop");
    rig.await_rows("nothing", |c| c.policies.is_empty() && c.namespaces.is_empty());
    rig.await_no_problem();
}

#[test]
fn the_own_node_is_opened_when_the_plugin_is_there_and_again_when_its_object_is_made_anew() {
    let (fake, server) = cluster();
    let tainted = |name: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}, {"key": TAINT, "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}]},
        })
    };
    let (closed, open) = (
        |n: &Value| n["spec"]["taints"][1]["key"] == TAINT,
        |n: &Value| {
            let conditions = n["status"]["conditions"].as_array().unwrap();
            let available = conditions.iter().any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False");
            n["spec"]["taints"] == json!([{"key": "other", "effect": "NoSchedule"}])
                && available
                && conditions.len() == 2
        },
    );
    fake.put(NODES, tainted("n1"));
    fake.put(NODES, tainted("n2"));
    let rig = Rig::new(&[&server]);
    rig.synced();
    assert!(closed(&fake.object(NODES, "n1").unwrap()), "it was opened before the plugin was there");
    rig.ready.send_replace(true);
    fake.await_object(LONG, NODES, "n1", open);
    fake.delete(NODES, "n1");
    fake.put(NODES, tainted("n1"));
    fake.await_object(LONG, NODES, "n1", open);
    assert!(closed(&fake.object(NODES, "n2").unwrap()), "another node's object was written to");
    let writes = fake.requests().into_iter().filter(|r| !r.starts_with("GET ")).count();
    assert_eq!(writes, 4);
    rig.await_no_problem();
}

#[test]
fn a_node_that_may_not_be_written_to_is_a_problem_with_a_cure() {
    let (fake, server) = cluster();
    fake.forbid_writes();
    let rig = Rig::new(&[&server]);
    rig.synced();
    rig.ready.send_replace(true);
    rig.await_problem("patch nodes and nodes/status");
    rig.await_pods(&["a", "b"]);
}

#[test]
fn a_source_without_any_server_says_what_is_missing() {
    let rig = Rig::new(&[]);
    rig.await_problem("no API server is known: give --kube-api");
}

fn cluster() -> (Fake, Server) {
    let fake = Fake::new();
    for n in [1, 2] {
        fake.put(
            NODES,
            json!({
                "metadata": {"name": format!("n{n}"), "labels": {"a": "b"}, "managedFields": [{"fieldsV1": {"f:x": {}}}]},
                "spec": {"podCIDRs": [format!("10.1.{n}.0/24")]},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{n}")}], "images": [{"names": ["x"]}]},
            }),
        );
    }
    fake.put(PODS, pod("a", "10.1.2.5"));
    fake.put(PODS, pod("b", "10.1.2.6"));
    let server = fake.serve();
    (fake, server)
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web"}, "annotations": {"big": "x".repeat(2000)},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}]},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn row(name: &str) -> crate::tables::Pod {
    crate::tables::Pod {
        namespace: "shop".into(),
        name: name.into(),
        node: None,
        labels: std::collections::BTreeMap::new(),
        ips: Vec::new(),
        phase: crate::tables::Phase::Running,
        host_network: false,
        ports: std::collections::BTreeSet::new(),
    }
}

fn kubeconfig(server: &str, directory: &TempDir) -> String {
    let token = directory.path().join("token");
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
    })
    .to_string()
}
