//! Policies of isolated pods through the loaded programs, at every hook that test frames reach: `from_overlay` asks for what only the kernel's own tunnel
//! device can say of a packet, and is tested natively and in the lab.
use std::net::IpAddr;

use bytemuck::bytes_of;
use cni_common::{
    drop::{DropReason as D, Outcome, Point},
    event::{DropEvent, WOULD_BE},
    maps::Endpoint,
    net::{Ip6, Mac},
    policy::{Holder, PeerKey, RULES_ALLOW_ALL, SENDER_BITS, SenderKey, are_by_port},
    schema,
    wire::{SCTP, TCP, UDP},
};
use cni_ebpf::fake::{
    Fake,
    nat::addr,
    policy::{CLIENT, CLIENT_IN, CLIENT_OUT, CLIENT_OUT_AUDITED, FAR, SERVER_IN, WORLD, audit, isolate, put_by_port},
};
use packets::{
    fill,
    frame::{self, Ip},
    kernel::{Kernel, Ran},
    node::Node,
    world::*,
};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

type L4 = (u8, Vec<u8>);
/// What became of a packet.
type Fate = Result<Outcome, D>;

/// Into a pod of this node.
const IN: Fate = Ok(Outcome::Peer);

/// A node with isolated pods (see [`isolate`]), its programs, and one family.
struct Isolated {
    k: Kernel,
    w: Fake,
    v6: bool,
}

fn each(test: impl Fn(Isolated)) {
    each_after(isolate, test);
}

/// With policies in audit mode (see [`audit`]).
fn each_audited(test: impl Fn(Isolated)) {
    let prepare = |w: &mut Fake| {
        isolate(w);
        audit(w);
    };
    each_after(prepare, test);
}

fn each_after(prepare: impl Fn(&mut Fake), test: impl Fn(Isolated)) {
    for v6 in [false, true] {
        let mut w = world();
        prepare(&mut w);
        let mut k = Kernel::empty();
        fill::fill(k.datapath(), &w);
        test(Isolated { k, w, v6 });
    }
}

/// In a namespace with a way out.
fn each_with_a_way_out(test: impl Fn(Isolated) + Sync) {
    let node = Node::new();
    for v6 in [false, true] {
        let mut w = node.world();
        isolate(&mut w);
        let mut k = Kernel::empty();
        fill::fill(k.datapath(), &w);
        node.run(|| test(Isolated { k, w, v6 }));
    }
}

fn whole(ip: &Ip, src: IpAddr, dst: IpAddr, l4: L4) -> (u16, Vec<u8>) {
    ip.packet(src, dst, frame::summed(src, dst, l4, false))
}
fn tcp(port: u16, flags: u8) -> L4 {
    frame::tcp(40_000, port, flags, b"")
}
/// From that port.
fn back(port: u16, flags: u8) -> L4 {
    frame::tcp(port, 40_000, flags, b"")
}
/// An ICMP error that quotes this packet.
fn error((src, dst): (IpAddr, IpAddr), quoted: L4) -> L4 {
    let quote = Ip::default().packet(src, dst, quoted).1;
    let (proto, kind) = if src.is_ipv6() { (58, 1) } else { (1, 3) };
    (proto, [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quote].concat())
}

