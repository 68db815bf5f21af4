//! The kernel's network configuration: the only place in the agent that knows netlink.
//!
//! Everything here blocks; call it from a thread that may. What changes something is a function that returns a
//! [`Request`]; [`Socket::run`] sends one, [`Socket::batch`] several in one `send()`. That is why this stands on
//! `netlink-sys` and the packet crates and not on rtnetlink, which sends one message, and waits for its answer, at a time.
//! What reads the kernel's state is a function that takes the socket.
//!
//! A socket belongs to the network namespace it was opened in, whichever thread uses it later: [`Socket::open_in`] makes one
//! for a pod's namespace, and no thread of the agent ever changes its own.
mod error;
mod read;
mod request;

pub mod addr;
pub mod link;
pub mod monitor;
pub mod names;
pub mod neigh;
pub mod netns;
pub mod nftables;
pub mod pod;
pub mod route;
pub mod rule;
pub mod socket;
pub mod tc;

pub use error::{MissingIsDone, NetlinkError};
pub use request::Request;
pub use socket::Socket;
