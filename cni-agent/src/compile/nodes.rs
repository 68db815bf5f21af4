//! Numbers of nodes: what a packet carries from one look-up to the next, so a number must not soon mean another node.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_common::maps::MAX_NODES;

/// All numbers are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no number is left for another node: this build knows {MAX_NODES} nodes, this one included")]
pub struct TooManyNodes;

/// Gives each tunnel address a number from 1 up; 0 is this node. A number comes again only after all others have been given.
#[derive(Clone, Debug)]
pub struct NodeNumbers {
    by_address: BTreeMap<IpAddr, u32>,
    taken: BTreeSet<u32>,
    next: u32,
}

impl Default for NodeNumbers {
    fn default() -> Self {
        Self { by_address: BTreeMap::new(), taken: BTreeSet::new(), next: 1 }
    }
}

impl NodeNumbers {
    /// Takes over what a former agent gave, as the maps of tunnel addresses hold it.
    pub fn adopt(&mut self, address: IpAddr, number: u32) {
        if number != 0 && number < MAX_NODES && self.taken.insert(number) {
            self.by_address.insert(address, number);
            self.next = self.next.max(number + 1);
        }
    }

    /// The number of a tunnel address, a new one if it has none.
    pub fn number(&mut self, address: IpAddr) -> Result<u32, TooManyNodes> {
        if let Some(n) = self.by_address.get(&address) {
            return Ok(*n);
        }
        let n = (self.next..MAX_NODES).chain(1..self.next).find(|n| !self.taken.contains(n)).ok_or(TooManyNodes)?;
        self.taken.insert(n);
        self.by_address.insert(address, n);
        self.next = n + 1;
        Ok(n)
    }

    /// The number of a tunnel address, if it has one.
    pub fn known(&self, address: IpAddr) -> Option<u32> {
        self.by_address.get(&address).copied()
    }

    /// Lets go of all but these.
    pub fn retain(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.by_address.retain(|a, _| addresses.contains(a));
        self.taken = self.by_address.values().copied().collect();
    }
}
