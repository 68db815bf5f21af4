//! The sweep of translations beside the programs' own functions, over the tables that those are tested with.
mod rig;

use std::{cell::Cell, collections::BTreeSet};

use bytemuck::bytes_of;
use cni_common::{
    maps::CtEntry,
    net::Be16,
    schema::{self, MapSpec},
    wire::{TCP, UDP},
};
use cni_ebpf::{
    DropReason as D,
    ct::lifetime,
    fake::world,
    family::{V4, V6},
    nat::{End, NatFamily as _, Pair},
};

use self::rig::{Act, At, HZ, Node, On, PORT, Tested};
use super::{
    nat::{Holds, Swept, remove, sweep},
    table::Kernel,
    translation::Tables,
    view::node_end,
};
use crate::datapath::RawMap;

macro_rules! of_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name::<super::V4>(); })* }
        mod v6 { $(#[test] fn $name() { super::$name::<super::V6>(); })* }
    };
}
of_both_families! {
    what_is_over_goes_with_both_halves_and_what_lives_stays
    what_an_endpoint_has_is_counted_anew
    one_half_without_the_other_goes_when_its_flow_is_over
    a_flow_that_begins_again_keeps_what_it_has_whenever_that_is
    whoever_sends_whenever_nobody_shares_a_port
    what_the_node_has_taken_stays_a_while
    a_hold_is_respected_and_goes_when_it_was_there_a_second_ago
    a_full_table_is_emptied_too
    the_translations_of_a_pod_that_is_gone_go_with_it_however_they_are
    a_sweep_rests_and_ends_when_it_is_told_to
    an_echo_and_what_has_no_ports_are_found_by_both_keys
    the_nodes_end_of_a_flow_is_told_if_both_halves_say_so
}

fn what_is_over_goes_with_both_halves_and_what_lives_stays<F: Tested>() {
    let n = Node::<F>::new();
    let (first, second) = (Node::tcp(11), Node::tcp(12));
    n.port(&first);
    n.after(lifetime::HANDSHAKE / 2);
    let port = n.port(&second);
    assert_eq!((n.entries(), n.sweep().deleted), ((2, 2), 0));
    // In its last second another CPU may just renew it.
    n.after(lifetime::HANDSHAKE / 2);
    assert_eq!((n.sweep().deleted, n.entries()), (0, (2, 2)));
    n.after(1);
    assert_eq!((n.sweep().deleted, n.entries(), n.has_hold()), (1, (1, 1), false));
    assert!(n.is_answered(&second, port));
    assert_eq!(n.sweep().deleted, 0);
    // What conntrack has forgotten is over as well.
    F::flows(&n.w).new.remove(bytes_of(&second.flow().0));
    assert_eq!((n.sweep().deleted, n.entries()), (1, (0, 0)));
}

fn what_an_endpoint_has_is_counted_anew<F: Tested>() {
    let n = Node::<F>::new();
    for (pod, port) in [(11, 1), (11, 2), (11, 3), (12, 1)] {
        n.port(&Node::pair(pod, UDP, Be16::from_host(port)));
    }
    // As the programs, which only count up, have it some hours later.
    F::nat(&n.w).held.replace([(11, 400), (12, 1), (13, 7)].into());
    let settle = |swept: &Swept| {
        let (step, none): (_, Act<'_>) = (Cell::new(0), &|_| {});
        swept.settle(&At { on: On::Accounts(&F::nat(&n.w).held), step: &step, act: none }).unwrap();
        step.get()
    };
    assert_eq!((settle(&n.sweep()), n.accounts()), (3, vec![(11, 3), (12, 1)]));
    assert_eq!(settle(&n.sweep()), 1, "nothing is written where nothing has changed");
    n.after(lifetime::HANDSHAKE + 1);
    settle(&n.sweep());
    assert_eq!(n.accounts(), []);
}

fn one_half_without_the_other_goes_when_its_flow_is_over<F: Tested>() {
    for which in [0, 1] {
        let n = Node::<F>::new();
        let pair = Node::tcp(11);
        let port = n.port(&pair);
        let nat = F::nat(&n.w);
        let other = if which == 0 { &nat.back } else { &nat.forth };
        other.borrow_mut().clear();
        assert_eq!(n.sweep().deleted, 0, "its flow's next packet makes it whole");
        assert_eq!(n.port(&pair), port);
        other.borrow_mut().clear();
        n.after(lifetime::HANDSHAKE + 1);
        assert_eq!((n.sweep().deleted, n.entries()), (1, (0, 0)), "{which}");
    }
    // Of two entries of a flow one is said to be its; the other goes with it.
    let n = Node::<F>::new();
    let pair = Node::tcp(11);
    n.port(&pair);
    F::nat(&n.w)
        .back
        .borrow_mut()
        .insert(bytes_of(&pair.key(&n.end(61_000))).to_vec(), bytes_of(&F::back(&pair.pod, n.w.now.get())).to_vec());
    assert_eq!((n.sweep().deleted, n.entries()), (0, (2, 1)));
    n.after(lifetime::HANDSHAKE + 1);
    assert_eq!((n.sweep().deleted, n.entries()), (2, (0, 0)));
}

/// What a flow that is over has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// A port of the range. Its own is free.
    Port,
    /// The same, and another pod has its own.
    Busy,
    /// Only what was said of it.
    Half,
}
const LEFT: [Left; 3] = [Left::Port, Left::Busy, Left::Half];

