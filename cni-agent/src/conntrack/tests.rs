use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    io,
    time::Duration,
};

use bytemuck::{Zeroable, bytes_of};
use cni_common::{
    maps::{
        CT_HI_OPENED, CT_SENT_ANSWER, CT_SENT_DATA, CT_SENT_END, CT_SENT_OPEN, CT_SENT_RESET, CtEntry, CtKey4, CtKey6,
    },
    net::{Be16, Ip4},
};

use super::*;
use crate::datapath::map::Contents;

/// A time in jiffies.
const NOW: u64 = 1_000_000;
/// Lives until then, and not longer.
const LIFE: u32 = 500;

/// A table in memory; a lot is of two entries.
#[derive(Default)]
struct Fake {
    entries: RefCell<Contents>,
    writes: Cell<u32>,
    /// What happens to an entry after a lot was given out.
    meanwhile: RefCell<Option<(Vec<u8>, CtEntry)>>,
}

impl Fake {
    fn of(entries: &[(u16, CtEntry)]) -> Self {
        let all = entries.iter().map(|(port, e)| (bytes_of(&key(*port)).to_vec(), bytes_of(e).to_vec())).collect();
        Self { entries: RefCell::new(all), ..Self::default() }
    }
    fn accounts(held: &[(u32, u64)]) -> Self {
        let all = held.iter().map(|(id, n)| (id.to_ne_bytes().to_vec(), n.to_ne_bytes().to_vec())).collect();
        Self { entries: RefCell::new(all), ..Self::default() }
    }
    fn held(&self) -> Vec<(u32, u64)> {
        let read = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let (key, value) = (key.as_slice().try_into().unwrap(), value.as_slice().try_into().unwrap());
            (u32::from_ne_bytes(key), u64::from_ne_bytes(value))
        };
        self.entries.borrow().iter().map(read).collect()
    }
    fn ports(&self) -> BTreeSet<u16> {
        self.entries.borrow().keys().map(|k| Ends::read(k).unwrap().lo.1).collect()
    }
    fn written(&self) {
        self.writes.set(self.writes.get() + 1);
    }
}

impl Table for Fake {
    type Walk = Option<Vec<u8>>;

    fn walk(&self) -> Self::Walk {
        None
    }
    fn lot(&self, walk: &mut Self::Walk, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let mut more = false;
        {
            let entries = self.entries.borrow();
            let mut rest = entries.iter().filter(|(key, _)| walk.as_ref().is_none_or(|last| *key > last));
            let lot: Vec<_> = rest.by_ref().take(2).collect();
            more |= rest.next().is_some();
            lot.iter().for_each(|(key, value)| each(key, value));
            *walk = lot.last().map(|(key, _)| (*key).clone());
        }
        if let Some((key, entry)) = self.meanwhile.take() {
            self.entries.borrow_mut().insert(key, bytes_of(&entry).to_vec());
        }
        Ok(more)
    }
    fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.entries.borrow().get(key).cloned())
    }
    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.written();
        self.entries.borrow_mut().remove(key);
        Ok(())
    }
    fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.written();
        self.entries.borrow_mut().insert(key.to_vec(), value.to_vec());
        Ok(())
    }
    fn enter(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        let is_new = !self.entries.borrow().contains_key(key);
        if is_new {
            self.update(key, value)?;
        }
        Ok(is_new)
    }
    fn dump(&self) -> io::Result<Contents> {
        Ok(self.entries.borrow().clone())
    }
}

fn key(port: u16) -> CtKey4 {
    CtKey4 {
        lo: Ip4::new([10, 244, 1, 2]),
        hi: Ip4::new([10, 244, 1, 3]),
        lo_port: Be16::from_host(port),
        hi_port: Be16::from_host(80),
        proto: 6,
        ..CtKey4::zeroed()
    }
}

/// One that was seen so long ago.
fn entry(age: u64, charged: u32) -> CtEntry {
    let sent = CT_SENT_OPEN | CT_SENT_DATA;
    CtEntry { seen: NOW - age, lifetime: LIFE, charged, lo_sent: sent, hi_sent: sent, ..CtEntry::zeroed() }
}

