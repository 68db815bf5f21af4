//! Netlink messages byte by byte, for the two things that the agent has no request for: nftables and other people's tc filters.
use std::{io, os::fd::BorrowedFd};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// Room for all answers to a batch: each repeats the head of a request at most.
const ANSWERS: usize = 64 * 1024;

/// A message to the kernel.
#[derive(Debug, Clone)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// Of this type, with these flags beside `NLM_F_REQUEST`; `head` stands before the attributes.
    pub(super) fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        Self { kind, flags, body: head.to_vec() }
    }

    /// With its attributes.
    pub(super) fn with(mut self, attributes: &Attributes) -> Self {
        self.body.extend(&attributes.0);
        self
    }

    fn write(&self, buffer: &mut Vec<u8>, sequence: u32) {
        buffer.extend(((HEADER + self.body.len()) as u32).to_ne_bytes());
        buffer.extend(self.kind.to_ne_bytes());
        buffer.extend((self.flags | NLM_F_REQUEST).to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend(0_u32.to_ne_bytes());
        buffer.extend(&self.body);
        buffer.resize(buffer.len().next_multiple_of(4), 0);
    }
}

/// Attributes, one after another.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// And these bytes.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// And this text, with a zero at its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// And this number in network order, as nftables wants all of them.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// And these within one.
    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Sends messages in one datagram to the kernel's part that speaks `protocol`, inside `netns`, and waits until all of those with
/// `NLM_F_ACK` are answered.
pub(super) fn send(netns: BorrowedFd<'_>, protocol: isize, messages: &[Message]) -> Result<()> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(socket)
    };
    let socket = netns::in_netns(netns, open).and_then(|s| s).context("open a netlink socket")?;
    let mut datagram = Vec::new();
    for (number, message) in (1..).zip(messages) {
        message.write(&mut datagram, number);
    }
    socket.send(&datagram, 0).context("send to the kernel")?;
    let mut unanswered = messages.iter().filter(|m| m.flags & NLM_F_ACK != 0).count();
    let mut answers = Vec::with_capacity(ANSWERS);
    while unanswered > 0 {
        answers.clear();
        socket.recv(&mut answers, 0).context("read the kernel's answer")?;
        let mut rest = answers.as_slice();
        while let Some((kind, sequence, code, length)) = answer(rest) {
            if kind == NLMSG_ERROR {
                if code != 0 {
                    bail!("message {sequence} of {}: {}", messages.len(), io::Error::from_raw_os_error(-code));
                }
                unanswered = unanswered.saturating_sub(1);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Type, sequence number, error number (negative, or 0) and length of the first answer.
fn answer(bytes: &[u8]) -> Option<(u16, u32, i32, usize)> {
    let four = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let length = u32::from_ne_bytes(four(0)?) as usize;
    let code = i32::from_ne_bytes(four(HEADER)?);
    (length >= HEADER).then_some((kind, u32::from_ne_bytes(four(8)?), code, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_ones_marked() {
        let inner = Attributes::default().text(3, "abc").bytes(4, &[7]);
        let all = Attributes::default().nest(1, &inner).number(2, 1);
        let mut expected = vec![20, 0, 1, 0x80, 8, 0, 3, 0, b'a', b'b', b'c', 0, 5, 0, 4, 0, 7, 0, 0, 0];
        expected.extend([8, 0, 2, 0, 0, 0, 0, 1]);
        assert_eq!(all.0, expected);
    }
}
