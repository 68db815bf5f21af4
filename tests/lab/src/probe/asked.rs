//! A question and its answer, again and again.
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};

use super::{Family, LIMIT, Place};

/// A question and its answer between two UDP sockets: one flow, of which no packet is sent twice.
#[derive(Debug)]
pub struct Asked {
    client: UdpSocket,
    server: UdpSocket,
    to: SocketAddr,
    /// Whom the server has seen first.
    seen: Option<SocketAddr>,
    what: String,
}

impl Asked {
    /// Opens both sockets. Nothing is sent yet.
    ///
    /// # Errors
    /// When a place has no address of the family, or the kernel refuses.
    pub fn open(from: &Place, to: &Place, family: Family) -> Result<Self> {
        let bind = |place: &Place| {
            place.run(|| {
                let socket = UdpSocket::bind(SocketAddr::new(family.any(), 0))?;
                socket.set_read_timeout(Some(LIMIT))?;
                Ok(socket)
            })
        };
        let (client, server) = (bind(from)?, bind(to)?);
        let to = SocketAddr::new(to.address(family)?, server.local_addr()?.port());
        Ok(Self { client, server, to, seen: None, what: format!("UDP {} → {to}", from.name) })
    }

    /// One question and its answer.
    ///
    /// # Errors
    /// When one of them is lost, or either end is another than before.
    pub fn ask(&mut self) -> Result<()> {
        let mut buffer = [0; 16];
        self.client.send_to(b"question", self.to).with_context(|| self.what.clone())?;
        let (_, seen) = self.server.recv_from(&mut buffer).with_context(|| format!("{}: lost", self.what))?;
        let first = *self.seen.get_or_insert(seen);
        ensure!(seen == first, "{}: seen as {seen}, and as {first} before", self.what);
        self.server.send_to(b"answer", seen).with_context(|| self.what.clone())?;
        let (_, who) = self.client.recv_from(&mut buffer).with_context(|| format!("{}: answer lost", self.what))?;
        ensure!(who == self.to, "{}: {who} answers", self.what);
        Ok(())
    }

    /// The client's port and the server's.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ports(&self) -> Result<(u16, u16)> {
        Ok((self.client.local_addr()?.port(), self.to.port()))
    }
}
