//! Weft in a cluster, installed as users do: pods, nodes, the agent's life, its end.
use std::{fs, time::Instant};

use anyhow::Context as _;
use cluster::{
    Cluster, Config, LOOPBACK, NAMESPACE, TAINT, chart,
    fixture::{self, LIMIT, await_rollout, end},
    layout, pace,
    pods::{Workload, connect, end_by_kubelet, place, run, run_by_kubelet},
    until,
};
use lab::probe::while_sending;

fn up() -> Cluster {
    let begin = Instant::now();
    let cluster = fixture::up(Config::default()).unwrap();
    println!("figure: a cluster of two nodes on Weft is usable after {:.1} s", begin.elapsed().as_secs_f64());
    cluster
}

#[test]
fn pods_reach_each_other_and_probes_reach_pods() {
    let cluster = up();
    let pods = [
        Workload::on("a1", 1),
        Workload::on("b1", 1),
        Workload::on("a2", 2),
        Workload::anywhere("c"),
        Workload::of_the_host("host", 2),
    ];
    run(&cluster, &pods, LIMIT).unwrap();
    for from in &pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            connect(&cluster, from.name(), to.name()).unwrap();
        }
    }
}

#[test]
fn pods_that_the_kubelet_runs_by_itself_are_pods_like_others() {
    let cluster = up();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    let own = Workload::on("own", 1);
    let mirror = run_by_kubelet(&cluster, &own).unwrap();
    until("object of the static pod", LIMIT, || cluster.get(&["pod", &mirror]).map(Some)).unwrap();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{mirror}")]).unwrap();
    for (from, to) in [("a1", mirror.as_str()), ("a2", &mirror), (&mirror, "a2")] {
        connect(&cluster, from, to).unwrap();
    }
    end_by_kubelet(&cluster, &own).unwrap();
    cluster.kubectl(&["wait", "--for=delete", "--timeout=60s", &format!("pod/{mirror}")]).unwrap();
    fixture::await_agreement(&cluster).unwrap();
}

#[test]
fn a_node_is_opened_to_pods_by_its_agent() {
    let cluster = up();
    until("nodes without the taint", LIMIT, || {
        let nodes = cluster.get(&["nodes"])?;
        let open = |node: &serde_json::Value| {
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            taints.iter().all(|t| t["key"] != TAINT)
                && conditions.iter().any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False")
        };
        Ok(nodes["items"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(open)).then_some(()))
    })
    .unwrap();
}

#[test]
fn pods_become_ready_one_by_one_and_a_hundred_a_node_at_once() {
    let cluster = up();
    pace::time_to_ready(&cluster, "Weft").unwrap();
}

#[test]
fn agents_are_killed_and_rolled_under_traffic_without_a_lost_packet() {
    let cluster = up();
    let pods = [Workload::on("a1", 1), Workload::on("b1", 1), Workload::on("a2", 2)];
    run(&cluster, &pods, LIMIT).unwrap();
    let [a1, b1, a2] = [("a1", 1), ("b1", 1), ("a2", 2)].map(|(pod, node)| place(&cluster, node, pod).unwrap());
    let ways = [(&a1, &b1), (&a1, &a2), (&a2, &b1)];
    let ((), sent) = while_sending(&ways, || {
        for node in 1..=2 {
            end(&cluster, node, "weft-agent").unwrap();
        }
        until("agents that were started anew", LIMIT, || {
            let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=weft"])?;
            let again = |p: &serde_json::Value| {
                let status = &p["status"]["containerStatuses"][0];
                status["restartCount"].as_u64() >= Some(1) && status["ready"] == true
            };
            Ok(pods["items"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(again)).then_some(()))
        })
        .unwrap();
        cluster.kubectl(&["rollout", "restart", "daemonset/weft", "-n", NAMESPACE]).unwrap();
        await_rollout(&cluster).unwrap();
    })
    .unwrap();
    println!("figure: of {sent} datagrams none was lost while agents were killed and rolled");
    // Those of before, and new ones.
    run(&cluster, &[Workload::on("new", 2)], LIMIT).unwrap();
    connect(&cluster, "new", "a1").unwrap();
}

