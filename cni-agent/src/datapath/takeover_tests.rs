use std::{cell::RefCell, collections::BTreeMap};

use bytemuck::{Pod, Zeroable, bytes_of};
use cni_common::{
    drop::Count,
    maps::{CT_SENT_DATA, CT_SENT_END, CT_SENT_OPEN, CtKey4, NatBack4},
    schema::Field,
};

use super::*;
use crate::datapath::layout;

/// A map without a kernel.
#[derive(Default)]
struct Fake {
    entries: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    room: Option<usize>,
    /// What a program enters right after the first look at its key.
    meanwhile: RefCell<Option<(Vec<u8>, Vec<u8>)>>,
}

impl Fake {
    fn of(entries: &[(u8, Vec<u8>)]) -> Self {
        let fake = Self::default();
        entries.iter().for_each(|(k, v)| fake.put(*k, v.clone()));
        fake
    }
    fn put(&self, k: u8, value: Vec<u8>) {
        self.entries.borrow_mut().insert(key(k), value);
    }
    fn get(&self, k: u8) -> Option<Vec<u8>> {
        self.entries.borrow().get(&key(k)).cloned()
    }
}

impl Entries for Fake {
    fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        Ok(self.entries.borrow().keys().cloned().collect())
    }
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let found = self.entries.borrow().get(key).cloned();
        if let Some((key, value)) = self.meanwhile.borrow_mut().take_if(|(k, _)| k == key) {
            self.entries.borrow_mut().insert(key, value);
        }
        Ok(found)
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut entries = self.entries.borrow_mut();
        if self.room.is_some_and(|room| entries.len() >= room && !entries.contains_key(key)) {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        entries.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
    fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        if self.entries.borrow().contains_key(key) {
            return Ok(false);
        }
        self.update(key, value).map(|()| true)
    }
    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.entries.borrow_mut().remove(key);
        Ok(())
    }
}

fn key(n: u8) -> Vec<u8> {
    bytes_of(&CtKey4 { proto: n, ..CtKey4::zeroed() }).to_vec()
}

/// The layout of a build in which all fields stand eight bytes further on.
fn moved(spec: &MapSpec) -> MapSpec {
    let head: Field = ("only_there", 0, 8);
    let rest = spec.fields.iter().map(|(name, offset, size)| (*name, offset + 8, *size));
    let fields: &'static [Field] = Vec::leak(std::iter::once(head).chain(rest).collect());
    MapSpec { value_size: spec.value_size + 8, fields, fingerprint: schema::fingerprint(fields), ..*spec }
}

fn plan(from: &MapSpec, to: &MapSpec) -> Plan {
    Plan::new(&layout::read(&layout::record(from)).expect("a record"), to).expect("a plan")
}

/// A value as this build has it.
fn here<V: Pod>(value: V) -> Vec<u8> {
    bytes_of(&value).to_vec()
}

/// The same as the other one does.
fn there<V: Pod>(value: V) -> Vec<u8> {
    [&[0xee; 8], bytes_of(&value)].concat()
}

const NOW: u64 = 1_000_000;

fn flow(seen: u64, lo_sent: u8, hi_sent: u8) -> CtEntry {
    CtEntry { verdicts: 7 << 32 | 9, seen, lifetime: 500, charged: 11, lo_sent, hi_sent, ..CtEntry::zeroed() }
}

fn translation(made: u64, port: u16) -> NatBack4 {
    NatBack4 { made, pod_port: cni_common::net::Be16::from_host(port), ..NatBack4::zeroed() }
}

