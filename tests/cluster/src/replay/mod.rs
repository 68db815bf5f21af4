//! Replays policies on real pods: scenarios are applied to a cluster that is up by its API server, flows of pods, of nodes and to the outside are asked by
//! real connections, and each verdict is held against what the scenario says and against `weft policy verdicts`.
mod ask;
mod engine;
mod scenario;
mod world;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::{
    ask::{Answer, Flow, ask},
    engine::Verdicts,
    scenario::{Definition, Scenario, Step},
    world::{NAMESPACES, World},
};
use crate::Cluster;

/// As long as a change may take until it is in force: agents ask for a kind that they have not found every 40 s.
const PATIENCE: Duration = Duration::from_secs(75);
/// Of what is wrong, as many as are shown.
const SHOWN: usize = 5;

/// Replays these files; `definition` is that of ClusterNetworkPolicies, which comes after the agents. Prints an object of JSON a line: how many there will
/// be, and each as it ends.
///
/// # Errors
/// When a file is no scenario, or the cluster is not as it must be to go on.
pub fn replay(definition: &Path, files: &[PathBuf]) -> Result<()> {
    let read = |file: &PathBuf| {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Scenario::read(&text).with_context(|| file.display().to_string())
    };
    let scenarios = files.iter().map(read).collect::<Result<Vec<_>>>()?;
    println!("{}", json!({"cases": scenarios.len()}));
    let cluster = Cluster::find()?;
    let world = World::make(&cluster)?;
    let mut replay = Replay { flows: world.flows(), world, cluster, definition, defined: false };
    for (number, scenario) in (1..).zip(&scenarios) {
        let begin = Instant::now();
        // One that cannot be played keeps none of the others from it.
        let wrong = replay.scenario(scenario).unwrap_or_else(|e| vec![format!("{e:#}")]);
        replay.clean(scenario)?;
        eprintln!("{:.1} s: {}", begin.elapsed().as_secs_f64(), scenario.title);
        println!("{}", json!({"number": number, "name": scenario.title, "tags": [], "wrong": wrong}));
    }
    replay.world.unmake(&replay.cluster)
}

struct Replay<'a> {
    cluster: Cluster,
    world: World,
    flows: Vec<Flow>,
    definition: &'a Path,
    defined: bool,
}

