//! Who is meant by a pod's name, a node's name or an address.
use std::net::IpAddr;

use crate::{
    api::ExplainError,
    policy::explain::End,
    tables::{Contents, Endpoint, PodKey},
};

/// One end of a flow, and the interface that has its address on this node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Party {
    pub(super) end: End,
    pub(super) endpoint: Option<Endpoint>,
}
impl Party {
    fn elsewhere(end: End) -> Self {
        Self { end, endpoint: None }
    }
    fn here(e: &Endpoint, ip: IpAddr, node: &str) -> Self {
        let end = if e.is_kubernetes() {
            End::Pod { key: e.pod(), node: node.to_owned(), ip }
        } else {
            // Nobody to policies but its address.
            End::Outside(ip)
        };
        Self { end, endpoint: Some(e.clone()) }
    }
}

/// One for each address that is meant.
pub(super) fn parties(c: &Contents, node: &str, word: &str) -> Result<Vec<Party>, ExplainError> {
    if let Ok(address) = word.parse() {
        return Ok(vec![at(c, node, address)]);
    }
    let found = match word.split_once('/') {
        Some((namespace, name)) => of_pod(c, node, &PodKey::new(namespace, name))?,
        None => of_node(c, word).ok_or_else(|| ExplainError::NoSuchNode(word.to_owned()))?,
    };
    if found.is_empty() { Err(ExplainError::NoAddress(word.to_owned())) } else { Ok(found) }
}

/// The first of each family of both ends, IPv4 first.
pub(super) fn flows(from: &[Party], to: &[Party]) -> Vec<(Party, Party)> {
    let first = |of: &[Party], v4| of.iter().find(|p| p.end.ip().is_ipv4() == v4).cloned();
    [true, false].into_iter().filter_map(|v4| first(from, v4).zip(first(to, v4))).collect()
}

fn of_pod(c: &Contents, node: &str, key: &PodKey) -> Result<Vec<Party>, ExplainError> {
    let here = c.endpoints.values().filter(|e| e.is_kubernetes() && e.pod() == *key);
    let mut found: Vec<Party> = here.flat_map(|e| e.ips().map(|ip| Party::here(e, ip, node))).collect();
    let Some(pod) = c.pods.get(key) else {
        return if found.is_empty() { Err(ExplainError::NoSuchPod(key.to_string())) } else { Ok(found) };
    };
    let on = pod.node.as_deref().unwrap_or_default();
    if found.is_empty() && pod.host_network {
        return Ok(of_node(c, on).unwrap_or_default());
    }
    if found.is_empty() && !pod.phase.is_over() {
        let end = |ip: &IpAddr| End::Pod { key: key.clone(), node: on.to_owned(), ip: *ip };
        found = pod.ips.iter().map(|ip| Party::elsewhere(end(ip))).collect();
    }
    Ok(found)
}

fn of_node(c: &Contents, name: &str) -> Option<Vec<Party>> {
    let node = c.nodes.get(name)?;
    // InternalIPs first: by those nodes speak to each other's pods.
    let others = node.addresses.iter().filter(|a| !node.internal_ips.contains(a));
    let end = |ip: &IpAddr| Party::elsewhere(End::Node { name: name.to_owned(), ip: *ip });
    Some(node.internal_ips.iter().chain(others).map(end).collect())
}

/// What is here is known better here; an address that is said to be several ends' is taken as policies take it, as a pod's first.
fn at(c: &Contents, node: &str, ip: IpAddr) -> Party {
    if let Some(e) = c.endpoints.values().find(|e| e.ips().any(|a| a == ip)) {
        return Party::here(e, ip, node);
    }
    let is_own = |p: &crate::tables::Pod| !p.host_network && !p.phase.is_over() && p.ips.contains(&ip);
    if let Some(pod) = c.pods.values().find(is_own) {
        let node = pod.node.clone().unwrap_or_default();
        return Party::elsewhere(End::Pod { key: pod.key(), node, ip });
    }
    let has = |n: &&crate::tables::Node| n.addresses.contains(&ip) || n.internal_ips.contains(&ip);
    let name = c.nodes.values().find(has).map(|n| n.name.clone());
    match name.or_else(|| c.node_addresses.contains(&ip).then(|| node.to_owned())) {
        Some(name) => Party::elsewhere(End::Node { name, ip }),
        None => Party::elsewhere(End::Outside(ip)),
    }
}
