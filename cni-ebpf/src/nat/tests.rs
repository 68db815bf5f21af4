//! Translations by example.
use std::{collections::BTreeSet, net::IpAddr};

use bytemuck::Zeroable;
use cni_common::{
    maps::NAT_FIRST_PORT,
    net::Be16,
    schema::MAX_TRANSLATED,
    wire::{ICMP, ICMP6, TCP, UDP},
};

use super::{
    End, NatFamily, Side, entry,
    rewrite::{Cover, Layout},
    rig::{ACK, Node, RST, SYN, Tested, echo, pod, syn},
};
use crate::{
    DropReason as D,
    ct::{Ends, lifetime},
    fake::{frame, nat::addr, world},
    family::{V4, V6},
};

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
    many_flows_of_two_pods_with_the_same_ports_all_find_one
    a_port_that_a_socket_of_the_node_has_is_not_taken
    what_cannot_change_its_port_is_refused_by_name_when_that_is_taken
    a_destination_without_ports_left_is_a_drop_of_its_own_and_the_others_go_on
    a_full_table_is_a_drop_of_its_own
    a_pod_with_its_share_of_the_table_gets_no_more_of_it
    a_translation_lives_as_long_as_its_flow
    a_flow_that_has_lost_its_port_may_have_its_own
    a_packet_of_no_flow_never_leaves_untranslated
    what_the_world_has_opened_goes_as_it_is
    a_flow_follows_the_nodes_address
    one_half_without_the_other_is_made_anew_or_dropped
    the_nodes_own_flow_takes_its_port_back
    a_hold_that_is_not_to_be_had_is_not_waited_for
}

impl<F: Tested> Node<F> {
    /// A socket of the node has what the world writes so.
    fn bind(&self, proto: u8, world: (IpAddr, u16), port: u16) {
        self.tables().sockets.borrow_mut().insert(self.heard(proto, world, port));
    }
    /// It speaks to the world from there.
    fn use_port(&self, proto: u8, world: (IpAddr, u16), port: u16) {
        self.bind(proto, world, port);
        self.tables().used.borrow_mut().insert(self.heard(proto, world, port));
    }
    fn close(&self, proto: u8, world: (IpAddr, u16), port: u16) {
        let key = self.heard(proto, world, port);
        assert!(self.tables().sockets.borrow_mut().remove(&key) && self.tables().used.borrow_mut().remove(&key));
    }
    /// What the world writes to that port.
    fn heard(&self, proto: u8, world: (IpAddr, u16), port: u16) -> Vec<u8> {
        let end = |addr, port| End::<F> { addr, port: Be16::from_host(port) };
        let key = F::key(&end(addr(world.0), world.1), &end(self.address.get(), port), proto.into());
        bytemuck::bytes_of(&key).to_vec()
    }
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

fn many_flows_of_two_pods_with_the_same_ports_all_find_one<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    for talk in [syn as fn(u16) -> (u8, Vec<u8>), |port| echo(F::IS_6, port, false), |port| frame::udp(port, port, b"")]
    {
        let mut given = BTreeSet::new();
        for who in [11, 12] {
            for port in 1..=200 {
                let to = n.port_of(pod(F::IS_6, who), talk(port), out).expect("leaves");
                // Datagrams to another port may have the same one here.
                assert!(given.insert((if talk(1).0 == UDP { port } else { 0 }, to)));
                assert!(who == 12 || to == port);
            }
        }
    }
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

fn a_pod_with_its_share_of_the_table_gets_no_more_of_it<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    n.tables().held.borrow_mut().insert(11, u64::from(MAX_TRANSLATED) - 2);
    for port in [1, 2, 1] {
        assert_eq!(n.port_of(pod(F::IS_6, 11), syn(port), out), Ok(port), "a flow counts once");
    }
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(3), out), Err(D::NatQuota));
    n.tables().back.borrow_mut().clear();
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(1), out), Ok(1), "made anew, no other one");
    n.tables().held.borrow_mut().insert(11, 0);
    n.tables().held.borrow_mut().insert(12, u64::from(MAX_TRANSLATED));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(3), out), Ok(3), "another pod's account");
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