/// A node that has had a pod's flow under a port of the range, which is over, and how many steps the agent makes to take it out.
fn left_behind<F: Tested>(left: Left) -> (Node<F>, Pair<F>, u16, u32) {
    let make = || {
        let n = Node::<F>::new();
        let (pair, other) = (Node::tcp(11), Node::tcp(12));
        n.port(&other);
        let port = n.port(&pair);
        assert_ne!(port, PORT.to_host());
        n.after(lifetime::HANDSHAKE + 1);
        let nat = F::nat(&n.w);
        if left == Left::Busy {
            n.port(&other);
        } else {
            nat.back.borrow_mut().remove(bytes_of(&other.key(&n.end(PORT.to_host()))));
            nat.forth.borrow_mut().remove(bytes_of(&other.flow().0));
        }
        if left == Left::Half {
            nat.back.borrow_mut().clear();
        }
        (n, pair, port)
    };
    let (n, ..) = make();
    let (_, steps) = n.sweep_with(&Holds::new(), &|_| {});
    assert_eq!(n.entries(), if left == Left::Busy { (1, 1) } else { (0, 0) });
    let (n, pair, port) = make();
    (n, pair, port, steps)
}

fn a_flow_that_begins_again_keeps_what_it_has_whenever_that_is<F: Tested>() {
    LEFT.into_iter().for_each(begins_again::<F>);
}

fn begins_again<F: Tested>(left: Left) {
    let (_, _, _, steps) = left_behind::<F>(left);
    let mut kept = 0;
    for at in 0..steps {
        let (n, pair, port, _) = left_behind::<F>(left);
        let begun = Cell::new(0);
        n.sweep_with(&Holds::new(), &|step| {
            if step == at {
                begun.set(n.port(&pair));
            }
        });
        assert!(!n.has_hold(), "{at}");
        // Under whatever port it began, it goes on under that, and is answered there.
        assert_eq!(n.port(&pair), begun.get(), "{left:?}: at step {at} of {steps}");
        assert!(n.is_answered(&pair, begun.get()), "{at}");
        kept += u32::from(begun.get() == port);
        let (back, forth) = n.entries();
        let others = usize::from(left == Left::Busy);
        assert!(forth == 1 + others && back <= 2 + others, "{at}: {back}");
        n.after(lifetime::HANDSHAKE + 1);
        n.sweep();
        assert_eq!(n.entries(), (0, 0), "{at}: nothing is left for ever");
    }
    assert!(kept > 5 && kept < steps, "{kept} of {steps}: some before it was taken out, some behind");
}

fn whoever_sends_whenever_nobody_shares_a_port<F: Tested>() {
    LEFT.into_iter().for_each(nobody_shares::<F>);
}

