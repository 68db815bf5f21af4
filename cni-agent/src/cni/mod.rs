//! The agent's side of CNI: the socket on which `weft-cni` calls, and what it calls.
//!
//! The server knows nothing of pods: it reads requests, keeps calls for one attachment apart, and hands them to a
//! [`CniHandler`] (the endpoint manager).
#![forbid(unsafe_code)]

mod attachments;
pub mod server;
#[cfg(test)]
mod server_tests;

use cni_plugin::{
    protocol::Request,
    spec::{AddResult, CniError},
};

/// What the server calls. Calls for different attachments run at the same time, calls for the same (container,
/// interface) never do.
pub trait CniHandler: Send + Sync {
    /// Connects the container; asked again for one that is connected, gives the same answer.
    ///
    /// # Errors
    /// As the runtime shall see it: cause and cure. Nothing of the attempt is left.
    fn add(&self, request: &Request) -> Result<AddResult, CniError>;

    /// Disconnects the container; one that is not connected is a success.
    ///
    /// # Errors
    /// As the runtime shall see it.
    fn del(&self, request: &Request) -> Result<(), CniError>;
}
