//! What policy takes of a packet and of a new flow, by BPF_PROG_TEST_RUN, in `weft-bench policy`.
//!
//! The same frame runs many times in one call, so that the clock is read twice for all of them: its hop limit lasts for that. What a flow costs that is known
//! is measured with conntrack's lifetimes; what a new one costs without any, when each packet is the first of its flow and is judged and remembered.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use bytemuck::bytes_of;
use cni_agent::policy::{
    Change,
    flatten::{Content, Decision, Entry, Verdict},
    rulesets::RuleSets,
};
use cni_common::{
    drop::Point,
    maps::CtConfig,
    net::{Ip4, Ip6, Mac},
    policy::{Holder, RULE_PORT_BITS, RULE_PROTO_BITS},
    schema,
    wire::UDP,
};
use cni_ebpf::fake::{Fake, policy};
use packets::{
    fill,
    frame::{self, Ip},
    kernel::{Kernel, REDIRECT},
    node::Node,
    world::{CLIENT_IFINDEX, client, server},
};

use crate::inline::{choose_cpu, pin};
use crate::layout::Family;
use crate::path::{progress, progress_end};
use crate::{interrupt, stats};

/// The most that a packet of a known flow may cost more with the largest policies than with the smallest.
pub const PACKET: f64 = 1.01;
/// And a new flow.
pub const NEW_FLOW: f64 = 1.05;
/// One whose port none of many entries names: both maps are asked about it.
pub const OTHER_FLOW: f64 = 1.1;

/// Packets in a call, a hop each.
const REPEAT: u32 = 250;
/// Calls of a measurement, of which a low percentile counts.
const CALLS: usize = 60;
/// The port that the flow leads to.
const PORT: u16 = 7000;

/// How large the policies of both pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// Entries for single ports in the rule set that decides.
    rules: u32,
    /// Whether the flow's port is none of them: then an entry for its protocol decides.
    beside: bool,
    /// Addresses in each family with an identity of their own, of which the policies of both pods say something.
    identities: u32,
}

impl Size {
    /// What others are compared with, first; without policies, last.
    const ALL: [Self; 6] = [
        Self { rules: 1, beside: false, identities: 1_000 },
        Self { rules: 100, beside: false, identities: 1_000 },
        Self { rules: 10_000, beside: false, identities: 1_000 },
        Self { rules: 10_000, beside: true, identities: 1_000 },
        Self { rules: 1, beside: false, identities: 50_000 },
        Self { rules: 0, beside: false, identities: 0 },
    ];

    fn name(self) -> String {
        match self {
            Self { rules: 0, .. } => "without policies".to_owned(),
            Self { rules, beside: false, identities } => format!("{rules} rules {identities} identities"),
            Self { rules, beside: true, identities } => format!("{rules} other rules {identities} identities"),
        }
    }

    /// The rule set that decides.
    fn content(self) -> Content {
        let allowed = |bits, port, cookie| {
            let decision = Decision { verdict: Verdict::Allow, cookie };
            Entry { bits, proto: UDP, port, decision }
        };
        let of_flow = if self.beside { allowed(RULE_PROTO_BITS, 0, 1) } else { allowed(RULE_PORT_BITS, PORT, 1) };
        // Each by a rule of its own, as the compiler would else make one entry of neighbours.
        let others = (1..u16::MAX).filter(|port| *port != PORT).zip(2..);
        let others = others.take(self.rules as usize - 1).map(|(port, cookie)| allowed(RULE_PORT_BITS, port, cookie));
        Content::Entries([of_flow].into_iter().chain(others).collect())
    }

