//! Translations by example.
use std::{cell::Cell, net::IpAddr};

use bytemuck::Zeroable;
use cni_common::{
    drop::Point,
    maps::NAT_FIRST_PORT,
    net::{Be16, Mac},
    wire::{ETH_LEN, ICMP, ICMP6, SCTP, TCP, UDP},
};

use super::{End, NatFamily, Pair, Side, back, entry, error_back, error_forth, forth, give_way, related, rewrite};
use crate::{
    DropReason as D, Res,
    ct::{Ask, Ends, allow, lifetime, track},
    fake::{
        Fake, Frame,
        frame::{self, Ip},
        nat::{FromIp, addr},
        world,
    },
    family::{self, Family, V4, V6},
};

pub const HZ: u64 = 250;

/// The families, with what tests of both need.
pub trait Tested: NatFamily<Addr: FromIp> {
    /// IPv6.
    const IS_6: bool;
    fn track(w: &Fake, f: &mut Frame, ask: Ask) -> Res<()>;
    fn forth_of(w: &Fake, f: &mut Frame, pair: &Pair<Self>, node: &Self::Addr) -> Res<Option<End<Self>>>;
    fn back_of(w: &Fake, world: &End<Self>, node: &End<Self>, proto: u32) -> Res<Option<End<Self>>>;
    fn give_way(w: &Fake, world: &End<Self>, node: &End<Self>, proto: u32);
    fn has_flow(w: &Fake, pair: &Pair<Self>) -> bool;
    fn error_back_of(w: &Fake, f: &mut Frame) -> Res<Option<Self::Addr>>;
    fn error_forth_of(w: &Fake, f: &mut Frame) -> Res<bool>;
    fn is_related(w: &Fake, f: &mut Frame) -> bool;
}
macro_rules! tested {
    ($family:ty, $is_6:literal) => {
        impl Tested for $family {
            const IS_6: bool = $is_6;
            fn track(w: &Fake, f: &mut Frame, ask: Ask) -> Res<()> {
                track::<$family, _, _, _>(f, w, ask, &allow)
            }
            fn forth_of(w: &Fake, f: &mut Frame, pair: &Pair<Self>, node: &Self::Addr) -> Res<Option<End<Self>>> {
                forth(f, w, pair, node)
            }
            fn back_of(w: &Fake, world: &End<Self>, node: &End<Self>, proto: u32) -> Res<Option<End<Self>>> {
                back(w, world, node, proto)
            }
            fn give_way(w: &Fake, world: &End<Self>, node: &End<Self>, proto: u32) {
                give_way(w, world, node, proto);
            }
            fn has_flow(w: &Fake, pair: &Pair<Self>) -> bool {
                entry::living::<$family, _>(w, &pair.flow().0).is_some()
            }
            fn error_back_of(w: &Fake, f: &mut Frame) -> Res<Option<Self::Addr>> {
                let ip = family::parse::<$family, _>(f, ETH_LEN, 8)?;
                error_back(f, w, ETH_LEN, &ip)
            }
            fn error_forth_of(w: &Fake, f: &mut Frame) -> Res<bool> {
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
    /// Ends of the packet as conntrack reads them; an echo's identifier twice.
    fn ends(f: &mut Frame) -> (family::L3<F>, End<F>, End<F>) {
        let ip = family::parse::<F, _>(f, ETH_LEN, 8).expect("parses");
        let l4 = &f.data[ip.l4..];
        let port = |at: usize| Be16::new([l4[at], l4[at + 1]]);
        let (s, d) = match ip.proto as u8 {
            TCP | UDP | SCTP => (port(0), port(2)),
            proto if proto == F::ICMP => (port(4), port(4)),
            _ => (Be16::ZERO, Be16::ZERO),
        };
        (ip, End { addr: ip.src, port: s }, End { addr: ip.dst, port: d })
    }
    pub fn track(&self, f: &mut Frame, ends: Ends) -> Res<()> {
        let ip = family::parse::<F, _>(f, ETH_LEN, 4)?;
        let ports = family::ports(f, &ip)?;
        F::track(&self.w, f, Ask::new(Point::FromPod, ETH_LEN, &ip, ports, ends))
    }
    /// A packet from a pod to the world.
    pub fn out(&self, f: &mut Frame) -> Res<()> {
        self.track(f, Ends { from: 11, to: 0 })?;
        let (ip, pod, world) = Self::ends(f);
        let pair = Pair::<F> { pod, world, proto: ip.proto };
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
        let (ip, world, node) = Self::ends(f);
        let Some(pod) = F::back_of(&self.w, &world, &node, ip.proto)? else { return Ok(false) };
        rewrite(f, ETH_LEN, &ip, Side::DESTINATION, &pod)?;
        Ok(true)
    }
    /// The node itself sends this.
    fn own(&self, f: &mut Frame) {
        let (ip, node, world) = Self::ends(f);
        F::give_way(&self.w, &world, &node, ip.proto);
    }
    pub fn after(&self, seconds: u64) -> &Self {
        self.w.now.set(self.w.now.get() + seconds * HZ);
        self
    }
    /// A socket of the node has what the world writes so.
    fn bind(&self, proto: u8, world: (IpAddr, u16), port: u16) {
        let end = |addr, port| End::<F> { addr, port: Be16::from_host(port) };
        let key = F::key(&end(addr(world.0), world.1), &end(self.address.get(), port), proto.into());
        self.tables().sockets.borrow_mut().insert(bytemuck::bytes_of(&key).to_vec());
    }
    pub fn tables(&self) -> &crate::fake::nat::NatTables {
        if F::IS_6 { &self.w.nat6 } else { &self.w.nat4 }
    }
    fn flows(&self) -> &crate::fake::flows::FlowTables {
        if F::IS_6 { &self.w.ct6 } else { &self.w.ct4 }
    }
    pub fn here(&self) -> IpAddr {
        world::underlay(F::IS_6, 0)
    }
    /// The pod's packet, and the port that it went out with; it is what the node's own would have been.
    pub fn port_of(&self, pod: IpAddr, l4: (u8, Vec<u8>), dst: IpAddr) -> Res<u16> {
        let mut f = Self::frame(pod, dst, l4.clone());
        self.out(&mut f)?;
        let (ip, from, _) = Self::ends(&mut f);
        assert!(F::is_same(&ip.src, &self.address.get()), "left under another address");
        let (proto, mut body) = l4;
        let at = if proto == F::ICMP { 4 } else { 0 };
        body[at..at + 2].copy_from_slice(&from.port.bytes);
        assert_eq!(f.data, Self::frame(self.here(), dst, (proto, body)).data);
        Ok(from.port.to_host())
    }
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
const RST: u8 = 0x04;

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

/// Each test below, of either family.
macro_rules! of_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name::<super::V4>(); })* }
        mod v6 { $(#[test] fn $name() { super::$name::<super::V6>(); })* }
    };
}
of_both_families! {
    a_pods_port_is_kept_and_the_answer_finds_it
    each_protocol_is_translated_there_and_back
    two_pods_with_one_port_get_two_and_towards_another_end_one
    a_port_that_a_socket_of_the_node_has_is_not_taken
    what_cannot_change_its_port_is_refused_by_name_when_that_is_taken
    a_destination_without_ports_left_is_a_drop_of_its_own_and_the_others_go_on
    a_full_table_is_a_drop_of_its_own
    a_translation_lives_as_long_as_its_flow
    a_packet_of_no_flow_never_leaves_untranslated
    what_the_world_has_opened_goes_as_it_is
    a_flow_follows_the_nodes_address
    one_half_without_the_other_is_made_anew_or_dropped
    the_nodes_own_flow_takes_its_port_back
    a_hold_that_is_not_to_be_had_is_not_waited_for
}

fn a_pods_port_is_kept_and_the_answer_finds_it<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let mut answer = Node::<F>::frame(out, n.here(), frame::tcp(443, 40_000, SYN | ACK, b""));
    assert_eq!(n.incoming(&mut answer), Ok(true));
    assert_eq!(answer.data, Node::<F>::frame(out, pod(F::IS_6, 11), frame::tcp(443, 40_000, SYN | ACK, b"")).data);
    // From another port of the same host, or from another host, it is none.
    for (src, sport) in [(out, 444), (world::underlay(F::IS_6, 9), 443)] {
        let mut f = Node::<F>::frame(src, n.here(), frame::tcp(sport, 40_000, SYN | ACK, b""));
        let before = f.data.clone();
        assert_eq!((n.incoming(&mut f), f.data), (Ok(false), before));
    }
}

