//! Flows that a former agent's pods have left: it ended after a pod's device was gone and before the pod's flows were, or no agent ran.
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{PoisonError, mpsc},
};

use ipnet::IpNet;
use tracing::{info, warn};

use super::{add::APPLIED_WITHIN, manager::EndpointManager};

impl EndpointManager {
    /// Before an address is given, until it has worked once: removes the flows of all addresses of this node's ranges that nobody has. By then
    /// the ranges are known, and those who have addresses.
    pub(super) fn remove_orphans(&self) {
        let mut removed = self.orphans_removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return;
        }
        let ranges = self.tables.read().nodes.get(&self.facts.node).map(|n| n.pod_cidrs.clone()).unwrap_or_default();
        let owned: BTreeSet<IpAddr> = self.addresses_out().into_keys().collect();
        let (tell, done) = mpsc::channel();
        self.sweeper.remove_pods(
            move |a| is_orphan(a, &ranges, &owned),
            move |removed| {
                // Nobody waits any more when it took too long.
                let _told = tell.send(removed);
            },
        );
        let answer = done.recv_timeout(APPLIED_WITHIN);
        // What failed is tried again before the next address is given.
        *removed = matches!(answer, Ok(Ok(_)));
        match answer {
            Ok(Ok(0)) => {}
            Ok(Ok(flows)) => info!(flows, "removed flows of pods that are gone"),
            Ok(Err(error)) => warn!(%error, "cannot remove the flows of pods that are gone; they expire"),
            Err(_) => warn!("the flows of pods that are gone are still being removed"),
        }
    }
}

fn is_orphan(address: IpAddr, ranges: &[IpNet], owned: &BTreeSet<IpAddr>) -> bool {
    ranges.iter().any(|range| range.contains(&address)) && !owned.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_of_this_nodes_ranges_and_nobodys() {
        let ranges = ["10.244.1.0/24".parse().unwrap(), "fd10:244:1::/64".parse().unwrap()];
        let owned = BTreeSet::from(["10.244.1.2".parse().unwrap()]);
        let orphan = |a: &str| is_orphan(a.parse().unwrap(), &ranges, &owned);
        assert!(orphan("10.244.1.3") && orphan("fd10:244:1::3"));
        assert!(!orphan("10.244.1.2"), "a pod's");
        assert!(!orphan("10.244.2.3") && !orphan("192.0.2.1"), "elsewhere");
    }
}
