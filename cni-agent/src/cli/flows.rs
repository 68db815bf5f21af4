//! `weft ct`: the flows that conntrack knows.
use std::{io::Write, net::IpAddr};

use clap::{Args, Subcommand};

use super::{Failure, Output, client::Client, escaped, show, show_value};
use crate::{
    api::types::{FlowCounts, FlowList, Flushed},
    conntrack::{Filter, Query, State, protocol},
};

/// Above the options.
pub(super) const ABOUT: &str = "\
Shows the flows that conntrack knows on this node, or removes some.

A flow is one connection, or what goes between two ports, both directions in one: its packets are judged when it begins, and let \
through from then on. Each stands in the family's table `settled` once both ends have spoken, before that in `new`. Removing one \
breaks nothing that is allowed: the flow's next packet is judged anew. Where a pod speaks to the world with an address of its node, the \
column AS shows the node's end. Filters choose: a flow is taken when it fits each of \
them, and one that is given several times is fit by any of its values.";

#[derive(Debug, Subcommand)]
pub(super) enum Flows {
    /// List flows: who opened them to where, how far they have come, how long they live without packets
    List {
        #[command(flatten)]
        filter: Filters,
        /// Show so many at most; what is left out is counted
        #[arg(long, value_name = "N", default_value_t = crate::api::FLOWS_LIMIT)]
        limit: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Count flows by table and state
    Count(Output),
    /// Remove flows: those that the filters take, or --all
    Flush {
        #[command(flatten)]
        filter: Filters,
        /// Remove all of them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct Filters {
    /// Only flows with this pod at either end; without a namespace, one of `default`
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Vec<String>,
    /// Only flows with this address at either end
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// Only flows with this port at either end, or this identifier of an ICMP echo
    #[arg(long, value_name = "N")]
    port: Vec<u16>,
    /// Only flows of this protocol: tcp, udp, sctp, icmp, icmpv6, or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Vec<u8>,
    /// Only flows in this state: unanswered, handshake, established, closing or closed
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Vec<State>,
    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
}
impl From<&Filters> for Filter {
    fn from(f: &Filters) -> Self {
        Self {
            pods: f.pod.clone(),
            addresses: f.address.clone(),
            ports: f.port.clone(),
            protocols: f.protocol.clone(),
            states: f.state.clone(),
            families: [(f.ipv4, 4), (f.ipv6, 6)].into_iter().filter(|(asked, _)| *asked).map(|(_, n)| n).collect(),
        }
    }
}

fn state(word: &str) -> Result<State, String> {
    State::from_name(word).ok_or_else(|| {
        let known: Vec<&str> = State::ALL.iter().map(|s| s.name()).collect();
        format!("a flow is {}", known.join(", "))
    })
}

impl Flows {
    pub(super) fn output(&self) -> &Output {
        match self {
            Self::Count(output) | Self::List { output, .. } | Self::Flush { output, .. } => output,
        }
    }
}

pub(super) async fn run(client: &Client, flows: &Flows, out: &mut dyn Write) -> Result<(), Failure> {
    match flows {
        Flows::List { filter, limit, output } => {
            let query = Query { limit: Some(*limit), ..Filter::from(filter).query() };
            super::show(client, output, &path(&query), |l: &FlowList| show::flows(l), out).await
        }
        Flows::Count(output) => {
            super::show(client, output, "/v1/flows/count", |c: &FlowCounts| show::flow_counts(c), out).await
        }
        Flows::Flush { filter, all, output } => {
            let filter = Filter::from(filter);
            if filter.takes_all() && !all {
                return Err(Failure::Usage("say which flows to remove by a filter, or --all".into()));
            }
            let flushed: Flushed = client.delete(&path(&Query { all: *all, ..filter.query() })).await?;
            Ok(show_value(output, &flushed, show::flushed, out)?)
        }
    }
}

/// The path with the query.
fn path(q: &Query) -> String {
    let limit = q.limit.map(|n| n.to_string()).unwrap_or_default();
    let all = if q.all { "true" } else { "" };
    let words = [
        ("pod", q.pod.as_str()),
        ("address", &q.address),
        ("port", &q.port),
        ("protocol", &q.protocol),
        ("state", &q.state),
        ("family", &q.family),
        ("limit", &limit),
        ("all", all),
    ];
    let given: Vec<String> = words
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    if given.is_empty() { "/v1/flows".into() } else { format!("/v1/flows?{}", given.join("&")) }
}
