//! `weft policy`: what policies say, of a live node and of a scenario.
use std::{
    fs, io,
    io::{BufRead, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand, ValueEnum};

use super::{Failure, Output, client::Client, show, show_value, table::Table};
use crate::{
    api::types::{PolicyHits, PolicyList, PolicyStatus},
    policy::{
        objects,
        verdicts::{self, Case, JudgeError, Mode, Programs, Question},
    },
};

/// Above the options of `verdicts`.
const ABOUT: &str = "\
Judges every flow of a scenario by its NetworkPolicies and ClusterNetworkPolicies, without a cluster and without an agent.

The scenario is a file of JSON, schema netpol-verdict-case/1: a cluster's objects, what happens to them step by step, and the \
probes to try. The objects go the way that the agent's own go: each node's agent follows the events, compiles them to the entries \
of the BPF maps, and each flow is looked up in those bytes by the function that the BPF programs are built from. The answer, \
schema netpol-verdict-result/1, is one matrix of verdicts for each step: `.` allowed, `E` denied by the egress policies of the \
source pod, `I` by the ingress policies of the destination pod, `B` by both, `-` no flow.

What in a policy the API server would have refused matches nothing, and is told on standard error and under `problems`. A policy in audit \
mode (annotation `weft.dev/mode: audit`) denies nothing; `--explain` says what it would.";

/// Below them.
const AFTER: &str = "\
Exit status:
  0  done
  1  the answer could not be written
  2  the input cannot be read, or is no scenario; with --batch, at least one line was not
  3  something is asked for that is not supported; standard output says what: {\"unsupported\": [\"…\"]}

Examples:
  weft policy verdicts --input case.json
  weft policy verdicts --input case.json --rebuild
  weft policy verdicts --input case.json --explain 0 pod:shop/web@10.1.0.5 ext:203.0.113.9 TCP/443
  weft policy verdicts --batch < cases.jsonl > results.jsonl";

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Judge every flow of a scenario, by the very look-up that the packet path has
    #[command(long_about = ABOUT, after_long_help = AFTER)]
    Verdicts(Verdicts),
    /// Show the policies that this node's agent knows, whom they select here, and what is wrong with them
    List(Output),
    /// Show what a policy was compiled to: its policy sets, and what these say of whom
    Get {
        /// Its name: NAMESPACE/NAME, or that of a ClusterNetworkPolicy
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Clone, Debug, Args)]
pub(super) struct Verdicts {
    /// Read the scenario from this file
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    input: Option<PathBuf>,
    /// Read one scenario a line from standard input, and write one result a line
    ///
    /// A line that is no scenario is told on standard error, and the others are still judged.
    #[arg(long, conflicts_with_all = ["input", "explain"])]
    batch: bool,
    /// Compile each step from nothing, instead of following what changed
    ///
    /// Both ways give the same verdicts.
    #[arg(long)]
    rebuild: bool,
    /// What looks the flows up
    #[arg(long, value_enum, default_value_t = Lookup::Native)]
    lookup: Lookup,
    /// Say in words why one flow may pass or not, instead of judging all
    ///
    /// STEP counts from 0; FROM and TO are ends as the matrix names them (pod:NS/NAME@IP, node:NAME@IP, ext:IP); PROBE is
    /// TCP/PORT, UDP/PORT, SCTP/PORT or ICMP/0.
    #[arg(long, num_args = 4, value_names = ["STEP", "FROM", "TO", "PROBE"])]
    explain: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lookup {
    /// The function of the BPF programs, built for this host
    Native,
    /// The BPF programs themselves, loaded for the time that it takes: frames of each flow are put through them (needs root)
    Bpf,
}

impl Policy {
    /// What is asked for when an agent is asked.
    pub(super) fn output(&self) -> Option<&Output> {
        match self {
            Self::Verdicts(_) => None,
            Self::List(output) | Self::Get { output, .. } => Some(output),
        }
    }
}

pub(super) async fn run(client: &Client, command: &Policy, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Policy::Verdicts(options) => verdicts(options, out),
        Policy::List(output) => show(client, output, "/v1/policies", list, out).await,
        Policy::Get { name, output } => {
            let all: PolicyList = client.get("/v1/policies").await?;
            let called = |p: &&PolicyStatus| p.name == *name || p.name.split_once(' ').is_some_and(|(_, n)| n == name);
            let Some(policy) = all.policies.iter().find(called) else {
                return Err(Failure::Usage(format!("there is no policy {name}: `weft policy list` shows them")));
            };
            Ok(show_value(output, policy, get, out)?)
        }
    }
}

fn list(all: &PolicyList) -> String {
    let mut table = Table::new([
        "POLICY",
        "DIRECTIONS",
        "TIER",
        "MODE",
        ">PODS",
        ">SETS",
        ">ALLOWED",
        ">DENIED",
        ">AUDITED",
        "STATE",
    ]);
    for p in &all.policies {
        let mut state = p.kernel.clone();
        if !p.waiting.is_empty() {
            state.push_str(&format!("; no room for {} pods", p.waiting.len()));
        }
        if !p.flaws.is_empty() {
            state.push_str(&format!("; {} flaws", p.flaws.len()));
        }
        table.row([
            p.name.clone(),
            p.directions.join(","),
            p.tier.clone().unwrap_or_default(),
            p.mode.clone(),
            p.pods.len().to_string(),
            p.sets.len().to_string(),
            p.hits.allowed.to_string(),
            p.hits.denied.to_string(),
            p.hits.audited.to_string(),
            state,
        ]);
    }
    let mut text = super::show::or(table, "No policies are known.\n");
    for problem in &all.problems {
        text.push_str(&format!("! {problem}\n"));
    }
    text
}

fn get(p: &PolicyStatus) -> String {
    let or_none = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
    let mut text = format!("{}: {}\n", p.name, p.kernel);
    p.tier.iter().for_each(|tier| text.push_str(&format!("tier {tier}\n")));
    if p.mode == objects::Mode::Audit.name() {
        text.push_str("mode audit: what it would deny passes, and is reported (weft observe --audit)\n");
    }
    text.push_str(&format!("directions: {}\npods here: {}\n", or_none(&p.directions), or_none(&p.pods)));
    if !p.waiting.is_empty() {
        text.push_str(&format!(
            "! the maps have no room for the policies of {}: older ones are in force, and a new pod is isolated\n",
            p.waiting.join(" ")
        ));
    }
    p.flaws.iter().for_each(|flaw| text.push_str(&format!("! {flaw}\n")));
    text.push_str(&format!("flows: {}\n", flows(p.hits)));
    for rule in &p.rules {
        text.push_str(&format!("  {}: {}\n", rule.rule, flows(rule.hits)));
    }
    for set in &p.sets {
        let mode = |name: &String| if set.audited.contains(name) { format!("{name} (audit)") } else { name.clone() };
        let policies: Vec<String> = set.policies.iter().map(mode).collect();
        text.push_str(&format!("\npolicy set {}, {}, of {}\n", set.id, set.direction, policies.join(", ")));
        if set.hits != PolicyHits::default() {
            text.push_str(&format!("  flows without a rule that decides: {}\n", flows(set.hits)));
        }
        for peer in &set.peers {
            let says = if peer.says.is_empty() { "deny all".to_owned() } else { peer.says.join("; ") };
            text.push_str(&format!("  {:>6} {}: {says}\n", peer.identity, peer.who));
        }
    }
    text
}

/// How often was judged so.
fn flows(hits: PolicyHits) -> String {
    let all = [(hits.allowed, "allowed"), (hits.denied, "denied"), (hits.audited, "passed for audit")];
    let some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if some.is_empty() { "none yet".to_owned() } else { some.join(", ") }
}

fn verdicts(options: &Verdicts, out: &mut dyn Write) -> Result<(), Failure> {
    let mode = if options.rebuild { Mode::Rebuild } else { Mode::Incremental };
    let programs = (options.lookup == Lookup::Bpf).then(Programs::default);
    let mut judge = Judge { mode, programs };
    if options.batch {
        return batch(&mut judge, &mut io::stdin().lock(), out);
    }
    let path = options.input.clone().unwrap_or_default();
    let input = |cause: &dyn std::fmt::Display| Failure::Usage(format!("{}: {cause}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| input(&e))?;
    let case: Case = text.parse().map_err(|e| input(&e))?;
    if let Some(words) = &options.explain {
        let text = verdicts::explain(&case, mode, &question(words)?).map_err(|e| input(&e))?;
        out.write_all(text.as_bytes())?;
    } else {
        judge.judge(&case, out)?.map_err(|e| input(&e))?;
    }
    Ok(out.flush()?)
}

/// Who looks flows up.
struct Judge {
    mode: Mode,
    /// None: natively.
    programs: Option<Programs>,
}
impl Judge {
    /// The inner error is the input's.
    fn judge(&mut self, case: &Case, out: &mut dyn Write) -> Result<Result<(), verdicts::BadCase>, Failure> {
        let judged = match &mut self.programs {
            None => verdicts::judge(case, self.mode).map_err(JudgeError::Case),
            Some(programs) => verdicts::judge_by(programs, case, self.mode),
        };
        match judged {
            Ok(answer) => {
                answer.problems.iter().for_each(|p| eprintln!("weft: {}: {p}", case.id));
                writeln!(out, "{}", serde_json::to_string(&answer).map_err(io::Error::from)?)?;
                Ok(Ok(()))
            }
            Err(JudgeError::Case(bad)) => Ok(Err(bad)),
            Err(JudgeError::Programs(error)) => {
                let reason = format!("--lookup bpf: {}: {}", case.id, crate::error_chain(&error));
                writeln!(out, "{}", serde_json::json!({"unsupported": [reason]}))?;
                Err(Failure::Unsupported(reason))
            }
        }
    }
}

fn batch(judge: &mut Judge, cases: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut bad, mut unsupported) = (0_usize, None);
    for (n, line) in cases.lines().enumerate() {
        let line = line.map_err(|e| Failure::Usage(format!("standard input: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let judged = match line.parse() {
            Ok(case) => judge.judge(&case, out),
            Err(bad) => Ok(Err(bad)),
        };
        match judged {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                eprintln!("weft: line {}: {error}", n + 1);
                bad += 1;
            }
            // It may be this one's alone.
            Err(Failure::Unsupported(reason)) => {
                eprintln!("weft: line {}: not supported: {reason}", n + 1);
                unsupported = Some(reason);
            }
            Err(failure) => return Err(failure),
        }
    }
    out.flush()?;
    match unsupported {
        Some(reason) => Err(Failure::Unsupported(reason)),
        None if bad > 0 => Err(Failure::Usage(format!("{bad} of the lines are no scenarios"))),
        None => Ok(()),
    }
}

fn question(words: &[String]) -> Result<Question, Failure> {
    let usage = |text: String| Failure::Usage(format!("--explain: {text}"));
    let [step, from, to, probe] = words else { return Err(usage("it takes STEP FROM TO PROBE".into())) };
    Ok(Question {
        step: step.parse().map_err(|_| usage(format!("`{step}` is no number of a step")))?,
        from: from.clone(),
        to: to.clone(),
        probe: probe.parse().map_err(usage)?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::{Cli, Command};

    /// Two pods of a namespace that lets nobody in but from its app `web`, by TCP to port 80.
    fn case() -> Value {
        let pod = |name: &str, ip: &str| json!({"namespace": "shop", "name": name, "labels": {"app": name}, "node": "n1", "ips": [ip]});
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "p"},
            "spec": {"podSelector": {}, "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "web"}}}, {}], "ports": [{"port": 80}],
            }]},
        });
        json!({
            "schema": "netpol-verdict-case/1", "id": "c1", "external": ["203.0.113.1"], "probes": ["TCP/80", "TCP/81", "ICMP/0"],
            "cluster": {
                "namespaces": {"shop": {}}, "nodes": [{"name": "n1", "ips": ["192.0.2.1"], "labels": {}}],
                "pods": [pod("web", "10.1.0.1"), pod("db", "10.1.0.2")], "policies": [policy],
            },
            "steps": [
                {"ops": [], "expect": "is ignored"},
                {"ops": [{"op": "delete", "kind": "NetworkPolicy", "namespace": "shop", "name": "p"}]},
            ],
        })
    }
    fn weft(words: &[&str]) -> Result<String, Failure> {
        let cli = Cli::try_parse_from(["weft", "policy", "verdicts"].iter().chain(words)).unwrap();
        let Command::Policy(Policy::Verdicts(options)) = cli.command else { panic!("another command") };
        let mut out = Vec::new();
        let result = verdicts(&options, &mut out);
        result.map(|()| String::from_utf8(out).unwrap())
    }
    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn each_step_has_a_matrix_with_equal_probes_together() {
        let file = file(&case().to_string());
        let path = file.path().to_str().unwrap();
        let answer: Value = serde_json::from_str(&weft(&["--input", path]).unwrap()).unwrap();
        assert_eq!((&answer["schema"], &answer["id"]), (&json!("netpol-verdict-result/1"), &json!("c1")));
        let ends = json!(["pod:shop/db@10.1.0.2", "pod:shop/web@10.1.0.1", "node:n1@192.0.2.1", "ext:203.0.113.1"]);
        assert_eq!(answer["steps"][0]["endpoints"], ends);
        let verdicts = json!([
            {"probes": ["TCP/80"], "rows": [".I..", "....", "..--", "II--"]},
            {"probes": ["TCP/81", "ICMP/0"], "rows": [".I..", "I...", "..--", "II--"]},
        ]);
        assert_eq!(answer["steps"][0]["verdicts"], verdicts);
        let open = json!([{"probes": ["TCP/80", "TCP/81", "ICMP/0"], "rows": ["....", "....", "..--", "..--"]}]);
        assert_eq!(answer["steps"][1]["verdicts"], open);
        assert_eq!(answer["engine"]["lookup"], "native");
        assert_eq!(answer["engine"]["lookup_source_sha256"].as_str().unwrap().len(), 64);
        assert!(
            answer["problems"][0].as_str().unwrap().contains("spec.ingress[0].from[1]: it names nobody"),
            "{answer}"
        );
        let rebuilt: Value = serde_json::from_str(&weft(&["--input", path, "--rebuild"]).unwrap()).unwrap();
        assert_eq!(rebuilt["steps"], answer["steps"]);
    }

    #[test]
    fn why_is_told_with_the_rules_that_decide() {
        let file = file(&case().to_string());
        let ask = |step: &str, from: &str, to: &str, probe: &str| {
            weft(&["--input", file.path().to_str().unwrap(), "--explain", step, from, to, probe])
        };
        let (web, db) = ("pod:shop/web@10.1.0.1", "pod:shop/db@10.1.0.2");
        let text = ask("0", web, db, "TCP/80").unwrap();
        for part in [
            "TCP/80: allowed\n",
            "egress of shop/web: allowed: no policy selects the pod\n",
            "ingress of shop/db: allowed: NetworkPolicy shop/p, ingress rule 0 decides\n",
            "(Accept) matches\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let text = ask("0", db, web, "TCP/81").unwrap();
        for part in [
            "denied\n",
            "ingress of shop/web: denied: policies isolate the pod",
            "is about neither peer nor port",
            "shop/p isolates the pod",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(ask("0", "node:n1@192.0.2.1", db, "TCP/9").unwrap().contains("the pod's own node always gets in"));
        assert!(ask("1", db, web, "TCP/81").unwrap().contains("allowed"));
        for (step, from, probe) in
            [("2", web, "TCP/80"), ("x", web, "TCP/80"), ("0", "pod:a/b@1.1.1.1", "TCP/80"), ("0", web, "TCP")]
        {
            let error = ask(step, from, db, probe).unwrap_err();
            assert!(matches!(error, Failure::Usage(_)), "{step} {from} {probe}: {error}");
        }
    }

    #[test]
    fn what_is_no_scenario_is_named_by_its_field() {
        let mut other = case();
        other["schema"] = json!("netpol-verdict-case/2");
        let mut pod = case();
        pod["cluster"]["pods"][0]["ips"] = json!(["ten"]);
        let mut probe = case();
        probe["probes"][1] = json!("TCP");
        let mut kind = case();
        kind["cluster"]["policies"][0]["kind"] = json!("Service");
        let cases = [
            (other, "field schema"),
            (pod, "cluster.pods[0].ips[0]: `ten` is no IP address"),
            (probe, "field probes[1]"),
            (kind, "cluster.policies[0]: kind is Service"),
            (json!({}), "missing field `schema`"),
        ];
        for (case, text) in cases {
            let file = file(&case.to_string());
            let error = weft(&["--input", file.path().to_str().unwrap()]).unwrap_err();
            assert!(matches!(&error, Failure::Usage(t) if t.contains(text)), "{text} is not in {error}");
        }
        assert!(matches!(weft(&["--input", "/does/not/exist"]), Err(Failure::Usage(_))));
    }

    #[test]
    fn a_broken_policy_changes_nothing_and_is_told() {
        let mut c = case();
        c["steps"][1] = json!({"ops": [{"op": "apply", "kind": "NetworkPolicy", "namespace": "shop", "name": "p", "object": {
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "p"},
            "spec": {"podSelector": "all"},
        }}]});
        let file = file(&c.to_string());
        let answer: Value = serde_json::from_str(&weft(&["--input", file.path().to_str().unwrap()]).unwrap()).unwrap();
        assert_eq!(answer["steps"][1], answer["steps"][0]);
        assert!(
            answer["problems"][1].as_str().unwrap().starts_with("NetworkPolicy shop/p, field spec.podSelector"),
            "{answer}"
        );
    }

    #[test]
    fn a_bad_line_of_a_batch_leaves_the_others() {
        let lines = format!("{}\n\n{{}}\n{}\n", case(), case());
        let mut out = Vec::new();
        let mut judge = Judge { mode: Mode::Incremental, programs: None };
        let error = batch(&mut judge, &mut lines.as_bytes(), &mut out).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)));
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_line_that_is_not_supported_leaves_the_others() {
        // As below, both or none of them are.
        let lines = format!("{}\n{}\n", case(), case());
        let mut out = Vec::new();
        let mut judge = Judge { mode: Mode::Incremental, programs: Some(Programs::default()) };
        let judged = batch(&mut judge, &mut lines.as_bytes(), &mut out);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.lines().count(), 2, "{out}");
        assert_eq!(matches!(judged, Err(Failure::Unsupported(_))), out.contains("unsupported"), "{out}");
    }

    #[test]
    fn a_field_that_is_null_is_as_one_that_is_absent() {
        let mut c = case();
        for field in ["hostNetwork", "phase", "ports", "labels"] {
            c["cluster"]["pods"][0][field] = json!(null);
        }
        c["cluster"]["policies"] = json!(null);
        c["cluster"]["nodes"] = json!(null);
        c["cluster"]["namespaces"] = json!(null);
        let file = file(&c.to_string());
        let answer: Value = serde_json::from_str(&weft(&["--input", file.path().to_str().unwrap()]).unwrap()).unwrap();
        let ends = json!(["pod:shop/db@10.1.0.2", "pod:shop/web@10.1.0.1", "ext:203.0.113.1"]);
        assert_eq!((&answer["steps"][0]["endpoints"], &answer["problems"]), (&ends, &json!(null)), "{answer}");
    }

    #[test]
    fn a_flow_that_the_programs_cannot_be_asked_about_is_not_supported() {
        // Without a BPF object, or without the right to load it. With both, they judge: `packets` has the tests.
        let file = file(&case().to_string());
        match weft(&["--input", file.path().to_str().unwrap(), "--lookup", "bpf"]) {
            Ok(text) => assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["engine"]["lookup"], "bpf"),
            Err(error) => {
                assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", std::process::ExitCode::from(3)));
                assert!(error.to_string().contains("--lookup bpf: c1: "), "{error}");
            }
        }
    }
}
