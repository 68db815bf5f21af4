//! CNI GC.
use std::{collections::BTreeSet, time::Instant};

use cni_plugin::{
    protocol::Request,
    spec::{CniError, ErrorCode, NetConf},
};
use tracing::info;

use super::manager::{Attachment, EndpointManager};
use crate::fault::{self, Point};

impl EndpointManager {
    /// CNI GC: disconnects what is of the request's network and not in its list. Endpoints of other networks stay, and those of
    /// releases that kept no network's name, and those that were connected after the call came at `since`: the list is older.
    /// What is being deleted counts as gone. All are tried; the first failure is the answer.
    pub(super) fn collect_garbage(&self, request: &Request, since: Instant) -> Result<(), CniError> {
        let conf = NetConf::from_json(&request.config)?;
        let Some(valid) = conf.valid_attachments()? else {
            let text = "the configuration of GC has no \"cni.dev/valid-attachments\"";
            return Err(CniError::new(ErrorCode::INVALID_CONFIG, text)
                .with_details("the runtime must list the attachments that it still has; an empty list means none"));
        };
        let valid: BTreeSet<Attachment> = valid.into_iter().map(|a| (a.container_id, a.ifname)).collect();
        let garbage: Vec<Attachment> = {
            let contents = self.tables.read();
            let of_network = contents.endpoints.values().filter(|e| e.terms.network == conf.name);
            of_network
                .map(|e| (e.container_id.clone(), e.ifname.clone()))
                .filter(|attachment| !valid.contains(attachment))
                .collect()
        };
        fault::pass(Point::GcListed);
        let mut first = Ok(());
        for attachment in &garbage {
            // Looked at last: one that is being deleted may be connected anew while the others are seen to.
            if !self.ids().was_attached(attachment, since) {
                continue;
            }
            let (container, ifname) = attachment;
            info!(container, ifname, network = conf.name, "the runtime no longer lists it; disconnecting it");
            first = first.and(self.disconnect(container, ifname));
            fault::pass(Point::GcDisconnected);
        }
        first
    }
}
