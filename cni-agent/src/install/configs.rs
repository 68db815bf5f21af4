//! The network configurations that a runtime finds in its directory.
use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Our plugin, as a configuration names it.
pub const PLUGIN: &str = "weft-cni";
/// The endings that libcni reads.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// A file in the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// The plugins that it chains, in order; none if it cannot be read.
    pub plugins: Vec<String>,
}

impl ConfigFile {
    /// Whether it calls our plugin.
    pub fn is_ours(&self) -> bool {
        self.plugins.iter().any(|p| p == PLUGIN)
    }

    /// Whether it has the plugin `name` somewhere behind ours.
    pub fn has_behind_ours(&self, name: &str) -> bool {
        self.plugins.iter().skip_while(|p| *p != PLUGIN).any(|p| p == name)
    }
}

/// The configurations in `directory` in the order in which runtimes take them: by name, the first one counts. None if it cannot be
/// read.
pub fn list(directory: &Path) -> Vec<ConfigFile> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| ENDINGS.iter().any(|ending| e == *ending)));
    paths.sort();
    paths.into_iter().map(|path| ConfigFile { plugins: plugins(&path), path }).collect()
}

fn plugins(path: &Path) -> Vec<String> {
    #[derive(Deserialize)]
    struct Plugin {
        #[serde(rename = "type", default)]
        kind: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum File {
        List { plugins: Vec<Plugin> },
        One(Plugin),
    }
    let read = fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    match read {
        Some(File::List { plugins }) => plugins.into_iter().map(|p| p.kind).collect(),
        Some(File::One(plugin)) => vec![plugin.kind],
        None => Vec::new(),
    }
}
