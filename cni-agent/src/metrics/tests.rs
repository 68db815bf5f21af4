//! The text as a scraper gets it, judged by Prometheus' own linter where it is installed.
use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use cni_common::drop::{Count, DropReason, Point};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    api::{tests::Fake, types::DropCount},
    cni::calls::Calls,
};

fn metrics(fake: Fake) -> Metrics {
    let calls = Calls::default();
    calls.done("ADD", Duration::from_millis(3), None);
    calls.done("DEL", Duration::from_millis(1), None);
    calls.done("ADD", Duration::from_secs(1), Some(11));
    Metrics::new(Arc::new(fake), calls, 1_700_000_000, 3)
}

fn dropping() -> Fake {
    let mut fake = Fake::default();
    fake.drops.drops = vec![DropCount::new(DropReason::ALL[0], Point::ALL[0], Count { packets: 7, bytes: 700 })];
    fake
}

#[test]
fn drops_calls_and_starts_are_told_by_name() {
    let text = metrics(dropping()).text().unwrap();
    let (reason, program) = (DropReason::ALL[0].name(), Point::ALL[0].name());
    for line in [
        format!("weft_drop_packets_total{{reason=\"{reason}\",program=\"{program}\"}} 7"),
        format!("weft_drop_bytes_total{{reason=\"{reason}\",program=\"{program}\"}} 700"),
        "weft_agent_starts_total 3".into(),
        "weft_agent_ready 1".into(),
        format!("weft_policy_in_force {}", u8::from(dropping().status().policy.in_force)),
        "weft_agent_start_time_seconds 1700000000".into(),
        "weft_cni_call_duration_seconds_count{verb=\"ADD\"} 2".into(),
        "weft_cni_call_duration_seconds_bucket{verb=\"ADD\",le=\"0.004\"} 1".into(),
        "weft_cni_call_failures_total{verb=\"ADD\",code=\"11\"} 1".into(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let not_ready = Fake { not_ready: Some("no node".into()), ..Fake::default() };
    assert!(metrics(not_ready).text().unwrap().contains("\nweft_agent_ready 0\n"));
}

#[test]
fn no_metric_comes_twice() {
    let text = metrics(dropping()).text().unwrap();
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE ") && !seen.insert(*l)).collect();
    assert!(twice.is_empty() && seen.len() > 30, "{twice:?}");
}

#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../../docs/inspect.md");
    let text = metrics(dropping()).text().unwrap();
    let names: BTreeSet<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 30, "{names:?}");
    let missing: Vec<&&str> = names.iter().filter(|n| !page.contains(&format!("`{n}`"))).collect();
    assert!(missing.is_empty(), "docs/inspect.md does not name {missing:?}");
}

#[test]
fn promtool_has_nothing_against_it() {
    let tool = std::env::var_os("WEFT_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let text = metrics(dropping()).text().unwrap();
    let started = Command::new(tool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        println!("skipped: promtool is not there; set WEFT_PROMTOOL to the one of the package prometheus");
        return;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}

#[tokio::test]
async fn it_is_served_as_soon_as_the_address_is_free() {
    let taken = std::net::TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let serving =
        tokio::spawn(serve(address, Arc::new(metrics(Fake { not_ready: Some("no node".into()), ..Fake::default() }))));
    let answer = loop {
        if let Ok(answer) = get(address, "/metrics").await {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("weft_agent_ready 0"), "{answer}");
    let answer = get(address, "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no node\n"), "{answer}");
    serving.abort();
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[test]
fn starts_are_counted_until_the_directory_goes() {
    let directory = TempDir::new().unwrap();
    assert_eq!([count_start(directory.path()), count_start(directory.path())], [1, 2]);
}
