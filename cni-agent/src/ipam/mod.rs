//! The agent's own allocator of pod addresses: which addresses of the node's pod CIDRs are out, and which is next.
//!
//! Pure: no clock, no disk, no kernel. What is out is written down in the endpoint records; after a restart the caller
//! [holds](Ipam::hold) what they name, before or after it has said which CIDRs there are.
//!
//! An address goes round: free → used ([`Ipam::allocate`], [`Ipam::claim`]) → quarantined ([`Ipam::release`]) → free
//! ([`Ipam::settle`], called when its link is gone). A freed address is given again only after all others of its CIDR.
#![forbid(unsafe_code)]

mod bitmap;
mod pool;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use pool::Pool;
pub use pool::State;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What one pod gets: an address of each family that the node has CIDRs of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Lease {
    /// The addresses, IPv4 first.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// How far a CIDR is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The CIDR.
    pub cidr: IpNet,
    /// How many addresses can be out at the same time.
    pub size: u32,
    /// How many are out.
    pub used: u32,
    /// How many were given back and wait for their links to go.
    pub quarantined: u32,
    /// Whether the CIDR was removed and stays only until the last of its addresses is back.
    pub draining: bool,
}

/// Why an address cannot be given, claimed or managed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address of a family is out.
    #[error(
        "all {size} {family} addresses of {} are taken ({used} in use, {quarantined} waiting for their links to go): \
         delete pods, or give the node a further or larger pod CIDR", list(.cidrs)
    )]
    Exhausted {
        /// The family.
        family: Family,
        /// Its CIDRs.
        cidrs: Vec<IpNet>,
        /// How many addresses are out.
        used: u32,
        /// How many wait for their links to go.
        quarantined: u32,
        /// How many there are.
        size: u32,
    },
    /// There is nothing to give from.
    #[error("this node has no pod CIDR: set spec.podCIDRs in its Node object")]
    NoCidr,
    /// A new CIDR holds addresses of one that is there.
    #[error("pod CIDR {cidr} overlaps with {other}, which this node has already: correct spec.podCIDRs")]
    Overlap {
        /// The new one.
        cidr: IpNet,
        /// The one that is there.
        other: IpNet,
    },
    /// The address is in no CIDR, or beyond the part of it that is managed.
    #[error("address {addr} is in none of this node's pod CIDRs ({})", list(.cidrs))]
    Outside {
        /// The address.
        addr: IpAddr,
        /// The CIDRs of its family.
        cidrs: Vec<IpNet>,
    },
    /// The address is not free.
    #[error("address {addr} is {}", what(*.state))]
    Taken {
        /// The address.
        addr: IpAddr,
        /// What it is instead.
        state: State,
    },
}

fn list(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

fn what(state: State) -> &'static str {
    match state {
        State::Free => "free",
        State::Used => "in use already",
        State::Quarantined => "waiting for the link that had it to go",
        State::Reserved => "not for pods (the first or last of its network)",
    }
}

/// The allocator. See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Ipam {
    /// In the order in which they came: the first with a free address gives.
    pools: Vec<Pool>,
    /// Addresses that are out or in quarantine and that no pool manages: held before their CIDR was known, or of one that went.
    outside: BTreeMap<IpAddr, State>,
    /// What [`Ipam::follow`] was told last, and what was wrong with it.
    followed: Option<(Vec<IpNet>, Option<IpamError>)>,
}