impl Isolated {
    fn run(&mut self, point: Point, frame: &[u8]) -> Ran {
        let ran = self.k.run(point, frame).expect("an ordinary frame");
        if let (point, Err(reason)) = ran.counted[0] {
            let drops: Vec<&DropEvent> = ran.events.iter().filter(|e| e.reason & WOULD_BE == 0).collect();
            let [e] = drops[..] else { panic!("{} events", drops.len()) };
            assert_eq!((e.point, e.reason), (point as u8, reason as u8));
        }
        ran
    }
    fn fate(&mut self, point: Point, frame: &[u8]) -> Fate {
        self.run(point, frame).counted[0].1
    }
    fn me(&self) -> IpAddr {
        client(self.v6)
    }
    fn server(&self) -> IpAddr {
        server(self.v6)
    }
    fn far(&self) -> IpAddr {
        pod(self.v6, 1, 1)
    }
    /// In another node's pod CIDR, and of no pod that is known.
    fn stranger(&self) -> IpAddr {
        pod(self.v6, 1, 7)
    }
    fn node(&self) -> IpAddr {
        underlay(self.v6, 0)
    }
    /// The client sends, from its device.
    fn to(&mut self, dst: IpAddr, l4: L4) -> Fate {
        let packet = whole(&Ip::default(), self.me(), dst, l4);
        self.fate(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet))
    }
    /// The client to the server.
    fn asks(&mut self, l4: L4) -> Fate {
        self.to(self.server(), l4)
    }
    /// The server sends: test frames come in by one device, which is its for this one.
    fn server_to(&mut self, dst: IpAddr, ip: &Ip, l4: L4) -> Fate {
        let client = self.w.endpoints[&CLIENT_IFINDEX];
        let (addr4, addr6) = (addr(server(false)), addr(server(true)));
        let ours = Endpoint { id: 12, mac: SERVER_MAC, addr4, addr6, set_in: SERVER_IN, set_out: 0, ..client };
        let endpoints = |k: &mut Kernel, e: &Endpoint| {
            k.datapath()
                .map(&schema::ENDPOINTS)
                .update(&CLIENT_IFINDEX.to_ne_bytes(), bytes_of(e))
                .expect("is written");
        };
        endpoints(&mut self.k, &ours);
        let packet = whole(ip, self.server(), dst, l4);
        let fate = self.fate(Point::FromPod, &frame::eth(SERVER_MAC, Mac::WEFT, packet));
        endpoints(&mut self.k, &client);
        fate
    }
    fn answers(&mut self, dst: IpAddr, l4: L4) -> Fate {
        self.server_to(dst, &Ip::default(), l4)
    }
    /// The node's stack sends, or forwards.
    fn by_stack(&mut self, src: IpAddr, dst: IpAddr, l4: L4) -> Fate {
        self.fate(Point::FromHost, &frame::eth(Mac::WEFT, Mac::WEFT, whole(&Ip::default(), src, dst, l4)))
    }
    /// Node 1 sends, through the tunnel.
    fn tunnelled(&mut self, ip: &Ip, src: IpAddr, dst: IpAddr, l4: L4) -> Fate {
        let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, whole(ip, src, dst, l4));
        let ends = (underlay(self.v6, 1), underlay(self.v6, 0));
        let outer = whole(&Ip::default(), ends.0, ends.1, frame::vxlan(PORT, 0, &inner));
        self.fate(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer))
    }
    /// To the server under a label class, over an underlay of either family.
    fn named(&mut self, outer6: bool, src: IpAddr, class: u32, l4: L4) -> Fate {
        self.run_named(outer6, src, class, l4).counted[0].1
    }
    fn run_named(&mut self, outer6: bool, src: IpAddr, class: u32, l4: L4) -> Ran {
        let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, whole(&Ip::default(), src, self.server(), l4));
        let ends = (underlay(outer6, 1), underlay(outer6, 0));
        let outer = whole(&Ip::default(), ends.0, ends.1, frame::vxlan(PORT, class, &inner));
        self.run(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer))
    }
    /// Node 1 has pods of this label class, and no others with its hash.
    fn name(&mut self, class: u32, identity: u32) {
        let (addr, bits) = match pod(self.v6, 1, 0) {
            IpAddr::V4(a) => (Ip6::mapped(a.into()), 96 + 24),
            IpAddr::V6(a) => (a.into(), 64),
        };
        let key = [&(SENDER_BITS + bits).to_ne_bytes()[..], bytes_of(&SenderKey { node: 1, class, addr })].concat();
        self.k.datapath().map(&schema::SENDERS).update(&key, &identity.to_ne_bytes()).expect("is written");
    }
    fn hold(&mut self, who: IpAddr, identity: u32, class: u32) {
        let (map, key) = match who {
            IpAddr::V4(a) => (&schema::IDENTITY4, a.octets().to_vec()),
            IpAddr::V6(a) => (&schema::IDENTITY6, a.octets().to_vec()),
        };
        self.k.datapath().map(map).update(&key, bytes_of(&Holder { identity, class })).expect("is written");
    }
    fn from(&mut self, src: IpAddr, l4: L4) -> Fate {
        self.tunnelled(&Ip::default(), src, self.server(), l4)
    }
    fn allow(&mut self, set: u32, identity: u32) {
        let rules = RULES_ALLOW_ALL.to_ne_bytes();
        self.k
            .datapath()
            .map(&schema::POLICY_PEER)
            .update(bytes_of(&PeerKey { set, identity }), &rules)
            .expect("is written");
    }
    fn revoke(&mut self, set: u32, identity: u32) {
        self.k.datapath().map(&schema::POLICY_PEER).delete(bytes_of(&PeerKey { set, identity })).expect("is deleted");
    }
    /// Tells the programs that something is allowed no more.
    fn raise_epoch(&mut self) {
        self.w.ct_config.epoch += 1;
        self.k.datapath().map(&schema::CT_CONFIG).update(&[0; 4], bytes_of(&self.w.ct_config)).expect("is written");
    }
    fn flows(&self) -> usize {
        self.k.flows().iter().map(|t| t.settled.len() + t.new.len()).sum()
    }
}

