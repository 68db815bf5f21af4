//! The machine's clock jumps, forwards and back: nothing the agent does hangs on it. Runs in xtask's virtual machines only, whose clock
//! is nobody else's: `cargo xtask vm --suite restart`.
use std::{
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lab::{
    Ending, Lab, LabConfig, PodSpec,
    pair::until,
    probe::{self, Family, Place},
};

const MONTH: u64 = 30 * 24 * 3600;

/// Sets the clock.
fn set(to: Duration) {
    assert!(lab::is_virtual(), "this would set the clock of your machine: run it by `cargo xtask vm --suite restart`");
    let set = Command::new("date").args(["-s", &format!("@{}", to.as_secs())]).output().expect("date");
    assert!(set.status.success(), "date: {}", String::from_utf8_lossy(&set.stderr));
}

fn pod(lab: &mut Lab, name: &str) -> Place {
    lab.pod_add("node-1", &PodSpec::named(name)).unwrap_or_else(|e| panic!("{name}: {e:#}")).pod.place().unwrap()
}

fn assert_reaches(from: &Place, to: &Place) {
    for family in Family::BOTH {
        probe::udp(from, to, family).unwrap();
        probe::tcp(from, to, family).unwrap();
    }
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    let one = pod(&mut lab, "one");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for (n, to) in [now + Duration::from_secs(MONTH), now - Duration::from_secs(MONTH), now].into_iter().enumerate() {
        set(to);
        let name = format!("after-{n}");
        let new = pod(&mut lab, &name);
        assert_reaches(&new, &one);
        // Its object is known too, whatever time its file bears.
        let labelled = || {
            let endpoints = lab.node("node-1").unwrap().ask("/v1/endpoints").unwrap();
            endpoints.as_array().unwrap().iter().all(|e| e["label_class"] != 0)
        };
        until("the pods' objects are known", labelled).unwrap();
        lab.restart_agent("node-1", Ending::Killed).unwrap();
        assert_reaches(&one, &new);
        lab.pod_del(&name).unwrap();
        let gone = || lab.node("node-1").unwrap().ask("/v1/endpoints").unwrap().as_array().unwrap().len() == 1;
        until("the pod is gone", gone).unwrap();
    }
    lab.down().unwrap();
}
