//! Flows that live while one build takes over from another: none loses a packet, none is seen under another port, and what the maps say of it stays.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lab::{
    Ending, LabConfig, Node, is_virtual,
    probe::{Asked, Family, Flow, Pinger, Place},
};
use serde_json::Value;

use crate::{Cluster, NODE};

/// What a connection carries there and back each time.
const BYTES: usize = 4096;

/// Ends the talk, also when what it goes on beside panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Flows of one kind each on every way and in both families.
struct Live {
    connections: Vec<Flow>,
    asked: Vec<Asked>,
    pings: Vec<Pinger>,
}

impl Live {
    fn open(ways: &[(&Place, &Place)]) -> Result<Self> {
        let mut live = Self { connections: Vec::new(), asked: Vec::new(), pings: Vec::new() };
        for (from, to) in ways {
            for family in Family::BOTH {
                live.connections.push(Flow::open(from, to, family)?);
                live.asked.push(Asked::open(from, to, family)?);
                live.pings.push(Pinger::open(from, to, family)?);
            }
        }
        live.exchange()?;
        Ok(live)
    }

    /// Each once, there and back.
    fn exchange(&mut self) -> Result<()> {
        self.connections.iter_mut().try_for_each(|c| c.exchange(BYTES).map(drop))?;
        self.asked.iter_mut().try_for_each(Asked::ask)?;
        self.pings.iter_mut().try_for_each(|p| p.ask().map(drop))
    }

    /// Again and again while something happens.
    fn while_it_goes_on(&mut self, event: &mut dyn FnMut()) -> Result<u64> {
        let stopped = AtomicBool::new(false);
        let pace = Duration::from_millis(if is_virtual() { 50 } else { 2 });
        thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut times = 0;
                while !stopped.load(Relaxed) {
                    self.exchange()?;
                    times += 1;
                    thread::park_timeout(pace);
                }
                anyhow::Ok(times)
            });
            let stop = Stop(&stopped);
            event();
            drop(stop);
            talk.join().expect("it did not panic")
        })
    }

    /// Ports of both ends, the lower one first; of an echo both are its identifier.
    fn ports(&self) -> Result<BTreeSet<(u64, u64)>> {
        let mut all = BTreeSet::new();
        for c in &self.connections {
            all.insert((c.client()?.port(), c.server()?.port()));
        }
        for a in &self.asked {
            all.insert(a.ports()?);
        }
        all.extend(self.pings.iter().map(|p| (p.id(), p.id())));
        Ok(all.into_iter().map(|(a, b)| (u64::from(a.min(b)), u64::from(a.max(b)))).collect())
    }

    /// What the maps say of these flows: by map and key, when a packet was seen and all else that does not depend on the build.
    fn entries(&self, node: &Node) -> Result<BTreeMap<String, (u64, Value)>> {
        let ports = self.ports()?;
        let mut all = BTreeMap::new();
        for map in ["ct4", "ct6", "nat_back4", "nat_back6", "nat_forth4", "nat_forth6"] {
            let Value::Array(rows) = node.ask(&format!("/v1/maps/{map}"))? else { panic!("{map} is no list") };
            for row in rows {
                let (key, mut value) = (&row["key"], row["value"].clone());
                let port = |name: &str| key[name].as_u64().unwrap_or_default();
                let (a, b) = match map.starts_with("nat_back") {
                    // Of an echo the world's port is none.
                    true if port("world_port") == 0 => (port("node_port"), port("node_port")),
                    true => (port("world_port"), port("node_port")),
                    false => (port("lo_port"), port("hi_port")),
                };
                if !ports.contains(&(a.min(b), a.max(b))) {
                    continue;
                }
                let fields = value.as_object_mut().context("an entry has fields")?;
                fields.remove("moved");
                let seen = fields.remove("seen").and_then(|seen| seen.as_u64()).unwrap_or_default();
                // The lower half is the policy epoch, which is the agent's.
                if let Some(verdicts) = fields.get_mut("verdicts") {
                    *verdicts = (verdicts.as_u64().context("a word")? >> 32).into();
                }
                all.insert(format!("{map} {key}"), (seen, value));
            }
        }
        Ok(all)
    }
}

/// What is said of each flow is what was said before, and of a later time if of another.
fn assert_same(before: &BTreeMap<String, (u64, Value)>, after: &BTreeMap<String, (u64, Value)>, what: &str) {
    let keys = |all: &BTreeMap<String, _>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(before), keys(after), "{what}");
    for (flow, (seen, value)) in before {
        let (later, now) = &after[flow];
        assert_eq!(value, now, "{what}: {flow}");
        assert!(later >= seen, "{what}: {flow} was seen at {seen}, now at {later}");
    }
}

#[test]
fn live_flows_lose_nothing_and_keep_their_ports_and_entries_through_upgrade_and_downgrade() {
    let agent_args = ["--cni-install", "no"].map(str::to_owned).into();
    let mut c = Cluster::up_with(LabConfig { agent_args, ..LabConfig::with_world() });
    let world = c.lab.world().unwrap().near().unwrap();
    // On the node, from another one, and through masquerade.
    let ways = [(&c.near, &c.web), (&c.far, &c.web), (&c.web, &world)];
    let mut live = Live::open(&ways).unwrap();
    // Once more: what the first packets of a flow say is not all that it says.
    live.exchange().unwrap();
    let mut before = live.entries(c.lab.node(NODE).unwrap()).unwrap();
    let of = |map: &str| before.keys().filter(|k| k.starts_with(map)).count();
    assert_eq!((of("ct"), of("nat_back"), of("nat_forth")), (18, 6, 6), "{:#?}", before.keys());
    for (other, ending) in
        [(true, Ending::Asked), (false, Ending::Asked), (true, Ending::Killed), (false, Ending::Killed)]
    {
        let mut times = Ok(0);
        c.change_amid(other, ending, |event| times = live.while_it_goes_on(event));
        let what = format!("{} build, {ending:?}", if other { "second" } else { "first" });
        let times = times.unwrap_or_else(|e| panic!("{what}: {e:#}"));
        println!("{what}: {times} times {BYTES} bytes, a datagram and an echo on 6 ways each, there and back");
        assert!(times > 0, "{what}: nothing was exchanged");
        live.exchange().unwrap();
        let after = live.entries(c.lab.node(NODE).unwrap()).unwrap();
        assert_same(&before, &after, &what);
        before = after;
        // And a new one is no other than before.
        for family in Family::BOTH {
            let node = c.lab.place(NODE).unwrap().address(family).unwrap();
            assert_eq!(Flow::open(&c.web, &world, family).unwrap().seen().ip(), node, "{what}");
        }
    }
    c.lab.down().unwrap();
}
