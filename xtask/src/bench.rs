//! `cargo xtask bench`: builds the bench and becomes it.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    lab, reference,
    setup::{self, Need},
    workspace::Workspace,
};

/// Measure the datapath (`bench path`), the way out of the cluster (`bench masquerade`), CNI calls (`bench add`), the agent's start and
/// memory (`bench agent`), what flows cost (`bench ct`), what policies cost (`bench policy`), and what a large cluster is to an agent (`bench scale`).
///
/// `path` compares a veth pair, node to node, a bridge plugin's layout, a Flannel-like VXLAN layout and Weft on one node
/// and across nodes, interleaved, as ratios to the limit of the same run. `add` measures CNI ADD and DEL step by step, beside the
/// reference bridge plugin, which it builds; `masquerade` compares Weft's with the kernel's routing and a rule of nftables; `agent`
/// says how soon a restarted agent is ready; `ct` what share of a core looking for flows that are over takes, and what packets, new flows and
/// their memory cost; `policy` what a packet and a new flow cost with few policies and many; `scale` how soon an agent that is shown 50,000 pods and 2,000 policies is ready, how
/// soon a change is in the kernel, and memory. All arguments are those of
/// `weft-bench`; `--json` prints figures for machines, `--check` makes promises a gate. Needs root, and a quiet machine for
/// figures worth comparing.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments of weft-bench: `path`, `masquerade`, `add`, `agent`, `ct`, `policy` or `scale`, and their options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS", required = true)]
    args: Vec<String>,
}

/// The verb.
pub fn main(ws: &Workspace, args: &Args) -> Result<ExitCode> {
    let mut env = Vec::new();
    let compares = args.args.first().is_some_and(|verb| verb == "add");
    if compares && !lab::asks_only(&args.args) {
        setup::ensure(ws, &[Need::Reference])?;
        env.push((reference::DIRECTORY, reference::build(ws)?.into_os_string()));
    }
    lab::become_program(ws, "weft-bench", "the bench", &args.args, &env)
}
