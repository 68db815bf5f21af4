//! A blocking rtnetlink socket: requests in batches, answers checked.
use std::{io, os::fd::BorrowedFd};

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::{NetlinkError, Request, netns, read};

/// How often a dump is tried when the kernel says that the table changed meanwhile. Under a burst of CNI calls one retry is
/// not enough, and an endless loop would hide that.
const DUMP_ATTEMPTS: u32 = 8;
/// The kernel fills at most 32 KiB of a dump into one datagram.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Attribute of an error message that holds the kernel's words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One socket. It keeps to the network namespace in which it was opened, and may move between threads.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    send: Vec<u8>,
    receive: Vec<u8>,
}

/// One message of an answer.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Socket {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// When the process may not open sockets or has none left.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            inner.bind_auto()?;
            inner.connect(&SocketAddr::new(0, 0))?;
            // The kernel's words with an error, without a copy of the request that caused it.
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            // The kernel filters what it lists, and refuses filters that it does not know (4.20).
            inner.set_netlink_get_strict_chk(true)?;
            Ok(inner)
        };
        let inner = open().map_err(NetlinkError::socket("open a netlink socket"))?;
        Ok(Self { inner, sequence: 0, send: Vec::new(), receive: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// In the network namespace behind `netns`. A thread goes there, opens the socket and ends.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the namespace can not be entered (needs `CAP_SYS_ADMIN`).
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self, NetlinkError> {
        netns::in_netns(netns, Self::open).map_err(NetlinkError::socket("enter the network namespace"))?
    }

    /// Sends one request and waits for its end.
    ///
    /// # Errors
    /// What the kernel or the socket says.
    pub fn run(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.batch(vec![request])
    }

    /// Sends all requests in one system call and waits for the end of the last. The kernel works them off in order, **and
    /// goes on behind one that failed**.
    ///
    /// # Errors
    /// The first refusal, with its place and text; or what the socket says.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<(), NetlinkError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let first = self.sequence.wrapping_add(1);
        self.send.clear();
        for (i, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // Refusals are answered anyway; only the last one's success has to be.
            request.write(&mut self.send, self.sequence, i == last);
        }
        let end = self.sequence;
        self.transmit(|| format!("send a batch of {} requests", requests.len()))?;

        let mut refusal = None;
        let mut done = false;
        while !done {
            let what = || requests.last().map(Request::what).unwrap_or_default().to_owned();
            self.receive(what, |answer| {
                // Anything else is a late answer to a request that was given up.
                let place = answer.sequence.wrapping_sub(first) as usize;
                if place > last || answer.kind != NLMSG_ERROR {
                    return Ok(());
                }
                done |= answer.sequence == end;
                if let Some((errno, detail)) = refused(&answer) {
                    refusal.get_or_insert((place, errno, detail));
                }
                Ok(())
            })?;
        }
        match refusal {
            None => Ok(()),
            Some((index, errno, detail)) => {
                let what = requests.into_iter().nth(index).map(Request::into_what).unwrap_or_default();
                Err(NetlinkError::Refused { what, index, errno, detail })
            }
        }
    }

    /// Lists a table. `parse` gets the type and the body of each message and returns what it makes of it; what it does not
    /// want it answers with none.
    ///
    /// # Errors
    /// What the kernel or the socket says, or [`NetlinkError::Interrupted`].
    pub(super) fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.dump_once(request, &mut parse)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Interrupted { what: request.what().to_owned(), attempts: DUMP_ATTEMPTS })
    }

    /// None when the table changed meanwhile.
    fn dump_once<T>(
        &mut self,
        request: &Request,
        parse: &mut impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.ask(request, false)?;
        let what = || request.what().to_owned();
        let (mut list, mut interrupted, mut done) = (Vec::new(), false, false);
        while !done {
            self.receive(what, |answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_ERROR => {
                        done = true;
                        return refusal(what(), &answer);
                    }
                    NLMSG_DONE => {
                        done = true;
                        // An error in the middle of a dump comes as the code of its end.
                        return refusal(what(), &answer);
                    }
                    kind => list.extend(parse(kind, answer.payload)),
                }
                Ok(())
            })?;
        }
        Ok((!interrupted).then_some(list))
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// What the kernel or the socket says.
    pub(super) fn get<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        // With an ACK, so that there is an end whatever the kernel sends.
        let sequence = self.ask(request, true)?;
        let what = || request.what().to_owned();
        let (mut found, mut done) = (None, false);
        while !done {
            self.receive(what, |answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                if answer.kind == NLMSG_ERROR {
                    done = true;
                    return refusal(what(), &answer);
                }
                found = found.take().or_else(|| parse(answer.kind, answer.payload));
                Ok(())
            })?;
        }
        found.ok_or_else(|| NetlinkError::Unreadable { what: what(), detail: "it holds no object of that kind".into() })
    }

    /// Sends one request and returns its number.
    fn ask(&mut self, request: &Request, ack: bool) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send.clear();
        request.write(&mut self.send, self.sequence, ack);
        self.transmit(|| request.what().to_owned())?;
        Ok(self.sequence)
    }

    fn transmit(&mut self, what: impl Fn() -> String) -> Result<(), NetlinkError> {
        let sent = retry_interrupted(|| self.inner.send(&self.send, 0)).map_err(NetlinkError::socket(what()))?;
        // A datagram goes whole or not at all; anything else would leave us waiting for an answer for ever.
        if sent == self.send.len() {
            return Ok(());
        }
        Err(NetlinkError::Unreadable {
            what: what(),
            detail: format!("{sent} of {} bytes were taken", self.send.len()),
        })
    }

    /// Reads one datagram and shows each message in it.
    fn receive(
        &mut self,
        what: impl Fn() -> String,
        mut each: impl FnMut(Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let length = read_datagram(&self.inner, &mut self.receive).map_err(NetlinkError::socket(what()))?;
        if length > self.receive.len() {
            let detail = format!("{length} bytes do not fit into {}", self.receive.len());
            return Err(NetlinkError::Unreadable { what: what(), detail });
        }
        let mut first_error = Ok(());
        for answer in messages(&self.receive) {
            // The rest is read all the same: it belongs to this request and must not be taken for the next one's.
            let result = each(answer);
            if first_error.is_ok() {
                first_error = result;
            }
        }
        first_error
    }
}

