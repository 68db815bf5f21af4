//! `bpf(2)`, as far as aya does not cover it: maps as bytes (one writer for all of them), TCX links by interface index, the
//! facts of a pinned map that must be known before aya opens it, and what [`features`](super::features) tries. Beside it what the C library says of its heap.
use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};
use cni_common::schema::MapSpec;

// Numbers of `enum bpf_cmd`.
const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const BTF_LOAD: u32 = 18;
const MAP_LOOKUP_BATCH: u32 = 24;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;

/// `BPF_PROG_TYPE_SCHED_CLS` of `enum bpf_prog_type`.
const SCHED_CLS: u32 = 3;
/// `BPF_LOG_STATS` (Linux 5.2): nothing but what the verifier counted.
const LOG_STATS: u32 = 4;
/// `BPF_TCX_INGRESS` of `enum bpf_attach_type` (Linux 6.6).
const TCX_INGRESS: u32 = 46;
/// `BPF_F_BEFORE`; without a program to refer to, it means before all.
const BEFORE: u32 = 1 << 3;
/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

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
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    pad: u32,
}
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
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

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Insn {
    /// Operation (RFC 9669 section 3).
    pub code: u8,
    /// Destination in the lower half, source in the upper one.
    pub registers: u8,
    /// Of a jump in instructions, of memory in bytes.
    pub offset: i16,
    /// A number that the operation takes.
    pub immediate: i32,
}

/// The name of what is made to try the kernel, as `bpftool` shows it for the moment that it lives.
const PROBE: [u8; 16] = *b"weft_probe\0\0\0\0\0\0";

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

/// The head of `struct bpf_prog_info`, which has been the same since Linux 4.13.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProgramFacts {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// The kernel's number of the program.
    pub id: u32,
    /// A hash of the instructions as they were handed in, without the maps' descriptors.
    pub tag: [u8; 8],
    /// Bytes of machine code; 0: interpreted.
    pub jited: u32,
    /// Bytes of BPF instructions, as the verifier has rewritten them.
    pub xlated: u32,
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

