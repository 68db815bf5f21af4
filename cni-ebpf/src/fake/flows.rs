//! Conntrack's tables. Entries lie in chunks that never move, so that one may be held while others come and go, as in the kernel.
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
};

use bytemuck::{Pod, bytes_of};
use cni_common::{
    drop::{Outcome, Point},
    maps::{CtConfig, CtEntry, Fragments},
    schema::{MAX_FLOWS, MAX_NEW_FLOWS},
    shared::Shared,
};

use super::Fake;
use crate::{
    Packet, Res,
    ct::{self, Ask, CtEnv, EndSets, Flow, Flows, Granted, Promotion, Track, Tracked},
    family::{Family, V4, V6},
    nat::NatFamily,
    policy::{self, Identities, Question},
};

const CHUNK: usize = 64;

/// A hash map of flows; with `forgets`, one that makes room by forgetting the least recently used.
#[derive(Clone, Debug)]
pub struct FlowTable {
    /// Key → slot, and when it was last used.
    keys: RefCell<BTreeMap<Vec<u8>, (usize, u64)>>,
    chunks: Vec<OnceCell<Vec<Flow>>>,
    free: RefCell<Vec<usize>>,
    uses: Cell<u64>,
    forgets: bool,
    /// Entries.
    pub room: usize,
}

impl FlowTable {
    fn new(room: u32, forgets: bool) -> Self {
        Self {
            keys: RefCell::default(),
            chunks: vec![OnceCell::new(); (room as usize).div_ceil(CHUNK)],
            free: RefCell::default(),
            uses: Cell::new(0),
            forgets,
            room: room as usize,
        }
    }

    fn slot(&self, slot: usize) -> Option<&Flow> {
        let chunk = self.chunks.get(slot / CHUNK)?.get_or_init(|| vec![flow(&bytemuck::Zeroable::zeroed()); CHUNK]);
        chunk.get(slot % CHUNK)
    }

    fn tick(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    fn get(&self, key: &[u8]) -> Option<&Flow> {
        let tick = self.tick();
        let slot = self.keys.borrow_mut().get_mut(key).map(|(slot, used)| {
            *used = tick;
            *slot
        })?;
        self.slot(slot)
    }

    /// Enters it in the place of what is there; `Full` without room.
    pub fn replace(&self, key: &[u8], entry: &CtEntry) -> Promotion {
        self.remove(key);
        self.insert(key, entry)
    }

    /// Enters it unless it is there; `Full` without room.
    pub fn insert(&self, key: &[u8], entry: &CtEntry) -> Promotion {
        let tick = self.tick();
        let mut keys = self.keys.borrow_mut();
        if keys.contains_key(key) {
            return Promotion::Other;
        }
        if keys.len() >= self.room {
            let oldest = keys.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| k.clone());
            match oldest.filter(|_| self.forgets).and_then(|k| keys.remove(&k)) {
                Some((slot, _)) => self.free.borrow_mut().push(slot),
                None => return Promotion::Full,
            }
        }
        let slot = self.free.borrow_mut().pop().unwrap_or(keys.len());
        let Some(there) = self.slot(slot) else { return Promotion::Full };
        there.verdicts.set(entry.verdicts);
        there.seen.set(entry.seen);
        there.lifetime.set(entry.lifetime);
        there.charged.set(entry.charged);
        there.lo_sent.set(entry.lo_sent);
        there.hi_sent.set(entry.hi_sent);
        keys.insert(key.to_vec(), (slot, tick));
        Promotion::Done
    }

    /// Takes it out.
    pub fn remove(&self, key: &[u8]) {
        if let Some((slot, _)) = self.keys.borrow_mut().remove(key) {
            self.free.borrow_mut().push(slot);
        }
    }

    /// All entries, by the bytes of their keys.
    pub fn dump(&self) -> BTreeMap<Vec<u8>, CtEntry> {
        let keys = self.keys.borrow();
        keys.iter().filter_map(|(k, (slot, _))| Some((k.clone(), entry(self.slot(*slot)?)))).collect()
    }
}

fn flow(e: &CtEntry) -> Flow {
    Flow {
        #[cfg(feature = "test-layout")]
        moved: Shared::new(0),
        verdicts: Shared::new(e.verdicts),
        seen: Shared::new(e.seen),
        lifetime: Shared::new(e.lifetime),
        charged: Shared::new(e.charged),
        lo_sent: Shared::new(e.lo_sent),
        hi_sent: Shared::new(e.hi_sent),
        pad: Shared::new([0; 6]),
    }
}

