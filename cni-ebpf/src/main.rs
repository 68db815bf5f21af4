//! The BPF object: thin entry points, each a match from the logic's result to a return code.
//!
//! Built for `bpfel-unknown-none` by `cargo xtask build`. On a host it is an empty program, so that `cargo test` and editors work on the whole
//! workspace.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the kernel reads the licence from a section of this name")]
// SAFETY: no other symbol of the object has this name, and nothing writes the section.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!(
        "weft-bpf is a BPF object, not a program for this machine; `cargo xtask build` builds it, weft-agent loads it"
    );
    std::process::exit(2);
}
