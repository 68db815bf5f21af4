//! The tour: the whole of Weft in a few seconds, told for those who see it the first time.
mod table;
mod wiring;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{Lab, LabConfig, Node, PodSpec, Snapshot, Step, Watch};

/// Pods of the tour: node and name.
const PODS: [(&str, &str); 4] = [("node-1", "web"), ("node-1", "client"), ("node-2", "db"), ("node-2", "cache")];
/// The pod whose wire is shown, and which is deleted in the end.
const SHOWN: &str = "web";
/// As many lines of a command's output are shown.
const LINES: usize = 18;

/// Runs it and prints it. Fails if any pair does not reach each other or anything is left behind.
///
/// # Errors
/// When the lab can not be built.
pub fn run() -> Result<ExitCode> {
    let begin = Instant::now();
    let before = Snapshot::take()?;
    say(
        "Weft connects Kubernetes pods. This tour builds a small cluster on this machine: a node is a network namespace with \
         a real weft-agent in it, a pod is one that the real CNI plugin has connected. No packet leaves the machine.",
    );

    heading("1. Two nodes");
    let mut lab = Lab::up(LabConfig { watch: printing(), ..LabConfig::default() })?;
    for node in lab.nodes() {
        describe(node);
    }

    heading("2. Four pods, by CNI calls");
    say("For each pod a container runtime makes a network namespace and executes the plugin weft-cni, which asks the \
         agent. The agent chooses addresses, makes a veth pair with one end in the pod, lets the node's end join the block \
         that the program from_pod stands in, and writes the maps: the entry that lets packets flow comes last.");
    for (node, name) in PODS {
        println!("\n  pod {name} on {node}");
        let added = lab.pod_add(node, &PodSpec::named(name).label("app", name))?;
        if name == SHOWN {
            wiring::show(lab.node(node)?, &added)?;
        } else {
            println!("               addresses {}", addresses(&added.pod.addresses));
        }
    }

    heading("3. Who reaches whom");
    say(
        "From each pod and node (left) to each pod and node (top): a UDP datagram there and back, a TCP connection, an echo \
         request. The figure is the median time of UDP there and back, in microseconds, with both ends in one thread: the \
         pure cost of the way.",
    );
    let connectivity = table::measure(&lab)?;
    print!("\n{connectivity}");

    heading("4. A look inside node-1");
    say("The programs decide by BPF maps, which the agent keeps equal to what the cluster's objects ask for.");
    for args in [&["status"][..], &["endpoint", "list"], &["map", "list"]] {
        weft(&lab, "node-1", args)?;
    }
    for map in maps(lab.node("node-1")?, &["endpoints", "remote4"])? {
        weft(&lab, "node-1", &["map", "dump", &map])?;
    }
    weft(&lab, "node-1", &["drops"])?;

    heading("5. Down");
    lab.pod_del(SHOWN)?;
    println!("               the pod {SHOWN} is gone, and its entries in the maps with it");
    let goes = Instant::now();
    lab.down()?;
    print_step("end the agents; remove namespaces, BPF file systems and files", goes.elapsed());
    let left = before.difference(&Snapshot::take()?);
    if !left.is_empty() {
        println!("\n  What is not as it was before:\n{left}");
    }

    let verdict = format!(
        "{} of {} connections work; {}; {:.1} s",
        connectivity.working(),
        connectivity.tried(),
        if left.is_empty() { "the machine is as it was" } else { "the machine is NOT as it was" },
        begin.elapsed().as_secs_f64(),
    );
    let good = connectivity.working() == connectivity.tried() && left.is_empty();
    println!("\n{} {verdict}.", if good { "Tour done:" } else { "Tour FAILED:" });
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(node: &Node) {
    let cidrs = node.pod_cidrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    println!("               {}: {}, its pods get addresses of {cidrs}", node.name(), addresses(&node.addresses()));
}

/// Runs the `weft` command for a node and shows what it prints.
fn weft(lab: &Lab, node: &str, args: &[&str]) -> Result<()> {
    let paths = lab.node(node)?.paths().clone();
    println!("\n  $ weft {}", args.join(" "));
    let output = Command::new(lab.bin_dir().join("weft"))
        .env("WEFT_API_SOCKET", paths.api_socket())
        .args(args)
        .output()
        .context("run the weft command")?;
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().take(LINES) {
        println!("    {line}");
    }
    match text.lines().count().saturating_sub(LINES) {
        0 => {}
        more => println!("    ({more} more lines)"),
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("    {line}");
    }
    Ok(())
}

/// Full names of the maps whose names begin so: the schema's version stands behind.
fn maps(node: &Node, beginnings: &[&str]) -> Result<Vec<String>> {
    let list = node.ask("/v1/maps")?;
    let names = list.as_array().into_iter().flatten().filter_map(|m| m.get("name")?.as_str());
    Ok(names.filter(|n| beginnings.iter().any(|b| n.starts_with(b))).map(str::to_owned).collect())
}

fn heading(text: &str) {
    println!("\n{text}\n{}", "-".repeat(text.chars().count()));
}

/// Prints a paragraph in lines of reasonable length.
fn say(text: &str) {
    const WIDTH: usize = 96;
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            println!("{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    println!("{line}");
}

fn printing() -> Watch {
    Watch::new(|Step { what, took }| print_step(what, *took))
}

fn print_step(what: &str, took: Duration) {
    println!("  {:>9.1} ms  {what}", took.as_secs_f64() * 1e3);
}

fn addresses(list: &[std::net::IpAddr]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
