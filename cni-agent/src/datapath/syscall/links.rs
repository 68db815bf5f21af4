//! TCX links by interface index.
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use super::{InfoByFd, OBJ_GET_INFO_BY_FD, address, bpf, owned, raw};

const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type` (Linux 6.6).
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`; without a program to refer to, it means before all.
const BEFORE: u32 = 1 << 3;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The head of `struct bpf_link_info` of a TCX link, since Linux 6.6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LinkFacts {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// The kernel's number of the link.
    pub id: u32,
    /// That of its program.
    pub program_id: u32,
    /// The rest differs by type and is aligned to eight bytes.
    pub padding: u32,
    /// The device; 0 when the link was detached.
    pub ifindex: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
}

/// Attaches a program to a device's ingress by TCX, behind those that are there. EINVAL: the kernel has no TCX (before 6.6).
pub fn attach_tcx_ingress(prog: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    create_tcx_ingress(prog, ifindex, 0)
}

/// As [`attach_tcx_ingress`], but before those that are there: for tests, which play somebody else.
pub fn attach_tcx_ingress_first(prog: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    create_tcx_ingress(prog, ifindex, BEFORE)
}

fn create_tcx_ingress(prog: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(prog),
        target_ifindex: ifindex,
        attach_type: TCX_INGRESS,
        flags,
        ..LinkCreate::zeroed()
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

/// Swaps the program of a link in place. ENOLINK: the device is gone.
pub fn update_link(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link_fd: raw(link), new_prog_fd: raw(prog), flags: 0, old_prog_fd: 0 };
    // SAFETY: no pointers in it.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// What a TCX link does.
pub fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    let mut facts = LinkFacts::zeroed();
    let mut attr =
        InfoByFd { fd: raw(link), len: size_of::<LinkFacts>() as u32, info: address(std::ptr::from_mut(&mut facts)) };
    // SAFETY: `info` points to a live object of the length given; of a TCX link nothing is copied elsewhere.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(facts)
}