#[test]
fn between_pods_of_a_node_both_are_asked_in_one_run() {
    let by_port = |of: &'static [u32]| {
        move |w: &mut Fake| {
            isolate(w);
            put_by_port(w, of);
        }
    };
    // Those of the server's ingress and of the client's egress.
    each_after(by_port(&[16, 19]), judges_both);
    each_after(by_port(&[16]), judges_both);
    each(judges_both);
}
fn judges_both(mut n: Isolated) {
    let (egress, ingress) = (Err(D::PolicyEgress), Err(D::PolicyIngress));
    let of = |proto, port: u16| (proto, [&40_000_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 16]].concat());
    for (l4, fate) in [
        (tcp(80, SYN), IN),
        (tcp(79, SYN), egress),
        (tcp(443, SYN), ingress),
        // Intervals: what the one allows is half of what the other does.
        (tcp(32_767, SYN), egress),
        (tcp(32_768, SYN), IN),
        (tcp(49_151, SYN), IN),
        (tcp(49_152, SYN), ingress),
        (tcp(65_535, SYN), ingress),
        (frame::udp(40_000, 53, b""), IN),
        (frame::udp(40_000, 80, b""), egress),
        (of(SCTP, 80), egress),
        (of(47, 80), egress),
        (frame::ping(n.v6), egress),
    ] {
        assert_eq!(n.asks(l4.clone()), fate, "{l4:?}");
    }
}

#[test]
fn a_port_in_the_hash_is_denied_out_of_what_the_trie_allows() {
    let prepare = |w: &mut Fake| {
        isolate(w);
        put_by_port(w, &[20]);
    };
    each_after(prepare, |mut n| {
        let out = outside(n.v6);
        assert_eq!(n.to(out, tcp(53, SYN)), Err(D::PolicyEgress));
        assert_ne!(n.to(out, tcp(54, SYN)), Err(D::PolicyEgress));
        // Without its entry it is a port like the others.
        let (_, key, _) =
            n.w.policy
                .rules
                .iter()
                .find(|(_, key, _)| key.port == 53_u16.to_be_bytes() && are_by_port(key.rules))
                .expect("is there");
        n.k.datapath().map(&schema::POLICY_PORT).delete(bytes_of(key)).expect("is there");
        assert_ne!(n.to(out, tcp(53, SYN)), Err(D::PolicyEgress));
    });
}

#[test]
fn what_comes_from_other_nodes_is_judged_where_the_pod_is() {
    each(|mut n| {
        let (far, node, stranger) = (n.far(), underlay(n.v6, 1), n.stranger());
        let denied = Err(D::PolicyIngress);
        for (src, l4, fate) in [
            (far, tcp(443, SYN), IN),
            (far, tcp(80, SYN), denied),
            (far, frame::udp(1, 9, b""), IN),
            (far, frame::ping(n.v6), denied),
            // Another node is no more than an address.
            (node, tcp(80, SYN), IN),
            (node, tcp(443, SYN), denied),
            (stranger, tcp(443, SYN), Err(D::PolicyUnknown)),
        ] {
            assert_eq!(n.from(src, l4.clone()), fate, "{src} {l4:?}");
        }
        let me = n.me();
        assert_eq!(n.tunnelled(&Ip::default(), far, me, frame::udp(1, 53, b"")), denied, "a rule that denies");
        assert_eq!(n.flows(), 3, "what is denied is remembered by nobody");
    });
}

