//! `weft sysdump`: one archive of what somebody needs who is to find out what is wrong with a cluster, and nothing that must stay secret.
mod archive;
mod trim;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::Value;

use self::archive::Archive;
use super::{Agent, Cluster, Failure, agents, each::AT_ONCE};
use crate::cli::Output;

/// Above the options.
pub(in crate::cli) const ABOUT: &str = "\
Writes one archive of what somebody needs who is to find out what is wrong.

Of each node: what the agent says of itself, endpoints, nodes, pods, addresses, policies, drops, flows, all maps, and the agent's log, \
also that of the agent before. Of the cluster: its version, nodes, namespaces, pods, policies, and Weft's own DaemonSet, settings and events. \
What cannot be had is listed in problems.txt, and the rest is there.

No secrets: Secrets are not asked for; of pods only what a network looks at is taken, so no environment, arguments or annotations; \
tokens and private keys are taken out of every text. Addresses, names and labels are in it.";

/// As many flows of a node.
const FLOWS: &str = "20000";
/// As many lines of a log.
const LINES: u32 = 20_000;

/// What each agent is asked, and the file of the answer.
const ASKED: [(&str, &[&str]); 11] = [
    ("status", &["status"]),
    ("endpoints", &["endpoint", "list"]),
    ("nodes", &["node", "list"]),
    ("pods", &["pod", "list"]),
    ("ipam", &["ipam", "list"]),
    ("ipam-audit", &["ipam", "audit"]),
    ("policies", &["policy", "list"]),
    ("drops", &["drops"]),
    ("flow-count", &["ct", "count"]),
    ("flows", &["ct", "list", "--limit", FLOWS]),
    ("maps", &["map", "list"]),
];

#[derive(Debug, Args)]
pub(in crate::cli) struct Sysdump {
    /// Write the archive here [default: weft-sysdump-TIME.tar.gz in the working directory]
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) output: Output,
}

