//! What tests of both families share: a node that masquerades, and what its pods say.
use std::{cell::Cell, net::IpAddr};

use cni_common::{drop::Point, net::Mac, wire::ETH_LEN};

use super::{End, NatFamily, Pair, Side, Step, entry, error_back, error_forth, receiver, related, rewrite};
use crate::{
    Res,
    ct::{Ask, Ends, Granted, key::Rest, signal, track},
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        nat::{FromIp, addr, end_of},
        world,
    },
    family::{self, V4, V6},
};

pub const HZ: u64 = 250;

/// The families, with what tests of both need.
pub trait Tested: NatFamily<Addr: FromIp> {
    /// IPv6.
    const IS_6: bool;
    fn track(w: &Fake, f: &mut Frame, ask: Ask) -> Res<()>;
    fn forth_of(w: &Fake, f: &mut Frame, pair: &Pair<Self>, node: &Self::Addr) -> Res<Option<End<Self>>>;
    fn receiver_of(
        w: &Fake,
        f: &mut Frame,
        world: &Self::Addr,
        node: &Self::Addr,
        rest: Rest,
    ) -> Res<Option<End<Self>>>;
    fn has_flow(w: &Fake, pair: &Pair<Self>) -> bool;
    fn error_back_of(w: &Fake, f: &mut Frame) -> Res<Option<Self::Addr>>;
    fn error_forth_of(w: &Fake, f: &mut Frame) -> Res<Step>;
    fn is_related(w: &Fake, f: &mut Frame) -> bool;
}
macro_rules! tested {
    ($family:ty, $is_6:literal) => {
        impl Tested for $family {
            const IS_6: bool = $is_6;
            fn track(w: &Fake, f: &mut Frame, ask: Ask) -> Res<()> {
                track::<$family, _, _>(f, w, ask, Granted::by(w.ct_config.epoch)).map(drop)
            }
            fn forth_of(w: &Fake, f: &mut Frame, pair: &Pair<Self>, node: &Self::Addr) -> Res<Option<End<Self>>> {
                end_of(f, w, pair, node)
            }
            fn receiver_of(
                w: &Fake,
                f: &mut Frame,
                world: &Self::Addr,
                node: &Self::Addr,
                rest: Rest,
            ) -> Res<Option<End<Self>>> {
                receiver(f, w, world, node, rest)
            }
            fn has_flow(w: &Fake, pair: &Pair<Self>) -> bool {
                entry::living::<$family, _>(w, &pair.flow().0).is_some()
            }
            fn error_back_of(w: &Fake, f: &mut Frame) -> Res<Option<Self::Addr>> {
                let ip = family::parse::<$family, _>(f, ETH_LEN, 8)?;
                error_back(f, w, ETH_LEN, &ip)
            }
            fn error_forth_of(w: &Fake, f: &mut Frame) -> Res<Step> {
                let ip = family::parse::<$family, _>(f, ETH_LEN, 8)?;
                error_forth(f, w, ETH_LEN, &ip)
            }
            fn is_related(w: &Fake, f: &mut Frame) -> bool {
                family::parse::<$family, _>(f, ETH_LEN, 8).is_ok_and(|ip| related(f, w, &ip).is_some())
            }
        }
    };
}
tested!(V4, false);
tested!(V6, true);

/// A node that masquerades: the way of packets through conntrack and translation.
pub struct Node<F: Tested> {
    pub w: Fake,
    pub address: Cell<F::Addr>,
}

