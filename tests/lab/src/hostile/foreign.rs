//! Somebody else's BPF programs on a device, which count what they see and let it go on.
//!
//! They are ours, from a second copy of the object that nobody configures: then `from_netdev` and `from_host` pass everything with
//! `TC_ACT_UNSPEC` and count it in that copy's own map.
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use cni_agent::{
    datapath::{Datapath, counters},
    netlink::{Socket, tc},
};
use cni_common::drop::{Outcome, Point};
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

    /// Which of the programs it is.
    const fn program(self) -> (&'static str, Point) {
        match self {
            Self::Before => ("from_netdev", Point::FromNetdev),
            Self::After => ("from_host", Point::FromHost),
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

/// Two programs, one for each side, with a counter each. What they are attached to keeps them alive; with this value only the counters
/// can be read no more.
#[derive(Debug)]
pub struct Foreign {
    datapath: Datapath,
}

impl Foreign {
    /// Loads them.
    ///
    /// # Errors
    /// When the kernel refuses, or this binary holds no BPF object.
    pub fn load() -> Result<Self> {
        Ok(Self { datapath: Datapath::load(None).context("load a second copy of the programs, as somebody else's")? })
    }

    /// The program of a side, to attach it otherwise.
    ///
    /// # Errors
    /// When the object lacks it.
    pub fn program(&self, side: Side) -> Result<BorrowedFd<'_>> {
        Ok(self.datapath.program(side.program().0)?)
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
        let program = self.program(side).with_context(what)?.as_raw_fd();
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
    pub fn seen(&self, side: Side) -> Result<u64> {
        let counted = counters::outcomes(&self.datapath).context("read somebody else's counters")?;
        let of_side = |c: &&counters::Counted<Outcome>| c.point == side.program().1 && c.what == Outcome::Pass;
        Ok(counted.iter().find(of_side).map_or(0, |c| c.count.packets))
    }
}
