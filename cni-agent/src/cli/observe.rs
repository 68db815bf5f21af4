//! `weft observe`: drops as they come, those that were asked for.
use std::{io::Write, net::IpAddr, time::Duration};

use clap::{Args, builder::PossibleValuesParser};
use cni_common::drop::DropReason;

use super::{
    Failure, Output,
    client::{Client, ClientError},
    show,
};
use crate::api::types::{DropEvent, Observed};

/// Above the options.
pub(super) const ABOUT: &str = "\
Follows drops as they happen, one line each, and what policies in audit mode would have dropped.

The programs report at most --event-rate (a setting of the agent) events a second on each CPU; counters, shown by \
`weft drops`, count all. Ends by Ctrl-C, or as --count and --timeout say. Filters choose among what is reported: a drop is shown \
when it fits each of them, and one that is given several times is fit by any of its values.";

#[derive(Debug, Args)]
pub(super) struct Observe {
    #[command(flatten)]
    pub(super) output: Output,
    /// End when standard input does: who has started this in a pod may go without a word
    #[arg(long, hide = true)]
    while_stdin: bool,
    /// End after so many events were shown
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// Only packets that this pod sent; without a namespace, one of `default`
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Vec<String>,
    /// Only drops of this reason, named as `weft drops` names it
    #[arg(long, value_name = "REASON", ignore_case = true, hide_possible_values = true)]
    #[arg(value_parser = PossibleValuesParser::new(DropReason::ALL.iter().map(|r| r.name())))]
    reason: Vec<String>,
    /// Only packets that have passed, and that policies in audit mode would have dropped
    #[arg(long)]
    audit: bool,
    /// Only packets from or to this address
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
}
impl Filter {
    fn takes(&self, event: &DropEvent) -> bool {
        let is_pod = |asked: &String| {
            let pod = event.pod.as_deref();
            pod == Some(asked) || (!asked.contains('/') && pod.and_then(|p| p.strip_prefix("default/")) == Some(asked))
        };
        let is_end = |asked: &IpAddr| [event.src, event.dst].contains(&Some(*asked));
        (self.pod.is_empty() || self.pod.iter().any(is_pod))
            && (self.reason.is_empty() || self.reason.iter().any(|r| r.eq_ignore_ascii_case(&event.reason)))
            && (event.audit || !self.audit)
            && (self.address.is_empty() || self.address.iter().any(is_end))
    }
}

impl Observe {
    /// Only these nodes.
    pub(super) fn nodes(&self) -> &[String] {
        &self.output.node
    }
    /// JSON is asked for.
    pub(super) fn json(&self) -> bool {
        self.output.json
    }
    /// How long to observe.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.timeout
    }
    /// How many events to show.
    pub(super) fn most(&self) -> Option<u64> {
        self.count
    }
    /// What is run in an agent's pod: the same events, until nobody is interested any more.
    pub(super) fn words(&self) -> Vec<String> {
        let f = &self.filter;
        let mut words = ["observe", "--json", "--while-stdin"].map(str::to_owned).to_vec();
        let pairs = [("--pod", f.pod.clone()), ("--reason", f.reason.clone())];
        let addresses = ("--address", f.address.iter().map(ToString::to_string).collect());
        for (name, values) in pairs.into_iter().chain([addresses]) {
            words.extend(values.into_iter().flat_map(|value| [name.to_owned(), value]));
        }
        words
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| "not a number of seconds, such as 5 or 0.5".to_owned())
}

pub(super) async fn run(client: &Client, observe: &Observe, out: &mut dyn Write) -> Result<(), Failure> {
    if observe.while_stdin {
        return tokio::select! {
            observed = follow(client, observe, out) => observed,
            () = end_of_stdin() => Ok(()),
        };
    }
    follow(client, observe, out).await
}

/// A thread of its own waits for it, and goes with the process.
async fn end_of_stdin() {
    let (sender, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _bytes = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _nobody_waits = sender.send(());
    });
    // An error means that the thread has ended.
    let _either = ended.await;
}

async fn follow(client: &Client, observe: &Observe, out: &mut dyn Write) -> Result<(), Failure> {
    let mut lines = client.open("/v1/observe").await?;
    let end = observe.timeout.and_then(|t| tokio::time::Instant::now().checked_add(t));
    let mut left = observe.count;
    while left != Some(0) {
        let line = match end {
            Some(end) => match tokio::time::timeout_at(end, lines.line()).await {
                Ok(line) => line?,
                Err(_) => return Ok(()),
            },
            None => lines.line().await?,
        };
        let Some(line) = line else {
            let cause = "the agent ended the stream".to_owned();
            return Err(ClientError::Broken { path: client.socket().to_owned(), cause }.into());
        };
        let event: Observed = serde_json::from_str(&line)
            .map_err(|e| ClientError::Answer { request: "/v1/observe".into(), cause: e.to_string() })?;
        // What was lost may have been what is asked for: it is told in any case.
        if let Observed::Drop(drop) = &event {
            if !observe.filter.takes(drop) {
                continue;
            }
            left = left.map(|n| n - 1);
        }
        if observe.output.json {
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{}", show::observed(&event))?;
        }
        out.flush()?;
    }
    Ok(())
}