/// A whole pass, and how many flows it has taken out.
fn swept(table: &Fake, accounts: &Fake) -> u64 {
    let pass = sweep(table, || Ok(NOW), |_| true).unwrap().unwrap();
    let deleted = pass.deleted;
    pass.settle(accounts).unwrap();
    deleted
}

#[test]
fn what_is_over_goes_and_the_accounts_are_what_is_left() {
    let table =
        Fake::of(&[(1, entry(0, 7)), (2, entry(499, 7)), (3, entry(500, 7)), (4, entry(9000, 8)), (5, entry(1, 9))]);
    let accounts = Fake::accounts(&[(7, 5), (8, 1)]);
    assert_eq!(swept(&table, &accounts), 2);
    assert_eq!(table.ports(), BTreeSet::from([1, 2, 5]));
    assert_eq!(accounts.held(), [(7, 2), (9, 1)], "a row of zero goes, one that was missing comes");
}

#[test]
fn where_nothing_is_over_nothing_is_written() {
    let table = Fake::of(&[(1, entry(0, 7)), (2, entry(499, 7)), (3, entry(0, 8))]);
    let accounts = Fake::accounts(&[(7, 2), (8, 1)]);
    assert_eq!(swept(&table, &accounts), 0);
    assert_eq!((table.writes.get(), accounts.writes.get()), (0, 0));
    // The same with something to do, so that the count counts.
    let table = Fake::of(&[(1, entry(500, 7)), (2, entry(0, 7)), (3, entry(0, 8))]);
    swept(&table, &accounts);
    assert_eq!((table.writes.get(), accounts.writes.get()), (1, 1));
}

#[test]
fn a_flow_that_has_a_packet_before_it_would_be_deleted_lives_and_counts() {
    let table = Fake::of(&[(1, entry(500, 7)), (2, entry(500, 7))]);
    table.meanwhile.replace(Some((bytes_of(&key(2)).to_vec(), entry(0, 7))));
    let accounts = Fake::accounts(&[(7, 2)]);
    assert_eq!(swept(&table, &accounts), 1);
    assert_eq!((table.ports(), accounts.held()), (BTreeSet::from([2]), vec![(7, 1)]));
}

#[test]
fn one_that_another_cpu_has_seen_a_little_later_is_not_over() {
    assert!(!expired(&CtEntry { seen: NOW + 3, lifetime: 0, ..CtEntry::zeroed() }, NOW));
    assert!(!expired(&entry(499, 0), NOW) && expired(&entry(500, 0), NOW));
}

#[test]
fn a_sweep_rests_behind_each_lot_and_ends_when_it_is_told_to() {
    let table =
        Fake::of(&[(1, entry(0, 7)), (2, entry(0, 7)), (3, entry(0, 7)), (4, entry(500, 7)), (5, entry(500, 7))]);
    let mut rests = 0;
    let ended = sweep(
        &table,
        || Ok(NOW),
        |_| {
            rests += 1;
            rests < 2
        },
    );
    assert!(ended.unwrap().is_none());
    assert_eq!((rests, table.ports()), (2, BTreeSet::from([1, 2, 3, 5])), "two lots of two");
}

#[test]
fn looking_costs_a_sixtieth_of_a_core_at_most() {
    for cost in [1, 80, 5000].map(Duration::from_millis) {
        let share = cost.as_secs_f64() / (cost + pause(cost)).as_secs_f64();
        assert!(share < 0.0167, "{share}");
    }
    assert_eq!(pause(Duration::ZERO), Duration::ZERO);
}

#[test]
fn a_flow_says_who_opened_it_how_far_it_is_and_how_long_it_lives() {
    let e = CtEntry { verdicts: CT_HI_OPENED, ..entry(100, 7) };
    let flow = Flow::of(bytes_of(&key(4000)), &e, NOW).unwrap();
    let (hi, lo) = (("10.244.1.3".parse().unwrap(), 80), ("10.244.1.2".parse().unwrap(), 4000));
    assert_eq!((flow.opener_first(), flow.state, flow.left), ([hi, lo], State::Established, 400));
    let over = Flow::of(bytes_of(&key(4000)), &entry(501, 7), NOW).unwrap();
    assert_eq!((over.opener_first(), over.left), ([lo, hi], 0));
    let six = CtKey6 { lo: "fd00::1".parse::<std::net::Ipv6Addr>().unwrap().into(), proto: 58, ..CtKey6::zeroed() };
    let ends = Ends::read(bytes_of(&six)).unwrap();
    assert_eq!((ends.lo, ends.protocol), (("fd00::1".parse().unwrap(), 0), 58));
    assert_eq!(Ends::read(&[0; 17]), None);
}

