//! What a call spends its time on: named steps, in the order of their ends.
//!
//! They stand in the line that the log has for every call, so that a slow ADD on somebody's node explains itself, and
//! `cargo xtask bench add` reads them there: nothing is measured that does not also run in earnest. A step costs two
//! looks at the clock. Steps belong to the thread that works on the call, since a call keeps to one thread.
use std::{
    cell::RefCell,
    fmt,
    time::{Duration, Instant},
};

thread_local! {
    static STEPS: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy, Debug)]
struct Step {
    name: &'static str,
    took: Duration,
}

/// Does `work` as the step `name` of the call that this thread works on.
pub fn timed<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    note(name, begin.elapsed());
    result
}

/// Notes a step that was timed elsewhere. `name` is one word.
pub fn note(name: &'static str, took: Duration) {
    STEPS.with_borrow_mut(|steps| steps.push(Step { name, took }));
}

/// Takes the steps of a call that has ended: `queue 12, read 34`, microseconds.
pub(super) fn take() -> Steps {
    Steps(STEPS.take())
}

/// The steps of a call, for the log.
pub(super) struct Steps(Vec<Step>);
impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Step { name, took }) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {}", took.as_micros())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_once_in_order() {
        note("queue", Duration::from_micros(12));
        assert_eq!(timed("work", || 7), 7);
        let told = take().to_string();
        assert!(told.starts_with("queue 12, work "), "{told}");
        assert_eq!(take().to_string(), "", "the next call begins anew");
    }
}
