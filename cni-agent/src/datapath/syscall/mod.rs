//! `bpf(2)`, as far as aya does not cover it: maps as bytes (one writer for all of them), TCX links by interface index, the
//! facts of a pinned map that must be known before aya opens it, and what [`features`](super::features) tries. Beside it what the C library says of its heap.
mod heap;
mod links;
mod maps;
mod programs;

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

pub use self::{
    heap::{heap_in_use, one_heap, trim_heap},
    links::{LinkFacts, attach_tcx_ingress, attach_tcx_ingress_first, link_facts, update_link},
    maps::{MapFacts, create_probe_map, lookup, map_facts},
    programs::{Code, Insn, ProgramFacts, load_btf, load_counted, load_probe, program_facts},
};
pub(super) use self::{
    maps::{create_map, delete, insert, lookup_lot, lookup_probe_batch, lookup_slots, next_key, update},
    programs::{load_small, test_run, test_run_on, verified_insns},
};

// Numbers of `enum bpf_cmd`; those of one kind of object stand with it.
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;

// The arms of `union bpf_attr` that we use, here and with each kind of object. The kernel takes any length and demands that what it does not
// know is zero.

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

/// The name of what is made to try the kernel, as `bpftool` shows it for the moment that it lives.
const PROBE: [u8; 16] = *b"weft_probe\0\0\0\0\0\0";

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

/// A name as the kernel takes it: 15 bytes and a NUL.
fn short(name: &[u8]) -> [u8; 16] {
    let mut padded = [0; 16];
    padded.iter_mut().take(15).zip(name).for_each(|(to, from)| *to = *from);
    padded
}
