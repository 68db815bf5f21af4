//! Frames that are put through a loaded program without a device (`BPF_PROG_TEST_RUN`).
use std::io;

use cni_common::{
    drop::{DropReason, Point, slot},
    schema,
};

use super::{Datapath, counters, load::LoadError, object, syscall};

/// `TC_ACT_SHOT` (`linux/pkt_cls.h`).
const SHOT: i32 = 2;

impl Datapath {
    /// Whether the program of a point lets a frame pass, on whatever way. It comes in by the namespace's loopback device, interface index 1, and goes
    /// nowhere.
    ///
    /// # Errors
    /// What the kernel says; it takes no frame that ends inside its network header.
    pub fn lets_pass(&self, point: Point, frame: &[u8]) -> Result<bool, LoadError> {
        let name = match point {
            Point::FromPod => object::FROM_POD,
            Point::FromHost => object::FROM_HOST,
            Point::FromNetdev => object::FROM_NETDEV,
            Point::FromOverlay => object::FROM_OVERLAY,
        };
        let code = syscall::test_run(self.program(name)?, frame).map_err(|source| LoadError::Map { name, source })?;
        Ok(code != SHOT)
    }

    /// How many packets a program has dropped for a reason.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dropped(&self, point: Point, reason: DropReason) -> io::Result<u64> {
        let index = slot(point, reason as u64);
        let per_cpu = self.map(&schema::COUNTS).lookup(&index.to_ne_bytes())?.unwrap_or_default();
        Ok(counters::sum(&per_cpu).packets)
    }
}
