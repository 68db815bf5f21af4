//! The kernel's side of the traits: the only place that knows aya-ebpf, and the only `unsafe` of the crate but the licence.
#![expect(
    unsafe_code,
    reason = "field guide, rule 11: packet memory, maps and helpers are reached here and nowhere else"
)]

pub mod answer;
pub mod count;
pub mod flows;
pub mod maps;
pub mod nat;
pub mod policy;
pub mod redirect;
pub mod skb;
pub mod tables;

pub use skb::Skb;
pub use tables::Kernel;
