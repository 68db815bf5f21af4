//! A flow, as its entry in a table tells of it.
use std::net::IpAddr;

use bytemuck::{Pod, try_pod_read_unaligned};
use cni_common::{
    maps::{CT_HI_OPENED, CtEntry, CtKey4, CtKey6},
    net::Be16,
};
use cni_ebpf::ct::entry::{Stage, is_within, stage};
use serde::{Deserialize, Serialize};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// One end has spoken.
    Unanswered,
    /// Both have, and no more than SYN and SYN-ACK, or INIT and INIT ACK.
    Handshake,
    /// Both ends speak.
    Established,
    /// One end will send no more.
    Closing,
    /// Both will not, or one has reset it.
    Closed,
}

impl State {
    /// All of them, in the order in which a flow goes through them.
    pub const ALL: [Self; 5] = [Self::Unanswered, Self::Handshake, Self::Established, Self::Closing, Self::Closed];

    /// Of an entry.
    pub fn of(entry: &CtEntry) -> Self {
        match stage(entry.lo_sent.into(), entry.hi_sent.into()) {
            Stage::Closed => Self::Closed,
            Stage::Closing => Self::Closing,
            _ if entry.lo_sent == 0 || entry.hi_sent == 0 => Self::Unanswered,
            Stage::Handshake => Self::Handshake,
            Stage::Established => Self::Established,
        }
    }

    /// Of the word that [`name`](Self::name) gives.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The word that people read and write.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Handshake => "handshake",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// What a key says: the two ends in its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The end that comes first.
    pub lo: (IpAddr, u16),
    /// The other one.
    pub hi: (IpAddr, u16),
    /// IP protocol.
    pub protocol: u8,
}

impl Ends {
    /// From a key of either family; none if it is of neither one's size.
    pub fn read(key: &[u8]) -> Option<Self> {
        const BYTES4: usize = size_of::<CtKey4>();
        const BYTES6: usize = size_of::<CtKey6>();
        let port = Be16::to_host;
        match key.len() {
            BYTES4 => read::<CtKey4>(key).map(|k| Self {
                lo: (IpAddr::V4(k.lo.into()), port(k.lo_port)),
                hi: (IpAddr::V4(k.hi.into()), port(k.hi_port)),
                protocol: k.proto,
            }),
            BYTES6 => read::<CtKey6>(key).map(|k| Self {
                lo: (IpAddr::V6(k.lo.into()), port(k.lo_port)),
                hi: (IpAddr::V6(k.hi.into()), port(k.hi_port)),
                protocol: k.proto,
            }),
            _ => None,
        }
    }

    /// Whether an address is one of the ends'.
    pub fn has(&self, address: IpAddr) -> bool {
        self.lo.0 == address || self.hi.0 == address
    }
}

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its ends.
    pub ends: Ends,
    /// Whether the end that comes last has opened it.
    pub hi_opened: bool,
    /// How far it has come.
    pub state: State,
    /// Jiffies until it is over; 0 when it is.
    pub left: u64,
    /// The policy epoch in which it was judged last.
    pub epoch: u32,
}

impl Flow {
    /// From an entry, at a time in jiffies.
    pub fn of(key: &[u8], entry: &CtEntry, now: u64) -> Option<Self> {
        let ends = Ends::read(key)?;
        let over = entry.seen.wrapping_add(entry.lifetime.into());
        let left = if is_within(now, entry.seen, entry.lifetime) { over.wrapping_sub(now) } else { 0 };
        // The lower half of the word.
        let epoch = entry.verdicts as u32;
        Some(Self { ends, hi_opened: entry.verdicts & CT_HI_OPENED != 0, state: State::of(entry), left, epoch })
    }

    /// Who opened it, and the other end.
    pub fn opener_first(&self) -> [(IpAddr, u16); 2] {
        let Ends { lo, hi, .. } = self.ends;
        if self.hi_opened { [hi, lo] } else { [lo, hi] }
    }
}

/// A value of a map, whatever the alignment of its bytes.
pub(super) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    try_pod_read_unaligned(bytes).ok()
}