fn nobody_shares<F: Tested>(left: Left) {
    let (_, _, _, steps) = left_behind::<F>(left);
    // When the flow has begun again so that its first answer is lost.
    let mut orphans = BTreeSet::new();
    for (first, second) in (0..steps).flat_map(|a| (0..steps + 2).map(move |b| (a, b))) {
        let (n, pair, port, _) = left_behind::<F>(left);
        // Another pod whose own port is the one that the flow had.
        let other = Node::pair(13, TCP, Be16::from_host(port));
        let ends = Cell::new((None, None));
        n.sweep_with(&Holds::new(), &|step| {
            if step == first {
                ends.set((Some(n.port(&pair)), ends.get().1));
            }
            if step == second {
                ends.set((ends.get().0, Some(n.port(&other))));
            }
        });
        assert!(!n.has_hold());
        for (who, had) in [(&pair, ends.get().0), (&other, ends.get().1)] {
            let Some(had) = had else { continue };
            // Where what was said of the flow went in the very moment in which it said something else, that holds until its next packet.
            let answered = F::back_of(&n.w, n.end(had), who).map(|pod| pod.map(|pod| F::ip(&pod.addr)));
            assert!(
                [Ok(Some(F::ip(&who.pod.addr))), Err(D::NatOrphan)].contains(&answered),
                "{first} {second}: {answered:?}"
            );
            orphans.extend(answered.is_err().then_some(first));
            assert_eq!(n.port(who), had, "{first} {second}");
            assert!(n.is_answered(who, had), "{first} {second}: what left under {had} is not answered");
        }
        assert_ne!(n.port(&pair), n.port(&other), "{first} {second}");
    }
    // Between a look and the deletion behind it: the last look-up of a flow, or of what is said of it.
    assert!(orphans.len() <= 3, "{left:?}: {orphans:?} of {steps}");
}

fn what_the_node_has_taken_stays_a_while<F: Tested>() {
    let n = Node::<F>::new();
    let pair = Node::tcp(11);
    let port = n.port(&pair);
    n.after(lifetime::HANDSHAKE - 1);
    F::node_takes(&n.w, n.end(port), &pair);
    assert_eq!(n.sweep().deleted, 0);
    n.after(lifetime::HANDSHAKE - 1);
    // The pod's flow is over, and what was said of it is the other half of nothing.
    assert_eq!((n.sweep().deleted, n.entries()), (1, (1, 0)));
    assert!(!n.is_answered(&pair, port));
    n.after(1);
    assert_eq!((n.sweep().deleted, n.entries(), n.has_hold()), (1, (0, 0), false));
    // A pod gets it between the look and the hold.
    n.port(&pair);
    F::node_takes(&n.w, n.end(port), &pair);
    F::flows(&n.w).new.remove(bytes_of(&pair.flow().0));
    F::nat(&n.w).forth.borrow_mut().clear();
    n.after(lifetime::HANDSHAKE);
    let (_, steps) = n.sweep_with(&Holds::new(), &|step| {
        if step == 1 {
            assert_eq!(n.port(&pair), port);
        }
    });
    assert!(steps > 1 && n.entries() == (1, 1), "{steps} {:?}", n.entries());
}

fn a_hold_is_respected_and_goes_when_it_was_there_a_second_ago<F: Tested>() {
    let n = Node::<F>::new();
    let pair = Node::tcp(11);
    let key = pair.key(&n.end(n.port(&pair)));
    n.after(lifetime::HANDSHAKE + 1);
    let hold = || {
        let since = F::back(&End { addr: bytemuck::Zeroable::zeroed(), port: Be16::ZERO }, n.w.now.get());
        F::nat(&n.w).back.borrow_mut().insert(bytes_of(&F::hold(&key)).to_vec(), bytes_of(&since).to_vec());
    };
    hold();
    let first = n.sweep();
    assert_eq!((first.deleted, first.holds.len(), n.entries()), (0, 1, (2, 1)), "somebody is at it");
    // Once more within the second.
    n.w.now.set(n.w.now.get() + HZ - 1);
    let (second, _) = n.sweep_with(&first.holds, &|_| {});
    assert_eq!((second.deleted, n.entries()), (0, (2, 1)));
    // By then it is another one.
    n.w.now.set(n.w.now.get() + 1);
    hold();
    let (third, _) = n.sweep_with(&second.holds, &|_| {});
    assert_eq!((third.deleted, n.entries()), (0, (2, 1)));
    n.after(1);
    let (fourth, _) = n.sweep_with(&third.holds, &|_| {});
    assert!(fourth.deleted >= 1 && fourth.holds.is_empty() && !n.has_hold());
    n.sweep();
    assert_eq!(n.entries(), (0, 0));
}