#[test]
fn the_pods_own_node_gets_in_and_who_it_forwards_for_is_judged() {
    each(|mut n| {
        let (node, out, far, stranger, to) = (n.node(), outside(n.v6), n.far(), n.stranger(), n.server());
        for (src, l4, fate) in [
            (node, tcp(9, SYN), IN),
            (node, frame::ping(n.v6), IN),
            (out, tcp(80, SYN), IN),
            (out, tcp(81, SYN), Err(D::PolicyIngress)),
            (far, tcp(443, SYN), IN),
            (far, tcp(80, SYN), Err(D::PolicyIngress)),
            (stranger, tcp(443, SYN), Err(D::PolicyUnknown)),
        ] {
            assert_eq!(n.by_stack(src, to, l4.clone()), fate, "{src} {l4:?}");
        }
        let second = IpAddr::from(std::net::Ipv4Addr::from(second_own()));
        if !n.v6 {
            assert_eq!(n.by_stack(second, to, tcp(9, SYN)), IN, "any of its addresses");
        }
    });
}

#[test]
fn what_the_node_has_opened_goes_on_whoever_meets_a_new_policy_first() {
    each(|mut n| {
        for answer_first in [false, true] {
            let (node, to) = (n.node(), n.server());
            assert_eq!(n.by_stack(node, to, tcp(9, SYN)), IN);
            assert_eq!(n.answers(node, back(9, SYN_ACK)), Ok(Outcome::Host));
            n.raise_epoch();
            if answer_first {
                assert_eq!(n.answers(node, error((node, to), tcp(9, ACK))), Ok(Outcome::Host));
                assert_eq!(n.answers(node, back(9, ACK)), Ok(Outcome::Host));
            }
            assert_eq!(n.by_stack(node, to, tcp(9, ACK)), IN);
        }
    });
}

#[test]
fn who_is_isolated_one_way_is_free_the_other_and_answers_pass() {
    each(|mut n| {
        let (me, far, stranger) = (n.me(), n.far(), n.stranger());
        // The server is isolated for what comes in alone.
        assert_eq!(n.answers(far, tcp(9, SYN)), Ok(Outcome::Device));
        assert_eq!(n.answers(stranger, tcp(9, SYN)), Ok(Outcome::Device));
        assert_eq!(n.tunnelled(&Ip::default(), stranger, n.server(), back(9, SYN_ACK)), IN);
        // The client opens, and is answered by one that may not open.
        assert_eq!(n.tunnelled(&Ip::default(), far, me, frame::udp(53, 40_000, b"")), Err(D::PolicyIngress));
        assert_eq!(n.to(far, frame::udp(40_000, 53, b"")), Ok(Outcome::Device));
        assert_eq!(n.tunnelled(&Ip::default(), far, me, frame::udp(53, 40_000, b"")), IN);
        assert_eq!(n.asks(tcp(80, SYN)), IN);
        assert_eq!(n.answers(me, back(80, SYN_ACK)), IN);
        assert_eq!(n.answers(me, tcp(9, SYN)), Err(D::PolicyIngress));
    });
}

#[test]
fn a_flow_that_is_revoked_is_cut_at_its_next_packet_and_one_that_is_not_goes_on() {
    each(|mut n| {
        let (me, far) = (n.me(), n.far());
        for answer_first in [false, true] {
            n.allow(SERVER_IN, CLIENT);
            assert_eq!(n.asks(tcp(80, SYN)), IN);
            assert_eq!(n.answers(me, back(80, SYN_ACK)), IN);
            assert_eq!(n.asks(tcp(80, ACK)), IN);
            assert_eq!(n.from(far, tcp(443, SYN)), IN);
            assert_eq!(n.answers(far, back(443, SYN_ACK)), Ok(Outcome::Device));
            n.revoke(SERVER_IN, CLIENT);
            assert_eq!(n.asks(tcp(80, ACK)), IN, "not before it is told");
            n.raise_epoch();
            if answer_first {
                assert_eq!(n.answers(me, back(80, ACK)), Err(D::PolicyIngress));
                assert_eq!(n.answers(far, back(443, ACK)), Ok(Outcome::Device));
            }
            assert_eq!(n.asks(tcp(80, ACK)), Err(D::PolicyIngress));
            assert_eq!(n.answers(me, back(80, ACK)), Err(D::PolicyIngress), "it stays cut");
            assert_eq!(n.from(far, tcp(443, ACK)), IN);
            // Once more allowed, it goes on where it was.
            n.allow(SERVER_IN, CLIENT);
            assert_eq!(n.asks(tcp(80, ACK)), IN);
            assert_eq!(n.asks(tcp(80, RST)), IN);
        }
    });
}

