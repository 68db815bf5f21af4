//! Masquerade: pods speak to the world with an address of their node.
//!
//! | file | what changes it |
//! |---|---|
//! | `rewrite` | how one end of a packet is replaced, and its checksums with it |
//! | `sum` | how a checksum follows a change |
//! | `family` | what differs between IPv4 and IPv6 |
//!
//! No program calls it yet, and no map of it is declared.
pub mod family;
pub mod rewrite;
#[cfg(test)]
mod rewrites;
pub mod sum;

pub use family::NatFamily;
pub use rewrite::{End, Mend, Side, rewrite};