fn a_full_table_is_emptied_too<F: Tested>() {
    let mut n = Node::<F>::new();
    for port in 1..=4 {
        n.port(&Node::pair(11, UDP, Be16::from_host(port)));
    }
    let room = |n: &mut Node<F>, room| if F::IS_6 { &mut n.w.nat6 } else { &mut n.w.nat4 }.room = room;
    room(&mut n, 4);
    assert_eq!(n.sends(&Node::pair(11, UDP, Be16::from_host(5))).map(|e| e.port.to_host()), Err(D::NatFull));
    n.after(lifetime::HANDSHAKE + 1);
    assert_eq!((n.sweep().deleted, n.entries()), (4, (0, 0)));
}

fn the_translations_of_a_pod_that_is_gone_go_with_it_however_they_are<F: Tested>() {
    let n = Node::<F>::new();
    for (pod, port) in [(11, 1), (11, 2), (11, 3), (12, 1), (12, 9)] {
        n.port(&Node::pair(pod, UDP, Be16::from_host(port)));
    }
    let other = Node::pair(12, UDP, Be16::from_host(9));
    assert_eq!(n.accounts(), [(11, 3), (12, 2)]);
    // One has lost this half, one the other.
    let (one, two) = (Node::<F>::pair(11, UDP, Be16::from_host(1)), Node::<F>::pair(11, UDP, Be16::from_host(2)));
    F::nat(&n.w).back.borrow_mut().remove(bytes_of(&one.key(&n.end(1))));
    F::nat(&n.w).forth.borrow_mut().remove(bytes_of(&two.flow().0));
    assert_eq!((n.remove(11), n.entries(), n.has_hold()), (3, (2, 2), false));
    assert!(n.is_answered(&other, 9));
    assert_eq!(n.accounts(), [(11, 1), (12, 2)], "of one nothing said whose it was; the next pass counts anew");
    assert_eq!((n.remove(12), n.entries()), (2, (0, 0)));
    assert_eq!(n.accounts(), [(11, 1)]);
    assert_eq!(n.remove(12), 0);
}

fn a_sweep_rests_and_ends_when_it_is_told_to<F: Tested>() {
    let n = Node::<F>::new();
    for port in 1..=5 {
        n.port(&Node::pair(11, UDP, Be16::from_host(port)));
    }
    let ended_at = |most| {
        let (step, rests) = (Cell::new(0), Cell::new(0));
        let tables = n.tables(&step, &|_| {});
        let now = || Ok(n.w.now.get());
        let swept = sweep::<F, _>(&tables, &n.w.ct_config, &Holds::new(), now, |_| {
            rests.set(rests.get() + 1);
            rests.get() < most
        });
        (swept.unwrap().is_some(), rests.get())
    };
    // Three lots of either table.
    assert_eq!((ended_at(2), ended_at(6), ended_at(7)), ((false, 2), (false, 6), (true, 6)));
}

fn an_echo_and_what_has_no_ports_are_found_by_both_keys<F: Tested>() {
    let n = Node::<F>::new();
    let talks = [Node::pair(11, F::ICMP, PORT), Node::pair(11, 132, PORT), Node::pair(11, 47, Be16::ZERO)];
    let talks =
        talks.map(
            |pair| if pair.proto == 47 { Pair { world: End { port: Be16::ZERO, ..pair.world }, ..pair } } else { pair },
        );
    for (n_th, pair) in talks.iter().enumerate() {
        let port = n.port(pair);
        assert!(n.is_answered(pair, port));
        let (flow, _) = pair.flow();
        let keys = F::pairs(&flow).map(|p| bytes_of(&p.key(&n.end(port))).to_vec());
        assert!(keys.contains(&bytes_of(&pair.key(&n.end(port))).to_vec()), "{n_th}");
        let outside = F::outside(&pair.key(&n.end(port)));
        assert!(bytes_of(&outside.pair(pair.pod).flow().0) == bytes_of(&flow), "{n_th}");
    }
    assert_eq!((n.sweep().deleted, n.entries()), (0, (3, 3)));
    n.after(lifetime::OTHER);
    assert_eq!((n.sweep().deleted, n.entries()), (3, (0, 0)));
}

