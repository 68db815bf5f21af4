//! Where desired state comes from. A source follows something outside and changes [`Tables`]; it touches nothing else.
//!
//! Cluster state has interchangeable sources of one shape: [`manifests`] follows a directory, [`crate::kube`] the Kubernetes API. Both read the same object types through [`convert`].
pub mod convert;
pub mod manifests;
pub mod objects;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::tables::Tables;

/// Something that fills tables until it is stopped.
pub trait Source: Send {
    /// Starts to follow, on a thread or task of its own, and returns at once. Marks its
    /// [`crate::tables::Source`] synced when all that was there at the start is in the tables.
    fn start(self: Box<Self>, tables: Arc<Tables>) -> anyhow::Result<Running>;
}

/// A started source. It stops when this is dropped; the rows that it set stay.
pub struct Running {
    report: Arc<Report>,
    stop: Option<Box<dyn FnOnce() + Send>>,
}
impl Running {
    /// `stop` ends the source and waits until it has ended.
    pub fn new(report: Arc<Report>, stop: impl FnOnce() + Send + 'static) -> Self {
        Self { report, stop: Some(Box::new(stop)) }
    }
    /// How it is.
    pub fn status(&self) -> SourceStatus {
        self.report.get()
    }
    /// The report itself, for those who ask often.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report)
    }
}
impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop();
        }
    }
}

/// How a source is, as `weft status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// What kind of source it is.
    pub name: String,
    /// What it follows.
    pub origin: String,
    /// Whether all that was there at the start is in the tables.
    pub synced: bool,
    /// Objects that it holds.
    pub objects: usize,
    /// What is wrong now, each with cause and cure. Empty when all is well.
    pub problems: Vec<String>,
    /// More about each kind of object, where they are followed on their own.
    #[serde(default)]
    pub kinds: Vec<KindStatus>,
}

/// How a kind of object is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KindStatus {
    /// Its name.
    pub kind: String,
    /// Whether all that was there at the start is in the tables.
    pub synced: bool,
    /// Objects of it in the tables.
    pub objects: usize,
    /// How often all of it was listed anew: once, and whenever the server had forgotten what was last seen.
    pub lists: u64,
    /// When the server last said anything about it, in seconds since 1970.
    pub heard: Option<u64>,
}

/// A source's status, written by the source and read by the API.
#[derive(Debug, Default)]
pub struct Report {
    status: Mutex<SourceStatus>,
    changed: Condvar,
}
impl Report {
    /// A first report.
    pub fn new(status: SourceStatus) -> Self {
        Self { status: Mutex::new(status), changed: Condvar::new() }
    }
    /// The newest.
    pub fn get(&self) -> SourceStatus {
        self.lock().clone()
    }
    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut SourceStatus)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
    /// Waits until `wanted` holds; the status that it holds for, or `None` after `timeout`.
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&SourceStatus) -> bool) -> Option<SourceStatus> {
        let (status, late) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |status| !wanted(status))
            .unwrap_or_else(PoisonError::into_inner);
        (!late.timed_out()).then(|| status.clone())
    }
    fn lock(&self) -> MutexGuard<'_, SourceStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