impl Ipam {
    /// Without CIDRs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a CIDR; its host bits do not matter. One that is there already stays as it is, and one that was removed
    /// while addresses were out is taken back. What is out of its addresses, or held, is out.
    ///
    /// # Errors
    /// [`IpamError::Overlap`].
    pub fn add_cidr(&mut self, cidr: IpNet) -> Result<(), IpamError> {
        let cidr = cidr.trunc();
        if let Some(pool) = self.pools.iter_mut().find(|pool| pool.cidr == cidr) {
            pool.draining = false;
            return Ok(());
        }
        let overlaps = |pool: &Pool| pool.cidr.contains(&cidr) || cidr.contains(&pool.cidr);
        if let Some(pool) = self.pools.iter().find(|pool| overlaps(pool) && !pool.draining) {
            return Err(IpamError::Overlap { cidr, other: pool.cidr });
        }
        for drained in self.pools.extract_if(.., |pool| overlaps(pool)) {
            self.outside.extend(drained.out());
        }
        let mut pool = Pool::new(cidr);
        self.outside.retain(|addr, state| {
            if !pool.claim(*addr) {
                return true;
            }
            pool.skip_to(*addr);
            if *state == State::Quarantined {
                pool.release(*addr);
            }
            false
        });
        self.pools.push(pool);
        Ok(())
    }

    /// Removes a CIDR: nothing is given from it any more. With addresses out it stays, [draining](Usage::draining),
    /// until the last is settled. Says how many addresses are still out or in quarantine; 0 for a CIDR that is not there.
    pub fn remove_cidr(&mut self, cidr: IpNet) -> u32 {
        let cidr = cidr.trunc();
        let mut left = 0;
        for pool in self.pools.iter_mut().filter(|pool| pool.cidr == cidr) {
            pool.draining = true;
            left = pool.used + pool.quarantined;
        }
        self.drop_drained();
        left
    }