fn each_protocol_is_translated_there_and_back<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    let sctp_back = {
        let (proto, mut body) = frame::sctp(1, 2);
        body[..4].copy_from_slice(&[0, 2, 0, 1]);
        (proto, body)
    };
    for (there, answer) in [
        (syn(5), frame::tcp(443, 5, SYN | ACK, b"")),
        (frame::udp(5, 53, b"question?"), frame::udp(53, 5, b"answer")),
        (echo(F::IS_6, 5, false), echo(F::IS_6, 5, true)),
        (frame::sctp(1, 2), sctp_back),
        ((47, vec![1; 8]), (47, vec![2; 8])),
    ] {
        let mut f = Node::<F>::frame(pod(F::IS_6, 11), out, there.clone());
        n.out(&mut f).expect("leaves");
        assert_eq!(f.data, Node::<F>::frame(n.here(), out, there).data);
        let mut f = Node::<F>::frame(out, n.here(), answer.clone());
        assert_eq!(n.incoming(&mut f), Ok(true), "{}", answer.0);
        assert_eq!(f.data, Node::<F>::frame(out, pod(F::IS_6, 11), answer).data);
    }
}

fn two_pods_with_one_port_get_two_and_towards_another_end_one<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let other = n.port_of(pod(F::IS_6, 12), syn(40_000), out).expect("leaves");
    assert!(u32::from(other) >= NAT_FIRST_PORT, "{other}");
    assert_eq!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(other), "the same with the next packet");
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let elsewhere = world::underlay(F::IS_6, 200);
    assert_eq!(n.port_of(pod(F::IS_6, 12), syn(40_000), elsewhere), Ok(40_000));
    // Echoes, by their identifiers.
    assert_eq!(n.port_of(pod(F::IS_6, 11), echo(F::IS_6, 7, false), out), Ok(7));
    let id = n.port_of(pod(F::IS_6, 12), echo(F::IS_6, 7, false), out).expect("leaves");
    assert_ne!(id, 7);
    let mut f = Node::<F>::frame(out, n.here(), echo(F::IS_6, id, true));
    assert_eq!(n.incoming(&mut f), Ok(true));
    assert_eq!(f.data, Node::<F>::frame(out, pod(F::IS_6, 12), echo(F::IS_6, 7, true)).data);
}

