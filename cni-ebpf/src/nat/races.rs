//! Several CPUs with packets of flows that want one port: every order of their look-ups and updates.
//!
//! It is the logic itself that runs, over maps of which each access is one step. A run is taken up again by running it from the start with the
//! answers that it has had, and broken off after the next one; so all orders are tried without threads, and equal states once.
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use bytemuck::bytes_of;
use cni_common::{
    drop::{Outcome, Point},
    maps::{CtConfig, CtEntry, CtKey4, NAT_FIRST_PORT, NAT_PORTS, NatBack4, NatConfig, NatForth4, NatKey4},
    net::{Be16, Ip4},
    shared::Shared,
    wire::UDP,
};

use super::{End, Entered, NatEnv, NatFamily, Pair, Sockets, Translations, back, forth, give_way};
use crate::{
    DropReason as D,
    ct::{CtEnv, Flow, Flows, Promotion, lifetime},
    family::V4,
};

const NOW: u64 = 1 << 33;
const NODE: Ip4 = Ip4::new([10, 77, 0, 1]);
const WORLD: End<V4> = End { addr: Ip4::new([198, 51, 100, 9]), port: Be16::from_host(53) };
const PORT: Be16 = Be16::from_host(4000);

/// The maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Maps {
    back: BTreeMap<Vec<u8>, Vec<u8>>,
    forth: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Flows that are not over.
    alive: BTreeSet<Vec<u8>>,
    /// What sockets of the node would receive.
    sockets: BTreeSet<Vec<u8>>,
    /// Whether the range is so large that second choices do not meet: for three there would be too many orders.
    roomy: bool,
}

/// What a CPU does: in the end a port, if it is to have one.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// A pod's packet, from the port that all want: conntrack enters its flow, then it is translated.
    Sends(u8),
    /// The node binds a socket to the port and sends from it.
    Binds,
    /// The answer to what this pod sent under the port that all want comes in.
    Answer,
}

/// One of them under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    answers: Vec<Answer>,
    end: Option<End_>,
}
type End_ = Result<Option<u16>, D>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Value(Option<Vec<u8>>),
    Entered(Entered),
    Flag(bool),
}

/// The system, as one CPU sees it: answers from its record, then one of the maps, then no more.
struct Cpu<'a> {
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
    fn flag(&self, access: impl FnOnce(&mut Maps) -> bool) -> bool {
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
}
impl Sockets<(), V4> for Cpu<'_> {
    fn has_socket(&self, (): &mut (), key: &NatKey4) -> bool {
        self.flag(|m| m.sockets.contains(bytes_of(key)))
    }
}

fn pair(pod: u8) -> Pair<V4> {
    Pair { pod: End { addr: Ip4::new([10, 244, 0, pod]), port: PORT }, world: WORLD, proto: UDP.into() }
}
fn node(port: Be16) -> End<V4> {
    End { addr: NODE, port }
}
fn bytes<T: bytemuck::NoUninit>(v: &T) -> Vec<u8> {
    bytes_of(v).to_vec()
}

impl Job {
    /// From its first to its last step.
    fn run(self, cpu: &Cpu<'_>) -> End_ {
        match self {
            Self::Sends(pod) => {
                let pair = pair(pod);
                // As `track` does with every packet, in effect.
                cpu.begin(&pair.flow().0, &bytemuck::Zeroable::zeroed());
                forth(&mut (), cpu, &pair, &NODE).map(|end| end.map(|e| e.port.to_host()))
            }
            Self::Binds => {
                cpu.flag(|m| m.sockets.insert(bytes(&pair(0).key(&node(PORT)))));
                give_way::<V4, _>(cpu, &WORLD, &node(PORT), UDP.into());
                Ok(Some(PORT.to_host()))
            }
            Self::Answer => {
                // To whom it goes: no port.
                back::<V4, _>(cpu, &WORLD, &node(PORT), UDP.into()).map(|pod| pod.map(|p| p.addr.bytes[3].into()))
            }
        }
    }

