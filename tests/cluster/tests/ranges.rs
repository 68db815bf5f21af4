//! The ranges of addresses that a node gets for its pods: late, others than before, and so small that addresses are used again.
use std::{fs, io::Write as _, process::Stdio, time::Instant};

use cluster::{
    Cluster, Config,
    fixture::{LIMIT, await_agreement, end, program, up, weft},
    layout::{self, Ranges, node_name},
    pods::{Workload, addresses, connect, run},
    until,
};
use serde_json::{Value, json};

/// The node that comes when the cluster is up.
const LATE: u8 = 2;

/// A cluster with a pod on its first node, and another node whose pods have no addresses yet.
fn up_with_late_node() -> Cluster {
    let mut cluster = up(Config { nodes: 1, ranges: Ranges::ByHand, ..Config::default() }).unwrap();
    run(&cluster, &[Workload::on("a1", 1)], LIMIT).unwrap();
    cluster.power_on(LATE).unwrap();
    until("object of the new node", LIMIT, || cluster.get(&["node", &node_name(LATE)]).map(Some)).unwrap();
    cluster
}

fn ranges(of: [&str; 2]) -> Vec<String> {
    of.map(str::to_owned).into()
}

/// A condition of a node: its status and its message.
fn condition(cluster: &Cluster, kind: &str) -> anyhow::Result<Option<(String, String)>> {
    let node = cluster.get(&["node", &node_name(LATE)])?;
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |c: &Value, name: &str| c[name].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().find(|c| c["type"] == kind).map(|c| (text(c, "status"), text(c, "message"))))
}

