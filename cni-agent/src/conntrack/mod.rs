//! The agent's side of conntrack: the programs enter flows and write what they see of them; here the flows that are over are taken out, and
//! people are shown the rest.
//!
//! | file | what changes it |
//! |---|---|
//! | `flow` | what an entry says to people |
//! | `filter` | which flows are asked for |
//! | `table` | how the kernel's tables are gone through |
//! | `pass` | what a pass through a table does |
//! | `translation` | how a masqueraded flow's two entries are taken out beside programs that use them |
//! | `nat` | what a pass through those does |
//! | `sweeper` | when there is a pass: the thread, and who may ask it for one |
//! | `view` | lists and counts |
//!
//! The large tables are emptied by nobody else: what has expired there would keep others out. Only the sweeper deletes entries, and only it writes how
//! many flows an endpoint holds, apart from the programs, which count up: so what it writes at the end of a pass is what the pass has
//! counted, give or take what has begun meanwhile. It writes nothing when nothing has changed.

mod filter;
mod flow;
mod nat;
#[cfg(test)]
mod nat_tests;
mod pass;
mod sweeper;
mod table;
#[cfg(test)]
mod tests;
mod translation;
mod view;

pub use self::{
    filter::{Filter, Query, protocol},
    flow::{Ends, Flow, State},
    nat::{Holds, Swept, remove as remove_translations, sweep as sweep_translations},
    pass::{Pass, expired},
    sweeper::{Sweeper, pause, sweep},
    table::{Kernel, Table},
    translation::{Tables, Translated},
    view::{Fill, FlowError, Viewer},
};
