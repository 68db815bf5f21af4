//! Who reaches whom.
use std::{fmt, thread, time::Duration};

use anyhow::Result;

use crate::{
    Lab,
    probe::{self, Family, Place, Reply},
};

/// Datagrams of which the median time is shown.
const SAMPLES: usize = 5;
/// A probe.
type Probe = fn(&Place, &Place, Family) -> Result<Reply>;
/// What is tried for each pair and family.
const PROBES: [Probe; 3] = [probe::udp, probe::tcp, probe::ping];

/// All pairs that were tried.
pub(super) struct Connectivity {
    names: Vec<String>,
    cells: Vec<Cell>,
}

/// A pair in one family.
struct Cell {
    from: usize,
    to: usize,
    family: Family,
    /// Median round trip, or what failed.
    outcome: Result<Duration>,
}

/// Tries all pairs that a pod takes part in.
pub(super) fn measure(lab: &Lab) -> Result<Connectivity> {
    let mut places = lab.pods().iter().map(crate::Pod::place).collect::<Result<Vec<_>>>()?;
    let pods = places.len();
    for node in lab.nodes() {
        places.push(node.place()?);
    }
    let pairs = |from: usize| (0..places.len()).filter(move |to| *to != from && (from < pods || *to < pods));

    // All sources at the same time: a lost packet costs its sender's time only.
    let mut cells: Vec<Cell> = thread::scope(|scope| {
        let places = &places;
        let sources: Vec<_> = (0..places.len())
            .map(|from| scope.spawn(move || pairs(from).flat_map(|to| both(places, from, to)).collect::<Vec<_>>()))
            .collect();
        sources.into_iter().flat_map(|s| s.join().unwrap_or_default()).collect()
    });
    // One by one, so that they do not wait for each other's CPU.
    for cell in &mut cells {
        if cell.outcome.is_ok()
            && let (Some(from), Some(to)) = (places.get(cell.from), places.get(cell.to))
        {
            cell.outcome = median(from, to, cell.family);
        }
    }
    Ok(Connectivity { names: places.into_iter().map(|p| p.name).collect(), cells })
}

fn both(places: &[Place], from: usize, to: usize) -> Vec<Cell> {
    let (Some(source), Some(target)) = (places.get(from), places.get(to)) else { return Vec::new() };
    Family::BOTH
        .into_iter()
        .map(|family| {
            // The first that fails is enough: each would wait for its own time to run out.
            let outcome = PROBES.into_iter().try_for_each(|probe| probe(source, target, family).map(drop));
            Cell { from, to, family, outcome: outcome.map(|()| Duration::ZERO) }
        })
        .collect()
}

fn median(from: &Place, to: &Place, family: Family) -> Result<Duration> {
    let mut times = (0..SAMPLES).map(|_| Ok(probe::udp(from, to, family)?.took)).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times.get(SAMPLES / 2).copied().unwrap_or_default())
}

impl Connectivity {
    /// Pairs, times families, that were tried.
    pub(super) fn tried(&self) -> usize {
        self.cells.len()
    }

    /// Those that work in all protocols.
    pub(super) fn working(&self) -> usize {
        self.cells.iter().filter(|c| c.outcome.is_ok()).count()
    }

    fn cell(&self, from: usize, to: usize, family: Family) -> Option<&Cell> {
        self.cells.iter().find(|c| (c.from, c.to, c.family) == (from, to, family))
    }
}

impl fmt::Display for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in Family::BOTH {
            write!(f, "  {:<10}", family.to_string())?;
            for name in &self.names {
                write!(f, "{name:>10}")?;
            }
            writeln!(f)?;
            for (from, name) in self.names.iter().enumerate() {
                write!(f, "  {name:<10}")?;
                for to in 0..self.names.len() {
                    let text = match self.cell(from, to, family).map(|c| &c.outcome) {
                        None => ".".to_owned(),
                        Some(Ok(took)) => took.as_micros().to_string(),
                        Some(Err(_)) => "FAILS".to_owned(),
                    };
                    write!(f, "{text:>10}")?;
                }
                writeln!(f)?;
            }
            writeln!(f)?;
        }
        for cell in &self.cells {
            if let Err(e) = &cell.outcome {
                writeln!(f, "  {e:#}")?;
            }
        }
        Ok(())
    }
}
