//! Maps as bytes, and what the kernel says of one.
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use cni_common::schema::MapSpec;

use super::{InfoByFd, OBJ_GET_INFO_BY_FD, PROBE, address, bpf, owned, raw, short};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const MAP_LOOKUP_BATCH: u32 = 24;

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

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

/// Reads a value into `value`, which must have the map's value size (per-CPU maps: that of all CPUs together, each rounded up to 8).
/// `Ok(false)`: there is no such key. The lengths are the caller's duty; [`RawMap`](super::super::RawMap) checks them.
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
pub(in crate::datapath) fn lookup_slots(map: BorrowedFd<'_>, slots: u32, values: &mut [u8]) -> io::Result<()> {
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
pub(in crate::datapath) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr =
        MapElem { map_fd: raw(map), key: address(key.as_ptr()), value: address(value.as_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's sizes.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Writes a value under a key that is not there yet. `Ok(false)`: it is, and its value as it was.
pub(in crate::datapath) fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
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
pub(in crate::datapath) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = MapElem { map_fd: raw(map), key: address(key.as_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared the length with the map's key size.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The key after `key` (the first one for `None`) into `next`. `Ok(false)`: that was the last one.
pub(in crate::datapath) fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |k| address(k.as_ptr()));
    let mut attr = MapElem { map_fd: raw(map), key, value: address(next.as_mut_ptr()), ..MapElem::zeroed() };
    // SAFETY: `RawMap` has compared both lengths with the map's key size.
    match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
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

/// Makes a small map: 4 entries with values of 4 bytes, or a ring buffer of a page. It goes with its descriptor.
pub fn create_probe_map(kind: u32, key_size: u32, flags: u32) -> io::Result<OwnedFd> {
    let (value_size, max_entries) = if key_size == 0 { (0, 4096) } else { (4, 4) };
    let mut attr = MapCreate { kind, key_size, value_size, max_entries, flags, name: PROBE, ..MapCreate::zeroed() };
    // SAFETY: no pointers in it.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

/// Makes a map without type information. It goes with its descriptor.
pub(in crate::datapath) fn create_map(spec: &MapSpec) -> io::Result<OwnedFd> {
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

/// Reads a lot of entries of a hash (Linux 5.6), as many as `values` has room for, from `cursor` on, which is none at first. How many it
/// were, and the cursor for the rest, if there is any. ENOSPC: the next bucket has more. `keys` and `values` are so many times the
/// sizes of the map's key and value: that is the caller's duty, as with [`lookup`].
pub(in crate::datapath) fn lookup_lot(
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
pub(in crate::datapath) fn lookup_probe_batch(map: BorrowedFd<'_>) -> io::Result<()> {
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
