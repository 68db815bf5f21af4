//! Memory of flows in the kernel, in `weft-bench ct`: what the kernel says of maps like ours, empty and with flows in them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use cni_agent::datapath::RawMap;
use cni_common::schema::{self, MapSpec};

use crate::interrupt;
use crate::path::{progress, progress_end};

/// Entries that each map is measured with.
const ENTRIES: u32 = 65_536;
/// The tables that grow with flows, by family: conntrack's, then the two halves of a translation.
const GROW: [(&str, [MapSpec; 3]); 2] = [
    ("ipv4", [schema::CT4, schema::NAT_BACK4, schema::NAT_FORTH4]),
    ("ipv6", [schema::CT6, schema::NAT_BACK6, schema::NAT_FORTH6]),
];
/// Those of both families that are there whole from the beginning: flows without an answer, and fragments.
const WHOLE: [MapSpec; 4] = [schema::CT_NEW4, schema::CT_NEW6, schema::FRAGS4, schema::FRAGS6];

/// A table that grows, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    /// Without entries.
    empty: u64,
    /// For each entry, as the kernel counts it.
    entry: u64,
    /// For each entry, as it is allocated.
    allocated: u64,
    /// Entries at most.
    room: u64,
}

/// Fills maps of their own, and answers with the figures by name. A kernel that does not count entries (below 6.4) is told of on standard error, and
/// has none.
///
/// # Errors
/// When a map cannot be made or filled, the kernel does not say what it takes, or a signal has asked for the end.
pub fn measure() -> Result<BTreeMap<String, f64>> {
    let mut whole = 0;
    for spec in WHOLE {
        whole += memory(&RawMap::create(spec).with_context(|| format!("make a map like {}", spec.name))?)?;
    }
    let mut families = Vec::new();
    for (family, specs) in GROW {
        let mut tables = Vec::new();
        for spec in specs {
            progress(&format!("memory of {}", spec.name));
            tables.push(grow(spec).with_context(|| format!("measure the memory of a map like {}", spec.name))?);
        }
        families.push((family, tables));
    }
    progress_end();
    if families.iter().any(|(_, tables)| tables.iter().any(|table| table.entry == 0)) {
        eprintln!("weft-bench: this kernel does not say what entries of a map take: no figures of memory");
        return Ok(BTreeMap::new());
    }
    Ok(figures(whole, &families))
}

/// A flow is one entry of the first table, a masqueraded one is one of each.
fn figures(whole: u64, families: &[(&str, Vec<Table>)]) -> BTreeMap<String, f64> {
    const MIB: f64 = 1_048_576.0;
    let mut figures = BTreeMap::new();
    for (name, tables) in [("ct", 1), ("nat", usize::MAX)] {
        let (mut empty, mut full) = (whole, whole);
        for (family, all) in families {
            let all = || all.iter().take(tables);
            let counted: u64 = all().map(|table| table.entry).sum();
            let allocated: u64 = all().map(|table| table.allocated).sum();
            for (what, value) in [("bytes_per_flow", counted), ("allocated_per_flow", allocated)] {
                let value = value as f64;
                figures.insert(format!("{name} {family} {what}"), value);
                figures
                    .entry(format!("{name} {what}"))
                    .and_modify(|worse: &mut f64| *worse = worse.max(value))
                    .or_insert(value);
            }
            empty += all().map(|table| table.empty).sum::<u64>();
            full += all().map(|table| table.empty + table.allocated * table.room).sum::<u64>();
        }
        figures.insert(format!("{name} empty_mib"), empty as f64 / MIB);
        figures.insert(format!("{name} full_mib"), full as f64 / MIB);
    }
    figures
}

fn grow(spec: MapSpec) -> Result<Table> {
    let map = RawMap::create(spec)?;
    let empty = memory(&map)?;
    let (mut key, value) = (vec![0; spec.key_size as usize], vec![0; spec.value_size as usize]);
    for n in 0..ENTRIES {
        if n % 10_000 == 0 {
            interrupt::check()?;
        }
        key.get_mut(..4).context("a key of 4 bytes or more")?.copy_from_slice(&n.to_ne_bytes());
        map.update(&key, &value).context("fill it")?;
    }
    let entry = memory(&map)?.saturating_sub(empty) / u64::from(ENTRIES);
    Ok(Table { empty, entry, allocated: allocated(entry), room: spec.max_entries.into() })
}

/// What the kernel says that a map takes, bytes.
///
/// # Errors
/// When it does not say.
pub fn memory(map: &RawMap) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    memlock(&text).with_context(|| format!("{path} does not say what {} takes", map.spec().name))
}

/// `memlock` of an fdinfo.
fn memlock(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

/// What the kernel's allocator gives for so many bytes: powers of two from 8, and 96 and 192 (`mm/slab_common.c`, `kmalloc_info`).
const fn allocated(bytes: u64) -> u64 {
    match bytes {
        0 => 0,
        1..=8 => 8,
        65..=96 => 96,
        129..=192 => 192,
        _ => bytes.next_power_of_two(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_says_of_a_map() {
        let text = "pos:\t0\nmap_type:\t1\nmemlock:\t14942592\nmap_id:\t7\n";
        assert_eq!(memlock(text), Some(14_942_592));
        assert_eq!(memlock("pos:\t0\n"), None);
    }

    #[test]
    fn the_allocator_rounds_up_to_its_classes() {
        let sizes = [0, 1, 8, 9, 64, 65, 96, 97, 104, 128, 129, 192, 193, 300];
        let given = [0, 8, 8, 16, 64, 96, 96, 128, 128, 128, 192, 192, 256, 512];
        assert_eq!(sizes.map(allocated), given);
    }

    #[test]
    fn a_masqueraded_flow_is_an_entry_of_each_table() {
        let table = |empty, entry, room| Table { empty, entry, allocated: allocated(entry), room };
        let mib = 1 << 20;
        let families = [
            ("ipv4", vec![table(mib, 104, 1024), table(mib, 88, 1024), table(mib, 80, 1024)]),
            ("ipv6", vec![table(mib, 128, 1024), table(mib, 128, 1024), table(mib, 120, 1024)]),
        ];
        let figures = figures(3 * mib, &families);
        assert_eq!(figures["ct ipv4 bytes_per_flow"], 104.0);
        assert_eq!(figures["ct allocated_per_flow"], 128.0);
        assert_eq!(figures["nat ipv4 bytes_per_flow"], 272.0);
        assert_eq!(figures["nat ipv4 allocated_per_flow"], 320.0);
        assert_eq!(figures["nat allocated_per_flow"], 384.0);
        assert_eq!(figures["ct empty_mib"], 5.0);
        assert_eq!(figures["ct full_mib"], 5.0 + 2.0 * 0.125);
        assert_eq!(figures["nat empty_mib"], 9.0);
        assert_eq!(figures["nat full_mib"], 9.0 + (320.0 + 384.0) / 1024.0);
    }
}
