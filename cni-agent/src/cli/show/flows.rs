//! Flows as text for people.
use std::net::IpAddr;

use super::{count, end, or, protocol, span, text};
use crate::{
    api::types::{ConntrackStatus, FlowCounts, FlowList, FlowStatus, Flushed},
    cli::table::Table,
};

pub(in crate::cli) fn flows(list: &FlowList) -> String {
    let mut table = Table::new(["PROTOCOL", "OPENED BY", "POD", "TO", "POD", "STATE", ">LEFT", "TABLE"]);
    for f in &list.flows {
        table.row([
            protocol(f.protocol),
            at(f, f.source, f.source_port),
            text(f.source_pod.as_ref()),
            at(f, f.destination, f.destination_port),
            text(f.destination_pod.as_ref()),
            f.state.clone(),
            if f.seconds_left == 0 { "over".into() } else { span(f.seconds_left) },
            f.table.clone(),
        ]);
    }
    let mut all = or(table, "No flow was found.\n");
    let shown = list.flows.len() as u64;
    if shown < list.matched {
        all.push_str(&format!("{} more: narrow it down by filters, or raise --limit.\n", list.matched - shown));
    }
    all
}

/// An end; of an echo with the identifier in the place of a port.
fn at(f: &FlowStatus, address: IpAddr, port: Option<u16>) -> String {
    match f.echo_id {
        Some(id) => format!("{address} id {id}"),
        None => end(address, port),
    }
}

pub(in crate::cli) fn flow_counts(c: &FlowCounts) -> String {
    let mut table = Table::new(["FAMILY", "TABLE", ">FLOWS", ">SIZE", "STATES"]);
    for t in &c.tables {
        let states: Vec<String> = t.states.iter().map(|(state, n)| format!("{state} {n}")).collect();
        table.row([t.family.clone(), t.table.clone(), t.flows.to_string(), t.size.to_string(), states.join(", ")]);
    }
    or(table, "The agent has no tables of flows.\n")
}

pub(in crate::cli) fn flushed(f: &Flushed) -> String {
    format!("removed {}\n", count(usize::try_from(f.flushed).unwrap_or(usize::MAX), "flow"))
}

/// Lines of the status.
pub(super) fn status(c: &ConntrackStatus) -> Vec<(&'static str, String)> {
    let full = |t: &crate::api::types::TableFill| format!("{}: {} of {}", t.family, t.flows, t.size);
    let mut lines: Vec<_> = c.tables.iter().map(|t| ("Flows", full(t))).collect();
    let times = |n: u64| if n == 1 { "once".to_owned() } else { format!("{n} times") };
    if c.full > 0 {
        let text = format!("! {} a flow found its table full, and may be forgotten and judged again", times(c.full));
        lines.push(("", text));
    }
    if c.quota > 0 {
        lines.push((
            "",
            format!(
                "! {} a pod had its share of the table already; `weft ct list` shows whose flows they are",
                times(c.quota)
            ),
        ));
    }
    lines
}
