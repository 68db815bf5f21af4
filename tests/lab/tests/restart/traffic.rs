//! Rounds of death and birth under traffic.
use std::{env, os::fd::AsFd as _};

use cni_agent::{
    datapath::{attach, object, programs, syscall},
    netlink::{
        Socket, names,
        tc::{self, Place},
    },
};
use lab::{
    Ending, Lab, LabConfig, Node, is_virtual,
    probe::load::{Load, Size, Tally},
};

use crate::{KILLED, OTHER, held::Held, pod};

/// 100 connections, 1,000 datagrams a second; and what leaves an emulated processor to the agent.
const SIZE: Size = Size { flows: 100, datagrams: 1000 };
const SIZE_VIRTUAL: Size = Size { flows: 12, datagrams: 60 };
/// Rounds in CI, and in a machine, where each takes many times as long.
const ROUNDS: (u32, u32) = (10, 2);
/// Datagrams that go while no agent runs, and between two rounds.
const MEANWHILE: (u64, u64) = (300, 60);

fn size() -> Size {
    if is_virtual() { SIZE_VIRTUAL } else { SIZE }
}

fn meanwhile() -> u64 {
    if is_virtual() { MEANWHILE.1 } else { MEANWHILE.0 }
}

/// How many rounds: `cargo xtask test --suite restart --rounds N`.
fn rounds() -> u32 {
    let default = if is_virtual() { ROUNDS.1 } else { ROUNDS.0 };
    env::var("WEFT_RESTART_ROUNDS").map_or(default, |n| n.parse().expect("WEFT_RESTART_ROUNDS is a number"))
}

/// Two pods on the node whose agent dies, and one on another.
struct Rig {
    lab: Lab,
    pods: [lab::probe::Place; 3],
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_nodes(2)).expect("a lab of two nodes");
        let pods = [(KILLED, "web"), (KILLED, "near"), (OTHER, "far")].map(|(node, name)| pod(&mut lab, node, name));
        Self { lab, pods }
    }

    fn node(&self) -> &Node {
        self.lab.node(KILLED).expect("a node")
    }

    /// On the node, and to and from the other one.
    fn load(&self) -> Load {
        let [web, near, far] = &self.pods;
        Load::start(&[(near, web), (far, web), (near, far)], size()).expect("traffic begins")
    }
}

/// Traffic without an event: what is lost here is lost by the test.
fn control(rig: &Rig, datagrams: u64) -> Tally {
    let load = rig.load();
    load.await_more(datagrams).unwrap();
    let tally = load.stop().unwrap();
    println!("control: {tally}");
    tally.whole().unwrap_or_else(|e| panic!("without any event: {e:#}"));
    tally
}

fn rounds_of(ending: Ending) {
    let mut rig = Rig::new();
    let rounds = rounds();
    control(&rig, u64::from(rounds) * meanwhile());
    let before = Held::look(rig.node());
    assert!(before.endpoints == 2 && before.entries["local4"].len() == 2, "{before:?}");
    let load = rig.load();
    load.await_more(meanwhile()).unwrap();
    let mut times = Vec::new();
    for round in 1..=rounds {
        let ended = load.age();
        rig.lab.stop_agent(KILLED, ending).unwrap();
        load.await_more(meanwhile()).unwrap();
        let started = load.age();
        let took = rig.lab.start_agent(KILLED).unwrap();
        times.push(format!(
            "round {round}: ended {:.3} s, started {:.3} s, ready {:.3} s later",
            ended.as_secs_f64(),
            started.as_secs_f64(),
            took.as_secs_f64()
        ));
        load.await_more(meanwhile()).unwrap();
        let after = Held::look(rig.node());
        assert_eq!(after, before, "round {round}");
    }
    let tally = load.stop().unwrap();
    println!("{rounds} rounds ({ending:?}): {tally}");
    println!("figure restart rounds {rounds}");
    println!("figure restart lost {}", tally.lost());
    println!("figure restart broken {}", tally.broken.len());
    tally.whole().unwrap_or_else(|e| panic!("{e:#}\n{}", times.join("\n")));
    rig.lab.down().unwrap();
}

#[test]
fn an_agent_that_is_killed_and_started_anew_loses_no_packet_and_breaks_no_connection() {
    rounds_of(Ending::Killed);
}

#[test]
fn what_is_lost_is_seen() {
    let rig = Rig::new();
    let load = rig.load();
    load.await_more(meanwhile()).unwrap();
    // What a start must never do: the old program goes before the new one is there.
    let mut socket = Socket::open_in(rig.node().place().unwrap().netns()).unwrap();
    let pin = programs::path(&rig.node().paths().bpf().join("weft"), object::FROM_POD);
    let program = syscall::open_pin(&pin).unwrap().expect("the agent has pinned it");
    socket.run(tc::delete_filter(Place::Block(names::BLOCK_INDEX))).unwrap();
    load.await_more(50).unwrap();
    attach::block(&mut socket, object::FROM_POD, program.as_fd()).unwrap();
    load.await_more(meanwhile()).unwrap();
    let tally = load.stop().unwrap();
    println!("with a hole: {tally}");
    assert!(tally.lost() > 0 && tally.whole().is_err(), "{tally}");
    rig.lab.down().unwrap();
}
