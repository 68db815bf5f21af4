//! Flows by example, protocol by protocol, and by property: two pods that speak, as all of it needs them.
mod judged;
mod properties;
mod room;
mod stages;

use std::cell::{Cell, RefCell};

use cni_common::{
    drop::Point,
    maps::CtEntry,
    net::Mac,
    wire::{ETH_LEN, SCTP},
};

use super::{
    Ask,
    Direction::{self, Forth},
    Ends, Flows, Granted, Tracked,
    entry::{Stage, stage},
    signal, track,
};
use crate::{
    DropReason, Res,
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        world,
    },
    family::{self, Family, V4, V6},
};

const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const HZ: u64 = 250;

/// Two pods of one node, and who was asked.
struct Pair {
    w: Fake,
    v6: bool,
    ends: Ends,
    asked: RefCell<Vec<Direction>>,
    refuse: Cell<Option<DropReason>>,
}

fn pairs() -> impl Iterator<Item = Pair> {
    [false, true].into_iter().map(|v6| Pair {
        w: Fake::default(),
        v6,
        ends: Ends { from: 11, to: 12 },
        asked: RefCell::default(),
        refuse: Cell::new(None),
    })
}

impl Pair {
    fn send_as<F: Family>(&self, f: &mut Frame, ends: Ends) -> Res<()>
    where
        Fake: Flows<F>,
    {
        let ip = family::parse::<F, _>(f, ETH_LEN, 4)?;
        let judge = |direction| {
            self.asked.borrow_mut().push(direction);
            self.refuse.get().map_or(Ok(()), Err)
        };
        let ask = Ask::new(Point::FromPod, ETH_LEN, &ip, ends);
        let heard = if ip.part.is_later() { signal::NOTHING } else { signal::hear(f, ask) };
        let ask = Ask { heard, ..ask };
        let Tracked::Judge(direction) = track::<F, _, _>(f, &self.w, ask, Granted::NO)? else { return Ok(()) };
        judge(direction)?;
        let granted = Granted::by(self.w.ct_config.epoch);
        assert_eq!(track::<F, _, _>(f, &self.w, ask, granted)?, Tracked::Known);
        Ok(())
    }

    fn send_frame(&self, f: &mut Frame, ends: Ends) -> Res<()> {
        if self.v6 { self.send_as::<V6>(f, ends) } else { self.send_as::<V4>(f, ends) }
    }

    fn send_ip(&self, from_client: bool, ip: &Ip, l4: (u8, Vec<u8>)) -> Res<()> {
        let (c, s, Ends { from, to }) = (world::client(self.v6), world::server(self.v6), self.ends);
        let (src, dst, ends) = if from_client { (c, s, self.ends) } else { (s, c, Ends { from: to, to: from }) };
        let mut f = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, ip.packet(src, dst, l4)), 1);
        self.send_frame(&mut f, ends)
    }

    /// The client sends.
    fn c(&self, l4: (u8, Vec<u8>)) -> &Self {
        self.send_ip(true, &Ip::default(), l4).expect("is allowed");
        self
    }
    /// The server sends.
    fn s(&self, l4: (u8, Vec<u8>)) -> &Self {
        self.send_ip(false, &Ip::default(), l4).expect("is allowed");
        self
    }

    fn after(&self, seconds: u64) -> &Self {
        self.w.now.set(self.w.now.get() + seconds * HZ);
        self
    }

    fn tables(&self) -> &crate::fake::flows::FlowTables {
        if self.v6 { &self.w.ct6 } else { &self.w.ct4 }
    }
    /// Settled flows and new ones.
    fn counts(&self) -> (usize, usize) {
        (self.tables().flows.dump().len(), self.tables().new.dump().len())
    }
    /// The only flow.
    fn flow(&self) -> CtEntry {
        let all: Vec<_> =
            self.tables().flows.dump().into_values().chain(self.tables().new.dump().into_values()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }
    fn stage(&self) -> Stage {
        let e = self.flow();
        stage(e.lo_sent.into(), e.hi_sent.into())
    }
    /// Seconds.
    fn lifetime(&self) -> u32 {
        self.flow().lifetime / HZ as u32
    }
    fn asked(&self) -> Vec<Direction> {
        self.asked.take()
    }
    /// With an established TCP flow, client to server.
    /// Policy has changed.
    fn policy_changes(&self) {
        let raise = |e: &mut CtEntry| e.verdicts = e.verdicts & !0xffff_ffff | 7;
        for table in [&self.tables().flows, &self.tables().new] {
            for (key, mut e) in table.dump() {
                raise(&mut e);
                table.replace(&key, &e);
            }
        }
    }
    fn established(self) -> Self {
        self.c(tcp(SYN)).s(tcp_back(SYN_ACK)).c(tcp(ACK)).s(tcp_back(ACK));
        assert_eq!((self.stage(), self.counts(), self.asked()), (Stage::Established, (1, 0), vec![Forth]));
        self
    }
}

fn tcp(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(40_000, 443, flags, b"")
}
fn tcp_back(flags: u8) -> (u8, Vec<u8>) {
    frame::tcp(443, 40_000, flags, b"")
}
fn sctp(sport: u16, dport: u16, chunk: u8) -> (u8, Vec<u8>) {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    body.extend([0, 0, 0, 7, 0, 0, 0, 0, chunk, 0, 0, 4]);
    (SCTP, body)
}
fn echo(v6: bool, reply: bool) -> (u8, Vec<u8>) {
    let (proto, mut body) = frame::ping(v6);
    body[0] = match (v6, reply) {
        (false, false) => 8,
        (false, true) => 0,
        (true, false) => 128,
        (true, true) => 129,
    };
    (proto, body)
}
