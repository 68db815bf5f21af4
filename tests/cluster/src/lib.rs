//! A real Kubernetes cluster on one machine: etcd, API server, controllers, scheduler, and nodes with kubelet, containerd and
//! runc, each in namespaces of its own.
//!
//! A node has its own network, mounts, processes, host name and cgroups, and a root that is an overlay over the machine's: the places that
//! an agent, a kubelet and a container runtime know (`/etc/cni`, `/opt/cni`, `/run`, `/var/lib`, `/sys/fs/bpf`) are the node's
//! alone, and go with it. The first process of each is this crate's program ([`init`]); whoever ends it ends all of them.
//! There is one cluster on a machine at a time. A [`Cluster`] is the fixture of tests; `weft-cluster` is the same for people.
pub mod api;
mod cgroups;
mod clean;
mod cluster;
mod control_plane;
pub mod crowd;
mod files;
pub mod fixture;
pub mod init;
pub mod layout;
mod network;
mod node;
pub mod pace;
pub mod pods;
mod proxy;
mod replay;
mod wait;

pub use cluster::{
    Cluster, Config, Halted, LOOPBACK, NAMESPACE, Network, TAINT, UP_LIMIT, beside_api_server, chart, kubectl,
};
pub use proxy::Proxy;
pub use replay::replay;
pub use wait::until;
