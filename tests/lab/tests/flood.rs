//! A pod floods a node with new flows, five times as many as its tables hold: flows that live lose no packet and stay where they are. Needs root
//! and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result};
use cni_common::schema::MAX_NEW_FLOWS;
use lab::{
    Hostile, Lab, LabConfig, Node, PodSpec, is_virtual,
    probe::{Asked, Family, Flow, Place},
};
use serde_json::Value;

const NODE: &str = "node-1";
/// Of each kind on each way and in each family; in all a hundred and two.
const FLOWS: usize = 8;
/// Connections beside them.
const CONNECTIONS: usize = 9;
/// Ports that the flood goes to: none that the kernel gives to sockets, as those are of flows that live.
const PORTS: std::ops::RangeInclusive<u16> = 1..=30_000;
/// New flows before the flooder waits until an answer of its own has come by the same way: so many packets are under way at most, and no queue of
/// the kernel runs over, which would lose packets of any flow.
const AT_ONCE: u32 = 64;

/// Flows on the node, to another one and out of the cluster.
struct Live {
    asked: Vec<Asked>,
    connections: Vec<Flow>,
}

impl Live {
    fn open(ways: &[(&Place, &Place)]) -> Result<Self> {
        let mut live = Self { asked: Vec::new(), connections: Vec::new() };
        for (from, to) in ways {
            for family in Family::BOTH {
                for _ in 0..FLOWS {
                    live.asked.push(Asked::open(from, to, family)?);
                }
                for _ in 0..CONNECTIONS {
                    live.connections.push(Flow::open(from, to, family)?);
                }
            }
        }
        live.exchange()?;
        live.exchange()?;
        Ok(live)
    }

    fn exchange(&mut self) -> Result<()> {
        self.asked.iter_mut().try_for_each(Asked::ask)?;
        self.connections.iter_mut().try_for_each(|c| c.exchange(1000).map(drop))
    }

    /// Ports of both ends, the lower one first.
    fn ports(&self) -> Result<BTreeSet<(u16, u16)>> {
        let mut all = BTreeSet::new();
        for a in &self.asked {
            all.insert(a.ports()?);
        }
        for c in &self.connections {
            all.insert((c.client()?.port(), c.server()?.port()));
        }
        Ok(all.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect())
    }

    /// Of these flows, those that stand in the tables that only time empties.
    fn settled(&self, node: &Node) -> Result<usize> {
        let (ports, mut settled) = (self.ports()?, 0);
        for map in ["ct4", "ct6"] {
            let Value::Array(rows) = node.ask(&format!("/v1/maps/{map}"))? else { panic!("{map} is no list") };
            let port = |row: &Value, name: &str| row["key"][name].as_u64().and_then(|p| u16::try_from(p).ok());
            let of = |row: &Value| Some((port(row, "lo_port")?, port(row, "hi_port")?));
            settled += rows.iter().filter_map(of).filter(|(a, b)| ports.contains(&(*a.min(b), *a.max(b)))).count();
        }
        Ok(settled)
    }
}

/// Ends the talk, also when what it goes on beside panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// So many flows of one packet each, to ports where nobody is.
fn flood(from: &Place, to: &Place, family: Family, flows: u32) -> Result<()> {
    let mut pace = Asked::open(from, to, family)?;
    let address = to.address(family)?;
    let (mut sent, mut sockets) = (0, Vec::new());
    while sent < flows {
        // Each has a port of its own.
        let socket = from.run(|| UdpSocket::bind(SocketAddr::new(family.any(), 0)))?;
        for port in PORTS.take((flows - sent) as usize) {
            socket.send_to(b"flood", SocketAddr::new(address, port)).context("flood")?;
            sent += 1;
            if sent.is_multiple_of(AT_ONCE) {
                pace.ask()?;
            }
        }
        sockets.push(socket);
    }
    Ok(())
}

/// How many flows the node's large tables hold, each.
fn size(node: &Node) -> u32 {
    let status = node.ask("/v1/status").unwrap();
    u32::try_from(status["conntrack"]["tables"][0]["size"].as_u64().expect("a size")).unwrap()
}

#[test]
fn a_flood_of_new_flows_loses_no_packet_of_those_that_live_and_evicts_none() {
    let agent_args = ["--cni-install", "no"].map(str::to_owned).into();
    let mut lab = Lab::up(LabConfig { agent_args, hostile: Hostile::Nobody, ..LabConfig::with_world() }).unwrap();
    let mut pod = |node, name| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap();
    let (web, near, flooder, far) = (pod(NODE, "web"), pod(NODE, "near"), pod(NODE, "flooder"), pod("node-2", "far"));
    let world = lab.world().unwrap().near().unwrap();
    let node = lab.node(NODE).unwrap();
    let mut live = Live::open(&[(&near, &web), (&web, &far), (&web, &world)]).unwrap();
    let all = live.asked.len() + live.connections.len();
    assert_eq!((all, live.settled(node).unwrap()), (6 * (FLOWS + CONNECTIONS), all));

    // An emulated machine would take minutes: there it is the table of those that nobody has answered.
    let table = if is_virtual() { MAX_NEW_FLOWS } else { size(node) };
    for (family, to) in [(Family::V4, &far), (Family::V6, &far), (Family::V4, &world)] {
        let stopped = AtomicBool::new(false);
        let times = thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut times = 0;
                while !stopped.load(Relaxed) {
                    live.exchange()?;
                    times += 1;
                }
                anyhow::Ok(times)
            });
            let stop = Stop(&stopped);
            flood(&flooder, to, family, 5 * table).unwrap();
            drop(stop);
            talk.join().expect("it did not panic")
        });
        let times = times.unwrap_or_else(|e| panic!("{family} flood to {}: {e:#}", to.name));
        let settled = live.settled(node).unwrap();
        println!("{family} flood of {} flows to {}: {all} flows spoke {times} times, lost 0", 5 * table, to.name);
        assert!(times > 0, "nothing was exchanged");
        assert_eq!(settled, all, "{family} flood to {}: evicted", to.name);
    }
    live.exchange().unwrap();
    println!("figure flood lost 0");
    println!("figure flood evicted {}", all - live.settled(node).unwrap());
    lab.down().unwrap();
}
