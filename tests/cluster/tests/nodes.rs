//! Nodes that come, go and die, and their pods; each family of addresses by itself.
use std::{thread, time::Duration};

use cluster::{
    Config,
    fixture::{LIMIT, await_agreement, await_rollout, up, weft},
    layout::{self, Families},
    pods::{Workload, addresses, connect, place, run},
    until,
};
use lab::probe::{Family, Flow};
use serde_json::{Value, json};

fn each_reaches_each(families: Families, count: usize) {
    let cluster = up(Config { families, ..Config::default() }).unwrap();
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
    await_agreement(&cluster).unwrap();
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
    let mut cluster = up(Config::default()).unwrap();
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
    await_agreement(&cluster).unwrap();

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
fn a_node_gets_other_addresses_and_its_flows_go_on() {
    let cluster = up(Config::default()).unwrap();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    let [a1, a2] = [("a1", 1), ("a2", 2)].map(|(pod, node)| place(&cluster, node, pod).unwrap());
    let mut flows: Vec<Flow> = Family::BOTH.iter().map(|family| Flow::open(&a1, &a2, *family).unwrap()).collect();
    flows.iter_mut().for_each(|flow| flow.exchange(512).unwrap());

    let begin = std::time::Instant::now();
    cluster.readdress(2).unwrap();
    let (v4, v6) = layout::moved_addresses(2);
    until("the node's new addresses in its object", LIMIT, || {
        let node = cluster.get(&["node", "node-2"])?;
        let of = |address: &str| {
            node["status"]["addresses"].as_array().is_some_and(|all| all.iter().any(|a| a["address"] == address))
        };
        Ok((of(&v4.to_string()) && of(&v6.to_string())).then_some(()))
    })
    .unwrap();
    println!("figure: new addresses are in the Node object after {:.1} s", begin.elapsed().as_secs_f64());
    // What was sent meanwhile is sent again by TCP.
    until("flows by the node's new addresses", LIMIT, || flows.iter_mut().try_for_each(|f| f.exchange(512)).map(Some))
        .unwrap();
    println!("figure: flows of a node with new addresses go on after {:.1} s", begin.elapsed().as_secs_f64());

    cluster.await_ready(LIMIT).unwrap();
    run(&cluster, &[Workload::on("b2", 2)], LIMIT).unwrap();
    for (from, to) in [("a1", "b2"), ("b2", "a1"), ("a1", "a2"), ("a2", "a1")] {
        connect(&cluster, from, to).unwrap();
    }
    // Nobody speaks to the former addresses any more.
    let known = weft(&cluster, &["node", "list", "--node", "node-1"]).unwrap().to_string();
    let former = layout::node_addresses(2).0.to_string();
    assert!(known.contains(&v4.to_string()) && !known.contains(&format!("\"{former}\"")), "{known}");
    await_agreement(&cluster).unwrap();
}

#[test]
fn agents_die_while_pods_come_and_addresses_of_pods_that_have_ended_are_used_again() {
    let cluster = up(Config::default()).unwrap();
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
        await_rollout(&cluster).unwrap();
        await_agreement(&cluster).unwrap();
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
    await_agreement(&cluster).unwrap();
}
