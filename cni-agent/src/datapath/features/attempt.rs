//! How a feature is tried.
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use cni_common::schema::{MapType, NO_PREALLOC};
use netlink_packet_route::link::InfoKind;

use super::super::{
    assembly::{EXIT, MAP_FD, add, call, copy, set, skip_if_zero, store_zero, wide},
    syscall::{self, Insn},
};
use crate::netlink::{NetlinkError, Socket, link, tc};

/// `BPF_MAP_TYPE_LRU_HASH`.
pub(super) const LRU_HASH: u32 = 9;
/// `BPF_FUNC_skb_adjust_room`.
pub(super) const ADJUST_ROOM: i32 = 50;
/// `BPF_FUNC_sk_release`, without which no program that looks for a socket is loaded.
pub const SK_RELEASE: i32 = 86;
/// Nobody's interface index: as the kernel reads it, it is negative.
const NO_DEVICE: u32 = u32::MAX;

/// Something that the kernel is asked for.
#[derive(Debug)]
pub enum Try {
    /// Make a map of this type with these flags.
    Map(u32, u32),
    /// Load a program that calls the helper of this number.
    Helper(i32, &'static [Arg]),
    /// Load a program that looks for a socket by the helper of this number, and gives it back.
    Socket(i32),
    /// Read a map of this type by batch.
    Batch(u32),
    /// Attach a program by TCX to a device that is not there.
    Tcx,
    /// Run a program.
    TestRun,
    /// Run a program that calls `bpf_skb_adjust_room`: some kernels load such a one whatever its flags are, and then refuse every packet.
    AdjustRoom(Room),
    /// Ask what a program cost the verifier.
    VerifiedInsns,
    /// Let the loopback device join a tc block that cannot be.
    SharedBlock,
    /// Make a veth device with an address that cannot be.
    Veth,
    /// Make a VXLAN device with an address that cannot be.
    Vxlan,
}

impl Try {
    /// What the kernel says to it: success, or its error number.
    ///
    /// # Errors
    /// The error number.
    pub fn answer(&self) -> Result<(), i32> {
        super::super::load::raise_memlock_limit();
        Attempts::default().make(self)
    }
}

/// What a helper is given.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// The packet.
    Ctx,
    /// A number.
    Is(i32),
    /// The start of [`STACK`] bytes of zeros.
    Stack,
    /// A map of this type.
    Map(u32),
}

/// Bytes of zeros on the stack.
const STACK: i16 = 64;

/// What `bpf_skb_adjust_room` is given, behind the packet and `BPF_ADJ_ROOM_MAC`.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    by: i32,
    flags: u64,
}

impl Room {
    /// `FIXED_GSO`, which the programs always give.
    const FIXED_GSO: u64 = 1;
    /// As `Skb::grow` of cni-ebpf: `ENCAP_L3_IPV4`, `ENCAP_L4_UDP`, `ENCAP_L2_ETH`, and 14 bytes of inner Ethernet header.
    pub(super) const GROW_BY_ETHERNET: Self =
        Self { by: 50, flags: Self::FIXED_GSO | 1 << 1 | 1 << 4 | 1 << 6 | 14 << 56 };
    /// As `Skb::shrink`: `NO_CSUM_RESET` and `DECAP_L3_IPV6`.
    pub(super) const SHRINK_TO_OTHER_FAMILY: Self = Self { by: -50, flags: Self::FIXED_GSO | 1 << 5 | 1 << 8 };
}

/// Tries, with what several attempts share.
#[derive(Default)]
pub(super) struct Attempts {
    socket: Option<Socket>,
}

type Answer<T = ()> = Result<T, i32>;

