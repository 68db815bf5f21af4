//! SCTP, which has no other port than its own: its checksum covers both, and its ends know each other by them.
use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use lab::probe::{Family, Place};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Rig;

/// It waits three seconds before it tries again.
const LIMIT: Duration = Duration::from_secs(10);

fn open(place: &Place, family: Family) -> std::io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(family.any(), 0));
    let socket = place.run(|| Ok(Socket::new(domain, Type::STREAM, Some(Protocol::SCTP)))).unwrap()?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
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
        client.connect_timeout(&to.into(), LIMIT).unwrap();
        let (server, seen) = listener.accept().unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        let own = socket_addr(&client.local_addr().unwrap()).port();
        assert_eq!(socket_addr(&seen), SocketAddr::new(side.address(family), own), "{}", pod.name);
        there_and_back(&client, &server);
        // The other pod has another port, as long as it is.
        let second = open(&side.pods[1], family).unwrap();
        second.bind(&SocketAddr::new(family.any(), own % 10_000 + 20_000).into()).unwrap();
        second.connect_timeout(&to.into(), LIMIT).unwrap();
        let (other, _) = listener.accept().unwrap();
        there_and_back(&second, &other);
        there_and_back(&client, &server);
    });
    rig.lab.down().unwrap();
}
