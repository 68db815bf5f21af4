//! `weft connectivity-test`: pods of its own ask each other, and what does not work is named by its first broken hop.
mod diagnose;
mod plan;
pub(in crate::cli) mod probe;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    io::Write,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;
use futures_util::{StreamExt as _, future::join, stream};
use serde::de::DeserializeOwned;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use self::{
    diagnose::{Failing, Witness, first_broken},
    plan::{CONTAINER, From, MARK, NAMESPACE, TestPod, Way},
    probe::{Asked, PORT},
};
use super::{Agent, Cluster, Failure, RemoteError, agents, each::AT_ONCE, status};
use crate::{
    api::types::{DropEvent, FlowList, Observed, Status},
    cli::Output,
};

/// Above the options.
pub(in crate::cli) const ABOUT: &str = "\
Tries whether pods reach each other, and names the first broken hop where they do not.

Makes a namespace, weft-connectivity-test, with two pods on each node, out of Weft's own image. From each node's own network, and from a pod on it, the pods of the same node and of \
others are asked, by TCP and UDP, over each family that pods have. By TCP so much is sent that a hop with a smaller MTU shows. Where an answer is missing, \
the agents at both ends are asked what became of the packets. The namespace is removed at the end, also after a failure or Ctrl-C; one that a killed run has left goes first.

It takes the rights to make and delete a namespace and pods, and pods/exec in it and in Weft's namespace.";

/// For one pod's whole asking: each address and protocol may take all its time.
const ASKING: Duration = Duration::from_secs(30);
/// Until the streams of drops are there.
const STREAMS: Duration = Duration::from_secs(1);
/// Until what was dropped last has been told.
const LAST: Duration = Duration::from_millis(300);
/// So many ways that fail are looked into: what is broken is mostly the same.
const DIAGNOSES: usize = 8;
/// Between two looks at objects that somebody else changes.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(in crate::cli) struct Connectivity {
    /// How long pods may take to become ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    ready_timeout: u64,
    /// The pods' image [default: the agents' own]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Leave the pods in place when something fails
    #[arg(long)]
    keep_failed: bool,
    #[command(flatten)]
    pub(in crate::cli) output: Output,
}

/// What has come of the test.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Good,
    Bad,
}

pub(super) async fn run(cluster: &Cluster, options: &Connectivity, out: &mut dyn Write) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Usage(format!("listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let outcome = tokio::select! {
        outcome = test(cluster, options, out) => outcome,
        _ = interrupt.recv() => Err(Failure::Interrupted),
        _ = terminate.recv() => Err(Failure::Interrupted),
    };
    let good = matches!(outcome, Ok(Outcome::Good));
    if options.keep_failed && !good {
        eprintln!("the pods stay: `kubectl delete namespace {NAMESPACE}` removes them");
    } else {
        clean_up(cluster).await?;
    }
    match outcome? {
        Outcome::Good => Ok(()),
        Outcome::Bad => Err(Failure::Unwell),
    }
}

/// Removes the test's namespace, if there is one, and waits until it is gone. One of the same name that is not the test's is an error.
async fn clean_up(cluster: &Cluster) -> Result<(), Failure> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}");
    match cluster.get(&path).await {
        Err(e) if e.not_found() => return Ok(()),
        Err(e) => return Err(e.into()),
        Ok(found) if found["metadata"]["labels"][MARK] != "true" => {
            return Err(Failure::Usage(format!(
                "there is a namespace {NAMESPACE} that this test has not made: remove it, or give it the label {MARK}=true"
            )));
        }
        Ok(_) => {}
    }
    eprintln!("removing namespace {NAMESPACE}");
    cluster.delete(&path).await?;
    until(
        Duration::from_secs(90),
        "end of the namespace: `kubectl describe namespace` says what holds it",
        async || match cluster.get(&path).await {
            Err(e) if e.not_found() => Ok(Some(())),
            Err(e) => Err(e.into()),
            Ok(_) => Ok(None),
        },
    )
    .await
}

async fn until<T, F>(limit: Duration, what: &str, look: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(Failure::Usage(format!("after {} s there is no {what}", limit.as_secs())));
        }
        sleep(LOOK).await;
    }
}

