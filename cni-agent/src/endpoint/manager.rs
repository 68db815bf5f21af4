//! The endpoints of this node: what is given out, what a former agent left, and who serves which verb.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cni_plugin::{
    protocol::Request,
    spec::{AddResult, CniError, ErrorCode},
    tombstone::Tombstone,
};
use tracing::{info, instrument, warn};

use super::{
    check,
    reaper::Reaper,
    record::{EndpointRecord, RecordError, RecordStore, State},
};
use crate::{
    cni::CniHandler,
    compile::Facts,
    conntrack::Sweeper,
    datapath::Datapath,
    fault::{self, Point},
    ipam::{self, Ipam, Lease, Usage},
    netlink::{NetlinkError, Socket, link, names},
    tables::{Endpoint, Source, Tables},
};

/// How long after the agent's start ADD waits for what the node lacks.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Container and interface: what CNI names an attachment by.
pub(super) type Attachment = (String, String);

/// The endpoints of this node.
pub struct EndpointManager {
    pub(super) tables: Arc<Tables>,
    pub(super) facts: Facts,
    pub(super) records: RecordStore,
    pub(super) datapath: Arc<Datapath>,
    pub(super) reaper: Reaper,
    pub(super) sweeper: Sweeper,
    /// Whether the flows that a former agent's pods have left are gone.
    pub(super) orphans_removed: Mutex<bool>,
    pub(super) state: Arc<Mutex<Ids>>,
    /// The directory of tombstones.
    pub(super) tombstones: PathBuf,
    /// Until when ADD waits for what the node lacks.
    pub(super) ready_by: Instant,
}

/// What the manager works with.
pub struct Parts {
    /// Desired state.
    pub tables: Arc<Tables>,
    /// What does not change while the agent runs.
    pub facts: Facts,
    /// The records of endpoints.
    pub records: RecordStore,
    /// Programs and maps: CHECK and STATUS compare with them.
    pub datapath: Arc<Datapath>,
    /// Takes the flows of deleted pods out.
    pub sweeper: Sweeper,
    /// The directory of tombstones, beside the socket.
    pub tombstones: PathBuf,
}

/// What is given out.
#[derive(Default)]
pub(super) struct Ids {
    pub(super) ipam: Ipam,
    pub(super) by_attachment: BTreeMap<Attachment, Attached>,
    /// Ids in use, those of devices that are yet to be deleted included.
    pub(super) taken: BTreeMap<u16, ()>,
    /// Endpoints whose DEL answers only when the device is gone. Of one attachment there are several when a DEL was not waited for.
    pub(super) leaving: BTreeMap<(Attachment, u16), Leaving>,
    last: u16,
}

/// An endpoint that is in service.
#[derive(Clone, Copy)]
pub(super) struct Attached {
    pub(super) id: u16,
    /// When its ADD ended, or it was taken over.
    since: Instant,
}

/// An endpoint with another plugin's addresses whose device is being deleted.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) id: u16,
    pub(super) lease: Lease,
    pub(super) device: u32,
}

impl Ids {
    /// Notes that an endpoint is in service from now on.
    pub(super) fn attach(&mut self, attachment: Attachment, id: u16) {
        self.by_attachment.insert(attachment, Attached { id, since: Instant::now() });
    }

    /// Whether an attachment was in service at `time`, and still is.
    pub(super) fn was_attached(&self, attachment: &Attachment, time: Instant) -> bool {
        self.by_attachment.get(attachment).is_some_and(|attached| attached.since < time)
    }

    /// Holds the id and the addresses of a device that is yet to be deleted. What of the addresses was held by nobody.
    fn hold_doomed(&mut self, id: u16, lease: Lease) -> Lease {
        self.taken.insert(id, ());
        let v4 = lease.v4.filter(|a| self.ipam.hold(IpAddr::V4(*a)));
        let v6 = lease.v6.filter(|a| self.ipam.hold(IpAddr::V6(*a)));
        Lease { v4, v6 }
    }

    /// Notes that a device with another plugin's addresses is to go.
    pub(super) fn leave(&mut self, attachment: &Attachment, leaving: Leaving) {
        self.release(leaving.lease);
        self.leaving.insert((attachment.clone(), leaving.id), leaving);
    }

