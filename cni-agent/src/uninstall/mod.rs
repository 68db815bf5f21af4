//! `weft uninstall --node`: takes away what Weft has put on a node, and nothing else.
//!
//! What is ours is told by what only we make: the names and the one MAC address of our devices, priority and handle of our filters, our
//! directory of pins, the names of our files in the agent's directories. What has one of these names and is not like ours stays, and is
//! told of. The order is the reverse of an installation's: first the configuration, so that the runtime calls us no more.
mod find;
mod remove;
mod running;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf};

use serde::Serialize;

pub use self::{
    find::{FindError, find},
    remove::remove,
    running::{Alone, Running},
};
use crate::{netlink::rule::Rule, node::reserved::ReservedPorts};

/// Where the agent of this node keeps its things.
#[derive(Clone, Debug)]
pub struct Places {
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// `--cache-dir`.
    pub cache_dir: PathBuf,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--cni-bin-dir`.
    pub cni_bin_dir: PathBuf,
    /// `--cni-conf-dir`.
    pub cni_conf_dir: PathBuf,
    /// `--cni-conf-name`.
    pub cni_conf_name: String,
    /// The plugin that belongs to the programs themselves, and stays.
    pub own_plugin: Option<PathBuf>,
}

/// What is on the node.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Found {
    /// Ours, in the order in which it goes.
    pub items: Vec<Item>,
    /// Looks like ours and is not, and why.
    pub kept: Vec<String>,
}

/// Something of ours.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// What goes with it, if that is somebody's.
    pub note: String,
    #[serde(skip)]
    pub(super) way: Way,
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A network configuration for the container runtime.
    Configuration,
    /// The CNI plugin.
    Plugin,
    /// A pod's policy rules.
    Rules,
    /// A filter on somebody else's device.
    Filter,
    /// A clsact qdisc of our making on somebody else's device.
    Qdisc,
    /// A pod's device.
    PodDevice,
    /// A device of the node's own.
    Device,
    /// A route into one of our devices.
    Route,
    /// A permanent neighbour on one of our devices.
    Neighbour,
    /// A table of nftables.
    Table,
    /// Our part of a setting of the kernel's.
    Setting,
    /// A pinned map, program or link.
    Pin,
    /// A file of the agent's.
    File,
    /// A directory of the agent's, if nothing else is in it.
    Directory,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Configuration => "configuration",
            Self::Plugin => "plugin",
            Self::Rules => "rules",
            Self::Filter => "filter",
            Self::Qdisc => "qdisc",
            Self::PodDevice => "pod device",
            Self::Device => "device",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Table => "nftables",
            Self::Setting => "setting",
            Self::Pin => "pin",
            Self::File => "file",
            Self::Directory => "directory",
        })
    }
}

/// How an item goes.
#[derive(Clone, Debug)]
pub(super) enum Way {
    File(PathBuf),
    Directory(PathBuf),
    /// The device's interface index.
    Filter(u32),
    /// Interface index. Nothing of ours is in it by then.
    EmptyClsact(u32),
    /// Interface index.
    Device(u32),
    /// The pod's namespace, and our rules there.
    Rules(String, Vec<Rule>),
    /// With the device that it is on.
    WithDevice,
    /// Our only table of nftables.
    Table,
    /// The ports that we have reserved, and the note of them.
    Ports(ReservedPorts),
}
