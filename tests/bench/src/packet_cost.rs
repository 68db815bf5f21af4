//! What the programs take for a packet and for a new flow, by BPF_PROG_TEST_RUN, in `weft-bench ct`.
//!
//! A run is one frame, as the programs rewrite what they are given, so two readings of the kernel's clock are in each figure, and what a packet has to
//! fetch into the caches is fetched for it alone. Figures are medians over many flows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytemuck::bytes_of;
use cni_common::{
    drop::{Outcome, Point},
    maps::Endpoint,
    net::Mac,
    schema,
};
use cni_ebpf::fake::Fake;
use packets::{
    fill,
    frame::{self, Ip},
    kernel::{Heading, Kernel, REDIRECT},
    node::Node,
    world::{CLIENT_IFINDEX, CLIENT_MAC, NEXT_HOP_MAC, SERVER_MAC, UNDERLAY_MAC, client, outside, server, underlay},
};

use crate::inline::{choose_cpu, pin};
use crate::layout::Family;
use crate::path::{progress, progress_end};
use crate::{interrupt, stats};

/// Flows that are made in a round: fewer than wait for an answer without pushing each other out.
const FLOWS: u16 = 4096;
/// The client's port in the first of them.
const FIRST_PORT: u16 = 20_000;
/// The port that they lead to.
const PORT: u16 = 7000;
/// The client's endpoint, when it is the server that sends.
const SERVER_ID: u32 = 12;

/// Who the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A pod of the same node: conntrack alone.
    Here,
    /// A host outside of the cluster: conntrack and masquerade.
    Outside,
}

impl Way {
    const ALL: [Self; 2] = [Self::Here, Self::Outside];

    /// What its figures begin with.
    const fn name(self) -> &'static str {
        match self {
            Self::Here => "ct",
            Self::Outside => "nat",
        }
    }

    /// What becomes of the client's packets.
    const fn outcome(self) -> Outcome {
        match self {
            Self::Here => Outcome::Peer,
            Self::Outside => Outcome::Neigh,
        }
    }
}

/// Medians, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    /// The first packet of a flow.
    new: f64,
    /// The first answer.
    answered: f64,
    /// A further packet.
    packet: f64,
    /// A further answer.
    back: f64,
}

/// Measures `rounds` times, each with empty maps, and answers with the figures by name.
///
/// # Errors
/// When a packet is not let through as it should be, or a signal has asked for the end.
pub fn measure(rounds: u32) -> Result<BTreeMap<String, f64>> {
    let cpu = choose_cpu()?;
    let node = Node::new();
    let mut figures = BTreeMap::new();
    for way in Way::ALL {
        for family in [Family::Ipv4, Family::Ipv6] {
            let mut all = Vec::new();
            for round in 1..=rounds {
                progress(&format!("packets, {} {}, round {round} of {rounds}", way.name(), family.name()));
                interrupt::check()?;
                let costs = node.run(|| {
                    pin(cpu)?;
                    Bench::new(&node, way, family).round()
                });
                all.push(costs.with_context(|| format!("{} over {}", way.name(), family.name()))?);
            }
            add(&mut figures, way, family, &over_rounds(&all)?);
        }
    }
    progress_end();
    Ok(figures)
}

/// Of each cost the median.
fn over_rounds(all: &[Costs]) -> Result<Costs> {
    let median = |cost: fn(&Costs) -> f64| {
        stats::median(&all.iter().map(cost).collect::<Vec<_>>()).context("nothing was measured")
    };
    Ok(Costs {
        new: median(|c| c.new)?,
        answered: median(|c| c.answered)?,
        packet: median(|c| c.packet)?,
        back: median(|c| c.back)?,
    })
}

/// The figures of a family, and the worse of the families under the name without one.
fn add(figures: &mut BTreeMap<String, f64>, way: Way, family: Family, costs: &Costs) {
    let Costs { new, answered, packet, back } = *costs;
    let (way, family) = (way.name(), family.name());
    for (what, value) in [("new_flow_ns", new), ("answered_ns", answered), ("packet_ns", packet), ("back_ns", back)] {
        figures.insert(format!("{way} {family} {what}"), value);
        figures.entry(format!("{way} {what}")).and_modify(|worse| *worse = worse.max(value)).or_insert(value);
    }
    // A flow is made and answered.
    let rate = 1e9 / (new + answered);
    figures.insert(format!("{way} {family} flows_per_s"), rate);
    figures.entry(format!("{way} flows_per_s")).and_modify(|worse| *worse = worse.min(rate)).or_insert(rate);
}

/// The programs with empty maps, and one way.
struct Bench {
    kernel: Kernel,
    world: Fake,
    way: Way,
    v6: bool,
}

impl Bench {
    fn new(node: &Node, way: Way, family: Family) -> Self {
        let (world, mut kernel) = (node.world(), Kernel::empty());
        fill::fill(kernel.datapath(), &world);
        Self { kernel, world, way, v6: family == Family::Ipv6 }
    }

