//! Maps of which each access is one step of a CPU.
//!
//! A run is taken up again by running it from the start with the answers that it has had, and broken off after the next one: so the logic itself
//! runs, in any order, without threads.
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use bytemuck::bytes_of;
use cni_common::{
    drop::{Outcome, Point},
    maps::{
        CtConfig, CtEntry, CtKey4, FragKey4, Fragments, NAT_FIRST_PORT, NAT_PORTS, NatBack4, NatConfig, NatForth4,
        NatKey4,
    },
    shared::Shared,
};

use super::{Entered, NatEnv, Sockets, Translations};
use crate::{
    ct::{CtEnv, Flow, Flows, Promotion, lifetime},
    family::V4,
};

pub const NOW: u64 = 1 << 33;

/// The maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Maps {
    pub back: BTreeMap<Vec<u8>, Vec<u8>>,
    pub forth: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Flows that are not over.
    pub alive: BTreeSet<Vec<u8>>,
    /// What sockets of the node would receive.
    pub sockets: BTreeSet<Vec<u8>>,
    /// What those would that are more than listening.
    pub used: BTreeSet<Vec<u8>>,
    /// Whether the range is so large that second choices do not meet: for three there would be too many orders.
    pub roomy: bool,
}

/// What a step has answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Value(Option<Vec<u8>>),
    Entered(Entered),
    Flag(bool),
}

/// The system, as one CPU sees it: answers from its record, then one of the maps, then no more.
pub struct Cpu<'a> {
    record: &'a [Answer],
    at: Cell<usize>,
    maps: RefCell<&'a mut Maps>,
    news: Cell<Option<Answer>>,
    cfg: CtConfig,
    nat: NatConfig,
    alive: Flow,
    dead: Flow,
}

/// The step is made.
struct Stop;

impl Cpu<'_> {
    fn step(&self, access: impl FnOnce(&mut Maps) -> Answer) -> Answer {
        let at = self.at.get();
        self.at.set(at + 1);
        match self.record.get(at) {
            Some(answer) => answer.clone(),
            None => {
                self.news.set(Some(access(&mut self.maps.borrow_mut())));
                resume_unwind(Box::new(Stop));
            }
        }
    }
    fn value<T: bytemuck::AnyBitPattern>(&self, access: impl FnOnce(&mut Maps) -> Option<Vec<u8>>) -> Option<T> {
        match self.step(|m| Answer::Value(access(m))) {
            Answer::Value(v) => v.map(|v| bytemuck::pod_read_unaligned(&v)),
            other => panic!("{other:?}"),
        }
    }
    fn entered(&self, access: impl FnOnce(&mut Maps) -> Entered) -> Entered {
        match self.step(|m| Answer::Entered(access(m))) {
            Answer::Entered(e) => e,
            other => panic!("{other:?}"),
        }
    }
    pub fn flag(&self, access: impl FnOnce(&mut Maps) -> bool) -> bool {
        match self.step(|m| Answer::Flag(access(m))) {
            Answer::Flag(f) => f,
            other => panic!("{other:?}"),
        }
    }
}

fn enter(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8], value: &[u8]) -> Entered {
    if map.contains_key(key) {
        return Entered::Other;
    }
    map.insert(key.to_vec(), value.to_vec());
    Entered::Done
}

