//! The node agent. See `weft-agent --help`.
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use cni_agent::settings::{LogFormat, Settings};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    cni_agent::memory::one_heap();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On the last line and without a log's dress: it is what a person or the kubelet sees of a start that failed.
            eprintln!("weft-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let settings = Settings::load()?;
    // The filter was tried when the settings were read. The client of the Kubernetes API calls each server that does not answer an error; the source
    // tells of it once, and who wants to see more names this part of it.
    let filter = format!("kube_client::client::builder=off,{}", settings.log_level);
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    cni_agent::app::run(&settings)
}