impl Replay<'_> {
    /// What of it is wrong. Its policies and labels stay.
    fn scenario(&mut self, scenario: &Scenario) -> Result<Vec<String>> {
        if !self.defined {
            let text = fs::read_to_string(self.definition);
            self.cluster.apply(&text.with_context(|| format!("read {}", self.definition.display()))?)?;
            let established = ["wait", "--for=condition=Established", "--timeout=30s", "-f"];
            self.cluster.kubectl(&[&established[..], &[self.path()?]].concat())?;
            self.defined = true;
        }
        // What an earlier one has left would be taken for what this one brings about.
        let mut wrong = self.settle(&|_| false)?;
        for (number, step) in (1..).zip(&scenario.steps) {
            let found = self.step(step).with_context(|| format!("step {number}"))?;
            wrong.extend(found.into_iter().map(|what| format!("step {number}: {what}")));
        }
        Ok(wrong)
    }

    fn path(&self) -> Result<&str> {
        self.definition.to_str().context("the path of the definition")
    }

    fn step(&mut self, step: &Step) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        if step.definition == Some(Definition::Gone) {
            self.cluster.kubectl(&["delete", "--wait", "-f", self.path()?])?;
            self.defined = false;
        }
        for object in &step.refused {
            if self.cluster.apply(&object.to_string()).is_ok() {
                wrong.push(format!("the API server takes {object}"));
            }
        }
        if !step.apply.is_empty() {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": step.apply});
            self.cluster.apply(&list.to_string())?;
        }
        for name in &step.delete {
            match name.split('/').collect::<Vec<_>>()[..] {
                [kind, name] => self.cluster.kubectl(&["delete", kind, name])?,
                [kind, namespace, name] => self.cluster.kubectl(&["delete", kind, name, "-n", namespace])?,
                _ => bail!("`{name}` is neither KIND/NAME nor KIND/NAMESPACE/NAME"),
            };
        }
        self.label(&step.labels)?;
        let denials = step.denials()?;
        let must = |flow| self.world.is_denied(flow, &denials);
        wrong.extend(self.settle(&must)?);
        let verdicts = Verdicts::ask(&self.cluster, &self.world, self.defined)?;
        let says = self.flows.iter().filter_map(|flow| Some((flow, verdicts.denied(&self.world, *flow)?)));
        let others = says.filter(|(flow, denied)| *denied != must(**flow));
        wrong.extend(others.map(|(flow, denied)| {
            let verdict = if denied { "denied" } else { "allowed" };
            format!("by `weft policy verdicts` {} is {verdict}", self.world.show(*flow))
        }));
        Ok(shown(wrong))
    }

    /// Asks until all is as it must be, and then once more: what is denied must stay so.
    fn settle(&self, denied: &dyn Fn(Flow) -> bool) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.flows.clone();
        let mut wrong = Vec::new();
        while !left.is_empty() && Instant::now() < deadline {
            wrong = self.not_as_must(&left, denied)?;
            left = wrong.iter().map(|(flow, _)| *flow).collect();
        }
        if wrong.is_empty() {
            wrong = self.not_as_must(&self.flows, denied)?;
            // On a busy machine an answer comes late; what must not come at all has come.
            let late: Vec<Flow> = wrong.iter().map(|(flow, _)| *flow).filter(|flow| !denied(*flow)).collect();
            wrong.retain(|(flow, _)| denied(*flow));
            wrong.extend(self.not_as_must(&late, denied)?);
        }
        let say = |(flow, answer): (Flow, Answer)| match answer {
            Answer::Came => format!("{} is allowed", self.world.show(flow)),
            Answer::None => format!("{} is denied", self.world.show(flow)),
            Answer::Other(why) => format!("{}: {why}", self.world.show(flow)),
        };
        Ok(shown(wrong.into_iter().map(say).collect()))
    }

    fn not_as_must(&self, flows: &[Flow], denied: &dyn Fn(Flow) -> bool) -> Result<Vec<(Flow, Answer)>> {
        let must = |flow| if denied(flow) { Answer::None } else { Answer::Came };
        let answers = flows.iter().copied().zip(ask(&self.world, flows)?);
        Ok(answers.filter(|(flow, answer)| *answer != must(*flow)).collect())
    }

    fn label(&self, labels: &BTreeMap<String, BTreeMap<String, Option<String>>>) -> Result<()> {
        for (of, labels) in labels {
            let whom = match of.split_once('/') {
                Some((namespace, pod)) => vec!["pod", pod, "-n", namespace],
                None => vec!["namespace", of],
            };
            let words = labels.iter().map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => format!("{key}-"),
            });
            let words: Vec<String> = words.collect();
            let words = words.iter().map(String::as_str);
            self.cluster.kubectl(&["label", "--overwrite"].into_iter().chain(whom).chain(words).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn clean(&self, scenario: &Scenario) -> Result<()> {
        if self.defined {
            self.cluster.kubectl(&["delete", "clusternetworkpolicies", "--all"])?;
        }
        for namespace in NAMESPACES {
            self.cluster.kubectl(&["delete", "networkpolicies", "--all", "-n", namespace])?;
        }
        for step in &scenario.steps {
            let gone = |(of, labels): (&String, &BTreeMap<String, Option<String>>)| {
                (of.clone(), labels.keys().map(|key| (key.clone(), None)).collect())
            };
            self.label(&step.labels.iter().map(gone).collect())?;
        }
        Ok(())
    }
}

/// The first few, and how many there are.
fn shown(mut wrong: Vec<String>) -> Vec<String> {
    let all = wrong.len();
    wrong.truncate(SHOWN);
    if all > SHOWN {
        wrong.push(format!("{} more", all - SHOWN));
    }
    wrong
}
