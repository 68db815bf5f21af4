//! The loaded programs, and what a run of one of them did.
use std::{collections::BTreeMap, time::Duration};

use aya::{TestRunOptions, programs::TestRun as _};
use cni_agent::datapath::{
    Datapath,
    counters::{self, Counted},
    events::Events,
    load::LoadError,
    object,
};
use cni_common::{
    drop::{DropReason, Outcome, Point},
    event::DropEvent,
    maps::CtEntry,
    schema::{self, MapSpec},
};
use cni_ebpf::{Res, Verdict, decap, fake::Fake, fake::Frame, flow, icmp};

use crate::{fill, frame, world};

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT` of `linux/pkt_cls.h`.
pub const UNSPEC: u32 = u32::MAX;
/// See above.
pub const SHOT: u32 = 2;
/// See above.
pub const REDIRECT: u32 = 7;

/// `__sk_buff.gso_size`.
const GSO_SIZE_AT: usize = 176;

/// The program of a point.
pub fn program(point: Point) -> &'static str {
    match point {
        Point::FromPod => object::FROM_POD,
        Point::FromHost => object::FROM_HOST,
        Point::FromNetdev => object::FROM_NETDEV,
        Point::FromOverlay => object::FROM_OVERLAY,
    }
}

/// A decision, and what a drop is answered by.
#[derive(Debug)]
pub struct Decision {
    /// What became of the frame.
    pub frame: Res<Verdict>,
    /// What became of the ICMP error about it.
    pub answer: Option<Verdict>,
}

/// The same decision, natively.
pub fn native(point: Point, p: &mut Frame, w: &Fake) -> Decision {
    let frame = match point {
        Point::FromPod => flow::from_pod(p, w),
        Point::FromHost => flow::from_host(p, w),
        Point::FromNetdev => decap::from_netdev(p, w),
        Point::FromOverlay => decap::from_overlay(p, w),
    };
    let answer = frame.err().and_then(|reason| icmp::answer(p, w, point, reason));
    Decision { frame, answer }
}

impl Decision {
    /// What the program counts.
    pub fn counted(&self) -> Vec<Result<Outcome, DropReason>> {
        let frame = self.frame.map(|v| match v {
            Verdict::Pass => Outcome::Pass,
            Verdict::Host => Outcome::Host,
            Verdict::Peer(_) => Outcome::Peer,
            Verdict::Device(_) => Outcome::Device,
            Verdict::Neigh(_) => Outcome::Neigh,
            Verdict::Overlay(_) => Outcome::Overlay,
            Verdict::Answer(_) => Outcome::Answer,
        });
        [frame].into_iter().chain(self.answer.map(|_| Ok(Outcome::Answer))).collect()
    }

    /// What the program returns.
    pub fn code(&self) -> u32 {
        match (self.frame, self.answer) {
            (Ok(Verdict::Pass), _) => UNSPEC,
            (Err(_), None) => SHOT,
            _ => REDIRECT,
        }
    }

    /// Whether nothing of the frame goes on.
    pub fn is_lost(&self) -> bool {
        self.code() == SHOT
    }
}

/// A heading of the counters.
pub type Heading = (Point, Result<Outcome, DropReason>);

/// What a run did.
#[derive(Debug)]
pub struct Ran {
    /// The program's return code.
    pub code: u32,
    /// The frame as it came out.
    pub data: Vec<u8>,
    /// What was counted: one thing, and an answer if there was one.
    pub counted: Vec<Heading>,
    /// Drop events that were sent.
    pub events: Vec<DropEvent>,
}

/// Conntrack's tables of a family: entries by the bytes of their keys.
#[derive(Debug)]
pub struct Flows {
    /// Flows that both ends have spoken in.
    pub settled: BTreeMap<Vec<u8>, CtEntry>,
    /// Those that wait for the other end.
    pub new: BTreeMap<Vec<u8>, CtEntry>,
    /// Flows by the endpoint on whose account they are.
    pub held: BTreeMap<u32, u64>,
}

/// Loaded programs with maps of their own.
pub struct Kernel {
    datapath: Datapath,
    events: Events,
}

impl Kernel {
    /// Loads, with empty maps.
    pub fn empty() -> Self {
        let mut datapath = Datapath::load(None).unwrap_or_else(|e| {
            let said = if let LoadError::Refused { refusal, .. } = &e { refusal.log.join("\n") } else { String::new() };
            panic!("{}\n{said}", cni_agent::error_chain(&e))
        });
        let events = Events::new(datapath.take_events().expect("the ring is there")).expect("the ring opens");
        Self { datapath, events }
    }

    /// Loads, with the maps of [`world::world`].
    pub fn loaded() -> Self {
        let kernel = Self::empty();
        fill::fill(&kernel.datapath, &world::world());
        kernel
    }

    /// The datapath.
    pub fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Runs one frame through a program. `Err`: the kernel does not take such a frame for a test run.
    pub fn run(&mut self, point: Point, frame: &[u8]) -> Result<Ran, String> {
        self.run_gso(point, frame, 0)
    }

    /// The same with `gso_size`.
    pub fn run_gso(&mut self, point: Point, frame: &[u8], gso: u32) -> Result<Ran, String> {
        let before = self.all_counts();
        let mut data = vec![0; frame.len() + 256];
        let mut ctx = [0_u8; GSO_SIZE_AT + 4];
        ctx[GSO_SIZE_AT..].copy_from_slice(&gso.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut data),
            ctx_in: (gso != 0).then_some(&ctx[..]),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let program = self.datapath.classifier(program(point)).expect("is in the object");
        let r = program.test_run(options).map_err(|e| cni_agent::error_chain(&e))?;
        data.truncate(r.data_size_out as usize);
        let mut counted = Vec::new();
        for (k, n) in self.all_counts() {
            let was = before.iter().find(|(b, _)| *b == k).map_or(0, |(_, n)| *n);
            for _ in was..n {
                counted.push(k);
            }
        }
        let mut events = Vec::new();
        self.events.drain(|e| events.push(e));
        Ok(Ran { code: r.return_value, data, counted, events })
    }

    /// Conntrack's tables, IPv4 and IPv6.
    pub fn flows(&self) -> [Flows; 2] {
        let tables = |settled, new, held| Flows {
            settled: self.entries(settled),
            new: self.entries(new),
            held: self.entries::<u64>(held).into_iter().map(|(k, n)| (bytemuck::pod_read_unaligned(&k), n)).collect(),
        };
        [
            tables(&schema::CT4, &schema::CT_NEW4, &schema::CT_HELD4),
            tables(&schema::CT6, &schema::CT_NEW6, &schema::CT_HELD6),
        ]
    }

    fn entries<V: bytemuck::Pod>(&self, map: &MapSpec) -> BTreeMap<Vec<u8>, V> {
        let all = self.datapath.map(map).dump().expect("is read");
        all.into_iter().map(|(k, v)| (k, bytemuck::pod_read_unaligned(&v))).collect()
    }

    /// Runs one frame, and asks for no more than what becomes of it: for many.
    pub fn run_quickly(&mut self, point: Point, frame: &[u8]) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() };
        let program = self.datapath.classifier(program(point)).expect("is in the object");
        program.test_run(options).expect("an ordinary frame").return_value
    }

    /// Runs one frame: what the program returned, and how long the kernel says that it took. Two readings of the kernel's clock are in it.
    pub fn timed(&mut self, point: Point, frame: &[u8]) -> (u32, Duration) {
        let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() };
        let program = self.datapath.classifier(program(point)).expect("is in the object");
        let ran = program.test_run(options).expect("an ordinary frame");
        (ran.return_value, ran.duration)
    }

    /// Runs one frame many times over, as the program leaves it each time: what it returned at last, and how long the kernel says that one run took.
    pub fn repeated(&mut self, point: Point, frame: &[u8], times: u32) -> (u32, Duration) {
        let options = TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() };
        let program = self.datapath.classifier(program(point)).expect("is in the object");
        let ran = program.test_run(options).expect("an ordinary frame");
        (ran.return_value, ran.duration)
    }

    fn all_counts(&self) -> Vec<(Heading, u64)> {
        let drops = counters::drops(&self.datapath).expect("counters are read");
        let outcomes = counters::outcomes(&self.datapath).expect("counters are read");
        let drops = drops.into_iter().map(|Counted { point, what, count }| ((point, Err(what)), count.packets));
        drops
            .chain(outcomes.into_iter().map(|Counted { point, what, count }| ((point, Ok(what)), count.packets)))
            .collect()
    }

    /// Whether this kernel changes the family on decapsulation (Linux 6.3): found by trying.
    pub fn decap_l3(&mut self) -> bool {
        let (proto, inner) =
            frame::Ip::default().packet(world::pod(true, 1, 1), world::server(true), frame::udp(1, 2, &[0; 32]));
        let inner = frame::eth(cni_common::net::Mac::WEFT, cni_common::net::Mac::WEFT, (proto, inner));
        let outer = frame::Ip::default().packet(
            world::underlay(false, 1),
            world::underlay(false, 0),
            frame::vxlan(world::PORT, 0, &inner),
        );
        let frame = frame::eth(world::NEXT_HOP_MAC, world::UNDERLAY_MAC, outer);
        self.run(Point::FromNetdev, &frame).expect("an ordinary frame").code == REDIRECT
    }
}
