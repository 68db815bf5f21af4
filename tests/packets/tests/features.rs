//! The object calls no helper that the kernel is not tried for.
use std::collections::BTreeSet;

use cni_agent::datapath::{
    features::{ALL, SK_RELEASE, Try},
    object,
};

/// Helpers that are called in the executable sections of a 64-bit ELF file.
fn helpers(elf: &[u8]) -> BTreeSet<i32> {
    const CALL: u8 = 0x85;
    const EXECUTABLE: u64 = 4;
    let number = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let (sections, count) = (number(40) as usize, usize::from(u16::from_le_bytes([elf[60], elf[61]])));
    let headers = (0..count).map(|n| sections + 64 * n).filter(|at| number(at + 8) & EXECUTABLE != 0);
    let code = headers.flat_map(|at| elf[number(at + 24) as usize..][..number(at + 32) as usize].as_chunks::<8>().0);
    // The source is 0 for helpers, 1 for functions of the object itself.
    let calls = code.filter(|insn| insn[0] == CALL && insn[1] >> 4 == 0);
    calls.map(|insn| i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]])).collect()
}

#[test]
fn every_helper_that_the_programs_call_is_required_of_the_kernel_and_no_other() {
    let required = ALL.iter().filter(|f| f.without.is_none()).flat_map(|f| match f.attempt {
        Try::Helper(number, _) => vec![number],
        Try::Socket(number) => vec![number, SK_RELEASE],
        _ => vec![],
    });
    assert_eq!(helpers(object::OBJECT), required.collect());
}