fn a_flow_that_has_lost_its_port_may_have_its_own<F: Tested>() {
    let (mut n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    (n.w.nat_config.first_port, n.w.nat_config.ports) = (61_000, 1);
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    assert_eq!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(61_000));
    n.after(u64::from(lifetime::HANDSHAKE) + 1);
    assert_eq!(n.port_of(pod(F::IS_6, 13), syn(61_000), out), Ok(61_000), "its own");
    assert_eq!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(40_000), "free by now");
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Err(D::NatExhausted));
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
    for (asked, answer) in [
        (frame::tcp(443, 80, SYN, b""), frame::tcp(80, 443, SYN | ACK, b"")),
        (echo(F::IS_6, 7, false), echo(F::IS_6, 7, true)),
    ] {
        let mut f = Node::<F>::frame(pod(F::IS_6, 11), out, answer);
        let before = f.data.clone();
        assert_eq!(n.out(&mut f), Err(D::NatOrphan), "an answer to nothing");
        let mut question = Node::<F>::frame(out, pod(F::IS_6, 11), asked);
        n.track(&mut question, Ends { from: 0, to: 11 }).expect("is allowed");
        assert_eq!((n.out(&mut f), f.data), (Ok(()), before));
    }
    assert_eq!(n.tables().back.borrow().len(), 0);
    // Whom the world asks under a pod's identifier is the node, also while it asks the pod under it.
    let mut question = Node::<F>::frame(out, pod(F::IS_6, 11), echo(F::IS_6, 8, false));
    n.track(&mut question, Ends { from: 0, to: 11 }).expect("is allowed");
    assert_eq!(n.port_of(pod(F::IS_6, 11), echo(F::IS_6, 8, false), out), Ok(8));
    assert_eq!(n.incoming(&mut Node::<F>::frame(out, n.here(), echo(F::IS_6, 8, false))), Ok(false));
    assert_eq!(n.incoming(&mut Node::<F>::frame(out, n.here(), echo(F::IS_6, 8, true))), Ok(true), "still the pod's");
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
    let udp = || frame::udp(7, 53, b"question");
    let answer = || Node::<F>::frame(out, n.here(), frame::udp(53, 7, b"answer"));
    assert_eq!(n.incoming(&mut answer()), Ok(false), "no pod has it: nothing is noted");
    assert_eq!(n.port_of(pod(F::IS_6, 11), udp(), out), Ok(7));
    n.bind(UDP, (out, 53), 7);
    assert_eq!(n.incoming(&mut answer()), Ok(true), "who only listens has asked nothing");
    n.use_port(UDP, (out, 53), 7);
    assert_eq!(n.incoming(&mut answer()), Ok(false), "the node's");
    assert_ne!(n.port_of(pod(F::IS_6, 11), udp(), out), Ok(7), "the pod's flow goes on elsewhere");
    assert_ne!(n.port_of(pod(F::IS_6, 12), udp(), out), Ok(7));
    n.close(UDP, (out, 53), 7);
    assert_ne!(n.port_of(pod(F::IS_6, 14), udp(), out), Ok(7), "for a while after, too");
    n.after(u64::from(lifetime::UDP_SERVICE) + 1);
    assert_eq!(n.port_of(pod(F::IS_6, 13), udp(), out), Ok(7));
}

fn a_hold_that_is_not_to_be_had_is_not_waited_for<F: Tested>() {
    let (n, out) = (Node::<F>::new(), world::outside(F::IS_6));
    assert_eq!(n.port_of(pod(F::IS_6, 11), syn(40_000), out), Ok(40_000));
    let key = n.tables().back.borrow().keys().next().cloned().expect("one");
    let key: F::Key = bytemuck::pod_read_unaligned(&key);
    let hold = F::hold(&key);
    n.after(u64::from(lifetime::HANDSHAKE) + 1);
    n.tables()
        .back
        .borrow_mut()
        .insert(bytemuck::bytes_of(&hold).to_vec(), bytemuck::bytes_of(&F::Back::zeroed()).to_vec());
    assert_ne!(n.port_of(pod(F::IS_6, 12), syn(40_000), out), Ok(40_000));
    let there: F::Back = bytemuck::pod_read_unaligned(&n.tables().back.borrow()[bytemuck::bytes_of(&key)]);
    let there = entry::holder::<F>(&there);
    assert!(matches!(there, entry::Holder::Pod(end) if F::is_same(&end.addr, &addr(pod(F::IS_6, 11)))));
    n.tables().back.borrow_mut().remove(bytemuck::bytes_of(&hold));
    assert_eq!(n.port_of(pod(F::IS_6, 13), syn(40_000), out), Ok(40_000));
}

#[test]
fn every_protocol_has_the_layout_of_its_own() {
    fn check<F: Tested>() {
        for proto in 0..=255_u8 {
            let layout = Layout::of::<F>(proto.into());
            let ends = (layout.port(Side::SOURCE), layout.port(Side::DESTINATION));
            let got = layout.has_port().then_some((layout.csum(), ends, layout.needed(), layout.cover()));
            let want = match proto {
                TCP => Some((16, (0, 2), 18, F::PSEUDO)),
                UDP => Some((6, (0, 2), 8, F::PSEUDO.or_none())),
                _ if proto == if F::IS_6 { ICMP6 } else { ICMP } => Some((2, (4, 4), 6, F::ICMP_COVER)),
                _ => None,
            };
            assert_eq!(got, want, "{proto}");
        }
    }
    check::<V4>();
    check::<V6>();
    assert_eq!((V4::PSEUDO, V4::ICMP_COVER), (Cover::PSEUDO4, Cover::CONTENT));
    assert_eq!((V6::PSEUDO, V6::ICMP_COVER), (Cover::PSEUDO6, Cover::PSEUDO6));
}
