//! What CNI asks for, done in the order that lets no packet pass unseen: record, device, tables, answer.
//!
//! ADD: the record with state `adding` → the veth pair, joined to the block before it is up → the pod's side → the endpoint's row,
//! which the reconciler brings into the maps, the endpoint entry last → the record with `ready` → the answer. A step that fails
//! undoes those before it. DEL: the row goes, the endpoint entry first → the record → the answer; the device is deleted after
//! it, and only then is the address free.
use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cni_common::net::Mac;
use cni_plugin::{
    protocol::Request,
    spec::{AddResult, Cidr, CniError, ErrorCode, Interface, IpConfig, Route, Version},
};
use sha2::{Digest, Sha256};
use tracing::{info, instrument, warn};

use super::{
    reaper::Reaper,
    record::{EndpointRecord, PodName, RecordError, RecordStore, State},
};
use crate::{
    cni::CniHandler,
    compile::Facts,
    error_chain,
    ipam::{Ipam, IpamError, Lease, Usage},
    netlink::{
        NetlinkError, Socket, link, names,
        names::{FIRST_IFINDEX, gateway_for, pod_device},
        netns,
        pod::PodLink,
    },
    tables::{Contents, Endpoint, Row, RowStatus, Source, Tables},
};

/// How long ADD waits for what the node lacks just after the agent's start.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// How long ADD and DEL wait for the maps: a few writes.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// MTU of a pod's routes if the devices vanish while it is wired: the least that IPv6 allows (RFC 8200 section 5).
const FALLBACK_MTU: u32 = 1280;

/// An ADD that failed, and the device that it leaves behind.
struct Failed {
    error: CniError,
    device: Option<u32>,
}
impl From<CniError> for Failed {
    fn from(error: CniError) -> Self {
        Self { error, device: None }
    }
}

/// Container and interface: what CNI names an attachment by.
type Attachment = (String, String);

/// The endpoints of this node.
pub struct EndpointManager {
    tables: Arc<Tables>,
    facts: Facts,
    records: RecordStore,
    reaper: Reaper,
    state: Arc<Mutex<Ids>>,
    /// Addresses of pods whose records were lost.
    unrecorded: Vec<IpAddr>,
}

/// What is given out.
#[derive(Default)]
struct Ids {
    ipam: Ipam,
    by_attachment: BTreeMap<Attachment, u16>,
    /// Ids in use, those of devices that are yet to be deleted included.
    taken: BTreeMap<u16, ()>,
    last: u16,
}

