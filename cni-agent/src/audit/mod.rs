//! The audit of addresses: what the allocator has given out, against the endpoints, their records, the kernel's devices, the maps
//! and the pods' own namespaces. Pure; [`gather`] looks.
//!
//! It finds what should never be: an address that nobody has, one that two could get, a pod that is wired and not known, or known
//! and not wired.
pub mod gather;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{endpoint::record::EndpointRecord, ipam::State, tables::Endpoint};

/// Everything there is, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the allocator has given out, and what it holds back until a device is gone.
    pub addresses: BTreeMap<IpAddr, State>,
    /// The endpoints' rows.
    pub endpoints: Vec<Endpoint>,
    /// Records of this boot.
    pub records: Vec<EndpointRecord>,
    /// The kernel's devices with a pod's name, by name: interface index.
    pub devices: BTreeMap<String, u32>,
    /// The map of endpoints, by interface index: addresses.
    pub served: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// The maps of local addresses: interface index.
    pub local: BTreeMap<IpAddr, u32>,
    /// The pods' ends, by endpoint id.
    pub pods: BTreeMap<u16, PodEnd>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
}

/// What a pod's namespace shows of its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEnd {
    /// The namespace cannot be opened.
    Gone(String),
    /// It has no interface of that name.
    Missing,
    /// It has one, with these addresses (link-local ones left out).
    There(BTreeSet<IpAddr>),
}

/// `GET /v1/ipam/audit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Addresses that are out or held back.
    pub addresses: usize,
    /// Endpoints that were compared.
    pub endpoints: usize,
    /// What does not agree. Empty when all is well.
    pub differences: Vec<Difference>,
}

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// A word for programs; it stays the same from version to version.
    pub id: String,
    /// What is so.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

const RESTART: &str = "restart weft-agent: it compares everything when it starts";

/// Compares.
pub fn compare(s: &Snapshot) -> Audit {
    let mut found = BTreeSet::new();
    let mut say = |id: &str, what: String, cure: &str| {
        found.insert(Difference { id: id.into(), what, cure: cure.into() });
    };
    for what in &s.unread {
        say("unread", what.clone(), "run as root, in the node's namespaces; the log says more");
    }
    let owners: BTreeMap<IpAddr, &Endpoint> = s.endpoints.iter().flat_map(|e| e.ips().map(move |a| (a, e))).collect();
    for e in &s.endpoints {
        endpoint(s, e, &owners, &mut say);
    }
    let known: BTreeMap<u32, &Endpoint> = s.endpoints.iter().map(|e| (e.ifindex, e)).collect();
    // A pod whose record was lost is served on, and its addresses are held for it.
    let lost: BTreeMap<u32, &BTreeSet<IpAddr>> = s
        .served
        .iter()
        .filter(|(index, _)| !known.contains_key(*index) && s.devices.values().any(|there| there == *index))
        .map(|(index, addresses)| (*index, addresses))
        .collect();
    for (index, addresses) in &lost {
        let what = format!("the device {index} with {} is served, and no record tells whose it is", join(addresses));
        say(
            "lost-record",
            what,
            "delete the pod that has the address; DEL removes nothing of it, so delete the device too",
        );
    }
    for (address, state) in &s.addresses {
        let held = lost.values().any(|addresses| addresses.contains(address));
        if *state == State::Used && !owners.contains_key(address) && !held {
            say("leaked", format!("{address} is given out, and no endpoint has it"), RESTART);
        }
    }
    for record in &s.records {
        let (container, ifname) = (&record.container_id, &record.ifname);
        if !s.endpoints.iter().any(|e| e.container_id == *container && e.ifname == *ifname) {
            let what = format!("a record tells of {container} {ifname}, and there is no such endpoint");
            say("stray-record", what, RESTART);
        }
    }
    for (device, index) in &s.devices {
        if !known.contains_key(index) && !s.served.contains_key(index) {
            let what = format!("the device {device} ({index}) is there, and no endpoint has it");
            say("stray-device", what, &format!("ip link delete {device}"));
        }
    }
    for (index, addresses) in &s.served {
        if !known.contains_key(index) && !lost.contains_key(index) {
            let what =
                format!("the map of endpoints has {} at device {index}, and there is no such device", join(addresses));
            say("stray-entry", what, RESTART);
        }
    }
    for (address, index) in &s.local {
        if !owners.contains_key(address) && !lost.contains_key(index) {
            let what = format!("the map of local addresses leads {address} to device {index}, and no endpoint has it");
            say("stray-entry", what, RESTART);
        }
    }
    Audit { addresses: s.addresses.len(), endpoints: s.endpoints.len(), differences: found.into_iter().collect() }
}

fn endpoint(
    s: &Snapshot,
    e: &Endpoint,
    owners: &BTreeMap<IpAddr, &Endpoint>,
    say: &mut impl FnMut(&str, String, &str),
) {
    let who = format!("{} {}", e.container_id, e.ifname);
    let again = "delete the pod, so that it is made anew";
    let addresses: BTreeSet<IpAddr> = e.ips().collect();
    for address in &addresses {
        if s.addresses.get(address) != Some(&State::Used) {
            say("not-out", format!("{who} has {address}, and the allocator could give it to another pod"), RESTART);
        }
        if owners.get(address).is_some_and(|owner| owner.id != e.id) {
            say("twice", format!("{address} belongs to {who} and to another endpoint"), again);
        }
        match s.local.get(address) {
            Some(index) if *index == e.ifindex => {}
            Some(index) => {
                say("map", format!("the map leads {address} of {who} to device {index}, not to {}", e.ifindex), RESTART)
            }
            None => say("map", format!("the map of local addresses lacks {address} of {who}"), RESTART),
        }
    }
    match s.served.get(&e.ifindex) {
        Some(there) if *there == addresses => {}
        Some(there) => {
            let what = format!("the map of endpoints gives {} to {who}, not {}", join(there), join(&addresses));
            say("map", what, RESTART);
        }
        None => say("map", format!("the map of endpoints lacks {who}"), RESTART),
    }
    match s.records.iter().find(|r| r.container_id == e.container_id && r.ifname == e.ifname) {
        Some(r) if r.ipv4 == e.ipv4 && r.ipv6 == e.ipv6 && r.host_ifindex == e.ifindex => {}
        Some(_) => say("record", format!("the record of {who} tells of other addresses or another device"), again),
        None => {
            let what = format!("{who} has no record: the next agent will not know whose {} is", join(&addresses));
            say("no-record", what, again);
        }
    }
    match s.devices.get(&e.device) {
        Some(index) if *index == e.ifindex => {}
        Some(index) => {
            say("device", format!("the device {} of {who} has index {index}, not {}", e.device, e.ifindex), again)
        }
        None => say("device", format!("the device {} of {who} is gone", e.device), again),
    }
    let collect = "have the runtime collect garbage (CNI GC), or delete the pod";
    match s.pods.get(&e.id) {
        Some(PodEnd::There(there)) if addresses.is_subset(there) => {}
        Some(PodEnd::There(there)) => {
            let gone: BTreeSet<IpAddr> = addresses.difference(there).copied().collect();
            say("pod-address", format!("{who} lacks {} in its namespace", join(&gone)), again);
        }
        Some(PodEnd::Missing) => say("pod-device", format!("{who}: its namespace has no such interface"), again),
        Some(PodEnd::Gone(why)) => say("pod-gone", format!("{who}: its namespace is gone ({why})"), collect),
        None => {}
    }
}

fn join(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