#[test]
fn errors_pass_with_the_flow_that_they_are_about() {
    each(|mut n| {
        let (me, srv, far) = (n.me(), n.server(), n.far());
        assert_eq!(n.from(far, tcp(443, SYN)), IN);
        assert_eq!(n.answers(far, back(443, SYN_ACK)), Ok(Outcome::Device));
        let about = |port| error((srv, far), back(port, ACK));
        assert_eq!(n.from(far, about(443)), IN);
        assert_eq!(n.from(n.stranger(), about(443)), IN, "by a router");
        assert_eq!(n.from(far, about(444)), Err(D::PolicyIngress));
        assert_eq!(n.answers(far, error((far, srv), tcp(443, ACK))), Ok(Outcome::Device));
        // The first one to meet another policy.
        n.raise_epoch();
        assert_eq!(n.from(far, about(443)), IN);
        n.revoke(SERVER_IN, FAR);
        assert_eq!(n.from(far, about(443)), Err(D::PolicyIngress));
        assert_eq!(n.answers(far, error((far, srv), tcp(443, ACK))), Err(D::PolicyIngress));
        // Of a pod here only about what was sent to it.
        assert_eq!(n.asks(error((srv, far), back(443, ACK))), Err(D::PolicyEgress));
        assert_eq!(n.asks(error((srv, me), back(443, ACK))), Err(D::PolicyEgress));
    });
}

#[test]
fn a_pod_reaches_itself() {
    each(|mut n| {
        let me = n.me();
        for l4 in [tcp(9, SYN), frame::udp(1, 9, b""), frame::ping(n.v6)] {
            assert_eq!(n.to(me, l4), IN);
        }
        let srv = n.server();
        assert_eq!(n.answers(srv, tcp(9, SYN)), IN);
    });
}

#[test]
fn fragments_are_judged_with_their_first() {
    each(|mut n| {
        let v6 = n.v6;
        // Offset in units of 8 bytes, and whether more follow.
        let part = |units: u16, more: bool, id: u8| Ip {
            frag: if v6 { 0 } else { units | u16::from(more) << 13 },
            extensions: if v6 {
                let [a, b] = (units << 3 | u16::from(more)).to_be_bytes();
                vec![(44, vec![0, 0, a, b, 0, 0, 0, id])]
            } else {
                Vec::new()
            },
            ..Ip::default()
        };
        let (far, srv, me, stranger) = (n.far(), n.server(), n.me(), n.stranger());
        let later = || (UDP, vec![7; 16]);
        assert_eq!(n.tunnelled(&part(2, false, 9), far, srv, later()), Err(D::FragmentOrder));
        assert_eq!(n.tunnelled(&part(0, true, 9), far, srv, frame::udp(1, 9, &[7; 8])), IN);
        assert_eq!(n.tunnelled(&part(2, false, 9), far, srv, later()), IN);
        // The first one says its ports whether it may pass or not.
        let first = (TCP, tcp(80, ACK).1);
        assert_eq!(n.tunnelled(&part(0, true, 8), far, srv, first), Err(D::PolicyIngress));
        assert_eq!(n.tunnelled(&part(3, false, 8), far, srv, (TCP, vec![7; 24])), Err(D::PolicyIngress));
        // Another sender's is another datagram.
        assert_eq!(n.tunnelled(&part(2, false, 9), stranger, srv, later()), Err(D::FragmentOrder));
        // Who is not isolated for what it sends need not be known.
        assert_eq!(
            n.server_to(me, &part(2, false, 7), later()),
            Err(D::FragmentOrder),
            "the client is, for what it gets"
        );
        assert_eq!(n.server_to(far, &part(2, false, 7), later()), Ok(Outcome::Device));
    });
}

#[test]
fn what_is_of_no_flow_is_judged_as_if_it_began_one() {
    each(|mut n| {
        let me = n.me();
        // Answers, data and resets that nobody asked for: from the ports that would be answered from, too.
        for flags in [SYN_ACK, ACK, RST, RST | ACK, 0x11] {
            assert_eq!(n.answers(me, back(80, flags)), Err(D::PolicyIngress), "{flags:#x}");
            assert_eq!(n.asks(tcp(81, flags)), Err(D::PolicyEgress), "{flags:#x}");
        }
        assert_eq!(n.flows(), 0);
        // The other end of a flow that lives opens none of its own by it.
        assert_eq!(n.asks(tcp(80, SYN)), IN);
        assert_eq!(n.answers(me, back(80, SYN_ACK)), IN);
        assert_eq!(n.asks(tcp(80, ACK)), IN);
        assert_eq!(n.answers(me, back(80, SYN)), Err(D::PolicyIngress));
        assert_eq!(n.asks(tcp(80, ACK)), IN);
    });
}

