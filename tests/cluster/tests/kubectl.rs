//! `weft` as somebody runs it who has a kubeconfig and sits at another machine.
use std::{
    env, fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use cluster::{
    Cluster, Config, NAMESPACE,
    fixture::{LIMIT, program, up},
    layout,
    pods::{self, Workload, run},
    until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What `weft connectivity-test` makes.
const TEST_NAMESPACE: &str = "weft-connectivity-test";
/// Stands where secrets stand.
const CANARY: &str = "hunter2-canary";

fn start(cluster: &Cluster, words: &[&str]) -> Child {
    let mut command = Command::new(program("weft").unwrap());
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    cluster.at_workstation(&mut command).unwrap()
}

/// What it prints, with its exit status.
fn weft(cluster: &Cluster, words: &[&str]) -> (String, Option<i32>) {
    ended(start(cluster, words))
}

fn ended(child: Child) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    println!("{stdout}{stderr}");
    (stdout, status.code())
}

/// An empty directory, which goes with the cluster.
fn directory(name: &str) -> PathBuf {
    let dir = layout::directory("test").join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn await_namespace(cluster: &Cluster, there: bool) {
    until("the test's namespace, or its end", LIMIT, || {
        let all = cluster.kubectl(&["get", "namespaces", "-o", "name"])?;
        Ok((all.lines().any(|l| l.ends_with(TEST_NAMESPACE)) == there).then_some(()))
    })
    .unwrap();
}

#[test]
fn agents_are_asked_from_a_workstation_and_nothing_secret_leaves_the_cluster() {
    let cluster = up(Config::default()).unwrap();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();

    let (text, code) = weft(&cluster, &["status"]);
    assert_eq!(code, Some(0));
    assert!(text.starts_with("Cluster https://"), "{text}");
    for node in ["node-1", "node-2"] {
        assert!(text.lines().any(|l| l.starts_with(&format!("{node}  yes"))), "{text}");
    }
    let (text, _) = weft(&cluster, &["endpoint", "list", "--node", "node-2"]);
    assert!(text.contains("\nnode-2\n") && text.contains("default/a2") && !text.contains("default/a1"), "{text}");
    let (text, _) = weft(&cluster, &["map", "list", "--json"]);
    let maps: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(maps["node-1"].as_array().is_some_and(|all| all.len() > 20), "{text}");
    let (text, code) = weft(&cluster, &["drops", "--node", "node-9"]);
    assert_eq!((text.as_str(), code), ("", Some(1)));

    // kubectl finds its plugin on the PATH.
    let dir = directory("plugin");
    symlink(program("weft").unwrap(), dir.join("kubectl-weft")).unwrap();
    let mut kubectl = Command::new(PathBuf::from(env::var_os("WEFT_CLUSTER_PROGRAMS").unwrap()).join("hyperkube"));
    let path = format!("{}:{}", dir.display(), env::var("PATH").unwrap());
    kubectl.args(["kubectl", "weft", "node", "list"]).env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (text, code) = ended(cluster.at_workstation(&mut kubectl).unwrap());
    assert!(code == Some(0) && text.contains("\nnode-1\n") && text.contains("\nnode-2\n"), "{text}");

    observes(&cluster);
    dumps(&cluster);
}

/// A drop on one node is seen, with the node's name, and nothing of the observing stays behind.
fn observes(cluster: &Cluster) {
    let nobody = cluster.pod_cidrs(2).unwrap()[0].replace(".0/24", ".250");
    let mut observe = start(cluster, &["observe", "--json", "--count", "1", "--address", &nobody, "--reason", "NoPod"]);
    let nobody = format!("{nobody}:80");
    until("observed drop", LIMIT, || {
        // It reaches nobody, as often as it is tried.
        let _refused = cluster.kubectl(&["exec", "a1", "--", "/agnhost", "connect", "--timeout=500ms", &nobody]);
        Ok(observe.try_wait()?)
    })
    .unwrap();
    let mut line = String::new();
    observe.stdout.take().unwrap().read_to_string(&mut line).unwrap();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["node"], &event["reason"]), (&"node-2".into(), &"NoPod".into()), "{line}");
    until("end of what ran in the agents' pods", LIMIT, || {
        let runs = |node: u8| Ok::<_, anyhow::Error>(cluster.in_node(node, "pgrep")?.args(["-x", "weft"]).output()?);
        // Probes are short.
        Ok((1..=2).all(|node| runs(node).is_ok_and(|o| !o.status.success())).then_some(()))
    })
    .unwrap();
}

