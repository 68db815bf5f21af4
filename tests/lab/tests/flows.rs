//! The flows that conntrack knows, as the agent reaches them. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::collections::BTreeMap;

use cni_agent::datapath::{Clock, RawMap, features::Features, walk::Walk};
use cni_common::schema::{self, MapSpec};
use lab::pair::until;

#[test]
fn the_programs_clock_goes_on_and_is_that_of_the_entries() {
    let clock = Clock::load().expect("a program");
    let first = clock.now().unwrap();
    // It is in 64 bits: the kernel begins a little before the 32nd one is full, so that who forgets it is found out.
    assert!(first > 1 << 32 || first > u64::from(u32::MAX) - 100_000_000, "{first}");
    until("it moves", || clock.now().unwrap() > first).unwrap();
}

#[test]
fn a_walk_sees_every_entry_once_however_large_its_lots_and_the_tables_buckets_are() {
    const ENTRIES: u32 = 1000;
    // As many buckets as entries: some have several.
    let map =
        RawMap::create(MapSpec { name: "walked", max_entries: ENTRIES.next_power_of_two(), ..schema::CT4 }).unwrap();
    let key = |n: u32| [n; 4].map(u32::to_ne_bytes).concat();
    for n in 0..ENTRIES {
        map.update(&key(n), &vec![n as u8; map.spec().value_size as usize]).unwrap();
    }
    let by_lots = Features::try_all(&[]).has("batch-hash");
    for (most, by_lots) in [(1, by_lots), (7, by_lots), (4096, by_lots), (7, false)] {
        let (mut walk, mut seen, mut calls) = (Walk::in_lots_of(most, by_lots), BTreeMap::new(), 1);
        let mut each = |key: &[u8], value: &[u8]| {
            let before = seen.insert(key.to_vec(), value[0]);
            assert_eq!(before, None, "{key:?} was seen before");
        };
        while map.lot(&mut walk, &mut each).unwrap() {
            calls += 1;
        }
        let all = (0..ENTRIES).map(|n| (key(n), n as u8));
        assert!(seen == all.collect(), "lots of {most}: {} entries", seen.len());
        assert!(calls >= ENTRIES / most.max(16) || most > ENTRIES, "{calls} lots of {most}");
        assert!(!map.lot(&mut walk, &mut |_, _| panic!("it is at its end")).unwrap());
    }
}
