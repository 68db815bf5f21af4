//! Ctrl-C as a flag, so that a run that is stopped takes its namespaces down like any other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static STOPPED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Turns SIGINT, SIGTERM and SIGHUP into the flag that [`check`] reads. A handler, not a blocked mask: the processes
/// that we start inherit only the latter.
pub fn watch() -> Result<()> {
    let stopped = STOPPED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(stopped)).context("catch the signals that end a run")?;
    }
    Ok(())
}

/// Fails once a signal asked for the end.
pub fn check() -> Result<()> {
    if STOPPED.get().is_some_and(|stopped| stopped.load(Ordering::Relaxed)) {
        bail!("interrupted; everything was taken down");
    }
    Ok(())
}
