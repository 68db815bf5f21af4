//! Weft's node agent and the `weft` command.
//!
//! One direction of flow: [`sources`] and [`kube`] (the only module of the agent that knows the Kubernetes API), [`node::watch`] and [`cni`] requests change [`tables`]; [`compile`] turns rows into map entries and
//! routes; [`reconcile`] alone makes the kernel follow them, through [`datapath`] (the only module that knows aya) and [`netlink`]
//! (the only one that knows rtnetlink); [`api`], [`metrics`] and [`cli`] show both. [`conntrack`] takes
//! out of the kernel what the programs have entered there and is over. [`policy`] compiles policies, which [`reconcile`] writes. [`memory`] keeps all of it small. [`app`] wires the parts.

pub mod api;
pub mod app;
pub mod audit;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod conntrack;
pub mod datapath;
pub mod drift;
pub mod endpoint;
pub mod fault;
pub mod identity;
mod inspect;
pub mod install;
pub mod ipam;
pub mod kube;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod node;
pub mod observe;
pub mod policy;
pub mod ports;
pub mod reconcile;
pub mod settings;
pub mod sources;
pub mod tables;
pub mod uninstall;

/// An error with its causes, in one line.
pub fn error_chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A transparent error shows its cause's text as its own.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