/// Does it between maps of a kind.
fn carried<R>(spec: &MapSpec, from: &Fake, to: &Fake, work: impl FnOnce(&Carriage<'_, Fake>) -> R) -> R {
    let plan = plan(&moved(spec), spec);
    work(&Carriage { from, to, spec, plan: &plan })
}

fn copies(spec: &MapSpec, from: &Fake, to: &Fake) -> Done {
    carried(spec, from, to, |c| copy(c).expect("no kernel"))
}

fn meets(spec: &MapSpec, from: &Fake, to: &Fake, both: Both) -> Done {
    carried(spec, from, to, |c| meet(c, both, &|| false).expect("no kernel"))
}

#[test]
fn each_look_makes_the_copy_what_the_other_map_is_by_then() {
    let (from, to) = (Fake::of(&[1, 2, 3].map(|n| (n, there(flow(NOW, n, 1))))), Fake::default());
    assert_eq!(copies(&schema::CT4, &from, &to), Done { seen: 3, changed: 3, left: 0 });
    assert_eq!(copies(&schema::CT4, &from, &to), Done { seen: 3, changed: 0, left: 0 });
    from.put(1, there(flow(NOW + 250, 7, 1)));
    from.put(4, there(flow(NOW + 250, 4, 1)));
    from.delete(&key(2)).unwrap();
    assert_eq!(copies(&schema::CT4, &from, &to), Done { seen: 3, changed: 3, left: 0 });
    assert_eq!(
        [1, 2, 3, 4].map(|n| to.get(n)),
        [Some(here(flow(NOW + 250, 7, 1))), None, Some(here(flow(NOW, 3, 1))), Some(here(flow(NOW + 250, 4, 1)))]
    );
}

#[test]
fn what_was_carried_up_and_down_again_says_the_same() {
    for spec in schema::ALL.iter().filter(|s| s.role == schema::Role::State && is_hash(s)) {
        let other = moved(spec);
        // All but the padding, which is zero.
        let mut value = vec![0; spec.value_size as usize];
        let of_fields = spec.fields.iter().filter(|(name, ..)| *name != "pad").flat_map(|(_, at, n)| *at..at + n);
        of_fields.for_each(|at| value[at] = at as u8 + 1);
        let (ours, up, down) = (Fake::of(&[(1, value.clone())]), Fake::default(), Fake::default());
        copy(&Carriage { from: &ours, to: &up, spec: &other, plan: &plan(spec, &other) }).unwrap();
        assert_ne!(up.get(1).unwrap()[..value.len()], value, "{}", spec.name);
        copy(&Carriage { from: &up, to: &down, spec, plan: &plan(&other, spec) }).unwrap();
        assert_eq!(down.get(1), Some(value), "{}", spec.name);
    }
}

#[test]
fn entries_without_room_are_counted_and_the_others_kept() {
    let from = Fake::of(&[1, 2, 3].map(|n| (n, there(flow(NOW, n, 1)))));
    let to = Fake { room: Some(2), ..Fake::default() };
    assert_eq!(copies(&schema::CT4, &from, &to), Done { seen: 3, changed: 2, left: 1 });
    assert_eq!(meets(&schema::CT4, &from, &to, Both::Merge), Done { seen: 3, changed: 0, left: 1 });
}

#[test]
fn a_flow_that_only_the_others_know_is_entered_unless_ours_are_faster() {
    let (late, raced) = (flow(NOW, CT_SENT_OPEN, 0), flow(NOW + 1, CT_SENT_OPEN, CT_SENT_DATA));
    let from = Fake::of(&[(1, there(late)), (2, there(late))]);
    let to = Fake::default();
    // Between the look and the entry.
    to.meanwhile.replace(Some((key(2), here(raced))));
    assert_eq!(meets(&schema::CT_NEW4, &from, &to, Both::Leave), Done { seen: 2, changed: 1, left: 0 });
    assert_eq!([1, 2].map(|n| to.get(n)), [Some(here(late)), Some(here(raced))]);
}

#[test]
fn a_flow_that_both_know_is_as_late_as_the_later_and_has_said_what_either_has_heard() {
    let ours = CtEntry { verdicts: 5, charged: 3, ..flow(NOW, CT_SENT_DATA, 0) };
    let theirs = CtEntry { lifetime: 20, ..flow(NOW + 250, 0, CT_SENT_END) };
    let (from, to) = (Fake::of(&[(1, there(theirs))]), Fake::of(&[(1, here(ours))]));
    assert_eq!(meets(&schema::CT4, &from, &to, Both::Leave).changed, 0, "while both are being written");
    assert_eq!(to.get(1), Some(here(ours)));
    assert_eq!(meets(&schema::CT4, &from, &to, Both::Merge).changed, 1);
    let both = CtEntry { seen: NOW + 250, lifetime: 20, hi_sent: CT_SENT_END, ..ours };
    assert_eq!(to.get(1), Some(here(both)), "verdict and account are ours");
    assert_eq!(meets(&schema::CT4, &from, &to, Both::Merge).changed, 0, "and again");
}

#[test]
fn an_end_that_the_others_have_heard_does_not_end_the_flow_that_has_begun_since() {
    let over = flow(NOW, CT_SENT_DATA | CT_SENT_END, CT_SENT_DATA | CT_SENT_END);
    for seen in [NOW, NOW + 1] {
        let begun = flow(seen, CT_SENT_OPEN, 0);
        let (from, to) = (Fake::of(&[(1, there(over))]), Fake::of(&[(1, here(begun))]));
        assert_eq!(meets(&schema::CT4, &from, &to, Both::Merge).changed, 0);
        assert_eq!(to.get(1), Some(here(begun)));
    }
}

#[test]
fn of_two_translations_under_one_key_ours_stays() {
    let from = Fake::of(&[(1, there(translation(NOW + 9, 1))), (2, there(translation(NOW, 2)))]);
    let to = Fake::of(&[(1, here(translation(NOW, 7)))]);
    assert_eq!(meets(&schema::NAT_BACK4, &from, &to, Both::Merge).changed, 1);
    assert_eq!([1, 2].map(|n| to.get(n)), [Some(here(translation(NOW, 7))), Some(here(translation(NOW, 2)))]);
}

#[test]
fn a_hold_is_not_carried() {
    let hold = bytes_of(&NatKey4 { hold: 1, ..NatKey4::zeroed() }).to_vec();
    let (from, to) = (Fake::default(), Fake::default());
    from.entries.borrow_mut().insert(hold.clone(), there(translation(NOW, 1)));
    assert_eq!(copies(&schema::NAT_BACK4, &from, &to), Done::default());
    assert_eq!(meets(&schema::NAT_BACK4, &from, &to, Both::Merge), Done::default());
    // Elsewhere the same byte says something else.
    assert_eq!(copies(&schema::NAT_FORTH4, &from, &to).changed, 1);
    let six = bytes_of(&NatKey6 { hold: 1, ..NatKey6::zeroed() }).to_vec();
    assert!(is_hold(&schema::NAT_BACK6, &six) && !is_hold(&schema::NAT_BACK6, &vec![0; six.len()]));
}

#[test]
fn counts_are_copied_before_and_left_alone_after() {
    let count = |n| {
        let mut count = Count::zeroed();
        (count.packets, count.bytes) = (n, 100 * n);
        count
    };
    let from = Fake::of(&[(1, there(count(5))), (2, there(count(0)))]);
    let to = Fake::of(&[(1, here(count(0))), (2, here(count(0)))]);
    assert_eq!(copies(&schema::COUNTS, &from, &to), Done { seen: 1, changed: 1, left: 0 });
    from.put(1, there(count(6)));
    assert_eq!(meets(&schema::COUNTS, &from, &to, Both::Merge), Done::default());
    assert_eq!(to.get(1), Some(here(count(5))));
}

#[test]
fn it_stops_as_soon_as_it_is_told_to() {
    let from = Fake::of(&[1, 2, 3].map(|n| (n, there(flow(NOW, n, 1)))));
    let to = Fake::default();
    let looks = std::cell::Cell::new(0);
    let is_over = || looks.replace(looks.get() + 1) == 2;
    let done = carried(&schema::CT4, &from, &to, |c| meet(c, Both::Leave, &is_over)).expect("no kernel");
    assert_eq!((done.seen, to.get(3)), (2, None));
}
