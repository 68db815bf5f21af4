//! Nothing on the way may vouch for a checksum that it has not looked at: a packet that was damaged must not reach the socket.
use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use lab::{
    layout::NODE_DEVICE,
    offload::{self, Received},
    probe::{Datagrams, Family, LIMIT, Wire},
};

use crate::{
    Rig,
    frames::{Segment, Tunnelled, segment_to, tcp},
};

/// Payload of the largest datagram that fits into every combination of families.
const LARGE: usize = 1380;
/// Ports of the connection that is played by hand: none that a kernel would choose.
const PORT: u16 = 700;
const SYN: u8 = 0x02;
const RESET: u8 = 0x04;
const ACK: u8 = 0x10;
/// Segments that are to be coalesced, and the one among them that is damaged.
const SEGMENTS: usize = 20;
const DAMAGED: usize = 10;
/// So long a segment may wait for the next one.
const HOLD: Duration = Duration::from_millis(5);
/// Payload of each.
const SIZE: usize = 1200;

/// The payload stands at the end of a frame: positions of its first and its last byte, from the end.
fn ends_of(payload: usize) -> [usize; 2] {
    [payload, 1]
}

/// The frame with the byte so far from its end changed.
fn damaged(frame: &[u8], from_end: usize) -> Vec<u8> {
    let mut frame = frame.to_owned();
    let at = frame.len() - from_end;
    frame[at] ^= 0x01;
    frame
}

#[test]
fn a_datagram_with_a_changed_byte_does_not_reach_the_socket_and_the_unchanged_one_does() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        let wire = rig.wire(1);
        for family in Family::BOTH {
            let udp = Datagrams::open(&rig.client, &rig.web, family).unwrap();
            let shape = Tunnelled::by_client(&rig, family);
            for length in [1, 2, 7, 512, LARGE] {
                let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
                let frame = shape.udp(4000, udp.port().unwrap(), &payload);
                let what = format!("{family} over {underlay}, {length} bytes");
                for from_end in ends_of(length) {
                    wire.send(&damaged(&frame, from_end)).unwrap();
                }
                wire.send(&frame).unwrap();
                // What was sent first would have come first.
                let arrived = udp.receive().unwrap().unwrap_or_else(|| panic!("{what}: the unchanged one is lost"));
                assert!(arrived.payload == payload, "{what}: a changed one arrived");
                assert_eq!(udp.pending().unwrap(), None, "{what}");
            }
        }
        rig.lab.down().unwrap();
    }
}

/// The pod's answer to a segment of ours: its sequence number, and what it acknowledges.
fn answer(wire: &Wire, flags: u8) -> Option<(u32, u32)> {
    let ours = |frame: &[u8]| segment_to(PORT, frame).filter(|s| s.flags == flags).map(|s| (s.seq, s.ack));
    wire.hear(LIMIT, ours).ok()
}

/// Plays a TCP connection of the other node by hand, up to the end of the handshake, and sends it a burst of segments that the receiving
/// device coalesces, if it can. One of them is damaged.
fn damage_within_a_large_packet(rig: &Rig, family: Family, from_end: usize, coalesces: bool) {
    let what = format!("{family} over {}, byte {from_end} from the end", rig.underlay);
    let wire = rig.wire(1);
    // An address of the other node's that is no pod's: no kernel answers for it.
    let shape = Tunnelled {
        inner: (rig.nobody(family), rig.web.address(family).unwrap()),
        ..Tunnelled::by_client(rig, family)
    };
    let listener = rig.web.run(|| TcpListener::bind(SocketAddr::new(family.any(), 0))).unwrap();
    let ports = (PORT, listener.local_addr().unwrap().port());
    let packet =
        |seq: u32, ack: u32, flags: u8, payload: &[u8]| shape.frame(tcp(ports, Segment { seq, ack, flags }, payload));

    // A damaged SYN is not answered: the next answer acknowledges the good one.
    let syn = packet(1000, 0, SYN, b"");
    let window = 5;
    wire.send(&damaged(&syn, window)).unwrap();
    wire.send(&packet(2000, 0, SYN, b"")).unwrap();
    let (seq, ack) = answer(&wire, SYN | ACK).unwrap_or_else(|| panic!("{what}: no SYN-ACK"));
    assert_eq!(ack, 2001, "{what}: the damaged SYN was answered");
    wire.send(&packet(2001, seq + 1, ACK, b"")).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();

    let data: Vec<u8> = (0..SEGMENTS * SIZE).map(|i| (i % 251) as u8).collect();
    let frames: Vec<_> =
        data.chunks(SIZE).enumerate().map(|(n, part)| packet(2001 + (n * SIZE) as u32, seq + 1, ACK, part)).collect();
    let before = Received::by(&rig.web, "eth0").unwrap();
    for (n, frame) in frames.iter().enumerate() {
        wire.send(&if n == DAMAGED { damaged(frame, from_end) } else { frame.clone() }).unwrap();
    }
    let mut got = vec![0; DAMAGED * SIZE];
    server.read_exact(&mut got).unwrap_or_else(|e| panic!("{what}: what came before the damaged one: {e}"));
    assert!(got == data[..DAMAGED * SIZE], "{what}: other bytes arrived");
    server.set_nonblocking(true).unwrap();
    let more = server.read(&mut [0]);
    assert!(more.is_err(), "{what}: the damaged one arrived");
    let average = Received::by(&rig.web, "eth0").unwrap().average_since(before);
    // A pod's device of 5.10 counts nothing, and its veth can not coalesce.
    if coalesces {
        let average = average.expect("packets arrived");
        assert!(average > 1.5 * SIZE as f64, "{what}: {average:.0} bytes per packet, so none was large");
    }

    // The unchanged one fills the gap, and all that came after it is there as well.
    server.set_nonblocking(false).unwrap();
    wire.send(&frames[DAMAGED]).unwrap();
    let mut rest = vec![0; (SEGMENTS - DAMAGED) * SIZE];
    server.read_exact(&mut rest).unwrap_or_else(|e| panic!("{what}: the unchanged one did not close the gap: {e}"));
    assert!(rest == data[DAMAGED * SIZE..], "{what}: other bytes arrived");
    wire.send(&packet(2001 + data.len() as u32, seq + 1, RESET | ACK, b"")).unwrap();
}

#[test]
fn a_damaged_segment_does_not_reach_the_socket_within_a_large_packet_either() {
    for underlay in Family::BOTH {
        let rig = Rig::new(underlay);
        let coalesces = rig.without_segmentation();
        // The frames are sent one by one, and what each leaves behind must wait for the next.
        offload::hold_for_coalescing(&rig.nodes[0], NODE_DEVICE, HOLD).unwrap();
        for family in Family::BOTH {
            for from_end in ends_of(SIZE) {
                damage_within_a_large_packet(&rig, family, from_end, coalesces);
            }
        }
        rig.lab.down().unwrap();
    }
}