    /// What the maps hold, but for the rule set, which the agent's own code numbers and writes.
    fn world(self, node: &Node) -> (Fake, Vec<Change>) {
        let mut w = node.world();
        // A program leaves this address as the frame's source: so the same frame is the client's once more.
        w.endpoints.entry(CLIENT_IFINDEX).and_modify(|client| client.mac = Mac::WEFT);
        if self.rules == 0 {
            return (w, Vec::new());
        }
        policy::isolate(&mut w);
        // The rest of the world's says nothing about this flow.
        w.policy.rules.clear();
        let mut writes = Vec::new();
        let rules = RuleSets::default().take(&self.content(), &mut writes);
        for (set, identity) in [(policy::CLIENT_OUT, policy::SERVER), (policy::SERVER_IN, policy::CLIENT)] {
            w.policy.peers.insert((set, identity), rules);
        }
        for n in 0..self.identities {
            let [_, b, c, d] = n.to_be_bytes();
            let holder = Holder { identity: 1000 + n, class: 0 };
            w.policy.identities4.insert(Ip4::new([10, 100 + b, c, d]), holder);
            w.policy.identities6.insert(Ip6::new([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b, c, d]), holder);
            for set in [policy::CLIENT_OUT, policy::SERVER_IN] {
                w.policy.peers.insert((set, 1000 + n), rules);
            }
        }
        (w, writes)
    }
}

/// Programs with policies of a size.
struct Bench {
    size: Size,
    kernel: Kernel,
    lifetimes: CtConfig,
}

/// Measures `rounds` times, all sizes in turn, and answers with the figures by name.
///
/// # Errors
/// When a packet is not let through, or a signal has asked for the end.
pub fn measure(rounds: u32) -> Result<BTreeMap<String, f64>> {
    let (cpu, node) = (choose_cpu()?, Node::new());
    let all = node.run(|| -> Result<_> {
        pin(cpu)?;
        let mut benches = Vec::new();
        for size in Size::ALL {
            progress(&format!("maps, {}", size.name()));
            let ((world, writes), mut kernel) = (size.world(&node), Kernel::empty());
            fill::fill(kernel.datapath(), &world);
            for write in writes {
                let Change::Entry { map, key, value: Some(value) } = write else { continue };
                kernel.datapath().map(map.spec()).update(&key, &value).context("write a rule")?;
            }
            benches.push(Bench { size, kernel, lifetimes: world.ct_config });
        }
        let mut all: BTreeMap<(&str, Family, String), Vec<f64>> = BTreeMap::new();
        for round in 1..=rounds {
            progress(&format!("round {round} of {rounds}"));
            for family in [Family::Ipv4, Family::Ipv6] {
                for bench in &mut benches {
                    interrupt::check()?;
                    let (packet, new) = bench.round(family).with_context(|| bench.size.name())?;
                    for (what, ns) in [("packet", packet), ("new_flow", new)] {
                        all.entry((what, family, bench.size.name())).or_default().push(ns);
                    }
                }
            }
        }
        Ok(all)
    })?;
    progress_end();
    figures(&all)
}

/// Medians in ns, and medians of the ratios to the first size of the same round; without a family the worse one's.
fn figures(all: &BTreeMap<(&str, Family, String), Vec<f64>>) -> Result<BTreeMap<String, f64>> {
    let mut figures: BTreeMap<String, f64> = BTreeMap::new();
    for ((what, family, size), values) in all {
        let [first, ..] = Size::ALL;
        let limits = all.get(&(*what, *family, first.name())).context("the first size is measured")?;
        let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        let ns = stats::median(values).context("nothing was measured")?;
        let ratio = stats::median_ratio(&some(values), &some(limits)).context("nothing was measured")?;
        for (unit, value) in [("ns", ns), ("ratio", ratio)] {
            let name = format!("policy {what}_{unit} {size}");
            figures.entry(name).and_modify(|worse| *worse = worse.max(value)).or_insert(value);
        }
    }
    Ok(figures)
}

