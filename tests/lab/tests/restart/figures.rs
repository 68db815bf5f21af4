//! How long an agent takes to be ready again, and how much memory it needs.
use std::{fs, time::Duration};

use lab::{Ending, Lab, LabConfig, bound, is_virtual};

use crate::{KILLED, held::Held, pod};

/// The issue's: pods that a new agent adopts, how long it may take, and how many KiB it may need then.
const PODS: usize = 100;
const PODS_VIRTUAL: usize = 20;
const ADOPTED_WITHIN: Duration = Duration::from_millis(300);
const MEMORY: u64 = 20 * 1024;
/// Restarts of which the best counts: what else goes on at the machine only adds.
const RESTARTS: usize = 5;

/// Resident memory of a process, KiB.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").parse().expect("a figure")
}

#[test]
fn a_hundred_endpoints_are_adopted_in_time_and_cost_little_memory() {
    // An agent that installs itself sends packets through a probe before it says that it is ready: no part of adopting.
    let agent_args = ["--cni-install", "no"].map(str::to_owned).into();
    let mut lab = Lab::up(LabConfig { agent_args, ..LabConfig::with_nodes(1) }).expect("a lab of one node");
    let pods = if is_virtual() { PODS_VIRTUAL } else { PODS };
    for n in 0..pods {
        pod(&mut lab, KILLED, &format!("p{n}"));
    }
    let before = Held::look(lab.node(KILLED).unwrap());
    assert_eq!(before.endpoints, pods);
    let mut times: Vec<Duration> =
        (0..RESTARTS).map(|_| lab.restart_agent(KILLED, Ending::Killed).expect("the agent comes back")).collect();
    times.sort();
    let node = lab.node(KILLED).unwrap();
    assert_eq!(Held::look(node), before);
    let memory = resident(node.agent_pid().expect("the agent runs"));
    println!("figure adopt p50_ms {:.1}", times[RESTARTS / 2].as_secs_f64() * 1e3);
    println!("figure adopt max_ms {:.1}", times[RESTARTS - 1].as_secs_f64() * 1e3);
    println!("figure adopt rss_kib {memory}");
    assert!(times[0] <= bound(ADOPTED_WITHIN), "{times:?}");
    assert!(memory <= MEMORY, "{memory} KiB of memory for {pods} endpoints");
    lab.down().unwrap();
}
