//! ICMP errors about masqueraded flows, against the same errors made from scratch about the packets as they were sent.
use std::net::IpAddr;

use cni_common::{
    net::Mac,
    wire::{ETH_LEN, ICMP, ICMP6, SCTP, TCP, UDP},
};
use proptest::prelude::*;

use super::Step;
use super::rig::{ACK, Node, SYN, Tested, echo, pod, syn};
use crate::{
    DropReason as D, Packet, Res,
    ct::{Ends, lifetime},
    fake::{
        Frame,
        frame::{self, Ip},
        nat::addr,
        world,
    },
    family::{V4, V6},
};

/// A router on the way.
fn router(v6: bool) -> IpAddr {
    if v6 { "2001:db8::ffff" } else { "203.0.113.1" }.parse().expect("an address")
}

/// An error of this type about a packet, with so much of it, and more behind.
fn error(src: IpAddr, dst: IpAddr, kind: u8, about: &Frame, quoted: usize, tail: &[u8]) -> Frame {
    let quote = &about.data[ETH_LEN..];
    let mut body = vec![kind, 0, 0, 0, 0, 0, 5, 0xdc];
    body.extend(&quote[..quote.len().min(quoted)]);
    body.extend(tail);
    let l4 = frame::summed(src, dst, (if src.is_ipv6() { ICMP6 } else { ICMP }, body), false);
    Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, Ip::default().packet(src, dst, l4)), 1)
}

/// Types that are translated.
fn kinds(v6: bool) -> Vec<u8> {
    if v6 { vec![1, 2, 3, 4] } else { vec![3, 11, 12] }
}

/// Protocol and what follows the network header.
type L4 = (u8, Vec<u8>);

/// A question of the pod's, and what is answered.
fn talks(v6: bool) -> Vec<(L4, L4)> {
    let sctp = |ports: [u8; 4]| {
        let (proto, mut body) = frame::sctp(0, 0);
        body[..4].copy_from_slice(&ports);
        (proto, body)
    };
    vec![
        (
            frame::tcp(40_000, 443, SYN, b"some data, so that much is quoted"),
            frame::tcp(443, 40_000, SYN | ACK, b"more"),
        ),
        (frame::udp(40_000, 53, b"question"), frame::udp(53, 40_000, b"answer")),
        (echo(v6, 40_000, false), echo(v6, 40_000, true)),
        (sctp([0, 9, 0, 8]), sctp([0, 8, 0, 9])),
        ((47, vec![1; 30]), (47, vec![2; 30])),
    ]
}

/// A node where another pod has taken the ports, so that this one's are others, where they can be.
fn busy<F: Tested>() -> Node<F> {
    let n = Node::<F>::new();
    for (question, _) in talks(F::IS_6) {
        if ![SCTP, 47].contains(&question.0) {
            n.port_of(pod(F::IS_6, 12), question, world::outside(F::IS_6)).expect("leaves");
        }
    }
    n
}

/// Even ones: nobody cuts a packet in the middle of a word, and half a checksum has no other form.
fn quoted_lengths<F: Tested>() -> impl Iterator<Item = usize> {
    let header = F::HEADER as usize;
    (header + 8..=header + 60).step_by(2)
}

