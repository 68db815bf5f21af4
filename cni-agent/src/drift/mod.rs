//! What the kernel holds, compared with what it ought to hold, every few minutes and when somebody asks.
//!
//! The reconciler's thread compares, between two passes: it alone writes maps, routes and hooks, so of those everything that differs is
//! somebody else's doing. What other threads make (pods' devices), or what the kernel changes by itself before an event tells of it, counts only
//! if it is still so in a second look, against desired state as it is then. What differs is made right, counted, and logged with what was there.
pub mod compare;
pub mod kernel;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::tables::Tables;

/// What can drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An entry of a BPF map.
    Map,
    /// One of the node's devices of ours: itself, and its attributes.
    Device,
    /// The node's end of a pod's pair.
    PodDevice,
    /// A permanent neighbour.
    Neighbour,
    /// A program at its place: a TCX link, a filter, the filter on the pods' block.
    Hook,
    /// A route into `weft_host`.
    Route,
    /// A policy rule in a pod.
    Rule,
    /// Weft's table of nftables.
    Nftables,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Map => "map",
            Self::Device => "device",
            Self::PodDevice => "pod-device",
            Self::Neighbour => "neighbour",
            Self::Hook => "hook",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Nftables => "nftables",
        })
    }
}

/// Something that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// What was there.
    pub was: String,
    /// What ought to be.
    pub should: String,
    /// Why it could not be made right; empty: it is.
    #[serde(default)]
    pub failed: String,
}

impl Item {
    /// Not repaired yet.
    pub fn new(kind: Kind, name: impl Into<String>, was: impl Into<String>, should: impl Into<String>) -> Self {
        Self { kind, name: name.into(), was: was.into(), should: should.into(), failed: String::new() }
    }
}

/// `GET /v1/verify`: what a comparison came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// What differed. Empty when the kernel holds what it should.
    pub items: Vec<Item>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
}

/// How often each kind has drifted since the agent's start.
pub type Totals = BTreeMap<Kind, u64>;

/// Questions to the reconciler's thread.
#[derive(Debug)]
pub struct Requests {
    tables: Arc<Tables>,
    waiting: Mutex<Vec<mpsc::Sender<Verified>>>,
}

impl Requests {
    /// The tables wake the thread.
    pub fn new(tables: Arc<Tables>) -> Self {
        Self { tables, waiting: Mutex::default() }
    }

    /// Has everything compared now; `None` if that takes longer than `patience`.
    pub fn ask(&self, patience: Duration) -> Option<Verified> {
        let (sender, answer) = mpsc::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        self.tables.kick();
        answer.recv_timeout(patience).ok()
    }

    /// Those who wait for an answer.
    pub fn take(&self) -> Vec<mpsc::Sender<Verified>> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
