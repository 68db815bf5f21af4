//! `weft uninstall --node`: the list of what goes, and its going.
use std::{io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::Failure;
use crate::{
    error_chain,
    install::configs,
    netlink::Socket,
    uninstall::{self, Alone, Found, Places},
};

/// Above the options.
pub(super) const ABOUT: &str = "\
Removes from this node what Weft has put there, and nothing else: the network configuration and the plugin that the container \
runtime uses, BPF maps, programs and links, filters, devices with their routes and neighbours, its table of nftables, endpoint records, sockets. What is \
others' stays: their filters and the qdiscs that they are in, devices and files of other names, network namespaces. The manifests \
and the programs themselves stay too.

Pods that Weft has connected lose their network: move them away first. Without an agent's consent nothing is removed: one that runs on this \
node has to be stopped before. Where the agent was given other directories than the built-in ones, say so here as well, by flag or \
environment.";

/// Behind the options.
pub(super) const AFTER: &str = "\
Exit status:
  0  nothing of Weft is on the node any more; with --dry-run, the list is whole
  1  an agent runs, something could not be looked at, or something stays
  2  wrong usage

Examples:
  weft uninstall --node --dry-run
  weft uninstall --node";

/// Its options.
#[derive(Debug, Args)]
pub(super) struct Uninstall {
    /// From this node: there is nothing else that it could be removed from
    #[arg(long, required = true)]
    node: bool,
    /// List what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Even if an agent seems to run
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The agent's --state-dir
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", default_value = "/run/weft/state")]
    state_dir: PathBuf,
    /// The agent's --run-dir
    #[arg(long, env = "WEFT_RUN_DIR", value_name = "DIR", default_value = "/run/weft")]
    run_dir: PathBuf,
    /// The agent's --cache-dir
    #[arg(long, env = "WEFT_CACHE_DIR", value_name = "DIR", default_value = "/var/lib/weft")]
    cache_dir: PathBuf,
    /// The agent's --bpffs
    #[arg(long, env = "WEFT_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The agent's --cni-bin-dir
    #[arg(long, env = "WEFT_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The agent's --cni-conf-dir
    #[arg(long, env = "WEFT_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The agent's --cni-conf-name
    #[arg(long, env = "WEFT_CNI_CONF_NAME", value_name = "FILE", default_value = "05-weft.conflist")]
    cni_conf_name: String,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    dry_run: bool,
    #[serde(flatten)]
    found: &'a Found,
    /// What could not be removed, and why.
    stays: &'a [String],
}

/// Lists, and removes unless asked not to.
pub(super) fn run(options: &Uninstall, out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| Failure::Uninstall(error_chain(e));
    let places = options.places();
    // Held until all is gone.
    let _alone = match Alone::on(&options.run_dir) {
        Err(running) if !options.dry_run && !options.force => return Err(failed(&running)),
        other => other.ok(),
    };
    let mut socket = Socket::open().map_err(|e| failed(&e))?;
    let found = uninstall::find(&places, &mut socket).map_err(|e| failed(&e))?;
    let stays = if options.dry_run { Vec::new() } else { uninstall::remove(&found, &mut socket) };
    if options.json {
        let report = Report { dry_run: options.dry_run, found: &found, stays: &stays };
        writeln!(out, "{:#}", serde_json::to_value(&report).unwrap_or_default())?;
    } else {
        out.write_all(text(&found, &stays, options.dry_run).as_bytes())?;
    }
    out.flush()?;
    if stays.is_empty() { Ok(()) } else { Err(Failure::Unwell) }
}

impl Uninstall {
    fn places(&self) -> Places {
        Places {
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            cache_dir: self.cache_dir.clone(),
            bpffs: self.bpffs.clone(),
            cni_bin_dir: self.cni_bin_dir.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            cni_conf_name: self.cni_conf_name.clone(),
            own_plugin: std::env::current_exe().ok().map(|own| own.with_file_name(configs::PLUGIN)),
        }
    }
}

fn text(found: &Found, stays: &[String], dry_run: bool) -> String {
    let head = match (found.items.is_empty(), dry_run) {
        (true, _) => "Nothing of Weft is on this node.\n",
        (false, true) => "Would be removed from this node:\n",
        (false, false) => "Removed from this node:\n",
    };
    let mut text = head.to_owned();
    for item in &found.items {
        let note = if item.note.is_empty() { String::new() } else { format!("  ({})", item.note) };
        text.push_str(&format!("  {:<14}{}{note}\n", item.kind, item.name));
    }
    let mut list = |head: &str, lines: &[String]| {
        if !lines.is_empty() {
            text.push_str(head);
            lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    };
    list("Left alone:\n", &found.kept);
    list("Could not be removed:\n", stays);
    text
}