async fn test(cluster: &Cluster, options: &Connectivity, out: &mut dyn Write) -> Result<Outcome, Failure> {
    let (agents, head) = agents(cluster, &options.output.node).await?;
    write!(out, "{head}")?;
    clean_up(cluster).await?;
    if !all_ready(cluster, &agents, out).await? {
        return Ok(Outcome::Bad);
    }
    let nodes: Vec<String> = agents.iter().map(|a| a.node.clone()).collect();
    let pods = plan::pods(&nodes);
    let Some(addresses) = make(cluster, options, &agents, &pods, out).await? else {
        return Ok(Outcome::Bad);
    };
    let agents: BTreeMap<&str, &Agent> = agents.iter().map(|a| (a.node.as_str(), a)).collect();
    let ways = plan::ways(&nodes);
    let asked = ways.iter().map(async |way| (way, ask(cluster, &agents, way, &addresses).await));
    let mut asked = stream::iter(asked).buffered(AT_ONCE.min(4));
    let (mut good, mut looked_into) = (0, 0);
    let mut failed = Vec::new();
    while let Some((way, answer)) = asked.next().await {
        let result = of_way(way, &answer);
        write!(out, "{result}")?;
        out.flush()?;
        match answer {
            Ok(all) if all.iter().all(|a| a.error.is_none()) => good += 1,
            answer => failed.push((way, answer)),
        }
    }
    for (way, answer) in &failed {
        let Some(asked) = answer.iter().flatten().find(|a| a.error.is_some()) else { continue };
        looked_into += 1;
        if looked_into > DIAGNOSES {
            writeln!(out, "further failures were not looked into")?;
            break;
        }
        let hop = diagnosis(cluster, &agents, way, asked).await;
        writeln!(out, "{}, {} {}: first broken hop: {hop}", way.text(), family(asked.to.ip()), asked.protocol)?;
        out.flush()?;
    }
    writeln!(out, "{good} of {} ways are good", ways.len())?;
    Ok(if failed.is_empty() { Outcome::Good } else { Outcome::Bad })
}

/// Whether all agents are; the first hop that a pod needs.
async fn all_ready(cluster: &Cluster, agents: &[Agent], out: &mut dyn Write) -> Result<bool, Failure> {
    let asked = agents.iter().map(async |agent| (agent, status::ask(cluster, agent).await));
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut ready = true;
    for (agent, answer) in answers {
        let why = match &answer {
            Ok(status) => match status["not_ready"].as_str() {
                Some(why) => format!("is not ready: {why}"),
                None => continue,
            },
            Err(e) => format!("does not answer: {e}"),
        };
        writeln!(out, "first broken hop: the agent on {} {why}", agent.node)?;
        ready = false;
    }
    if ready {
        writeln!(out, "{} agents are ready", agents.len())?;
    }
    out.flush()?;
    Ok(ready)
}

/// Makes the pods and waits until they run; gives their addresses. `None` when they do not, which is told.
async fn make(
    cluster: &Cluster,
    options: &Connectivity,
    agents: &[Agent],
    pods: &[TestPod],
    out: &mut dyn Write,
) -> Result<Option<BTreeMap<String, Vec<IpAddr>>>, Failure> {
    cluster.create("/api/v1/namespaces", &plan::namespace()).await?;
    let limit = Duration::from_secs(options.ready_timeout);
    let collection = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    until(limit, "service account `default` in the test's namespace", async || {
        match cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")).await {
            Err(e) if e.not_found() => Ok(None),
            answer => Ok(Some(answer.map(drop)?)),
        }
    })
    .await?;
    for pod in pods {
        let own = agents.iter().find(|a| a.node == pod.node).map(|a| a.image.as_str()).unwrap_or_default();
        cluster.create(&collection, &plan::object(pod, options.image.as_deref().unwrap_or(own))).await?;
    }
    writeln!(out, "{} pods are made in namespace {NAMESPACE}", pods.len())?;
    out.flush()?;
    let end = Instant::now() + limit;
    loop {
        let list = cluster.get(&collection).await?;
        let objects: Vec<&serde_json::Value> = list["items"].as_array().into_iter().flatten().collect();
        let is = |pod: &serde_json::Value, what: &str| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == what && c["status"] == "True")
        };
        let ready = objects.iter().filter(|p| is(p, "Ready")).count();
        let late = Instant::now() > end;
        if ready == pods.len() || late {
            let runs = |p: &serde_json::Value| !p["status"]["containerStatuses"][0]["state"]["running"].is_null();
            let mut all_run = true;
            for pod in objects.iter().filter(|p| !runs(p)) {
                all_run = false;
                let (name, node) = (pod["metadata"]["name"].as_str(), pod["spec"]["nodeName"].as_str());
                let (name, node) = (name.unwrap_or_default(), node.unwrap_or_default());
                let why = last_event(cluster, name).await?;
                writeln!(out, "first broken hop: the start of pod {name} on {node}: {why}")?;
            }
            if late && all_run {
                // Then the kubelet does not reach them, and the ways from nodes say why.
                writeln!(out, "{ready} of {} pods are ready after {} s", pods.len(), limit.as_secs())?;
            } else if all_run {
                writeln!(out, "{ready} pods are ready")?;
            }
            out.flush()?;
            let addresses = |p: &serde_json::Value| {
                let all = p["status"]["podIPs"].as_array().into_iter().flatten();
                all.into_iter().filter_map(|a| a["ip"].as_str()?.parse().ok()).collect()
            };
            let named = |p: &&serde_json::Value| Some((p["metadata"]["name"].as_str()?.to_owned(), addresses(p)));
            return Ok(all_run.then(|| objects.iter().filter_map(named).collect()));
        }
        sleep(LOOK).await;
    }
}

