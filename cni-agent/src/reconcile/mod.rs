//! The only writer: makes maps, routes and hooks follow the tables. Level-triggered: it reads the tables, never events.
pub mod delta;
mod desired;
mod hooks;
#[cfg(test)]
mod memory_tests;
pub mod policy;
mod retries;
mod routes;
mod stack;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use cni_common::schema;
use tracing::{info, warn};

pub use self::hooks::Hooks;
use self::{
    delta::Delta, desired::Desired, policy::Policies, retries::Retries, routes::Routes, stack::Stack, verify::Fixed,
};
use crate::{
    compile::{self, Facts, Heard, InForce, NodeNumbers},
    datapath::{Datapath, attach::How},
    drift,
    fault::{self, Point},
    memory,
    netlink::{NetlinkError, nftables::own::Rule},
    tables::{Endpoint, Row, Source, Tables},
};

/// After the start: to what nobody leads by then, nobody does.
const WAYS_WITHIN: Duration = Duration::from_secs(5);
/// Rows that have changed after which what is kept is packed again, beside a part of what there is.
const MANY: usize = 1000;
/// What the reconciler tells others.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Devices with `from_netdev`, and how it is attached.
    pub devices: BTreeMap<String, How>,
    /// How `from_host` and `from_overlay` are attached; `None`: another build's are.
    pub own: Option<[How; 2]>,
    /// Whether entries that no row asks for were removed: every source has been in sync.
    pub pruned: bool,
    /// What had been changed by somebody else, by kind.
    pub drift: drift::Totals,
    /// By which rules the node's stack masquerades what it has translated for pods.
    pub stack_rules: Vec<Rule>,
    /// Why they are not those that ought to be.
    pub stack_problem: Option<String>,
}

/// The reconciler's state; it lives on its thread.
pub struct Reconciler {
    tables: Arc<Tables>,
    datapath: Arc<Datapath>,
    desired: Desired,
    /// Others only look at them.
    policies: Arc<Mutex<Policies>>,
    routes: Routes,
    /// Pods' addresses that need a route each, as they were when routes were last made.
    hosts: BTreeSet<IpAddr>,
    hooks: Hooks,
    stack: Stack,
    report: Arc<Mutex<Report>>,
    began: Instant,
    fixed: Fixed,
    requests: Arc<drift::Requests>,
    verify_every: Duration,
    verified: Instant,
    retries: Retries,
    packing: Packing,
}

/// When what is kept is packed: once all objects are read, once all has come in, and whenever much has changed.
#[derive(Debug, Default)]
struct Packing {
    /// Rows that changed since.
    changed: usize,
    once: bool,
    begun: bool,
}
impl Packing {
    /// Whether it is before anything has come of the objects that were read: once.
    fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }
    /// So many rows have changed, of so many; whether it is time.
    fn is_due(&mut self, changed: usize, synced: bool, rows: usize) -> bool {
        self.changed += changed;
        let due = synced && (!self.once || self.changed >= MANY.max(rows / 4));
        if due {
            (self.changed, self.once) = (0, true);
        }
        due
    }
}

