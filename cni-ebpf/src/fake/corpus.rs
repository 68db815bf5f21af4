//! Random frames: valid, truncated, with options and extension headers, tagged, bent, and garbage. The seed decides.
use std::net::IpAddr;

use cni_common::{drop::Point, net::Mac};

use super::{
    frame::{self, Ip},
    world::{self, CLIENT_MAC, NEXT_HOP_MAC, PORT, UNDERLAY_MAC},
};

/// xorshift64: the same frames on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}
impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 16) as usize % n
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn l4(r: &mut Rng, v6: bool) -> (u8, Vec<u8>) {
    let payload = vec![0x5a; r.below(120)];
    let ports = [80, 443, PORT, 40_000, 53];
    match r.below(8) {
        0..=2 => {
            let flags = r.pick(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04]);
            frame::tcp(r.pick(&ports), r.pick(&ports), flags, &payload)
        }
        3..=4 => frame::udp(r.pick(&ports), r.pick(&ports), &payload),
        5 => frame::ping(v6),
        6 => (132, frame::udp(r.pick(&ports), r.pick(&ports), &payload).1),
        _ => (r.byte(), payload),
    }
}

fn header(r: &mut Rng, v6: bool) -> Ip {
    let mut ip =
        Ip { ttl: r.pick(&[64, 64, 64, 255, 2, 1, 0]), tos: if r.one_in(3) { r.byte() } else { 0 }, ..Ip::default() };
    if !v6 && r.one_in(4) {
        ip.options = vec![1; 4 * r.below(11)];
    }
    if !v6 && r.one_in(8) {
        ip.frag = r.pick(&[0x4000, 0x2000, 0x2001, 0x0005, 0x1fff]);
    }
    if v6 && r.one_in(3) {
        for _ in 0..r.below(6) {
            let kind = r.pick(&[0, 43, 44, 60]);
            let mut body = vec![0; if kind == 44 { 8 } else { 8 * (1 + r.below(3)) }];
            if kind == 44 && r.one_in(2) {
                body[2] = r.byte();
                body[3] = r.byte();
            }
            ip.extensions.push((kind, body));
        }
    }
    ip
}

fn inner(r: &mut Rng, sources: &[(u8, u8)], destinations: &[(u8, u8)]) -> (u16, Vec<u8>) {
    let v6 = r.one_in(2);
    let (s, d) = (r.pick(sources), r.pick(destinations));
    // Pod 0 of a node is the node itself.
    let src = if s.1 == 0 { world::underlay(v6, s.0) } else { world::pod(v6, s.0, s.1) };
    let dst = match r.below(16) {
        0 | 14..=15 => world::outside(v6),
        13 => world::service(v6),
        1 => world::underlay(v6, r.pick(&[0, 1, 2, 3, 4, 9])),
        3 => r
            .pick(if v6 { &["::1", "fe80::1", "fe80::7", "::"] } else { &["127.0.0.1", "169.254.1.1", "0.0.0.0"] })
            .parse()
            .expect("an address"),
        2 if v6 => "ff02::1".parse().expect("an address"),
        2 => r.pick(&["224.0.0.1", "255.255.255.255"]).parse().expect("an address"),
        _ => world::pod(v6, d.0, d.1),
    };
    let l4 = l4(r, v6);
    header(r, v6).packet(src, dst, l4)
}

/// What somebody outside sends to the node: perhaps the answer to a pod, or an error about a packet that left for it.
fn from_world(r: &mut Rng) -> (u16, Vec<u8>) {
    let v6 = r.one_in(2);
    let (here, there) = (world::underlay(v6, 0), world::outside(v6));
    let l4 = match r.below(4) {
        0 => {
            let quoted = l4(r, v6);
            let mut quote = header(r, v6).packet(here, there, quoted).1;
            if r.one_in(3) {
                quote.truncate(r.below(quote.len()));
            }
            let kind = r.pick(if v6 { &[1, 2, 3, 4, 137] } else { &[3, 11, 12, 5, 4] });
            (if v6 { 58 } else { 1 }, [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quote].concat())
        }
        1 => {
            let (proto, mut body) = frame::ping(v6);
            body[0] = if v6 { 129 } else { 0 };
            (proto, body)
        }
        _ => l4(r, v6),
    };
    header(r, v6).packet(there, here, l4)
}

