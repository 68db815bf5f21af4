//! Everything that crosses the kernel/user line, defined once.
//!
//! `no_std`. [`net`] holds the wire types, [`maps`] the keys and values of the BPF maps ([`policy`] those of the policy maps), [`drop`] the drop reasons and
//! counters, [`event`] what the programs report, and [`schema`] the list of all maps with their layout fingerprints.
#![cfg_attr(not(any(test, feature = "std")), no_std)]

pub mod drop;
pub mod event;
pub mod maps;
pub mod net;
pub mod policy;
pub mod schema;
pub mod shared;
pub mod wire;