fn a_port_that_a_socket_of_the_node_has_is_not_taken<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    n.bind(TCP, (out, 443), 40_000);
    let port = n.port_of(pod(F::IS_6, 11), syn(40_000), out).expect("leaves");
    assert!(u32::from(port) >= NAT_FIRST_PORT);
    let mut f = Node::<F>::frame(out, n.here(), frame::tcp(443, 40_000, SYN | ACK, b""));
    assert_eq!(n.incoming(&mut f), Ok(false), "the socket's");
    assert_eq!(n.tables().back.borrow().len(), 1, "and nothing is noted of it");
}

fn what_cannot_change_its_port_is_refused_by_name_when_that_is_taken<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    for l4 in [frame::sctp(1, 2), (47, vec![1; 8])] {
        let send = |who| {
            let mut f = Node::<F>::frame(pod(F::IS_6, who), out, l4.clone());
            n.out(&mut f)
        };
        assert_eq!((send(11), send(12), send(11)), (Ok(()), Err(D::NatExhausted), Ok(())));
        n.after(u64::from(lifetime::OTHER) + 1);
        assert_eq!(send(12), Ok(()), "the first one's flow is over");
    }
}

fn a_destination_without_ports_left_is_a_drop_of_its_own_and_the_others_go_on<F: Tested>() {
    let (mut n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    (n.w.nat_config.first_port, n.w.nat_config.ports) = (61_000, 4);
    let mut given = Vec::new();
    let refused = (11..=20).find(|who| match n.port_of(pod(F::IS_6, *who), syn(40_000), out) {
        Ok(port) => {
            given.push(port);
            false
        }
        Err(e) => {
            assert_eq!(e, D::NatExhausted);
            true
        }
    });
    given.sort_unstable();
    assert_eq!((refused, given), (Some(16), vec![40_000, 61_000, 61_001, 61_002, 61_003]));
    assert_eq!(n.port_of(pod(F::IS_6, 16), syn(40_001), out), Ok(40_001), "its own port is free");
    assert_eq!(n.port_of(pod(F::IS_6, 16), syn(40_000), world::underlay(F::IS_6, 200)), Ok(40_000));
    n.w.nat_config.ports = 0;
    assert_eq!(n.port_of(pod(F::IS_6, 17), syn(40_000), out), Err(D::NatExhausted));
}

fn a_full_table_is_a_drop_of_its_own<F: Tested>() {
    let (mut n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    if F::IS_6 { &mut n.w.nat6 } else { &mut n.w.nat4 }.room = 1;
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(1), out), Ok(1));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(2), out), Err(D::NatFull));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(1), out), Ok(1));
}

