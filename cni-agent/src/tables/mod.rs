//! Desired and observed state: what should be in the kernel, by row, with revisions.
//!
//! Sources write rows, the reconciler reads them: rows are all that passes between the two. Every change raises
//! [`Revision`] and marks its row dirty; setting a row to what it is already is no change. The reconciler waits with
//! [`Tables::wait_dirty`], works from [`Tables::read`] (never from the event), and reports with [`Tables::applied`] or
//! [`Tables::applied_except`], which settles the rows' statuses and releases those who wait for them (CNI ADD).
//!
//! Ordered maps throughout, so that dumps, logs and tests are the same each time. No clock, no kernel, no I/O.
pub mod pods;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    fmt::{self, Display, Formatter},
    net::IpAddr,
    ops::Deref,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;
use tracing::warn;

use crate::policy::objects::{PolicyName, Read};

use self::pods::Pods;
pub use self::types::{
    Device, Endpoint, NamedPort, Namespace, NextHop, Node, Phase, Pod, PodKey, PodRoute, Protocol, Row, RowStatus,
    ServiceCidr, Source, Terms,
};

/// Counts changes since the agent started; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Revision(pub u64);
impl Display for Revision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// All rows, as one consistent view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Nodes, by name.
    pub nodes: BTreeMap<String, Node>,
    /// Namespaces, by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Policies of both kinds, as they were read.
    pub policies: BTreeMap<PolicyName, Arc<Read>>,
    /// Addresses of Services, by their objects' names.
    pub service_cidrs: BTreeMap<String, ServiceCidr>,
    /// Pods of all nodes.
    pub pods: Pods,
    /// This node's endpoints, by id.
    pub endpoints: BTreeMap<u16, Endpoint>,
    /// The addresses that this node's own devices carry, read from netlink; loopback's and link-local ones are the
    /// source's choice.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The devices that lead to other nodes, by interface index.
    pub devices: BTreeMap<u32, Device>,
    /// How to reach other nodes, by tunnel address.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
}
impl Contents {
    fn has(&self, row: &Row) -> bool {
        match row {
            Row::Node(name) => self.nodes.contains_key(name),
            Row::Pod(key) => self.pods.contains_key(key),
            Row::Endpoint(id) => self.endpoints.contains_key(id),
            Row::NodeAddresses | Row::Devices => true,
            Row::NextHop(ip) => self.next_hops.contains_key(&**ip),
            Row::Namespace(name) => self.namespaces.contains_key(&**name),
            Row::Policy(name) => self.policies.contains_key(&**name),
            Row::ServiceCidr(name) => self.service_cidrs.contains_key(&**name),
        }
    }
}

/// A row that the kernel does not hold yet; every other row is applied.
#[derive(Debug)]
struct Unsettled {
    changed: Revision,
    failure: Option<(String, u32)>,
}
impl Unsettled {
    fn status(&self) -> RowStatus {
        match &self.failure {
            None => RowStatus::Pending,
            Some((error, retries)) => RowStatus::Failed { error: error.clone(), retries: *retries },
        }
    }
}

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    revision: Revision,
    applied: Revision,
    dirty: BTreeSet<Row>,
    unsettled: BTreeMap<Row, Unsettled>,
    /// Sources in sync, and the revision with which they were.
    synced: BTreeMap<Source, Revision>,
    kicked: bool,
}
impl State {
    /// Notes a change of `row`, or none; answers with the revision that holds the row's present value.
    fn note(&mut self, row: Row, changed: bool) -> Revision {
        if !changed {
            return self.unsettled.get(&row).map_or(self.applied, |u| u.changed);
        }
        self.revision.0 += 1;
        self.dirty.insert(row.clone());
        self.unsettled.insert(row, Unsettled { changed: self.revision, failure: None });
        self.revision
    }
}

/// The tables, shared by sources, reconciler, API and CNI server. See the module's text.
#[derive(Debug, Default)]
pub struct Tables {
    state: Mutex<State>,
    /// Signalled on every change of `state`: changes, reports, sync marks, kicks.
    moved: Condvar,
    /// This node's name, whose row is changed but never removed.
    own: Option<String>,
}

