//! Routes into `weft_host`, recognised as ours by their protocol number and device.
use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    compile::ClusterRoute,
    fault::{self, Point},
    netlink::{
        NetlinkError, Socket,
        names::{ROUTE_PROTOCOL, gateway_for},
        route::{self, Route},
    },
};

/// What the kernel has of them.
#[derive(Debug)]
pub struct Routes {
    weft_host: u32,
    actual: BTreeSet<ClusterRoute>,
}

impl Routes {
    /// Reads what a former agent left.
    pub fn adopt(socket: &mut Socket, weft_host: u32) -> Result<Self, NetlinkError> {
        let mut routes = Self { weft_host, actual: BTreeSet::new() };
        routes.look(socket)?;
        Ok(routes)
    }

    /// Reads what there is, as routes go without our doing: with an address of the node goes every IPv4 route that names it as source.
    pub fn look(&mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let ours = |r: &Route| r.protocol == ROUTE_PROTOCOL && r.index == self.weft_host;
        let there = route::list(socket)?.into_iter().filter(ours);
        self.actual = there.map(|r| ClusterRoute { to: r.dst, source: r.source, mtu: r.mtu.unwrap_or(0) }).collect();
        Ok(())
    }

    /// What the kernel had at the last look, and what was changed since.
    pub fn believed(&self) -> &BTreeSet<ClusterRoute> {
        &self.actual
    }

    /// Whether there is a route to this address alone.
    pub fn lead_to(&self, address: IpAddr) -> bool {
        let first = ClusterRoute { to: address.into(), source: None, mtu: 0 };
        self.actual.range(&first..).next().is_some_and(|r| r.to == first.to)
    }

    /// Adds or replaces what differs; removes what is too much only when `prune` says that all sources are in sync.
    pub fn apply(
        &mut self,
        socket: &mut Socket,
        wanted: BTreeSet<ClusterRoute>,
        prune: bool,
    ) -> Result<(), NetlinkError> {
        let mut first_error = Ok(());
        for r in wanted.difference(&self.actual.clone()) {
            match socket.run(route::replace(&self.message(r))) {
                Ok(()) => {
                    fault::pass(Point::RouteMade);
                    self.actual.retain(|old| old.to != r.to);
                    self.actual.insert(r.clone());
                }
                // The others are made all the same: one family may be switched off.
                Err(e) => first_error = first_error.and(Err(e)),
            }
        }
        if !prune {
            return first_error;
        }
        let extra: Vec<_> = self.actual.iter().filter(|old| !wanted.iter().any(|w| w.to == old.to)).cloned().collect();
        for old in extra {
            match socket.run(route::delete(&self.message(&old))) {
                Err(e) if !e.is_missing() => first_error = first_error.and(Err(e)),
                _ => drop(self.actual.remove(&old)),
            }
        }
        first_error
    }

    fn message(&self, r: &ClusterRoute) -> Route {
        Route {
            source: r.source,
            mtu: Some(r.mtu),
            onlink: true,
            ..Route::through(gateway_for(r.to.addr()), r.to, self.weft_host)
        }
    }
}
