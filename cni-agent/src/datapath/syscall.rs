//! `bpf(2)`, as far as aya does not cover it: maps as bytes (one writer for all of them), TCX links by interface index, and the
//! facts of a pinned map that must be known before aya opens it.
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

// Numbers of `enum bpf_cmd`.
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type` (Linux 6.6).
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`; without a program to refer to, it means before all.
const BEFORE: u32 = 1 << 3;

// The arms of `union bpf_attr` that we use. The kernel takes any length and demands that what it does not know is zero.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapElem {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// Value, or the place for the next key.
    value: u64,
    flags: u64,
}
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Object {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}
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

/// The head of `struct bpf_map_info`, which has been the same since Linux 4.15.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MapFacts {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// The kernel's number of the map.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*` at creation.
    pub flags: u32,
    /// NUL-terminated.
    pub name: [u8; 16],
}

/// # Safety
/// Pointers in `attr` must be valid for what the command reads and writes.
unsafe fn bpf<T: Pod>(cmd: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live object of exactly this size; the pointers in it are the caller's promise.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<T>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as i32) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(RawFd::from(fd)) }
}

fn address<T: ?Sized>(p: *const T) -> u64 {
    p.cast::<u8>() as u64
}

/// Reads a value into `value`, which must have the map's value size (per-CPU maps: that of all CPUs together, each rounded up to 8).
/// `Ok(false)`: there is no such key. The lengths are the caller's duty; [`super::RawMap`] checks them.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = MapElem {
        map_fd: raw(map),
        key: address(key.as_ptr()),
        value: address(value.as_mut_ptr()),
        ..MapElem::zeroed()
    };
    // SAFETY: `RawMap` has compared both lengths with the map's sizes.
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Writes a value under a key, new or not.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr =
        MapElem { map_fd: raw(map), key: address(key.as_ptr()), value: address(value.as_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's sizes.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Deletes a key. `Ok(false)`: there was none.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = MapElem { map_fd: raw(map), key: address(key.as_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared the length with the map's key size.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The key after `key` (the first one for `None`) into `next`. `Ok(false)`: that was the last one.
pub(super) fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |k| address(k.as_ptr()));
    let mut attr = MapElem { map_fd: raw(map), key, value: address(next.as_mut_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's key size.
    match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Pins an object. An existing pin is an error (EEXIST).
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), fd: raw(fd), file_flags: 0 };
    // SAFETY: `path` is a live C string.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pin. `Ok(None)`: there is none; any other failure is an error, so that nobody takes "not allowed" for "not there".
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), ..Object::zeroed() };
    // SAFETY: `path` is a live C string.
    match unsafe { bpf(OBJ_GET, &mut attr) } {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Type, sizes and name of a map.
pub fn map_facts(map: BorrowedFd<'_>) -> io::Result<MapFacts> {
    let mut facts = MapFacts::zeroed();
    let mut attr =
        InfoByFd { fd: raw(map), len: size_of::<MapFacts>() as u32, info: address(std::ptr::from_mut(&mut facts)) };
    // SAFETY: `info` points to a live object of the length given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(facts)
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
