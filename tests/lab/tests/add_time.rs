//! What ADD and DEL take one by one, from the start of the plugin to its end, on whatever kernel this is: the figure of kernels that the
//! bench does not run on. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab` or in a machine by
//! `cargo xtask vm`.
use std::time::Duration;

use lab::{CniCall, Lab, LabConfig, PodSpec};

/// Calls of each verb.
const CALLS: usize = 30;
/// ADD's median on hardware, also where the kernel waits for its grace periods: far below what a runtime's user notices.
const BOUND: Duration = Duration::from_millis(150);

#[test]
fn add_and_del_one_by_one_stay_below_their_bound() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
    let pod = lab.pod_add("node-1", &PodSpec::named("timed")).unwrap().pod;
    let node = lab.node("node-1").unwrap();
    let call = |command| CniCall::of(command, &pod, node.paths()).run(lab.bin_dir(), node).unwrap().1;
    call("DEL");
    let (mut adds, mut dels): (Vec<_>, Vec<_>) = (0..CALLS).map(|_| (call("ADD"), call("DEL"))).unzip();
    adds.sort();
    dels.sort();
    println!("figure add p50_ms {:.2}", adds[CALLS / 2].as_secs_f64() * 1e3);
    println!("figure add max_ms {:.2}", adds[CALLS - 1].as_secs_f64() * 1e3);
    println!("figure del p50_ms {:.2}", dels[CALLS / 2].as_secs_f64() * 1e3);
    assert!(adds[CALLS / 2] <= lab::bound(BOUND), "ADD p50 {:?}", adds[CALLS / 2]);
    lab.down().unwrap();
}