    /// Makes the CIDRs those of `cidrs`: adds what is missing, removes what is not named.
    ///
    /// # Errors
    /// [`IpamError::Overlap`]; the others are added all the same.
    pub fn set_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), IpamError> {
        let gone: Vec<IpNet> = self
            .pools
            .iter()
            .map(|pool| pool.cidr)
            .filter(|old| !cidrs.iter().any(|new| new.trunc() == *old))
            .collect();
        for cidr in gone {
            self.remove_cidr(cidr);
        }
        cidrs.iter().map(|cidr| self.add_cidr(*cidr)).fold(Ok(()), Result::and)
    }

    /// [Makes](Ipam::set_cidrs) the CIDRs those of `cidrs`, which costs a comparison as long as they stay the same. One that was
    /// refused is tried again each time; the answer is what is wrong with them if it was not told before.
    pub fn follow(&mut self, cidrs: &[IpNet]) -> Option<IpamError> {
        if matches!(&self.followed, Some((before, None)) if before == cidrs) {
            return None;
        }
        let problem = self.set_cidrs(cidrs).err();
        let told = self.followed.take().and_then(|(_, problem)| problem);
        self.followed = Some((cidrs.to_vec(), problem.clone()));
        problem.filter(|new| Some(new) != told.as_ref())
    }

    /// Gives an address of each family that has a CIDR, or none at all.
    ///
    /// # Errors
    /// [`IpamError::NoCidr`], [`IpamError::Exhausted`].
    pub fn allocate(&mut self) -> Result<Lease, IpamError> {
        let (has_v4, has_v6) = (self.serves(Family::V4), self.serves(Family::V6));
        if !has_v4 && !has_v6 {
            return Err(IpamError::NoCidr);
        }
        // Both are asked before either gives, so there is nothing to take back.
        for (family, wanted) in [(Family::V4, has_v4), (Family::V6, has_v6)] {
            if wanted && !self.active(family).any(|pool| pool.free() > 0) {
                return Err(self.exhausted(family));
            }
        }
        let mut lease = Lease::default();
        if let Some(IpAddr::V4(addr)) = self.take_next(Family::V4) {
            lease.v4 = Some(addr);
        }
        if let Some(IpAddr::V6(addr)) = self.take_next(Family::V6) {
            lease.v6 = Some(addr);
        }
        Ok(lease)
    }

    /// Marks an address as out that an earlier agent gave, whether or not it is of a CIDR that is known yet. What is given next comes
    /// behind it, so that what was given back just before the restart rests too. Says whether it was not out already.
    pub fn hold(&mut self, addr: IpAddr) -> bool {
        if let Some(pool) = self.pool_of(addr) {
            if pool.claim(addr) {
                pool.skip_to(addr);
                return true;
            }
            if matches!(pool.state(addr), Some(State::Used | State::Quarantined)) {
                return false;
            }
        }
        match self.outside.entry(addr) {
            Entry::Vacant(free) => {
                free.insert(State::Used);
                true
            }
            // Also one in quarantine: its link is still there.
            Entry::Occupied(_) => false,
        }
    }

    /// Marks an address as out that somebody asks for by name.
    ///
    /// # Errors
    /// [`IpamError::Outside`], [`IpamError::Taken`].
    pub fn claim(&mut self, addr: IpAddr) -> Result<(), IpamError> {
        if let Some(pool) = self.pool_of(addr) {
            if pool.claim(addr) {
                return Ok(());
            }
            if let Some(state) = pool.state(addr) {
                return Err(IpamError::Taken { addr, state });
            }
        }
        let cidrs = self.pools.iter().map(|pool| pool.cidr).filter(|c| Family::of(c.addr()) == Family::of(addr));
        Err(IpamError::Outside { addr, cidrs: cidrs.collect() })
    }

    /// Takes an address back, into quarantine. Says whether it was out; to give back twice does nothing.
    pub fn release(&mut self, addr: IpAddr) -> bool {
        if self.pool_of(addr).is_some_and(|pool| pool.release(addr)) {
            return true;
        }
        let held = self.outside.get_mut(&addr).filter(|state| **state == State::Used);
        held.map(|state| *state = State::Quarantined).is_some()
    }

    /// Lets an address out of quarantine: its link is gone. Says whether it was in.
    pub fn settle(&mut self, addr: IpAddr) -> bool {
        let settled = self.pool_of(addr).is_some_and(|pool| pool.settle(addr));
        self.drop_drained();
        settled || self.outside.get(&addr) == Some(&State::Quarantined) && self.outside.remove(&addr).is_some()
    }

    /// What an address is; `None` for one that is not managed here.
    pub fn state(&self, addr: IpAddr) -> Option<State> {
        let pool = self.pools.iter().find(|pool| pool.contains(addr));
        self.outside.get(&addr).copied().or_else(|| pool?.state(addr))
    }

    /// Every address that is out or in quarantine, in order, those of no CIDR too.
    pub fn out(&self) -> BTreeMap<IpAddr, State> {
        let outside = self.outside.iter().map(|(addr, state)| (*addr, *state));
        self.pools.iter().flat_map(Pool::out).chain(outside).collect()
    }

    /// How far each CIDR is used up, in the order in which they give.
    pub fn usage(&self) -> Vec<Usage> {
        let usage = |pool: &Pool| Usage {
            cidr: pool.cidr,
            size: pool.size(),
            used: pool.used,
            quarantined: pool.quarantined,
            draining: pool.draining,
        };
        self.pools.iter().map(usage).collect()
    }

    fn active(&self, family: Family) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |pool| !pool.draining && Family::of(pool.cidr.addr()) == family)
    }

    fn serves(&self, family: Family) -> bool {
        self.active(family).next().is_some()
    }

    fn take_next(&mut self, family: Family) -> Option<IpAddr> {
        self.pools.iter_mut().filter(|pool| Family::of(pool.cidr.addr()) == family).find_map(Pool::take_next)
    }

    fn pool_of(&mut self, addr: IpAddr) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.contains(addr))
    }

    fn exhausted(&self, family: Family) -> IpamError {
        let sum = |count: fn(&Pool) -> u32| self.active(family).map(count).fold(0, u32::saturating_add);
        IpamError::Exhausted {
            family,
            cidrs: self.active(family).map(|pool| pool.cidr).collect(),
            used: sum(|pool| pool.used),
            quarantined: sum(|pool| pool.quarantined),
            size: sum(Pool::size),
        }
    }

    fn drop_drained(&mut self) {
        self.pools.retain(|pool| !(pool.draining && pool.is_idle()));
    }
}
