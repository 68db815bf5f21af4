//! The agent is killed and comes back: nothing is lost, nothing is made anew, nothing leaks. Needs root and `cargo xtask build`; run it
//! with `cargo xtask test --suite restart`.
mod cases;
mod figures;
mod held;
mod node_state;
mod points;
mod traffic;

use lab::{Lab, PodSpec, probe::Place};

/// The node whose agent is killed.
const KILLED: &str = "node-1";
/// Another one.
const OTHER: &str = "node-2";

/// Makes a pod.
fn pod(lab: &mut Lab, node: &str, name: &str) -> Place {
    lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().expect("its namespace")
}