/// The messages in a datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = message.length() as usize;
        let answer = Answer {
            kind: message.message_type(),
            flags: message.flags(),
            sequence: message.sequence_number(),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(answer)
    })
}

/// The error in an `NLMSG_ERROR` or `NLMSG_DONE` message and the kernel's words; none if its code is 0.
fn refused(answer: &Answer<'_>) -> Option<(Errno, Option<String>)> {
    let code = i32::from_ne_bytes(answer.payload.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // Behind the code an error repeats the request: its header only when capped. The end of a dump repeats nothing.
    let repeated = if answer.kind == NLMSG_DONE {
        0
    } else if answer.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        let length = answer.payload.get(4..8).and_then(read::number).unwrap_or(0) as usize;
        length.next_multiple_of(4)
    };
    let words = (answer.flags & NLM_F_ACK_TLVS != 0)
        .then(|| read::attributes(answer.payload, 4 + repeated).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .flatten()
        .map(|(_, value)| read::text(value));
    Some((Errno::from_raw(code.wrapping_neg()), words))
}

fn refusal(what: String, answer: &Answer<'_>) -> Result<(), NetlinkError> {
    match refused(answer) {
        None => Ok(()),
        Some((errno, detail)) => Err(NetlinkError::Refused { what, index: 0, errno, detail }),
    }
}

/// Reads one datagram into `buffer` and returns its true length, which may be more than the buffer holds.
pub(super) fn read_datagram(socket: &netlink_sys::Socket, buffer: &mut Vec<u8>) -> io::Result<usize> {
    retry_interrupted(|| {
        buffer.clear();
        socket.recv(buffer, nix::libc::MSG_TRUNC)
    })
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// For the monitor, which reads what nobody asked for: type and body of each message in a datagram.
pub(super) fn bodies(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    messages(datagram).map(|m| (m.kind, m.payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal of request 9 with EEXIST and the words "no", capped, as the kernel writes it.
    fn refusal_message() -> Vec<u8> {
        let mut m = Vec::new();
        m.extend(44u32.to_ne_bytes());
        m.extend(NLMSG_ERROR.to_ne_bytes());
        m.extend((NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        m.extend(9u32.to_ne_bytes());
        m.extend(0u32.to_ne_bytes());
        m.extend((-(Errno::EEXIST as i32)).to_ne_bytes());
        m.extend([0; HEADER]);
        m.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        m
    }

    #[test]
    fn a_refusal_gives_error_number_and_words() {
        let bytes = refusal_message();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].sequence, 9);
        assert_eq!(refused(&all[0]), Some((Errno::EEXIST, Some("no".into()))));
    }

    #[test]
    fn an_acknowledgement_is_no_refusal() {
        let mut bytes = refusal_message();
        bytes[16..20].fill(0);
        assert_eq!(messages(&bytes).filter_map(|m| refused(&m)).count(), 0);
    }

    #[test]
    fn a_cut_datagram_ends_the_messages_without_a_panic() {
        let whole = [refusal_message(), refusal_message()].concat();
        for cut in 0..whole.len() {
            assert!(messages(&whole[..cut]).count() < 2, "{cut}");
        }
        assert_eq!(messages(&whole).count(), 2);
    }
}
