//! Traffic control: clsact qdiscs, the shared block, and our bpf filters.
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{
    NetlinkError, Request, Socket,
    link::LOOPBACK,
    names::{FILTER_HANDLE, FILTER_PRIORITY},
    read,
};

/// `RTM_NEWQDISC`.
const NEW_QDISC: u16 = 36;
/// `RTM_NEWTFILTER`.
const NEW_FILTER: u16 = 44;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;

// Attributes, from include/uapi/linux/rtnetlink.h and pkt_cls.h.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const INGRESS_BLOCK: u16 = 13;
const BPF_NAME: u16 = 7;
const BPF_TAG: u16 = 10;
const BPF_ID: u16 = 11;

/// All protocols, `ETH_P_ALL`, as `tcm_info` wants it: network order.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;

/// Where a filter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the shared block of this number: it sees what enters any device that joined.
    Block(u32),
    /// At the ingress of the device with this index. It needs a clsact qdisc.
    Ingress(u32),
    /// At the egress of the device with this index. It needs a clsact qdisc.
    Egress(u32),
}

impl Place {
    fn header(self) -> TcHeader {
        let (index, parent) = match self {
            // `tcm_block_index` is another name of the field for the parent.
            Self::Block(number) => (TcHeader::TCM_IFINDEX_MAGIC_BLOCK.cast_signed(), number.into()),
            Self::Ingress(index) => (index.cast_signed(), TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS }),
            Self::Egress(index) => (index.cast_signed(), TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS }),
        };
        TcHeader { index, parent, ..TcHeader::default() }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(number) => write!(f, "tc block {number}"),
            Self::Ingress(index) => write!(f, "the ingress of device {index}"),
            Self::Egress(index) => write!(f, "the egress of device {index}"),
        }
    }
}

/// A qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// The device's interface index.
    pub index: u32,
    /// "clsact", "ingress", "noqueue", "fq_codel" …
    pub kind: String,
    /// The shared block that its ingress has joined.
    pub ingress_block: Option<u32>,
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// "bpf", "flower", "matchall" …
    pub kind: String,
    /// Lower ones are asked first.
    pub priority: u16,
    /// Number within the priority.
    pub handle: u32,
    /// A bpf filter's name.
    pub name: Option<String>,
    /// A bpf filter's program.
    pub program_id: Option<u32>,
    /// The tag of that program: a hash of its instructions.
    pub tag: Option<[u8; 8]>,
}

impl Filter {
    /// It stands where we put ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == "bpf" && self.priority == FILTER_PRIORITY && self.handle == FILTER_HANDLE
    }
}

