//! The harness itself, with the CNI project's own bridge plugin: what fails here is none of Weft's faults.
use std::time::Duration;

use cluster::{
    Cluster, Config, Network,
    fixture::up,
    pace,
    pods::{self, Workload, connect},
};

#[test]
fn pods_of_two_nodes_reach_each_other() {
    let cluster = up(Config { network: Network::Reference, ..Config::default() }).unwrap();
    let pair = [Workload::on("a", 1), Workload::on("b", 2)];
    let ready = pods::run(&cluster, &pair, Duration::from_secs(60)).unwrap();
    println!("figure: two pods created, Ready after {:.1} s", ready.as_secs_f64());
    for (from, to) in [(0, 1), (1, 0)] {
        connect(&cluster, pair[from].name(), pair[to].name()).unwrap();
    }
}

#[test]
fn pods_become_ready_one_by_one_and_a_hundred_a_node_at_once() {
    let cluster = up(Config { network: Network::Reference, ..Config::default() }).unwrap();
    pace::time_to_ready(&cluster, "reference bridge").unwrap();
}

#[test]
fn a_cluster_leaves_the_host_as_it_was() {
    let before = lab::Snapshot::take().unwrap();
    let cluster = up(Config { network: Network::None, ..Config::default() }).unwrap();
    // Another one is refused, and leaves this one alone.
    assert!(Cluster::up(Config { nodes: 1, network: Network::None, ..Config::default() }, |_| {}).is_err());
    assert!(cluster.node_pid(2).is_ok());
    drop(cluster);
    let difference = before.difference(&lab::Snapshot::take().unwrap());
    assert!(difference.is_empty(), "{difference}");
    assert!(!std::path::Path::new(cluster::layout::ROOT).exists());
}
