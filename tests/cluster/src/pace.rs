//! How fast pods become Ready.
use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Cluster,
    pods::{Workload, run},
};

/// Pods that are made at once, on each node.
const AT_ONCE: u8 = 100;
const LIMIT: Duration = Duration::from_secs(300);

/// How long pods take until they are Ready: one after the other, and a hundred on each node at once; all go again. Prints the figures of
/// `network`.
///
/// # Errors
/// When pods do not become Ready.
pub fn time_to_ready(cluster: &Cluster, network: &str) -> Result<()> {
    let mut times = Vec::new();
    for number in 0..10 {
        let pod = Workload::on(&format!("one-{number}"), 1 + number % cluster.nodes());
        times.push(run(cluster, std::slice::from_ref(&pod), LIMIT)?);
    }
    times.sort();
    let (middle, last) = (percentile(&times, 50), percentile(&times, 100));
    println!("figure: {network}: pod created → Ready one by one: p50 {middle:.2} s, slowest of 10 {last:.2} s");
    cluster.kubectl(&["delete", "pods", "--all", "--force", "--wait"])?;
    let nodes = 1..=cluster.nodes();
    let many = nodes.flat_map(|node| (0..AT_ONCE).map(move |n| Workload::on(&format!("many-{node}-{n}"), node)));
    let many: Vec<Workload> = many.collect();
    let (took, times) = at_once(cluster, &many)?;
    println!(
        "figure: {network}: {} pods at once, {AT_ONCE} a node, are Ready after {:.1} s; created → Ready p50 {:.1} s, p99 {:.1} s",
        many.len(),
        took.as_secs_f64(),
        percentile(&times, 50),
        percentile(&times, 99)
    );
    Ok(())
}

/// Of times in order, in seconds.
fn percentile(times: &[Duration], of_hundred: usize) -> f64 {
    times[(times.len() * of_hundred / 100).min(times.len() - 1)].as_secs_f64()
}

/// Makes pods and gives how long it took until all were Ready, and in order how long each, as one sees it who watches.
fn at_once(cluster: &Cluster, pods: &[Workload]) -> Result<(Duration, Vec<Duration>)> {
    const SEEN: &str = r#"-o=jsonpath={.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}"#;
    let limit = format!("--request-timeout={}s", LIMIT.as_secs());
    let mut watch = cluster.start_kubectl(&["get", "pods", "--watch", &limit, SEEN])?;
    let lines = BufReader::new(watch.stdout.take().context("kubectl's output")?).lines();
    let watcher = std::thread::spawn(move || {
        let (mut made, mut ready) = (BTreeMap::new(), BTreeMap::new());
        for line in lines.map_while(Result::ok) {
            let now = Instant::now();
            let (name, condition) = line.split_once(' ').unwrap_or((&line, ""));
            let begin = *made.entry(name.to_owned()).or_insert(now);
            if condition == "True" {
                ready.entry(name.to_owned()).or_insert(now - begin);
            }
        }
        ready
    });
    let took = run(cluster, pods, LIMIT);
    // What it has seen by now is there to read.
    watch.kill().context("end kubectl")?;
    watch.wait().context("wait for kubectl")?;
    let Ok(ready) = watcher.join() else { bail!("the watcher has panicked") };
    let took = took?;
    let mut times = pods.iter().map(|p| ready.get(p.name()).copied()).collect::<Option<Vec<_>>>();
    let Some(times) = &mut times else { bail!("kubectl has not seen {} pods become Ready: {ready:?}", pods.len()) };
    times.sort();
    Ok((took, std::mem::take(times)))
}
