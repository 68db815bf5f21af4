//! DSCP and ECN through the tunnel (RFC 6040, RFC 2983).
use lab::probe::{Datagrams, Family, LIMIT};

use crate::{
    Rig,
    frames::{Tunnelled, both_tos},
};

/// Expedited forwarding, with which voice is sent, and no ECN.
const EF: u8 = 46 << 2;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

#[test]
fn dscp_and_ecn_of_a_pod_stand_on_the_outer_header_and_reach_the_other_pod() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        for family in Family::BOTH {
            let udp = Datagrams::open(&rig.client, &rig.web, family).unwrap();
            for tos in [0, EF, EF | ECT_1, EF | ECT_0, EF | CE, ECT_0, CE] {
                let what = format!("{family} over {underlay}, {tos:#04x}");
                let marker = [b"a class of its own: ".as_slice(), &[tos]].concat();
                let wire = rig.wire(0);
                udp.set_tos(tos).unwrap();
                udp.send(&marker).unwrap();
                let ours = |frame: &[u8]| frame.ends_with(&marker).then(|| both_tos(frame)).flatten();
                assert_eq!(wire.hear(LIMIT, ours).unwrap(), (tos, tos), "{what}: outer and inner header on the wire");
                let arrived = udp.receive().unwrap().unwrap_or_else(|| panic!("{what}: lost"));
                assert_eq!((arrived.payload, arrived.tos), (marker, Some(tos)), "{what}");
            }
        }
        rig.lab.down().unwrap();
    }
}

#[test]
fn a_congestion_mark_of_a_hop_reaches_the_pod_and_is_a_named_drop_for_who_can_not_read_it() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        for family in Family::BOTH {
            let udp = Datagrams::open(&rig.client, &rig.web, family).unwrap();
            let wire = rig.wire(1);
            // What the pod sent, what it is on the underlay, what the other pod must see.
            for (sent, on_the_way, seen) in [
                (EF | ECT_0, EF | CE, Some(EF | CE)),
                (EF | ECT_1, EF | CE, Some(EF | CE)),
                (ECT_0, ECT_1, Some(ECT_1)),
                // The underlay may rewrite the DSCP for its own use.
                (EF | ECT_0, ECT_0, Some(EF | ECT_0)),
                (EF, EF | ECT_0, Some(EF)),
                (EF, EF | CE, None),
            ] {
                let what = format!("{family} over {underlay}: {sent:#04x} sent, {on_the_way:#04x} on the way");
                let dropped = || rig.drops(0, "from_netdev", "EcnNotCapable");
                let before = dropped();
                let shape = Tunnelled { outer_tos: on_the_way, inner_tos: sent, ..Tunnelled::by_client(&rig, family) };
                let marker = [b"marked on the way: ".as_slice(), &[sent, on_the_way]].concat();
                wire.send(&shape.udp(4000, udp.port().unwrap(), &marker)).unwrap();
                match seen {
                    Some(tos) => {
                        let arrived = udp.receive().unwrap().unwrap_or_else(|| panic!("{what}: lost"));
                        assert_eq!((arrived.payload, arrived.tos), (marker, Some(tos)), "{what}");
                        assert_eq!(dropped(), before, "{what}");
                    }
                    None => {
                        // send() ran the whole way: it is counted now, and never was in the socket.
                        assert_eq!(dropped(), before + 1, "{what}");
                        assert_eq!(udp.pending().unwrap(), None, "{what}");
                    }
                }
            }
        }
        rig.lab.down().unwrap();
    }
}