/// Gives a device a clsact qdisc, and lets its ingress join a shared block. Do it while the device is down (Linux 5.10 waits
/// longer otherwise). `EEXIST` if it has one, which [`ensure_clsact`] takes for success.
pub fn add_clsact(index: u32, ingress_block: Option<u32>) -> Request {
    let mut message = clsact(index);
    message
        .attributes
        .extend(ingress_block.map(|n| TcAttribute::Other(DefaultNla::new(INGRESS_BLOCK, n.to_ne_bytes().to_vec()))));
    let joins = ingress_block.map(|n| format!(" in block {n}")).unwrap_or_default();
    let what = format!("add clsact{joins} to device {index}");
    Request::new(what, RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Gives a device a clsact qdisc unless it has one, and says whether it had none. One that was there may be somebody else's:
/// do not delete it.
///
/// # Errors
/// As [`Socket`]'s.
pub fn ensure_clsact(socket: &mut Socket, index: u32) -> Result<bool, NetlinkError> {
    match socket.run(add_clsact(index, None)) {
        Ok(()) => Ok(true),
        Err(e) if e.is_exists() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether ingress can join a shared block (Linux 4.16), found by asking for what the kernel must refuse: block 0 for the loopback device.
/// `EINVAL` is the answer of a kernel that can; one that knows no clsact says `ENOENT`. Nothing is left of it.
///
/// # Errors
/// The kernel's answer; `EOPNOTSUPP` for success, because the kernel overlooked the block then.
pub fn try_shared_block(socket: &mut Socket) -> Result<(), NetlinkError> {
    // No tc block has this number: where the loopback device has a qdisc already, that it does not exist is the answer.
    const NOBODYS: u32 = u32::MAX;
    match socket.run(add_clsact(LOOPBACK, Some(0))) {
        Ok(()) => {
            socket.run(delete_clsact(LOOPBACK))?;
            let what = "make the loopback device join a block".to_owned();
            Err(NetlinkError::Refused { what, index: 0, errno: nix::errno::Errno::EOPNOTSUPP, detail: None })
        }
        Err(e) if e.is_exists() => socket.run(delete_filter(Place::Block(NOBODYS))),
        Err(e) => Err(e),
    }
}

/// Deletes a device's clsact qdisc and all filters in it, whoever's they are.
pub fn delete_clsact(index: u32) -> Request {
    let what = format!("delete clsact from device {index}");
    Request::new(what, RouteNetlinkMessage::DelQueueDiscipline(clsact(index)), 0)
}

/// Puts a program at a place under our priority and handle; what stood there under them gives way to it in one step, so no
/// packet passes unseen. `name` is what people see in `tc filter show`.
pub fn set_filter(place: Place, program: BorrowedFd<'_>, name: &str) -> Request {
    let mut message = ours(place);
    message.attributes.push(TcAttribute::Kind("bpf".into()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    let what = format!("put the program {name} at {place}");
    // Without EXCL, so that it replaces.
    Request::new(what, RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes our filter away from a place.
pub fn delete_filter(place: Place) -> Request {
    let mut message = ours(place);
    message.attributes.push(TcAttribute::Kind("bpf".into()));
    Request::new(format!("take our program away from {place}"), RouteNetlinkMessage::DelTrafficFilter(message), 0)
}

/// The filters at a place, others' too. A block or device that is not there has none.
///
/// # Errors
/// As [`Socket`]'s.
pub fn filters(socket: &mut Socket, place: Place) -> Result<Vec<Filter>, NetlinkError> {
    let mut message = TcMessage::default();
    message.header = place.header();
    let what = format!("list the filters at {place}");
    let request = Request::new(what, RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP);
    match socket.dump(&request, parse_filter) {
        Err(e) if e.is_missing() || e.errno() == Some(nix::errno::Errno::EINVAL) => Ok(Vec::new()),
        other => other,
    }
}

/// All qdiscs of the socket's namespace.
///
/// # Errors
/// As [`Socket`]'s.
pub fn qdiscs(socket: &mut Socket) -> Result<Vec<Qdisc>, NetlinkError> {
    let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    socket.dump(&Request::new("list the qdiscs", message, NLM_F_DUMP), parse_qdisc)
}

fn parse_filter(message: u16, payload: &[u8]) -> Option<Filter> {
    let header = TcHeader::parse(payload).ok()?;
    let mut filter = Filter {
        kind: String::new(),
        priority: u16::try_from(header.info >> 16).ok()?,
        handle: u32::from(header.handle),
        name: None,
        program_id: None,
        tag: None,
    };
    for (kind, value) in read::attributes(payload, HEADER) {
        match kind {
            KIND => filter.kind = read::text(value),
            OPTIONS => {
                for (option, value) in read::nested(value) {
                    match option {
                        BPF_NAME => filter.name = Some(read::text(value)),
                        BPF_TAG => filter.tag = value.try_into().ok(),
                        BPF_ID => filter.program_id = read::number(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // A dump names each priority once with handle 0 before the filters in it.
    (message == NEW_FILTER && filter.handle != 0).then_some(filter)
}

fn parse_qdisc(message: u16, payload: &[u8]) -> Option<Qdisc> {
    let header = TcHeader::parse(payload).ok()?;
    let mut qdisc = Qdisc { index: header.index.cast_unsigned(), kind: String::new(), ingress_block: None };
    for (kind, value) in read::attributes(payload, HEADER) {
        match kind {
            KIND => qdisc.kind = read::text(value),
            INGRESS_BLOCK => qdisc.ingress_block = read::number(value),
            _ => {}
        }
    }
    (message == NEW_QDISC).then_some(qdisc)
}

fn clsact(index: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind("clsact".into()));
    message
}

fn ours(place: Place) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = place.header();
    message.header.handle = FILTER_HANDLE.into();
    message.header.info = (u32::from(FILTER_PRIORITY) << 16) | EVERY_PROTOCOL;
    message
}
