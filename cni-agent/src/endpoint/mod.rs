//! Endpoints: pods' interfaces on this node, from CNI ADD to CNI DEL, and across restarts of the agent.
mod add;
mod addresses;
mod answer;
mod check;
mod convert;
mod del;
mod gc;
mod liveness;
mod manager;
pub mod mtu;
mod orphans;
pub mod reaper;
pub mod record;
mod status;
mod tombstones;
mod wish;

pub use liveness::Gone;
pub use manager::{EndpointManager, Parts, RestoreError, Restored};
pub use status::not_ready;
