//! What the lab does, for those who watch it.
use std::{
    fmt,
    time::{Duration, Instant},
};

/// Something that the lab has done.
#[derive(Debug, Clone)]
pub struct Step {
    /// What, as a sentence without a subject.
    pub what: String,
    /// How long it took.
    pub took: Duration,
}

/// Is told of every step right after it.
pub struct Watch(Box<dyn FnMut(&Step) + Send + Sync>);

impl Watch {
    /// Calls `each` with every step.
    pub fn new(each: impl FnMut(&Step) + Send + Sync + 'static) -> Self {
        Self(Box::new(each))
    }

    /// Does `work` and reports it under `what` if it succeeded.
    pub(crate) fn step<T>(
        &mut self,
        what: impl Into<String>,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let begin = Instant::now();
        let result = work()?;
        self.0(&Step { what: what.into(), took: begin.elapsed() });
        Ok(result)
    }
}

impl Default for Watch {
    /// Nobody watches.
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