/// An archive has what it promises, and no secrets.
fn dumps(cluster: &Cluster) {
    let objects = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": NAMESPACE}, "stringData": {"k": CANARY}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "s", "namespace": "default", "annotations": {"a": CANARY}},
         "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": layout::AGNHOST_IMAGE, "args": ["pause", CANARY],
            "env": [{"name": "E", "value": CANARY}]}]}}]});
    cluster.apply(&objects.to_string()).unwrap();
    let dir = directory("dump");
    let file = dir.join("dump.tar.gz");
    let (text, code) = weft(cluster, &["sysdump", "--file", file.to_str().unwrap()]);
    assert_eq!((text.trim(), code), (file.to_str().unwrap(), Some(0)));
    let tar = Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(&dir).args(["--strip-components", "1"]).status();
    assert!(tar.unwrap().success());
    for file in [
        "about.txt",
        "cluster/pods.json",
        "cluster/version.json",
        "cluster/weft/configmap.json",
        "nodes/node-1/status.json",
        "nodes/node-2/agent.log",
        "nodes/node-1/policies.json",
        "nodes/node-2/maps.json",
    ] {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        assert!(text.len() > 20, "{file}: {text}");
    }
    assert!(fs::read_dir(dir.join("nodes/node-1/maps")).unwrap().count() > 20);
    assert_eq!(fs::read_to_string(dir.join("problems.txt")).unwrap(), "");
    for secret in secrets(cluster).iter().map(String::as_str).chain([CANARY]) {
        let found =
            Command::new("grep").args(["-rlF", "--", secret]).arg(dir.join("nodes")).arg(dir.join("cluster")).output();
        let found = String::from_utf8(found.unwrap().stdout).unwrap();
        assert!(found.is_empty(), "a secret is in {found}");
    }
    println!("figure: an archive of two nodes has {} KiB", fs::metadata(&file).unwrap().len() / 1024);
}

/// Tokens of users, and those that pods of both nodes have.
fn secrets(cluster: &Cluster) -> Vec<String> {
    let users = fs::read_to_string(layout::directory("control-plane").join("tokens.csv")).unwrap();
    let mut all: Vec<String> = users.lines().filter_map(|l| Some(l.split_once(',')?.0.to_owned())).collect();
    let count = all.len();
    for node in 1..=2 {
        let find =
            cluster.in_node(node, "find").unwrap().args(["/var/lib/kubelet/pods", "-name", "token"]).output().unwrap();
        let root = cluster.node_root(node).unwrap();
        for path in String::from_utf8(find.stdout).unwrap().lines() {
            all.extend(fs::read_to_string(root.join(path.trim_start_matches('/'))).ok());
        }
    }
    assert!(count > 0 && all.len() > count, "{count}");
    all
}

#[test]
fn the_connectivity_test_names_the_first_broken_hop_and_leaves_nothing() {
    let cluster = up(Config::default()).unwrap();
    let (text, code) = weft(&cluster, &["connectivity-test"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("8 of 8 ways are good") && text.contains("IPv4 TCP") && text.contains("IPv6 UDP"), "{text}");
    await_namespace(&cluster, false);

    // A policy.
    let test = start(&cluster, &["connectivity-test"]);
    await_namespace(&cluster, true);
    let policy = serde_json::json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "nobody", "namespace": TEST_NAMESPACE}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    cluster.apply(&policy.to_string()).unwrap();
    let (text, code) = ended(test);
    assert_eq!(code, Some(1));
    let told = |part: &str, hop: &str| {
        text.lines().any(|l| l.starts_with(part) && l.contains("first broken hop") && l.contains(hop))
    };
    assert!(
        told("pod a-1 on node-1 > pod b-1", &format!("isolated by NetworkPolicy {TEST_NAMESPACE}/nobody")),
        "{text}"
    );
    await_namespace(&cluster, false);

    // The wire between the nodes, in one direction.
    cluster
        .on_the_wire(
            "table bridge broken {\nchain c {\ntype filter hook forward priority 0\niifname \"node-1\" udp dport 8472 drop\n}\n}\n",
        )
        .unwrap();
    let (text, code) = weft(&cluster, &["connectivity-test"]);
    assert_eq!(code, Some(1));
    let told = |part: &str, hop: &str| {
        text.lines().any(|l| l.starts_with(part) && l.contains("first broken hop") && l.contains(hop))
    };
    assert!(told("pod a-1 on node-1 > pod a-2", "the tunnel from node-1 to node-2"), "{text}");
    assert!(told("pod a-2 on node-2 > pod a-1", "the tunnel back from node-1 to node-2"), "{text}");
    assert!(text.contains("4 of 8 ways are good"), "{text}");
    cluster.on_the_wire("delete table bridge broken").unwrap();
    await_namespace(&cluster, false);

    // Somebody who has seen enough.
    let test = start(&cluster, &["connectivity-test"]);
    await_namespace(&cluster, true);
    kill(Pid::from_raw(test.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(ended(test).1, Some(130));
    await_namespace(&cluster, false);
    assert!(pods::addresses(&cluster, "a-1").is_err());
}
