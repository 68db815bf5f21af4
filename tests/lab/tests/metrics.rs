//! What Prometheus scrapes of a running agent, after drops that were provoked, calls of the plugin and a restart. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
};

use lab::{Ending, Lab, LabConfig, PodSpec, exec, pair::until, probe::Place};

const ADDRESS: &str = "127.0.0.1:9810";

/// The text that the agent of a node answers with at a path.
fn get(node: &Place, path: &str) -> String {
    let path = path.to_owned();
    let asked = node.run(move || {
        let mut stream = TcpStream::connect(ADDRESS)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {ADDRESS}\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    asked.expect("metrics are served")
}

/// The lines by name and labels.
fn scrape(node: &Place) -> BTreeMap<String, f64> {
    let text = get(node, "/metrics");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let lines = body.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines
        .map(|l| l.rsplit_once(' ').expect("a name and a value"))
        .map(|(n, v)| (n.into(), v.parse().unwrap()))
        .collect()
}

#[test]
fn a_scrape_tells_of_provoked_drops_of_calls_and_of_restarts() {
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    lab.set_agent_args(&["--metrics-address", ADDRESS]);
    lab.restart_agent("node-1", Ending::Asked).expect("an agent that serves metrics");
    let web = lab.pod_add("node-1", &PodSpec::named("web")).expect("a pod").pod.place().unwrap();
    let node = lab.node("node-1").unwrap().place().unwrap();
    let dropped = "weft_drop_packets_total{reason=\"NoPod\",program=\"from_pod\"}";
    let before = scrape(&node);
    // An address of the node's range that no pod has.
    let mut ping = Command::new("ping");
    let ended =
        exec(&web, ping.args(["-c", "3", "-i", "0.2", "-W", "1", "10.244.1.200"]).stdout(Stdio::null())).unwrap();
    assert!(!ended.success(), "nobody answers");
    let after = scrape(&node);
    assert_eq!(after[dropped] - before.get(dropped).copied().unwrap_or(0.0), 3.0, "{after:#?}");
    for (name, value) in [
        ("weft_agent_ready", 1.0),
        ("weft_agent_starts_total", 2.0),
        ("weft_cni_installed", 1.0),
        ("weft_endpoints", 1.0),
        ("weft_source_synced{source=\"manifests\"}", 1.0),
        ("weft_cni_call_duration_seconds_count{verb=\"ADD\"}", 1.0),
    ] {
        assert_eq!(after.get(name), Some(&value), "{name} in {after:#?}");
    }
    let maps = |what: &str| after.keys().filter(|n| n.starts_with(what)).count();
    assert_eq!(maps("weft_map_entries{"), maps("weft_map_capacity{"));
    assert!(maps("weft_map_entries{") > 20, "{after:#?}");
    assert!(get(&node, "/healthz").ends_with("ok\n"));

    lab.restart_agent("node-1", Ending::Killed).expect("another agent");
    let node = lab.node("node-1").unwrap().place().unwrap();
    until("the next agent counts on", || scrape(&node)["weft_agent_starts_total"] == 3.0).unwrap();
    assert!(scrape(&node)[dropped] >= after[dropped], "drops outlive the agent");
}

/// By Prometheus' own linter, where there is one.
#[test]
fn prometheus_has_nothing_to_say_against_the_metrics() {
    let tool = std::env::var_os("WEFT_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut lint = Command::new(tool);
    lint.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = lint.spawn() else {
        lab::skipped("promtool is not there; set WEFT_PROMTOOL to the one of the package prometheus");
        return;
    };
    let mut lab = Lab::up(LabConfig::with_nodes(1)).expect("a lab of one node");
    lab.set_agent_args(&["--metrics-address", ADDRESS]);
    lab.restart_agent("node-1", Ending::Asked).expect("an agent that serves metrics");
    let text = get(&lab.node("node-1").unwrap().place().unwrap(), "/metrics");
    let (_, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{body}");
}
