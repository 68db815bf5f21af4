//! SCTP through the loaded programs: its checksum is CRC32c over the packet alone, so nothing of it may change. Real sockets talk in
//! `tests/lab/tests/pair`.
use cni_common::{
    drop::{Outcome, Point},
    net::Mac,
};
use packets::{
    frame::{self, Ip},
    kernel::{Kernel, REDIRECT},
    world::*,
};

#[test]
fn an_init_arrives_unchanged_at_pods_here_and_on_other_nodes() {
    let mut kernel = Kernel::loaded();
    let init = frame::sctp(4000, 36412);
    assert_eq!(frame::crc32c(b"123456789"), 0xe306_9283, "the check value that RFC 3720 and others give");
    for v6 in [false, true] {
        let here = Ip::default().packet(client(v6), server(v6), init.clone());
        let far = Ip::default().packet(client(v6), pod(v6, 1, 7), init.clone());
        let back = Ip::default().packet(pod(v6, 1, 7), server(v6), init.clone());
        let back = frame::vxlan(PORT, 0, &frame::eth(Mac::OVERLAY, Mac::WEFT, back));
        // In the same family: to change it takes a kernel of 6.3.
        let back = Ip::default().packet(underlay(v6, 1), underlay(v6, 0), back);
        for (point, outcome, sent) in [
            (Point::FromPod, Outcome::Peer, frame::eth(CLIENT_MAC, Mac::WEFT, here)),
            (Point::FromPod, Outcome::Device, frame::eth(CLIENT_MAC, Mac::WEFT, far)),
            (Point::FromNetdev, Outcome::Peer, frame::eth(NEXT_HOP_MAC, UNDERLAY_MAC, back)),
        ] {
            let ran = kernel.run(point, &sent).expect("a whole frame");
            assert_eq!((ran.code, &ran.counted[..]), (REDIRECT, &[(point, Ok(outcome))][..]), "v6 {v6}");
            assert!(ran.data.ends_with(&init.1), "v6 {v6}, {point:?}: {:02x?}", ran.data);
        }
    }
}
