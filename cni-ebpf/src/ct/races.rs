//! Two CPUs with packets of one flow: every order of their loads and stores.
//!
//! Each packet is what it is in the program: a look-up, [`View::load`] in its order of fields, a decision, [`View::store`] in its order or an entry
//! in the place of the old one, which whoever holds that does not see.
use std::collections::BTreeSet;

use super::{
    entry::{Field, Place, Stage, View, is_judged, stage, verdicts},
    key::{Asker, Rest},
    lifetime,
    signal::{ANSWER, DATA, END, OPEN, RESET},
};
use cni_common::{maps::CT_HI_OPENED, net::Ports, wire::TCP};

const NOW: u64 = 1 << 33;
const NEEDED: u64 = 3 << 32;
const REST: Rest = Rest { ports: Ports::NONE, proto: TCP as u32, asker: Asker::NONE };

/// An entry in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Memory {
    verdicts: u64,
    seen: u64,
    lifetime: u64,
    lo: u64,
    hi: u64,
}

impl Memory {
    fn place(&mut self, field: Field, from_hi: bool) -> &mut u64 {
        match (field, from_hi) {
            (Field::Verdicts, _) => &mut self.verdicts,
            (Field::Seen, _) => &mut self.seen,
            (Field::Lifetime, _) => &mut self.lifetime,
            (Field::Own, false) | (Field::Other, true) => &mut self.lo,
            (Field::Own, true) | (Field::Other, false) => &mut self.hi,
        }
    }
    fn stage(&self) -> Stage {
        stage(self.lo as u32, self.hi as u32)
    }
    fn is_alive(&self, now: u64) -> bool {
        now - self.seen < self.lifetime
    }
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    from_hi: bool,
    said: u32,
    epoch: u32,
    now: u64,
}

impl Packet {
    /// As `track::turn` decides.
    fn decide(&self, before: &View) -> Change {
        let cfg = lifetime::config(self.epoch, 250);
        match before.place(self.said, self.from_hi, self.now) {
            Place::Aside => Change::Store(*before),
            Place::First => {
                let word = verdicts(self.epoch, NEEDED, self.from_hi);
                Change::Replace(View::first(&cfg, REST, self.said, self.now, word, |n| n))
            }
            Place::Within => {
                let after = before.after(&cfg, REST, self.said, self.now, |n| n);
                let judged = is_judged(before.verdicts, self.epoch, NEEDED);
                let opened = before.verdicts & CT_HI_OPENED != 0;
                let verdicts = if judged { before.verdicts } else { verdicts(self.epoch, NEEDED, opened) };
                Change::Store(View { verdicts, ..after })
            }
        }
    }
}

/// Entries: those that were replaced may still be held; the last is what a look-up finds.
#[derive(Clone, Debug)]
struct Table {
    entries: Vec<Memory>,
}
impl Table {
    fn of(m: Memory) -> Self {
        Self { entries: vec![m] }
    }
    fn current(&self) -> Memory {
        *self.entries.last().expect("never empty")
    }
}

/// What a packet does when it has seen the entry.
enum Change {
    Store(View),
    Replace(View),
}

/// One packet under way.
#[derive(Clone, Debug)]
struct Run {
    packet: Packet,
    /// What the look-up has found.
    held: Option<usize>,
    to_load: Vec<Field>,
    loaded: Vec<u64>,
    to_store: Option<Vec<(Field, u64)>>,
    to_insert: Option<Memory>,
}

impl Run {
    fn new(packet: Packet) -> Self {
        let mut to_load = Vec::new();
        View::load(|field| {
            to_load.push(field);
            0
        });
        to_load.reverse();
        Self { packet, held: None, to_load, loaded: Vec::new(), to_store: None, to_insert: None }
    }

    fn is_done(&self) -> bool {
        self.to_store.as_ref().is_some_and(Vec::is_empty) && self.to_insert.is_none()
    }

    /// One look-up, load, store or replacement.
    fn step(&mut self, t: &mut Table) {
        let Some(held) = self.held else {
            self.held = Some(t.entries.len() - 1);
            return;
        };
        let from_hi = self.packet.from_hi;
        if let Some(field) = self.to_load.pop() {
            self.loaded.push(*t.entries[held].place(field, from_hi));
        } else if let Some((field, value)) = self.to_store.as_mut().and_then(Vec::pop) {
            *t.entries[held].place(field, from_hi) = value;
        } else if let Some(new) = self.to_insert.take() {
            t.entries.push(new);
        }
        if self.to_load.is_empty() && self.to_store.is_none() {
            let mut values = self.loaded.iter();
            let before = View::load(|_| *values.next().expect("each was loaded"));
            let mut stores = Vec::new();
            match self.packet.decide(&before) {
                Change::Store(after) => after.store(&before, |field, value| stores.push((field, value))),
                Change::Replace(v) => {
                    let (lo, hi) = if from_hi { (v.other, v.own) } else { (v.own, v.other) };
                    let (lo, hi, lifetime) = (lo.into(), hi.into(), v.lifetime.into());
                    self.to_insert = Some(Memory { verdicts: v.verdicts, seen: v.seen, lifetime, lo, hi });
                }
            }
            stores.reverse();
            self.to_store = Some(stores);
        }
    }

    /// Alone.
    fn whole(packet: Packet, m: &mut Memory) {
        let (mut run, mut t) = (Self::new(packet), Table::of(*m));
        while !run.is_done() {
            run.step(&mut t);
        }
        *m = t.current();
    }
}

