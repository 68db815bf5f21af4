//! SCTP, which has no other port than its own: its checksum covers both, and its ends know each other by them.
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cni_common::{net::Mac, wire::SCTP};
use cni_ebpf::fake::frame::{self, Ip};
use lab::probe::{Family, LIMIT, Place, Wire};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    DEVICE, Rig,
    ends::{dropped, packet},
};

/// It waits three seconds before it tries again.
const PATIENCE: Duration = Duration::from_secs(10);

fn open(place: &Place, family: Family) -> std::io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(family.any(), 0));
    let socket = place.run(|| Ok(Socket::new(domain, Type::STREAM, Some(Protocol::SCTP)))).unwrap()?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn socket_addr(address: &socket2::SockAddr) -> SocketAddr {
    address.as_socket().unwrap()
}

fn there_and_back(client: &Socket, server: &Socket) {
    let mut heard = [0; 4];
    for (mut from, mut to) in [(client, server), (server, client)] {
        from.write_all(b"weft").unwrap();
        to.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"weft");
    }
}

/// Of an association that begins: INIT, or its answer, with the right checksum.
fn begins(from: u16, to: u16, answer: bool) -> (u8, Vec<u8>) {
    let (proto, mut body) = frame::sctp(from, to);
    if answer {
        // INIT ACK; who reads it only for its kind misses no cookie.
        body[12] = 2;
        body[8..12].fill(0);
        let sum = frame::crc32c(&body).to_le_bytes();
        body[8..12].copy_from_slice(&sum);
    }
    (proto, body)
}

/// Sends a frame to whoever is at the other end.
fn send(wire: &Wire, to: Mac, (from, dst): (IpAddr, IpAddr), body: (u8, Vec<u8>)) {
    let packet = Ip::default().packet(from, dst, body);
    wire.send(&frame::eth(Mac::new(wire.mac()), to, packet)).unwrap();
}

/// The next SCTP packet to this port: its ends, and all behind the IP header.
fn hear(wire: &Wire, port: u16) -> anyhow::Result<(IpAddr, IpAddr, Vec<u8>)> {
    wire.hear(LIMIT, |frame| {
        let (from, to, proto, body) = packet(frame)?;
        (proto == SCTP && body.get(2..4)? == port.to_be_bytes()).then(|| (from, to, body.to_vec()))
    })
}

/// Without a kernel that speaks it.
#[test]
fn packets_of_sctp_are_translated_as_they_are_and_their_port_is_nobody_elses() {
    const PORTS: (u16, u16) = (5000, 6000);
    let rig = Rig::new(&[]);
    if open(&rig.near, Family::V4).is_ok() {
        lab::skipped(
            "this kernel speaks SCTP, and aborts what it knows nothing of: real sockets are in the other test",
        );
        return;
    }
    let router = Mac::new(Wire::open(&rig.router, &rig.near.name).unwrap().mac());
    rig.each(|side, pod, family| {
        let [own, node, host] = [pod, &side.node, &rig.near].map(|place| place.address(family).unwrap());
        let [inside, outside] = [pod, &rig.near].map(|place| Wire::open(place, DEVICE).unwrap());
        let init = begins(PORTS.0, PORTS.1, false);
        send(&inside, Mac::WEFT, (own, host), init.clone());
        assert_eq!(hear(&outside, PORTS.1).unwrap(), (node, host, init.1));
        let answer = begins(PORTS.1, PORTS.0, true);
        send(&outside, router, (host, node), answer.clone());
        assert_eq!(hear(&inside, PORTS.0).unwrap(), (host, own, answer.1));

        let other = &side.pods[1];
        let before = dropped(rig.lab.node(&side.node.name).unwrap(), "NatExhausted");
        let wire = Wire::open(other, DEVICE).unwrap();
        let ends = (other.address(family).unwrap(), host);
        send(&wire, Mac::WEFT, ends, begins(PORTS.0, PORTS.1, false));
        assert_eq!(dropped(rig.lab.node(&side.node.name).unwrap(), "NatExhausted"), before + 1);
        send(&wire, Mac::WEFT, ends, begins(PORTS.0 + 1, PORTS.1, false));
        assert_eq!(hear(&outside, PORTS.1).unwrap().0, node);
    });
    rig.lab.down().unwrap();
}

#[test]
fn sctp_gets_there_and_back_under_the_pods_own_port() {
    let rig = Rig::new(&[]);
    if let Err(e) = open(&rig.near, Family::V4) {
        lab::skipped(&format!("this kernel has no SCTP ({e}); `cargo xtask vm --suite lab` runs it"));
        return;
    }
    rig.each(|side, pod, family| {
        let listener = open(&rig.near, family).unwrap();
        listener.bind(&SocketAddr::new(family.any(), 0).into()).unwrap();
        listener.listen(2).unwrap();
        let port = socket_addr(&listener.local_addr().unwrap()).port();
        let to = SocketAddr::new(rig.near.address(family).unwrap(), port);
        let client = open(pod, family).unwrap();
        client.connect_timeout(&to.into(), PATIENCE).unwrap();
        let (server, seen) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let own = socket_addr(&client.local_addr().unwrap()).port();
        assert_eq!(socket_addr(&seen), SocketAddr::new(side.address(family), own), "{}", pod.name);
        there_and_back(&client, &server);
        // The other pod has another port, as long as it is.
        let second = open(&side.pods[1], family).unwrap();
        second.bind(&SocketAddr::new(family.any(), own % 10_000 + 20_000).into()).unwrap();
        second.connect_timeout(&to.into(), PATIENCE).unwrap();
        let (other, _) = listener.accept().unwrap();
        there_and_back(&second, &other);
        there_and_back(&client, &server);
    });
    rig.lab.down().unwrap();
}
