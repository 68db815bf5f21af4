//! Looks at everything that the audit compares.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    time::Duration,
};

use cni_common::{maps, schema};
use ipnet::IpNet;

use super::{Audit, PodEnd, Snapshot, compare};
use crate::{
    datapath::Datapath,
    endpoint::{
        EndpointManager,
        record::{RecordStore, State},
    },
    error_chain,
    netlink::{NetlinkError, Socket, addr, link, names, netns},
    tables::{Endpoint, Tables},
};

/// An ADD or DEL is through by then: what it explains is no difference.
const IN_PROGRESS: Duration = Duration::from_millis(300);

/// What is looked at.
pub struct Auditor<'a> {
    /// The allocator.
    pub manager: &'a EndpointManager,
    /// The endpoints' rows.
    pub tables: &'a Tables,
    /// Their records.
    pub records: &'a RecordStore,
    /// The maps.
    pub datapath: &'a Datapath,
}

impl Auditor<'_> {
    /// Audits. Nothing is stopped for it: a difference counts when it is there twice, so much later that no call that was in
    /// progress can have made both.
    pub fn audit(&self) -> Audit {
        let first = compare(&self.look());
        if first.differences.is_empty() {
            return first;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing tells that the calls of a moment are over; the API asks on a thread of its own"
        )]
        std::thread::sleep(IN_PROGRESS);
        let mut second = compare(&self.look());
        second.differences.retain(|d| first.differences.contains(d));
        second
    }

    fn look(&self) -> Snapshot {
        let mut s = Snapshot::default();
        let mut unread = Vec::new();
        s.endpoints = self.tables.read().endpoints.values().cloned().collect();
        s.addresses = self.manager.addresses_out();
        match self.records.read_all() {
            Ok(records) => s.records = records.into_iter().filter(|r| r.state == State::Ready).collect(),
            Err(e) => unread.push(error_chain(&e)),
        }
        match devices() {
            Ok(devices) => s.devices = devices,
            Err(e) => unread.push(error_chain(&e)),
        }
        match self.maps() {
            Ok((served, local)) => (s.served, s.local) = (served, local),
            Err(e) => unread.push(format!("read the maps: {e}")),
        }
        for e in &s.endpoints {
            match pod_end(e) {
                Ok(end) => drop(s.pods.insert(e.id, end)),
                Err(error) => unread.push(error_chain(&error)),
            }
        }
        s.unread = unread;
        s
    }

    #[expect(clippy::type_complexity, reason = "the two halves of one look")]
    fn maps(&self) -> io::Result<(BTreeMap<u32, BTreeSet<IpAddr>>, BTreeMap<IpAddr, u32>)> {
        let served = self.datapath.map(&schema::ENDPOINTS).dump()?;
        let served = served.into_iter().filter_map(|(key, value)| {
            let e: maps::Endpoint = bytemuck::try_pod_read_unaligned(&value).ok()?;
            let both = [IpAddr::V4(e.addr4.into()), IpAddr::V6(e.addr6.into())];
            Some((u32::from_ne_bytes(key.try_into().ok()?), both.into_iter().filter(|a| !a.is_unspecified()).collect()))
        });
        let mut local = BTreeMap::new();
        for map in [&schema::LOCAL4, &schema::LOCAL6] {
            local.extend(self.datapath.map(map).dump()?.into_iter().filter_map(|(key, value)| {
                let l: maps::Local = bytemuck::try_pod_read_unaligned(&value).ok()?;
                Some((address(&key)?, l.ifindex))
            }));
        }
        Ok((served.collect(), local))
    }
}

fn address(key: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(key).map(|a| Ipv4Addr::from(a).into());
    v4.or_else(|_| <[u8; 16]>::try_from(key).map(|a| Ipv6Addr::from(a).into())).ok()
}

fn devices() -> Result<BTreeMap<String, u32>, NetlinkError> {
    let all = link::list(&mut Socket::open()?)?;
    Ok(all.into_iter().filter(|l| names::endpoint_of(&l.name).is_some()).map(|l| (l.name, l.index)).collect())
}

fn pod_end(e: &Endpoint) -> Result<PodEnd, NetlinkError> {
    let target = match netns::open(&e.netns) {
        Ok(target) => target,
        Err(error) => return Ok(PodEnd::Gone(error.to_string())),
    };
    let mut socket = match Socket::open_in(target.as_fd()) {
        Ok(socket) => socket,
        // A file that is no namespace any more: the name of one that was unmounted.
        Err(error) if error.errno() == Some(nix::errno::Errno::EINVAL) => return Ok(PodEnd::Gone(error_chain(&error))),
        Err(error) => return Err(error),
    };
    let Some(device) = link::by_name(&mut socket, &e.ifname)? else { return Ok(PodEnd::Missing) };
    let addresses = addr::list(&mut socket)?.into_iter().filter(|a| a.index == device.index);
    let lasting = |ip: &IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    Ok(PodEnd::There(addresses.map(|a| IpNet::addr(&a.net)).filter(lasting).collect()))
}
