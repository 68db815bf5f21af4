//! `weft-bench ct`: what it costs the agent to look for flows that are over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cni_agent::conntrack::{Kernel, sweep};
use cni_agent::datapath::{Clock, RawMap, features};
use cni_common::schema::{self, MapSpec};
use nix::time::{ClockId, clock_gettime};

use crate::path::{progress, progress_end};
use crate::{interrupt, stats};

/// Flows that are looked through.
pub const FLOWS: u32 = 500_000;
/// The most of one core that it may take, percent.
pub const SHARE: f64 = 2.0;
/// How long each flow lives, in jiffies: longer than any run.
pub(crate) const LIFETIME: u32 = 100_000_000;
/// Where the number of a flow stands in its key: the first address.
const NUMBER: std::ops::Range<usize> = 0..4;

/// Fills a map of its own, goes through it `rounds` times as the agent does, rests and all, and answers with the figures by name.
pub fn measure(rounds: u32) -> Result<BTreeMap<String, f64>> {
    let spec = MapSpec { name: "wb_ct4", max_entries: FLOWS.next_power_of_two(), ..schema::CT4 };
    let map = RawMap::create(spec).context("make a map")?;
    let clock = Clock::load().context("load the program that reads the clock")?;
    fill(&map, clock.now()?)?;
    let by_lots = features::Features::try_all(&[]).has("batch-hash");
    let (mut shares, mut costs, mut took) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        progress(&format!("pass {round} of {rounds}"));
        let (began, before) = (Instant::now(), spent()?);
        let rest = |time: Duration| {
            std::thread::park_timeout(time);
            interrupt::check().is_ok()
        };
        let table = Kernel { map: &map, by_lots };
        let pass = sweep(&table, || clock.now(), rest)?.context("interrupted; everything was taken down")?;
        let (cost, wall) = ((spent()? - before).as_secs_f64(), began.elapsed().as_secs_f64());
        anyhow::ensure!((pass.seen, pass.deleted) == (FLOWS.into(), 0), "{} seen, {} deleted", pass.seen, pass.deleted);
        shares.push(100.0 * cost / wall);
        costs.push(cost * 1e9 / f64::from(FLOWS));
        took.push(wall);
    }
    progress_end();
    let median = |all: &[f64]| stats::median(all).context("nothing was measured");
    Ok(BTreeMap::from([
        ("ct sweep_percent".to_owned(), median(&shares)?),
        ("ct sweep_ns_per_flow".to_owned(), median(&costs)?),
        ("ct sweep_seconds".to_owned(), median(&took)?),
    ]))
}

/// Flows that live.
fn fill(map: &RawMap, now: u64) -> Result<()> {
    let entry = cni_common::maps::CtEntry {
        verdicts: 0,
        seen: now,
        lifetime: LIFETIME,
        charged: 1,
        lo_sent: cni_common::maps::CT_SENT_DATA,
        hi_sent: cni_common::maps::CT_SENT_DATA,
        pad: [0; 6],
    };
    let mut key = vec![0_u8; map.spec().key_size as usize];
    for n in 0..FLOWS {
        if n % 10_000 == 0 {
            interrupt::check()?;
            progress(&format!("flow {n} of {FLOWS}"));
        }
        key[NUMBER].copy_from_slice(&n.to_be_bytes());
        map.update(&key, bytemuck::bytes_of(&entry)).context("fill the map")?;
    }
    Ok(())
}

/// What this thread has had of a core.
pub(crate) fn spent() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read this thread's clock")?.into())
}

/// Whether the budget is broken, as a sentence.
pub fn broken(figures: &BTreeMap<String, f64>) -> Option<String> {
    let judge = |name: &str| match figures.get(name) {
        Some(value) if *value <= SHARE => None,
        Some(value) => Some(format!("{name} {value:.2}, budget <= {SHARE}")),
        None => Some(format!("{name} was not measured")),
    };
    judge("ct sweep_percent").or_else(|| judge("nat sweep_percent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_two_percent_or_no_figure_is_over_the_budget() {
        let figures =
            |ct, nat| BTreeMap::from([("ct sweep_percent".to_owned(), ct), ("nat sweep_percent".to_owned(), nat)]);
        assert_eq!(broken(&figures(1.6, 1.6)), None);
        assert!(broken(&figures(2.1, 1.6)).is_some_and(|b| b.starts_with("ct ")));
        assert!(broken(&figures(1.6, 2.1)).is_some_and(|b| b.starts_with("nat ")));
        assert!(broken(&BTreeMap::new()).is_some());
    }
}