fn a_translation_lives_as_long_as_its_flow<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    let answer = || Node::<F>::frame(out, n.here(), frame::tcp(443, 40_000, SYN | ACK, b""));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    n.after(u64::from(lifetime::HANDSHAKE) - 1);
    assert_eq!(n.incoming(&mut answer()), Ok(true));
    n.after(u64::from(lifetime::HANDSHAKE));
    assert_eq!(n.incoming(&mut answer()), Ok(false), "nobody's: the stack answers as to any closed port");
    // In the first second another CPU may just be renewing it.
    let other = n.port_of(pod(F::IS_6, 12), syn(40_000), out).expect("leaves");
    assert_ne!(other, 40_000);
    n.after(1);
    assert_eq!(n.port_of(pod(F::IS_6, 13), syn(40_000), out), Ok(40_000), "taken over");
    assert_ne!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000), "begins again, elsewhere");
    assert_eq!(n.tables().back.borrow().len(), 3, "no hold is left");
    // What conntrack has forgotten is over as well.
    for key in n.flows().new.dump().into_keys() {
        n.flows().new.remove(&key);
    }
    assert_eq!(n.port_of(pod(F::IS_6, 14), syn(40_000), out), Ok(40_000));
}

fn a_packet_of_no_flow_never_leaves_untranslated<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    let reset = || frame::tcp(40_000, 443, RST, b"");
    assert_eq!(n.port_of(pod(F::IS_6, 11), reset(), out), Err(D::NatOrphan));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    assert_eq!(n.port_of(pod(F::IS_6, 11), reset(), out), Ok(40_000));
    n.after(u64::from(lifetime::CLOSED));
    assert_eq!(n.port_of(pod(F::IS_6, 11), reset(), out), Err(D::NatOrphan), "its entry may be another's at any time");
}

fn what_the_world_has_opened_goes_as_it_is<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    let mut f = Node::<F>::frame(out, pod(F::IS_6, 11), frame::tcp(443, 80, SYN, b""));
    n.track(&mut f, Ends { from: 0, to: 11 }).expect("is allowed");
    let mut f = Node::<F>::frame(pod(F::IS_6, 11), out, frame::tcp(80, 443, SYN | ACK, b""));
    let before = f.data.clone();
    assert_eq!((n.out(&mut f), f.data), (Ok(()), before));
    assert_eq!(n.tables().back.borrow().len(), 0);
}

fn a_flow_follows_the_nodes_address<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let (old, new) = (n.here(), world::underlay(F::IS_6, 77));
    n.address.set(addr(new));
    let mut f = Node::<F>::frame(pod(F::IS_6, 11), out, syn(40_000));
    n.out(&mut f).expect("leaves");
    assert_eq!(f.data, Node::<F>::frame(new, out, syn(40_000)).data);
    let answer = |to| Node::<F>::frame(out, to, frame::tcp(443, 40_000, SYN | ACK, b""));
    assert_eq!(n.incoming(&mut answer(new)), Ok(true));
    assert_eq!(n.incoming(&mut answer(old)), Err(D::NatOrphan), "late");
}