/// ARP and neighbour discovery from the client, honest or not.
fn neighbour(r: &mut Rng) -> Vec<u8> {
    let gateway = if r.one_in(4) { world::server(true) } else { "fe80::1".parse().expect("an address") };
    let sender = match r.below(6) {
        0 => "::".parse().expect("an address"),
        1 => world::server(true),
        _ => world::client(true),
    };
    match (sender, gateway) {
        (IpAddr::V6(sender), IpAddr::V6(target)) if r.one_in(2) => {
            let mut f = frame::solicitation(CLIENT_MAC, sender, target, r.pick(&[255, 255, 255, 64]));
            if r.one_in(3) {
                // To the gateway itself: it is confirmed before an entry grows old.
                f[..6].copy_from_slice(&Mac::WEFT.bytes);
                f[38..54].copy_from_slice(&target.octets());
            }
            f
        }
        _ => {
            let sender = r.pick(&[[10, 244, 0, 11], [10, 244, 0, 11], [10, 244, 0, 12], [0; 4]]);
            let target = r.pick(&[[169, 254, 1, 1], [169, 254, 1, 1], [10, 244, 0, 12]]);
            frame::arp(r.pick(&[1, 1, 1, 2]), CLIENT_MAC, sender, target)
        }
    }
}

/// A frame for the program of a point.
pub fn frame(r: &mut Rng, point: Point) -> Vec<u8> {
    let here = [(0, 11), (0, 11), (0, 11), (0, 11), (0, 11), (0, 99)];
    let anywhere = [(0, 12), (0, 12), (0, 11), (0, 99), (1, 1), (1, 7), (2, 1), (2, 7), (3, 1), (4, 1), (5, 1), (9, 9)];
    let there = [(1, 1), (1, 7), (2, 1), (2, 7), (3, 1), (9, 9), (0, 11)];
    let by_the_stack = [(0, 0), (0, 0), (0, 11), (1, 1), (9, 9)];
    let mut f = match point {
        Point::FromPod if r.one_in(12) => neighbour(r),
        Point::FromPod => {
            let p = inner(r, &here, &anywhere);
            let src = if r.one_in(20) { Mac::new([2; 6]) } else { CLIENT_MAC };
            let dst = if r.one_in(20) { Mac::new([0xff; 6]) } else { Mac::WEFT };
            frame::eth(src, dst, p)
        }
        Point::FromHost => frame::eth(Mac::WEFT, Mac::WEFT, inner(r, &by_the_stack, &anywhere)),
        Point::FromNetdev if r.one_in(4) => frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, from_world(r)),
        Point::FromNetdev | Point::FromOverlay => {
            let src = r.pick(&[1, 1, 1, 2, 2, 3, 0, 9]);
            // Mostly what the sending node may send, to pods that are here.
            let honest = [(src, 1), (src, 7)];
            let sources = if r.one_in(6) { &there[..] } else { &honest[..] };
            let p = inner(r, sources, &[(0, 12), (0, 12), (0, 12), (0, 11), (0, 99), (1, 1)]);
            let i = frame::eth(Mac::WEFT, Mac::WEFT, p);
            let v6 = r.one_in(3);
            let port = if r.one_in(15) { 4789 } else { PORT };
            let mut ip = Ip { tos: if r.one_in(2) { 0 } else { r.byte() }, ..Ip::default() };
            if r.one_in(12) {
                ip = header(r, v6);
            }
            let body = if r.one_in(12) { l4(r, v6) } else { frame::vxlan(port, 0x77, &i) };
            let dst = match r.below(12) {
                0 => world::underlay(v6, 5),
                1 if !v6 => std::net::Ipv4Addr::from(world::second_own()).into(),
                _ => world::underlay(v6, 0),
            };
            frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, ip.packet(world::underlay(v6, src), dst, body))
        }
    };
    if r.one_in(40) {
        f[12..14].copy_from_slice(&r.pick(&[[0x08, 0x06], [0x81, 0x00], [0x88, 0xcc]]));
    }
    if r.one_in(6) {
        f.truncate(14 + r.below(f.len() - 14));
    }
    if r.one_in(6) {
        let n = r.below(f.len().min(130));
        f[n] ^= 1 << r.below(8);
    }
    if r.one_in(50) {
        let n = r.below(f.len());
        f[n..].iter_mut().for_each(|b| *b = r.byte());
    }
    f
}