/// All entries that some order leaves.
fn every_order(t: Table, a: Run, b: Run, ends: &mut BTreeSet<Memory>, orders: &mut u64) {
    if a.is_done() && b.is_done() {
        ends.insert(t.current());
        *orders += 1;
        return;
    }
    for first in [true, false] {
        let (mut t, mut a, mut b) = (t.clone(), a.clone(), b.clone());
        let run = if first { &mut a } else { &mut b };
        if !run.is_done() {
            run.step(&mut t);
            every_order(t, a, b, ends, orders);
        }
    }
}

fn race(m: Memory, a: Packet, b: Packet) -> BTreeSet<Memory> {
    let (mut ends, mut orders) = (BTreeSet::new(), 0);
    every_order(Table::of(m), Run::new(a), Run::new(b), &mut ends, &mut orders);
    // A look-up and five loads each, at least: 12 over 6.
    assert!(orders >= 924, "{orders}");
    ends
}

/// `lo` opened it, an epoch ago, half a second before.
fn flow(lo: u32, hi: u32) -> Memory {
    let cfg = lifetime::config(1, 250);
    Memory {
        verdicts: verdicts(1, NEEDED, false),
        seen: NOW - 125,
        lifetime: lifetime::lifetime(&cfg, REST, stage(lo, hi), |n| n).into(),
        lo: lo.into(),
        hi: hi.into(),
    }
}
fn packet(from_hi: bool, said: u32) -> Packet {
    Packet { from_hi, said, epoch: 1, now: NOW }
}
const TALKING: (u32, u32) = (OPEN | DATA, ANSWER | DATA);

#[test]
fn packets_of_an_established_flow_leave_it_as_it_is_whatever_their_order() {
    for (a, b) in [(ANSWER, DATA), (DATA, DATA), (OPEN, DATA), (DATA, OPEN), (OPEN, OPEN), (ANSWER, ANSWER)] {
        for epoch in [1, 2] {
            let (p, q) = (Packet { epoch, ..packet(false, a) }, Packet { epoch, now: NOW + 400, ..packet(true, b) });
            for m in race(flow(TALKING.0, TALKING.1), p, q) {
                assert_eq!(m.stage(), Stage::Established);
                assert!(m.is_alive(NOW + 7000 * 250));
                assert!([1, 2].map(|e| verdicts(e, NEEDED, false)).contains(&m.verdicts), "{m:x?}");
            }
        }
    }
}

#[test]
fn both_ends_close_at_once_and_no_end_is_lost() {
    for m in race(flow(TALKING.0, TALKING.1), packet(false, END | DATA), packet(true, END | DATA)) {
        assert_eq!(m.stage(), Stage::Closed);
        // One may have decided by a view without the other's: the next packet of either shortens its life.
        for from_hi in [false, true] {
            let mut m = m;
            Run::whole(packet(from_hi, DATA), &mut m);
            assert_eq!(m.lifetime, u64::from(lifetime::CLOSED) * 250);
        }
    }
}

#[test]
fn what_a_race_of_one_ends_packets_loses_its_next_packet_says_again() {
    // The last ACK of the handshake and the first data, on two CPUs.
    for (a, b) in [(DATA, DATA), (DATA, END | DATA), (OPEN, DATA), (RESET, DATA)] {
        for m in race(flow(OPEN, ANSWER), packet(false, a), packet(false, b)) {
            let mut m = m;
            Run::whole(packet(false, DATA), &mut m);
            assert_ne!(m.lo & u64::from(DATA), 0);
            Run::whole(packet(false, b), &mut m);
            let mut serial = flow(OPEN, ANSWER);
            for said in [a, b, DATA, b] {
                Run::whole(packet(false, said), &mut serial);
            }
            assert_eq!(m.lo & !u64::from(RESET), serial.lo & !u64::from(RESET), "{m:?}");
        }
    }
}

#[test]
fn an_older_verdict_never_passes_for_a_newer_one() {
    // One CPU has read the epoch before it was raised, the other one after.
    let old = packet(false, DATA);
    let new = Packet { epoch: 2, ..packet(true, DATA) };
    for m in race(Memory { verdicts: 0, ..flow(TALKING.0, TALKING.1) }, old, new) {
        // Whichever is left says by which it was judged: the older one is judged again.
        assert!([verdicts(1, NEEDED, false), verdicts(2, NEEDED, false)].contains(&m.verdicts), "{m:x?}");
        let mut m = m;
        Run::whole(Packet { epoch: 2, ..packet(false, DATA) }, &mut m);
        assert_eq!(m.verdicts, verdicts(2, NEEDED, false));
    }
}

#[test]
fn two_flows_that_begin_in_one_entry_end_in_one_that_was_judged_for_its_opener() {
    let closed = flow(TALKING.0 | END, TALKING.1 | END);
    let over = Memory { seen: NOW - (1 << 30), ..flow(TALKING.0, TALKING.1) };
    for before in [closed, over] {
        // A SYN from each end; a SYN, and a late packet of the flow before.
        for (a, b) in [(OPEN, OPEN), (OPEN, DATA), (OPEN, END | DATA), (OPEN, RESET), (OPEN, ANSWER)] {
            let (p, q) = (packet(true, a), packet(false, b));
            for m in race(before, p, q) {
                let judged = [verdicts(1, NEEDED, false), verdicts(1, NEEDED, true)];
                assert!(judged.contains(&m.verdicts), "{m:x?}");
                // The flow of the SYN goes on, whatever the race has left: it is sent again, answered, acknowledged.
                let mut m = m;
                for (from_hi, said) in [(true, OPEN), (false, ANSWER), (true, DATA), (false, DATA)] {
                    Run::whole(packet(from_hi, said), &mut m);
                }
                assert_eq!(m.stage(), Stage::Established, "{before:?}: {p:?} and {q:?} leave {m:?}");
                assert!(m.is_alive(NOW + 7000 * 250), "{m:?}");
            }
        }
    }
}