/// The reconciler cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Maps cannot be read.
    #[error("read the maps that a former agent left")]
    Adopt(#[from] std::io::Error),
    /// Netlink fails.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Reconciler {
    /// Takes over what the kernel holds.
    pub fn new(
        tables: Arc<Tables>,
        datapath: Arc<Datapath>,
        facts: Facts,
        mut hooks: Hooks,
        verify_every: Duration,
    ) -> Result<Self, StartError> {
        let mut delta = Delta::default();
        delta.adopt(&mut datapath.clone())?;
        let numbers = adopt_numbers(&datapath)?;
        let policies = Policies::adopt(&facts, &mut datapath.clone())?;
        let in_force = InForce { epoch: adopt_epoch(&datapath)?, ..InForce::default() };
        let fixed = Fixed::read(hooks.socket())?;
        let routes = Routes::adopt(hooks.socket(), facts.weft_host)?;
        let report = Arc::new(Mutex::new(Report { own: hooks.own(), ..Report::default() }));
        Ok(Self {
            requests: Arc::new(drift::Requests::new(Arc::clone(&tables))),
            fixed,
            verify_every,
            tables,
            datapath,
            desired: Desired::new(
                facts,
                numbers,
                delta,
                in_force,
                Heard { objects: false, ways: false, policies: false },
            ),
            policies: Arc::new(Mutex::new(policies)),
            routes,
            hosts: BTreeSet::new(),
            hooks,
            stack: Stack::default(),
            report,
            began: Instant::now(),
            verified: Instant::now(),
            retries: Retries::default(),
            packing: Packing::default(),
        })
    }

    /// The policies, for those who look at them.
    pub fn policies(&self) -> Arc<Mutex<Policies>> {
        Arc::clone(&self.policies)
    }

    /// Where it tells how it goes.
    pub fn report(&self) -> Arc<Mutex<Report>> {
        Arc::clone(&self.report)
    }

    /// Takes from the maps what a former agent left of devices that are no pods' any more. To be called before it works.
    pub fn forget_devices(&mut self, dead: &BTreeSet<u32>) {
        let of_dead = |bytes: &[u8]| {
            let index = bytes.first_chunk().copied().map(u32::from_ne_bytes);
            index.is_some_and(|index| dead.contains(&index))
        };
        self.desired.delta.forget(|key, value| {
            let id = key.map().id;
            // An address that was given to another pod since leads to that one.
            id == schema::ENDPOINTS.id && of_dead(&key.key)
                || [schema::LOCAL4.id, schema::LOCAL6.id].contains(&id) && of_dead(value)
        });
        // What fails is tried again with the first pass.
        self.desired.delta.flush(&mut self.datapath.clone());
    }

    /// Who wants everything compared now asks here.
    pub fn requests(&self) -> Arc<drift::Requests> {
        Arc::clone(&self.requests)
    }

    /// Works until the other end of `stop` is gone.
    pub fn run(mut self, stop: &mpsc::Receiver<()>) {
        let mut wait = self.verify_every;
        while !matches!(stop.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
            let (revision, mut rows) = self.tables.wait_dirty(wait);
            let synced = self.tables.all_synced_by(revision);
            let idle = rows.is_empty();
            self.retries.join(&mut rows);
            let have_begun = self.lock_policies().have_begun();
            self.desired.heard = Heard {
                objects: self.tables.is_synced_by(Source::Cluster, revision),
                ways: self.began.elapsed() >= WAYS_WITHIN,
                policies: have_begun,
            };
            if self.desired.heard.objects && self.packing.begins() {
                // Policies take the holes that reading all objects has left.
                self.pack();
            }
            // What pods' entries refer to comes before them.
            let mut failures = self.follow_policies(&rows, idle);
            failures.extend(self.desired.follow(&self.tables.read(), &mut rows));
            let unwritten = self.desired.delta.flush(&mut self.datapath.clone());
            let in_force = self.lock_policies().are_in_force();
            let filled = unwritten.is_empty() && in_force;
            failures.extend(unwritten);
            let stack_again = self.follow_stack(&rows, idle);
            // Before routes are looked at below: what is missing then is made without a word.
            let asked = self.requests.take();
            if !asked.is_empty() || self.verified.elapsed() >= self.verify_every {
                let verified = self.verify();
                // Who has lost patience is gone.
                asked.into_iter().for_each(|who| drop(who.send(verified.clone())));
            }
            let network = |r: &Row| matches!(r, Row::Node(_) | Row::NodeAddresses | Row::Devices);
            if idle || rows.iter().any(network) || self.hosts_changed(&rows) {
                failures.extend(self.network(idle || rows.contains(&Row::NodeAddresses), synced));
                failures.extend(self.unreached(&rows));
            }
            let unled = self.follow_hooks();
            let filled = filled && unled.is_empty();
            failures.extend(unled);
            if synced && filled && self.datapath.waits() {
                self.swap();
            }
            if synced && !self.datapath.waits() {
                self.prune();
            }
            // While another build's programs run, no packet meets what this one has written.
            if !self.datapath.waits() {
                self.tables.applied_except(revision, &failures);
            }
            let known = self.tables.read().pods.len();
            if self.packing.is_due(rows.len(), synced, known) {
                self.pack();
            }
            self.tell();
            let stale = self.desired.heard.objects && !in_force;
            let unfinished = self.desired.delta.has_pending() || self.datapath.waits() || stale || stack_again;
            wait = self.retries.note(&failures, unfinished, self.verify_every);
            for (row, error) in &failures {
                warn!(%row, error, again_in = ?wait, "cannot apply");
            }
        }
    }

    /// Packs what is kept for each pod of the cluster, and gives back what it took to get there.
    fn pack(&mut self) {
        self.tables.pack();
        self.desired.delta.pack(self.desired.heard == Heard::EVERYTHING);
        self.lock_policies().pack();
        memory::give_back();
    }

    fn lock_policies(&self) -> MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn follow_policies(&mut self, rows: &BTreeSet<Row>, again: bool) -> BTreeMap<Row, String> {
        let policies = Arc::clone(&self.policies);
        let mut policies = policies.lock().unwrap_or_else(PoisonError::into_inner);
        policies.follow(rows, again, (&self.tables, &mut self.desired), &mut self.datapath.clone())
    }

    /// Routes and hooks. `look`: the kernel may have removed routes; `synced`: what nobody asks for may go.
    fn network(&mut self, look: bool, synced: bool) -> BTreeMap<Row, String> {
        let (routes, devices, known) = {
            let (contents, facts) = (self.tables.read(), &self.desired.facts);
            self.hosts = compile::host_addresses(&contents, facts);
            let known = facts.route_mtu(&contents).is_some();
            (compile::cluster_routes(&contents, facts), contents.devices.clone(), known)
        };
        let mut failures = BTreeMap::new();
        let looked = if look { self.routes.look(self.hooks.socket()) } else { Ok(()) };
        // While no device is chosen, as between the Node object and the next look at the kernel, nobody knows which routes are asked for.
        let applied = self.routes.apply(self.hooks.socket(), routes, synced && known);
        if let Err(e) = looked.and(applied) {
            failures.insert(Row::Node(self.desired.facts.node.clone()), e.to_string());
        }
        if !self.datapath.waits()
            && let Err(e) = self.hooks.apply(&self.datapath, &devices, synced)
        {
            failures.insert(Row::Devices, e);
        }
        failures
    }

    /// By which devices pods leave, once it is known what is of the cluster: before that, what a former agent left stands.
    fn follow_hooks(&mut self) -> BTreeMap<Row, String> {
        if !self.desired.heard.objects {
            return BTreeMap::new();
        }
        let contents = self.tables.read();
        let hooked = match self.datapath.waits() {
            // Their programs come with the pods', and before those.
            true => contents.devices.keys().copied().collect(),
            false => self.hooks.indexes(),
        };
        if !self.desired.note_hooked(hooked) {
            return BTreeMap::new();
        }
        let mut failures = self.desired.follow(&contents, &mut BTreeSet::from([Row::Devices]));
        drop(contents);
        failures.extend(self.desired.delta.flush(&mut self.datapath.clone()));
        failures
    }

    /// What the node's stack masquerades, once it is known what is of the cluster: before that, what a former agent left stands. Whether to try again soon.
    fn follow_stack(&mut self, rows: &BTreeSet<Row>, idle: bool) -> bool {
        let (contents, facts) = (self.tables.read(), &self.desired.facts);
        let concerned = rows.iter().any(|r| matches!(r, Row::Node(_) | Row::Endpoint(_)));
        if !(idle || concerned || self.stack.is_open()) || !self.desired.heard.objects {
            return false;
        }
        let Some(wanted) = compile::stack_rules(&contents, facts) else { return false };
        drop(contents);
        self.stack.follow(&wanted, idle, &mut stack::Kernel)
    }

    /// Whether pods' addresses that need a route each are others than those that have one.
    fn hosts_changed(&self, rows: &BTreeSet<Row>) -> bool {
        let endpoints = rows.iter().any(|r| matches!(r, Row::Endpoint(_)));
        endpoints && {
            let hosts = compile::host_addresses(&self.tables.read(), &self.desired.facts);
            hosts != self.hosts || hosts.iter().any(|a| !self.routes.lead_to(*a))
        }
    }

    /// The endpoints of these rows whose addresses need a route each and have none.
    fn unreached(&self, rows: &BTreeSet<Row>) -> BTreeMap<Row, String> {
        let contents = self.tables.read();
        let ends =
            rows.iter().filter_map(|r| if let Row::Endpoint(id) = r { contents.endpoints.get(id) } else { None });
        let bare = |e: &Endpoint| e.ips().find(|a| self.hosts.contains(a) && !self.routes.lead_to(*a));
        ends.filter_map(|e| Some((Row::Endpoint(e.id), format!("the kernel takes no route to {}", bare(e)?)))).collect()
    }

    /// Once every source is in sync and the maps hold what they said, this build's programs come in the place of another's: before that
    /// they would drop what the others know how to forward, and let pods out under addresses of their own. The kernel is in sync once it has been
    /// asked for the devices of this node, as its object names them, so addresses to leave under are in the maps by then.
    fn swap(&mut self) {
        let devices = {
            let contents = self.tables.read();
            if self.desired.facts.tunnel_address(&contents).is_none() {
                return;
            }
            contents.devices.clone()
        };
        let began = Instant::now();
        match self.hooks.swap(&self.datapath, &devices) {
            Ok(()) => info!(took = ?began.elapsed(), "this build's programs run in the place of another's"),
            Err(error) => warn!(error, "cannot put this build's programs in the place of another's; trying again"),
        }
    }

    /// Once every source is in sync, what no row asks for may go: before that it may be a row that nobody has read yet.
    fn prune(&mut self) {
        {
            let contents = self.tables.read();
            // Between the Node object and the next look at the kernel nobody knows by which devices pods leave.
            if self.desired.facts.tunnel_address(&contents).is_none() || contents.devices.is_empty() {
                return;
            }
        }
        self.desired.forget_nodes(&self.tables.read());
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.pruned {
            return;
        }
        self.desired.delta.prune();
        self.desired.delta.flush(&mut self.datapath.clone());
        fault::pass(Point::Pruned);
        report.pruned = true;
        info!("all sources are in sync; what nobody asks for is removed");
    }

    fn tell(&self) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.devices.clone_from(self.hooks.attached());
        report.own = self.hooks.own();
        report.stack_rules = self.stack.believed().unwrap_or_default().to_vec();
        report.stack_problem = self.stack.problem().map(str::to_owned);
    }
}

