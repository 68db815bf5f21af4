//! A large cluster: a thousand nodes and twenty thousand pods in the API server, and what that is to the agents of two nodes.
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cluster::{
    Cluster, Config,
    crowd::Crowd,
    fixture::{end, weft_at},
    layout::Families,
    pods::{Workload, connect, run},
    until,
};
use cni_agent::{
    datapath::{map::RawMap, pins},
    identity::label_class,
};
use cni_common::schema::{IDENTITY4, MapSpec, REMOTE4};
use serde_json::json;

/// On a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const CROWD: Crowd = Crowd { nodes: 1000, pods: 20_000 };
/// The most resident memory of an agent, KiB.
const MOST: usize = 60 << 10;

fn map(cluster: &Cluster, node: u8, spec: &MapSpec) -> Result<RawMap> {
    let pins = cluster.node_root(node)?.join("sys/fs/bpf/weft");
    pins::open(&pins, spec)?.with_context(|| format!("no map {} in {}", spec.name, pins.display()))
}
fn hash_of(cluster: &Cluster, node: u8, address: Ipv4Addr) -> Result<Option<u32>> {
    // Identity, then the hash of the label class.
    let value = map(cluster, node, &IDENTITY4)?.lookup(&address.octets())?;
    Ok(value.and_then(|value| value.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)))
}

/// The agent's resident memory, KiB.
fn resident(cluster: &Cluster, node: u8) -> Result<usize> {
    let script = "cat /proc/$(pgrep -x weft-agent)/status";
    let status = cluster.in_node(node, "sh")?.args(["-c", script]).output()?;
    let status = String::from_utf8(status.stdout)?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no agent runs")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Waits until a node's maps hold the crowd as its objects are.
fn in_sync(cluster: &Cluster, node: u8) {
    let last = CROWD.address(CROWD.pods - 1);
    until("all pods in the maps of a node", LIMIT, || {
        // To count them takes the longer.
        let there =
            map(cluster, node, &REMOTE4)?.lookup(&last.octets())?.is_some() && hash_of(cluster, node, last)?.is_some();
        if !there {
            return Ok(None);
        }
        let [remotes, holders] =
            [&REMOTE4, &IDENTITY4].map(|spec| map(cluster, node, spec).and_then(|m| Ok(m.keys()?)));
        Ok((remotes?.len() >= CROWD.pods + CROWD.nodes && holders?.len() >= CROWD.pods).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_thousand_nodes_and_twenty_thousand_pods() {
    let cluster =
        Cluster::up(Config { families: Families::Ipv4, ..Config::default() }, |line| println!("{line}")).unwrap();
    run(&cluster, &[Workload::on("a1", 1), Workload::on("a2", 2)], LIMIT).unwrap();
    CROWD.namespaces(&cluster).unwrap();
    // They would give the crowd's nodes an agent each, and end their pods.
    let _halted = ["kube-controller-manager", "kube-scheduler"].map(|program| cluster.halt(program).unwrap());
    let alone = [1, 2].map(|node| resident(&cluster, node).unwrap());
    let asked = cluster.asked_by_weft().unwrap();

    let began = Instant::now();
    let api = cluster.api().unwrap();
    let step = |what: &str| println!("{:>5.1} s  {what}", began.elapsed().as_secs_f64());
    CROWD.make(&api, step).unwrap();
    let made = began.elapsed();
    (1..=2).for_each(|node| in_sync(&cluster, node));
    let lag = began.elapsed().checked_sub(made).unwrap_or_default();
    println!(
        "figure: objects made in {:.1} s, in the maps of both nodes {:.2} s later",
        made.as_secs_f64(),
        lag.as_secs_f64()
    );
    let again = cluster.asked_by_weft().unwrap();
    let more = &again[asked.len()..];
    println!("figure: requests to the API by Weft for {} pods: {}", CROWD.pods, more.len());
    assert!(!asked.is_empty(), "the log is that of Weft's requests");
    assert_eq!(more, [""; 0]);

    // From the change to the map of a node that has no part in it.
    let mut times: Vec<Duration> = (0..20)
        .map(|n| {
            let pod = n * 997;
            let (namespace, mut labels) = CROWD.labels(pod);
            let tier = format!("moved-{n}");
            labels.retain(|(key, _)| *key != "tier");
            labels.push(("tier", tier.clone()));
            let labels: BTreeMap<String, String> =
                labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            let wanted = label_class(&namespace, &labels);
            let began = Instant::now();
            api.connect().unwrap().merge(&CROWD.path(pod), &json!({"metadata": {"labels": {"tier": tier}}})).unwrap();
            until("the new label class in the map", LIMIT, || {
                Ok((hash_of(&cluster, 1, CROWD.address(pod))? == Some(wanted)).then_some(()))
            })
            .unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    let seconds = |at: usize| times[at].as_secs_f64();
    println!(
        "figure: a pod's label in the map of another node: p50 {:.3} s, slowest of 20 {:.3} s",
        seconds(10),
        seconds(19)
    );

    for (node, alone) in [(1, alone[0]), (2, alone[1])] {
        let with = resident(&cluster, node).unwrap();
        let each = (with.saturating_sub(alone) << 10) / CROWD.pods;
        println!(
            "figure: agent of node {node} with the crowd: rss_mib {:.1}, {each} bytes a pod more than alone",
            with as f64 / 1024.0
        );
        assert!(with <= MOST, "{with} KiB");
    }

    // One that begins with all of it there.
    let began = Instant::now();
    end(&cluster, 2, "weft-agent").unwrap();
    until("the agent that was started anew, in sync", LIMIT, || weft_at(&cluster, 2, &["status"]).map(Some)).unwrap();
    let took = began.elapsed();
    in_sync(&cluster, 2);
    let with = resident(&cluster, 2).unwrap();
    println!(
        "figure: an agent that was killed is ready after {:.1} s, rss_mib {:.1}",
        took.as_secs_f64(),
        with as f64 / 1024.0
    );
    assert!(with <= MOST, "{with} KiB");
    for (from, to) in [("a1", "a2"), ("a2", "a1")] {
        connect(&cluster, from, to).unwrap();
    }
}
