//! `weft explain`: why a flow may pass on this node, or may not.
use std::io::Write;

use clap::Args;

use super::{Failure, Output, client::Client, escaped, show};
use crate::{
    api::types::{ExplainedFlow, Explanation, FlowStatus},
    policy::{explain::text, verdicts::case::Probe},
};

/// Above the options.
pub(super) const ABOUT: &str = "\
Says what the policies on this node make of a new flow, and why.

Both ends are judged as a packet would be: by the look-up that the BPF programs are built from, in the maps that they read, with the \
policy sets that the pods' interfaces have now. Each end that is a pod of this node says whether it lets the flow pass (the source pod by \
its egress policies, the destination pod by its ingress policies), which rule decides, who the peer is to policies, and what every other \
rule says of the flow. For an end that denies, it is said as what its packets are dropped, named as `weft observe` names it, which policies \
isolate the pod, and which rule would allow the flow; the same of what only passes because policies are in audit mode (annotation \
`weft.dev/mode: audit`). A pod of another node is judged there: its name is told. Nothing is sent and nothing is changed.

A flow that is known already is not judged anew at each packet, but once after each change of policy: flows with a verdict from before \
are listed.";

/// Below them.
pub(super) const AFTER: &str = "\
Ends:
  NAMESPACE/NAME  a pod; with hostNetwork, its node
  NAME            a node: from this node itself, what its own stack sends
  IP              an address: of a pod, of a node, or any other
  With names, each family that both ends have is judged. Of a Service name a pod behind it: policies
  are asked after its address has been translated.

Exit status:
  0  it is explained, whatever the verdict: `allowed` in JSON
  1  the agent does not know one of the ends, or could not answer
  2  wrong usage, or the agent does not run

Examples:
  weft explain shop/web shop/db TCP/5432
  weft explain 203.0.113.9 shop/web TCP/80 --json
  weft explain shop/web 192.0.2.53 UDP/53
  weft explain node-1 shop/web ICMP";

#[derive(Clone, Debug, Args)]
pub(super) struct Explain {
    /// Who opens the flow: a pod as NAMESPACE/NAME, a node or an address
    from: String,
    /// To whom: likewise
    to: String,
    /// TCP/PORT, UDP/PORT, SCTP/PORT, with the destination port; or ICMP
    #[arg(value_name = "PROTO/PORT", value_parser = probe)]
    probe: Probe,
    #[command(flatten)]
    pub(super) output: Output,
}

/// In any case; an echo has no port.
fn probe(word: &str) -> Result<Probe, String> {
    match word.to_ascii_uppercase() {
        word if word == "ICMP" => "ICMP/0".parse(),
        word => word.parse(),
    }
}

pub(super) async fn run(client: &Client, e: &Explain, out: &mut dyn Write) -> Result<(), Failure> {
    let (from, to, probe) = (escaped(&e.from), escaped(&e.to), escaped(&e.probe.to_string()));
    super::show(client, &e.output, &format!("/v1/explain?from={from}&to={to}&probe={probe}"), explanation, out).await
}

fn explanation(e: &Explanation) -> String {
    let mut all: Vec<String> = e.flows.iter().map(|f| flow(e, f)).collect();
    all.extend(e.problem.iter().map(|problem| format!("! the maps are not as the objects say: {problem}\n")));
    all.join("\n")
}

fn flow(e: &Explanation, f: &ExplainedFlow) -> String {
    let mut text = text(&format!("{} -> {} {}", f.from, f.to, e.probe), &f.sides);
    for older in &f.older {
        let FlowStatus { state, epoch, .. } = older;
        let (from, to) =
            (show::end(older.source, older.source_port), show::end(older.destination, older.destination_port));
        text += &format!(
            "known: {from} > {to}, {state}: judged in epoch {epoch}, and again in {} at its next packet\n",
            e.epoch
        );
    }
    text
}
