//! Ends of flows that choose their ports, and frames as the world sees them.
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use cni_common::wire::{ICMP, ICMP6, UDP};
use lab::{
    Node,
    probe::{Family, LIMIT, Place, Wire},
};

/// A UDP socket at this port, or at any (0).
pub fn udp_at(place: &Place, family: Family, port: u16) -> UdpSocket {
    let bind = || {
        let socket = UdpSocket::bind(SocketAddr::new(family.any(), port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    };
    place.run(bind).unwrap_or_else(|e| panic!("UDP port {port} of {}: {e:#}", place.name))
}

/// Waits for connections at any port.
pub fn listen(place: &Place, family: Family) -> TcpListener {
    place.run(|| TcpListener::bind(SocketAddr::new(family.any(), 0))).unwrap()
}

pub fn port_of(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

/// Asks the server under the address `to` and is answered from there; whom the server has seen.
pub fn ask(client: &UdpSocket, server: &UdpSocket, to: IpAddr) -> Result<SocketAddr> {
    let data: Vec<u8> = (0..100).collect();
    ask_with(client, server, to, &data)
}

/// The same with these contents, which come back in the answer.
pub fn ask_with(client: &UdpSocket, server: &UdpSocket, to: IpAddr, data: &[u8]) -> Result<SocketAddr> {
    let to = SocketAddr::new(to, port_of(server));
    let mut buffer = vec![0; 65_536];
    client.send_to(data, to).with_context(|| format!("ask {to}"))?;
    let (length, seen) = server.recv_from(&mut buffer).with_context(|| format!("{to} was not asked"))?;
    ensure!(buffer.get(..length) == Some(data), "{to} was asked something else");
    server.send_to(data, seen).with_context(|| format!("answer {seen}"))?;
    let (length, who) = client.recv_from(&mut buffer).with_context(|| format!("{to} answers {seen}, in vain"))?;
    ensure!(buffer.get(..length) == Some(data), "{to} was answered something else");
    ensure!(who == to, "{who} answers for {to}");
    Ok(seen)
}

/// Source, destination, protocol and what follows the IP header of a frame; IPv6 without extension headers.
pub fn packet(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    let address4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
    let address6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(frame.get(14)? & 0x0f) * 4;
            Some((address4(26)?, address4(30)?, *frame.get(23)?, frame.get(14 + header..)?))
        }
        [0x86, 0xdd] => Some((address6(22)?, address6(38)?, *frame.get(20)?, frame.get(54..)?)),
        _ => None,
    }
}

/// The next UDP datagram to this port that goes by: from whom.
pub fn hear_udp(wire: &Wire, port: u16) -> Result<SocketAddr> {
    wire.hear(LIMIT, |frame| {
        let (source, _, protocol, body) = packet(frame)?;
        let number = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
        (protocol == UDP && number(2)? == port).then_some(SocketAddr::new(source, number(0)?))
    })
}

/// The next echo request of the family that goes by: from whom, and its identifier.
pub fn hear_echo(wire: &Wire, family: Family) -> Result<(IpAddr, u16)> {
    let kind = match family {
        Family::V4 => (ICMP, 8),
        Family::V6 => (ICMP6, 128),
    };
    wire.hear(LIMIT, |frame| {
        let (source, _, protocol, body) = packet(frame)?;
        ((protocol, *body.first()?) == kind).then_some((source, u16::from_be_bytes(body.get(4..6)?.try_into().ok()?)))
    })
}

/// How many packets the node has dropped by this name, wherever.
pub fn dropped(node: &Node, reason: &str) -> u64 {
    let drops = node.ask("/v1/drops").unwrap();
    let of_name = drops["drops"].as_array().expect("a list").iter().filter(|d| d["reason"] == reason).cloned();
    of_name.map(|d| d["packets"].as_u64().expect("a count")).sum()
}