    /// Those of an attachment that are not gone yet.
    pub(super) fn leaving_of(&self, attachment: &Attachment) -> Vec<Leaving> {
        let all = (attachment.clone(), 0)..=(attachment.clone(), u16::MAX);
        self.leaving.range(all).map(|(_, leaving)| *leaving).collect()
    }

    /// A device that was to go is gone. A DEL that was repeated meanwhile may have noted it.
    pub(super) fn gone(&mut self, attachment: &Attachment, id: u16) {
        if let Some(Leaving { lease, .. }) = self.leaving.remove(&(attachment.clone(), id)) {
            self.taken.remove(&id);
            self.settle(lease);
        }
    }

    pub(super) fn next(&mut self) -> Option<u16> {
        let id =
            (1..=u16::MAX).map(|n| self.last.wrapping_add(n)).find(|id| *id != 0 && !self.taken.contains_key(id))?;
        self.last = id;
        self.taken.insert(id, ());
        Some(id)
    }
}

/// The endpoints of a former agent cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Devices.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What became of a former agent's endpoints.
pub struct Restored {
    /// With those that live on.
    pub manager: EndpointManager,
    /// Interface indexes that the maps hold and that are no pod's any more: a device that is gone, or of an ADD that was cut off.
    pub dead: BTreeSet<u32>,
}

impl EndpointManager {
    /// Takes over the endpoints that the records name and whose devices are there; the rest is removed. `served` is what the maps hold:
    /// interface index and addresses.
    ///
    /// A device that is served, but of which no record tells, is a pod whose record was lost (a state directory that was emptied or
    /// exchanged). It is left alone, its addresses are not given again, and because the records are then not in sync, nothing is
    /// pruned from the maps: its packets flow on.
    pub fn restore(parts: Parts, served: &BTreeMap<u32, Vec<IpAddr>>) -> Result<Restored, RestoreError> {
        let Parts { tables, facts, records, datapath, sweeper, tombstones } = parts;
        let (reaper, state) = (Reaper::start()?, Arc::default());
        let manager = Self {
            tables,
            facts,
            records,
            datapath,
            reaper,
            sweeper,
            orphans_removed: Mutex::new(false),
            state,
            tombstones,
            ready_by: Instant::now() + READY_WITHIN,
        };
        let mut socket = Socket::open()?;
        let links: BTreeMap<String, u32> = link::list(&mut socket)?.into_iter().map(|l| (l.name, l.index)).collect();
        let loaded = manager.records.load_all()?;
        for bad in &loaded.corrupt {
            warn!(path = %bad.path.display(), "an endpoint record cannot be read and was set aside");
        }
        for stale in &loaded.stale {
            manager.records.remove(&stale.container_id, &stale.ifname)?;
        }
        let mut unrecorded = false;
        let mut dead: BTreeSet<u32> = served.keys().copied().collect();
        let mut adopted = BTreeSet::new();
        let mut cut_off = BTreeMap::new();
        for record in loaded.records {
            let whole = record.state == State::Ready && links.get(&record.host_device) == Some(&record.host_ifindex);
            match u16::try_from(record.endpoint_id) {
                Ok(id) if whole => {
                    adopted.insert(record.host_device.clone());
                    dead.remove(&record.host_ifindex);
                    manager.adopt(id, record);
                }
                _ => {
                    info!(
                        container = record.container_id,
                        device = record.host_device,
                        "removing what is left of a pod"
                    );
                    // An ADD that was cut off may have made rules before its record told of them. They go before it: nothing else tells
                    // of them.
                    let mut left = record.into_endpoint(0);
                    left.terms.own_table = true;
                    manager.forget_rules(&left);
                    fault::pass(Point::LeftUnruled);
                    manager.records.remove(&left.container_id, &left.ifname)?;
                    fault::pass(Point::LeftUnrecorded);
                    cut_off.insert(left.device, Lease { v4: left.ipv4, v6: left.ipv6 });
                }
            }
        }
        for (name, index) in links {
            let Some(id) = names::endpoint_of(&name).filter(|_| !adopted.contains(&name)) else { continue };
            let cut = cut_off.get(&name).copied();
            match served.get(&index).filter(|_| cut.is_none()) {
                // An ADD or a DEL that a dead agent did not end, however far it came.
                None => {
                    let lease = cut.unwrap_or_default();
                    let held = manager.ids().hold_doomed(id, lease);
                    manager.give_back(id, held, Some(index.into()));
                }
                Some(addresses) => {
                    warn!(device = name, ?addresses, "a pod is served of which no record tells; leaving it as it is");
                    let mut ids = manager.ids();
                    ids.taken.insert(id, ());
                    for a in addresses {
                        ids.ipam.hold(*a);
                    }
                    unrecorded = true;
                    dead.remove(&index);
                }
            }
        }
        if !unrecorded {
            manager.tables.mark_synced(Source::Records);
        }
        Ok(Restored { manager, dead })
    }

