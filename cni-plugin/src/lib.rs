//! The CNI plugin `weft-cni`, and the types that it shares with the agent.
//!
//! The plugin does no networking itself: it reads what the container runtime asks for ([`run`]), checks it against the
//! CNI specification ([`spec`]), hands it to the node's agent over a unix socket ([`protocol`], [`client`]) and prints
//! the answer in the shape of the specification version that was asked for.
#![forbid(unsafe_code)]

pub mod about;
pub mod client;
pub mod delegate;
pub mod device;
pub mod protocol;
pub mod run;
pub mod spec;
pub mod tombstone;
