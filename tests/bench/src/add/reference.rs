//! The reference plugins `bridge` and `host-local` of containernetworking/plugins, on a node of their own.
//!
//! IPv4 only and without masquerading, which is their fastest way to a pod that works: whatever else they are asked for
//! makes them slower.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::caller::Caller;
use crate::netns::Netns;

/// Where host-local keeps its addresses; the default is the machine's.
const DATA: &str = "/run/weft-bench";

/// The node, ready to be called. Dropping it removes it.
#[derive(Debug)]
pub struct Reference {
    /// How it is called.
    pub caller: Caller,
    _data: Data,
}

#[derive(Debug)]
struct Data(PathBuf);

impl Data {
    fn new() -> Result<Self> {
        let data = Self(DATA.into());
        // Of a run that was killed.
        data.remove().and_then(|()| fs::create_dir(&data.0)).with_context(|| format!("make {DATA} anew"))?;
        Ok(data)
    }

    fn remove(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("weft-bench: remove {}: {error}; the next run of weft-bench removes it", self.0.display());
        }
    }
}

impl Reference {
    /// Makes the node. `plugins` is the directory of the two programs.
    pub fn up(plugins: &Path) -> Result<Self> {
        for program in ["bridge", "host-local"] {
            if !plugins.join(program).is_file() {
                bail!(
                    "there is no {program} in {}: `cargo xtask bench add` builds it, and --no-reference does without",
                    plugins.display()
                );
            }
        }
        let data = Data::new()?;
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "weft-bench",
            "type": "bridge",
            "bridge": "wb0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": data.0,
                "ranges": [[{"subnet": "10.245.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        let node = Netns::create("reference")?;
        Ok(Self { caller: Caller { plugin: plugins.join("bridge"), config: config.to_string(), node }, _data: data })
    }
}
