//! Waiting for what other programs bring about and tell nobody of.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Between two looks. To ask without a pause would take the processor from those who are asked.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until there is an answer, at most for `limit`, and gives it. `what` is what is waited for: it is in the error, with what the
/// last look found instead.
///
/// # Errors
/// When there is none in time. An error of `look` ends nothing: what is asked may not be there yet.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match look() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        if Instant::now() > deadline {
            match error {
                Some(e) => return Err(e.context(format!("wait for {what}, {} s", limit.as_secs()))),
                None => bail!("no {what} after {} s", limit.as_secs()),
            }
        }
        thread::park_timeout(LOOK);
    }
}
