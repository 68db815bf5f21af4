//! The whole way, from objects to verdicts.
mod cost;
mod moments;
mod naive;
mod properties;
mod random;
mod room;
mod senders;
