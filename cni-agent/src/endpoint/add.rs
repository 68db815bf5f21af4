//! CNI ADD, in the order that lets no packet pass unseen: record, device, tables, answer.
//!
//! The record with state `adding` → the veth pair, joined to the block before it is up → the pod's side → the endpoint's row,
//! which the reconciler brings into the maps, the endpoint entry last → the record with `ready` → the answer. A step that fails
//! undoes those before it.
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use cni_common::net::Mac;
use cni_plugin::{
    protocol::Request,
    spec::{AddResult, CniError, ErrorCode},
};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{
    answer::answer,
    manager::{EndpointManager, Leaving},
    mtu,
    reaper::Device,
    record::{EndpointRecord, RecordError},
    status::await_ready,
    wish::Wish,
};
use crate::{
    cni::steps,
    error_chain,
    fault::{self, Point},
    ipam::Lease,
    netlink::{
        NetlinkError, Socket, link, names,
        names::{FIRST_IFINDEX, pod_device},
        netns,
        pod::{self, PodLink, Wired},
    },
    tables::{Endpoint, Row, RowStatus},
};

/// How long ADD and DEL wait for the maps: a few writes.
pub(super) const APPLIED_WITHIN: Duration = Duration::from_secs(10);

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

impl EndpointManager {
    /// CNI ADD.
    pub(super) fn connect(&self, request: &Request) -> Result<AddResult, CniError> {
        steps::timed("ready", || await_ready(&self.tables, &self.facts, self.ready_by))?;
        self.bury(&request.container_id, &request.ifname)?;
        if let Some(connected) = self.connected(request)? {
            return Ok(answer(&connected));
        }
        let wish = Wish::read(request, &self.tables.read().node_addresses)?;
        self.remove_orphans();
        let (id, lease) = steps::timed("address", || self.reserve(&wish.addresses))?;
        fault::pass(Point::AddReserved);
        let mut endpoint = self.describe(request, id, lease, wish);
        if let Err(Failed { error, device }) = self.wire(&mut endpoint, request.args.get("K8S_POD_UID").cloned()) {
            match device.filter(|_| endpoint.terms.delegated) {
                // The plugin frees the addresses as soon as it has our answer.
                Some(device) => {
                    let attachment = (endpoint.container_id, endpoint.ifname);
                    self.ids().leave(&attachment, Leaving { id, lease, device });
                    if let Err(left) = self.await_gone(&attachment) {
                        warn!(error = %left, "a failed ADD has left a device");
                        return Err(not_undone(&error, &left));
                    }
                }
                None => self.give_back(id, lease, device.map(|_| Device::from(&endpoint))),
            }
            return Err(error);
        }
        self.ids().attach((request.container_id.clone(), request.ifname.clone()), id);
        info!(endpoint = id, device = endpoint.device, ipv4 = ?endpoint.ipv4, ipv6 = ?endpoint.ipv6, "endpoint ready");
        Ok(answer(&endpoint))
    }

    /// The attachment as a former ADD made it, whose answer may have been lost; whatever the configuration says now.
    fn connected(&self, request: &Request) -> Result<Option<Endpoint>, CniError> {
        let Some(there) = self.find(&request.container_id, &request.ifname) else { return Ok(None) };
        if there.netns != request.netns {
            let text = format!("the container is connected from another network namespace: {}", there.netns);
            return Err(CniError::new(ErrorCode::INVALID_ENVIRONMENT, text)
                .with_details("call DEL before ADD with a new CNI_NETNS"));
        }
        let wired = is_wired(&there)
            .map_err(|e| CniError::new(ErrorCode::WIRING_FAILED, error_chain(&e)).with_details("call ADD again"))?;
        if wired {
            return Ok(Some(there));
        }
        warn!(
            endpoint = there.id,
            netns = there.netns,
            "the pod's device is gone, and no DEL came; connecting it anew"
        );
        self.disconnect(&there.container_id, &there.ifname)?;
        Ok(None)
    }

