//! Policy: whether a new flow may pass, asked once for each of its ends that is a pod of this node.
//!
//! | file | what changes it |
//! |---|---|
//! | `judge` | which flow a packet is of, and who is asked about it |
//! | `about` | which flow an ICMP error is judged with |
//! | `said` | what the tunnel says of who has opened a flow |
//! | `lookup` | who is exempt, and in which maps the others are looked up |
//! | `ruling` | what an answer holds |
//!
//! Nothing is weighed here: tiers, priorities, unions and denials are compiled into entries of which one decides (`cni_common::policy`).
pub mod about;
pub mod judge;
pub mod lookup;
#[cfg(test)]
mod packets;
pub mod ruling;
pub mod said;
#[cfg(test)]
mod tests;

pub use about::{Question, about};
pub use judge::judge;
pub use lookup::{Blame, Flow, Identities, Rules, egress, egress_of, identify, identify_sender, ingress, ingress_of};
pub use ruling::{Judged, LATER, Ruling, Why};

/// The text of the look-up, whose digest says by which one verdicts were found.
#[cfg(not(target_arch = "bpf"))]
pub const SOURCES: [&str; 2] = [include_str!("lookup.rs"), include_str!("ruling.rs")];
