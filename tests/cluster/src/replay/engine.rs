//! What `weft policy verdicts` says of the cluster's objects, as the API server has them.
use std::{
    collections::BTreeMap,
    env,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::{
    ask::Flow,
    scenario::PROBES,
    world::{NAMESPACES, OUTSIDE, World},
};
use crate::Cluster;

/// The verdicts of every flow.
#[derive(Debug)]
pub struct Verdicts(BTreeMap<(String, String, String), char>);

impl Verdicts {
    /// Asks of the policies that are in the cluster now. `defined`: whether ClusterNetworkPolicies can be.
    pub fn ask(cluster: &Cluster, world: &World, defined: bool) -> Result<Self> {
        let scenario = scenario(cluster, world, defined)?.to_string();
        let weft = env::current_exe().context("find this program")?.with_file_name("weft");
        let what = || format!("{} policy verdicts", weft.display());
        let mut command = Command::new(&weft);
        command.args(["policy", "verdicts", "--input", "/dev/stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(what)?;
        child.stdin.take().context("its input")?.write_all(scenario.as_bytes()).with_context(what)?;
        let output = child.wait_with_output().with_context(what)?;
        if !output.status.success() {
            bail!("{} failed ({})", what(), output.status);
        }
        Self::read(&serde_json::from_slice(&output.stdout).with_context(what)?)
    }

    /// Whether a flow is denied; none if nothing is said of it.
    pub fn denied(&self, world: &World, flow: Flow) -> Option<bool> {
        let name = |end: usize, address| {
            let end = &world.ends[end];
            match end.name.as_str() {
                OUTSIDE => format!("ext:{address}"),
                pod if end.is_pod() => format!("pod:{pod}@{address}"),
                node => format!("node:{node}@{address}"),
            }
        };
        let same_family = |a: &&std::net::IpAddr| a.is_ipv4() == flow.address.is_ipv4();
        let own = world.ends[flow.from].addresses.iter().find(same_family)?;
        let key = (name(flow.from, *own), name(flow.to, flow.address), flow.probe.to_owned());
        match self.0.get(&key)? {
            '.' => Some(false),
            'E' | 'I' | 'B' => Some(true),
            _ => None,
        }
    }

    fn read(answer: &Value) -> Result<Self> {
        let form = || "`weft policy verdicts` answers in another form";
        let matrix = answer["steps"].get(0).with_context(form)?;
        let texts = |v: &Value| -> Option<Vec<String>> {
            v.as_array()?.iter().map(|t| t.as_str().map(str::to_owned)).collect()
        };
        let ends = texts(&matrix["endpoints"]).with_context(form)?;
        let mut all = BTreeMap::new();
        for part in matrix["verdicts"].as_array().with_context(form)? {
            for probe in texts(&part["probes"]).with_context(form)? {
                for (from, row) in ends.iter().zip(texts(&part["rows"]).with_context(form)?) {
                    let cells = ends.iter().zip(row.chars());
                    all.extend(cells.map(|(to, verdict)| ((from.clone(), to.clone(), probe.clone()), verdict)));
                }
            }
        }
        Ok(Self(all))
    }
}

fn scenario(cluster: &Cluster, world: &World, defined: bool) -> Result<Value> {
    let items = |what: &[&str]| -> Result<Vec<Value>> {
        Ok(cluster.get(what)?["items"].as_array().cloned().unwrap_or_default())
    };
    let named = |o: &Value| o["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespaces = items(&["namespaces"])?.into_iter();
    let namespaces: Map<String, Value> =
        namespaces.map(|n| (named(&n), json!({"labels": n["metadata"]["labels"]}))).collect();
    let ips = |list: &Value, field: &str| -> Vec<Value> {
        list.as_array().into_iter().flatten().map(|a| a[field].clone()).collect()
    };
    let nodes = items(&["nodes"])?.into_iter().map(|n| {
        let addresses = n["status"]["addresses"].as_array().into_iter().flatten();
        let internal: Vec<Value> =
            addresses.filter(|a| a["type"] == "InternalIP").map(|a| a["address"].clone()).collect();
        json!({"name": named(&n), "ips": internal, "labels": n["metadata"]["labels"]})
    });
    let nodes: Vec<Value> = nodes.collect();
    let mut pods = Vec::new();
    let mut policies = items(&["networkpolicies", "-A"])?;
    for namespace in NAMESPACES {
        pods.extend(items(&["pods", "-n", namespace])?.into_iter().map(|p| {
            let containers = p["spec"]["containers"].as_array().into_iter().flatten();
            let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
            let ports = ports
                .map(|p| json!({"port": p["containerPort"], "protocol": p["protocol"], "name": p["name"]}))
                .collect::<Vec<_>>();
            json!({
                "namespace": namespace, "name": named(&p), "labels": p["metadata"]["labels"], "node": p["spec"]["nodeName"],
                "ips": ips(&p["status"]["podIPs"], "ip"), "ports": ports, "phase": p["status"]["phase"],
                "hostNetwork": p["spec"]["hostNetwork"] == true,
            })
        }));
    }
    if defined {
        policies.extend(items(&["clusternetworkpolicies"])?);
    }
    let outside = world.ends.iter().find(|e| e.name == OUTSIDE).context("nobody is outside")?;
    Ok(json!({
        "schema": "netpol-verdict-case/1", "id": "replayed", "external": outside.addresses, "probes": PROBES,
        "cluster": {"namespaces": namespaces, "nodes": nodes, "pods": pods, "policies": policies},
        "steps": [{"ops": []}],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_row_by_row() {
        let answer = json!({"steps": [{"endpoints": ["a", "b"], "verdicts": [
            {"probes": ["TCP/80", "UDP/80"], "rows": [".E", "I-"]}, {"probes": ["TCP/81"], "rows": ["..", ".."]},
        ]}]});
        let Verdicts(all) = Verdicts::read(&answer).unwrap();
        let of = |from: &str, to: &str, probe: &str| all[&(from.into(), to.into(), probe.into())];
        assert_eq!((of("a", "b", "UDP/80"), of("b", "a", "TCP/80"), of("a", "b", "TCP/81")), ('E', 'I', '.'));
        assert!(Verdicts::read(&json!({"steps": []})).is_err());
    }
}
