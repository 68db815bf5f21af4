//! Whether receive coalescing survives the tunnel.
//!
//! A real NIC often cannot segment inside a tunnel, and always puts packets of MTU size on the wire. Here the veth
//! underlay is made to do the same: TCP and tunnel segmentation off, so that the sender's stack cuts before the wire,
//! and GRO on at the receiver. A datapath that loses GRO hands the pod packets of about 1400 bytes, one that keeps it
//! tens of thousands; nothing else fails, so only this average shows it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::inline::{Test, measure};
use crate::layout::{Ends, Family, LayoutName};
use crate::path::{Site, progress, progress_end};
use crate::{interrupt, stats};

/// Bytes per packet into the pod, on average, that prove that GRO works.
pub use lab::offload::LARGE_PACKETS as BYTES_BOUND;

/// Long enough for some hundred thousand wire packets.
const DURATION: Duration = Duration::from_millis(500);
const ROUNDS: u32 = 3;

/// One layout over the changed underlay.
#[derive(Clone, Debug, Serialize)]
pub struct NoTso {
    /// Which.
    pub layout: LayoutName,
    /// The family of the stream.
    pub family: Family,
    /// Average bytes per packet into the pod as its device counts them, over all rounds. Absent for the limit: there
    /// the counting device is the wire's own end, which counts before packets are coalesced.
    pub bytes_per_packet: Option<f64>,
    /// Gbit per second of CPU time; median over the rounds.
    pub gbit_per_cpu_s: Option<f64>,
    /// The median of the ratios to `node-notso` in the same round.
    pub ratio: Option<f64>,
    /// How often the thread had to wait.
    pub waits: u64,
    /// Whether `bytes_per_packet` keeps [`BYTES_BOUND`]; absent for the limit and for peers.
    pub ok: Option<bool>,
    /// Why there is nothing.
    pub error: Option<String>,
    /// Packets and bytes into the receiving device.
    #[serde(skip)]
    received: (u64, u64),
    #[serde(skip)]
    rounds: Vec<Option<f64>>,
}

/// Changes the wires of the layouts and measures a stream over each. The layouts are not fit for the other tests
/// afterwards.
pub fn run(names: &BTreeSet<LayoutName>, families: &[Family], site: &Site, cpu: usize) -> Result<Vec<NoTso>> {
    let mut rows = Vec::new();
    for name in names {
        let Some(layout) = site.layout(*name) else { continue };
        let changed = layout.wire().and_then(|wire| wire.iter().try_for_each(|(node, device)| change(node, device)));
        for family in families {
            let ends = layout.ends()?;
            let error = changed.as_ref().err().map(|error| format!("{error:#}"));
            rows.push((NoTso::new(*name, *family, error), ends));
        }
    }
    for round in 0..ROUNDS {
        progress(&format!("without TSO, round {}/{ROUNDS}", round + 1));
        for (row, ends) in &mut rows {
            let streamed = if row.error.is_none() { stream(row, ends, cpu) } else { Ok(None) };
            interrupt::check()?;
            match streamed {
                Ok(value) => row.rounds.push(value),
                Err(error) => {
                    row.rounds.push(None);
                    row.error = Some(format!("{error:#}"));
                }
            }
        }
    }
    progress_end();
    let mut rows: Vec<_> = rows.into_iter().map(|(row, _)| row).collect();
    let limits: Vec<_> = rows.iter().filter(|row| row.layout == LayoutName::NodeNotso).cloned().collect();
    for row in &mut rows {
        row.finish(limits.iter().find(|limit| limit.family == row.family));
    }
    Ok(rows)
}

impl NoTso {
    fn new(layout: LayoutName, family: Family, error: Option<String>) -> Self {
        Self {
            layout,
            family,
            bytes_per_packet: None,
            gbit_per_cpu_s: None,
            ratio: None,
            waits: 0,
            ok: None,
            error,
            received: (0, 0),
            rounds: Vec::new(),
        }
    }

    fn finish(&mut self, limit: Option<&Self>) {
        let (packets, bytes) = self.received;
        self.bytes_per_packet =
            (packets > 0 && self.layout != LayoutName::NodeNotso).then(|| bytes as f64 / packets as f64);
        self.gbit_per_cpu_s = stats::median(&self.rounds.iter().copied().flatten().collect::<Vec<_>>());
        self.ratio = limit.and_then(|limit| stats::median_ratio(&self.rounds, &limit.rounds));
        if self.layout == LayoutName::WeftVxlanNotso {
            self.ok = self.bytes_per_packet.map(|average| average >= BYTES_BOUND);
        }
    }
}

fn stream(row: &mut NoTso, ends: &Ends, cpu: usize) -> Result<Option<f64>> {
    let before = ends.server.received(&ends.device)?;
    let sample = measure(Test::TcpStream, ends, row.family, DURATION, cpu)?;
    let after = ends.server.received(&ends.device)?;
    row.received.0 += after.0 - before.0;
    row.received.1 += after.1 - before.1;
    row.waits += sample.waits;
    Ok(Some(sample.value))
}

fn change(node: &crate::netns::Netns, device: &str) -> Result<()> {
    let command = format!("ethtool {}", lab::offload::without_segmentation_options(device));
    node.sh(&command).map(drop).context("take segmentation offload from the underlay")
}
