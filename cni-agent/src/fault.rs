//! Points at which a test lets the agent die.
//!
//! `--die-at POINT[:N]` kills the process (SIGKILL, as a crash or the kernel's memory killer does) when it passes the point for
//! the Nth time. Each stands behind a step that changes something that outlives the agent, so that a list of all is a list of the
//! states in which a start may find the node. Unset, a point costs one look at a word of memory.
#![forbid(unsafe_code)]

use std::{
    fmt,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::signal::{Signal, raise};

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal),* $(,)?) => {
        /// A place in the agent's code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point),*
        }
        impl Point {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$point),*];

            /// As `--die-at` takes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }
        }
    };
}

points! {
    /// ADD: id and addresses are given.
    AddReserved = "add-reserved",
    /// A record is written, and not in its place yet.
    RecordStaged = "record-staged",
    /// ADD: the record says `adding`.
    AddRecorded = "add-recorded",
    /// ADD: the pair is there and has joined the block.
    AddHostSide = "add-host-side",
    /// ADD: the pod's side has addresses and routes.
    AddPodSide = "add-pod-side",
    /// ADD of a further interface: the pod has rules.
    AddRules = "add-rules",
    /// A map entry is written or replaced.
    MapWritten = "map-written",
    /// ADD: the maps hold the endpoint.
    AddPublished = "add-published",
    /// ADD: the record says `ready`.
    AddFinished = "add-finished",
    /// A map entry is deleted.
    MapDeleted = "map-deleted",
    /// DEL: the maps no longer hold the endpoint.
    DelUnmapped = "del-unmapped",
    /// DEL: the pod has no rules of ours any more.
    DelUnruled = "del-unruled",
    /// DEL: the record is gone.
    DelUnrecorded = "del-unrecorded",
    /// A pod's device is about to be deleted, mostly behind DEL's answer.
    DeviceDoomed = "device-doomed",
    /// A pod's device is deleted.
    DeviceDeleted = "device-deleted",
    /// GC: what is to go is known.
    GcListed = "gc-listed",
    /// GC: one of it is gone.
    GcDisconnected = "gc-disconnected",
    /// A DEL that came while no agent ran is made up for, and its tombstone still there.
    TombstoneServed = "tombstone-served",
    /// Start: the lock is held.
    StartLocked = "start-locked",
    /// Start: the maps' fingerprints are written.
    StartFingerprints = "start-fingerprints",
    /// Start: a map that was not there is pinned.
    MapPinned = "map-pinned",
    /// Start: a program is pinned under its first name.
    ProgramStaged = "program-staged",
    /// Start: a program is pinned in place of the former agent's.
    ProgramPlaced = "program-placed",
    /// Start: one of the node's own pairs is made.
    PairMade = "pair-made",
    /// Start: the VXLAN device is made.
    VxlanMade = "vxlan-made",
    /// Start: the node's own devices are there.
    StartDevices = "start-devices",
    /// A TCX link is made, and not pinned.
    LinkMade = "link-made",
    /// A TCX link is pinned.
    LinkPinned = "link-pinned",
    /// A TCX link has the new program.
    LinkUpdated = "link-updated",
    /// A filter has the new program.
    FilterPlaced = "filter-placed",
    /// A program that was on a hook in another way is taken from there.
    HookMoved = "hook-moved",
    /// The pods' block has the new program.
    BlockPlaced = "block-placed",
    /// Start: rules of a pod that was cut off are gone.
    LeftUnruled = "left-unruled",
    /// Start: the record of a pod that was cut off is gone.
    LeftUnrecorded = "left-unrecorded",
    /// Start: the former agent's endpoints are taken over.
    StartRestored = "start-restored",
    /// A route into the pods' network is made.
    RouteMade = "route-made",
    /// A device that leads to other nodes is watched.
    NetdevHooked = "netdev-hooked",
    /// What nobody asks for is removed from the maps.
    Pruned = "pruned",
    /// Start: DELs that came meanwhile are made up for.
    StartReplayed = "start-replayed",
    /// Start: runtimes can call.
    StartServing = "start-serving",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where to die: `POINT` or `POINT:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DieAt {
    /// The point.
    pub point: Point,
    /// At which of its passes, from 1.
    pub pass: u32,
}

impl FromStr for DieAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pass) = text.split_once(':').unwrap_or((text, "1"));
        let point = Point::ALL.iter().find(|p| p.name() == name).copied();
        let pass = pass.parse().ok().filter(|n| *n > 0);
        match (point, pass) {
            (Some(point), Some(pass)) => Ok(Self { point, pass }),
            _ => Err(format!("`{text}` is not POINT or POINT:N with a known point and N from 1 up")),
        }
    }
}

struct Fuse {
    point: Point,
    left: AtomicU32,
}

static FUSE: OnceLock<Fuse> = OnceLock::new();

/// Lights it, once a process.
pub fn arm(at: DieAt) {
    // A second one would be a test's mistake; the first counts.
    drop(FUSE.set(Fuse { point: at.point, left: AtomicU32::new(at.pass) }));
}

/// The agent passes a point.
pub fn pass(point: Point) {
    if let Some(fuse) = FUSE.get()
        && fuse.point == point
        && fuse.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // The test tells this death from any other by it.
        eprintln!("weft-agent: dies at {point}");
        // It ends the process whichever thread it is raised in.
        if raise(Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_or_without_its_pass() {
        assert_eq!("map-written:3".parse(), Ok(DieAt { point: Point::MapWritten, pass: 3 }));
        assert_eq!("add-reserved".parse(), Ok(DieAt { point: Point::AddReserved, pass: 1 }));
        for bad in ["", "nowhere", "map-written:0", "map-written:", "map-written:x"] {
            assert!(bad.parse::<DieAt>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_two_points_share_a_name() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
