//! The CNI project's own programs, in the versions that tests/clients/reference pins: what Weft's plugin is tested with and
//! compared against.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};

use crate::{run, workspace::Workspace};

/// Names the directory of these programs to tests and benchmarks.
pub const DIRECTORY: &str = "WEFT_CNI_REFERENCE";

/// The programs' Go packages; each program is called like the last part.
const PACKAGES: [&str; 9] = [
    // Ours, of the same library: calls GC with a list, which cnitool does not.
    "./libcni-gc",
    "github.com/containernetworking/cni/cnitool",
    "github.com/containernetworking/plugins/plugins/ipam/dhcp",
    "github.com/containernetworking/plugins/plugins/ipam/host-local",
    "github.com/containernetworking/plugins/plugins/ipam/static",
    "github.com/containernetworking/plugins/plugins/main/bridge",
    "github.com/containernetworking/plugins/plugins/main/loopback",
    "github.com/containernetworking/plugins/plugins/meta/bandwidth",
    "github.com/containernetworking/plugins/plugins/meta/portmap",
];

/// Builds them, as far as they are not of this version already, and gives their directory.
pub fn build(ws: &Workspace) -> Result<PathBuf> {
    let directory = ws.target.join("tools/cni");
    let mut to = directory.clone().into_os_string();
    // With the slash at its end Go takes it for a directory, also when it is not there yet.
    to.push("/");
    let mut command = ws.command("go");
    command
        .current_dir(ws.root.join("tests/clients/reference"))
        .env("CGO_ENABLED", "0")
        .args(["build", "-mod=readonly", "-trimpath", "-o"])
        .arg(to)
        .args(PACKAGES);
    run::capture(&mut command).context(
        "build the CNI project's own programs (the modules come from the Go proxy: check GOPROXY and the network)",
    )?;
    let missing = PACKAGES.iter().filter_map(|p| p.rsplit('/').next()).find(|name| !directory.join(name).exists());
    match missing {
        Some(name) => Err(anyhow!("go built {name}, but it is not in {}", directory.display())),
        None => Ok(directory),
    }
}
