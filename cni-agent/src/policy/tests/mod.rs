//! The whole way, from objects to verdicts.
mod audit;
mod cost;
mod moments;
mod naive;
mod numbers;
mod properties;
mod random;
mod room;
mod senders;
