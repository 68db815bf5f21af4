//! Our own scenarios of ClusterNetworkPolicies (`tests/cluster/policies`), replayed on real pods by `weft-cluster replay`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{report::Case, said};
use crate::{
    cluster::{kept, programs},
    run,
    workspace::Workspace,
};

/// The module that has the kind's definition.
const API: &str = "sigs.k8s.io/network-policy-api";
/// Where in it: with what is experimental, as are nodes and names for peers.
const DEFINITION: &str = "config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml";
/// For one that hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// The scenarios, and the module beside them that pins the kind.
fn directory(ws: &Workspace) -> PathBuf {
    programs::module(ws).join("policies")
}

/// The version of the kind's definition.
pub fn version(ws: &Workspace) -> Result<String> {
    let text = fs::read_to_string(directory(ws).join("go.mod")).context("read tests/cluster/policies/go.mod")?;
    kept::version_of(API, &text).map(str::to_owned)
}

/// Replays all of them. `start` is `weft-cluster replay`, without arguments. What it says goes to `log`.
pub fn run(ws: &Workspace, mut start: Command, log: &Path) -> Result<Vec<Case>> {
    let directory = directory(ws);
    let said = run::capture(&mut kept::go(ws, &directory, &["mod", "download", "-json", API]));
    let said =
        said.context("get the definition of ClusterNetworkPolicy (from the Go proxy: check GOPROXY and the network)")?;
    let module: serde_json::Value = serde_json::from_str(&said).context("read what go says of a module")?;
    let definition = Path::new(module["Dir"].as_str().context("go names no directory")?).join(DEFINITION);
    let listed = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut scenarios = listed.map(|e| Ok(e?.path())).collect::<Result<Vec<PathBuf>>>()?;
    scenarios.retain(|file| file.extension().is_some_and(|e| e == "yaml"));
    scenarios.sort();
    said::run(start.arg("--definition").arg(definition).args(scenarios), LIMIT, &log.join("replay.log"))
}