#[test]
fn the_world_is_judged_by_its_real_addresses_and_masqueraded_flows_are_cut_as_others() {
    each_with_a_way_out(|mut n| {
        let (out, node) = (outside(n.v6), n.node());
        let receives = |n: &mut Isolated, src, l4| {
            let packet = whole(&Ip::default(), src, node, l4);
            n.fate(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, packet))
        };
        assert_eq!(n.to(out, tcp(53, SYN)), Err(D::PolicyEgress));
        assert_eq!(n.to(out, frame::udp(40_000, 443, b"")), Err(D::PolicyEgress));
        assert_eq!(n.to(out, tcp(443, SYN)), Ok(Outcome::Neigh));
        assert_eq!(receives(&mut n, out, back(443, SYN_ACK)), IN);
        let too_big = error((node, out), tcp(443, ACK));
        assert_eq!(receives(&mut n, out, too_big.clone()), IN);
        assert_eq!(receives(&mut n, out, back(444, SYN_ACK)), Ok(Outcome::Pass), "nobody has asked");
        n.raise_epoch();
        assert_eq!(receives(&mut n, out, back(443, ACK)), IN, "it is allowed still");
        n.revoke(CLIENT_OUT, WORLD);
        n.raise_epoch();
        assert_eq!(receives(&mut n, out, too_big), Err(D::PolicyEgress));
        assert_eq!(receives(&mut n, out, back(443, ACK)), Err(D::PolicyEgress));
        assert_eq!(n.to(out, tcp(443, ACK)), Err(D::PolicyEgress));
    });
}

#[test]
fn an_event_names_the_rule_that_denies_and_none_where_none_allows() {
    each(|mut n| {
        let (me, far, out) = (n.me(), n.far(), outside(n.v6));
        let cookie = |n: &mut Isolated, point, frame: Vec<u8>| n.run(point, &frame).events[0].cookie;
        let from_me = |dst, l4| frame::eth(CLIENT_MAC, Mac::WEFT, whole(&Ip::default(), client(n.v6), dst, l4));
        let rule =
            n.w.policy.rules.iter().find(|(_, key, _)| key.rules == 20 && key.port != [0; 2]).expect("is there").2;
        let (denied, none) = (from_me(out, tcp(53, SYN)), from_me(server(n.v6), tcp(9, SYN)));
        assert_eq!(cookie(&mut n, Point::FromPod, denied), rule.cookie);
        assert_eq!(cookie(&mut n, Point::FromPod, none), 0);
        let rule = n.w.policy.rules.iter().find(|(_, key, _)| key.rules == 22).expect("is there").2;
        let denied = frame::eth(Mac::WEFT, Mac::WEFT, whole(&Ip::default(), far, me, tcp(9, SYN)));
        assert_eq!(cookie(&mut n, Point::FromHost, denied), rule.cookie);
        // A drop that is none of policy's does not have the last one's.
        let spoofed = frame::eth(Mac::new([2; 6]), Mac::WEFT, whole(&Ip::default(), me, out, tcp(443, SYN)));
        assert_eq!(cookie(&mut n, Point::FromPod, spoofed), 0);
    });
}

#[test]
fn whoever_becomes_known_is_let_in_as_its_policy_says() {
    each(|mut n| {
        let (stranger, me) = (n.stranger(), n.me());
        assert_eq!(n.from(stranger, tcp(443, SYN)), Err(D::PolicyUnknown));
        assert_eq!(n.to(stranger, tcp(443, SYN)), Err(D::PolicyUnknown));
        n.hold(stranger, FAR, 0);
        assert_eq!(n.from(stranger, tcp(443, SYN)), IN);
        assert_eq!(n.to(stranger, tcp(443, SYN)), Ok(Outcome::Device));
        assert_eq!(n.tunnelled(&Ip::default(), stranger, me, tcp(53, SYN)), Err(D::PolicyIngress));
        // A set that the maps do not hold denies.
        n.revoke(CLIENT_IN, cni_common::policy::IDENTITY_OTHER);
        assert_eq!(n.by_stack(outside(n.v6), me, frame::udp(1, 53, b"")), Err(D::PolicyIngress));
    });
}

/// Hashes of label classes: of pods that are let in, of others, and of nobody's.
const FRIEND: u32 = 0x12_3456;
const OTHERS: u32 = 0xff_fffe;
const NOBODY: u32 = 0x00_0001;