#[test]
fn states_are_those_of_the_programs_and_one_for_who_waits() {
    let state = |lo_sent, hi_sent| State::of(&CtEntry { lo_sent, hi_sent, ..CtEntry::zeroed() });
    let (open, answer, data) = (CT_SENT_OPEN, CT_SENT_ANSWER, CT_SENT_DATA);
    assert_eq!([state(open, 0), state(0, data)], [State::Unanswered; 2]);
    assert_eq!(state(open, answer), State::Handshake);
    assert_eq!([state(open | data, answer), state(data, data)], [State::Established; 2]);
    assert_eq!(state(data | CT_SENT_END, data), State::Closing);
    assert_eq!([state(open, CT_SENT_RESET), state(data | CT_SENT_END, CT_SENT_END)], [State::Closed; 2]);
    for state in State::ALL {
        assert_eq!(State::from_name(state.name()), Some(state));
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}

#[test]
fn a_filter_takes_what_fits_each_kind_and_any_value_of_one() {
    let flow = Flow::of(bytes_of(&key(4000)), &entry(0, 7), NOW).unwrap();
    let pods = BTreeSet::from(["10.244.1.3".parse().unwrap()]);
    let takes = |query: Query| Filter::try_from(&query).unwrap().takes(&flow, &pods);
    let all = Query::default;
    assert!(takes(all()));
    for (right, wrong) in [
        (Query { pod: "web".into(), ..all() }, None),
        (
            Query { address: "10.9.9.9,10.244.1.2".into(), ..all() },
            Some(Query { address: "10.244.1.4".into(), ..all() }),
        ),
        (Query { port: "81,80".into(), ..all() }, Some(Query { port: "8".into(), ..all() })),
        (Query { protocol: "UDP,tcp".into(), ..all() }, Some(Query { protocol: "17".into(), ..all() })),
        (Query { state: "established".into(), ..all() }, Some(Query { state: "closed,closing".into(), ..all() })),
        (Query { family: "4,6".into(), ..all() }, Some(Query { family: "6".into(), ..all() })),
    ] {
        assert!(takes(right.clone()), "{right:?}");
        let both = |wrong: Query| Query { pod: right.pod.clone(), ..wrong };
        assert!(wrong.is_none_or(|wrong| !takes(both(wrong))), "beside {right:?}");
    }
    let elsewhere = Filter { pods: vec!["web".into()], ..Filter::default() };
    assert!(!elsewhere.takes(&flow, &BTreeSet::from(["10.244.1.9".parse().unwrap()])));
}

#[test]
fn a_filter_and_its_query_are_the_same_and_what_is_none_is_told() {
    let filter = Filter {
        pods: vec!["shop/web".into(), "client".into()],
        addresses: vec!["fd00::1".parse().unwrap()],
        ports: vec![80, 443],
        protocols: vec![6, 47],
        states: vec![State::Closing],
        families: vec![6],
    };
    assert_eq!(Filter::try_from(&filter.query()).unwrap(), filter);
    assert!(!filter.takes_all() && Filter::try_from(&Query::default()).unwrap().takes_all());
    let wrong = |query| Filter::try_from(&query).unwrap_err();
    assert!(wrong(Query { protocol: "quic".into(), ..Query::default() }).contains("`quic` is no protocol"));
    assert!(wrong(Query { port: "65536".into(), ..Query::default() }).contains("`65536` is no port"));
    assert!(wrong(Query { state: "open".into(), ..Query::default() }).contains("`open` is no state"));
    assert!(wrong(Query { family: "5".into(), ..Query::default() }).contains("`5` is no address family"));
}
