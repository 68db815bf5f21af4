//! Somebody else's BPF programs on a device, which count what they see and let it go on.
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use cni_agent::{
    datapath::{
        assembly::{EXIT, MAP_FD, add, call, copy, insn, set, store_zero, wide},
        load, syscall,
    },
    netlink::{Socket, tc},
};
use cni_common::schema::MapType;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::message::{self, Attributes, Message};

/// `RTM_NEWTFILTER`.
const NEW_FILTER: u16 = 44;
/// Upper half of a filter's parent: that of every clsact qdisc.
const CLSACT: u32 = 0xffff_0000;
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 0x0003;
/// `TCA_BPF_FLAG_ACT_DIRECT`.
const DIRECT_ACTION: u32 = 1;

/// On which side of our own filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It is asked first.
    Before,
    /// It is asked about what the others have let go on.
    After,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Before, Self::After];

    /// Priority of its tc filter; ours is 0x57.
    const fn priority(self) -> u16 {
        match self {
            Self::Before => 1,
            Self::After => 0xc000,
        }
    }
}

/// Direction of what a filter sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What enters the device.
    Ingress,
    /// What leaves it.
    Egress,
}

/// A program, and the map of one number in which it counts.
#[derive(Debug)]
struct Counter {
    program: OwnedFd,
    count: OwnedFd,
}

impl Counter {
    fn load() -> std::io::Result<Self> {
        /// `BPF_FUNC_map_lookup_elem`.
        const LOOKUP: i32 = 1;
        /// `TC_ACT_UNSPEC`: the next program is asked.
        const GO_ON: i32 = -1;
        let count = syscall::create_probe_map(MapType::Array as u32, 4, 0)?;
        let [map, number] = wide(1, MAP_FD, count.as_raw_fd() as u64);
        let program = [
            store_zero(-8),
            map,
            number,
            copy(2, 10),
            add(2, -8),
            call(LOOKUP),
            // Without a value, which an array always has, over the next two.
            insn(0x15, 0, 2, 0),
            set(1, 1),
            // Adds register 1 to the 32 bits at register 0, atomically.
            insn(0xc3, 1 << 4, 0, 0),
            set(0, GO_ON),
            EXIT,
        ];
        Ok(Self { program: syscall::load_probe(&program)?, count })
    }
}

/// Two programs, one for each side, with a counter each. What they are attached to keeps them alive; with this value only the counters
/// can be read no more.
#[derive(Debug)]
pub struct Foreign {
    before: Counter,
    after: Counter,
}

impl Foreign {
    /// Loads them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load() -> Result<Self> {
        load::raise_memlock_limit();
        let load = || Counter::load().context("load somebody else's program");
        Ok(Self { before: load()?, after: load()? })
    }

    const fn of(&self, side: Side) -> &Counter {
        match side {
            Side::Before => &self.before,
            Side::After => &self.after,
        }
    }

    /// The program of a side, to attach it otherwise.
    #[must_use]
    pub fn program(&self, side: Side) -> BorrowedFd<'_> {
        self.of(side).program.as_fd()
    }

    /// Puts the program of a side onto a device of the namespace as a filter of clsact, which is made unless it is there.
    ///
    /// # Errors
    /// When the kernel refuses, or a filter of that priority is there already.
    pub fn attach(&self, netns: BorrowedFd<'_>, device: u32, direction: Direction, side: Side) -> Result<()> {
        let what = || format!("put somebody else's filter {side:?} ours on the {direction:?} of device {device}");
        tc::ensure_clsact(&mut Socket::open_in(netns).with_context(what)?, device).with_context(what)?;
        // TC_H_MIN_INGRESS and TC_H_MIN_EGRESS of include/uapi/linux/pkt_sched.h.
        let minor = match direction {
            Direction::Ingress => 0xfff2,
            Direction::Egress => 0xfff3,
        };
        let info = u32::from(side.priority()) << 16 | u32::from(EVERY_PROTOCOL.to_be());
        let mut head = vec![0; 4];
        for field in [device, 1, CLSACT | minor, info] {
            head.extend(field.to_ne_bytes());
        }
        let program = self.program(side).as_raw_fd();
        let options = Attributes::default()
            .bytes(6, &program.to_ne_bytes())
            .text(7, "somebody_elses")
            .bytes(8, &DIRECT_ACTION.to_ne_bytes());
        let filter = Attributes::default().text(1, "bpf").nest(2, &options);
        let message = Message::new(NEW_FILTER, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &head).with(&filter);
        message::send(netns, NETLINK_ROUTE, &[message]).with_context(what)
    }

    /// How many packets the program of a side has seen, wherever it is attached.
    ///
    /// # Errors
    /// When the counters can not be read.
    pub fn seen(&self, side: Side) -> Result<u32> {
        let mut count = [0; 4];
        syscall::lookup(self.of(side).count.as_fd(), &[0; 4], &mut count).context("read somebody else's counter")?;
        Ok(u32::from_ne_bytes(count))
    }
}