/// What the kubelet says last of a pod.
async fn last_event(cluster: &Cluster, pod: &str) -> Result<String, RemoteError> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/events?fieldSelector=involvedObject.name={pod}");
    let events = cluster.get(&path).await?;
    let last =
        events["items"].as_array().into_iter().flatten().max_by_key(|e| e["lastTimestamp"].as_str().map(str::to_owned));
    let text = last.and_then(|e| e["message"].as_str()).unwrap_or("the kubelet says nothing of it");
    Ok(text.trim().to_owned())
}

/// One asks the other, at all its addresses.
async fn ask(
    cluster: &Cluster,
    agents: &BTreeMap<&str, &Agent>,
    way: &Way,
    addresses: &BTreeMap<String, Vec<IpAddr>>,
) -> Result<Vec<Asked>, String> {
    let to = addresses.get(&way.to.name).filter(|all| !all.is_empty()).ok_or("it has no address")?;
    let to: Vec<SocketAddr> = to.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    ask_at(cluster, agents, way, &to).await
}

async fn ask_at(
    cluster: &Cluster,
    agents: &BTreeMap<&str, &Agent>,
    way: &Way,
    to: &[SocketAddr],
) -> Result<Vec<Asked>, String> {
    let targets: Vec<String> = to.iter().map(ToString::to_string).collect();
    let words: Vec<&str> =
        ["connectivity-probe", "ask"].into_iter().chain(targets.iter().map(String::as_str)).collect();
    let said = match &way.from {
        From::Pod(pod) => cluster.run(NAMESPACE, &pod.name, CONTAINER, &words, ASKING).await,
        From::Node(node) => match agents.get(node.as_str()) {
            Some(agent) => cluster.weft(agent, &words).await,
            None => return Err("no agent is there".into()),
        },
    };
    let said = said.map_err(|e| e.to_string())?;
    let all: Vec<Asked> = said.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if all.len() == 2 * to.len() { Ok(all) } else { Err(said.stderr.trim().to_owned()) }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A line for a way, and one for each failure.
fn of_way(way: &Way, answer: &Result<Vec<Asked>, String>) -> String {
    let place = if way.across() { "across nodes" } else { "same node" };
    let all = match answer {
        Err(why) => return format!("FAILED  {} ({place}): it could not be tried: {why}\n", way.text()),
        Ok(all) => all,
    };
    let time = |micros: u64| format!("{}.{:03} ms", micros / 1000, micros % 1000);
    let good: Vec<String> = all
        .iter()
        .filter(|a| a.error.is_none())
        .map(|a| format!("{} {} {}", family(a.to.ip()), a.protocol, time(a.micros)))
        .collect();
    let mark = if good.len() == all.len() { "ok    " } else { "FAILED" };
    let mut text = format!(
        "{mark}  {} ({place}): {}\n",
        way.text(),
        if good.is_empty() { "nothing".into() } else { good.join(", ") }
    );
    for (asked, error) in all.iter().filter_map(|a| Some((a, a.error.as_ref()?))) {
        text.push_str(&format!("        {} {} to {}: {error}\n", family(asked.to.ip()), asked.protocol, asked.to));
    }
    text
}

/// Tries a way again while both ends are watched, and says what is broken.
async fn diagnosis(cluster: &Cluster, agents: &BTreeMap<&str, &Agent>, way: &Way, asked: &Asked) -> String {
    let (Some(from), Some(to)) = (agents.get(way.from.node()), agents.get(way.to.node.as_str())) else {
        return "no agent is there".into();
    };
    let drops = [RefCell::default(), RefCell::default()];
    let watched = join(
        drops_of(cluster, from, asked.to.ip(), &drops[0]),
        drops_of(cluster, if way.across() { to } else { from }, asked.to.ip(), &drops[1]),
    );
    let again = async {
        sleep(STREAMS).await;
        let again = ask_at(cluster, agents, way, &[asked.to]).await;
        sleep(LAST).await;
        again
    };
    let again = tokio::select! {
        // It ends never.
        _ = watched => Err("the drops could not be watched".to_owned()),
        again = again => again,
    };
    let failed = again.as_ref().ok().and_then(|all| all.iter().find(|a| a.protocol == asked.protocol));
    if failed.is_some_and(|a| a.error.is_none()) {
        return "none any more: tried again, it works".into();
    }
    let asked = failed.unwrap_or(asked);
    let own =
        drops[0].borrow().first().and_then(|d: &DropEvent| if d.dst == Some(asked.to.ip()) { d.src } else { d.dst });
    // A socket that is not connected yet does not say from where: the drop, the flow or the pod's own address does.
    let known = asked.from.map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).or(own);
    let (mut from_says, to_says) = (witness(cluster, from, &drops[0]).await, witness(cluster, to, &drops[1]).await);
    let source = known.or_else(|| source_of(&from_says, way, asked));
    let Some(source) = source else {
        return format!("the address of {} in {} is not known to its agent", way.text(), family(asked.to.ip()));
    };
    if let (Ok(witness), false) = (&mut from_says, way.across()) {
        witness.drops.extend(drops[1].borrow().iter().cloned());
    }
    let failing = Failing {
        from_node: way.from.node().to_owned(),
        from_pod: match &way.from {
            From::Pod(pod) => Some(pod.name.clone()),
            From::Node(_) => None,
        },
        to_node: way.to.node.clone(),
        to_pod: way.to.name.clone(),
        source,
        source_port: asked.from.map_or(0, |a| a.port()),
        destination: asked.to.ip(),
    };
    first_broken(&failing, &from_says, &to_says)
}