/// What the plugin answers whom calls it for a pod of the late node.
fn add(cluster: &Cluster) -> Value {
    let root = cluster.node_root(LATE).unwrap();
    fs::copy(program("weft-cni").unwrap(), root.join("run/weft-cni")).unwrap();
    let made = cluster.in_node(LATE, "ip").unwrap().args(["netns", "add", "early"]).status().unwrap();
    assert!(made.success());
    let mut call = cluster.in_node(LATE, "env").unwrap();
    call.args(["CNI_COMMAND=ADD", "CNI_CONTAINERID=early", "CNI_NETNS=/run/netns/early", "CNI_IFNAME=eth0"]);
    call.args(["CNI_PATH=/run", "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=early", "/run/weft-cni"]);
    let mut call = call.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni"});
    call.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
    let output = call.wait_with_output().unwrap();
    let removed = cluster.in_node(LATE, "ip").unwrap().args(["netns", "delete", "early"]).status().unwrap();
    assert!(removed.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_node_waits_for_its_ranges_and_says_so() {
    let cluster = up_with_late_node();
    until("running agent of the new node", LIMIT, || {
        let field = format!("spec.nodeName={}", node_name(LATE));
        let agents = cluster.get(&["pods", "-n", cluster::NAMESPACE, "--field-selector", &field])?;
        let status = &agents["items"][0]["status"]["containerStatuses"][0];
        Ok((status["started"] == true && status["ready"] == false).then_some(()))
    })
    .unwrap();
    let why = format!("the Node object {} has no spec.podCIDRs", node_name(LATE));
    let said = weft(&cluster, &["status", "--node", &node_name(LATE)]).unwrap_err().to_string();
    assert!(said.contains(&why), "{said}");
    let (ready, message) = condition(&cluster, "Ready").unwrap().unwrap();
    assert!(ready == "False" && message.contains("cni"), "{message}");
    let open = condition(&cluster, "NetworkUnavailable").unwrap();
    assert!(open.as_ref().is_none_or(|(status, _)| status == "True"), "{open:?}");
    let refused = add(&cluster);
    assert_eq!(refused["code"], 11, "the runtime is told to try again: {refused}");
    assert!(refused["msg"].as_str().is_some_and(|m| m.contains(&why)), "{refused}");

    let begin = Instant::now();
    cluster.give_ranges(LATE, &layout::ranges(LATE)).unwrap();
    cluster.await_ready(LIMIT).unwrap();
    println!("figure: a node is Ready {:.1} s after it has got its ranges", begin.elapsed().as_secs_f64());
    assert_eq!(condition(&cluster, "NetworkUnavailable").unwrap().unwrap().0, "False");
    run(&cluster, &[Workload::on("a2", LATE)], LIMIT).unwrap();
    connect(&cluster, "a1", "a2").unwrap();
    connect(&cluster, "a2", "a1").unwrap();
    await_agreement(&cluster).unwrap();
}

#[test]
fn a_node_gets_other_ranges_and_pods_of_the_former_ones_live_on() {
    let cluster = up_with_late_node();
    cluster.give_ranges(LATE, &ranges(["10.244.20.0/24", "fd00:10:244:20::/64"])).unwrap();
    cluster.await_ready(LIMIT).unwrap();
    run(&cluster, &[Workload::on("former", LATE)], LIMIT).unwrap();
    let before = addresses(&cluster, "former").unwrap();

    // The API takes ranges for an object once: it takes another object.
    cluster.kubectl(&["delete", "node", &node_name(LATE), "--wait"]).unwrap();
    end(&cluster, LATE, "hyperkube").unwrap();
    until("another object of the node", LIMIT, || cluster.get(&["node", &node_name(LATE)]).map(Some)).unwrap();
    cluster.give_ranges(LATE, &ranges(["10.244.30.0/24", "fd00:10:244:30::/64"])).unwrap();
    cluster.await_ready(LIMIT).unwrap();
    run(&cluster, &[Workload::on("latter", LATE)], LIMIT).unwrap();
    let after = addresses(&cluster, "latter").unwrap();
    assert!(after[0].to_string().starts_with("10.244.30.") && after[1].to_string().starts_with("fd00:10:244:30:"));
    assert_eq!(addresses(&cluster, "former").unwrap(), before);
    for (from, to) in [("a1", "former"), ("former", "a1"), ("a1", "latter"), ("latter", "a1"), ("former", "latter")] {
        connect(&cluster, from, to).unwrap();
    }
    await_agreement(&cluster).unwrap();
}

#[test]
fn an_address_of_a_pod_that_has_ended_is_that_of_the_pod_that_has_it_now() {
    let cluster = up_with_late_node();
    // Room for six pods.
    cluster.give_ranges(LATE, &ranges(["10.244.40.0/29", "fd00:10:244:40::/64"])).unwrap();
    cluster.await_ready(LIMIT).unwrap();
    let ended = |name: &str, argument: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"restartPolicy": "Never", "nodeSelector": {"kubernetes.io/hostname": node_name(LATE)},
                "containers": [{"name": "c", "image": layout::AGNHOST_IMAGE, "args": [argument]}]}})
    };
    let pods = [ended("good", "--help"), ended("bad", "no-such-command")];
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string()).unwrap();
    until("pods that have ended", LIMIT, || {
        let phase = |pod: &str| cluster.get(&["pod", pod]).map(|p| p["status"]["phase"].clone());
        Ok((phase("good")? == "Succeeded" && phase("bad")? == "Failed").then_some(()))
    })
    .unwrap();
    // Their objects keep them; the node does not.
    let former = ["good", "bad"].map(|pod| addresses(&cluster, pod).unwrap()[0]);
    let living: Vec<Workload> = (0..6).map(|n| Workload::on(&format!("p{n}"), LATE)).collect();
    run(&cluster, &living, LIMIT).unwrap();
    let now: Vec<_> = living.iter().map(|p| addresses(&cluster, p.name()).unwrap()[0]).collect();
    assert!(former.iter().all(|address| now.contains(address)), "{former:?}, and then {now:?}");
    for pod in &living {
        connect(&cluster, "a1", pod.name()).unwrap();
    }
    // With the objects nothing goes that is another pod's by now.
    cluster.kubectl(&["delete", "pods", "good", "bad", "--wait"]).unwrap();
    for pod in &living {
        connect(&cluster, "a1", pod.name()).unwrap();
    }
    await_agreement(&cluster).unwrap();
}
