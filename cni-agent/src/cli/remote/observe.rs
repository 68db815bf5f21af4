//! `weft observe` of a cluster: the drops of all nodes as they come, each with its node.
use std::{io::Write, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep, timeout_at},
};

use super::{Agent, Cluster, Failure, agents};
use crate::{
    api::types::Observed,
    cli::{observe::Observe, show},
};

/// Between two attempts to find an agent again.
const AGAIN: Duration = Duration::from_secs(2);
/// Lines that wait for being printed.
const WAITING: usize = 1024;

/// Something from a node.
struct Word {
    node: String,
    what: What,
}
enum What {
    /// A line of `weft observe --json`.
    Line(String),
    /// There are no lines for the time being, and why.
    Ended(String),
}

pub(super) async fn run(cluster: &Cluster, options: &Observe, out: &mut dyn Write) -> Result<(), Failure> {
    let (agents, head) = agents(cluster, options.nodes()).await?;
    if !options.json() {
        write!(out, "{head}")?;
        out.flush()?;
    }
    let width = agents.iter().map(|a| a.node.len()).max().unwrap_or_default();
    let (sender, words) = mpsc::channel(WAITING);
    let followers = agents.into_iter().map(|agent| follow(cluster, agent, options, sender.clone()));
    tokio::select! {
        printed = print(words, options, width, out) => printed,
        _ = join_all(followers) => Ok(()),
    }
}

/// Follows one node's drops for ever: an agent that is started anew is followed anew.
async fn follow(cluster: &Cluster, mut agent: Agent, options: &Observe, to: Sender<Word>) {
    let words = options.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut told = String::new();
    loop {
        let why = match cluster.lines(&agent, &words).await {
            Ok(mut lines) => loop {
                match lines.next().await {
                    Ok(line) => {
                        told.clear();
                        if to.send(Word { node: agent.node.clone(), what: What::Line(line) }).await.is_err() {
                            return;
                        }
                    }
                    Err(why) => break why,
                }
            },
            Err(e) => e.to_string(),
        };
        // The same once.
        if why != told && to.send(Word { node: agent.node.clone(), what: What::Ended(why.clone()) }).await.is_err() {
            return;
        }
        told = why;
        sleep(AGAIN).await;
        if let Ok(mut now) = cluster.agents(std::slice::from_ref(&agent.node)).await {
            agent = now.remove(0);
        }
    }
}

async fn print(mut words: Receiver<Word>, options: &Observe, width: usize, out: &mut dyn Write) -> Result<(), Failure> {
    let end = options.limit().and_then(|t| Instant::now().checked_add(t));
    let mut left = options.most();
    while left != Some(0) {
        let word = match end {
            Some(end) => match timeout_at(end, words.recv()).await {
                Ok(word) => word,
                Err(_) => return Ok(()),
            },
            None => words.recv().await,
        };
        let Some(Word { node, what }) = word else { return Ok(()) };
        let line = match what {
            What::Ended(why) => {
                eprintln!("weft: {node} is not observed, and tried again: {why}");
                continue;
            }
            What::Line(line) => line,
        };
        // What an agent of another version says is not understood whole, and shown as it is.
        let event = serde_json::from_str::<Observed>(&line);
        if matches!(event, Ok(Observed::Drop(_))) {
            left = left.map(|n| n - 1);
        }
        if options.json() {
            writeln!(out, "{}", with_node(&line, &node))?;
        } else {
            let text = event.map_or(line, |event| show::observed(&event));
            writeln!(out, "{node:<width$}  {text}")?;
        }
        out.flush()?;
    }
    Ok(())
}

/// An event with the node that it comes from.
fn with_node(line: &str, node: &str) -> Value {
    match serde_json::from_str(line) {
        Ok(Value::Object(mut event)) => {
            event.insert("node".into(), node.into());
            Value::Object(event)
        }
        _ => json!({"node": node, "line": line}),
    }
}
