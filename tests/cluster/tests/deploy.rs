//! What users install: Weft's chart, and the manifest that is made of it.
use std::{env, fs, path::PathBuf, process::Command};

use cluster::{Config, NAMESPACE, Network, chart, fixture::up};

/// Set to have the manifest written instead of compared.
const BLESS: &str = "WEFT_BLESS";
/// The first lines of the manifest.
const HEAD: &str = "\
# Weft for a cluster: kubectl apply -f deploy/weft.yaml (docs/kubernetes.md).
# Made of deploy/chart: change that, then WEFT_BLESS=1 cargo xtask cluster test deploy
";

fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

#[test]
fn the_manifest_is_what_helm_makes_of_the_chart() {
    let made: String = HEAD
        .lines()
        .map(str::to_owned)
        .chain(chart(&[]).unwrap().lines().filter(|l| !l.starts_with("# Source:")).map(str::to_owned))
        .map(|l| l + "\n")
        .collect();
    let file = deploy().join("weft.yaml");
    if env::var_os(BLESS).is_some() {
        fs::write(&file, &made).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap();
    let first = made.lines().zip(there.lines()).find(|(made, there)| made != there);
    assert!(
        made == there,
        "deploy/weft.yaml is not up to date; run this again with {BLESS}=1. The first difference: {first:?}"
    );
}

#[test]
fn helm_finds_no_fault_with_the_chart() {
    let helm = PathBuf::from(env::var_os("WEFT_CLUSTER_PROGRAMS").unwrap()).join("helm");
    let output = Command::new(helm).arg("lint").arg("--strict").arg(deploy().join("chart")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_chart_has_few_values_and_uses_each() {
    let values = fs::read_to_string(deploy().join("chart/values.yaml")).unwrap();
    let template = fs::read_to_string(deploy().join("chart/templates/weft.yaml")).unwrap();
    let is_key = |l: &&str| l.starts_with(|c: char| c.is_ascii_alphabetic());
    let keys: Vec<&str> = values.lines().filter(is_key).filter_map(|l| l.split_once(':')).map(|(k, _)| k).collect();
    assert!((5..25).contains(&keys.len()), "{keys:?}");
    for key in keys {
        assert!(template.contains(&format!(".Values.{key}")), "nothing uses {key}");
    }
}

#[test]
fn the_api_server_takes_every_object() {
    let cluster = up(Config { nodes: 1, network: Network::None, ..Config::default() }).unwrap();
    let file = deploy().join("weft.yaml");
    let said = cluster.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", file.to_str().unwrap()]).unwrap();
    for kind in ["serviceaccount", "clusterrole", "clusterrolebinding", "role", "rolebinding", "configmap", "daemonset"]
    {
        assert!(said.lines().any(|l| l.split('/').next().is_some_and(|k| k.starts_with(kind))), "no {kind}: {said}");
    }
    let there = cluster.kubectl(&["get", "daemonsets", "-n", NAMESPACE]).unwrap();
    assert!(there.is_empty(), "a dry run leaves nothing: {there}");
}