/// The policy epoch goes on from a former agent's, another build's too: its flows were judged by what it knew.
fn adopt_epoch(datapath: &Datapath) -> std::io::Result<u32> {
    let found = datapath.in_use(&schema::CT_CONFIG).map_err(std::io::Error::other)?;
    let epoch = found.into_values().next().and_then(|value| value.first_chunk().copied().map(u32::from_ne_bytes));
    Ok(epoch.unwrap_or(compile::FIRST_EPOCH))
}

/// The numbers that the maps of tunnel addresses hold.
fn adopt_numbers(datapath: &Datapath) -> std::io::Result<NodeNumbers> {
    let mut numbers = NodeNumbers::default();
    for spec in [&schema::NODES4, &schema::NODES6] {
        // Another build's too: an agent that dies while it swaps leaves maps of either, which must agree.
        for (key, value) in datapath.in_use(spec).map_err(std::io::Error::other)? {
            let address = <[u8; 4]>::try_from(key.as_slice())
                .map(|a| IpAddr::V4(Ipv4Addr::from(a)))
                .or_else(|_| <[u8; 16]>::try_from(key.as_slice()).map(|a| IpAddr::V6(Ipv6Addr::from(a))));
            if let (Ok(address), Ok(number)) = (address, value.try_into()) {
                numbers.adopt(address, u32::from_ne_bytes(number));
            }
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_packed_once_all_is_there_and_when_much_has_changed() {
        let mut packing = Packing::default();
        assert!(!packing.is_due(50_000, false, 50_000), "there is more to come");
        assert!(packing.is_due(1, true, 50_000));
        assert!(!packing.is_due(MANY, true, 50_000), "a small part of all");
        assert!(packing.is_due(50_000, true, 50_000));
        assert!(!packing.is_due(MANY - 1, true, 20) && packing.is_due(1, true, 20));
    }
}
