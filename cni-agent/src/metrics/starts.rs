//! How often an agent has started on this node since it booted: a number in the run directory, which is a tmpfs.
use std::{fs, path::Path};

/// Counts this start. What cannot be read or written begins anew: it is a number for graphs.
pub fn count(run_dir: &Path) -> u64 {
    let path = run_dir.join("starts");
    let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let now = before.unwrap_or(0).saturating_add(1);
    if let Err(error) = fs::write(&path, format!("{now}\n")) {
        tracing::debug!(%error, path = %path.display(), "the number of starts is not kept");
    }
    now
}
