//! The Kubernetes API as a source, and the only place that knows it.
//!
//! Each kind of object is followed on its own ([`follow`]): all objects first, streamed where the server can, then each change. An object becomes
//! a row of the tables as it comes in, and nothing else of it is kept. Losing the server changes nothing: the rows stay, and what went away meanwhile is
//! removed when the list has come in anew and whole. The source is in sync when every kind is.
//!
//! Servers are tried in turn, those of [`access`]; credentials are read anew with each connection. The agent only reads here, but for its own Node object.
mod access;
mod backoff;
mod follow;
mod kinds;
mod link;
mod moved;
mod own;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};

pub use self::{
    access::{Access, KNOWN},
    own::{Own, TAINT},
    wire::now,
};
use self::{
    kinds::{Flaws, Kind, Need},
    link::Link,
    wire::ObjectKey,
};
use crate::{
    sources::{self, KindStatus, Report, Running, SourceStatus},
    tables::{self, Tables},
};

/// Problems that are told of one by one.
const TOLD: usize = 20;
/// Counts of the report are so old at most while changes come in.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Follows the Kubernetes API.
#[derive(Debug)]
pub struct KubeApi {
    access: Access,
    own: Own,
}

impl KubeApi {
    /// With these servers and credentials, on this node.
    pub fn new(access: Access, own: Own) -> Self {
        Self { access, own }
    }
}

impl sources::Source for KubeApi {
    fn start(self: Box<Self>, tables: Arc<Tables>) -> anyhow::Result<Running> {
        let report = Arc::new(Report::new(SourceStatus {
            name: "kube".into(),
            origin: self.access.to_string(),
            ..SourceStatus::default()
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("start the runtime that follows the Kubernetes API")?;
        let shared = Arc::new(Shared {
            tables,
            link: Link::new(self.access),
            report: Arc::clone(&report),
            state: Mutex::default(),
            own: self.own,
            seen: watch::Sender::default(),
            moved: watch::Sender::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("kube".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // Both a word and a dropped sender mean the end.
                        _ = stopped => {}
                        () = follow_all(&shared) => {}
                    }
                });
                // A connection that is being made or a name that is being looked up keeps nobody waiting.
                runtime.shutdown_background();
            })
            .context("start the thread that follows the Kubernetes API")?;
        Ok(Running::new(report, move || {
            drop(stop);
            drop(thread.join());
        }))
    }
}

async fn follow_all(shared: &Shared) {
    let kinds = kinds::all();
    shared.expect(&kinds);
    let following = futures_util::future::join_all(kinds.iter().map(|kind| follow::follow(&**kind, shared)));
    tokio::join!(following, own::keep(&shared.own, shared, shared.seen.subscribe()), moved::watch(shared));
}

/// What the followers of all kinds share.
#[derive(Debug)]
struct Shared {
    tables: Arc<Tables>,
    link: Link,
    report: Arc<Report>,
    state: Mutex<State>,
    own: Own,
    /// What this node's object says.
    seen: watch::Sender<own::Seen>,
    /// Counts how often this node has lost addresses.
    moved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    kinds: BTreeMap<&'static str, Followed>,
    /// Why this node's object is not as it should be.
    own_trouble: Option<String>,
    /// When the report was last written for no other reason than that something came in.
    told: Option<Instant>,
}

/// How a kind is followed.
#[derive(Debug, Default)]
struct Followed {
    /// Whether the source is not in sync without it.
    needed: bool,
    /// How often in a row the server has said that there is no such kind.
    absent: u32,
    status: KindStatus,
    /// Why it is not followed at the moment.
    trouble: Option<String>,
    /// Objects that are not as they should be, with what is wrong.
    wrong: BTreeMap<ObjectKey, Flaws>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, kinds: &[Box<dyn Kind>]) {
        let mut state = self.state();
        for kind in kinds {
            let status = KindStatus { kind: kind.name().into(), ..KindStatus::default() };
            state
                .kinds
                .insert(kind.name(), Followed { needed: kind.need() != Need::Never, status, ..Followed::default() });
        }
    }

    /// All objects of a kind are in the tables, and what is not there any more is out of them.
    fn listed(&self, kind: &dyn Kind) {
        let all = {
            let mut state = self.state();
            if let Some(followed) = state.kinds.get_mut(kind.name()) {
                followed.status.synced = true;
                followed.status.lists += u64::from(followed.absent == 0);
            }
            state.kinds.values().all(|f| f.status.synced || !f.needed)
        };
        if all && !self.tables.is_synced(tables::Source::Cluster) {
            self.tables.mark_synced(tables::Source::Cluster);
            tracing::info!(server = self.link.server(), "all that the Kubernetes API has is known");
        }
        self.tell();
    }

