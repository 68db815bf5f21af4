//! The API server is away for minutes, and pods come and go.
use std::time::{Duration, Instant};

use cluster::{
    Cluster, Config,
    fixture::{LIMIT, await_agreement, up},
    pods::{Workload, addresses, connect, end_by_kubelet, endpoint, kill_in, place, processes, run, run_by_kubelet},
    until,
};
use lab::probe::{Family, Flow, Place, tcp, while_sending};
use serde_json::Value;

/// At least as long as the server is away.
const AWAY: Duration = Duration::from_secs(120);

/// The place of a pod as soon as the node's agent has it, in another sandbox than the former one.
fn await_place(cluster: &Cluster, node: u8, pod: &str, former: Option<&Value>) -> Place {
    until(&format!("endpoint of {pod}"), LIMIT, || {
        let there = endpoint(cluster, node, pod)?;
        Ok(there.filter(|e| former.is_none_or(|f| f["container_id"] != e["container_id"])))
    })
    .unwrap();
    place(cluster, node, pod).unwrap()
}

/// A pod of which the API server has told nobody may have any labels: whether a policy selects it is not known, so nobody gets to it.
fn is_isolated(from: &Place, to: &Place) {
    for family in Family::BOTH {
        assert!(tcp(from, to, family).is_err(), "{} reaches {}, whose labels nobody knows", from.name, to.name);
    }
}

#[test]
fn pods_come_and_go_and_live_on() {
    let cluster = up(Config::default()).unwrap();
    let names = [("a1", 1), ("a2", 2), ("b1", 1), ("c1", 1)];
    run(&cluster, &names.map(|(pod, node)| Workload::on(pod, node)), LIMIT).unwrap();
    let [a1, a2, b1, c1] = names.map(|(pod, node)| place(&cluster, node, pod).unwrap());
    let mut flows: Vec<Flow> = Family::BOTH.iter().map(|family| Flow::open(&a1, &a2, *family).unwrap()).collect();
    let goes = run_by_kubelet(&cluster, &Workload::on("goes", 2)).unwrap();
    cluster.kubectl(&["wait", "--for=create", "--timeout=60s", &format!("pod/{goes}")]).unwrap();
    let uids =
        |names: &[&str]| names.iter().map(|n| cluster.get(&["pod", n]).unwrap()["metadata"]["uid"].clone()).collect();
    let before: Vec<Value> = uids(&["a1", "a2", "b1", "c1"]);

    let server = cluster.stop_api_server().unwrap();
    let begin = Instant::now();
    // A container that dies is started anew in its pod, a sandbox that dies made anew, with other addresses.
    let sandbox = endpoint(&cluster, 1, "c1").unwrap();
    assert_eq!((kill_in(&b1, "agnhost").unwrap(), kill_in(&c1, "pause").unwrap()), (1, 1));
    let c1 = await_place(&cluster, 1, "c1", sandbox.as_ref());
    until("container that was started anew", LIMIT, || Ok((!processes(&b1, "agnhost")?.is_empty()).then_some(())))
        .unwrap();
    end_by_kubelet(&cluster, &Workload::on("goes", 2)).unwrap();
    until("end of the static pod", LIMIT, || Ok(endpoint(&cluster, 2, &goes)?.is_none().then_some(()))).unwrap();
    let mut rounds = 0;
    while begin.elapsed() < AWAY {
        rounds += 1;
        let come = Workload::on(&format!("come{rounds}"), 1);
        let ((), _) = while_sending(&[(&a1, &a2), (&a2, &c1), (&b1, &a2)], || {
            let mirror = run_by_kubelet(&cluster, &come).unwrap();
            let there = await_place(&cluster, 1, &mirror, None);
            for from in [&a1, &a2, &c1] {
                is_isolated(from, &there);
            }
            is_isolated(&there, &a2);
            end_by_kubelet(&cluster, &come).unwrap();
            until("end of the static pod", LIMIT, || Ok(endpoint(&cluster, 1, &mirror)?.is_none().then_some(())))
                .unwrap();
        })
        .unwrap();
        flows.iter_mut().for_each(|flow| flow.exchange(4096).unwrap());
    }
    run_by_kubelet(&cluster, &Workload::on("stays", 2)).unwrap();
    await_place(&cluster, 2, "stays-node-2", None);
    println!(
        "figure: the API server was away for {:.0} s; {rounds} static pods came and went",
        begin.elapsed().as_secs_f64()
    );
    drop(server);

    let begin = Instant::now();
    cluster.await_ready(LIMIT).unwrap();
    for pod in ["a1", "a2", "b1", "c1", "stays-node-2"] {
        until("object of the pod", LIMIT, || cluster.get(&["pod", pod]).map(Some)).unwrap();
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{pod}")]).unwrap();
    }
    cluster.kubectl(&["wait", "--for=delete", "--timeout=60s", &format!("pod/{goes}")]).unwrap();
    println!("figure: all is as it should be {:.1} s after the server is back", begin.elapsed().as_secs_f64());
    assert_eq!(uids(&["a1", "a2", "b1", "c1"]), before, "nothing was made anew");
    assert_eq!(addresses(&cluster, "c1").unwrap(), c1.addresses);
    flows.iter_mut().for_each(|flow| flow.exchange(4096).unwrap());
    for (from, to) in [("a2", "c1"), ("c1", "a2"), ("a1", "stays-node-2"), ("stays-node-2", "b1")] {
        connect(&cluster, from, to).unwrap();
    }
    run(&cluster, &[Workload::on("after", 2)], LIMIT).unwrap();
    connect(&cluster, "b1", "after").unwrap();
    await_agreement(&cluster).unwrap();
}
