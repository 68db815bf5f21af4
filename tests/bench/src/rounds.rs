//! Everything once a round, by turns: whatever else the machine does meets all alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::inline::{Sample, Test, measure};
use crate::interrupt;
use crate::layout::{Ends, Family};
use crate::path::{progress, progress_end};
use crate::report::Cell;

/// What is measured of each way, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// The tests.
    pub tests: &'a [Test],
    /// The address families.
    pub families: &'a [Family],
    /// How often.
    pub rounds: u32,
    /// Length of one measurement.
    pub duration: Duration,
}

/// Measures every cell once a round on `cpu`. A cell that fails is not tried again; what it said stands in the cell.
///
/// # Errors
/// When a signal has asked for the end.
pub fn measure_rounds<N: Copy + Ord>(
    ways: &[(N, Ends)],
    series: &Series<'_>,
    cpu: usize,
) -> Result<BTreeMap<(N, Test, Family), Cell>> {
    let mut cells = BTreeMap::<_, Cell>::new();
    let start = Instant::now();
    for round in 0..series.rounds {
        progress(&format!("round {}/{}, {} s", round + 1, series.rounds, start.elapsed().as_secs()));
        for test in series.tests {
            for family in series.families {
                for (name, ends) in rotated(ways, round as usize) {
                    let cell = cells.entry((*name, *test, *family)).or_default();
                    if cell.error.is_some() {
                        cell.rounds.push(None);
                        continue;
                    }
                    let sample = measure(*test, ends, *family, series.duration, cpu);
                    interrupt::check()?;
                    cell.push(sample);
                }
            }
        }
    }
    progress_end();
    Ok(cells)
}

/// The ways in another order each round, so that none always follows the same neighbour.
fn rotated<T>(items: &[T], by: usize) -> impl Iterator<Item = &T> {
    let (before, after) = items.split_at(by % items.len().max(1));
    after.iter().chain(before)
}

impl Cell {
    fn push(&mut self, sample: Result<Sample>) {
        match sample {
            Ok(sample) => {
                self.rounds.push(Some(sample.value));
                self.waits += sample.waits;
            }
            Err(error) => {
                self.rounds.push(None);
                self.error = Some(format!("{error:#}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_start_with_another_layout_and_leave_none_out() {
        assert_eq!(rotated(&['a', 'b', 'c'], 4).collect::<String>(), "bca");
        assert_eq!(rotated::<char>(&[], 4).count(), 0);
    }
}
