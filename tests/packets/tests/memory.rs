//! What the maps of an idle node cost. Needs root.
use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use cni_agent::datapath::RawMap;
use cni_common::schema::{self, MapSpec, MapType};

/// Bytes of all maps, at most.
const MOST: u64 = 32 << 20;
/// Lines of the table.
const SHOWN: usize = 16;

/// What the kernel says of a map's memory, bytes.
fn memlock(map: &RawMap) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(path).expect("what the kernel says of a descriptor");
    let figure = text.lines().find_map(|line| line.strip_prefix("memlock:")).expect("a map's memory");
    figure.trim().parse().expect("a figure")
}

/// Whether that is what a map has, and not what it would have if it were full: Linux 6.4, commit 90a5527d7686.
fn tells_what_is_used() -> bool {
    let map = RawMap::create(MapSpec { name: "grows", ..schema::CT4 }).expect("a map");
    let empty = memlock(&map);
    let bytes = |n: u32| vec![1; n as usize];
    map.update(&bytes(map.spec().key_size), &bytes(map.spec().value_size)).expect("an entry");
    memlock(&map) > empty
}

/// What is mapped by `vmalloc` in all, bytes: any part of a map of more than 32 KiB is.
fn vmalloced() -> u64 {
    let text = fs::read_to_string("/proc/vmallocinfo").expect("what the kernel has mapped");
    let areas = text.lines().filter(|line| line.contains(" vmalloc"));
    areas.filter_map(|line| line.split_once("pages=")?.1.split(' ').next()?.parse::<u64>().ok()).sum::<u64>() * 4096
}

const fn kind(spec: &MapSpec) -> &'static str {
    match spec.kind {
        MapType::Hash => "hash",
        MapType::Array => "array",
        MapType::PerCpuArray => "per-CPU array",
        MapType::LruHash => "LRU hash",
        MapType::LpmTrie => "LPM trie",
        MapType::RingBuf => "ring buffer",
    }
}

#[test]
fn all_maps_of_an_idle_node_take_at_most_32_mib() {
    let is_use = tells_what_is_used();
    let before = vmalloced();
    let maps: Vec<RawMap> =
        schema::ALL.iter().map(|spec| RawMap::create(*spec).unwrap_or_else(|e| panic!("{}: {e}", spec.name))).collect();
    let mapped = vmalloced().saturating_sub(before);
    let mut costs: Vec<(u64, &MapSpec)> = maps.iter().map(|map| (memlock(map), map.spec())).collect();
    costs.sort_by_key(|(bytes, spec)| (std::cmp::Reverse(*bytes), spec.name));
    let says = if is_use { "empty" } else { "if it were full" };
    println!("map              entries  kind           KiB {says}");
    for (bytes, spec) in costs.iter().take(SHOWN) {
        println!("{:15} {:>8}  {:13} {:>6}", spec.name, spec.max_entries, kind(spec), bytes.div_ceil(1024));
    }
    let said = costs.iter().map(|(bytes, _)| bytes).sum::<u64>();
    println!("all {} maps: {} KiB {says}; {} KiB were mapped for them", maps.len(), said.div_ceil(1024), mapped / 1024);
    // Where the kernel tells of no map what it uses, what it has mapped for all.
    let idle = if is_use { said } else { mapped };
    println!("figure maps idle_kib {}", idle.div_ceil(1024));
    assert!(idle > 0 && idle <= MOST, "{idle} bytes for {} maps of an idle node: see the table above", maps.len());
}
