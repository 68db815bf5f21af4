//! Nodes that come, go and die, and their pods; each family of addresses by itself.
use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use cluster::{
    Cluster, Config, NAMESPACE,
    layout::{self, Families},
    pods::{Workload, addresses, connect, run},
    until,
};
use serde_json::{Value, json};

/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn up(families: Families) -> Cluster {
    Cluster::up(Config { families, ..Config::default() }, |line| println!("{line}")).unwrap()
}

/// What `weft … --json` says of each node; it must end with 0.
fn weft(cluster: &Cluster, words: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(PathBuf::from(env::var_os("WEFT_BIN_DIR").unwrap()).join("weft"));
    command.args(words).arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = cluster.at_workstation(&mut command)?.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{words:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Allocator, endpoints, records, devices, maps and pods agree on every node.
fn audited(cluster: &Cluster) {
    until("agreement on addresses", LIMIT, || weft(cluster, &["ipam", "audit"]).map(Some)).unwrap();
}

fn each_reaches_each(families: Families, count: usize) {
    let cluster = up(families);
    let pods = [Workload::on("a1", 1), Workload::on("b1", 1), Workload::on("a2", 2), Workload::of_the_host("host", 2)];
    run(&cluster, &pods, LIMIT).unwrap();
    for pod in &pods[..3] {
        assert_eq!(addresses(&cluster, pod.name()).unwrap().len(), count);
    }
    for from in &pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            connect(&cluster, from.name(), to.name()).unwrap();
        }
    }
    audited(&cluster);
}

#[test]
fn a_cluster_of_ipv4_alone() {
    each_reaches_each(Families::Ipv4, 1);
}

#[test]
fn a_cluster_of_ipv6_alone() {
    each_reaches_each(Families::Ipv6, 1);
}

#[test]
fn nodes_come_are_rebooted_and_go() {
    let mut cluster = up(Families::Dual);
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    let before = addresses(&cluster, "a2").unwrap();

    // Everything of it is gone but its objects.
    cluster.power_off(2).unwrap();
    cluster.power_on(2).unwrap();
    until("the pod of the node that was rebooted, in another sandbox", LIMIT, || {
        let pod = cluster.get(&["pod", "a2"])?;
        let again = pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1);
        let ready = pod["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        Ok((again && ready).then_some(()))
    })
    .unwrap();
    println!("before the reboot {before:?}, after it {:?}", addresses(&cluster, "a2").unwrap());
    cluster.await_ready(LIMIT).unwrap();
    connect(&cluster, "a1", "a2").unwrap();
    connect(&cluster, "a2", "a1").unwrap();
    audited(&cluster);

    cluster.power_on(3).unwrap();
    until("object of the new node", LIMIT, || cluster.get(&["node", "node-3"]).map(Some)).unwrap();
    cluster.await_ready(LIMIT).unwrap();
    run(&cluster, &[Workload::on("a3", 3)], LIMIT).unwrap();
    for (from, to) in [("a1", "a3"), ("a3", "a2")] {
        connect(&cluster, from, to).unwrap();
    }

    cluster.power_off(3).unwrap();
    cluster.kubectl(&["delete", "node", "node-3"]).unwrap();
    until("agents that do not know the node any more", LIMIT, || {
        let known = weft(&cluster, &["node", "list", "--node", "node-1", "--node", "node-2"])?;
        let names = |of: &str| known[of].as_array().map(|all| all.iter().all(|n| n["name"] != "node-3"));
        Ok((names("node-1") == Some(true) && names("node-2") == Some(true)).then_some(()))
    })
    .unwrap();
    connect(&cluster, "a1", "a2").unwrap();
}

#[test]
fn agents_die_while_pods_come_and_addresses_of_pods_that_have_ended_are_used_again() {
    let cluster = up(Families::Dual);
    // Those that end by themselves keep their objects, and not their addresses.
    let ended: Vec<Value> = [("good", "--help"), ("bad", "no-such-command")]
        .map(|(name, argument)| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
                "spec": {"restartPolicy": "Never", "nodeSelector": {"kubernetes.io/hostname": "node-1"},
                    "containers": [{"name": "c", "image": layout::AGNHOST_IMAGE, "args": [argument]}]}})
        })
        .into();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": ended}).to_string()).unwrap();
    until("pods that have ended", LIMIT, || {
        let phases = ["good", "bad"].map(|pod| cluster.get(&["pod", pod]).map(|p| p["status"]["phase"].clone()));
        let [good, bad] = phases;
        Ok((good? == "Succeeded" && bad? == "Failed").then_some(()))
    })
    .unwrap();

    let many: Vec<Workload> = (0..20).map(|n| Workload::on(&format!("p{n}"), 1 + n % 2)).collect();
    let asked = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for round in 0..6 {
                let node = 1 + round % 2;
                // It runs again before it is killed again.
                until("agent", LIMIT, || {
                    let killed = cluster.in_node(node, "pkill")?.args(["-KILL", "-x", "weft-agent"]).status()?;
                    Ok(killed.success().then_some(()))
                })
                .unwrap();
                thread::park_timeout(Duration::from_millis(300));
            }
        });
        run(&cluster, &many, LIMIT).unwrap();
        killer.join().unwrap();
        cluster.kubectl(&["rollout", "status", "daemonset/weft", "-n", NAMESPACE, "--timeout=90s"]).unwrap();
        audited(&cluster);
        cluster.asked_by_weft().unwrap()
    });
    for pair in many.windows(2) {
        connect(&cluster, pair[0].name(), pair[1].name()).unwrap();
    }

    // Of the API nothing is asked for a pod.
    let names: Vec<String> = many.iter().map(|p| p.name().to_owned()).collect();
    let delete: Vec<&str> = ["delete", "pods", "--wait"].into_iter().chain(names.iter().map(String::as_str)).collect();
    cluster.kubectl(&delete).unwrap();
    run(&cluster, &many, LIMIT).unwrap();
    let again = cluster.asked_by_weft().unwrap();
    assert!(!asked.is_empty(), "the log is that of Weft's requests");
    println!("figure: requests to the API by Weft for 20 pods that go and 20 that come: {}", again.len() - asked.len());
    assert_eq!(&again[asked.len()..], [""; 0]);
    audited(&cluster);
}