impl Attempts {
    /// What the kernel answers: success or its error number.
    pub(super) fn make(&mut self, attempt: &Try) -> Answer {
        match *attempt {
            Try::Map(kind, flags) => errno(syscall::create_probe_map(kind, key_size(kind), flags)).map(drop),
            Try::Helper(number, args) => helper(number, args),
            Try::Socket(number) => socket(number),
            Try::Batch(kind) => errno(syscall::lookup_probe_batch(map(kind)?.as_fd())),
            Try::Tcx => errno(syscall::attach_tcx_ingress(nothing()?.as_fd(), NO_DEVICE)).map(drop),
            Try::TestRun => run(&nothing()?).map(drop),
            Try::AdjustRoom(room) => match run(&program(&adjust_room(room))?)? {
                0.. => Ok(()),
                refused => Err(-refused),
            },
            Try::VerifiedInsns => match errno(syscall::verified_insns(nothing()?.as_fd()))? {
                0 => Err(libc::EOPNOTSUPP),
                _ => Ok(()),
            },
            Try::SharedBlock => netlink(tc::try_shared_block(self.socket()?)),
            Try::Veth => netlink(self.socket()?.run(link::try_kind(InfoKind::Veth))),
            Try::Vxlan => netlink(self.socket()?.run(link::try_kind(InfoKind::Vxlan))),
        }
    }

    fn socket(&mut self) -> Answer<&mut Socket> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => netlink(Socket::open())?,
        };
        Ok(self.socket.insert(socket))
    }
}

fn errno<T>(answer: std::io::Result<T>) -> Answer<T> {
    answer.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

fn netlink<T>(answer: Result<T, NetlinkError>) -> Answer<T> {
    answer.map_err(|e| e.errno().map_or(libc::EIO, |errno| errno as i32))
}

/// As our own maps of that type have it: an LPM trie counts the prefix into it, and a ring buffer has none.
fn key_size(kind: u32) -> u32 {
    const LPM_TRIE: u32 = MapType::LpmTrie as u32;
    const RINGBUF: u32 = MapType::RingBuf as u32;
    match kind {
        LPM_TRIE => 8,
        RINGBUF => 0,
        _ => 4,
    }
}

fn map(kind: u32) -> Answer<OwnedFd> {
    let flags = if kind == MapType::LpmTrie as u32 { NO_PREALLOC } else { 0 };
    errno(syscall::create_probe_map(kind, key_size(kind), flags))
}

fn program(insns: &[Insn]) -> Answer<OwnedFd> {
    errno(syscall::load_probe(insns))
}

/// A program that does nothing.
fn nothing() -> Answer<OwnedFd> {
    program(&[set(0, 0), EXIT])
}

/// An IPv4 packet that has room for the headers of a tunnel and an IPv6 header behind them.
fn run(program: &OwnedFd) -> Answer<i32> {
    let mut frame = [0_u8; 128];
    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
    errno(syscall::test_run(program.as_fd(), &frame))
}

fn helper(number: i32, args: &[Arg]) -> Answer {
    let mut insns = vec![copy(6, 1)];
    insns.extend((1..=STACK / 8).map(|n| store_zero(-8 * n)));
    // They must live until the program is loaded, which then holds them itself.
    let mut maps = Vec::new();
    for (register, arg) in (1..).zip(args) {
        match *arg {
            Arg::Ctx => insns.push(copy(register, 6)),
            Arg::Is(number) => insns.push(set(register, number)),
            Arg::Stack => insns.extend([copy(register, 10), add(register, -i32::from(STACK))]),
            Arg::Map(kind) => {
                let map = map(kind)?;
                insns.extend(wide(register, MAP_FD, map.as_raw_fd() as u64));
                maps.push(map);
            }
        }
    }
    insns.extend([call(number), set(0, 0), EXIT]);
    program(&insns).map(drop)
}

/// The tuple is one of IPv4; the namespace is that of the packet's device.
fn socket(number: i32) -> Answer {
    let mut insns = vec![copy(6, 1)];
    insns.extend((1..=STACK / 8).map(|n| store_zero(-8 * n)));
    insns.extend([copy(2, 10), add(2, -i32::from(STACK)), set(3, 12), set(4, -1), set(5, 0), copy(1, 6), call(number)]);
    insns.extend([skip_if_zero(0, 2), copy(1, 0), call(SK_RELEASE), set(0, 0), EXIT]);
    program(&insns).map(drop)
}

fn adjust_room(room: Room) -> Vec<Insn> {
    /// `BPF_ADJ_ROOM_MAC`.
    const MAC: i32 = 1;
    let mut insns = vec![set(2, room.by), set(3, MAC)];
    insns.extend(wide(4, 0, room.flags));
    insns.extend([call(ADJUST_ROOM), EXIT]);
    insns
}
