//! Commands that an agent answers, asked of each: what one says goes below the name of its node.
use std::io::Write;

use futures_util::{StreamExt as _, stream};
use serde_json::{Map, Value};

use super::{Cluster, Failure, agents};

/// So many agents are asked at the same time.
pub(super) const AT_ONCE: usize = 16;

pub(super) async fn run(
    cluster: &Cluster,
    nodes: &[String],
    json: bool,
    words: &[String],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (agents, head) = agents(cluster, nodes).await?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let asked = agents.iter().map(async |agent| cluster.weft(agent, &words).await);
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut unwell = false;
    let mut all = Map::new();
    if !json {
        write!(out, "{head}")?;
    }
    for (agent, answer) in agents.iter().zip(answers) {
        let (text, complaint) = match answer {
            Ok(said) => {
                unwell |= said.code != 0;
                (said.stdout, said.stderr)
            }
            Err(e) => {
                unwell = true;
                (String::new(), format!("weft: {e}\n"))
            }
        };
        if json {
            all.insert(agent.node.clone(), serde_json::from_str(&text).unwrap_or(Value::Null));
        } else {
            write!(out, "\n{}\n{text}", agent.node)?;
        }
        out.flush()?;
        complaint.lines().for_each(|line| eprintln!("{}: {line}", agent.node));
    }
    if json {
        writeln!(out, "{:#}", Value::Object(all))?;
    }
    if unwell { Err(Failure::Unwell) } else { Ok(()) }
}
