//! The container's device, without the agent: found by its name in the container's namespace, and deleted.
//!
//! Two short netlink messages, written here: the packet crate's own types would bring every kind of link along, and this
//! program is executed for each call.
use std::{io, os::fd::OwnedFd, panic, path::Path, thread};

use netlink_packet_core::{NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc::{IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK},
    sched::{CloneFlags, setns},
    sys::stat::Mode,
};

use crate::spec::{CniError, ErrorCode};

/// First of the interface indexes that Weft chooses itself; an endpoint's is this and its number, 1 to 65535, on both ends
/// of its pair. The kernel counts up from 1 in each namespace and would need years to come here.
pub const FIRST_IFINDEX: u32 = 0x5000_0000;
/// The kind of link that Weft makes.
const KIND: &[u8] = b"veth";
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Place of `ifi_index` in it.
const LINK_INDEX: usize = 4;
/// A link's description takes some 2 KiB; the kernel fills at most 32 KiB into one datagram.
const RECEIVE_BUFFER: usize = 32 << 10;

/// How containers' devices are reached: by netlink, or by a stand-in in tests.
pub trait Devices {
    /// Deletes the device `ifname` in the namespace at `netns`, if it is one that Weft made. Without device or namespace
    /// there is nothing to do.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses.
    fn remove(&self, netns: &str, ifname: &str) -> Result<(), CniError>;

    /// Whether there is a device `ifname` in the namespace at `netns` that Weft made.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    fn has_ours(&self, netns: &str, ifname: &str) -> Result<bool, CniError>;
}

/// The kernel's network namespaces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Namespaces;

impl Devices for Namespaces {
    fn remove(&self, netns: &str, ifname: &str) -> Result<(), CniError> {
        inside(netns, || match link(ifname)? {
            Some(link) if link.is_ours() => delete(link.index),
            _ => Ok(()),
        })
        .map(drop)
        .map_err(|e| failed("delete", netns, ifname, &e))
    }

    fn has_ours(&self, netns: &str, ifname: &str) -> Result<bool, CniError> {
        inside(netns, || link(ifname).map(|link| link.is_some_and(|link| link.is_ours())))
            .map(Option::unwrap_or_default)
            .map_err(|e| failed("look for", netns, ifname, &e))
    }
}

fn failed(step: &str, netns: &str, ifname: &str, error: &io::Error) -> CniError {
    let (code, cure) = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            (ErrorCode::NOT_PERMITTED, "run the container runtime as root: only root may change the node's network")
        }
        _ => (ErrorCode::IO_FAILURE, "start weft-agent, which does it when it is asked again"),
    };
    CniError::new(code, format!("cannot {step} the device {ifname} in {netns}: {error}")).with_details(cure)
}