impl CtEnv for Cpu<'_> {
    fn blur(&self, n: u64, _: u64) -> u64 {
        n
    }
    fn ct_config(&self) -> Option<&CtConfig> {
        Some(&self.cfg)
    }
    fn jiffies(&self) -> u64 {
        NOW
    }
    fn note(&self, _: Point, _: Outcome) {}
}
impl NatEnv for Cpu<'_> {
    fn nat_config(&self) -> Option<&NatConfig> {
        Some(&self.nat)
    }
    /// Each step is seen at once.
    fn fence(&self) {}
}
impl Flows<V4> for Cpu<'_> {
    fn flow(&self, key: &CtKey4) -> Option<&Flow> {
        // One that is over stays for a while.
        Some(if self.flag(|m| m.alive.contains(bytes_of(key))) { &self.alive } else { &self.dead })
    }
    fn new_flow(&self, _: &CtKey4) -> Option<&Flow> {
        None
    }
    fn begin(&self, key: &CtKey4, _: &CtEntry) {
        self.flag(|m| m.alive.insert(bytes_of(key).to_vec()));
    }
    fn replace(&self, _: &CtKey4, _: &CtEntry) {
        panic!("conntrack's own");
    }
    fn promote(&self, _: &CtKey4, _: &CtEntry) -> Promotion {
        panic!("conntrack's own");
    }
    fn forget(&self, _: &CtKey4) {
        panic!("conntrack's own");
    }
    fn fragments(&self, _: &FragKey4) -> Option<Fragments> {
        panic!("conntrack's own");
    }
    fn remember(&self, _: &FragKey4, _: &Fragments) {
        panic!("conntrack's own");
    }
    fn held(&self, _: u32) -> u64 {
        panic!("conntrack's own");
    }
    fn hold(&self, _: u32) {
        panic!("conntrack's own");
    }
}
impl Translations<V4> for Cpu<'_> {
    fn back(&self, key: &NatKey4) -> Option<NatBack4> {
        self.value(|m| m.back.get(bytes_of(key)).cloned())
    }
    fn enter(&self, key: &NatKey4, back: &NatBack4) -> Entered {
        self.entered(|m| enter(&mut m.back, bytes_of(key), bytes_of(back)))
    }
    fn exchange(&self, key: &NatKey4, back: &NatBack4) -> bool {
        self.flag(|m| {
            m.back.insert(bytes_of(key).to_vec(), bytes_of(back).to_vec());
            true
        })
    }
    fn release(&self, hold: &NatKey4) {
        self.flag(|m| m.back.remove(bytes_of(hold)).is_some());
    }
    fn forth(&self, flow: &CtKey4) -> Option<NatForth4> {
        self.value(|m| m.forth.get(bytes_of(flow)).cloned())
    }
    fn enter_forth(&self, flow: &CtKey4, forth: &NatForth4) -> Entered {
        self.entered(|m| enter(&mut m.forth, bytes_of(flow), bytes_of(forth)))
    }
    fn replace_forth(&self, flow: &CtKey4, forth: &NatForth4) -> bool {
        self.flag(|m| {
            m.forth.insert(bytes_of(flow).to_vec(), bytes_of(forth).to_vec());
            true
        })
    }
    fn translated(&self, _: u32) -> u64 {
        0
    }
    fn count_translated(&self, _: u32) {}
}
impl Sockets<(), V4> for Cpu<'_> {
    fn has_socket(&self, (): &mut (), key: &NatKey4) -> bool {
        self.flag(|m| m.sockets.contains(bytes_of(key)))
    }
    fn is_used(&self, (): &mut (), key: &NatKey4) -> bool {
        self.flag(|m| m.used.contains(bytes_of(key)))
    }
}

/// Takes a run up again from its record, and one step further: its end, if there was none to be made.
pub fn one_step<R>(record: &mut Vec<Answer>, maps: &mut Maps, run: impl FnOnce(&Cpu<'_>) -> R) -> Option<R> {
    // The pods, of numbers up to 9, come first in the key: 0 says that they opened it.
    let flow = |lifetime| Flow {
        #[cfg(feature = "test-layout")]
        moved: Shared::new(0),
        verdicts: Shared::new(0),
        seen: Shared::new(NOW - 1000),
        lifetime: Shared::new(lifetime),
        charged: Shared::new(0),
        lo_sent: Shared::new(0),
        hi_sent: Shared::new(0),
        pad: Shared::new([0; 6]),
    };
    let cpu = Cpu {
        record,
        at: Cell::new(0),
        nat: NatConfig { first_port: NAT_FIRST_PORT, ports: if maps.roomy { NAT_PORTS } else { 2 } },
        maps: RefCell::new(maps),
        news: Cell::new(None),
        cfg: lifetime::config(1, 250),
        alive: flow(10_000),
        dead: flow(1),
    };
    match catch_unwind(AssertUnwindSafe(|| run(&cpu))) {
        Ok(end) => Some(end),
        Err(stop) if stop.is::<Stop>() => {
            let news = cpu.news.take().expect("a step was made");
            record.push(news);
            None
        }
        Err(panic) => resume_unwind(panic),
    }
}