/// Whether the budget is broken, as a sentence.
pub fn broken(figures: &BTreeMap<String, f64>) -> Option<String> {
    let sizes = Size::ALL.into_iter().filter(|s| s.rules > 0);
    let new_flow = |size: Size| if size.beside { OTHER_FLOW } else { NEW_FLOW };
    sizes.flat_map(|size| [(size, "packet", PACKET), (size, "new_flow", new_flow(size))]).find_map(
        |(size, what, budget)| {
            let name = format!("policy {what}_ratio {}", size.name());
            match figures.get(&name) {
                Some(value) if *value <= budget => None,
                Some(value) => Some(format!("{name} {value:.3}, budget <= {budget}")),
                None => Some(format!("{name} was not measured")),
            }
        },
    )
}

impl Bench {
    /// Of a packet of a known flow, and of a new flow, ns.
    fn round(&mut self, family: Family) -> Result<(f64, f64)> {
        let v6 = family == Family::Ipv6;
        let question = datagram(client(v6), server(v6), (20_000, PORT));
        self.remember(true)?;
        ensure!(self.kernel.run_quickly(Point::FromPod, &question) == REDIRECT, "the question is not let through");
        // The flow is settled when it is answered, by whoever may.
        let answer = frame::eth(
            Mac::WEFT,
            Mac::WEFT,
            Ip::default().packet(server(v6), client(v6), frame::udp(PORT, 20_000, b"answer")),
        );
        ensure!(self.kernel.run_quickly(Point::FromHost, &answer) == REDIRECT, "the answer is not let through");
        let known = self.low(&question)?;
        self.remember(false)?;
        let new = self.low(&datagram(client(v6), server(v6), (20_001, PORT)))?;
        Ok((known, new))
    }

    /// Whether flows live, or no longer than a packet.
    fn remember(&mut self, yes: bool) -> Result<()> {
        let lifetimes = if yes { self.lifetimes } else { bytemuck::Zeroable::zeroed() };
        let config = CtConfig { epoch: self.lifetimes.epoch, ..lifetimes };
        self.kernel.datapath().map(&schema::CT_CONFIG).update(&[0; 4], bytes_of(&config)).context("set lifetimes")
    }

    /// A packet's time, as the kernel takes it in one call for many.
    fn low(&mut self, frame: &[u8]) -> Result<f64> {
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let (code, took) = self.kernel.repeated(Point::FromPod, frame, REPEAT);
            ensure!(code == REDIRECT, "a packet is not let through: {code}");
            times.push(took.as_nanos() as f64);
        }
        stats::quantile(&times, 0.1).context("nothing was measured")
    }
}

fn datagram(from: IpAddr, to: IpAddr, (sport, dport): (u16, u16)) -> Vec<u8> {
    let ip = Ip { ttl: u8::MAX, ..Ip::default() };
    frame::eth(Mac::WEFT, Mac::WEFT, ip.packet(from, to, frame::udp(sport, dport, b"question")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(packet: f64, new: f64) -> BTreeMap<(&'static str, Family, String), Vec<f64>> {
        let mut all = BTreeMap::new();
        for (n, size) in Size::ALL.into_iter().enumerate() {
            for family in [Family::Ipv4, Family::Ipv6] {
                let grown = |by: f64| if n == 2 && family == Family::Ipv6 { by } else { 1.0 };
                all.insert(("packet", family, size.name()), vec![100.0 * grown(packet), 200.0 * grown(packet)]);
                all.insert(("new_flow", family, size.name()), vec![400.0 * grown(new)]);
            }
        }
        all
    }

    #[test]
    fn what_grows_more_than_it_may_in_either_family_is_over_the_budget() {
        let broken = |packet, new| broken(&figures(&measured(packet, new)).unwrap());
        assert_eq!(broken(1.009, 1.04), None);
        assert!(
            broken(1.02, 1.0).is_some_and(|b| b.starts_with("policy packet_ratio 10000 rules 1000 identities 1.020"))
        );
        assert!(broken(1.0, 1.06).is_some_and(|b| b.starts_with("policy new_flow_ratio 10000 rules")));
        assert!(super::broken(&BTreeMap::new()).is_some());
    }
}
