//! The lab: a cluster of network namespaces on one machine.
//!
//! A node is a namespace with an agent in it, its own bpffs, directories and manifests; the underlay is a bridge in a namespace
//! of its own (or a wire between two nodes); a pod is a namespace that the real CNI plugin has connected. Processes and files
//! are the machine's. A [`Lab`] is the fixture of tests and benchmarks; `weft-lab` is the same for people.
//!
//! There is one lab on a machine at a time. Its parts have well-known names ([`layout`]), so whatever a crash leaves behind
//! the next lab finds and removes.
pub mod api;
mod cable;
mod clean;
pub mod hostile;
mod lab;
pub mod layout;
mod lock;
mod machine;
mod manifest;
mod node;
mod observe;
pub mod offload;
pub mod pair;
mod pod;
pub mod probe;
mod process;
mod programs;
pub mod snapshot;
mod state;
pub mod tool;
pub mod tour;
mod underlay;
mod watch;
mod world;

pub use hostile::{Hostile, HostileNode};
pub use lab::{Ending, Lab, LabConfig, exec};
pub use lock::{HELD_BY_PARENT, Quiet};
pub use machine::{Machine, bound, is_virtual, pause, skipped};
pub use node::Node;
pub use pod::{Added, CniCall, INTERFACE, Pod, PodSpec, Port};
pub use snapshot::Snapshot;
pub use underlay::Underlay;
pub use watch::{Step, Watch};
pub use world::World;
