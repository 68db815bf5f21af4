//! The addresses of one CIDR.
use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::bitmap::Bitmap;

/// How many addresses of a CIDR are managed at most, counted from its first: a bit each, and far more than a node has
/// pods.
const MAX_V4: u32 = 1 << 20;
const MAX_V6: u32 = 1 << 16;

/// What an address is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Can be given out.
    Free,
    /// Given out.
    Used,
    /// Given back, but its link may still be there.
    Quarantined,
    /// Never given out: the network itself, its broadcast address, the subnet-router anycast address.
    Reserved,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Used => "used",
            Self::Quarantined => "quarantined",
            Self::Reserved => "reserved",
        })
    }
}

/// The addresses of one CIDR, by their distance from its first.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) cidr: IpNet,
    /// Set when the CIDR was removed while addresses were out: nothing more is given, and the pool goes with the last.
    pub(super) draining: bool,
    len: u32,
    taken: Bitmap,
    quarantine: Bitmap,
    reserved: u32,
    pub(super) used: u32,
    pub(super) quarantined: u32,
    /// Where the next search begins: behind the last address given, so that an address rests as long as possible.
    cursor: u32,
}

impl Pool {
    pub(super) fn new(cidr: IpNet) -> Self {
        let cidr = cidr.trunc();
        let (max, host_bits) = match cidr {
            IpNet::V4(_) => (MAX_V4, 32 - cidr.prefix_len()),
            IpNet::V6(_) => (MAX_V6, 128 - cidr.prefix_len()),
        };
        let all = 1u32.checked_shl(host_bits.into()).unwrap_or(u32::MAX);
        let len = all.min(max);
        let mut pool = Self {
            cidr,
            draining: false,
            len,
            taken: Bitmap::new(len),
            quarantine: Bitmap::new(len),
            reserved: 0,
            used: 0,
            quarantined: 0,
            cursor: 0,
        };
        // Two addresses or one have no such roles: RFC 3021 for IPv4, RFC 6164 for IPv6.
        if host_bits >= 2 {
            pool.reserve(0);
            if cidr.addr().is_ipv4() {
                pool.reserve(all - 1);
            }
        }
        pool
    }

    fn reserve(&mut self, offset: u32) {
        if offset < self.len && self.taken.insert(offset) {
            self.reserved += 1;
        }
    }

    /// How many addresses can be out at the same time.
    pub(super) fn size(&self) -> u32 {
        self.len - self.reserved
    }

    /// How many can be given now.
    pub(super) fn free(&self) -> u32 {
        if self.draining { 0 } else { self.size() - self.used - self.quarantined }
    }

    /// Whether no address is out or in quarantine.
    pub(super) fn is_idle(&self) -> bool {
        self.used == 0 && self.quarantined == 0
    }

    /// Whether the CIDR holds the address, managed or not.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        self.cidr.contains(&addr)
    }

    pub(super) fn take_next(&mut self) -> Option<IpAddr> {
        if self.draining {
            return None;
        }
        let offset = self.taken.next_gap(self.cursor)?;
        self.taken.insert(offset);
        self.used += 1;
        self.cursor = offset + 1;
        Some(self.addr(offset))
    }

    /// What an address is; `None` when it lies beyond the managed range.
    pub(super) fn state(&self, addr: IpAddr) -> Option<State> {
        let offset = self.offset(addr)?;
        Some(match (self.taken.contains(offset), self.quarantine.contains(offset), self.is_reserved(offset)) {
            (false, _, _) => State::Free,
            (true, true, _) => State::Quarantined,
            (true, false, true) => State::Reserved,
            (true, false, false) => State::Used,
        })
    }

    /// Marks a free address as given. Says whether it was free.
    pub(super) fn claim(&mut self, addr: IpAddr) -> bool {
        let claimed = self.offset(addr).is_some_and(|offset| self.taken.insert(offset));
        self.used += u32::from(claimed);
        claimed
    }

    /// Lets the next search begin behind `addr`, if it would begin before it.
    pub(super) fn skip_to(&mut self, addr: IpAddr) {
        if let Some(offset) = self.offset(addr) {
            self.cursor = self.cursor.max(offset + 1);
        }
    }

    /// The addresses that are out or in quarantine, in order.
    pub(super) fn out(&self) -> impl Iterator<Item = (IpAddr, State)> {
        let state = |offset| if self.quarantine.contains(offset) { State::Quarantined } else { State::Used };
        let out = self.taken.iter().filter(|offset| !self.is_reserved(*offset));
        out.map(move |offset| (self.addr(offset), state(offset)))
    }

    /// Puts a given address into quarantine. Says whether it was out.
    pub(super) fn release(&mut self, addr: IpAddr) -> bool {
        if self.state(addr) != Some(State::Used) {
            return false;
        }
        let released = self.offset(addr).is_some_and(|offset| self.quarantine.insert(offset));
        self.used -= u32::from(released);
        self.quarantined += u32::from(released);
        released
    }

    /// Frees an address that is in quarantine. Says whether it was.
    pub(super) fn settle(&mut self, addr: IpAddr) -> bool {
        let settled = self.offset(addr).is_some_and(|n| self.quarantine.remove(n) && self.taken.remove(n));
        self.quarantined -= u32::from(settled);
        settled
    }

    fn is_reserved(&self, offset: u32) -> bool {
        match self.cidr {
            _ if self.reserved == 0 => false,
            IpNet::V4(net) => offset == 0 || self.addr(offset) == IpAddr::V4(net.broadcast()),
            IpNet::V6(_) => offset == 0,
        }
    }

    fn addr(&self, offset: u32) -> IpAddr {
        match self.cidr {
            IpNet::V4(net) => IpAddr::V4((u32::from(net.network()) | offset).into()),
            IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) | u128::from(offset)).into()),
        }
    }

    fn offset(&self, addr: IpAddr) -> Option<u32> {
        let offset = match (self.cidr, addr) {
            (IpNet::V4(net), IpAddr::V4(a)) => u32::from(a).checked_sub(net.network().into())?,
            (IpNet::V6(net), IpAddr::V6(a)) => u32::try_from(u128::from(a).checked_sub(net.network().into())?).ok()?,
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => return None,
        };
        (offset < self.len).then_some(offset)
    }
}
