//! CNI DEL, and how ids and addresses come back.
use std::{
    sync::{Arc, PoisonError, mpsc},
    time::Instant,
};

use cni_plugin::spec::{CniError, ErrorCode};
use tracing::{info, warn};

use super::{
    add::APPLIED_WITHIN,
    manager::{Attachment, EndpointManager, Leaving},
    reaper::Device,
};
use crate::{
    cni::steps,
    error_chain,
    fault::{self, Point},
    ipam::Lease,
    netlink::{NetlinkError, pod},
    tables::Endpoint,
};

impl EndpointManager {
    /// CNI DEL: the row goes, the endpoint entry first → rules in the pod → the record → the answer; the device is deleted after it,
    /// then its flows are removed, and only then is the address free: who gets it next must not find what was judged for another. Where another IPAM plugin gives the address, it frees it when we have answered: so the device
    /// goes first.
    ///
    /// Everything is tried; the first failure is the answer, and the runtime's next DEL tries what is left.
    pub(super) fn disconnect(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let attachment: Attachment = (container_id.to_owned(), ifname.to_owned());
        let id = self.ids().by_attachment.remove(&attachment).map(|attached| attached.id);
        let endpoint = id.and_then(|id| self.tables.read().endpoints.get(&id).cloned());
        if let Some(id) = id {
            let revision = self.tables.remove_endpoint(id);
            if let Err(e) = steps::timed("maps", || self.tables.wait_applied(revision, APPLIED_WITHIN)) {
                warn!(error = %e, "the maps still hold a deleted endpoint");
            }
            fault::pass(Point::DelUnmapped);
        }
        // Before the record: nothing but that tells of them, and they do not go with the device.
        if let Some(e) = &endpoint {
            self.forget_rules(e);
            fault::pass(Point::DelUnruled);
        }
        let unrecorded = steps::timed("record", || self.records.remove(container_id, ifname)).map_err(|e| {
            CniError::new(ErrorCode::IO_FAILURE, error_chain(&e))
                .with_details("the directory of --state-dir must be writable")
        });
        if let Some(e) = endpoint {
            fault::pass(Point::DelUnrecorded);
            let lease = Lease { v4: e.ipv4, v6: e.ipv6 };
            if e.terms.delegated {
                self.ids().leave(&attachment, Leaving { id: e.id, lease, device: e.ifindex });
            } else {
                self.give_back(e.id, lease, Some(Device::from(&e)));
            }
            info!(endpoint = e.id, "endpoint gone");
        }
        unrecorded.and(self.await_gone(&attachment))
    }

    /// Rules in the pod do not go with its device.
    pub(super) fn forget_rules(&self, e: &Endpoint) {
        let delete = || -> Result<(), NetlinkError> {
            match pod::socket_at(&e.netns)? {
                Some(mut pod) => pod::delete_rules(&mut pod, e.ifindex),
                None => Ok(()),
            }
        };
        if e.terms.own_table
            && let Err(error) = delete()
        {
            warn!(endpoint = e.id, netns = e.netns, error = %error_chain(&error), "the pod keeps rules of an interface that is gone");
        }
    }

    /// Takes id and addresses back. Where a device may still hold them they are free only when it is gone, and their flows with it.
    pub(super) fn give_back(&self, id: u16, lease: Lease, device: Option<Device>) {
        self.ids().release(lease);
        let state = Arc::clone(&self.state);
        let settle = move || {
            let mut ids = state.lock().unwrap_or_else(PoisonError::into_inner);
            ids.taken.remove(&id);
            ids.settle(lease);
        };
        match device {
            // The device first: what it still sends would be entered anew.
            Some(device) => {
                let sweeper = self.sweeper.clone();
                self.reaper.delete(device, move || sweeper.forget(lease.addresses(), settle));
            }
            None => settle(),
        }
    }

    /// Waits until the devices of an attachment with another plugin's addresses are gone, and their flows.
    pub(super) fn await_gone(&self, attachment: &Attachment) -> Result<(), CniError> {
        let leaving = self.ids().leaving_of(attachment);
        let deadline = Instant::now() + APPLIED_WITHIN;
        let waits = leaving.into_iter().map(|Leaving { id, device, lease }| {
            let (tell, gone) = mpsc::channel();
            let (state, key) = (Arc::clone(&self.state), attachment.clone());
            let settle = move || {
                state.lock().unwrap_or_else(PoisonError::into_inner).gone(&key, id);
                // Nobody waits any more when it took too long.
                let _told = tell.send(());
            };
            let sweeper = self.sweeper.clone();
            self.reaper.delete(device, move || sweeper.forget(lease.addresses(), settle));
            (device, gone)
        });
        // All are under way before the first is waited for.
        let waits: Vec<_> = waits.collect();
        waits.into_iter().try_for_each(|(device, gone)| {
            gone.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|_| {
                CniError::new(
                    ErrorCode::TRY_AGAIN_LATER,
                    format!("the device {device} of the container is not gone yet"),
                )
                .with_details("its address must not be freed before; call DEL again")
            })
        })
    }
}
