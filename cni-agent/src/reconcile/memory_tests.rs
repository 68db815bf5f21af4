//! What a pod of another node costs the agent, in all that it keeps of it: its row, what is wanted of the maps and what was written, and what policies see.
use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    delta::{Delta, Target},
    desired::Desired,
    policy::Policies,
};
use crate::{
    compile::{
        Entry, EntryKey, Heard, InForce, NodeNumbers,
        fixtures::{facts, hop, node},
    },
    memory,
    tables::{NamedPort, Namespace, Node, Phase, Pod, Protocol, Tables},
};

/// For a pod of another node.
const BYTES: usize = 512;
const PODS: usize = 20_000;
/// Each has a pod of a template at most, as the scheduler spreads them.
const NODES: usize = 1000;
/// Pods of one template, as a Deployment makes them.
const REPLICAS: usize = 10;
/// Says to a process that it is the one that measures.
const MEASURES: &str = "WEFT_TEST_MEASURES";

/// Maps that take everything, and are in the kernel.
struct Kernel;
impl Target for Kernel {
    fn dump(&mut self) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn dump_policy(&mut self) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn upsert(&mut self, _: &EntryKey, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn delete(&mut self, _: &EntryKey) -> io::Result<()> {
        Ok(())
    }
}

fn node_name(n: usize) -> String {
    format!("node-{n}")
}
fn address(n: usize) -> IpAddr {
    Ipv4Addr::from(u32::try_from(n).unwrap()).into()
}
fn other_node(n: usize) -> Node {
    let ip = address(0xc0a8_0000 + n);
    Node {
        name: node_name(n),
        pod_cidrs: vec![IpNet::new(address(0x0a00_0000 + 256 * n), 24).unwrap()],
        internal_ips: vec![ip],
        labels: BTreeMap::new(),
        addresses: BTreeSet::from([ip]),
    }
}
fn pod(n: usize) -> Pod {
    let app = n / REPLICAS;
    let hash = format!("{:08x}", app.wrapping_mul(0x9e37_79b9) % 0xffff_ffff);
    let label = |key: &str, value: String| (key.to_owned(), value);
    Pod {
        namespace: format!("team-{}", app % 100),
        name: format!("app-{app}-{hash}-{:05x}", n % REPLICAS * 77_777),
        node: Some(node_name(n % NODES)),
        labels: BTreeMap::from([
            label("app", format!("app-{}", app % 200)),
            label("app.kubernetes.io/version", format!("v{}", app % 30)),
            label("pod-template-hash", hash),
            label("tier", format!("tier-{}", app % 4)),
        ]),
        ips: vec![address(0x0a00_0001 + 256 * (n % NODES) + n / NODES)],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::from([NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }]),
    }
}

fn measure() {
    let tables = Tables::new();
    let mut desired = Desired {
        facts: facts(),
        numbers: NodeNumbers::default(),
        delta: Delta::default(),
        in_force: InForce::default(),
        heard: Heard { policies: false, ..Heard::EVERYTHING },
        partial: BTreeSet::new(),
        hooked: BTreeSet::new(),
    };
    let mut policies = Policies::adopt(&facts(), &mut Kernel).unwrap();
    let mut follow = |tables: &Tables| {
        let (revision, mut rows) = tables.wait_dirty(Duration::ZERO);
        policies.follow(&rows, true, (tables, &mut desired), &mut Kernel);
        assert!(desired.follow(&tables.read(), &mut rows).is_empty());
        assert!(desired.delta.flush(&mut Kernel).is_empty());
        tables.applied(revision);
        drop(rows);
        tables.pack();
        desired.delta.pack(true);
        policies.pack();
        memory::in_use()
    };
    tables.set_node(node("here", 1));
    for n in 0..NODES {
        tables.set_node(other_node(n));
        tables.set_next_hop(address(0xc0a8_0000 + n), hop(true));
    }
    for n in 0..100 {
        tables.set_namespace(Namespace { name: format!("team-{n}"), labels: BTreeMap::new() });
    }
    let before = follow(&tables);
    // As the API server lists them.
    let mut pods: Vec<usize> = (0..PODS).collect();
    pods.sort_by_key(|n| pod(*n).key());
    for n in pods {
        tables.set_pod(pod(n));
    }
    let after = follow(&tables);
    println!("figure bytes_a_remote_pod {}", (after - before) / PODS);
    assert!(before > 0 && (after - before) / PODS <= BYTES, "{} bytes", (after - before) / PODS);
}

#[test]
fn a_pod_of_another_node_costs_less_than_half_a_kibibyte() {
    if env::var_os(MEASURES).is_some() {
        return measure();
    }
    // The heap is the whole process': other tests do not run in this one.
    let name = "reconcile::memory_tests::a_pod_of_another_node_costs_less_than_half_a_kibibyte";
    let mut alone = Command::new(env::current_exe().unwrap());
    let done = alone.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(MEASURES, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    print!("{said}");
    assert!(
        done.status.success() && said.contains("figure bytes_a_remote_pod"),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}
