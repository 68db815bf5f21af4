//! The plugin, called by those who call CNI plugins in the world, and beside other plugins. Needs root, `cargo xtask build`, and
//! what `cargo xtask setup` installs; run it with `cargo xtask test --suite clients`.
//!
//! Every test has a machine of its own ([`machine`]), with a lab in it.
mod chained;
mod client;
mod cnitool;
mod containerd;
mod ipam;
mod machine;
mod podman;
mod traffic;
mod verbs;
