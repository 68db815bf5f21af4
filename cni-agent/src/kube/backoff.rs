//! How long to wait before the next attempt: twice as long each time, and never all nodes at once.
use std::{collections::hash_map::RandomState, hash::BuildHasher as _, time::Duration};

const FIRST: Duration = Duration::from_millis(200);
/// A thousand nodes that lost their API server come back within so long, not within a moment.
const LONGEST: Duration = Duration::from_secs(30);

/// Counts attempts that failed in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failed: u32,
}

impl Backoff {
    /// Something went well.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
    /// Another attempt failed: so long until the next one, between half and all of what doubling gives.
    pub fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failed.min(16)).min(LONGEST);
        self.failed = self.failed.saturating_add(1);
        let half = whole / 2;
        // Seeded by the system for each.
        let random = RandomState::new().hash_one(self.failed);
        let share = f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        half + half.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_half_a_minute_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits[10..].iter().all(|w| *w >= LONGEST / 2 && *w <= LONGEST), "{waits:?}");
        assert!(waits[20..].windows(2).any(|w| w[0] != w[1]), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
