//! What holds of any packets.
use cni_common::{
    maps::CT_HI_OPENED,
    net::{Be16, Ports},
};
use proptest::prelude::*;

use super::{
    super::{
        key::{self, Asker, Rest},
        lifetime,
    },
    *,
};

fn rest(ports: (u16, u16), proto: u8, asker: Asker) -> Rest {
    let ports = Ports::new(Be16::from_host(ports.0), Be16::from_host(ports.1));
    Rest { ports, proto: proto.into(), asker }
}

/// A packet of TCP, by what it says.
fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![SYN, SYN_ACK, ACK, FIN, RST, RST | ACK, 0x18, 0x00, 0x29])
}

proptest! {
    #[test]
    fn both_directions_have_one_key_and_other_tuples_have_others(
        (a, b) in any::<([u8; 4], [u8; 4])>(), (c, d) in any::<([u8; 16], [u8; 16])>(),
        (x, y) in any::<(u16, u16)>(), proto in any::<u8>(), other in any::<u16>(),
    ) {
        use cni_common::net::{Ip4, Ip6};
        let (a, b, c, d) = (Ip4::new(a), Ip4::new(b), Ip6::new(c), Ip6::new(d));
        let (there, back) = (rest((x, y), proto, Asker::NONE), rest((y, x), proto, Asker::NONE));
        let ((k, k_hi), (l, l_hi)) = (key::of4(&a, &b, there), key::of4(&b, &a, back));
        prop_assert_eq!(k, l);
        prop_assert!(k_hi != l_hi || (a, x) == (b, y));
        let first = if k_hi { (k.hi, k.hi_port, k.lo, k.lo_port) } else { (k.lo, k.lo_port, k.hi, k.hi_port) };
        prop_assert_eq!(first, (a, Be16::from_host(x), b, Be16::from_host(y)));
        prop_assert_eq!((k.proto, k.asks, k.pad), (proto, 0, 0));
        let ((k, k_hi), (l, l_hi)) = (key::of6(&c, &d, there), key::of6(&d, &c, back));
        prop_assert_eq!(k, l);
        prop_assert!(k_hi != l_hi || (c, x) == (d, y));
        let first = if k_hi { (k.hi, k.hi_port, k.lo, k.lo_port) } else { (k.lo, k.lo_port, k.hi, k.hi_port) };
        prop_assert_eq!(first, (c, Be16::from_host(x), d, Be16::from_host(y)));
        prop_assert_eq!((k.proto, k.asks, k.pad), (proto, 0, 0));
        if other != x {
            prop_assert_ne!(key::of4(&a, &b, rest((other, y), proto, Asker::NONE)).0, key::of4(&a, &b, there).0);
        }
        prop_assert_ne!(key::of6(&c, &d, rest((x, y), !proto, Asker::NONE)).0, key::of6(&c, &d, there).0);
        // Requests of the one and replies of the other are one flow, requests of both are two.
        let asks = |src: &Ip4, dst: &Ip4, asker| key::of4(src, dst, rest((x, x), 1, asker)).0;
        prop_assert_eq!(asks(&a, &b, Asker::SENDER), asks(&b, &a, Asker::RECEIVER));
        prop_assert!(a == b || asks(&a, &b, Asker::SENDER) != asks(&b, &a, Asker::SENDER));
    }

    #[test]
    fn no_packet_but_the_ends_own_fin_or_reset_brings_an_established_flow_back(
        stray in prop::collection::vec((any::<bool>(), flags(), 0u64..500), 0..40),
    ) {
        for p in pairs().map(Pair::established) {
            for (from_client, flags, seconds) in &stray {
                if *flags & (0x01 | RST) == 0 {
                    p.after(*seconds);
                    if *from_client { p.c(tcp(*flags)) } else { p.s(tcp_back(*flags)) };
                    prop_assert_eq!(p.stage(), Stage::Established);
                    prop_assert_eq!(p.counts(), (1, 0));
                }
            }
        }
    }

    #[test]
    fn whatever_is_sent_the_flow_is_one_entry_that_lives_as_its_stage_says(
        sent in prop::collection::vec((any::<bool>(), flags(), 0u64..300), 1..40),
    ) {
        for p in pairs() {
            for (from_client, flags, seconds) in &sent {
                p.after(*seconds);
                if *from_client { p.c(tcp(*flags)) } else { p.s(tcp_back(*flags)) };
                let (settled, new) = p.counts();
                prop_assert!(settled + new <= 1);
                if settled + new == 1 {
                    let want = match p.stage() {
                        Stage::Handshake => lifetime::HANDSHAKE,
                        Stage::Established => lifetime::ESTABLISHED,
                        Stage::Closing => lifetime::CLOSING,
                        Stage::Closed => lifetime::CLOSED,
                    };
                    prop_assert_eq!(p.lifetime(), want);
                    prop_assert!(p.flow().seen <= p.w.now.get());
                }
            }
            prop_assert_eq!(p.tables().held.borrow().values().sum::<u64>(), p.counts().0 as u64);
        }
    }

    #[test]
    fn a_flow_ends_when_its_lifetime_has_passed_and_not_before(
        early in 0u64..u64::from(lifetime::ESTABLISHED) * HZ, late in 0u64..1 << 40,
    ) {
        for p in pairs().map(Pair::established) {
            p.w.now.set(p.flow().seen + early);
            p.s(tcp_back(ACK));
            prop_assert_eq!(p.asked(), vec![]);
            p.w.now.set(p.flow().seen + u64::from(lifetime::ESTABLISHED) * HZ + late);
            p.s(tcp_back(ACK));
            prop_assert_eq!(p.asked(), vec![Forth]);
            let lo_is_server = p.flow().verdicts & CT_HI_OPENED != 0;
            prop_assert_eq!(lo_is_server, p.flow().hi_sent != 0);
        }
    }
}