/// What goes into the archive: paths and texts, and what could not be had.
#[derive(Default)]
struct Found {
    files: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Found {
    fn add(&mut self, path: String, answer: Result<String, String>) {
        match answer {
            Ok(text) => self.files.push((path, text)),
            Err(why) => self.problems.push(format!("{path}: {why}")),
        }
    }
}

pub(super) async fn run(cluster: &Cluster, options: &Sysdump, out: &mut dyn Write) -> Result<(), Failure> {
    let (agents, head) = agents(cluster, &options.output.node).await?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let now = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    let name = format!("weft-sysdump-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let path = options.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let failed = |e: std::io::Error| Failure::File { path: path.clone(), cause: e };
    // Of nobody else's business.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
    eprint!("{head}");
    let mut archive = Archive::new(file, seconds);
    let mut problems = Vec::new();
    let mut add = |archive: &mut Archive<File>, found: Found| {
        problems.extend(found.problems);
        found.files.iter().try_for_each(|(at, text)| archive.file(&format!("{name}/{at}"), trim::text(text).as_bytes()))
    };
    add(&mut archive, of_the_cluster(cluster).await).map_err(failed)?;
    eprintln!("the cluster's objects");
    let asked = agents.iter().map(async |agent| (agent, of_a_node(cluster, agent).await));
    let mut nodes = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some((agent, found)) = nodes.next().await {
        let count = found.files.len();
        // Only what can be had goes in while others are still asked: memory holds few nodes at a time.
        add(&mut archive, found).map_err(failed)?;
        eprintln!("{}: {count} files", agent.node);
    }
    let about = format!(
        "Made by weft {} at {now}.\n{head}Agents:\n{}",
        env!("CARGO_PKG_VERSION"),
        agents
            .iter()
            .map(|a| format!("  {} {} {}, {} restarts\n", a.node, a.pod, a.image, a.restarts))
            .collect::<String>()
    );
    archive.file(&format!("{name}/about.txt"), about.as_bytes()).map_err(failed)?;
    let list: String = problems.iter().map(|p| trim::text(p) + "\n").collect();
    archive.file(&format!("{name}/problems.txt"), list.as_bytes()).map_err(failed)?;
    archive.finish().and_then(|file| file.sync_all()).map_err(failed)?;
    problems.iter().for_each(|p| eprintln!("not in it: {p}"));
    writeln!(out, "{}", path.display())?;
    Ok(out.flush()?)
}

async fn of_the_cluster(cluster: &Cluster) -> Found {
    let mut found = Found::default();
    let own = format!("/namespaces/{}", cluster.namespace);
    let label = super::cluster::LABEL;
    let objects = [
        ("version", "/version".to_owned()),
        ("nodes", "/api/v1/nodes".into()),
        ("namespaces", "/api/v1/namespaces".into()),
        ("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies".into()),
        ("weft/configmap", format!("/api/v1{own}/configmaps/weft")),
        ("weft/daemonset", format!("/apis/apps/v1{own}/daemonsets?labelSelector={label}")),
        ("weft/pods", format!("/api/v1{own}/pods?labelSelector={label}")),
        ("weft/events", format!("/api/v1{own}/events")),
    ];
    for (file, path) in objects {
        let answer = cluster.get(&path).await.map(trim::object).map(pretty);
        found.add(format!("cluster/{file}.json"), answer.map_err(|e| e.to_string()));
    }
    // Not every cluster knows these kinds.
    for path in
        ["/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies", "/apis/networking.k8s.io/v1/servicecidrs"]
    {
        let kind = path.rsplit('/').next().unwrap_or_default();
        match cluster.get(path).await {
            Err(e) if e.not_found() => {}
            answer => found
                .add(format!("cluster/{kind}.json"), answer.map(trim::object).map(pretty).map_err(|e| e.to_string())),
        }
    }
    let pods = cluster
        .get("/api/v1/pods")
        .await
        .map(|list| pretty(Value::Array(list["items"].as_array().into_iter().flatten().map(trim::pod).collect())));
    found.add("cluster/pods.json".into(), pods.map_err(|e| e.to_string()));
    found
}

async fn of_a_node(cluster: &Cluster, agent: &Agent) -> Found {
    let mut found = Found::default();
    let at = |file: &str| format!("nodes/{}/{file}", agent.node);
    for previous in [false, true] {
        let log = cluster.log(agent, previous, LINES).await;
        match log {
            // There is none before the first.
            Err(_) if previous => {}
            log => {
                found.add(at(if previous { "agent.previous.log" } else { "agent.log" }), log.map_err(|e| e.to_string()))
            }
        }
    }
    let mut maps = Vec::new();
    for (file, words) in ASKED {
        let answer = ask(cluster, agent, words).await;
        if let (true, Ok(text)) = (file == "maps", &answer) {
            let list = serde_json::from_str::<Value>(text).unwrap_or_default();
            // One without a number of entries, as a ring buffer is, has none to show.
            let has_entries = list.as_array().into_iter().flatten().filter(|m| !m["entries"].is_null());
            maps = has_entries.filter_map(|m| Some(m["name"].as_str()?.to_owned())).collect();
        }
        let down = answer.is_err() && file == "status";
        found.add(at(&format!("{file}.json")), answer);
        if down {
            // The others would say the same, each after its time.
            return found;
        }
    }
    for map in maps {
        found.add(at(&format!("maps/{map}.json")), ask(cluster, agent, &["map", "dump", &map]).await);
    }
    found
}

/// What an agent answers, in JSON.
async fn ask(cluster: &Cluster, agent: &Agent, words: &[&str]) -> Result<String, String> {
    let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
    let said = cluster.weft(agent, &words).await.map_err(|e| e.to_string())?;
    // Some say by the exit status that something is not as it should be, and answer nevertheless.
    if said.stdout.is_empty() { Err(said.stderr.trim().to_owned()) } else { Ok(said.stdout) }
}

fn pretty(value: Value) -> String {
    format!("{value:#}\n")
}
