//! Masquerade: pods speak to the world with an address of their node.
//!
//! | file | what changes it |
//! |---|---|
//! | `entry` | what a flow's translation is, in either direction, and for how long |
//! | `port` | which port of the node a flow gets, and why no other flow has it |
//! | `quote` | which flow an ICMP error is about |
//! | `icmp` | how it is translated with its flow |
//! | `table` | what is asked of the maps and of the node's sockets |
//! | `rewrite` | how one end of a packet is replaced, and its checksums with it |
//! | `sum` | how a checksum follows a change |
//! | `family` | what differs between IPv4 and IPv6 |
//! | `way` | the steps, of which each is a function of the kernel's |
//! | `passage` | the way of a packet through them |
//!
//! Out of a pod, a packet is tracked, then translated ([`leave`]); from the world it is translated first and tracked as the pod's
//! ([`arrive`]).
//! What the node itself has asked does not meet a pod's translation: [`receiver`].
//!
//! A packet of a flow that is known costs three look-ups in either direction: its flow and the two halves.
pub mod entry;
#[cfg(test)]
mod errors;
pub mod family;
#[cfg(test)]
mod histories;
pub mod icmp;
pub mod passage;
pub mod port;
pub mod quote;
#[cfg(test)]
mod races;
pub mod rewrite;
#[cfg(test)]
mod rewrites;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod steps;
pub mod sum;
pub mod table;
#[cfg(test)]
mod tests;
pub mod way;

pub use entry::{Pair, receiver};
pub use family::NatFamily;
pub use icmp::{error_back, error_forth};
pub use passage::{arrive, leave};
pub use quote::related;
pub use rewrite::{End, Mend, Side, rewrite};
pub use table::{Entered, Leave, Masquerade, NatEnv, NatNode, NatSystem, Sockets, Step, Translations, Ways};