fn one_half_without_the_other_is_made_anew_or_dropped<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    let answer = |port| Node::<F>::frame(out, n.here(), frame::tcp(443, port, SYN | ACK, b""));
    assert_eq!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(40_000));
    let port = n.port_of(pod(F::IS_6, 11), syn(40_000), out).expect("leaves");
    let (back, forth) = (n.tables().back.borrow().clone(), n.tables().forth.borrow().clone());
    n.tables().back.borrow_mut().clear();
    assert_eq!(n.incoming(&mut answer(port)), Ok(false), "nothing says that it is a pod's");
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(port), "the old port, as it is free");
    assert_eq!(n.incoming(&mut answer(port)), Ok(true));
    n.tables().forth.borrow_mut().clear();
    assert_eq!(n.incoming(&mut answer(port)), Err(D::NatOrphan));
    n.tables().forth.replace(forth);
    n.tables().back.replace(back);
    assert_eq!(n.incoming(&mut answer(port)), Ok(true));
}

fn the_nodes_own_flow_takes_its_port_back<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    for (there, answer) in [
        (echo(F::IS_6, 7, false), echo(F::IS_6, 7, true)),
        (frame::udp(7, 53, b"question"), frame::udp(53, 7, b"answer")),
    ] {
        let own = || Node::<F>::frame(n.here(), out, there.clone());
        let answer = || Node::<F>::frame(out, n.here(), answer.clone());
        n.own(&mut own());
        assert_eq!(n.incoming(&mut answer()), Ok(false), "no pod has it: nothing is noted");
        assert_eq!(n.port_of(pod(F::IS_6, 11), there.clone(), out), Ok(7));
        n.own(&mut own());
        assert_eq!(n.incoming(&mut answer()), Ok(false), "the node's");
        assert_ne!(n.port_of(pod(F::IS_6, 11), there.clone(), out), Ok(7), "the pod's flow goes on elsewhere");
        // For as long as the node uses it, and a while after.
        let life = u64::from(if there.0 == UDP { lifetime::UDP_SERVICE } else { lifetime::ECHO });
        for _ in 0..3 {
            n.after(life - 1).own(&mut own());
        }
        assert_ne!(n.port_of(pod(F::IS_6, 12), there.clone(), out), Ok(7));
        n.after(life + 1);
        assert_eq!(n.port_of(pod(F::IS_6, 13), there.clone(), out), Ok(7));
    }
}

fn a_hold_that_is_not_to_be_had_is_not_waited_for<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let key = n.tables().back.borrow().keys().next().cloned().expect("one");
    let key: F::Key = bytemuck::pod_read_unaligned(&key);
    n.after(u64::from(lifetime::HANDSHAKE) + 1);
    n.tables()
        .back
        .borrow_mut()
        .insert(bytemuck::bytes_of(&F::hold(&key)).to_vec(), bytemuck::bytes_of(&F::Back::zeroed()).to_vec());
    assert_ne!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(40_000));
    let there = bytemuck::pod_read_unaligned(&n.tables().back.borrow()[bytemuck::bytes_of(&key)]);
    let there = entry::holder::<F>(&there);
    assert!(matches!(there, entry::Holder::Pod(end) if F::is_same(&end.addr, &addr(pod(F::IS_6, 11)))));
    n.tables().back.borrow_mut().remove(bytemuck::bytes_of(&F::hold(&key)));
    assert_eq!(n.port_of(pod(F::IS_6, 13), syn(40_000), out), Ok(40_000));
}

#[test]
fn protocols_are_named_as_the_families_name_them() {
    assert_eq!((V4::ICMP, V6::ICMP), (ICMP, ICMP6));
    assert!([TCP, UDP].iter().all(|p| rewrite::Layout::of::<V4>((*p).into()).has_port()));
    assert!([SCTP, ICMP6, 47].iter().all(|p| !rewrite::Layout::of::<V4>((*p).into()).has_port()));
    assert!([SCTP, ICMP, 47].iter().all(|p| !rewrite::Layout::of::<V6>((*p).into()).has_port()));
    assert_eq!(V4::NUMBER, 4);
}
