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
//!
//! No program calls it yet, and no map of it is declared.
pub mod entry;
#[cfg(test)]
mod errors;
pub mod family;
#[cfg(test)]
mod histories;
pub mod icmp;
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

pub use entry::{Pair, back, forth, give_way};
pub use family::NatFamily;
pub use icmp::{error_back, error_forth};
pub use quote::related;
pub use rewrite::{End, Mend, Side, rewrite};
pub use table::{Entered, NatEnv, NatSystem, Sockets, Translations};
