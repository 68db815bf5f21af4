//! Packets through the loaded programs, by BPF_PROG_TEST_RUN: no device is touched, and the same frames run natively.
//!
//! Root and a built BPF object are needed: `cargo xtask test --suite packets`.

pub mod fill;
pub mod kernel;
pub mod node;
pub mod refused;

pub use cni_ebpf::fake::{corpus, frame, world};