/// A tc program's code, ready for the kernel: calls and maps are relocated.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Instructions, 8 bytes each.
    pub insns: &'a [u8],
    /// Its licence.
    pub license: &'a CStr,
    /// What [`load_btf`] gave for the object.
    pub btf: BorrowedFd<'a>,
    /// Records about functions, and the bytes of one.
    pub func_info: (&'a [u8], usize),
    /// Records about lines, and the bytes of one.
    pub line_info: (&'a [u8], usize),
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
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
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

/// Reads the first slots of an array, by one call (Linux 5.6), as many as `values` has room for. `values` is a multiple of the map's value
/// size, `slots`: the lengths are the caller's duty, as with [`lookup`].
pub(super) fn lookup_slots(map: BorrowedFd<'_>, slots: u32, values: &mut [u8]) -> io::Result<()> {
    let mut next = 0_u32;
    let mut keys = vec![0_u32; slots as usize];
    let mut attr = Batch {
        out_batch: address(std::ptr::from_mut(&mut next)),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count: slots,
        map_fd: raw(map),
        ..Batch::zeroed()
    };
    // SAFETY: `keys` and `values` have room for so many entries of an array, whose keys have 4 bytes.
    unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) }?;
    if attr.count == slots { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes a value under a key, new or not.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr =
        MapElem { map_fd: raw(map), key: address(key.as_ptr()), value: address(value.as_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's sizes.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Writes a value under a key that is not there yet. `Ok(false)`: it is, and its value as it was.
pub(super) fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    let (key, value) = (address(key.as_ptr()), address(value.as_ptr()));
    let mut attr = MapElem { map_fd: raw(map), key, value, flags: NOEXIST, ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's sizes.
    match unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
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

/// Makes a small map: 4 entries with values of 4 bytes, or a ring buffer of a page. It goes with its descriptor.
pub fn create_probe_map(kind: u32, key_size: u32, flags: u32) -> io::Result<OwnedFd> {
    let (value_size, max_entries) = if key_size == 0 { (0, 4096) } else { (4, 4) };
    let mut attr = MapCreate { kind, key_size, value_size, max_entries, flags, name: PROBE, ..MapCreate::zeroed() };
    // SAFETY: no pointers in it.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

/// Makes a map without type information. It goes with its descriptor.
pub(super) fn create_map(spec: &MapSpec) -> io::Result<OwnedFd> {
    let MapSpec { key_size, value_size, max_entries, flags, .. } = *spec;
    let mut attr = MapCreate {
        kind: spec.kind as u32,
        key_size,
        value_size,
        max_entries,
        flags,
        name: short(spec.name.as_bytes()),
        ..MapCreate::zeroed()
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

/// A name as the kernel takes it: 15 bytes and a NUL.
fn short(name: &[u8]) -> [u8; 16] {
    let mut padded = [0; 16];
    padded.iter_mut().take(15).zip(name).for_each(|(to, from)| *to = *from);
    padded
}

/// Loads a program for tc. It goes with its descriptor.
pub fn load_probe(insns: &[Insn]) -> io::Result<OwnedFd> {
    load_small(c"weft_probe", insns)
}

/// The same, of another name, which has at most 15 characters.
pub(super) fn load_small(name: &CStr, insns: &[Insn]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attr = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: insns.len() as u32,
        insns: address(insns.as_ptr()),
        license: address(license.as_ptr()),
        prog_name: short(name.to_bytes()),
        ..ProgLoad::zeroed()
    };
    // SAFETY: `insns` and `license` are alive, and the kernel gets the number of the former.
    unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)
}

/// Runs a program for tc once on a frame; what it returns.
pub(super) fn test_run(prog: BorrowedFd<'_>, frame: &[u8]) -> io::Result<i32> {
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: frame.len() as u32,
        data_in: address(frame.as_ptr()),
        repeat: 1,
        ..TestRun::zeroed()
    };
    // SAFETY: the kernel reads as many bytes as `frame` has, and writes none.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval.cast_signed())
}

/// Runs a program for tc once on a frame, and leaves there what it has made of it.
pub(super) fn test_run_on(prog: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<()> {
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: frame.len() as u32,
        data_size_out: frame.len() as u32,
        data_in: address(frame.as_ptr()),
        data_out: address(frame.as_mut_ptr()),
        repeat: 1,
        ..TestRun::zeroed()
    };
    // SAFETY: the kernel copies as many bytes as `frame` has, in before the run and out after it.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// Reads a lot of entries of a hash (Linux 5.6), as many as `values` has room for, from `cursor` on, which is none at first. How many it
/// were, and the cursor for the rest, if there is any. ENOSPC: the next bucket has more. `keys` and `values` are so many times the
/// sizes of the map's key and value: that is the caller's duty, as with [`lookup`].
pub(super) fn lookup_lot(
    map: BorrowedFd<'_>,
    cursor: Option<u32>,
    most: u32,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(u32, Option<u32>)> {
    let from = cursor.unwrap_or(0);
    let mut next = 0_u32;
    let mut attr = Batch {
        in_batch: cursor.map_or(0, |_| address(std::ptr::from_ref(&from))),
        out_batch: address(std::ptr::from_mut(&mut next)),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count: most,
        map_fd: raw(map),
        ..Batch::zeroed()
    };
    // SAFETY: `keys` and `values` have room for so many entries, as the caller says, and a hash's cursor is the number of a bucket.
    match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok((attr.count, Some(next))),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count, None)),
        Err(e) => Err(e),
    }
}

/// Reads up to one entry of a map that [`create_probe_map`] made, by the command for many.
pub(super) fn lookup_probe_batch(map: BorrowedFd<'_>) -> io::Result<()> {
    let [mut next, mut keys] = [[0_u64; 8]; 2];
    // Of a per-CPU map one for each CPU; Linux runs on no more than these.
    let mut values = vec![0_u64; 8192];
    let mut attr = Batch {
        out_batch: address(next.as_mut_ptr()),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count: 1,
        map_fd: raw(map),
        ..Batch::zeroed()
    };
    // SAFETY: all three have room for one entry of such a map, whose keys have at most 20 bytes.
    unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) }.map(drop)
}

/// How many instructions the verifier walked for a program; 0 where the kernel does not tell.
pub(super) fn verified_insns(prog: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info` up to the field.
    const WORD: usize = 216 / 4;
    let mut info = [0_u64; WORD / 2 + 1];
    let mut attr =
        InfoByFd { fd: raw(prog), len: size_of_val(&info) as u32, info: address(std::ptr::from_mut(&mut info)) };
    // SAFETY: `info` points to a live object of the length given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(bytemuck::must_cast_slice::<_, u32>(&info)[WORD])
}

/// Hands an object's type information to the kernel.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoad { btf: address(btf.as_ptr()), btf_size: btf.len() as u32, ..BtfLoad::zeroed() };
    // SAFETY: `btf` points to as many bytes as `btf_size` says.
    unsafe { bpf(BTF_LOAD, &mut attr) }.map(owned)
}

/// Loads a program without attaching it, and gives what the verifier counted: for measurements, as aya drops the log of a load
/// that succeeds, and kernels before 5.16 tell it nowhere else.
pub fn load_counted(code: &Code<'_>) -> io::Result<(OwnedFd, String)> {
    let mut log = vec![0_u8; 4096];
    let records = |(bytes, size): (&[u8], usize)| (address(bytes.as_ptr()), (bytes.len() / size) as u32, size as u32);
    let (func_info, func_info_cnt, func_info_rec_size) = records(code.func_info);
    let (line_info, line_info_cnt, line_info_rec_size) = records(code.line_info);
    let mut attr = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: (code.insns.len() / 8) as u32,
        insns: address(code.insns.as_ptr()),
        license: address(code.license.as_ptr()),
        log_level: LOG_STATS,
        log_size: log.len() as u32,
        log_buf: address(log.as_mut_ptr()),
        prog_btf_fd: raw(code.btf),
        func_info_rec_size,
        func_info,
        func_info_cnt,
        line_info_rec_size,
        line_info,
        line_info_cnt,
        ..ProgLoad::zeroed()
    };
    // SAFETY: every pointer is to a live buffer of at least the length given: counts are rounded down.
    let program = unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)?;
    let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
    Ok((program, text))
}

/// Sizes and tag of a program.
pub fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let mut facts = ProgramFacts::zeroed();
    let mut attr = InfoByFd {
        fd: raw(program),
        len: size_of::<ProgramFacts>() as u32,
        info: address(std::ptr::from_mut(&mut facts)),
    };
    // SAFETY: `info` points to a live object of the length given; its sizes are zero, so nothing is copied elsewhere.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(facts)
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

/// One heap for all threads that begin from now on, instead of one each.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages of the heap back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of the heap that are in use; 0 where the C library does not say.
pub fn heap_in_use() -> usize {
    #[cfg(target_env = "gnu")]
    let bytes = {
        // SAFETY: it takes the allocator's locks, and only reads.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks + info.hblkhd
    };
    #[cfg(not(target_env = "gnu"))]
    let bytes = 0;
    bytes
}
