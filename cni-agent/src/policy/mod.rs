//! Policy: from the cluster's objects to the entries of the policy maps.
//!
//! ```text
//! objects ──▶ store ──▶ engine ──▶ changes ──▶ (reconciler) ──▶ maps ──▶ the look-up of cni-ebpf
//! (parsed)   (events)   classes: which addresses no policy tells apart → identity
//!                       sets: which policies hold for a pod → policy set
//!                       flatten: one decision for each port → rule set
//! ```
//!
//! `weft policy verdicts` goes the same way, with [`image::Image`] in the kernel's place ([`verdicts`]).
pub mod addresses;
pub mod change;
pub mod classes;
pub mod cookies;
pub mod criteria;
pub mod engine;
pub mod explain;
pub mod flatten;
pub mod image;
pub mod labels;
pub mod mentions;
pub mod objects;
pub mod ports;
pub mod rulesets;
pub mod senders;
pub mod sets;
pub mod store;
#[cfg(test)]
mod tests;
pub mod verdicts;

pub use change::Change;
pub use engine::Engine;
pub use image::Image;