    /// One step further.
    fn step(self, run: &mut Run, maps: &mut Maps) {
        let flow = |lifetime| Flow {
            verdicts: Shared::new(if pair(1).flow().1 { cni_common::maps::CT_HI_OPENED } else { 0 }),
            seen: Shared::new(NOW - 1000),
            lifetime: Shared::new(lifetime),
            charged: Shared::new(0),
            lo_sent: Shared::new(0),
            hi_sent: Shared::new(0),
            pad: Shared::new([0; 6]),
        };
        let cpu = Cpu {
            record: &run.answers,
            at: Cell::new(0),
            nat: NatConfig { first_port: NAT_FIRST_PORT, ports: if maps.roomy { NAT_PORTS } else { 2 } },
            maps: RefCell::new(maps),
            news: Cell::new(None),
            cfg: lifetime::config(1, 250),
            alive: flow(10_000),
            dead: flow(1),
        };
        match catch_unwind(AssertUnwindSafe(|| self.run(&cpu))) {
            Ok(end) => run.end = Some(end),
            Err(stop) if stop.is::<Stop>() => {
                let news = cpu.news.take().expect("a step was made");
                run.answers.push(news);
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// All ends that some order of the jobs' steps leads to.
fn every_order(maps: Maps, jobs: &[Job]) -> BTreeSet<(Maps, Vec<End_>)> {
    let mut ends = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut todo = vec![(maps, vec![Run::default(); jobs.len()])];
    while let Some((maps, runs)) = todo.pop() {
        let mut is_over = true;
        for (i, job) in jobs.iter().enumerate() {
            if runs[i].end.is_some() {
                continue;
            }
            is_over = false;
            let (mut maps, mut runs) = (maps.clone(), runs.clone());
            job.step(&mut runs[i], &mut maps);
            if seen.insert((maps.clone(), runs.clone())) {
                todo.push((maps, runs));
            }
        }
        if is_over {
            ends.insert((maps, runs.into_iter().map(|r| r.end.expect("is over")).collect()));
        }
    }
    // A hold is left by none.
    assert!(ends.iter().all(|(m, _)| m.back.keys().all(|k| k[13] == 0)));
    // Two jobs of five steps or so.
    assert!(seen.len() > 50, "{}", seen.len());
    ends
}

/// Each job alone, one after the other.
fn serial(maps: &mut Maps, jobs: &[Job]) -> Vec<End_> {
    let mut ends = Vec::new();
    for job in jobs {
        let mut run = Run::default();
        while run.end.is_none() {
            job.step(&mut run, maps);
        }
        ends.extend(run.end);
    }
    ends
}

/// A flow that had the port, and is over.
fn left_behind(pod: u8) -> Maps {
    let mut maps = Maps::default();
    assert_eq!(serial(&mut maps, &[Job::Sends(pod)]), [Ok(Some(PORT.to_host()))]);
    maps.alive.clear();
    maps
}

/// Whose the port is, as the maps have it.
fn has(maps: &Maps, port: u16) -> Option<u8> {
    let found = maps.back.get(bytes_of(&pair(0).key(&node(Be16::from_host(port)))))?;
    Some(V4::pod_end(&bytemuck::pod_read_unaligned(found)).0.addr.bytes[3])
}

/// That no two of them left under one port, and that the next packet of each leaves under the port that the last one did.
fn nobody_shares(ends: &BTreeSet<(Maps, Vec<End_>)>, jobs: &[Job], start: &str) {
    for (maps, results) in ends {
        let mut users: BTreeMap<u16, u8> = BTreeMap::new();
        for (job, result) in jobs.iter().zip(results) {
            let Job::Sends(pod) = job else { continue };
            let port = match result {
                Ok(port) => port.expect("is masqueraded"),
                Err(e) => {
                    assert_eq!(*e, D::NatExhausted, "{start}: {jobs:?} end in {results:?}");
                    continue;
                }
            };
            let other = users.insert(port, *pod);
            assert!(other.is_none_or(|o| o == *pod), "{start}: {jobs:?} share {port}: {results:?}");
            assert_eq!(has(maps, port), Some(*pod), "{start}: {jobs:?} end in {results:?}");
        }
    }
}

#[test]
fn two_flows_that_want_one_port_at_once_never_share_it() {
    for (start, maps) in [("free", Maps::default()), ("left behind", left_behind(9))] {
        let jobs = [Job::Sends(1), Job::Sends(2)];
        let ends = every_order(maps, &jobs);
        nobody_shares(&ends, &jobs, start);
        // Each of them may be the one that gets it.
        for got in [1, 2] {
            assert!(ends.iter().any(|(m, _)| has(m, PORT.to_host()) == Some(got)), "{start}: {got} never gets it");
        }
        // Their next packets go on as they began.
        for (mut maps, results) in ends {
            if results.iter().all(Result::is_ok) {
                assert_eq!(serial(&mut maps, &jobs), results);
            }
        }
    }
}

#[test]
fn a_flow_that_begins_again_while_its_port_is_taken_over_keeps_it_or_goes_elsewhere() {
    let jobs = [Job::Sends(9), Job::Sends(1)];
    let ends = every_order(left_behind(9), &jobs);
    nobody_shares(&ends, &jobs, "left behind");
    for got in [9, 1] {
        assert!(ends.iter().any(|(m, _)| has(m, PORT.to_host()) == Some(got)), "{got} never gets it");
    }
}

#[test]
fn three_cpus_at_a_port_that_was_left_behind_never_share_it() {
    for jobs in [[Job::Sends(9), Job::Sends(1), Job::Sends(2)], [Job::Sends(1), Job::Sends(2), Job::Sends(3)]] {
        let maps = Maps { roomy: true, ..left_behind(9) };
        nobody_shares(&every_order(maps, &jobs), &jobs, "left behind");
    }
}

#[test]
fn two_packets_of_a_new_flow_leave_under_one_port() {
    for (start, maps) in [("free", Maps::default()), ("left behind", left_behind(9))] {
        for (_, results) in every_order(maps, &[Job::Sends(1), Job::Sends(1)]) {
            assert!(results[0] == results[1] && results[0].is_ok(), "{start}: {results:?}");
        }
    }
}

#[test]
fn the_node_that_binds_at_the_same_time_wins() {
    for (start, maps) in [
        ("free", Maps::default()),
        ("left behind", left_behind(9)),
        ("its own", {
            let mut maps = Maps::default();
            serial(&mut maps, &[Job::Sends(1)]);
            maps
        }),
    ] {
        for (mut maps, results) in every_order(maps, &[Job::Sends(1), Job::Binds]) {
            // The pod's packet may have left before, but the port is the node's now.
            assert_eq!(serial(&mut maps, &[Job::Answer]), [Ok(None)], "{start}: {results:?}");
            let next = serial(&mut maps, &[Job::Binds, Job::Sends(1), Job::Answer]);
            assert_ne!(next[1], Ok(Some(PORT.to_host())), "{start}: {results:?}");
            assert_eq!(next[2], Ok(None), "{start}: {results:?}");
        }
    }
}

#[test]
fn an_answer_goes_to_who_has_the_port_or_to_nobody() {
    let mut maps = Maps::default();
    serial(&mut maps, &[Job::Sends(9)]);
    // One whose flow lives cannot lose it, whatever others try.
    for (_, results) in every_order(maps, &[Job::Answer, Job::Sends(1), Job::Sends(9)]) {
        assert_eq!(results[0], Ok(Some(9)));
    }
    for (maps, results) in every_order(left_behind(9), &[Job::Answer, Job::Sends(1)]) {
        match results[0] {
            Ok(None) | Err(D::NatOrphan) => {}
            Ok(Some(1)) => assert_eq!(has(&maps, PORT.to_host()), Some(1)),
            other => panic!("{other:?}"),
        }
    }
}
