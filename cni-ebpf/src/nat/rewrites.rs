//! Rewritten packets against the same packets made from scratch.
use std::net::IpAddr;

use cni_common::{
    net::{Be16, Mac},
    wire::{ETH_LEN, ICMP, ICMP6, SCTP, TCP, UDP},
};
use proptest::prelude::*;

use super::{End, NatFamily, Side, rewrite};
use crate::{
    DropReason, Res,
    fake::{
        Frame,
        frame::{self, Ip},
        nat::{FromIp, addr},
    },
    family::{self, V4, V6},
};

/// A packet, by what makes it.
#[derive(Clone, Debug)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ports: (u16, u16),
    payload: Vec<u8>,
    partial: bool,
    /// UDP without a checksum.
    unsummed: bool,
    ip: Ip,
}

impl Packet {
    fn body(&self) -> (u8, Vec<u8>) {
        let (s, d) = self.ports;
        let (proto, mut body) = match self.proto {
            TCP => frame::tcp(s, d, 0x18, &self.payload),
            UDP => frame::udp(s, d, &self.payload),
            SCTP => frame::sctp(s, d),
            _ => frame::ping(self.src.is_ipv6()),
        };
        if self.proto == ICMP || self.proto == ICMP6 {
            body[4..6].copy_from_slice(&s.to_be_bytes());
            body.extend(&self.payload);
        }
        if self.unsummed { (proto, body) } else { frame::summed(self.src, self.dst, (proto, body), self.partial) }
    }
    fn frame(&self) -> Frame {
        let packet = self.ip.packet(self.src, self.dst, self.body());
        Frame { partial: self.partial, ..Frame::new(frame::eth(Mac::WEFT, Mac::WEFT, packet), 1) }
    }
    /// The packet that it is to become.
    fn with(&self, side: Side, a: IpAddr, port: u16) -> Self {
        let mut new = self.clone();
        let port = if self.proto == SCTP { None } else { Some(port) };
        if side == Side::SOURCE {
            (new.src, new.ports.0) = (a, port.unwrap_or(self.ports.0));
        } else {
            (new.dst, new.ports.1) = (a, port.unwrap_or(self.ports.1));
            if self.proto == ICMP || self.proto == ICMP6 {
                new.ports.0 = new.ports.1;
            }
        }
        new
    }
}

fn rewrite_as<F: NatFamily>(f: &mut Frame, side: Side, a: IpAddr, port: u16) -> Res<()>
where
    F::Addr: FromIp,
{
    let ip = family::parse::<F, _>(f, ETH_LEN, 4)?;
    rewrite(f, ETH_LEN, &ip, side, &End::<F> { addr: addr(a), port: Be16::from_host(port) })
}
fn rewritten(f: &mut Frame, side: Side, a: IpAddr, port: u16) -> Res<()> {
    if a.is_ipv6() { rewrite_as::<V6>(f, side, a, port) } else { rewrite_as::<V4>(f, side, a, port) }
}

fn address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 { any::<[u8; 16]>().prop_map(IpAddr::from).boxed() } else { any::<[u8; 4]>().prop_map(IpAddr::from).boxed() }
}

