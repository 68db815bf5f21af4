//! What failed comes again: with the next change, whatever that is about, or after a pause that grows.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::tables::Row;

/// The pause before what failed is tried again; doubled each time.
const FIRST: Duration = Duration::from_millis(200);
/// The longest such pause.
const LAST: Duration = Duration::from_secs(30);

/// Rows whose last attempt failed.
#[derive(Debug)]
pub struct Retries {
    failed: BTreeSet<Row>,
    pause: Duration,
}
impl Default for Retries {
    fn default() -> Self {
        Self { failed: BTreeSet::new(), pause: FIRST }
    }
}
impl Retries {
    /// Adds what failed to the rows of this pass. A pass that left them out would report them as applied.
    pub fn join(&mut self, rows: &mut BTreeSet<Row>) {
        rows.append(&mut self.failed);
    }

    /// Notes how a pass went; answers how long to wait for the next change, `idle` when nothing is left to do.
    pub fn note(&mut self, failures: &BTreeMap<Row, String>, pending: bool, idle: Duration) -> Duration {
        if failures.is_empty() && !pending {
            self.pause = FIRST;
            return idle;
        }
        self.failed.extend(failures.keys().cloned());
        let wait = self.pause;
        self.pause = (self.pause * 2).min(LAST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    #[test]
    fn a_row_that_failed_comes_again_with_a_change_of_another_row() {
        let mut retries = Retries::default();
        let failure = BTreeMap::from([(Row::Devices, "attach".to_owned())]);
        assert_eq!(retries.note(&failure, false, IDLE), FIRST);
        let mut rows = BTreeSet::from([Row::Endpoint(1)]);
        retries.join(&mut rows);
        assert_eq!(rows, BTreeSet::from([Row::Devices, Row::Endpoint(1)]));
        assert_eq!(retries.note(&BTreeMap::new(), false, IDLE), IDLE);
        let mut rows = BTreeSet::new();
        retries.join(&mut rows);
        assert!(rows.is_empty(), "it has been applied");
    }

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew_after_a_success() {
        let mut retries = Retries::default();
        let failure = BTreeMap::from([(Row::Devices, "attach".to_owned())]);
        let waits: Vec<Duration> = (0..10).map(|_| retries.note(&failure, false, IDLE)).collect();
        assert_eq!((waits[0], waits[1], waits[9]), (FIRST, FIRST * 2, LAST));
        assert_eq!(retries.note(&BTreeMap::new(), true, IDLE), LAST, "a deletion that failed has no row");
        assert_eq!(retries.note(&BTreeMap::new(), false, IDLE), IDLE);
        assert_eq!(retries.note(&failure, false, IDLE), FIRST);
    }
}
