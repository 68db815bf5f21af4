//! Measures Weft's datapath and its CNI calls, side by side with the physical limit and with peers, in namespaces of
//! its own.
//!
//! [`path`] interleaves the layouts of [`layout`] round by round and reports ratios to the limit *of the same round*;
//! [`inline`] has the tests and why they repeat on a busy machine; [`no_tso`] shows that receive coalescing survives
//! the tunnel; [`report`] holds the budgets and prints; [`masquerade`] does the same with the ways out of the cluster.
#![forbid(unsafe_code)]

pub mod add;
pub mod agent;
pub mod cli;
pub mod ct;
pub mod inline;
pub mod interrupt;
pub mod layout;
pub mod map_memory;
pub mod masquerade;
pub mod nat;
pub mod netns;
pub mod no_tso;
pub mod packet_cost;
pub mod path;
pub mod policy_cost;
pub mod report;
pub mod rounds;
pub mod scale;
pub mod stats;
