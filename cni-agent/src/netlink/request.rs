//! A message to the kernel together with what it is meant to do.
use std::borrow::Cow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

/// One message. Its text goes into the error if the kernel refuses it.
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until a socket runs it"]
pub struct Request {
    what: Cow<'static, str>,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Request {
    /// `what` is a sentence without a subject ("add the address 10.0.0.1/32"), `flags` beside `NLM_F_REQUEST`.
    pub(super) fn new(what: impl Into<Cow<'static, str>>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what: what.into(), message, flags }
    }

    /// What it is meant to do.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn into_what(self) -> String {
        self.what.into_owned()
    }

    /// Appends its bytes to `buf`.
    pub(super) fn write(&self, buf: &mut Vec<u8>, sequence: u32, ack: bool) {
        let mut header = NetlinkHeader::default();
        header.flags = self.flags | NLM_F_REQUEST | if ack { NLM_F_ACK } else { 0 };
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(self.message.clone()));
        message.finalize();
        let start = buf.len();
        // The next message begins on a 4-byte boundary (NLMSG_ALIGNTO).
        buf.resize((start + message.buffer_len()).next_multiple_of(4), 0);
        message.serialize(buf.get_mut(start..).unwrap_or_default());
    }
}
