//! The counters, summed over all CPUs.
use std::io;

use cni_common::{
    drop::{Count, DropReason, Outcome, Point, slot},
    schema,
};

use super::Datapath;

/// What one program counted under one heading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted<T> {
    /// The program.
    pub point: Point,
    /// The heading.
    pub what: T,
    /// Packets and bytes since the maps were made.
    pub count: Count,
}

/// Drops that happened, by program and reason.
pub fn drops(datapath: &Datapath) -> io::Result<Vec<Counted<DropReason>>> {
    read(datapath, DropReason::ALL, |r| *r as u64)
}

/// What else happened, by program and outcome.
pub fn outcomes(datapath: &Datapath) -> io::Result<Vec<Counted<Outcome>>> {
    read(datapath, &Outcome::ALL, |o| *o as u64)
}

fn read<T: Copy>(datapath: &Datapath, headings: &[T], number: impl Fn(&T) -> u64) -> io::Result<Vec<Counted<T>>> {
    let map = datapath.map(&schema::COUNTS);
    let mut all = Vec::new();
    for point in Point::ALL {
        for what in headings {
            let index = slot(point, number(what));
            let per_cpu = map.lookup(&index.to_ne_bytes())?.unwrap_or_default();
            let count = sum(&per_cpu);
            if count != Count::default() {
                all.push(Counted { point, what: *what, count });
            }
        }
    }
    Ok(all)
}

/// The sum of one [`Count`] for each CPU, side by side, as a look-up returns them.
pub fn sum(per_cpu: &[u8]) -> Count {
    per_cpu.chunks_exact(size_of::<Count>()).map(bytemuck::pod_read_unaligned::<Count>).fold(
        Count::default(),
        |mut all, c| {
            all.packets = all.packets.wrapping_add(c.packets);
            all.bytes = all.bytes.wrapping_add(c.bytes);
            all
        },
    )
}
