//! The targets, by who reads the bytes.
pub mod agent;
pub mod plugin;
