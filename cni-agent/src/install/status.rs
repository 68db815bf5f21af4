//! How the installation is, as `weft status` shows it.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// `--cni-install no`: somebody else installs.
    #[default]
    Off,
    /// The node is not ready to be tested.
    Waiting,
    /// Plugin and configuration are in place.
    Installed,
    /// The last attempt failed.
    Failed,
}

/// The installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstallStatus {
    /// How far it is.
    pub stage: Stage,
    /// What it waits for, or why it failed, with the cure; empty when all is well.
    pub why: String,
    /// What the last self-test came to; empty before the first.
    pub self_test: String,
    /// Where the plugin belongs.
    pub plugin: PathBuf,
    /// What is wrong with the plugin that stands there now: none, or another than the agent's. Empty when nothing is.
    pub plugin_differs: String,
    /// The configuration for the runtime.
    pub conflist: PathBuf,
    /// Other configurations in the same directory, in the runtime's order.
    pub foreign: Vec<Foreign>,
}

/// A configuration that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The file.
    pub path: PathBuf,
    /// Whether the runtime comes upon it before ours, and so takes it in ours' stead.
    pub first: bool,
}