    /// The server said something about a kind just now.
    fn heard(&self, kind: &dyn Kind) {
        let due = {
            let mut state = self.state();
            if let Some(followed) = state.kinds.get_mut(kind.name()) {
                followed.status.heard = Some(wire::now());
                followed.absent = 0;
            }
            let due = state.told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
            due.then(|| state.told = Some(Instant::now())).is_some()
        };
        if due {
            self.tell();
        }
    }

    /// A kind is followed again, or is not any more, and why.
    fn trouble(&self, kind: &dyn Kind, why: Option<String>) {
        let changed = {
            let mut state = self.state();
            let Some(followed) = state.kinds.get_mut(kind.name()) else { return };
            let before = std::mem::replace(&mut followed.trouble, why.clone());
            before != why
        };
        if changed {
            let (kind, server) = (kind.name(), self.link.server());
            match why {
                Some(why) => {
                    tracing::warn!(kind, server, why, "the Kubernetes API is not followed; what is known stays in use")
                }
                None => tracing::info!(kind, server, "the Kubernetes API is followed"),
            }
        }
        self.tell();
    }

    /// What is wrong with an object now; nothing, when it is as it should be or gone.
    fn wrong(&self, kind: &dyn Kind, key: &ObjectKey, taken: Result<Flaws, String>) {
        let said = match taken {
            Ok(flaws) => flaws,
            Err(why) => vec![format!("{why}; it is not taken, and what it was before stays in use: correct it")],
        };
        {
            let mut state = self.state();
            let Some(followed) = state.kinds.get_mut(kind.name()) else { return };
            if followed.wrong.get(key).map_or(&[][..], |w| w) == said {
                return;
            }
            for why in &said {
                tracing::warn!(kind = kind.name(), object = %key, why, "an object is not as it should be");
            }
            match said.is_empty() {
                true => followed.wrong.remove(key),
                false => followed.wrong.insert(key.clone(), said),
            };
        }
        self.tell();
    }

    /// The server does not have the kind; whether that is no reason to be out of sync. What there was of the kind is removed when the server says so twice:
    /// it says so too for a moment in which it starts.
    fn absent(&self, kind: &dyn Kind) -> bool {
        let times = {
            let mut state = self.state();
            let Some(followed) = state.kinds.get_mut(kind.name()) else { return false };
            followed.absent = followed.absent.saturating_add(1);
            followed.absent
        };
        if kind.need() != Need::IfThere {
            return false;
        }
        if times == 1 {
            tracing::info!(
                kind = kind.name(),
                "the Kubernetes API does not have this kind; it is asked for now and then"
            );
        }
        if times == 2 {
            kind.only(self, &BTreeSet::new());
        }
        self.still_there(kind, &BTreeSet::new());
        self.listed(kind);
        true
    }

    /// Of a kind's broken objects only those are still there that a whole list had.
    fn still_there(&self, kind: &dyn Kind, seen: &BTreeSet<ObjectKey>) {
        if let Some(followed) = self.state().kinds.get_mut(kind.name()) {
            followed.wrong.retain(|key, _| seen.contains(key));
        }
    }

    /// This node's object was read.
    fn own_object(&self, object: &str) {
        let Ok(now) = own::Seen::of(object) else { return };
        self.seen.send_if_modified(|seen| {
            let changed = *seen != now;
            *seen = now;
            changed
        });
    }

    /// This node's object cannot be made as it should be, or is so.
    fn own_trouble(&self, why: Option<String>) {
        {
            let mut state = self.state();
            if state.own_trouble == why {
                return;
            }
            if let Some(why) = &why {
                tracing::warn!(why, "the cluster is not told that pods can be run here");
            }
            state.own_trouble = why;
        }
        self.tell();
    }

    fn tell(&self) {
        let synced = self.tables.is_synced(tables::Source::Cluster);
        let origin = self.link.server();
        let (mut problems, kinds) = {
            let mut state = self.state();
            for (name, followed) in &mut state.kinds {
                followed.status.objects = kinds::held(name, &self.tables);
            }
            let troubles = state.kinds.values().filter_map(|f| f.trouble.clone());
            let wrong = state.kinds.values().flat_map(|f| f.wrong.values().flatten().cloned());
            let problems: Vec<String> = troubles.chain(state.own_trouble.clone()).chain(wrong).collect();
            let kinds: Vec<KindStatus> = state.kinds.values().map(|f| f.status.clone()).collect();
            (problems, kinds)
        };
        let more = problems.len().saturating_sub(TOLD);
        problems.truncate(TOLD);
        if more > 0 {
            problems.push(format!("and {more} more; the agent's log names each"));
        }
        problems.dedup();
        let objects = kinds.iter().map(|k| k.objects).sum();
        self.report.update(|status| {
            *status = SourceStatus { origin, synced, objects, problems, kinds, ..status.clone() };
        });
    }
}