    /// The endpoint that a request asks for, once id and addresses are given.
    fn describe(&self, request: &Request, id: u16, lease: Lease, wish: Wish) -> Endpoint {
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
            mac: wish.mac.unwrap_or_else(|| mac_of(&request.container_id, &request.ifname)),
            ipv4: lease.v4,
            ipv6: lease.v6,
            mtu: self.facts.route_mtu(&self.tables.read()).unwrap_or(FALLBACK_MTU),
            terms: wish.terms,
        }
    }

    /// Connects. An error leaves neither row nor record, but may leave a device to delete.
    fn wire(&self, endpoint: &mut Endpoint, uid: Option<String>) -> Result<(), Failed> {
        let target = target_of(endpoint)?;
        let mut record = EndpointRecord::adding(endpoint, uid);
        self.keep(|| self.records.save(&record))?;
        fault::pass(Point::AddRecorded);
        let wired = self.link(endpoint, &target).and_then(|own_table| {
            endpoint.terms.own_table = own_table;
            record.terms.own_table = own_table;
            steps::timed("maps", || self.publish(endpoint))?;
            fault::pass(Point::AddPublished);
            self.keep(|| self.records.finish(&record))?;
            fault::pass(Point::AddFinished);
            Ok(())
        });
        // Also after an error of the first step: the kernel may have made the pair, and its answer be lost.
        let wired = wired.map_err(|error| Failed { error, device: Some(endpoint.ifindex) });
        wired.inspect_err(|_| {
            let revision = self.tables.remove_endpoint(endpoint.id);
            if let Err(e) = self.tables.wait_applied(revision, APPLIED_WITHIN) {
                warn!(error = %e, "the maps still hold the endpoint of a failed ADD");
            }
            self.forget_rules(endpoint);
            if let Err(e) = self.records.remove(&endpoint.container_id, &endpoint.ifname) {
                warn!(error = %error_chain(&e), "cannot remove the record of a failed ADD; the next start does");
            }
        })
    }

    fn keep(&self, write: impl FnOnce() -> Result<(), RecordError>) -> Result<(), CniError> {
        steps::timed("record", write).map_err(|e| {
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

    /// The veth pair and the pod's side; whether its routes stand in a table of their own.
    fn link(&self, e: &Endpoint, target: &OwnedFd) -> Result<bool, CniError> {
        let wire = PodLink {
            host_ifindex: e.ifindex,
            host_name: &e.device,
            pod_ifindex: e.ifindex,
            pod_ifname: &e.ifname,
            pod_mac: e.mac,
            mtu_device: mtu::device_mtu(&self.tables.read(), &self.facts).unwrap_or(e.mtu),
            route_mtu: e.mtu,
            addresses: e.ips().collect(),
            routes: e.terms.routes.iter().map(|r| (r.dst, r.priority)).collect(),
            block: names::BLOCK_INDEX,
            netns: target.as_fd(),
        };
        let attempt = || wire.wire(&mut Socket::open()?);
        let exists = |result: &Result<_, NetlinkError>| result.as_ref().is_err_and(NetlinkError::is_exists);
        let mut result = attempt();
        // The device of a former attachment may be about to be deleted: its name is free as soon as it is.
        let mut flushed = true;
        if exists(&result) {
            flushed = self.reaper.flush_peer(&e.netns, &e.ifname, APPLIED_WITHIN);
            result = attempt();
        }
        // The runtime may know the same namespace by another path now.
        if exists(&result) && flushed {
            flushed = self.reaper.flush(APPLIED_WITHIN);
            result = attempt();
        }
        let refused = |text: String, cure: &str| CniError::new(ErrorCode::WIRING_FAILED, text).with_details(cure);
        match result {
            Ok(Wired { steps: done, own_table }) => {
                for step in done {
                    steps::note(step.name, step.took);
                    tracing::debug!(what = step.what.join("; "), took = ?step.took, "wired");
                }
                Ok(own_table)
            }
            Err(error) if error.is_exists() && !flushed => {
                let text = format!("devices of former containers are not gone yet: {}", error_chain(&error));
                Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, text)
                    .with_details("the kernel is busy deleting them; the runtime may try again"))
            }
            Err(error) if error.is_exists() && error.index() == Some(0) => Err(refused(
                format!("{} is there already in {}: {}", e.ifname, e.netns, error_chain(&error)),
                "another network gave the container an interface of this name; ask for another CNI_IFNAME",
            )),
            Err(error) if error.errno() == Some(Errno::EINVAL) && error.index() == Some(0) => {
                Err(no_target(format!("{} is no network namespace", e.netns)))
            }
            Err(error) if error.is_exists() => Err(refused(
                error_chain(&error),
                "another interface of the container has it already; correct `ipam` in the network configuration",
            )),
            Err(error) => Err(refused(
                error_chain(&error),
                "nothing of the attempt is left, the runtime may try again; if it stays so, `weft doctor` looks at the node",
            )),
        }
    }
}

/// Why ADD failed, in an error upon which the plugin keeps the addresses until DEL.
fn not_undone(error: &CniError, left: &CniError) -> CniError {
    CniError::new(ErrorCode::NOT_UNDONE, error.msg.clone()).with_details(format!("{}; and {left}", error.details))
}

/// Whether both ends are still where ADD has put them.
fn is_wired(e: &Endpoint) -> Result<bool, NetlinkError> {
    if link::by_index(&mut Socket::open()?, e.ifindex)?.is_none_or(|l| l.name != e.device) {
        return Ok(false);
    }
    let Some(mut pod) = pod::socket_at(&e.netns)? else { return Ok(false) };
    Ok(link::by_index(&mut pod, e.ifindex)?.is_some_and(|l| l.mac == Some(e.mac)))
}

/// The pod's network namespace.
fn target_of(endpoint: &Endpoint) -> Result<OwnedFd, CniError> {
    let failed = |e: io::Error| no_target(format!("open the network namespace {}: {e}", endpoint.netns));
    let target = netns::open(&endpoint.netns).map_err(failed)?;
    if netns::is_current(target.as_fd()).map_err(failed)? {
        return Err(no_target(format!("{} is the node's own network namespace", endpoint.netns)));
    }
    Ok(target)
}

fn no_target(text: String) -> CniError {
    CniError::new(ErrorCode::INVALID_ENVIRONMENT, text).with_details(
        "CNI_NETNS must be the path of the container's network namespace, and the agent must be able to open it",
    )
}

/// Locally administered, from the attachment's names: the same again for the same attachment.
fn mac_of(container: &str, ifname: &str) -> Mac {
    let hash = Sha256::new().chain_update(container).chain_update([0]).chain_update(ifname).finalize();
    Mac::new([0x0a, hash[0], hash[1], hash[2], hash[3], hash[4]])
}
