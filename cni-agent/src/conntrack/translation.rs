//! A masqueraded flow's translation, as its two entries tell of it, and how one that is over is taken out beside programs that use them.
//!
//! The programs replace an entry only under its hold and only when its flow is over, so with the hold nobody exchanges what is looked at. What the
//! hold does not stop is the flow itself, which may begin again at that very time. So it is done as the programs do it (`cni_ebpf::nat::port`): first the
//! entry becomes the node's own, which nobody takes over, then the flow is looked at once more; one that lives may have left under it, and gets it
//! back. One that begins later finds it taken, and goes elsewhere. It is absent only at the end.
use std::{io, net::IpAddr};

use bytemuck::{Zeroable as _, bytes_of};
use cni_common::{
    maps::{CtConfig, CtEntry},
    net::Be16,
};
use cni_ebpf::{
    ct::{entry::Stage, entry::is_within, key::Asker, lifetime::lifetime},
    family::{V4, V6},
    nat::{
        End, NatFamily, Pair,
        entry::{Holder, holder},
        family::is_same_end,
    },
};

use super::{flow::read, table::Table};

/// What the key of a translation says.
pub struct Outside<F: NatFamily> {
    /// The end outside of the cluster.
    pub world: End<F>,
    /// The node's end.
    pub node: End<F>,
    /// IP protocol.
    pub protocol: u8,
    /// It is no translation: somebody is about to replace the one of this key otherwise.
    pub is_hold: bool,
}

impl<F: NatFamily> Outside<F> {
    /// The flow, if this is the pod's end of it.
    pub fn pair(&self, pod: End<F>) -> Pair<F> {
        // Of an echo the key has no port of the world: both ends of the flow are the identifier.
        let asker = if self.protocol == F::ICMP { Asker::SENDER } else { Asker::NONE };
        Pair { pod, world: self.world, proto: self.protocol.into(), asker }
    }
}

/// A family, as the agent reads its keys.
pub trait Translated: NatFamily {
    /// What the key of a translation says.
    fn outside(key: &Self::Key) -> Outside<Self>;
    /// A masqueraded flow by its key in conntrack: with either end as the pod, as the key does not say which it is.
    fn pairs(key: &Self::CtKey) -> [Pair<Self>; 2];
    /// An address.
    fn ip(address: &Self::Addr) -> IpAddr;
}

macro_rules! translated {
    ($($family:ident)*) => {$(
        impl Translated for $family {
            fn outside(key: &Self::Key) -> Outside<Self> {
                Outside {
                    world: End { addr: key.world, port: key.world_port },
                    node: End { addr: key.node, port: key.node_port },
                    protocol: key.proto,
                    is_hold: key.hold != 0,
                }
            }
            fn pairs(key: &Self::CtKey) -> [Pair<Self>; 2] {
                let (lo, hi) = (End { addr: key.lo, port: key.lo_port }, End { addr: key.hi, port: key.hi_port });
                let asker = if key.asks == 0 { Asker::NONE } else { Asker::SENDER };
                [(lo, hi), (hi, lo)].map(|(pod, world)| Pair { pod, world, proto: key.proto.into(), asker })
            }
            fn ip(address: &Self::Addr) -> IpAddr {
                IpAddr::$family((*address).into())
            }
        }
    )*};
}
translated!(V4 V6);

/// When something is looked at.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// Time in jiffies.
    pub now: u64,
    /// How long flows without packets live.
    pub lifetimes: &'a CtConfig,
}

/// The tables of a family.
#[derive(Clone, Copy)]
pub struct Tables<T> {
    /// Flows that both ends have spoken in.
    pub flows: T,
    /// Those that wait for the other end.
    pub new: T,
    /// The pod's end, by what the world writes.
    pub back: T,
    /// The node's end, by flow.
    pub forth: T,
    /// How many translations each endpoint has.
    pub accounts: T,
}