fn the_nodes_end_of_a_flow_is_told_if_both_halves_say_so<F: Tested>() {
    let n = Node::<F>::new();
    n.port(&Node::tcp(12));
    let pair = Node::tcp(11);
    let port = n.port(&pair);
    let (key, from_hi) = pair.flow();
    let told_of = |hi_opened| {
        let step = Cell::new(0);
        let end = node_end::<F, _>(&n.tables(&step, &|_| {}), bytes_of(&key), hi_opened).unwrap();
        end.map(|(address, port)| {
            assert_eq!(address, world::underlay(F::IS_6, 0));
            port
        })
    };
    let told = || told_of(from_hi);
    assert_eq!((told(), told_of(!from_hi)), (Some(port), None), "the pod has opened it");
    F::node_takes(&n.w, n.end(port), &pair);
    assert_eq!(told(), None, "the node has taken it");
    n.port(&pair);
    F::nat(&n.w).forth.borrow_mut().clear();
    assert_eq!(told(), None);
}

#[test]
#[ignore = "makes maps in the kernel"]
fn the_kernels_maps_do_as_those_in_memory() {
    let make = |spec: MapSpec| RawMap::create(MapSpec { max_entries: 4, ..spec }).unwrap();
    let (flows, new) = (make(schema::CT4), make(schema::CT_NEW4));
    let (back, forth, held) = (make(schema::NAT_BACK4), make(schema::NAT_FORTH4), make(schema::NAT_HELD4));
    let of = |map| Kernel { map, by_lots: false };
    let tables = Tables { flows: of(&flows), new: of(&new), back: of(&back), forth: of(&forth), accounts: of(&held) };
    let n = Node::<V4>::new();
    let (lifetimes, now) = (n.w.ct_config, n.w.now.get());
    let sweep = |before: &Holds| sweep::<V4, _>(&tables, &lifetimes, before, || Ok(now), |_| true).unwrap().unwrap();
    let fill = || {
        for port in 1..=4_u16 {
            let pair = Node::<V4>::pair(11, UDP, Be16::from_host(port));
            assert!(back.insert(bytes_of(&pair.key(&n.end(port))), bytes_of(&V4::back(&pair.pod, now))).unwrap());
            assert!(forth.insert(bytes_of(&pair.flow().0), bytes_of(&V4::forth(&n.end(port)))).unwrap());
        }
    };
    fill();
    let pair = Node::<V4>::pair(11, UDP, Be16::from_host(1));
    let (key, mine) = (pair.key(&n.end(1)), V4::back(&pair.pod, 7));
    assert!(!back.insert(bytes_of(&key), bytes_of(&mine)).unwrap(), "it is there");
    let full = back.insert(bytes_of(&V4::hold(&key)), bytes_of(&mine)).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::E2BIG));
    assert_eq!((sweep(&Holds::new()).deleted, back.dump().unwrap().len(), forth.dump().unwrap().len()), (4, 0, 0));
    // One lives, and one is held by somebody.
    fill();
    let entry = CtEntry { seen: now, lifetime: 1, charged: 11, ..bytemuck::Zeroable::zeroed() };
    flows.update(bytes_of(&pair.flow().0), bytes_of(&entry)).unwrap();
    let two = Node::<V4>::pair(11, UDP, Be16::from_host(2)).key(&n.end(2));
    back.delete(bytes_of(&Node::<V4>::pair(11, UDP, Be16::from_host(4)).key(&n.end(4)))).unwrap();
    back.insert(bytes_of(&V4::hold(&two)), bytes_of(&mine)).unwrap();
    let swept = sweep(&Holds::new());
    let left: BTreeSet<Vec<u8>> = back.dump().unwrap().into_keys().collect();
    assert_eq!(left, [key, two, V4::hold(&two)].map(|k| bytes_of(&k).to_vec()).into());
    assert_eq!((swept.deleted, swept.holds.len(), forth.dump().unwrap().len()), (2, 1, 2));
    swept.settle(&tables.accounts).unwrap();
    assert_eq!(held.lookup(&11_u32.to_ne_bytes()).unwrap(), Some(1_u64.to_ne_bytes().to_vec()));
    let all = remove::<V4, _>(&tables, now, &|a| a == world::pod(false, 0, 11)).unwrap();
    assert_eq!((all, held.dump().unwrap().len()), (1, 0), "the one that is held stays for the sweep");
}