impl Ids {
    fn next(&mut self) -> Option<u16> {
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

impl EndpointManager {
    /// Takes over the endpoints that the records name and whose devices are there; the rest is removed. `served` is what the maps hold:
    /// interface index and addresses.
    ///
    /// A device that is served, but of which no record tells, is a pod whose record was lost (a state directory that was emptied or
    /// exchanged). It is left alone, its addresses are not given again, and because the records are then not in sync, nothing is
    /// pruned from the maps: its packets flow on.
    pub fn restore(
        tables: Arc<Tables>,
        facts: Facts,
        records: RecordStore,
        served: &BTreeMap<u32, Vec<IpAddr>>,
    ) -> Result<Self, RestoreError> {
        let mut manager =
            Self { tables, facts, records, reaper: Reaper::start()?, state: Arc::default(), unrecorded: Vec::new() };
        let mut socket = Socket::open()?;
        let links: BTreeMap<String, u32> = link::list(&mut socket)?.into_iter().map(|l| (l.name, l.index)).collect();
        let loaded = manager.records.load_all()?;
        for bad in &loaded.corrupt {
            warn!(path = %bad.path.display(), "an endpoint record cannot be read and was set aside");
        }
        for stale in &loaded.stale {
            manager.records.remove(&stale.container_id, &stale.ifname)?;
        }
        let mut adopted = std::collections::BTreeSet::new();
        for record in loaded.records {
            let whole = record.state == State::Ready && links.get(&record.host_device) == Some(&record.host_ifindex);
            match u16::try_from(record.endpoint_id) {
                Ok(id) if whole => {
                    adopted.insert(record.host_device.clone());
                    manager.adopt(id, record);
                }
                _ => {
                    info!(
                        container = record.container_id,
                        device = record.host_device,
                        "removing what is left of a pod"
                    );
                    manager.records.remove(&record.container_id, &record.ifname)?;
                }
            }
        }
        for (name, index) in links {
            let Some(id) = names::endpoint_of(&name).filter(|_| !adopted.contains(&name)) else { continue };
            match served.get(&index) {
                // An ADD or a DEL that a dead agent did not end.
                None => manager.reaper.delete(index, || {}),
                Some(addresses) => {
                    warn!(device = name, ?addresses, "a pod is served of which no record tells; leaving it as it is");
                    manager.ids().taken.insert(id, ());
                    manager.unrecorded.extend(addresses);
                }
            }
        }
        if manager.unrecorded.is_empty() {
            manager.tables.mark_synced(Source::Records);
        }
        Ok(manager)
    }

    fn adopt(&self, id: u16, record: EndpointRecord) {
        let mut ids = self.ids();
        ids.taken.insert(id, ());
        ids.last = ids.last.max(id);
        ids.by_attachment.insert((record.container_id.clone(), record.ifname.clone()), id);
        drop(ids);
        self.tables.set_endpoint(from_record(id, record));
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's address ranges, and how far they are used up.
    pub fn ipam_usage(&self) -> Vec<Usage> {
        let mut ids = self.ids();
        self.follow_cidrs(&mut ids);
        ids.ipam.usage()
    }

    /// Waits until the node can take pods, and says what it lacks if it cannot.
    fn wait_ready(&self) -> Result<(), CniError> {
        let ready = |c: &Contents| missing(c, &self.facts).is_none().then_some(());
        if self.tables.wait_for(READY_WITHIN, ready).is_some() {
            return Ok(());
        }
        let why = missing(&self.tables.read(), &self.facts).unwrap_or_default();
        Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, format!("node {} cannot take pods yet: {why}", self.facts.node))
            .with_details("`weft status` shows what the agent waits for"))
    }

    /// Makes the ranges those of the Node object as it is now, with the addresses of all endpoints out.
    fn follow_cidrs(&self, ids: &mut Ids) {
        let (cidrs, used): (Vec<_>, Vec<IpAddr>) = {
            let c = self.tables.read();
            (
                c.nodes.get(&self.facts.node).map(|n| n.pod_cidrs.clone()).unwrap_or_default(),
                c.endpoints.values().flat_map(Endpoint::ips).chain(self.unrecorded.iter().copied()).collect(),
            )
        };
        if let Err(e) = ids.ipam.set_cidrs(&cidrs) {
            warn!(error = %e, "a pod CIDR of this node is not used");
        }
        for a in used {
            // Taken: by this very endpoint. Outside: of a CIDR that the node no longer has. Both are as they should be.
            if let Err(e @ (IpamError::NoCidr | IpamError::Exhausted { .. })) = ids.ipam.claim(a) {
                warn!(address = %a, error = %e, "cannot mark an address as used");
            }
        }
    }

    /// An address of each family.
    fn lease(&self, ids: &mut Ids) -> Result<Lease, CniError> {
        self.follow_cidrs(ids);
        ids.ipam.allocate().map_err(|e| {
            CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, e.to_string())
                .with_details("give the node a further pod CIDR, or delete pods; `weft status` shows the ranges")
        })
    }

    /// Takes id and addresses back. Where a device may still hold them they are free only when it is gone.
    fn give_back(&self, id: u16, lease: Lease, device: Option<u32>) {
        for a in lease.addresses() {
            self.ids().ipam.release(a);
        }
        let state = Arc::clone(&self.state);
        let settle = move || {
            let mut ids = state.lock().unwrap_or_else(PoisonError::into_inner);
            ids.taken.remove(&id);
            for a in lease.addresses() {
                ids.ipam.settle(a);
            }
        };
        match device {
            Some(index) => self.reaper.delete(index, settle),
            None => settle(),
        }
    }

    /// The endpoint that a request asks for, once id and addresses are given.
    fn describe(&self, request: &Request, id: u16, lease: Lease) -> Endpoint {
        let arg = |name: &str| request.args.get(name).cloned().unwrap_or_default();
        Endpoint {
            id,
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            namespace: arg("K8S_POD_NAMESPACE"),
            pod_name: arg("K8S_POD_NAME"),
            netns: request.netns.clone(),
            ifindex: FIRST_IFINDEX + u32::from(id),
            device: pod_device(id),
            mac: mac_of(&request.container_id, &request.ifname),
            ipv4: lease.v4,
            ipv6: lease.v6,
            mtu: self.facts.route_mtu(&self.tables.read()).unwrap_or(FALLBACK_MTU),
        }
    }