#[test]
fn pods_outlive_the_kubelet_the_runtime_and_a_server_that_is_away() {
    let cluster = up();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    let [a1, a2] = [("a1", 1), ("a2", 2)].map(|(pod, node)| place(&cluster, node, pod).unwrap());
    let ((), sent) = while_sending(&[(&a1, &a2), (&a2, &a1)], || {
        for program in ["containerd", "hyperkube"] {
            end(&cluster, 1, program).unwrap();
        }
        run(&cluster, &[Workload::on("after-restart", 1)], LIMIT).unwrap();
        // An agent that starts without the server knows its pods by its records, and removes nothing.
        let server = cluster.stop_api_server().unwrap();
        end(&cluster, 2, "weft-agent").unwrap();
        until("agent that was started anew", LIMIT, || {
            let asked = cluster.in_node(2, "ctr")?.args(["-n", "k8s.io", "tasks", "ls"]).output()?;
            let others = cluster.in_node(2, "pgrep")?.args(["-x", "weft-agent"]).output()?;
            Ok((asked.status.success() && others.status.success()).then_some(()))
        })
        .with_context(|| what_became_of_the_agent(&cluster, 2))
        .unwrap();
        drop(server);
        cluster.await_ready(LIMIT).unwrap();
        run(&cluster, &[Workload::on("after-outage", 2)], LIMIT).unwrap();
    })
    .unwrap();
    println!("figure: of {sent} datagrams none was lost while kubelet, containerd and API server were away");
    connect(&cluster, "after-outage", "after-restart").unwrap();
}

/// What runtime and kubelet of a node say of its agent, where no API server can be asked.
fn what_became_of_the_agent(cluster: &Cluster, node: u8) -> String {
    let tasks = cluster.in_node(node, "ctr").and_then(|mut c| Ok(c.args(["-n", "k8s.io", "tasks", "ls"]).output()?));
    let tasks = tasks.map_or_else(|e| format!("{e:#}"), |o| String::from_utf8_lossy(&o.stdout).into_owned());
    let log = |program: &str| {
        let file = layout::logs(&layout::node_name(node)).join(format!("{program}.log"));
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|l| program == "containerd" || l.contains("weft")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    };
    format!("tasks:\n{tasks}\nkubelet:\n{}\ncontainerd:\n{}", log("kubelet"), log("containerd"))
}

#[test]
fn uninstalled_weft_leaves_nodes_clean() {
    let cluster = up();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    cluster.kubectl(&["delete", "pods", "--all", "--force", "--wait"]).unwrap();
    let objects = layout::directory("weft.yaml");
    fs::write(&objects, chart(&[]).unwrap()).unwrap();
    cluster.kubectl(&["delete", "--wait", "-f", objects.to_str().unwrap()]).unwrap();
    cluster.kubectl(&["wait", "--for=delete", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=weft"]).unwrap();
    for node in 1..=2 {
        let name = layout::node_name(node);
        // As docs/kubernetes.md has it.
        let said = cluster.uninstall(node).unwrap();
        let root = cluster.node_root(node).unwrap();
        assert!(!root.join("sys/fs/bpf/weft").exists(), "{name}: pins are left after: {said}");
        for place in ["opt/cni/bin", "etc/cni/net.d"].map(|p| root.join(p)) {
            let all = fs::read_dir(&place).unwrap().map(|e| e.unwrap().path());
            let left: Vec<_> = all.filter(|p| !p.ends_with(LOOPBACK)).collect();
            assert!(left.is_empty(), "{name}: {left:?} after: {said}");
        }
        let devices = cluster.in_node(node, "ip").unwrap().args(["-o", "link"]).output().unwrap();
        let devices = String::from_utf8(devices.stdout).unwrap();
        let others: Vec<&str> = devices.lines().filter(|l| !l.contains(": lo:") && !l.contains(": eth0@")).collect();
        assert!(others.is_empty(), "{name}: {others:?} after: {said}");
    }
}