impl<T: Table> Tables<T> {
    /// A flow, wherever it is: it may move from one table to the other between two look-ups.
    ///
    /// # Errors
    /// What the kernel says, here and below.
    pub fn flow<F: Translated>(&self, key: &F::CtKey) -> io::Result<Option<CtEntry>> {
        for table in [&self.flows, &self.new, &self.flows] {
            if let Some(entry) = table.lookup(bytes_of(key))?.as_deref().and_then(read) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether a flow may still be used: as the programs do, one that ends in this second is let live, as a packet may just renew it.
    pub fn lives<F: Translated>(&self, key: &F::CtKey, at: Moment<'_>) -> io::Result<bool> {
        Ok(self.flow::<F>(key)?.is_some_and(|entry| is_living(&entry, at)))
    }

    /// Whether nobody needs an entry any more.
    pub fn is_over<F: Translated>(&self, key: &F::Key, back: &F::Back, at: Moment<'_>) -> io::Result<bool> {
        let outside = F::outside(key);
        Ok(match holder::<F>(back) {
            Holder::Node(made) => {
                // For as long as the programs keep it for the node (`entry::lives`).
                let rest = outside.pair(outside.node).rest();
                !is_within(at.now, made, lifetime(at.lifetimes, rest, Stage::Handshake, |n| n))
            }
            Holder::Pod(pod) => !self.lives::<F>(&outside.pair(pod).flow().0, at)?,
        })
    }

    /// The node's end of a pod's flow, if both halves of its translation say so.
    pub fn node_end<F: Translated>(&self, pair: &Pair<F>) -> io::Result<Option<End<F>>> {
        let (flow, _) = pair.flow();
        let Some(node) = self.forth::<F>(&flow)?.map(|f| F::node_end(&f)) else { return Ok(None) };
        Ok(self.is_of::<F>(&pair.key(&node), &pair.pod)?.then_some(node))
    }

    /// Takes an entry out if `goes` says so when nobody else can change it, and with it the other half, if that belongs to it; whether it is gone. One that
    /// is just being replaced is left alone.
    pub fn take_out<F: Translated>(
        &self,
        key: &F::Key,
        now: u64,
        goes: &mut dyn FnMut(&F::Back) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let hold = F::hold(key);
        let held = match self.back.enter(bytes_of(&hold), bytes_of(&F::back(&nobody::<F>(), now))) {
            Ok(true) => true,
            Ok(false) => return Ok(false),
            // There is no room for a hold: nobody else has one on this key, nor gets one while that is so.
            Err(e) if is_full(&e) => false,
            Err(e) => return Err(e),
        };
        let taken = self.take_out_held::<F>(key, now, goes);
        if held {
            self.back.delete(bytes_of(&hold))?;
        }
        taken
    }

    fn take_out_held<F: Translated>(
        &self,
        key: &F::Key,
        now: u64,
        goes: &mut dyn FnMut(&F::Back) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let Some(there) = self.back::<F>(key)? else { return Ok(false) };
        if !goes(&there)? {
            return Ok(false);
        }
        if let Holder::Pod(pod) = holder::<F>(&there) {
            self.back.update(bytes_of(key), bytes_of(&F::back(&nobody::<F>(), now)))?;
            if !goes(&there)? {
                self.back.update(bytes_of(key), bytes_of(&there))?;
                return Ok(false);
            }
            let outside = F::outside(key);
            let (flow, _) = outside.pair(pod).flow();
            if self.forth::<F>(&flow)?.is_some_and(|f| is_same_end(&F::node_end(&f), &outside.node)) {
                self.forth.delete(bytes_of(&flow))?;
                // If it has begun since, what was deleted may have been of another end. It comes back to that as long as this one is taken.
                if !goes(&there)? {
                    return Ok(false);
                }
            }
        }
        self.back.delete(bytes_of(key))?;
        Ok(true)
    }

    /// Takes out what is said of a flow, and with it the other half, under its hold; whether that is gone.
    pub fn take_out_flow<F: Translated>(
        &self,
        key: &F::CtKey,
        forth: &F::Forth,
        now: u64,
        goes: &mut dyn FnMut() -> io::Result<bool>,
    ) -> io::Result<bool> {
        for pair in F::pairs(key) {
            let (flow, _) = pair.flow();
            let back = pair.key(&F::node_end(forth));
            if bytes_of(&flow) == bytes_of(key) && self.is_of::<F>(&back, &pair.pod)? {
                return self.take_out::<F>(
                    &back,
                    now,
                    &mut |b| Ok(is_same_end(&F::pod_end(b).0, &pair.pod) && goes()?),
                );
            }
        }
        if !goes()? {
            return Ok(false);
        }
        self.forth.delete(bytes_of(key))?;
        if goes()? {
            return Ok(true);
        }
        // Unless it has made it anew meanwhile, or somebody has taken the room: then its next packet does.
        match self.forth.enter(bytes_of(key), bytes_of(forth)) {
            Err(e) if !is_full(&e) => Err(e),
            _ => Ok(false),
        }
    }

    /// The entry under a key.
    pub fn back<F: Translated>(&self, key: &F::Key) -> io::Result<Option<F::Back>> {
        Ok(self.back.lookup(bytes_of(key))?.as_deref().and_then(read))
    }

    fn forth<F: Translated>(&self, flow: &F::CtKey) -> io::Result<Option<F::Forth>> {
        Ok(self.forth.lookup(bytes_of(flow))?.as_deref().and_then(read))
    }

    fn is_of<F: Translated>(&self, key: &F::Key, pod: &End<F>) -> io::Result<bool> {
        Ok(self.back::<F>(key)?.is_some_and(|b| is_same_end(&F::pod_end(&b).0, pod)))
    }
}

/// Whether a flow may still be used.
pub fn is_living(entry: &CtEntry, at: Moment<'_>) -> bool {
    is_within(at.now, entry.seen, entry.lifetime.saturating_add(at.lifetimes.second))
}

fn nobody<F: NatFamily>() -> End<F> {
    End { addr: F::Addr::zeroed(), port: Be16::ZERO }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}
