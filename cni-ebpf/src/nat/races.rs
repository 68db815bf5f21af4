//! Several CPUs with packets of flows that want one port: every order of their look-ups and updates, and equal states once.
use std::collections::{BTreeMap, BTreeSet};

use bytemuck::bytes_of;
use cni_common::{
    net::{Be16, Ip4, Ports},
    wire::UDP,
};

use super::{
    End, NatFamily, Pair, receiver,
    steps::{Answer, Cpu, Maps, one_step},
};
use crate::{
    DropReason as D,
    ct::{
        Flows,
        key::{Asker, Rest},
    },
    fake::nat::end_of,
    family::V4,
};

const NODE: Ip4 = Ip4::new([10, 77, 0, 1]);
const WORLD: Ip4 = Ip4::new([198, 51, 100, 9]);
const PORT: Be16 = Be16::from_host(4000);
/// Of what is sent to the world; what comes from there is the same, as both ports are.
const REST: Rest =
    Rest { ports: Ports::of(u32::from_ne_bytes([0x0f, 0xa0, 0x0f, 0xa0])), proto: UDP as u32, asker: Asker::NONE };

/// What a CPU does: in the end a port, if it is to have one.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// A pod's packet, from the port that all want: conntrack enters its flow, then it is translated.
    Sends(u8),
    /// The node binds a socket to the port, and speaks to the same end of the world.
    Binds,
    /// What that end sends to the port that all want comes in.
    Answer,
}

/// One of them under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    answers: Vec<Answer>,
    end: Option<Outcome>,
}
/// A port, or to whom an answer goes.
type Outcome = Result<Option<u16>, D>;

fn pair(pod: u8) -> Pair<V4> {
    Pair::sent(&Ip4::new([10, 244, 0, pod]), &WORLD, REST)
}
fn node(port: Be16) -> End<V4> {
    End { addr: NODE, port }
}
fn bytes<T: bytemuck::NoUninit>(v: &T) -> Vec<u8> {
    bytes_of(v).to_vec()
}

impl Job {
    /// From its first to its last step.
    fn run(self, cpu: &Cpu<'_>) -> Outcome {
        match self {
            Self::Sends(pod) => {
                let pair = pair(pod);
                // As `track` does with every packet, in effect.
                cpu.begin(&pair.flow().0, &bytemuck::Zeroable::zeroed());
                end_of(&mut (), cpu, &pair, &NODE).map(|end| end.map(|e| e.port.to_host()))
            }
            Self::Binds => {
                cpu.flag(|m| {
                    let key = bytes(&pair(0).key(&node(PORT)));
                    m.sockets.insert(key.clone()) && m.used.insert(key)
                });
                Ok(Some(PORT.to_host()))
            }
            Self::Answer => {
                // To whom it goes: no port.
                receiver::<V4, _, _>(&mut (), cpu, &WORLD, &NODE, REST).map(|pod| pod.map(|p| p.addr.bytes[3].into()))
            }
        }
    }

    /// One step further.
    fn step(self, run: &mut Run, maps: &mut Maps) {
        run.end = one_step(&mut run.answers, maps, |cpu| self.run(cpu));
    }
}

/// All ends that some order of the jobs' steps leads to.
fn every_order(maps: Maps, jobs: &[Job]) -> BTreeSet<(Maps, Vec<Outcome>)> {
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
fn serial(maps: &mut Maps, jobs: &[Job]) -> Vec<Outcome> {
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
fn nobody_shares(ends: &BTreeSet<(Maps, Vec<Outcome>)>, jobs: &[Job], start: &str) {
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
        for (mut maps, results) in every_order(maps, &[Job::Sends(1), Job::Binds, Job::Answer]) {
            // The pod's packet may have left before, but the port is the node's now.
            assert_eq!(serial(&mut maps, &[Job::Answer]), [Ok(None)], "{start}: {results:?}");
            let next = serial(&mut maps, &[Job::Binds, Job::Sends(1), Job::Answer]);
            assert_ne!(next[1], Ok(Some(PORT.to_host())), "{start}: {results:?}");
            assert_eq!(next[2], Ok(None), "{start}: {results:?}");
        }
    }
}

#[test]
fn where_all_holds_meet_the_node_has_the_port_with_its_next_packet() {
    let maps = Maps { roomy: true, ..left_behind(9) };
    let jobs = [Job::Sends(1), Job::Sends(2), Job::Binds];
    for (mut maps, results) in every_order(maps, &jobs) {
        // Who could not hand it over for want of the hold has gone elsewhere all the same.
        let answer = serial(&mut maps, &[Job::Answer]);
        assert!([Ok(None), Err(D::NatOrphan)].contains(&answer[0]) || results[..2].contains(&Ok(Some(PORT.to_host()))));
        assert_eq!(serial(&mut maps, &[Job::Binds, Job::Answer])[1], Ok(None), "{results:?}");
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
