//! Endpoints: pods' interfaces on this node, from CNI ADD to CNI DEL, and across restarts of the agent.
mod manager;
pub mod mtu;
mod reaper;
pub mod record;

pub use manager::{EndpointManager, RestoreError, missing};