    /// Connects. An error leaves neither row nor record, but may leave a device to delete.
    fn wire(&self, endpoint: &Endpoint, uid: Option<String>) -> Result<(), Failed> {
        let target = netns::open(&endpoint.netns).map_err(|e| {
            let text = format!("open the network namespace {}: {e}", endpoint.netns);
            CniError::new(ErrorCode::INVALID_ENVIRONMENT, text)
                .with_details("CNI_NETNS must be the path of a network namespace that the agent can open")
        })?;
        let mut record = to_record(endpoint, uid);
        self.keep(&record)?;
        let wired = self.link(endpoint, &target).map_err(Failed::from).and_then(|()| {
            let with_device = |error| Failed { error, device: Some(endpoint.ifindex) };
            self.publish(endpoint).map_err(with_device)?;
            record.state = State::Ready;
            self.keep(&record).map_err(with_device)
        });
        wired.inspect_err(|_| {
            let revision = self.tables.remove_endpoint(endpoint.id);
            if let Err(e) = self.tables.wait_applied(revision, APPLIED_WITHIN) {
                warn!(error = %e, "the maps still hold the endpoint of a failed ADD");
            }
            if let Err(e) = self.records.remove(&endpoint.container_id, &endpoint.ifname) {
                warn!(error = %error_chain(&e), "cannot remove the record of a failed ADD; the next start does");
            }
        })
    }

    fn keep(&self, record: &EndpointRecord) -> Result<(), CniError> {
        self.records.save(record).map_err(|e| {
            CniError::new(ErrorCode::IO_FAILURE, format!("keep the endpoint's record: {}", error_chain(&e)))
                .with_details("the directory of --state-dir must be writable and have room")
        })
    }

    /// Brings the endpoint's row into the maps: from then on its packets flow.
    fn publish(&self, endpoint: &Endpoint) -> Result<(), CniError> {
        self.tables.set_endpoint(endpoint.clone());
        match self.tables.wait_settled(&Row::Endpoint(endpoint.id), APPLIED_WITHIN) {
            Some(RowStatus::Applied) => Ok(()),
            Some(RowStatus::Failed { error, .. }) => {
                Err(CniError::new(ErrorCode::WIRING_FAILED, format!("write the endpoint into the maps: {error}"))
                    .with_details("`weft status` and `weft map list` show how full the maps are"))
            }
            Some(RowStatus::Pending) | None => {
                Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, "the maps were not written in time")
                    .with_details("the agent is busy; `weft status` shows what waits"))
            }
        }
    }

    /// The veth pair and the pod's side.
    fn link(&self, e: &Endpoint, target: &OwnedFd) -> Result<(), CniError> {
        let device_mtu = self.facts.device_mtu(&self.tables.read()).unwrap_or(e.mtu);
        let wire = PodLink {
            host_ifindex: e.ifindex,
            host_name: &e.device,
            pod_ifindex: e.ifindex,
            pod_ifname: &e.ifname,
            pod_mac: e.mac,
            mtu_device: device_mtu,
            route_mtu: e.mtu,
            addresses: e.ips().collect(),
            block: names::BLOCK_INDEX,
            netns: target.as_fd(),
        };
        let attempt = || wire.wire(&mut Socket::open()?);
        let result = match attempt() {
            // The device of a former attachment may be about to be deleted: its name is free as soon as it is.
            Err(e) if e.is_exists() && self.reaper.flush(APPLIED_WITHIN) => attempt(),
            other => other,
        };
        match result {
            Ok(steps) => {
                for step in steps {
                    tracing::debug!(what = step.what.join("; "), took = ?step.took, "wired");
                }
                Ok(())
            }
            Err(error) if error.is_exists() => {
                let text = format!("{} is there already in {}: {}", e.ifname, e.netns, error_chain(&error));
                Err(CniError::new(ErrorCode::WIRING_FAILED, text).with_details(
                    "another network gave the container an interface of this name; ask for another CNI_IFNAME",
                ))
            }
            Err(error) => Err(CniError::new(ErrorCode::WIRING_FAILED, error_chain(&error))),
        }
    }
}

impl CniHandler for EndpointManager {
    #[instrument(skip_all, fields(container = request.container_id, ifname = request.ifname))]
    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        self.wait_ready()?;
        let attachment = (request.container_id.clone(), request.ifname.clone());
        let (id, lease) = {
            let mut ids = self.ids();
            if let Some(id) = ids.by_attachment.get(&attachment) {
                let there = self.tables.read().endpoints.get(id).filter(|e| e.netns == request.netns).cloned();
                return there.map(|e| answer(&e)).ok_or_else(|| {
                    CniError::new(
                        ErrorCode::INVALID_ENVIRONMENT,
                        "the container is connected from another network namespace",
                    )
                    .with_details("call DEL before ADD with a new CNI_NETNS")
                });
            }
            let lease = self.lease(&mut ids)?;
            let Some(id) = ids.next() else {
                return Err(CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "65,535 endpoints are on this node"));
            };
            (id, lease)
        };
        let endpoint = self.describe(request, id, lease);
        if let Err(Failed { error, device }) = self.wire(&endpoint, request.args.get("K8S_POD_UID").cloned()) {
            self.give_back(id, lease, device);
            return Err(error);
        }
        self.ids().by_attachment.insert(attachment, id);
        info!(endpoint = id, device = endpoint.device, ipv4 = ?endpoint.ipv4, ipv6 = ?endpoint.ipv6, "endpoint ready");
        Ok(answer(&endpoint))
    }

    #[instrument(skip_all, fields(container = request.container_id, ifname = request.ifname))]
    fn del(&self, request: &Request) -> Result<(), CniError> {
        let attachment = (request.container_id.clone(), request.ifname.clone());
        let Some(id) = self.ids().by_attachment.remove(&attachment) else { return Ok(()) };
        let endpoint = self.tables.read().endpoints.get(&id).cloned();
        let revision = self.tables.remove_endpoint(id);
        if let Err(e) = self.tables.wait_applied(revision, APPLIED_WITHIN) {
            warn!(error = %e, "the maps still hold a deleted endpoint");
        }
        self.records
            .remove(&request.container_id, &request.ifname)
            .map_err(|e| CniError::new(ErrorCode::IO_FAILURE, error_chain(&e)))?;
        let Some(endpoint) = endpoint else { return Ok(()) };
        self.give_back(id, Lease { v4: endpoint.ipv4, v6: endpoint.ipv6 }, Some(endpoint.ifindex));
        info!(endpoint = id, "endpoint gone");
        Ok(())
    }
}

