//! A lab leaves the host as it was. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use lab::{
    Ending, Lab, LabConfig, PodSpec, Quiet, Snapshot,
    probe::{self, Family},
};

/// No other lab of this process between two snapshots; [`Quiet`] keeps those of others away.
static ALONE: Mutex<()> = Mutex::new(());

/// Takes down a lab that outlives its maker, also when the test fails.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        Lab::remove().unwrap();
    }
}

fn alone() -> (MutexGuard<'static, ()>, Quiet) {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let quiet = Quiet::wait().unwrap();
    // What an earlier run has left would be taken for the host's own.
    Lab::remove_leftovers().unwrap();
    (guard, quiet)
}

fn assert_same(before: &Snapshot) {
    let difference = before.difference(&Snapshot::take().unwrap());
    assert!(difference.is_empty(), "{difference}");
}

/// Starts `weft-lab` with these arguments and kills it right after it has printed a line with this text.
fn crash(args: &[&str], after: &str) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-lab"))
        .args(args)
        .env(lab::HELD_BY_PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let seen = lines.by_ref().any(|line| line.contains(after));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen, "`{after}` was never printed");
}

#[test]
fn a_whole_life_leaves_the_host_as_it_was() {
    let _alone = alone();
    let before = Snapshot::take().unwrap();
    let mut lab = Lab::up(LabConfig::with_world()).unwrap();
    let web = lab.pod_add("node-1", &PodSpec::named("web")).unwrap().pod.place().unwrap();
    let client = lab.pod_add("node-2", &PodSpec::named("client")).unwrap().pod.place().unwrap();
    probe::tcp(&client, &web, Family::V4).unwrap();
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    lab.pod_del("web").unwrap();
    let during = before.difference(&Snapshot::take().unwrap());
    for what in [
        "network namespace weft-node-1",
        "network namespace weft-world-narrow",
        "mount of bpf on /run/weft-lab/node-1/bpf",
        "process weft-agent",
    ] {
        assert!(during.appeared.iter().any(|f| f.starts_with(what)), "the comparison must see a lab: {during}");
    }
    lab.down().unwrap();
    assert_same(&before);
}

#[test]
fn a_dropped_lab_leaves_the_host_as_it_was() {
    let _alone = alone();
    let before = Snapshot::take().unwrap();
    let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
    lab.pod_add("node-1", &PodSpec::named("web")).unwrap();
    drop(lab);
    assert_same(&before);
}

#[test]
fn what_a_crash_leaves_behind_the_next_lab_removes() {
    let _alone = alone();
    let before = Snapshot::take().unwrap();
    for after in ["make the nodes' network namespaces", "execute the CNI plugin: ADD"] {
        crash(&["tour"], after);
        assert!(!before.difference(&Snapshot::take().unwrap()).is_empty(), "a crash leaves something behind");
        Lab::up(LabConfig::with_nodes(1)).unwrap().down().unwrap();
        assert_same(&before);
    }
}

#[test]
fn down_removes_what_a_crash_leaves_behind() {
    let _alone = alone();
    let before = Snapshot::take().unwrap();
    crash(&["up", "--world"], "write the Node objects");
    Lab::remove().unwrap();
    assert_same(&before);
    Lab::remove().unwrap();
}

#[test]
fn a_persons_lab_is_not_taken_down_by_another() {
    let _alone = alone();
    let down = Down;
    Lab::up(LabConfig::with_nodes(1)).unwrap().keep().unwrap();
    let refused = Lab::up(LabConfig::with_nodes(1)).unwrap_err();
    assert!(refused.to_string().starts_with("a lab is up (1 nodes, 0 pods)"), "{refused:#}");
    let mut again = Lab::open().unwrap();
    again.pod_add("node-1", &PodSpec::named("web")).unwrap();
    drop(again);
    let status = Lab::open().unwrap().status();
    assert_eq!(status["pods"][0]["name"], "web", "{status}");
    drop(down);
    Lab::open().unwrap_err();
}