    fn adopt(&self, id: u16, record: EndpointRecord) {
        let mut ids = self.ids();
        ids.taken.insert(id, ());
        ids.last = ids.last.max(id);
        ids.attach((record.container_id.clone(), record.ifname.clone()), id);
        let endpoint = record.into_endpoint(id);
        for a in endpoint.ips() {
            ids.ipam.hold(a);
        }
        drop(ids);
        self.tables.set_endpoint(endpoint);
    }

    pub(super) fn ids(&self) -> MutexGuard<'_, Ids> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's address ranges, and how far they are used up.
    pub fn ipam_usage(&self) -> Vec<Usage> {
        let mut ids = self.ids();
        self.follow_cidrs(&mut ids);
        ids.ipam.usage()
    }

    /// Every address that is given out or held back, those of other IPAM plugins too.
    pub fn addresses_out(&self) -> BTreeMap<IpAddr, ipam::State> {
        let mut ids = self.ids();
        self.follow_cidrs(&mut ids);
        ids.ipam.out()
    }

    /// Waits until the device of a container that DEL was called for is gone, and its addresses are free; whether that came in time.
    pub fn await_deleted(&self, netns: &str, ifname: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.reaper.flush_peer(netns, ifname, timeout)
            && self.sweeper.flush(deadline.saturating_duration_since(Instant::now()))
    }

    /// The endpoint of an attachment.
    pub(super) fn find(&self, container_id: &str, ifname: &str) -> Option<Endpoint> {
        let attachment = (container_id.to_owned(), ifname.to_owned());
        let id = self.ids().by_attachment.get(&attachment)?.id;
        self.tables.read().endpoints.get(&id).cloned()
    }

    /// Makes the ranges those of the Node object as it is now.
    pub(super) fn follow_cidrs(&self, ids: &mut Ids) {
        let problem = match self.tables.read().nodes.get(&self.facts.node) {
            Some(node) => ids.ipam.follow(&node.pod_cidrs),
            None => ids.ipam.follow(&[]),
        };
        if let Some(e) = problem {
            warn!(error = %e, "a pod CIDR of this node is not used");
        }
    }

    /// An address of each family.
    pub(super) fn lease(&self, ids: &mut Ids) -> Result<Lease, CniError> {
        self.follow_cidrs(ids);
        ids.ipam.allocate().map_err(|e| {
            CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, e.to_string())
                .with_details("give the node a further pod CIDR, or delete pods; `weft status` shows the ranges")
        })
    }
}