/// Runs `work` in a thread of its own inside the namespace; `None` when there is no such namespace (any more).
fn inside<R: Send>(netns: &str, work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<Option<R>> {
    let Some(netns) = namespace(netns)? else { return Ok(None) };
    let enter = move || match setns(netns, CloneFlags::CLONE_NEWNET) {
        // The file on which a namespace was mounted stays when the mount goes.
        Err(Errno::EINVAL) => Ok(None),
        Err(e) => Err(e.into()),
        Ok(()) => work().map(Some),
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned()).stack_size(128 << 10);
        builder.spawn_scoped(scope, enter)?.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// `None` when the runtime names none, or there is none at its path.
fn namespace(path: &str) -> io::Result<Option<OwnedFd>> {
    if path.is_empty() {
        return Ok(None);
    }
    // Not blocking: whatever stands at the path, opening it must not wait for anybody.
    match open(Path::new(path), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty()) {
        Ok(netns) => Ok(Some(netns)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What is known of a link.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    is_veth: bool,
}

impl Link {
    fn is_ours(&self) -> bool {
        self.is_veth && (FIRST_IFINDEX + 1..=FIRST_IFINDEX + 0xffff).contains(&self.index)
    }
}

/// The link of this name in the thread's namespace.
fn link(name: &str) -> io::Result<Option<Link>> {
    match ask(&message(RTM_GETLINK, 0, Some(name))) {
        Ok(answer) => read_link(&answer).map(Some),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn delete(index: u32) -> io::Result<()> {
    match ask(&message(RTM_DELLINK, index, None)) {
        Err(e) if !is_gone(&e) => Err(e),
        _ => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// A request about one link, by index or by name.
fn message(kind: u16, index: u32, name: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + LINK_HEADER];
    bytes.splice(HEADER + LINK_INDEX..HEADER + LINK_INDEX + 4, index.to_ne_bytes());
    if let Some(name) = name {
        // Names have 15 bytes at most.
        let length = NLA_HEADER_SIZE + name.len() + 1;
        bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        bytes.extend(IFLA_IFNAME.to_ne_bytes());
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(if kind == RTM_GETLINK { NLM_F_REQUEST } else { NLM_F_REQUEST | NLM_F_ACK });
    bytes
}

/// Sends one request and gives its one answer, or the kernel's refusal.
fn ask(request: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut answer = Vec::with_capacity(RECEIVE_BUFFER);
    socket.recv(&mut answer, 0)?;
    match refused(&answer)? {
        None => Ok(answer),
        Some(error) => Err(error),
    }
}

/// The refusal in an answer. Number 0 is an acknowledgement.
fn refused(answer: &[u8]) -> io::Result<Option<io::Error>> {
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if message.message_type() != NLMSG_ERROR {
        return Ok(None);
    }
    let number = message.payload().first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
    Ok((number != 0).then(|| io::Error::from_raw_os_error(number.wrapping_neg())))
}

fn read_link(answer: &[u8]) -> io::Result<Link> {
    let unreadable = || io::Error::other("the kernel's description of the device cannot be read");
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    let payload = message.payload();
    let index = payload.get(LINK_INDEX..LINK_HEADER).and_then(|rest| rest.first_chunk());
    let index = index.filter(|_| message.message_type() == RTM_NEWLINK).ok_or_else(unreadable)?;
    let kind = attribute(payload.get(LINK_HEADER..).unwrap_or_default(), IFLA_LINKINFO)
        .and_then(|info| attribute(info, IFLA_INFO_KIND));
    // Text ends with a zero.
    let is_veth = kind.is_some_and(|kind| kind.strip_suffix(&[0]).unwrap_or(kind) == KIND);
    Ok(Link { index: u32::from_ne_bytes(*index), is_veth })
}

/// The value of the first attribute of this type.
fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let found = all.find(|attribute| attribute.kind() == kind)?;
    let end = usize::from(found.length());
    found.into_inner().get(NLA_HEADER_SIZE..end)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const OURS: u32 = FIRST_IFINDEX + 7;

    #[test]
    fn only_a_veth_with_an_index_of_weft_is_ours() {
        for (index, is_veth, ours) in [
            (OURS, true, true),
            (FIRST_IFINDEX + 1, true, true),
            (FIRST_IFINDEX + 0xffff, true, true),
            (FIRST_IFINDEX, true, false),
            (FIRST_IFINDEX + 0x1_0000, true, false),
            (2, true, false),
            (OURS, false, false),
        ] {
            assert_eq!(Link { index, is_veth }.is_ours(), ours, "{index:#x} {is_veth}");
        }
    }

    #[test]
    fn a_link_is_read_from_the_kernels_description() {
        assert_eq!(read_link(&described(OURS, b"veth\0")).unwrap(), Link { index: OURS, is_veth: true });
        assert_eq!(read_link(&described(3, b"vethX\0")).unwrap(), Link { index: 3, is_veth: false });
        assert_eq!(read_link(&described(3, b"")).unwrap(), Link { index: 3, is_veth: false });
    }

    #[test]
    fn a_request_names_its_link() {
        let by_name = message(RTM_GETLINK, 0, Some("eth0"));
        assert_eq!(by_name.len(), HEADER + LINK_HEADER + 12);
        assert_eq!(attribute(&by_name[HEADER + LINK_HEADER..], IFLA_IFNAME), Some(&b"eth0\0"[..]));
        let by_index = message(RTM_DELLINK, OURS, None);
        let header = NetlinkBuffer::new_checked(by_index.as_slice()).unwrap();
        assert_eq!((header.length(), header.message_type(), header.flags()), (32, RTM_DELLINK, 5));
        assert_eq!(header.payload()[LINK_INDEX..LINK_INDEX + 4], OURS.to_ne_bytes());
    }

    #[test]
    fn a_refusal_is_told_from_an_acknowledgement() {
        let mut answer = message(NLMSG_ERROR, 0, None);
        assert!(refused(&answer).unwrap().is_none());
        answer.splice(HEADER..HEADER + 4, (-(Errno::ENODEV as i32)).to_ne_bytes());
        assert!(is_gone(&refused(&answer).unwrap().unwrap()));
        answer.splice(HEADER..HEADER + 4, (-(Errno::EPERM as i32)).to_ne_bytes());
        let error = refused(&answer).unwrap().unwrap();
        assert_eq!((is_gone(&error), error.kind()), (false, io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn where_no_namespace_is_there_is_nothing_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("below");
        for path in ["", "/nonexistent/netns", below.to_str().unwrap()] {
            assert_eq!(Namespaces.remove(path, "eth0"), Ok(()), "{path}");
            assert_eq!(Namespaces.has_ours(path, "eth0"), Ok(false), "{path}");
        }
    }

    #[test]
    fn what_kept_it_from_being_done_names_device_and_namespace() {
        let error = failed("delete", "/run/netns/blue", "eth0", &Errno::EPERM.into());
        assert_eq!(error.code, ErrorCode::NOT_PERMITTED);
        assert!(error.msg.contains("/run/netns/blue") && error.msg.contains("eth0"), "{error}");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _refused = refused(&bytes);
            let _link = read_link(&bytes);
        }
    }

    /// A link as RTM_NEWLINK describes it, with an attribute of no interest in front.
    fn described(index: u32, kind: &[u8]) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(NLA_HEADER_SIZE + value.len()).unwrap();
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let mut bytes = message(RTM_NEWLINK, index, None);
        bytes.extend(attribute(IFLA_IFNAME, b"eth0\0"));
        if !kind.is_empty() {
            bytes.extend(attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, kind)));
        }
        let length = u32::try_from(bytes.len()).unwrap();
        NetlinkBuffer::new(&mut bytes).set_length(length);
        bytes
    }
}