fn entry(f: &Flow) -> CtEntry {
    CtEntry {
        verdicts: f.verdicts.get(),
        seen: f.seen.get(),
        lifetime: f.lifetime.get(),
        charged: f.charged.get(),
        lo_sent: f.lo_sent.get(),
        hi_sent: f.hi_sent.get(),
        ..bytemuck::Zeroable::zeroed()
    }
}

/// The tables of one family.
#[derive(Clone, Debug)]
pub struct FlowTables {
    /// Flows that both ends have spoken in.
    pub flows: FlowTable,
    /// Those that wait for the other end.
    pub new: FlowTable,
    /// Flows by the endpoint on whose account they are.
    pub held: RefCell<BTreeMap<u32, u64>>,
    /// What first fragments have said.
    pub fragments: RefCell<BTreeMap<Vec<u8>, Fragments>>,
}
impl Default for FlowTables {
    fn default() -> Self {
        Self {
            flows: FlowTable::new(MAX_FLOWS, false),
            new: FlowTable::new(MAX_NEW_FLOWS, true),
            held: RefCell::default(),
            fragments: RefCell::default(),
        }
    }
}

impl CtEnv for Fake {
    fn ct_config(&self) -> Option<&CtConfig> {
        Some(&self.ct_config)
    }
    fn jiffies(&self) -> u64 {
        self.now.get()
    }
    fn blur(&self, n: u64, _: u64) -> u64 {
        n
    }
    fn note(&self, point: Point, what: Outcome) {
        self.notes.borrow_mut().push((point, what));
    }
}

macro_rules! flows {
    ($family:ty, $tables:ident) => {
        impl Flows<$family> for Fake {
            fn flow(&self, key: &<$family as Family>::CtKey) -> Option<&Flow> {
                self.$tables.flows.get(bytes(key))
            }
            fn new_flow(&self, key: &<$family as Family>::CtKey) -> Option<&Flow> {
                self.$tables.new.get(bytes(key))
            }
            fn begin(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) {
                self.$tables.new.replace(bytes(key), entry);
            }
            fn replace(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) {
                self.$tables.flows.replace(bytes(key), entry);
            }
            fn promote(&self, key: &<$family as Family>::CtKey, entry: &CtEntry) -> Promotion {
                self.$tables.flows.insert(bytes(key), entry)
            }
            fn forget(&self, key: &<$family as Family>::CtKey) {
                self.$tables.new.remove(bytes(key));
            }
            fn fragments(&self, key: &<$family as Family>::FragKey) -> Option<Fragments> {
                self.$tables.fragments.borrow().get(bytes(key)).copied()
            }
            fn remember(&self, key: &<$family as Family>::FragKey, said: &Fragments) {
                self.$tables.fragments.borrow_mut().insert(bytes(key).to_vec(), *said);
            }
            fn held(&self, endpoint: u32) -> u64 {
                self.$tables.held.borrow().get(&endpoint).copied().unwrap_or(0)
            }
            fn hold(&self, endpoint: u32) {
                *self.$tables.held.borrow_mut().entry(endpoint).or_default() += 1;
            }
        }
    };
}
fn bytes<K: Pod>(key: &K) -> &[u8] {
    bytes_of(key)
}
flows!(V4, ct4);
flows!(V6, ct6);

impl<P: Packet, F: NatFamily> Track<P, F> for Fake
where
    Self: Flows<F> + Identities<F>,
{
    fn track(&self, p: &mut P, ask: Ask, granted: Granted) -> Res<Tracked> {
        ct::track::<F, _, _>(p, self, ask, granted)
    }
    fn hear(&self, p: &mut P, ask: Ask) -> u64 {
        ct::fragment::heard::<F, _, _>(p, self, &ask)
    }
    fn about(&self, p: &mut P, ask: Ask) -> Question {
        policy::about::<F, _, _>(p, self, &ask)
    }
    fn judge(&self, p: &mut P, ask: Ask, question: Question, sender: EndSets, receiver: EndSets) -> Res<u32> {
        let judged = policy::judge::<F, _, _>(p, self, ask, question, sender, receiver);
        self.report(p, &ask, judged);
        judged.result()
    }
}
