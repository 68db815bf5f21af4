//! CNI calls, counted for the metrics.
use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Seconds: an ADD takes 2 ms when all goes well, and a runtime gives up after minutes.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 1.0, 4.0, 16.0];

type Labels = Vec<(&'static str, String)>;

/// Shared by the threads that answer and those who look.
#[derive(Clone, Debug)]
pub struct Calls {
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    failures: Family<Labels, Counter>,
}

impl Default for Calls {
    fn default() -> Self {
        let durations = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        Self { durations, failures: Family::default() }
    }
}

impl Calls {
    /// A call was answered, `took` after its connection had been accepted, with an error's code or without.
    pub fn done(&self, verb: &'static str, took: Duration, code: Option<u32>) {
        let verb = ("verb", verb.to_owned());
        self.durations.get_or_create(&vec![verb.clone()]).observe(took.as_secs_f64());
        if let Some(code) = code {
            self.failures.get_or_create(&vec![verb, ("code", code.to_string())]).inc();
        }
    }

    /// Has the registry show them.
    pub fn register(&self, registry: &mut Registry) {
        let (durations, failures) = (self.durations.clone(), self.failures.clone());
        let help = "Time from the plugin's connection to the agent's answer";
        registry.register("cni_call_duration_seconds", help, durations);
        registry.register("cni_call_failures", "CNI calls that were answered with an error, by its code", failures);
    }
}
