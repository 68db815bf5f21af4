//! The next hop to each of the other nodes, exactly as the kernel would take it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use cni_common::net::Mac;
use tracing::debug;

use crate::{
    netlink::{NetlinkError, Socket, link, neigh, route},
    tables::{NextHop, Tables},
};

/// A neighbour: a device's interface index and an address on its link.
pub(super) type Link = (u32, IpAddr);

/// Keeps the rows of next hops.
pub(super) struct NextHops {
    tables: Arc<Tables>,
    /// Which neighbour leads to which tunnel addresses, as of the last look: most of a busy host's neighbours lead to none.
    through: BTreeMap<IpAddr, Link>,
}

impl NextHops {
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        Self { tables, through: BTreeMap::new() }
    }

    /// The tunnel addresses whose next hop is one of these neighbours.
    pub(super) fn behind(&self, neighbours: &BTreeSet<Link>) -> BTreeSet<IpAddr> {
        self.through.iter().filter(|(_, via)| neighbours.contains(via)).map(|(to, _)| *to).collect()
    }

    /// Rows of other addresses go.
    pub(super) fn keep_only(&mut self, targets: &BTreeSet<IpAddr>) {
        let known: Vec<IpAddr> = self.tables.read().next_hops.keys().copied().collect();
        for gone in known.into_iter().filter(|to| !targets.contains(to)) {
            self.tables.remove_next_hop(gone);
        }
        self.through.retain(|to, _| targets.contains(to));
    }

    /// Reads the way to an address again. `confirm`: the kernel shall find out whether the neighbour is still there.
    pub(super) fn follow(&mut self, socket: &mut Socket, to: IpAddr, confirm: bool) -> Result<(), NetlinkError> {
        // An address of this node leads nowhere else, whatever a Node object says.
        let way = route::lookup(socket, to)?.filter(|way| !way.local);
        let device = way.map(|way| link::by_index(socket, way.index)).transpose()?.flatten();
        let (Some(way), Some(device)) = (way, device) else {
            debug!(%to, "no route");
            self.through.remove(&to);
            self.tables.remove_next_hop(to);
            return Ok(());
        };
        let via = way.gateway.unwrap_or(to);
        self.through.insert(to, (way.index, via));
        let next_hop_mac = match device.mac {
            Some(_) => neighbour(socket, (way.index, via), confirm)?,
            None => None,
        };
        self.tables.set_next_hop(
            to,
            NextHop {
                ifindex: way.index,
                source_mac: device.mac.unwrap_or(Mac::ZERO),
                next_hop_mac,
                mtu: way.mtu.unwrap_or(device.mtu).min(device.mtu),
                ethernet: device.mac.is_some(),
            },
        );
        Ok(())
    }
}

/// The neighbour's MAC address, if it may be used. A neighbour that nobody has asked for is asked for; one that does not answer is
/// asked again only when `confirm` says so, as each failure is an event that leads here.
fn neighbour(socket: &mut Socket, (index, via): Link, confirm: bool) -> Result<Option<Mac>, NetlinkError> {
    let known = neigh::lookup(socket, index, via)?;
    if known.is_none() || confirm {
        // The answer comes as an event.
        if let Err(e) = socket.run(neigh::resolve(index, via)) {
            debug!(%via, error = %e, "cannot ask for the neighbour");
        }
    }
    Ok(known.as_ref().and_then(neigh::Neighbour::usable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_concerns_only_the_nodes_behind_it_on_its_own_device() {
        let ip = |a: &str| -> IpAddr { a.parse().unwrap() };
        let mut hops = NextHops::new(Arc::default());
        let gateway = (2, ip("192.0.2.254"));
        hops.through = [("198.51.100.1", gateway), ("198.51.100.2", gateway), ("192.0.2.3", (2, ip("192.0.2.3")))]
            .map(|(to, via)| (ip(to), via))
            .into();
        assert_eq!(hops.behind(&[gateway].into()), [ip("198.51.100.1"), ip("198.51.100.2")].into());
        assert_eq!(
            hops.behind(&[(2, ip("172.17.0.5")), (9, ip("192.0.2.3"))].into()),
            [].into(),
            "a container, another link"
        );
        hops.keep_only(&[ip("192.0.2.3")].into());
        assert_eq!(hops.behind(&[gateway].into()), [].into(), "nodes that are gone");
    }
}