#[test]
fn a_new_pods_first_packet_is_judged_by_the_label_class_that_the_tunnel_names() {
    let decap_l3 = Kernel::loaded().decap_l3();
    each(|mut n| {
        n.name(FRIEND, FAR);
        n.name(OTHERS, 99);
        let (new, far) = (n.stranger(), n.far());
        for outer6 in [false, true] {
            let other_port = |flags| frame::tcp(50_000 + u16::from(outer6), 443, flags, b"");
            // Where the kernel cannot take off a header of the other family, the VXLAN device does, and `from_overlay` judges it once more.
            let let_in = if decap_l3 || outer6 == n.v6 { IN } else { Ok(Outcome::Pass) };
            for class in [0, NOBODY] {
                assert_eq!(n.named(outer6, new, class, other_port(SYN)), Err(D::PolicyUnknown));
            }
            let denied = n.run_named(outer6, new, OTHERS, other_port(SYN));
            assert_eq!(denied.counted[0].1, Err(D::PolicyIngress));
            assert_eq!(denied.events[0].class, OTHERS, "the event says who it was");
            assert_eq!(n.named(outer6, new, FRIEND, tcp(444, SYN)), Err(D::PolicyIngress));
            assert_eq!(n.named(outer6, new, FRIEND, other_port(SYN)), let_in);
            assert_eq!(n.named(outer6, pod(n.v6, 2, 9), FRIEND, tcp(443, SYN)), Err(D::InnerSource));
            // An address that another pod had, as far as is known, and one of a class that is not known or not one.
            assert_eq!(n.named(outer6, far, OTHERS, other_port(SYN)), Err(D::PolicyIngress));
            assert_eq!(n.named(outer6, far, NOBODY, other_port(SYN)), let_in);
        }
        // They agree: nothing else is asked.
        n.hold(far, FAR, OTHERS);
        assert_eq!(n.named(n.v6, far, OTHERS, frame::tcp(50_009, 443, SYN, b"")), IN);
    });
}

#[test]
fn a_flow_that_was_judged_by_a_label_class_goes_on_before_its_address_is_known_and_after() {
    each(|mut n| {
        n.name(FRIEND, FAR);
        let new = n.stranger();
        assert_eq!(n.named(n.v6, new, FRIEND, tcp(443, SYN)), IN);
        assert_eq!(n.answers(new, back(443, SYN_ACK)), Ok(Outcome::Device));
        for answer_first in [true, false] {
            // Another policy has changed: whoever of both is met first is judged again, and the other one by that.
            n.raise_epoch();
            if answer_first {
                assert_eq!(n.answers(new, back(443, ACK)), Ok(Outcome::Device));
            }
            assert_eq!(n.named(n.v6, new, FRIEND, tcp(443, ACK)), IN);
            assert_eq!(n.answers(new, back(443, ACK)), Ok(Outcome::Device));
        }
        n.hold(new, FAR, FRIEND);
        n.raise_epoch();
        assert_eq!(n.answers(new, back(443, ACK)), Ok(Outcome::Device));
        n.revoke(SERVER_IN, FAR);
        n.raise_epoch();
        assert_eq!(n.answers(new, back(443, ACK)), Err(D::PolicyIngress));
        assert_eq!(n.named(n.v6, new, FRIEND, tcp(443, ACK)), Err(D::PolicyIngress));
    });
}

/// What was reported of a packet that passed, or would have: what was counted, the reason, the rule and the port.
fn reported(ran: &Ran) -> Vec<(Outcome, D, u32, u16)> {
    let counted = ran.counted.iter().filter_map(|(_, what)| what.ok());
    let counted = counted.filter(|o| matches!(o, Outcome::AuditEgress | Outcome::AuditIngress));
    let events = ran.events.iter().filter(|e| e.reason & WOULD_BE != 0);
    let named = |e: &DropEvent| (D::from_number(e.reason & !WOULD_BE).expect("a reason"), e.cookie, e.dport.to_host());
    counted.zip(events.map(named)).map(|(o, (reason, cookie, port))| (o, reason, cookie, port)).collect()
}