/// A packet, a side of it, and another address and port.
fn cases() -> impl Strategy<Value = (Packet, Side, IpAddr, u16)> {
    any::<bool>().prop_flat_map(|v6| {
        let icmp = if v6 { ICMP6 } else { ICMP };
        let extensions =
            prop::sample::select(vec![vec![], vec![(60, vec![0; 8])], vec![(0, vec![0; 16]), (60, vec![0; 8])]]);
        let options = prop::sample::select(vec![vec![], vec![1; 4], vec![1; 40]]);
        let ip = (options, extensions).prop_map(|(options, extensions)| Ip { options, extensions, ..Ip::default() });
        let packet = (
            address(v6),
            address(v6),
            prop::sample::select(vec![TCP, UDP, icmp, SCTP]),
            any::<(u16, u16)>(),
            prop::collection::vec(any::<u8>(), 0..40),
            any::<bool>(),
            any::<bool>(),
            ip,
        )
            .prop_map(|(src, dst, proto, ports, payload, partial, unsummed, ip)| Packet {
                src,
                dst,
                proto,
                ports,
                payload,
                // The NIC makes the checksums of these two only.
                partial: partial && (proto == TCP || proto == UDP),
                unsummed: unsummed && proto == UDP,
                ip,
            });
        let side = prop::sample::select(vec![Side::SOURCE, Side::DESTINATION]);
        (packet, side, address(v6), any::<u16>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rewritten_packet_is_what_its_sender_would_have_made((p, side, a, port) in cases()) {
        let (mut f, want) = (p.frame(), p.with(side, a, port));
        rewritten(&mut f, side, a, port).expect("is whole");
        if p.partial {
            // The sum of the pseudo header is congruent, no more: 0 and 0xffff are one.
            let at = f.data.len() - p.body().1.len() + frame::checksum_at(p.proto).expect("TCP or UDP");
            let mut want = want.frame().data;
            let of = |d: &[u8]| u16::from_be_bytes([d[at], d[at + 1]]) % 0xffff;
            prop_assert_eq!(of(&f.data), of(&want));
            want[at..at + 2].copy_from_slice(&f.data[at..at + 2]);
            prop_assert_eq!(f.data, want);
        } else {
            prop_assert_eq!(f.data, want.frame().data);
        }
    }

    #[test]
    fn there_and_back_is_where_it_was((p, side, a, port) in cases()) {
        let mut f = p.frame();
        rewritten(&mut f, side, a, port).expect("is whole");
        let (was, port) = if side == Side::SOURCE { (p.src, p.ports.0) } else { (p.dst, p.ports.1) };
        let port = if p.proto == ICMP || p.proto == ICMP6 { p.ports.0 } else { port };
        rewritten(&mut f, side, was, port).expect("is whole");
        let mut want = p.frame().data;
        if p.partial {
            let at = f.data.len() - p.body().1.len() + frame::checksum_at(p.proto).expect("TCP or UDP");
            let of = |d: &[u8]| u16::from_be_bytes([d[at], d[at + 1]]) % 0xffff;
            prop_assert_eq!(of(&f.data), of(&want));
            want[at..at + 2].copy_from_slice(&f.data[at..at + 2]);
        }
        prop_assert_eq!(f.data, want);
    }

    #[test]
    fn a_frame_that_ends_before_its_checksum_is_short_and_stays_as_it_is((p, side, a, port) in cases(), cut in 0usize..18) {
        let mut f = p.frame();
        let l4 = f.data.len() - p.body().1.len();
        let needed = match p.proto {
            TCP => 18,
            UDP => 8,
            SCTP => 0,
            _ => 6,
        };
        f.data.truncate(l4 + cut.max(4));
        f.linear = f.data.len();
        let before = f.data.clone();
        if cut.max(4) < needed {
            prop_assert_eq!(rewritten(&mut f, side, a, port), Err(DropReason::Short));
            prop_assert_eq!(f.data, before);
        } else {
            prop_assert_eq!(rewritten(&mut f, side, a, port), Ok(()));
        }
    }

    #[test]
    fn of_a_later_fragment_only_the_address_changes((p, side, a, port) in cases()) {
        let ip = if p.src.is_ipv6() {
            Ip { extensions: vec![(44, vec![0, 0, 0, 9, 0, 0, 0, 1])], ..Ip::default() }
        } else {
            Ip { frag: 0x2001, ..p.ip.clone() }
        };
        let middle = |src, dst| frame::eth(Mac::WEFT, Mac::WEFT, ip.packet(src, dst, (p.proto, p.payload.clone())));
        let mut f = Frame::new(middle(p.src, p.dst), 1);
        rewritten(&mut f, side, a, port).expect("is whole");
        let (src, dst) = if side == Side::SOURCE { (a, p.dst) } else { (p.src, a) };
        prop_assert_eq!(f.data, middle(src, dst));
    }
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_written_as_ones() {
    for v6 in [false, true] {
        let (src, dst): (IpAddr, IpAddr) = if v6 {
            ("fd00::1".parse().expect("one"), "fd00::2".parse().expect("one"))
        } else {
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
        };
        let mut p = Packet {
            src,
            dst,
            proto: UDP,
            ports: (1, 2),
            payload: vec![0, 0],
            partial: false,
            unsummed: false,
            ip: Ip::default(),
        };
        // The source port that makes the sum 0 is the checksum of the packet with 0 in its place.
        p.ports.0 = 0;
        let port = frame::l4_checksum(src, dst, UDP, &p.body().1, false);
        p.ports.0 = 1;
        let mut f = p.frame();
        rewritten(&mut f, Side::SOURCE, src, port).expect("is whole");
        let at = f.data.len() - 10 + 6;
        assert_eq!(f.data[at..at + 2], [0xff, 0xff]);
        assert_eq!(f.data, Packet { ports: (port, 2), ..p }.frame().data);
    }
}

#[test]
fn headers_in_pages_are_pulled_only_as_far_as_they_are_needed() {
    let p = Packet {
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        proto: TCP,
        ports: (1, 2),
        payload: vec![7; 1000],
        partial: false,
        unsummed: false,
        ip: Ip::default(),
    };
    let to: IpAddr = [10, 0, 0, 9].into();
    let mut f = Frame { linear: ETH_LEN + 20 + 4, ..p.frame() };
    rewritten(&mut f, Side::SOURCE, to, 5).expect("is whole");
    assert_eq!((f.linear, f.pulls.get()), (ETH_LEN + 20 + 18, 1));
    let mut f = Frame { linear: ETH_LEN + 20 + 20, ..p.frame() };
    rewritten(&mut f, Side::SOURCE, to, 5).expect("is whole");
    assert_eq!(f.pulls.get(), 0);
    // SCTP's are in other packets of a list.
    let p = Packet { proto: SCTP, ..p };
    let mut f = Frame { linear: ETH_LEN + 20 + 4, gso: 0xffff, ..p.frame() };
    rewritten(&mut f, Side::SOURCE, to, 5).expect("is whole");
    assert_eq!(f.pulls.get(), 0);
}
