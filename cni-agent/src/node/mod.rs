//! This node: its devices of ours, and what is learnt from the kernel about the rest.
pub mod choose;
pub mod devices;
pub mod leave;
mod next_hops;
mod path_mtu;
pub mod reserved;
pub mod watch;