/// What the node lacks to take pods.
pub fn missing(c: &Contents, facts: &Facts) -> Option<String> {
    let Some(node) = c.nodes.get(&facts.node) else {
        return Some(format!("no Node object of the name {} (--node-name) has been seen", facts.node));
    };
    if node.pod_cidrs.is_empty() {
        return Some(format!("the Node object {} has no spec.podCIDRs", facts.node));
    }
    if facts.tunnel_address(c).is_none() {
        return Some(format!("the Node object {} has no InternalIP of the family of --underlay", facts.node));
    }
    if c.devices.is_empty() {
        return Some(format!(
            "no device has an InternalIP of the Node object {} ({:?}); name the device by --device",
            facts.node, node.internal_ips
        ));
    }
    None
}

/// Locally administered, from the attachment's names: the same again for the same attachment.
fn mac_of(container: &str, ifname: &str) -> Mac {
    let hash = Sha256::new().chain_update(container).chain_update([0]).chain_update(ifname).finalize();
    Mac::new([0x0a, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

fn answer(e: &Endpoint) -> AddResult {
    let host = Interface { name: e.device.clone(), mac: Mac::WEFT.to_string(), ..Interface::default() };
    let pod = Interface {
        name: e.ifname.clone(),
        mac: e.mac.to_string(),
        mtu: Some(e.mtu),
        sandbox: e.netns.clone(),
        ..Interface::default()
    };
    let cidr = |a: IpAddr, len: u8| Cidr::new(a, len).ok();
    let width = |a: IpAddr| if a.is_ipv4() { 32 } else { 128 };
    let any = |a: IpAddr| -> IpAddr { if a.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() } };
    AddResult {
        cni_version: Version::V1_1_0,
        interfaces: vec![host, pod],
        ips: e
            .ips()
            .filter_map(|a| {
                let address = cidr(a, width(a))?;
                Some(IpConfig { version: None, address, gateway: Some(gateway_for(a)), interface: Some(1) })
            })
            .collect(),
        routes: e
            .ips()
            .filter_map(|a| Some(Route { mtu: Some(e.mtu), ..Route::via(cidr(any(a), 0)?, gateway_for(a)) }))
            .collect(),
        dns: cni_plugin::spec::Dns::default(),
    }
}

fn to_record(e: &Endpoint, uid: Option<String>) -> EndpointRecord {
    EndpointRecord {
        state: State::Adding,
        endpoint_id: e.id.into(),
        container_id: e.container_id.clone(),
        ifname: e.ifname.clone(),
        netns: PathBuf::from(&e.netns),
        host_ifindex: e.ifindex,
        host_device: e.device.clone(),
        mac: e.mac,
        ipv4: e.ipv4,
        ipv6: e.ipv6,
        mtu: e.mtu,
        pod: (!e.pod_name.is_empty()).then(|| PodName {
            namespace: e.namespace.clone(),
            name: e.pod_name.clone(),
            uid,
        }),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    }
}

fn from_record(id: u16, r: EndpointRecord) -> Endpoint {
    let (namespace, pod_name) = r.pod.map(|p| (p.namespace, p.name)).unwrap_or_default();
    Endpoint {
        id,
        container_id: r.container_id,
        ifname: r.ifname,
        namespace,
        pod_name,
        netns: r.netns.to_string_lossy().into_owned(),
        ifindex: r.host_ifindex,
        device: r.host_device,
        mac: r.mac,
        ipv4: r.ipv4,
        ipv6: r.ipv6,
        mtu: r.mtu,
    }
}