impl CniHandler for EndpointManager {
    #[instrument(skip_all, fields(container = request.container_id, ifname = request.ifname))]
    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        self.connect(request)
    }

    #[instrument(skip_all, fields(container = request.container_id, ifname = request.ifname))]
    fn del(&self, request: &Request) -> Result<(), CniError> {
        self.disconnect(&request.container_id, &request.ifname)?;
        self.take(&Tombstone::new(&request.container_id, &request.ifname)).map(drop)
    }

    #[instrument(skip_all, fields(container = request.container_id, ifname = request.ifname))]
    fn check(&self, request: &Request) -> Result<(), CniError> {
        check::run(self, request)
    }

    #[instrument(skip_all)]
    fn gc(&self, request: &Request, since: Instant) -> Result<(), CniError> {
        self.collect_garbage(request, since)
    }

    #[instrument(skip_all)]
    fn status(&self, request: &Request) -> Result<(), CniError> {
        self.can_serve(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIDR: &str = "10.0.1.0/29";

    #[test]
    fn id_and_address_of_a_doomed_device_are_not_given_before_it_is_gone() {
        let (first, second) = (Lease { v4: Some([10, 0, 1, 1].into()), v6: None }, Lease::default());
        let mut ids = Ids::default();
        // As at a start: the node's ranges are told later.
        let held = ids.hold_doomed(1, first);
        ids.hold_doomed(2, second);
        ids.release(held);
        ids.ipam.add_cidr(CIDR.parse().unwrap()).unwrap();
        assert_eq!(ids.next(), Some(3));
        let given: Vec<_> = std::iter::from_fn(|| ids.ipam.allocate().ok()).collect();
        assert!(given.len() == 5 && !given.contains(&first), "{given:?}");
        ids.settle(held);
        assert_eq!(ids.ipam.allocate(), Ok(first));
    }

    #[test]
    fn the_address_that_a_doomed_device_shares_with_a_pod_stays_the_pods() {
        let lease = Lease { v4: Some([10, 0, 1, 1].into()), v6: None };
        let mut ids = Ids::default();
        assert_eq!(ids.hold_doomed(1, lease), lease);
        assert_eq!(ids.hold_doomed(2, lease), Lease::default());
    }

    #[test]
    fn an_id_comes_again_only_after_all_others_had_their_turn_and_when_it_is_free() {
        let mut ids = Ids::default();
        assert_eq!((ids.next(), ids.next()), (Some(1), Some(2)));
        ids.taken.remove(&1);
        for wanted in 3..=u16::MAX {
            assert_eq!(ids.next(), Some(wanted));
            if wanted != 7 {
                ids.taken.remove(&wanted);
            }
        }
        // 0 is nobody's, 2 and 7 are taken.
        assert_eq!([ids.next(), ids.next(), ids.next()], [Some(1), Some(3), Some(4)]);
        while ids.next().is_some() {}
        assert_eq!(ids.taken.len(), usize::from(u16::MAX));
        ids.taken.remove(&7);
        assert_eq!((ids.next(), ids.next()), (Some(7), None));
    }

    #[test]
    fn an_attachment_that_left_twice_gives_back_both_ids_and_addresses() {
        let (mut ids, key) = (Ids::default(), ("c1".to_owned(), "eth0".to_owned()));
        ids.ipam.add_cidr(CIDR.parse().unwrap()).unwrap();
        let leavings = [(), ()].map(|()| {
            let (id, lease) = (ids.next().unwrap(), ids.ipam.allocate().unwrap());
            let leaving = Leaving { id, lease, device: u32::from(id) };
            ids.leave(&key, leaving);
            leaving
        });
        ids.leave(&("c1".to_owned(), "eth1".to_owned()), Leaving { id: 9, lease: Lease::default(), device: 9 });
        let waited_for: Vec<_> = ids.leaving_of(&key).iter().map(|l| l.device).collect();
        assert_eq!(waited_for, [1, 2]);
        for leaving in leavings {
            ids.gone(&key, leaving.id);
            ids.gone(&key, leaving.id);
        }
        assert!(ids.taken.is_empty() && ids.leaving_of(&key).is_empty());
        assert!(ids.ipam.out().is_empty(), "{:?}", ids.ipam.out());
    }

    #[test]
    fn what_is_connected_after_a_gc_came_was_not_there_for_its_list() {
        let (mut ids, key) = (Ids::default(), ("c1".to_owned(), "eth0".to_owned()));
        let before = Instant::now();
        ids.attach(key.clone(), 1);
        assert!(!ids.was_attached(&key, before));
        let after = Instant::now() + Duration::from_nanos(1);
        assert!(ids.was_attached(&key, after));
        ids.by_attachment.remove(&key);
        assert!(!ids.was_attached(&key, after), "somebody else has disconnected it");
        ids.attach(key.clone(), 2);
        assert!(!ids.was_attached(&key, before), "connected anew meanwhile");
    }
}
