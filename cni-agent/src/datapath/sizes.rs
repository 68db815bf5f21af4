//! How large the tables of flows are: by the memory of the node, once, when they are made. A later agent takes them as they are.
use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::EbpfLoader;
use cni_common::schema::{self, MAX_FLOWS, MEMORY_OF_FLOW, MIN_FLOWS, SHARES};
use tracing::warn;

use super::pins::{self, PinError};

/// Entries of a table of flows on a node with so many bytes of memory: a power of two, as the kernel's hash has as many heads.
pub fn flows(memory: u64) -> u32 {
    let flows = u32::try_from(memory / MEMORY_OF_FLOW).unwrap_or(u32::MAX).clamp(MIN_FLOWS, MAX_FLOWS);
    1 << flows.ilog2()
}

/// The node's memory, bytes; `None` where the kernel does not say.
fn memory() -> Option<u64> {
    read(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn read(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? << 10)
}

/// The size of each map that follows the node's memory, and what one endpoint may have of any.
#[derive(Debug)]
pub(super) struct Sizes {
    maps: Vec<(&'static str, u32)>,
    share: u32,
}

impl Sizes {
    /// Of maps that are `adopted` from `dir` those that they have.
    pub(super) fn of_node(dir: &Path, adopted: &[(&'static str, PathBuf)]) -> Result<Self, PinError> {
        let new = memory().map_or_else(
            || {
                warn!(
                    "the kernel does not tell how much memory the node has: tables of flows are as small as they get"
                );
                MIN_FLOWS
            },
            flows,
        );
        let mut maps = Vec::new();
        for spec in schema::ALL.iter().filter(|s| s.is_scaled()) {
            let is_adopted = adopted.iter().any(|(name, _)| *name == spec.name);
            let there = if is_adopted { pins::open(dir, spec)? } else { None };
            maps.push((spec.name, there.map_or(new, |map| map.spec().max_entries)));
        }
        Ok(Self::new(maps))
    }

    fn new(maps: Vec<(&'static str, u32)>) -> Self {
        let least = maps.iter().map(|(_, entries)| *entries).min().unwrap_or(MIN_FLOWS);
        Self { maps, share: least / SHARES }
    }

    /// Tells the loader.
    pub(super) fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, entries) in &self.maps {
            loader.map_max_entries(name, *entries);
        }
        loader.override_global("FLOW_SHARE", &self.share, true);
    }
}

#[cfg(test)]
mod tests {
    use cni_common::schema::MapSpec;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn tables_follow_the_memory_between_their_bounds() {
        // What kernels call the memory of machines of 256 MiB, and of 1, 2, 4 and 64 GiB.
        let sizes = [(220, 16_384), (968, 32_768), (1_970, 65_536), (3_920, 131_072), (64_000, 131_072)];
        for (mib, entries) in sizes {
            assert_eq!(flows(mib * MIB), entries, "{mib} MiB");
        }
        assert_eq!((flows(0), flows(u64::MAX)), (MIN_FLOWS, MAX_FLOWS));
    }

    #[test]
    fn the_memory_is_the_whole_one() {
        assert_eq!(read("MemTotal:        4014884 kB\nMemFree:  1 kB\n"), Some(4_014_884 << 10));
        assert_eq!((read("MemFree: 1 kB\n"), read("MemTotal: many kB\n"), read("")), (None, None, None));
    }

    #[test]
    fn an_endpoint_has_a_quarter_of_the_smallest_table() {
        let sizes = Sizes::new(vec![(schema::CT4.name, 65_536), (schema::NAT_BACK4.name, 32_768)]);
        assert_eq!(sizes.share, 8192);
    }

    #[test]
    fn every_table_that_nothing_is_pushed_out_of_follows_and_its_full_size_is_the_most() {
        let scaled: Vec<&MapSpec> = schema::ALL.iter().filter(|s| s.is_scaled()).collect();
        assert_eq!(scaled.len(), 6);
        assert!(scaled.iter().all(|s| s.max_entries == MAX_FLOWS && s.flags == schema::NO_PREALLOC));
    }
}
