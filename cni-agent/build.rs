//! Takes the BPF object that `cargo xtask build` has built into the agent, without its debug information.
//!
//! Without `WEFT_BPF_OBJECT` an empty one is embedded, so that `cargo test` needs no BPF toolchain; such an agent refuses to start.
use std::{env, error::Error, fs, path::PathBuf};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WEFT_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?).join("weft.bpf.o");
    let object = match env::var_os("WEFT_BPF_OBJECT").map(PathBuf::from) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            let file = fs::read(&object).map_err(|e| format!("read {}: {e}", object.display()))?;
            without_debug_information(&file).map_err(|e| format!("read {} as ELF: {e}", object.display()))?
        }
        None => Vec::new(),
    };
    fs::write(out, object)?;
    Ok(())
}

/// Four fifths of the object are DWARF, of which the linker has made the BTF; nothing reads it afterwards, but the agent's memory would hold it.
fn without_debug_information(file: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut elf = Builder::read(file)?;
    for section in &mut elf.sections {
        let name = section.name.as_slice();
        section.delete |= name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    if !elf.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        // The linker writes one table of names for sections and symbols, what is written here has two.
        let names = elf.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut smaller = Vec::new();
    elf.write(&mut smaller)?;
    Ok(smaller)
}
