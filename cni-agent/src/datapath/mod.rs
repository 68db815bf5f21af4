//! The kernel side as the agent sees it: the only module that knows aya and `bpf(2)`.
//!
//! Three questions for every kernel object of ours (field guide, rule 18). *Whose is it?* Maps, links and programs are pinned under
//! `<bpffs>/weft/`; the block filter has our handle, priority and program name. *What deletes it?* Nothing but
//! `weft uninstall`: they outlive the agent on purpose. *What did it look like one version ago?* The map's name carries the
//! version of its layout, and the `schema` map its fingerprint; [`pins`] compares both before anything is loaded, and
//! [`generation`] takes over from another layout.

pub mod assembly;
pub mod attach;
pub mod clock;
pub mod counters;
pub mod events;
pub mod features;
pub mod generation;
pub mod hits;
pub mod layout;
pub mod load;
pub mod map;
pub mod object;
pub mod pins;
pub mod programs;
pub mod refusal;
mod sizes;
#[expect(unsafe_code, reason = "field guide, rule 11: bpf(2) is called here and nowhere else")]
pub mod syscall;
pub mod takeover;
pub mod trial;
pub mod walk;

pub use clock::Clock;
pub use load::Datapath;
pub use map::RawMap;