#[test]
fn what_policies_in_audit_mode_would_deny_passes_and_is_reported_once_for_each_judgement() {
    each_audited(|mut n| {
        let (srv, far, stranger, me) = (n.server(), n.far(), n.stranger(), n.me());
        let from_me = |dst, l4| frame::eth(CLIENT_MAC, Mac::WEFT, whole(&Ip::default(), me, dst, l4));
        let rule = |n: &Isolated, rules, port: u16| {
            n.w.policy
                .rules
                .iter()
                .find(|(_, k, _)| (k.rules, k.port) == (rules, port.to_be_bytes()))
                .expect("is there")
                .2
                .cookie
        };
        // Its ingress alone would deny it.
        let ran = n.run(Point::FromPod, &from_me(srv, tcp(80, SYN)));
        assert_eq!(ran.counted[0].1, IN);
        assert_eq!(reported(&ran), [(Outcome::AuditIngress, D::PolicyIngress, rule(&n, 16, 80), 80)]);
        // Its flow is known, and each packet of it costs nothing, whichever way it goes.
        assert_eq!(n.answers(me, back(80, SYN_ACK)), IN);
        let ran = n.run(Point::FromPod, &from_me(srv, tcp(80, ACK)));
        assert_eq!((ran.counted[0].1, ran.counted.len(), ran.events.len()), (IN, 1, 0));
        n.raise_epoch();
        assert_eq!(reported(&n.run(Point::FromPod, &from_me(srv, tcp(80, ACK)))).len(), 1, "once more after a change");
        assert_eq!(reported(&n.run(Point::FromPod, &from_me(srv, tcp(80, ACK)))), []);
        // What is denied in earnest is denied, and what the sender's policies would do is reported all the same.
        let ran = n.run(Point::FromPod, &from_me(srv, tcp(79, SYN)));
        assert_eq!(ran.counted[0].1, Err(D::PolicyIngress));
        assert_eq!(reported(&ran), [(Outcome::AuditEgress, D::PolicyEgress, 0, 79)]);
        // Nobody is known to have the address, and the maps do not hold the set.
        let ran = n.run(Point::FromPod, &from_me(stranger, tcp(443, SYN)));
        assert_eq!(ran.counted[0].1, Ok(Outcome::Device));
        assert_eq!(reported(&ran), [(Outcome::AuditEgress, D::PolicyUnknown, 0, 443)]);
        n.revoke(CLIENT_OUT_AUDITED, FAR);
        n.revoke(CLIENT_OUT_AUDITED, cni_common::policy::IDENTITY_OTHER);
        let ran = n.run(Point::FromPod, &from_me(far, tcp(443, SYN)));
        assert_eq!(ran.counted[0].1, Ok(Outcome::Device));
        assert_eq!(reported(&ran), [(Outcome::AuditEgress, D::PolicyEgress, 0, 443)]);
    });
}

#[test]
fn audit_tells_of_the_inner_packet_and_of_fragments_that_nothing_is_known_of_nothing() {
    each_audited(|mut n| {
        let (far, srv, me) = (n.far(), n.server(), n.me());
        let inner = frame::eth(Mac::OVERLAY, Mac::WEFT, whole(&Ip::default(), far, srv, tcp(443, SYN)));
        let ends = (underlay(n.v6, 1), underlay(n.v6, 0));
        let outer = whole(&Ip::default(), ends.0, ends.1, frame::vxlan(PORT, 0, &inner));
        let ran = n.run(Point::FromNetdev, &frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, outer));
        assert_eq!(ran.counted[0].1, IN);
        assert_eq!(reported(&ran).len(), 1);
        let e = ran.events[0];
        assert_eq!((e.src.canonical(), e.dst.canonical(), e.point), (far, srv, Point::FromNetdev as u8));
        assert_eq!((e.sport.to_host(), e.dport.to_host()), (40_000, 443));
        // No first one was seen.
        let later = Ip {
            frag: if n.v6 { 0 } else { 2 },
            extensions: if n.v6 { vec![(44, vec![0, 0, 0, 16, 0, 0, 0, 7])] } else { Vec::new() },
            ..Ip::default()
        };
        let packet = later.packet(me, far, (UDP, vec![7; 16]));
        let ran = n.run(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet));
        assert_eq!((ran.counted[0].1, ran.events.len()), (Ok(Outcome::Device), 0));
        // Where somebody denies in earnest, it is dropped.
        let packet = later.packet(me, srv, (UDP, vec![7; 16]));
        assert_eq!(n.fate(Point::FromPod, &frame::eth(CLIENT_MAC, Mac::WEFT, packet)), Err(D::FragmentOrder));
    });
}