macro_rules! of_both_families {
    ($($name:ident)*) => {
        mod v4 { $(#[test] fn $name() { super::$name::<super::V4>(); })* }
        mod v6 { $(#[test] fn $name() { super::$name::<super::V6>(); })* }
    };
}
of_both_families! {
    an_error_from_the_way_reaches_the_pod_as_if_it_had_been_the_pods
    an_error_of_a_pods_leaves_as_if_it_were_the_nodes
    what_is_no_error_about_a_masqueraded_packet_is_the_nodes_own
    a_pods_error_about_nothing_that_is_known_never_leaves
    a_pods_error_about_a_flow_that_the_world_has_opened_leaves_as_it_is
    an_error_that_ends_too_early_stays_as_it_is
    an_error_belongs_to_the_flow_that_it_quotes
    bytes_behind_the_packet_are_nobodys
    quotes_in_pages_are_pulled
    a_quoted_header_may_have_options_and_be_a_first_fragments
}

fn an_error_from_the_way_reaches_the_pod_as_if_it_had_been_the_pods<F: Tested>() {
    let (n, out, me) = (busy::<F>(), world::outside(F::IS_6), pod(F::IS_6, 11));
    for (question, _) in talks(F::IS_6) {
        let sent = Node::<F>::frame(me, out, question);
        let mut left = sent.clone();
        n.out(&mut left).expect("leaves");
        for kind in kinds(F::IS_6) {
            for quoted in quoted_lengths::<F>() {
                // With an extension (RFC 4884), of an even or an odd number of bytes.
                for tail in [&b""[..], b"extension", b"extensions"] {
                    if !tail.is_empty() && quoted < F::HEADER as usize + 18 {
                        continue;
                    }
                    let mut f = error(router(F::IS_6), n.here(), kind, &left, quoted, tail);
                    assert_eq!(n.error_back(&mut f), Ok(Some(me)));
                    assert_eq!(f.data, error(router(F::IS_6), me, kind, &sent, quoted, tail).data, "{kind} {quoted}");
                }
            }
        }
    }
}

fn an_error_of_a_pods_leaves_as_if_it_were_the_nodes<F: Tested>() {
    let (n, out, me) = (busy::<F>(), world::outside(F::IS_6), pod(F::IS_6, 11));
    for (question, answer) in talks(F::IS_6) {
        let mut left = Node::<F>::frame(me, out, question);
        n.out(&mut left).expect("leaves");
        // The answer goes to the port that the question came from.
        let (proto, mut body) = answer;
        let l4 = &left.data[ETH_LEN + F::HEADER as usize..];
        match proto {
            TCP | UDP => body[2..4].copy_from_slice(&l4[..2]),
            ICMP | ICMP6 => body[4..6].copy_from_slice(&l4[4..6]),
            _ => {}
        }
        let came = Node::<F>::frame(out, n.here(), (proto, body));
        let mut here = came.clone();
        assert_eq!(n.incoming(&mut here), Ok(true));
        for kind in kinds(F::IS_6) {
            for quoted in quoted_lengths::<F>() {
                let mut f = error(me, out, kind, &here, quoted, b"");
                assert_eq!(n.error_forth(&mut f), Ok(Step::Done));
                assert_eq!(f.data, error(n.here(), out, kind, &came, quoted, b"").data, "{kind} {quoted}");
            }
        }
    }
}

fn what_is_no_error_about_a_masqueraded_packet_is_the_nodes_own<F: Tested>() {
    let (n, out, me) = (Node::<F>::new(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let from = router(F::IS_6);
    let mut left = Node::<F>::frame(me, out, syn(40_000));
    n.out(&mut left).expect("leaves");
    let mut asked = Node::<F>::frame(me, out, echo(F::IS_6, 7, false));
    n.out(&mut asked).expect("leaves");
    let own = Node::<F>::frame(n.here(), out, syn(40_001));
    let reply = Node::<F>::frame(n.here(), out, echo(F::IS_6, 7, true));
    let kind = kinds(F::IS_6)[0];
    // Source quench, a redirect, an echo that looks like an error.
    let others: [u8; 3] = if F::IS_6 { [0, 137, 128] } else { [4, 5, 8] };
    let nobodys = error(out, n.here(), kind, &error(n.here(), out, kind, &left, 100, b""), 100, b"");
    for mut f in others.map(|k| error(from, n.here(), k, &left, 100, b"")).into_iter().chain([
        error(from, n.here(), kind, &own, 100, b""),
        error(from, n.here(), kind, &reply, 100, b""),
        error(from, world::underlay(F::IS_6, 9), kind, &left, 100, b""),
        Node::<F>::frame(out, n.here(), frame::tcp(443, 40_000, SYN | ACK, b"")),
        nobodys,
    ]) {
        let before = f.data.clone();
        assert_eq!((n.error_back(&mut f), f.data), (Ok(None), before));
    }
    n.after(u64::from(lifetime::HANDSHAKE));
    assert_eq!(n.error_back(&mut error(from, n.here(), kind, &left, 100, b"")), Ok(None), "its flow is over");
}

fn a_pods_error_about_nothing_that_is_known_never_leaves<F: Tested>() {
    let (n, out, me) = (Node::<F>::new(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let kind = kinds(F::IS_6)[0];
    n.out(&mut Node::<F>::frame(me, out, syn(40_000))).expect("leaves");
    // Both of these are flows of their own.
    n.out(&mut Node::<F>::frame(me, out, echo(F::IS_6, 7, false))).expect("leaves");
    n.out(&mut Node::<F>::frame(pod(F::IS_6, 12), out, syn(40_000))).expect("leaves");
    let came = Node::<F>::frame(out, me, frame::tcp(443, 40_000, SYN | ACK, b""));
    let strange = Node::<F>::frame(out, me, frame::tcp(443, 40_001, SYN | ACK, b""));
    let asked = Node::<F>::frame(out, me, echo(F::IS_6, 7, false));
    let elses = Node::<F>::frame(out, pod(F::IS_6, 12), frame::tcp(443, 40_000, SYN | ACK, b""));
    for about in [strange, asked, elses] {
        let mut f = error(me, out, kind, &about, 100, b"");
        let before = f.data.clone();
        assert_eq!((n.error_forth(&mut f), f.data), (Err(D::NatOrphan), before));
    }
    let mut f = error(me, out, kind, &came, 100, b"");
    assert_eq!(n.error_forth(&mut f), Ok(Step::Done));
    let back = n.tables().back.replace(std::collections::BTreeMap::new());
    assert_eq!(n.error_forth(&mut error(me, out, kind, &came, 100, b"")), Err(D::NatOrphan), "half a translation");
    n.tables().back.replace(back);
    n.after(u64::from(lifetime::HANDSHAKE));
    assert_eq!(n.error_forth(&mut error(me, out, kind, &came, 100, b"")), Err(D::NatOrphan), "its flow is over");
    let mut f = Node::<F>::frame(me, out, echo(F::IS_6, 7, false));
    assert_eq!(n.error_forth(&mut f), Err(D::NatOrphan), "no error");
}

fn a_pods_error_about_a_flow_that_the_world_has_opened_leaves_as_it_is<F: Tested>() {
    // The pod is the end that comes first in the key of its flow, or the last.
    for (n, me) in [11, 12].map(|id| (Node::<F>::new(), pod(F::IS_6, id))) {
        let out = world::outside(F::IS_6);
        for (question, _) in talks(F::IS_6) {
            let came = Node::<F>::frame(out, me, question);
            n.track(&mut came.clone(), Ends { from: 0, to: 11 }).expect("comes in");
            for kind in kinds(F::IS_6) {
                let mut f = error(me, out, kind, &came, 100, b"");
                let before = f.data.clone();
                assert_eq!((n.error_forth(&mut f), f.data), (Ok(Step::Itself), before));
            }
            n.after(20_000);
            let mut late = error(me, out, kinds(F::IS_6)[0], &came, 100, b"");
            assert_eq!(n.error_forth(&mut late), Err(D::NatOrphan), "its flow is over");
        }
    }
}

fn an_error_that_ends_too_early_stays_as_it_is<F: Tested>() {
    let (n, out, me) = (Node::<F>::new(), world::outside(F::IS_6), pod(F::IS_6, 11));
    for (question, _) in talks(F::IS_6) {
        let needed = match question.0 {
            TCP | UDP | SCTP => 4,
            47 => 0,
            _ => 6,
        };
        let mut left = Node::<F>::frame(me, out, question);
        n.out(&mut left).expect("leaves");
        for quoted in 0..F::HEADER as usize + needed {
            let mut f = error(router(F::IS_6), n.here(), 3, &left, quoted, b"");
            let before = f.data.clone();
            assert_eq!((n.error_back(&mut f), f.data), (Ok(None), before), "{quoted}");
        }
    }
}

fn an_error_belongs_to_the_flow_that_it_quotes<F: Tested>() {
    let (n, out, me) = (Node::<F>::new(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let kind = kinds(F::IS_6)[0];
    for (question, answer) in talks(F::IS_6) {
        let (question, answer) = (Node::<F>::frame(me, out, question), Node::<F>::frame(out, me, answer));
        let about = |src, dst, f: &Frame| n.is_related(&mut error(src, dst, kind, f, 100, b""));
        assert!(!about(router(F::IS_6), me, &question), "not yet");
        n.out(&mut question.clone()).expect("leaves");
        assert!(about(router(F::IS_6), me, &question));
        assert!(about(me, out, &answer), "from the other end, about the answer");
        assert!(!about(router(F::IS_6), pod(F::IS_6, 12), &question), "to somebody else");
        assert!(!n.is_related(&mut question.clone()), "no error");
    }
    n.after(u64::from(lifetime::OTHER));
    let question = Node::<F>::frame(me, out, talks(F::IS_6)[0].0.clone());
    assert!(!n.is_related(&mut error(router(F::IS_6), me, kind, &question, 100, b"")), "the flow is over");
}

fn bytes_behind_the_packet_are_nobodys<F: Tested>() {
    let (n, out, me) = (busy::<F>(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let sent = Node::<F>::frame(me, out, syn(40_000));
    let mut left = sent.clone();
    n.out(&mut left).expect("leaves");
    // The quote ends before TCP's checksum, and the frame goes on.
    let quoted = F::HEADER as usize + 16;
    let pad = |f: Frame| Frame::new([f.data, vec![0xee; 20]].concat(), 1);
    let mut f = pad(error(router(F::IS_6), n.here(), 3, &left, quoted, b""));
    assert_eq!(n.error_back(&mut f), Ok(Some(me)));
    assert_eq!(f.data, pad(error(router(F::IS_6), me, 3, &sent, quoted, b"")).data);
}

fn quotes_in_pages_are_pulled<F: Tested>() {
    let (n, out, me) = (busy::<F>(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let sent = Node::<F>::frame(me, out, syn(40_000));
    let mut left = sent.clone();
    n.out(&mut left).expect("leaves");
    let whole = error(router(F::IS_6), n.here(), 3, &left, 100, b"");
    for linear in ETH_LEN..whole.data.len() {
        let mut f = Frame { linear, ..whole.clone() };
        // As every program does before it asks.
        f.linear(ETH_LEN as u32 + F::HEADER + 8);
        assert_eq!(n.error_back(&mut f), Ok(Some(me)), "{linear}");
        assert_eq!(f.data, error(router(F::IS_6), me, 3, &sent, 100, b"").data);
    }
}

fn a_quoted_header_may_have_options_and_be_a_first_fragments<F: Tested>() {
    let (n, out, me) = (busy::<F>(), world::outside(F::IS_6), pod(F::IS_6, 11));
    let extensions = vec![(60, vec![0; 8]), (44, vec![0, 0, 0, 1, 0, 0, 0, 9])];
    let ip = Ip { options: vec![1; 12], extensions, frag: 0x2000, ..Ip::default() };
    for (question, _) in talks(F::IS_6) {
        let (left_proto, l4) = (question.0, question.1.len());
        let packet = ip.packet(me, out, frame::summed(me, out, question, false));
        let sent = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1);
        let mut left = sent.clone();
        n.out(&mut left).expect("leaves");
        let mut f = error(router(F::IS_6), n.here(), 3, &left, 200, b"");
        assert_eq!(n.error_back(&mut f), Ok(Some(me)));
        assert_eq!(f.data, error(router(F::IS_6), me, 3, &sent, 200, b"").data);
        // A later one has no ports, whatever it looks like.
        let later = Ip { extensions: vec![(44, vec![0, 0, 0, 9, 0, 0, 0, 9])], frag: 0x2001, ..Ip::default() };
        let packet = later.packet(n.here(), out, (left_proto, left.data[left.data.len() - l4..].to_vec()));
        let middle = Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1);
        assert_eq!(n.error_back(&mut error(router(F::IS_6), n.here(), 3, &middle, 200, b"")), Ok(None));
    }
}

impl<F: Tested> Node<F> {
    fn error_back(&self, f: &mut Frame) -> Res<Option<IpAddr>> {
        Ok(F::error_back_of(&self.w, f)?.map(|a| {
            [11, 12].map(|n| pod(F::IS_6, n)).into_iter().find(|p| F::is_same(&a, &addr(*p))).expect("one of them")
        }))
    }
    fn error_forth(&self, f: &mut Frame) -> Res<Step> {
        F::error_forth_of(&self.w, f)
    }
    fn is_related(&self, f: &mut Frame) -> bool {
        F::is_related(&self.w, f)
    }
}

/// A UDP datagram whose checksum is near the ones that are written in two ways, or absent.
fn awkward() -> impl Strategy<Value = (u16, Vec<u8>, Option<u16>)> {
    let csum = prop::option::of(prop::sample::select(vec![0u16, 1, 0xfffe, 0xffff]));
    (1u16.., prop::collection::vec(any::<u8>(), 0..20), csum)
}

fn quoted_udp<F: Tested>(port: u16, payload: &[u8], csum: Option<u16>) {
    let (n, out, me) = (Node::<F>::new(), world::outside(F::IS_6), pod(F::IS_6, 11));
    n.port_of(pod(F::IS_6, 12), frame::udp(port, 53, b""), out).expect("leaves");
    let mut sent = Node::<F>::frame(me, out, frame::udp(port, 53, payload));
    let at = sent.data.len() - payload.len() - 2;
    if let Some(csum) = csum {
        // Wrong, as a quoted one may be; 0 is none.
        sent.data[at..at + 2].copy_from_slice(&csum.to_be_bytes());
    }
    let mut left = sent.clone();
    n.out(&mut left).expect("leaves");
    let mut f = error(router(F::IS_6), n.here(), 3, &left, 200, b"");
    assert_eq!(n.error_back(&mut f), Ok(Some(me)));
    assert_eq!(f.data, error(router(F::IS_6), me, 3, &sent, 200, b"").data);
}

proptest! {
    #[test]
    fn the_quoted_packet_is_what_the_pod_sent_whatever_its_checksum((port, payload, csum) in awkward()) {
        quoted_udp::<V4>(port, &payload, csum);
        quoted_udp::<V6>(port, &payload, csum);
    }

    #[test]
    fn whatever_comes_as_icmp_the_rest_of_it_is_looked_at_without_harm(body in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..13) {
        fn run<F: Tested>(mut body: Vec<u8>, kind: u8) {
            let (n, me) = (Node::<F>::new(), pod(F::IS_6, 11));
            if let Some(first) = body.first_mut() {
                *first = kind;
            }
            for (src, dst) in [(router(F::IS_6), n.here()), (me, router(F::IS_6))] {
                let mut f = Node::<F>::frame(src, dst, (F::ICMP, if body.len() < 4 { vec![kind; 4] } else { body.clone() }));
                let before = f.data.clone();
                // Nothing is known, so nothing is translated.
                assert_eq!(n.error_back(&mut f), Ok(None));
                assert_eq!(n.error_forth(&mut f), Err(D::NatOrphan));
                assert!(!n.is_related(&mut f));
                assert_eq!(f.data, before);
            }
        }
        run::<V4>(body.clone(), kind);
        run::<V6>(body, kind);
    }
}
