//! The MTU of pods that are there already follows that of the devices between nodes.
//!
//! Not an event but a difference is what is worked on: an endpoint's row tells the MTU that its pod has, and the tables which one it should
//! have. So a change while no agent ran is seen too. No map holds this MTU, and the row's change writes none.
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::record::RecordStore;
use crate::{
    compile::Facts,
    error_chain,
    netlink::{
        NetlinkError, Request, Socket, link,
        names::ROUTE_PROTOCOL,
        pod,
        route::{self, Route},
    },
    tables::{Contents, Endpoint, Tables},
};

/// Pause before a pod whose MTU could not be changed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Below it the kernel takes IPv6 from a device, and does not give it back (RFC 8200 section 5).
const LEAST_DEVICE_MTU: u32 = 1280;

/// MTU of both ends of a pod's wire; `None` until the node's devices are known. On an underlay that is narrower than IPv6 allows the
/// device gets more than the way can carry, and the routes tell the pod how much that is: so IPv6 stays, ADD does not fail where
/// IPv4 would work, and an underlay that is widened later finds the pod whole.
pub(crate) fn device_mtu(contents: &Contents, facts: &Facts) -> Option<u32> {
    facts.device_mtu(contents).map(|mtu| mtu.max(LEAST_DEVICE_MTU))
}

/// Starts the thread. It ends with the process.
pub fn start(tables: Arc<Tables>, facts: Facts, records: RecordStore) -> Result<(), NetlinkError> {
    let host = Socket::open()?;
    let mut keeper = Keeper { tables, facts, records, host, failed: BTreeMap::new() };
    thread::Builder::new()
        .name("pod-mtu".into())
        .spawn(move || keeper.run())
        .map_err(|e: io::Error| NetlinkError::socket("start the thread that changes pods' MTU")(e))?;
    Ok(())
}

/// A pod whose MTU is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    endpoint: Endpoint,
    device_mtu: u32,
    route_mtu: u32,
}

/// The pods whose MTU is not what it should be; none before the devices are known.
fn changes(contents: &Contents, facts: &Facts) -> Vec<Change> {
    let (Some(device_mtu), Some(route_mtu)) = (device_mtu(contents, facts), facts.route_mtu(contents)) else {
        return Vec::new();
    };
    let outdated = contents.endpoints.values().filter(|e| e.mtu != route_mtu);
    outdated.map(|e| Change { endpoint: e.clone(), device_mtu, route_mtu }).collect()
}

impl Change {
    /// Of our routes through the pod's device, those that need another MTU. What somebody has deleted does not come back.
    fn routes(&self, there: Vec<Route>) -> Vec<Request> {
        let ours = |r: &Route| r.protocol == ROUTE_PROTOCOL && r.index == self.endpoint.ifindex;
        let outdated = there.into_iter().filter(|r| ours(r) && r.mtu != Some(self.route_mtu));
        outdated.map(|r| route::replace(&Route { mtu: Some(self.route_mtu), ..r })).collect()
    }

    /// No route may promise what its device cannot send.
    fn devices_first(&self) -> bool {
        self.route_mtu > self.endpoint.mtu
    }
}

struct Keeper {
    tables: Arc<Tables>,
    facts: Facts,
    records: RecordStore,
    /// In the node's namespace.
    host: Socket,
    /// Which MTU an endpoint would not take, and when to try again.
    failed: BTreeMap<u16, (u32, Instant)>,
}

impl Keeper {
    fn run(&mut self) {
        loop {
            let next = self.failed.values().map(|(_, at)| at.saturating_duration_since(Instant::now())).min();
            let due = self.tables.wait_for(next.unwrap_or(Duration::MAX), |c| {
                let due: Vec<_> = changes(c, &self.facts).into_iter().filter(|c| self.is_due(c)).collect();
                (!due.is_empty()).then_some(due)
            });
            for change in due.unwrap_or_default() {
                self.change(&change);
            }
            let there = self.tables.read();
            self.failed.retain(|id, _| there.endpoints.contains_key(id));
        }
    }

    fn is_due(&self, change: &Change) -> bool {
        let failed = self.failed.get(&change.endpoint.id);
        failed.is_none_or(|(mtu, again)| *mtu != change.route_mtu || *again <= Instant::now())
    }

    fn change(&mut self, change: &Change) {
        let e = &change.endpoint;
        match self.apply(change) {
            Ok(true) => {
                info!(endpoint = e.id, from = e.mtu, to = change.route_mtu, "the pod's MTU follows the devices'")
            }
            // DEL is to come; what is gone has any MTU.
            Ok(false) => debug!(endpoint = e.id, netns = e.netns, "the pod's namespace or device is gone"),
            Err(error) => {
                warn!(
                    endpoint = e.id, pod = %e.pod(), error = %error_chain(&error),
                    "cannot change the pod's MTU; trying again in {AGAIN_AFTER:?}",
                );
                self.failed.insert(e.id, (change.route_mtu, Instant::now() + AGAIN_AFTER));
                return;
            }
        }
        self.failed.remove(&e.id);
        if let Err(error) = self.records.set_mtu(&e.container_id, &e.ifname, e.id, change.route_mtu) {
            warn!(endpoint = e.id, error = %error_chain(&error), "the pod's record tells its former MTU; the next agent sets it again");
        }
        self.tables.set_endpoint_mtu(e.id, change.route_mtu);
    }

