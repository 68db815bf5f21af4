//! What comes from outside, each as a function of bytes that must hold whatever the bytes are: nothing panics, what is wrong
//! is refused with cause and cure, and what is refused has changed nothing.
//!
//! `cargo xtask fuzz` searches for bytes that break one, guided by coverage; `cargo test -p fuzz` replays what is stored in
//! `corpus/`. A bug that was found is kept there as the input that showed it.
#![forbid(unsafe_code)]

mod targets;
mod world;

use std::path::PathBuf;

/// One kind of input.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its directory in `corpus/`.
    pub name: &'static str,
    /// What the bytes are.
    pub what: &'static str,
    /// Panics where the input breaks a promise.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "config",
        what: "a network configuration on the plugin's standard input",
        run: targets::plugin::config,
    },
    Target { name: "environment", what: "the variables of a CNI call", run: targets::plugin::environment },
    Target { name: "ipam", what: "what an IPAM plugin prints", run: targets::plugin::ipam },
    Target { name: "answer", what: "what the agent answers on its socket", run: targets::plugin::answer },
    Target { name: "request", what: "what comes in on the agent's socket", run: targets::agent::request },
    Target { name: "tombstone", what: "a tombstone that the agent finds", run: targets::agent::tombstone },
    Target { name: "record", what: "an endpoint's record that the agent finds", run: targets::agent::record },
    Target { name: "manifest", what: "a manifest that the agent finds", run: targets::agent::manifest },
    Target { name: "policy", what: "policies, one after another, as the API has them", run: targets::agent::policy },
];

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Where its inputs are stored.
    pub fn corpus(&self) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "corpus", self.name].iter().collect()
    }
}
