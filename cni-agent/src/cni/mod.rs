//! The agent's side of CNI: the socket on which `weft-cni` calls, and what it calls.
//!
//! The server knows nothing of pods: it reads requests, keeps calls for one attachment apart, and hands them to a
//! [`CniHandler`] (the endpoint manager).
#![forbid(unsafe_code)]

mod attachments;
pub mod calls;
pub mod server;
#[cfg(test)]
mod server_tests;
pub mod steps;

use std::time::Instant;

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

    /// Compares the container's connection with what ADD made.
    ///
    /// # Errors
    /// [`CHECK_FAILED`](cni_plugin::spec::ErrorCode::CHECK_FAILED) with every difference, or why they cannot be found.
    fn check(&self, request: &Request) -> Result<(), CniError>;

    /// Disconnects the containers of the request's network that its configuration no longer lists, and nothing else: those that were
    /// connected after the call came, at `since`, its list cannot have.
    ///
    /// # Errors
    /// As the runtime shall see it; what could be removed is.
    fn gc(&self, request: &Request, since: Instant) -> Result<(), CniError>;

    /// Says whether ADD would be served now.
    ///
    /// # Errors
    /// [`NOT_AVAILABLE`](cni_plugin::spec::ErrorCode::NOT_AVAILABLE) and
    /// [`LIMITED_CONNECTIVITY`](cni_plugin::spec::ErrorCode::LIMITED_CONNECTIVITY), with what is missing.
    fn status(&self, request: &Request) -> Result<(), CniError>;
}
