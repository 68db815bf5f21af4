//! Connection tracking: a flow is judged once, and every later packet of either direction is known by one look-up.
//!
//! | file | what changes it |
//! |---|---|
//! | `key` | what makes two packets one flow |
//! | `fragment` | which flow a fragment is of |
//! | `signal` | what a packet says: opens, answers, ends, resets |
//! | `entry` | what an entry holds, and what a packet makes of it |
//! | `lifetime` | how long a flow without packets lives |
//! | `ask` | what a program says of its packet |
//! | `table` | what is asked of the maps |
//! | `track` | the way of a packet through all of them |
//!
//! Entries are written in place by programs on several CPUs at a time, with plain loads and stores: Linux 5.10 has no atomic that fetches. Each
//! field is a word of its own, each end's packets write what that end has sent and no more, and a verdict stands with its epoch and with
//! who opened the flow in one word. What a race loses, the next packet of the same end says again; `races` tries every order. A flow
//! that takes over the ports of one that is over gets an entry of its own in that one's place, at once.
//!
//! The kernel hands the memory of an entry that is evicted or deleted on at once, so a program that holds it may write what one packet says into
//! another flow's entry. For that, both must happen between its look-up and its store, in a microsecond; the entry was looked up just
//! before, so it is the last that is evicted. What can go wrong then is a lifetime; a verdict only if its epoch has just changed as well.
pub mod ask;
pub mod entry;
pub mod fragment;
pub mod key;
pub mod lifetime;
#[cfg(test)]
mod races;
pub mod signal;
pub mod table;
#[cfg(test)]
mod tests;
pub mod track;

pub use ask::{Ask, EndSets, Track, Way, admit};
pub use entry::Flow;
pub use table::{CtEnv, Direction, Ends, Flows, Granted, Promotion, Tracked};
pub use track::track;
