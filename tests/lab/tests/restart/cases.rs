//! Which operation passes which point.
use cni_agent::fault::Point;

/// What is done while the agent is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// ADD of a container's first interface.
    Add,
    /// ADD of its second one, which needs rules.
    AddSecond,
    /// DEL of the first.
    Del,
    /// DEL of the second.
    DelSecond,
    /// GC with a list that lacks the container.
    Gc,
    /// A start that finds a tombstone.
    Bury,
    /// A start that finds all in order.
    Start,
    /// A start that is to attach in the other way.
    Move,
    /// A start that finds a cut-off ADD of a second interface.
    Leftovers,
    /// The first start on a node.
    Fresh,
}

/// A point, at which of its passes, in which operation.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub point: Point,
    pub pass: u32,
    pub op: Op,
}

/// All, where the kernel has TCX or has not.
pub fn all(tcx: bool) -> Vec<Case> {
    let of = |point: &Point| match point {
        Point::AddReserved | Point::RecordStaged | Point::AddRecorded | Point::AddHostSide | Point::AddPodSide => {
            vec![(Op::Add, 1)]
        }
        Point::AddPublished => vec![(Op::Add, 1), (Op::AddSecond, 1)],
        Point::AddFinished => vec![(Op::Add, 1)],
        Point::AddRules => vec![(Op::AddSecond, 1)],
        // An entry for each address, and one for the device.
        Point::MapWritten => vec![(Op::Add, 1), (Op::Add, 2), (Op::Add, 3)],
        Point::MapDeleted => vec![(Op::Del, 1), (Op::Del, 2), (Op::Del, 3)],
        Point::DelUnmapped | Point::DeviceDoomed | Point::DeviceDeleted => vec![(Op::Del, 1)],
        Point::DelUnruled | Point::DelUnrecorded => vec![(Op::DelSecond, 1)],
        Point::GcListed | Point::GcDisconnected => vec![(Op::Gc, 1)],
        Point::TombstoneServed => vec![(Op::Bury, 1)],
        Point::LeftUnruled | Point::LeftUnrecorded => vec![(Op::Leftovers, 1)],
        Point::StartLocked
        | Point::StartFingerprints
        | Point::StartDevices
        | Point::BlockPlaced
        | Point::StartRestored
        | Point::NetdevHooked
        | Point::Pruned
        | Point::StartReplayed
        | Point::StartServing => vec![(Op::Start, 1)],
        Point::ProgramStaged | Point::ProgramPlaced => vec![(Op::Start, 1), (Op::Start, 3)],
        Point::LinkUpdated if tcx => vec![(Op::Start, 1), (Op::Start, 2), (Op::Start, 3)],
        Point::FilterPlaced if tcx => vec![(Op::Move, 1), (Op::Move, 3)],
        Point::FilterPlaced => vec![(Op::Start, 1), (Op::Start, 2), (Op::Start, 3)],
        Point::HookMoved if tcx => vec![(Op::Move, 1), (Op::Move, 3)],
        Point::LinkMade | Point::LinkPinned if tcx => vec![(Op::Fresh, 1), (Op::Fresh, 2), (Op::Fresh, 3)],
        Point::LinkUpdated | Point::HookMoved | Point::LinkMade | Point::LinkPinned => vec![],
        Point::MapPinned => vec![(Op::Fresh, 1), (Op::Fresh, 7)],
        Point::PairMade => vec![(Op::Fresh, 1), (Op::Fresh, 2)],
        Point::VxlanMade | Point::RouteMade => vec![(Op::Fresh, 1)],
    };
    Point::ALL
        .iter()
        .flat_map(|point| of(point).into_iter().map(|(op, pass)| Case { point: *point, pass, op }))
        .collect()
}
