//! From row to record and back.
use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use super::record::{EndpointRecord, PodName, State};
use crate::tables::Endpoint;

impl EndpointRecord {
    /// Of an endpoint that is wired.
    #[cfg(test)]
    pub(crate) fn of_endpoint(e: &Endpoint) -> Self {
        Self { state: State::Ready, ..Self::adding(e, None) }
    }

    /// Of an endpoint whose ADD has begun.
    pub(super) fn adding(e: &Endpoint, uid: Option<String>) -> Self {
        Self {
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
            terms: e.terms.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }

    /// The row of a record.
    pub(super) fn into_endpoint(self, id: u16) -> Endpoint {
        let r = self;
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
            terms: r.terms,
        }
    }
}