    fn round(mut self) -> Result<Costs> {
        let questions: Vec<_> = (0..FLOWS).map(|n| self.question(n)).collect();
        let answers: Vec<_> = (0..FLOWS).map(|n| self.answer(n)).collect();
        let from = match self.way {
            Way::Here => Point::FromPod,
            Way::Outside => Point::FromNetdev,
        };
        let new = self.times(Point::FromPod, &questions)?;
        self.server_sends(true)?;
        let answered = self.times(from, &answers)?;
        self.server_sends(false)?;
        let packet = self.times(Point::FromPod, &questions)?;
        self.server_sends(true)?;
        let back = self.times(from, &answers)?;
        self.server_sends(false)?;
        self.is_what_it_is_said_to_be(&questions)?;
        Ok(Costs { new, answered, packet, back })
    }

    /// The median of the times of all, each run once.
    fn times(&mut self, point: Point, frames: &[Vec<u8>]) -> Result<f64> {
        let mut times = Vec::with_capacity(frames.len());
        for frame in frames {
            let (code, took): (u32, Duration) = self.kernel.timed(point, frame);
            ensure!(code == REDIRECT, "a packet is not let through at {point:?}: {code}");
            times.push(took.as_nanos() as f64);
        }
        stats::median(&times).context("nothing was measured")
    }

    /// Looks whether all the flows are there that were to be made, and where one packet more goes.
    fn is_what_it_is_said_to_be(&mut self, questions: &[Vec<u8>]) -> Result<()> {
        let [v4, v6] = self.kernel.flows();
        let there = if self.v6 { v6 } else { v4 }.settled.len();
        ensure!(there == usize::from(FLOWS), "{there} flows are settled, not {FLOWS}");
        let first = questions.first().context("no packet")?;
        let ran = self.kernel.run(Point::FromPod, first).map_err(anyhow::Error::msg)?;
        let want: [Heading; 1] = [(Point::FromPod, Ok(self.way.outcome()))];
        ensure!(ran.counted == want, "a packet is {:?}, not {want:?}", ran.counted);
        Ok(())
    }

    fn question(&self, n: u16) -> Vec<u8> {
        let to = match self.way {
            Way::Here => server(self.v6),
            Way::Outside => outside(self.v6),
        };
        let datagram = frame::udp(FIRST_PORT + n, PORT, b"question");
        frame::eth(CLIENT_MAC, Mac::WEFT, packet(client(self.v6), to, datagram))
    }

    fn answer(&self, n: u16) -> Vec<u8> {
        let datagram = frame::udp(PORT, FIRST_PORT + n, b"answer");
        match self.way {
            Way::Here => frame::eth(SERVER_MAC, Mac::WEFT, packet(server(self.v6), client(self.v6), datagram)),
            // The pod's own port is free, so it keeps it.
            Way::Outside => {
                let packet = packet(outside(self.v6), underlay(self.v6, 0), datagram);
                frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, packet)
            }
        }
    }

    /// Test frames come in by one device: whose it is.
    fn server_sends(&mut self, yes: bool) -> Result<()> {
        let client = *self.world.endpoints.get(&CLIENT_IFINDEX).context("the client is an endpoint")?;
        let mut sender = client;
        if yes && self.way == Way::Here {
            sender = Endpoint { id: SERVER_ID, mac: SERVER_MAC, ..client };
            if let (IpAddr::V4(v4), IpAddr::V6(v6)) = (server(false), server(true)) {
                (sender.addr4, sender.addr6) = (v4.into(), v6.into());
            }
        }
        let endpoints = self.kernel.datapath().map(&schema::ENDPOINTS);
        endpoints.update(&CLIENT_IFINDEX.to_ne_bytes(), bytes_of(&sender)).context("say who sends")
    }
}

fn packet(from: IpAddr, to: IpAddr, datagram: (u8, Vec<u8>)) -> (u16, Vec<u8>) {
    Ip::default().packet(from, to, frame::summed(from, to, datagram, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_without_a_family_is_the_worse_one() {
        let mut figures = BTreeMap::new();
        let costs = |new, answered| Costs { new, answered, packet: 100.0, back: 120.0 };
        add(&mut figures, Way::Outside, Family::Ipv4, &costs(600.0, 400.0));
        add(&mut figures, Way::Outside, Family::Ipv6, &costs(500.0, 300.0));
        assert_eq!(figures["nat ipv6 new_flow_ns"], 500.0);
        assert_eq!(figures["nat new_flow_ns"], 600.0);
        assert_eq!(figures["nat ipv6 flows_per_s"], 1_250_000.0);
        assert_eq!(figures["nat flows_per_s"], 1_000_000.0);
        assert!(!figures.keys().any(|name| name.starts_with("ct ")));
    }

    #[test]
    fn each_cost_is_the_median_of_its_own() {
        let round = |n: f64| Costs { new: 10.0 * n, answered: 20.0 * n, packet: n, back: 100.0 - n };
        let costs = over_rounds(&[round(1.0), round(9.0), round(2.0)]).unwrap();
        assert_eq!((costs.new, costs.answered, costs.packet, costs.back), (20.0, 40.0, 2.0, 98.0));
        assert!(over_rounds(&[]).is_err());
    }
}