    /// Whether the pod is still there.
    fn apply(&mut self, change: &Change) -> Result<bool, NetlinkError> {
        let e = &change.endpoint;
        let Some(mut pod) = pod::socket_at(&e.netns)? else { return Ok(false) };
        // The path may lead to somebody else's namespace by now, as /proc/PID does.
        if link::by_index(&mut pod, e.ifindex)?.is_none_or(|l| l.mac != Some(e.mac)) {
            return Ok(false);
        }
        let mut there = route::list(&mut pod)?;
        if e.terms.own_table {
            there.extend(route::list_table(&mut pod, e.ifindex)?);
        }
        let routes = change.routes(there);
        let device = || link::set_mtu(e.ifindex, change.device_mtu);
        let done = if change.devices_first() {
            self.host.run(device()).and_then(|()| pod.run(device())).and_then(|()| pod.batch(routes))
        } else {
            pod.batch(routes).and_then(|()| pod.run(device())).and_then(|()| self.host.run(device()))
        };
        match done {
            Ok(()) => Ok(true),
            // DEL came between.
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use cni_common::net::Mac;

    use super::*;
    use crate::{
        compile::{self, NodeNumbers, fixtures},
        netlink::names::gateway_for,
        tables::{Device, Row},
    };

    fn endpoint(id: u16, mtu: u32) -> Endpoint {
        Endpoint {
            id,
            container_id: format!("c{id}"),
            ifname: "eth0".into(),
            namespace: "default".into(),
            pod_name: format!("p{id}"),
            netns: format!("/run/netns/p{id}"),
            ifindex: 65_536 + u32::from(id),
            device: format!("weft{id}"),
            mac: Mac::new([2, 0, 0, 0, 0, 7]),
            ipv4: Some([10, 244, 1, 7].into()),
            ipv6: None,
            mtu,
            terms: crate::tables::Terms::default(),
        }
    }

    /// Pods with these MTUs on a node whose device has `device`.
    fn contents(device: u32, pods: &[u32]) -> Contents {
        let mut c = Contents::default();
        c.nodes.insert("here".into(), fixtures::node("here", 1));
        c.devices.insert(2, Device { name: "eth0".into(), mtu: device, leads: true, ..Default::default() });
        c.endpoints.extend((1..).zip(pods).map(|(id, mtu)| (id, endpoint(id, *mtu))));
        c
    }

    #[test]
    fn pods_whose_mtu_is_not_the_devices_less_the_overhead_are_changed_and_no_others() {
        let wanted = |c: &Contents| -> Vec<_> {
            let all = changes(c, &fixtures::facts());
            all.into_iter().map(|c| (c.endpoint.id, c.device_mtu, c.route_mtu, c.devices_first())).collect()
        };
        assert_eq!(wanted(&contents(1500, &[1450, 1350, 8950])), [(2, 1500, 1450, true), (3, 1500, 1450, false)]);
        assert_eq!(wanted(&contents(1400, &[1450, 1350])), [(1, 1400, 1350, false)]);
        assert_eq!(wanted(&contents(1000, &[1450])), [(1, 1280, 950, false)], "IPv6 must not go from the device");
        let unknown = Contents { devices: BTreeMap::new(), ..contents(1500, &[1]) };
        assert_eq!(wanted(&unknown), [], "nobody knows yet what it should be");
    }

    #[test]
    fn a_change_of_the_mtu_writes_no_map() {
        let entries = |mtu| {
            let contents = contents(1500, &[mtu]);
            compile::row(
                &Row::Endpoint(1),
                &contents,
                &fixtures::facts(),
                &compile::InForce::default(),
                &mut NodeNumbers::default(),
            )
        };
        assert_eq!(entries(1450), entries(1350));
        assert!(!entries(1450).unwrap().is_empty());
    }

    #[test]
    fn only_our_own_routes_through_the_pods_device_get_the_mtu() {
        let pod = endpoint(7, 1450);
        let through = |index, mtu| {
            let gateway = gateway_for("10.0.0.1".parse().unwrap());
            Route { mtu, ..Route::default_through(gateway, index) }
        };
        let change = Change { endpoint: pod.clone(), device_mtu: 1400, route_mtu: 1350 };
        let there = vec![
            through(pod.ifindex, Some(1450)),
            through(pod.ifindex, Some(1350)),
            through(9, Some(1450)),
            Route { protocol: 4, ..through(pod.ifindex, None) },
        ];
        assert_eq!(change.routes(there).len(), 1);
    }
}
