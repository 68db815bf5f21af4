//! Flows as text for people.
use std::net::IpAddr;

use super::{count, end, or, protocol, span, text};
use crate::{
    api::types::{ConntrackStatus, FlowCounts, FlowList, Flushed, MasqueradeStatus, Status, TableFill},
    cli::table::Table,
};

pub(in crate::cli) fn flows(list: &FlowList) -> String {
    let mut table = Table::new(["PROTOCOL", "OPENED BY", "POD", "AS", "TO", "POD", "STATE", ">LEFT", "TABLE"]);
    for f in &list.flows {
        table.row([
            protocol(f.protocol),
            at(f.echo_id, f.source, f.source_port),
            text(f.source_pod.as_ref()),
            f.masqueraded_as.as_ref().map(|n| at(n.echo_id, n.address, n.port)).unwrap_or_default(),
            at(f.echo_id, f.destination, f.destination_port),
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
fn at(echo_id: Option<u16>, address: IpAddr, port: Option<u16>) -> String {
    match echo_id {
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
    let mut lines: Vec<_> = c.tables.iter().map(|t| ("Flows", full(t))).collect();
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

/// The same of masquerade.
pub(super) fn masquerade(m: &MasqueradeStatus) -> Vec<(&'static str, String)> {
    const HEAD: &str = "Masquerade";
    let mut lines = Vec::new();
    match &m.ports {
        None => lines.push((HEAD, "off (--masquerade no): pods leave with their own addresses".to_owned())),
        Some(ports) if m.leaves.is_empty() => {
            lines.push((HEAD, format!("ports {ports}, but by no device yet: pods leave with their own addresses")));
        }
        Some(ports) => {
            lines.push((HEAD, format!("ports {ports}")));
            let by = |(device, addresses): (&String, &Vec<IpAddr>)| {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                (HEAD, format!("by {device} as {}", addresses.join(", ")))
            };
            lines.extend(m.leaves.iter().map(by));
        }
    }
    if m.ports.is_some() || m.tables.iter().any(|t| t.flows > 0) {
        lines.extend(m.tables.iter().map(|t| (HEAD, full(t))));
    }
    let packets = |n: u64| if n == 1 { "1 packet was".to_owned() } else { format!("{n} packets were") };
    for (n, why) in [
        (m.exhausted, "every port that was tried was in use towards its destination; --masquerade-ports gives more"),
        (m.full, "the table was full"),
        (m.quota, "the pod had its share of the table already; `weft ct list` shows whose flows they are"),
    ] {
        if n > 0 {
            lines.push(("", format!("! {} dropped: {why}", packets(n))));
        }
    }
    lines
}

/// The same of Services that the node's stack serves.
pub(super) fn services(s: &Status) -> Vec<(&'static str, String)> {
    const HEAD: &str = "Services";
    let of = &s.services;
    if of.cidrs.is_empty() {
        return Vec::new();
    }
    let cidrs: Vec<String> = of.cidrs.iter().map(ToString::to_string).collect();
    let to_hosts = match (&of.problem, of.masqueraded, &of.ports) {
        (Some(problem), ..) => {
            ("", format!("! other hosts than pods behind them do not answer: {problem}; `weft doctor` has the cure"))
        }
        (None, true, Some(ports)) => (HEAD, format!("to other hosts than pods as the node, ports {ports}")),
        (None, true, None) => (HEAD, "to other hosts than pods as the node".to_owned()),
        (None, false, _) if s.masquerade.ports.is_none() => {
            (HEAD, "to other hosts than pods with the pod's own address".to_owned())
        }
        (None, false, _) => (HEAD, "to other hosts than pods not yet as the node".to_owned()),
    };
    vec![(HEAD, format!("{}, by the node's stack", cidrs.join(", "))), to_hosts]
}

fn full(t: &TableFill) -> String {
    format!("{}: {} of {}", t.family, t.flows, t.size)
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}
