//! `weft status` of a cluster: a line for each node.
use std::{collections::BTreeMap, io::Write};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;

use super::{Agent, Cluster, Failure, RemoteError, each::AT_ONCE};
use crate::{
    api::types::Status,
    cli::{Output, show, table::Table},
};

/// What one node says.
#[derive(Debug, Serialize)]
struct Row {
    node: String,
    /// The agent's pod.
    pod: Option<String>,
    restarts: u64,
    /// Why there is no status.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// As the agent says it, with what this version does not know of.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
}

pub(super) async fn run(cluster: &Cluster, output: &Output, out: &mut dyn Write) -> Result<(), Failure> {
    let agents = cluster.agents(&output.node).await?;
    let asked = agents.iter().map(async |agent| (agent, ask(cluster, agent).await));
    let rows =
        stream::iter(asked).buffered(AT_ONCE).map(|(agent, answer)| row(agent, answer)).collect::<Vec<_>>().await;
    let mut rows: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.node.clone(), row)).collect();
    if output.node.is_empty() {
        // Nodes that no agent is on.
        for node in cluster.get("/api/v1/nodes").await?["items"].as_array().into_iter().flatten() {
            let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let error = Some("no agent of Weft is on this node: does the DaemonSet select it?".to_owned());
            let none = Row { node: name.clone(), pod: None, restarts: 0, error, status: None };
            rows.entry(name).or_insert(none);
        }
    }
    if output.json {
        writeln!(out, "{:#}", serde_json::to_value(rows.values().collect::<Vec<_>>()).unwrap_or_default())?;
    } else {
        out.write_all(text(&cluster.name, rows.values()).as_bytes())?;
    }
    out.flush()?;
    let well = |row: &Row| row.status.as_ref().is_some_and(|s| s["not_ready"].is_null());
    if rows.values().all(well) { Ok(()) } else { Err(Failure::Unwell) }
}

/// An agent's status, as it says it.
pub(super) async fn ask(cluster: &Cluster, agent: &Agent) -> Result<Value, RemoteError> {
    let said = cluster.weft(agent, &["status", "--json"]).await?;
    serde_json::from_str(&said.stdout).map_err(|_| RemoteError::Exec {
        pod: agent.pod.clone(),
        cause: if said.stderr.is_empty() { "its answer is no JSON".into() } else { said.stderr.trim().to_owned() },
    })
}

fn row(agent: &Agent, answer: Result<Value, RemoteError>) -> Row {
    let (status, error) = match answer {
        Ok(status) => (Some(status), None),
        Err(e) => (None, Some(e.to_string())),
    };
    Row { node: agent.node.clone(), pod: Some(agent.pod.clone()), restarts: agent.restarts, error, status }
}

fn text<'a>(cluster: &str, rows: impl Iterator<Item = &'a Row> + Clone) -> String {
    let mut table = Table::new([
        "NODE",
        "READY",
        "VERSION",
        "POD CIDRS",
        "TUNNEL",
        ">NODES",
        ">PODS",
        ">ENDPOINTS",
        ">POLICIES",
        "KERNEL",
        ">DROPS",
        ">RESTARTS",
        "UP",
    ]);
    let mut problems = String::new();
    for row in rows.clone() {
        // One of another version may lack something.
        let status = row.status.as_ref().map(|s| serde_json::from_value::<Status>(s.clone()));
        match status {
            Some(Ok(s)) => {
                table.row(cells(row, &s));
                let why = s.not_ready.iter().map(|why| format!("not ready: {why}"));
                let of_sources = s.sources.iter().flat_map(|source| source.problems.clone());
                let failed = s.reconciler.failed.iter().map(|f| format!("{}: {}", f.row, f.error));
                let refused = s
                    .datapath
                    .refused
                    .iter()
                    .map(|_| "an earlier agent's programs run; `weft status --node` says why".to_owned());
                let policy = s.policy.problem.iter().cloned();
                for problem in why.chain(of_sources).chain(failed).chain(refused).chain(policy) {
                    problems.push_str(&format!("! {}: {problem}\n", row.node));
                }
            }
            Some(Err(e)) => {
                table.row(blank(row, "yes"));
                problems.push_str(&format!("! {}: its status is of another version: {e}\n", row.node));
            }
            None => {
                table.row(blank(row, "no"));
                let error = row.error.as_deref().unwrap_or_default();
                problems.push_str(&format!("! {}: {error}\n", row.node));
            }
        }
    }
    let count = match rows.count() {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    };
    format!("Cluster {cluster}: {count}\n{table}{problems}")
}

fn cells(row: &Row, s: &Status) -> [String; 13] {
    let r = &s.reconciler;
    let kernel = match (r.pending, r.failed.len()) {
        (0, 0) => "in step".to_owned(),
        (waiting, failing) => format!("{waiting} waiting, {failing} failing"),
    };
    let cidrs: Vec<String> = s.addresses.iter().map(|range| range.cidr.to_string()).collect();
    [
        row.node.clone(),
        if s.not_ready.is_none() { "yes".into() } else { "no".into() },
        s.version.clone(),
        cidrs.join(","),
        s.datapath.tunnel_address.map(|a| a.to_string()).unwrap_or_default(),
        s.nodes.to_string(),
        s.pods.to_string(),
        s.endpoints.to_string(),
        s.policy.policies.to_string(),
        kernel,
        s.dropped_packets.to_string(),
        row.restarts.to_string(),
        show::span(s.uptime_seconds),
    ]
}

fn blank(row: &Row, ready: &str) -> [String; 13] {
    let mut cells: [String; 13] = Default::default();
    cells[0] = row.node.clone();
    cells[1] = ready.to_owned();
    cells[11] = row.restarts.to_string();
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_is_a_line_and_what_is_wrong_stands_below() {
        let status = |not_ready: Option<&str>| Status {
            node: "node-1".into(),
            version: "0.1.0".into(),
            not_ready: not_ready.map(str::to_owned),
            dropped_packets: 7,
            ..Status::default()
        };
        let agent = |node: &str| Agent { node: node.into(), pod: format!("weft-{node}"), ..Agent::default() };
        let rows = [
            row(&agent("node-1"), Ok(serde_json::to_value(status(None)).unwrap())),
            row(&agent("node-2"), Ok(serde_json::to_value(status(Some("no podCIDRs"))).unwrap())),
            row(&agent("node-3"), Err(RemoteError::Exec { pod: "weft-node-3".into(), cause: "it hangs".into() })),
            row(&agent("node-4"), Ok(serde_json::json!({"node": "node-4"}))),
        ];
        let text = text("https://192.0.2.1", rows.iter());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Cluster https://192.0.2.1: 4 nodes");
        for (line, begin) in lines[2..6].iter().zip(["node-1  yes", "node-2  no", "node-3  no", "node-4  yes"]) {
            assert!(line.starts_with(begin), "{line}");
        }
        assert_eq!(lines[6], "! node-2: not ready: no podCIDRs");
        assert_eq!(lines[7], "! node-3: run weft in pod weft-node-3: it hangs");
        assert!(lines[8].starts_with("! node-4: its status is of another version"), "{text}");
    }
}