/// A consistent view of the rows. Holds the tables' lock: read, compute, let go; never write or wait with it in hand,
/// and mind that one made inside an expression lives to the end of the statement.
#[derive(Debug)]
pub struct View<'a>(MutexGuard<'a, State>);
impl View<'_> {
    /// The revision that this view shows.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }
}
impl Deref for View<'_> {
    type Target = Contents;
    fn deref(&self) -> &Contents {
        &self.0.contents
    }
}

/// What waits in vain says this: the kernel has not caught up in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {wanted} was not in the kernel within {waited:?} (applied so far: {applied})")]
pub struct NotApplied {
    /// What was waited for.
    pub wanted: Revision,
    /// How far the reconciler is.
    pub applied: Revision,
    /// How long was waited.
    pub waited: Duration,
}

impl Tables {
    /// Empty tables, no source in sync.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, on the node of this name.
    pub fn of_node(name: &str) -> Self {
        Self { own: Some(name.to_owned()), ..Self::default() }
    }

    // No writer leaves the state half changed, so what a panicked thread left behind is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, change: impl FnOnce(&mut Contents) -> (Row, bool)) -> Revision {
        let mut state = self.lock();
        let (row, changed) = change(&mut state.contents);
        let revision = state.note(row, changed);
        if changed {
            self.moved.notify_all();
        }
        revision
    }

    /// Waits until `ready` gives a value or `timeout` is over; then `ready` is asked a last time.
    fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|d| !d.is_zero())?;
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All rows. Keep the view for as long as the computation takes, no longer.
    pub fn read(&self) -> View<'_> {
        View(self.lock())
    }

    /// Adds or replaces a node. The answer, here and below, is the revision that holds the row's value: a change's own,
    /// or for an equal value an earlier one; [`Tables::wait_applied`] takes it.
    pub fn set_node(&self, node: Node) -> Revision {
        self.write(|c| {
            let row = Row::Node(node.name.clone());
            (row, set(&mut c.nodes, node.name.clone(), node))
        })
    }
    /// Removes a node; a missing one is no change. This node stays as it was last read: an object that is deleted by mistake, or only to be
    /// made anew, must not cut its pods off.
    pub fn remove_node(&self, name: &str) -> Revision {
        if self.own.as_deref() == Some(name) {
            warn!(node = name, "this node's own Node object is gone; going on as it was");
            return self.read().revision();
        }
        self.write(|c| (Row::Node(name.to_owned()), c.nodes.remove(name).is_some()))
    }
    /// Adds or replaces a namespace.
    pub fn set_namespace(&self, namespace: Namespace) -> Revision {
        self.write(|c| {
            let row = Row::Namespace(namespace.name.as_str().into());
            (row, set(&mut c.namespaces, namespace.name.clone(), namespace))
        })
    }
    /// Removes a namespace; a missing one is no change. Its pods and policies have objects, and go with those.
    pub fn remove_namespace(&self, name: &str) -> Revision {
        self.write(|c| (Row::Namespace(name.into()), c.namespaces.remove(name).is_some()))
    }
    /// Adds or replaces a policy.
    pub fn set_policy(&self, policy: Read) -> Revision {
        self.write(|c| {
            let name = policy.policy.name.clone();
            (Row::Policy(name.clone().into()), set(&mut c.policies, name, Arc::new(policy)))
        })
    }
    /// Removes a policy; a missing one is no change.
    pub fn remove_policy(&self, name: &PolicyName) -> Revision {
        self.write(|c| (Row::Policy(name.clone().into()), c.policies.remove(name).is_some()))
    }
    /// Adds or replaces addresses of Services.
    pub fn set_service_cidr(&self, of: ServiceCidr) -> Revision {
        self.write(|c| (Row::ServiceCidr(of.name.as_str().into()), set(&mut c.service_cidrs, of.name.clone(), of)))
    }
    /// Removes addresses of Services; missing ones are no change.
    pub fn remove_service_cidr(&self, name: &str) -> Revision {
        self.write(|c| (Row::ServiceCidr(name.into()), c.service_cidrs.remove(name).is_some()))
    }
    /// Adds or replaces a pod.
    pub fn set_pod(&self, pod: Pod) -> Revision {
        self.write(|c| {
            let (key, changed) = c.pods.set(&pod);
            (Row::Pod(key), changed)
        })
    }
    /// Removes a pod; a missing one is no change.
    pub fn remove_pod(&self, key: &PodKey) -> Revision {
        self.write(|c| (Row::Pod(key.clone()), c.pods.remove(key)))
    }
    /// Adds or replaces an endpoint.
    pub fn set_endpoint(&self, endpoint: Endpoint) -> Revision {
        self.write(|c| (Row::Endpoint(endpoint.id), set(&mut c.endpoints, endpoint.id, endpoint)))
    }
    /// Changes the MTU of an endpoint's routes. One that is gone meanwhile does not come back by it.
    pub fn set_endpoint_mtu(&self, id: u16, mtu: u32) -> Revision {
        self.write(|c| {
            let changed = c.endpoints.get_mut(&id).is_some_and(|e| std::mem::replace(&mut e.mtu, mtu) != mtu);
            (Row::Endpoint(id), changed)
        })
    }
    /// Removes an endpoint; a missing one is no change.
    pub fn remove_endpoint(&self, id: u16) -> Revision {
        self.write(|c| (Row::Endpoint(id), c.endpoints.remove(&id).is_some()))
    }
    /// Replaces the set of this node's own addresses.
    pub fn set_node_addresses(&self, addresses: BTreeSet<IpAddr>) -> Revision {
        self.write(|c| {
            let changed = c.node_addresses != addresses;
            c.node_addresses = addresses;
            (Row::NodeAddresses, changed)
        })
    }
    /// Replaces the set of devices that lead to other nodes.
    pub fn set_devices(&self, devices: BTreeMap<u32, Device>) -> Revision {
        self.write(|c| {
            let changed = c.devices != devices;
            c.devices = devices;
            (Row::Devices, changed)
        })
    }
    /// Adds or replaces the way to a tunnel address.
    pub fn set_next_hop(&self, to: IpAddr, hop: NextHop) -> Revision {
        self.write(|c| (Row::NextHop(to.into()), set(&mut c.next_hops, to, hop)))
    }
    /// Removes the way to a tunnel address; a missing one is no change.
    pub fn remove_next_hop(&self, to: IpAddr) -> Revision {
        self.write(|c| (Row::NextHop(to.into()), c.next_hops.remove(&to).is_some()))
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.lock().revision
    }
    /// The newest revision that the reconciler has been through.
    pub fn applied_revision(&self) -> Revision {
        self.lock().applied
    }

    /// For the reconciler's thread: waits until a row is dirty, somebody kicks, or `timeout` is over (time for retries
    /// and comparisons), and takes the dirty rows, none after a kick or a timeout. The revision is the one to report.
    pub fn wait_dirty(&self, timeout: Duration) -> (Revision, BTreeSet<Row>) {
        let start = Instant::now();
        let mut state = self.lock();
        while !state.kicked && state.dirty.is_empty() {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        // Taken under one lock, so that the revision never covers a row that is not in the set.
        state.kicked = false;
        (state.revision, std::mem::take(&mut state.dirty))
    }
    /// Makes [`Tables::wait_dirty`] return, though no row has changed.
    pub fn kick(&self) {
        self.lock().kicked = true;
        self.moved.notify_all();
    }
    /// Marks a row dirty without changing it: it is to be tried again.
    pub fn mark_dirty(&self, row: Row) {
        self.lock().dirty.insert(row);
        self.moved.notify_all();
    }

    /// Packs what is kept for each pod as closely as it goes.
    pub fn pack(&self) {
        self.lock().contents.pods.pack();
    }

    /// The reconciler's report: the kernel holds all that the tables held at `revision`.
    pub fn applied(&self, revision: Revision) {
        self.applied_except(revision, &BTreeMap::new());
    }
    /// The reconciler's report with the rows that failed, each with its error. They keep failing until a later report
    /// leaves them out; rows changed after `revision` stay pending.
    pub fn applied_except(&self, revision: Revision, failures: &BTreeMap<Row, String>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for (row, error) in failures {
            let Some(entry) = state.unsettled.get_mut(row) else {
                // It was applied once and no longer is (found by comparing with the kernel).
                let failure = Some((error.clone(), 1));
                state.unsettled.insert(row.clone(), Unsettled { changed: revision, failure });
                continue;
            };
            if entry.changed <= revision {
                let before = entry.failure.as_ref().map_or(0, |(_, n)| *n);
                entry.failure = Some((error.clone(), before.saturating_add(1)));
            }
        }
        state.unsettled.retain(|row, entry| entry.changed > revision || failures.contains_key(row));
        state.applied = state.applied.max(revision);
        self.moved.notify_all();
    }

    /// Waits until the reconciler has been through `revision`. Rows may have failed: [`Tables::status`] tells.
    pub fn wait_applied(&self, revision: Revision, timeout: Duration) -> Result<(), NotApplied> {
        self.wait(timeout, |s| (s.applied >= revision).then_some(())).ok_or_else(|| NotApplied {
            wanted: revision,
            applied: self.applied_revision(),
            waited: timeout,
        })
    }
    /// Waits until `row` is no longer pending, and says how it went: `Pending` when `timeout` was over first, `None` when
    /// there is no such row and its removal is through.
    pub fn wait_settled(&self, row: &Row, timeout: Duration) -> Option<RowStatus> {
        let settled = |s: &mut State| match status(s, row) {
            Some(RowStatus::Pending) => None,
            other => Some(other),
        };
        self.wait(timeout, settled).unwrap_or(Some(RowStatus::Pending))
    }
    /// Waits until `found` finds in the rows what it looks for; `None` after `timeout`.
    pub fn wait_for<T>(&self, timeout: Duration, mut found: impl FnMut(&Contents) -> Option<T>) -> Option<T> {
        self.wait(timeout, |s| found(&s.contents))
    }

    /// How far the kernel is with a row; `None` when there is none and its removal is through.
    pub fn status(&self, row: &Row) -> Option<RowStatus> {
        status(&self.lock(), row)
    }
    /// The rows that the kernel does not hold as they are, in order.
    pub fn unsettled(&self) -> BTreeMap<Row, RowStatus> {
        self.lock().unsettled.iter().map(|(row, entry)| (row.clone(), entry.status())).collect()
    }

    /// A source has delivered all that it knew when the agent started. Wakes the reconciler: pruning may be allowed now.
    pub fn mark_synced(&self, source: Source) {
        let mut state = self.lock();
        let revision = state.revision;
        if let btree_map::Entry::Vacant(entry) = state.synced.entry(source) {
            entry.insert(revision);
            state.kicked = true;
            self.moved.notify_all();
        }
    }
    /// Whether a source is in sync.
    pub fn is_synced(&self, source: Source) -> bool {
        self.lock().synced.contains_key(&source)
    }
    /// Whether every source is in sync.
    pub fn all_synced(&self) -> bool {
        self.all_synced_by(Revision(u64::MAX))
    }
    /// Whether every source was in sync by a revision that [`Tables::wait_dirty`] gave: only then may the reconciler delete what
    /// the tables do not name. A source that has come into sync since may have delivered rows that the reconciler has not taken.
    pub fn all_synced_by(&self, revision: Revision) -> bool {
        let state = self.lock();
        Source::ALL.iter().all(|s| state.synced.get(s).is_some_and(|synced| *synced <= revision))
    }
    /// Whether a source was in sync by a revision that [`Tables::wait_dirty`] gave.
    pub fn is_synced_by(&self, source: Source, revision: Revision) -> bool {
        self.lock().synced.get(&source).is_some_and(|synced| *synced <= revision)
    }
    /// Waits until a source is in sync; whether it is.
    pub fn wait_synced(&self, source: Source, timeout: Duration) -> bool {
        self.wait(timeout, |s| s.synced.contains_key(&source).then_some(())).is_some()
    }
}

fn status(state: &State, row: &Row) -> Option<RowStatus> {
    match state.unsettled.get(row) {
        Some(entry) => Some(entry.status()),
        None => state.contents.has(row).then_some(RowStatus::Applied),
    }
}

/// Whether the map changed.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}