impl<F: Tested> Node<F> {
    pub fn new() -> Self {
        Self { w: Fake::default(), address: Cell::new(addr(world::underlay(F::IS_6, 0))) }
    }
    pub fn frame(src: IpAddr, dst: IpAddr, l4: (u8, Vec<u8>)) -> Frame {
        let packet = Ip::default().packet(src, dst, frame::summed(src, dst, l4, false));
        Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1)
    }
    /// The packet, and what conntrack reads of it.
    pub fn read(f: &mut Frame) -> (family::L3<F>, Rest) {
        let ip = family::parse::<F, _>(f, ETH_LEN, 8).expect("parses");
        let ask = Ask::new(Point::FromPod, ETH_LEN, &ip, Ends { from: 0, to: 0 });
        let signal = signal::of(signal::hear(f, ask)).expect("is whole").expect("is of a flow");
        (ip, signal.rest)
    }
    pub fn track(&self, f: &mut Frame, ends: Ends) -> Res<()> {
        let ip = family::parse::<F, _>(f, ETH_LEN, 4)?;
        let ask = Ask::new(Point::FromPod, ETH_LEN, &ip, ends);
        let ask = Ask { heard: signal::hear(f, ask), ..ask };
        F::track(&self.w, f, ask)
    }
    /// A packet from a pod to the world.
    pub fn out(&self, f: &mut Frame) -> Res<()> {
        self.track(f, Ends { from: 11, to: 0 })?;
        let (ip, rest) = Self::read(f);
        let pair = Pair::<F>::sent(&ip.src, &ip.dst, rest);
        match F::forth_of(&self.w, f, &pair, &self.address.get())? {
            Some(node) => rewrite(f, ETH_LEN, &ip, Side::SOURCE, &node),
            None => Ok(()),
        }
    }
    /// A packet from the world to the node; false: it is the node's own.
    pub fn incoming(&self, f: &mut Frame) -> Res<bool> {
        let is_a_pods = self.translate_back(f)?;
        if is_a_pods {
            self.track(f, Ends { from: 0, to: 11 })?;
        }
        Ok(is_a_pods)
    }
    pub fn translate_back(&self, f: &mut Frame) -> Res<bool> {
        let (ip, rest) = Self::read(f);
        let Some(pod) = F::receiver_of(&self.w, f, &ip.src, &ip.dst, rest)? else { return Ok(false) };
        rewrite(f, ETH_LEN, &ip, Side::DESTINATION, &pod)?;
        Ok(true)
    }
    pub fn after(&self, seconds: u64) -> &Self {
        self.w.now.set(self.w.now.get() + seconds * HZ);
        self
    }
    pub fn tables(&self) -> &crate::fake::nat::NatTables {
        if F::IS_6 { &self.w.nat6 } else { &self.w.nat4 }
    }
    pub fn flows(&self) -> &crate::fake::flows::FlowTables {
        if F::IS_6 { &self.w.ct6 } else { &self.w.ct4 }
    }
    pub fn here(&self) -> IpAddr {
        world::underlay(F::IS_6, 0)
    }
    /// The pod's packet, and the port that it went out with; it is what the node's own would have been.
    pub fn port_of(&self, pod: IpAddr, l4: (u8, Vec<u8>), dst: IpAddr) -> Res<u16> {
        let mut f = Self::frame(pod, dst, l4.clone());
        self.out(&mut f)?;
        let (ip, rest) = Self::read(&mut f);
        assert!(F::is_same(&ip.src, &self.address.get()), "left under another address");
        let (proto, mut body) = l4;
        let at = if proto == F::ICMP { 4 } else { 0 };
        body[at..at + 2].copy_from_slice(&rest.ports.src().bytes);
        assert_eq!(f.data, Self::frame(self.here(), dst, (proto, body)).data);
        Ok(rest.ports.src().to_host())
    }
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const RST: u8 = 0x04;

pub fn pod(v6: bool, n: u8) -> IpAddr {
    world::pod(v6, 0, n)
}
pub fn syn(sport: u16) -> (u8, Vec<u8>) {
    frame::tcp(sport, 443, SYN, b"")
}
pub fn echo(v6: bool, id: u16, reply: bool) -> (u8, Vec<u8>) {
    let (proto, mut body) = frame::ping(v6);
    body[0] = match (v6, reply) {
        (false, false) => 8,
        (false, true) => 0,
        (true, false) => 128,
        (true, true) => 129,
    };
    body[4..6].copy_from_slice(&id.to_be_bytes());
    (proto, body)
}
