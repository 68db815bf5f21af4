//! One target under libFuzzer, which `cargo xtask fuzz` starts: the target's name stands in `WEFT_FUZZ_TARGET`, the arguments
//! are libFuzzer's.
#![no_main]

use std::sync::LazyLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("WEFT_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| panic!("WEFT_FUZZ_TARGET={name:?} names no target of tests/fuzz"))
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
