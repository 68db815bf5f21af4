//! Installation: the plugin into the runtime's directory of plugins, and last of all the configuration that makes the runtime call it.
//!
//! The order is what a runtime may rely on: when the configuration stands there, the plugin does too, and packets have been
//! through a probe that was wired like a pod ([`SelfTest`]). Both files come whole, by renaming, and only if they differ.
//! The configuration's name is ours: what somebody else writes into that file is replaced, with a warning. Files of other
//! names are reported ([`configs`]) and never touched.
//!
//! A configuration that stands there stays, whatever fails later: without it the runtime would take the next one, and wire pods by
//! another plugin. CNI STATUS and ADD say what is wrong.
pub mod configs;
mod conflist;
mod files;
mod installer;
mod self_test;
pub mod status;
#[cfg(test)]
mod tests;

pub(crate) use self::files::{place, temporary};
pub use self::{
    installer::{Config, Installer, Running},
    self_test::{CONTAINER as SELF_TEST, Probe, SelfTest, SelfTestError, Tested},
};
