//! Objects that the verifier refuses, made of the one that is built.
use cni_agent::datapath::object::OBJECT;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, read::elf::ElfFile64};

/// `r0 = *(u64 *)(r10 + 8)`: above the stack, which no kernel lets a program read.
const ABOVE_STACK: [u8; 8] = [0x79, 0xa0, 8, 0, 0, 0, 0, 0];

/// The object, with a `program` that begins by reading what it must not.
pub fn object(program: &str) -> Vec<u8> {
    let elf = ElfFile64::<object::Endianness>::parse(OBJECT).expect("this binary holds the BPF object");
    let symbol = elf.symbol_by_name(program).unwrap_or_else(|| panic!("the object has no {program}"));
    let section = elf.section_by_index(symbol.section_index().expect("is defined")).expect("is there");
    assert!(section.relocations().all(|(at, _)| at != symbol.address()), "a relocation would undo it");
    let at = section.file_range().expect("has contents").0 + symbol.address() - section.address();
    let at = usize::try_from(at).expect("fits");
    let mut bytes = OBJECT.to_vec();
    bytes[at..at + ABOVE_STACK.len()].copy_from_slice(&ABOVE_STACK);
    bytes
}
