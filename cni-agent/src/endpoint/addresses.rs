//! Taking addresses for an endpoint, and giving them back.
use std::net::IpAddr;

use cni_plugin::spec::{CniError, ErrorCode};

use super::{
    add::APPLIED_WITHIN,
    manager::{EndpointManager, Ids},
    wish::Addresses,
};
use crate::ipam::{IpamError, Lease, State, Usage};

/// Why an address was not taken.
enum Refused {
    /// Its former device is about to be deleted, or the flows behind it.
    Quarantined(CniError),
    /// For good.
    Other(CniError),
}

impl From<CniError> for Refused {
    fn from(error: CniError) -> Self {
        Self::Other(error)
    }
}

impl EndpointManager {
    /// Takes an id and addresses. One that is asked for by name and whose former device is being deleted is waited for,
    /// and so are that one's flows.
    pub(super) fn reserve(&self, wanted: &Addresses) -> Result<(u16, Lease), CniError> {
        let attempt = || -> Result<(u16, Lease), Refused> {
            let mut ids = self.ids();
            let lease = match wanted {
                Addresses::Own(asked) => self.lease_asked(&mut ids, asked)?,
                Addresses::Given(given) => self.take_given(&mut ids, given)?,
            };
            let Some(id) = ids.next() else {
                ids.free(lease);
                let e = CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "65,535 endpoints are on this node");
                return Err(Refused::Other(e.with_details("delete pods")));
            };
            Ok((id, lease))
        };
        match attempt() {
            Err(Refused::Quarantined(_)) if self.reaper.flush(APPLIED_WITHIN) && self.sweeper.flush(APPLIED_WITHIN) => {
                attempt()
            }
            other => other,
        }
        .map_err(|e| match e {
            Refused::Quarantined(e) | Refused::Other(e) => e,
        })
    }

    /// An address of each family of the node, those that are asked for among them.
    fn lease_asked(&self, ids: &mut Ids, asked: &[IpAddr]) -> Result<Lease, Refused> {
        let given = self.lease(ids)?;
        let mut lease = given;
        for addr in asked.iter().filter(|addr| !given.addresses().any(|a| a == **addr)) {
            if let Err(e) = ids.ipam.claim(*addr) {
                ids.free(given);
                ids.free(lease);
                return Err(not_claimed(&e, &ids.ipam.usage()));
            }
            match addr {
                IpAddr::V4(a) => lease.v4 = Some(*a),
                IpAddr::V6(a) => lease.v6 = Some(*a),
            }
        }
        let unused =
            Lease { v4: given.v4.filter(|a| lease.v4 != Some(*a)), v6: given.v6.filter(|a| lease.v6 != Some(*a)) };
        ids.free(unused);
        Ok(lease)
    }

    /// Exactly these addresses. Those in the node's ranges are marked there, so that they are not given to anybody else.
    fn take_given(&self, ids: &mut Ids, given: &[IpAddr]) -> Result<Lease, Refused> {
        self.follow_cidrs(ids);
        let mut lease = Lease::default();
        for addr in given {
            let taken = match ids.ipam.claim(*addr) {
                // Of no range of the node; an endpoint may have it all the same.
                Err(IpamError::Outside { .. }) => {
                    let state = ids.ipam.state(*addr).unwrap_or(State::Used);
                    if ids.ipam.hold(*addr) { Ok(()) } else { Err(IpamError::Taken { addr: *addr, state }) }
                }
                claimed => claimed,
            };
            if let Err(e) = taken {
                ids.free(lease);
                return Err(not_claimed(&e, &ids.ipam.usage()));
            }
            match addr {
                IpAddr::V4(a) => lease.v4 = Some(*a),
                IpAddr::V6(a) => lease.v6 = Some(*a),
            }
        }
        Ok(lease)
    }
}

impl Ids {
    /// Gives addresses back that no device ever had.
    fn free(&mut self, lease: Lease) {
        self.release(lease);
        self.settle(lease);
    }

    /// Puts addresses into quarantine.
    pub(super) fn release(&mut self, lease: Lease) {
        for a in lease.addresses() {
            self.ipam.release(a);
        }
    }

    /// Lets addresses out: their device is gone.
    pub(super) fn settle(&mut self, lease: Lease) {
        for a in lease.addresses() {
            self.ipam.settle(a);
        }
    }
}

fn not_claimed(error: &IpamError, usage: &[Usage]) -> Refused {
    let ranges: Vec<String> =
        usage.iter().map(|u| format!("{} ({} of {} in use)", u.cidr, u.used + u.quarantined, u.size)).collect();
    let details = format!("this node's ranges: {}; ask for a free address of one of them", ranges.join(", "));
    let code = match error {
        IpamError::Outside { .. } => ErrorCode::INVALID_CONFIG,
        _ => ErrorCode::ADDRESSES_EXHAUSTED,
    };
    let e = CniError::new(code, error.to_string()).with_details(details);
    match error {
        IpamError::Taken { state: State::Quarantined, .. } => Refused::Quarantined(e),
        _ => Refused::Other(e),
    }
}
