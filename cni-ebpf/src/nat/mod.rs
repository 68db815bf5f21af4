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
//! No program calls it yet, and no map of it is declared. Who does will
//!
//! - out of a pod, to what is not of the cluster and in no CIDR that is spared: [`track`](crate::ct::track()) the packet, then [`forth`] and
//!   [`rewrite()`] its source; an ICMP error goes through [`error_forth`] instead. What both know nothing of has no address to leave under;
//! - from the world, to an address of the node: [`back`] and [`rewrite()`] its destination, then track it as the pod's; an ICMP error goes through
//!   [`error_back`]. What both know nothing of is the node's own;
//! - out of the node itself: [`give_way`], for a packet that is its own and was not just translated;
//! - let an error that is for a pod pass where the flow does to which it is [`related`];
//! - have later fragments find their ports first: without, only [`rewrite()`] knows what to do with them;
//! - have the agent take out what is over, under a hold, and keep the range out of the node's own choice (`ip_local_reserved_ports`).
//!
//! A packet of a flow that is known costs three look-ups in either direction: its flow and the two halves.
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