/// The address of who asks, of the family that was asked.
fn source_of(says: &Result<Witness, String>, way: &Way, asked: &Asked) -> Option<IpAddr> {
    let says = says.as_ref().ok()?;
    let v4 = asked.to.is_ipv4();
    match &way.from {
        From::Pod(pod) => {
            let own = says.endpoints.iter().find(|e| e.namespace == NAMESPACE && e.pod == pod.name)?;
            if v4 { own.ipv4.map(IpAddr::V4) } else { own.ipv6.map(IpAddr::V6) }
        }
        From::Node(node) => {
            let own = says.nodes.iter().find(|n| n.name == *node)?;
            own.internal_ips.iter().copied().find(|ip| ip.is_ipv4() == v4)
        }
    }
}

/// Gathers what an agent reports of packets from or to an address, until nobody waits for it.
async fn drops_of(cluster: &Cluster, agent: &Agent, address: IpAddr, to: &RefCell<Vec<DropEvent>>) {
    let address = address.to_string();
    let words = ["observe", "--json", "--while-stdin", "--address", &address];
    if let Ok(mut lines) = cluster.lines(agent, &words).await {
        while let Ok(line) = lines.next().await {
            if let Ok(Observed::Drop(event)) = serde_json::from_str(&line) {
                to.borrow_mut().push(*event);
            }
        }
    }
    // Without it there is less to go by.
    std::future::pending::<()>().await;
}

async fn witness(cluster: &Cluster, agent: &Agent, drops: &RefCell<Vec<DropEvent>>) -> Result<Witness, String> {
    let port = PORT.to_string();
    Ok(Witness {
        status: answer::<Status>(cluster, agent, &["status", "--json"]).await?,
        endpoints: answer(cluster, agent, &["endpoint", "list", "--json"]).await?,
        nodes: answer(cluster, agent, &["node", "list", "--json"]).await?,
        flows: answer::<FlowList>(cluster, agent, &["ct", "list", "--port", &port, "--json"]).await?.flows,
        drops: drops.borrow().clone(),
    })
}

async fn answer<T: DeserializeOwned>(cluster: &Cluster, agent: &Agent, words: &[&str]) -> Result<T, String> {
    let said = cluster.weft(agent, words).await.map_err(|e| e.to_string())?;
    serde_json::from_str(&said.stdout)
        .map_err(|e| if said.stderr.is_empty() { e.to_string() } else { said.stderr.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_a_line_and_each_failure_another() {
        let way = Way { from: From::Node("n1".into()), to: TestPod { name: "b-2".into(), node: "n2".into() } };
        let asked = |to: &str, error: Option<&str>| Asked {
            to: to.parse().unwrap(),
            protocol: "TCP".into(),
            from: None,
            micros: 1234,
            error: error.map(str::to_owned),
        };
        let good = of_way(&way, &Ok(vec![asked("10.0.0.1:1", None)]));
        assert_eq!(good, "ok      node n1 > pod b-2 on n2 (across nodes): IPv4 TCP 1.234 ms\n");
        let bad = of_way(&way, &Ok(vec![asked("10.0.0.1:1", None), asked("[fd00::1]:1", Some("nobody answers"))]));
        assert!(bad.starts_with("FAILED  ") && bad.contains("IPv4 TCP 1.234 ms\n"), "{bad}");
        assert!(bad.ends_with("IPv6 TCP to [fd00::1]:1: nobody answers\n"), "{bad}");
    }
}
