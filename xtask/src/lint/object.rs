//! What is checked in the BPF object: byte loops that LLVM put in by itself, and sections that aya mislinks.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, Relocation, RelocationTarget, SectionFlags, SectionIndex,
    SymbolKind, elf::SHF_EXECINSTR, read::elf::ElfFile64,
};
use serde::Deserialize;

/// The committed table of calls that are allowed, relative to the workspace's root.
pub const TABLE: &str = "xtask/mem-calls.toml";

/// Functions that copy, fill or compare byte by byte on this target (aya-ebpf's intrinsics).
const MEM: [&str; 4] = ["memcpy", "memset", "memmove", "memcmp"];
/// An instruction that calls: operation code, and the source register that says "a function of this object".
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
/// Length of a BPF instruction in bytes.
const INSN: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    calls: BTreeMap<String, usize>,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Breaches.
    pub findings: Vec<String>,
    /// What is better than the table says.
    pub notes: Vec<String>,
}

/// Checks an object against the table.
pub fn check(data: &[u8], table: &str) -> Result<Report> {
    let table: Table = toml::from_str(table).with_context(|| format!("read {TABLE}"))?;
    let elf = ElfFile64::<object::Endianness>::parse(data).context("the BPF object is no ELF file of 64 bits")?;
    let mut report = Report::default();
    for section in elf.sections() {
        let name = section.name().unwrap_or("?");
        if name.starts_with(".text.") {
            report.findings.push(format!(
                "weft-bpf: section `{name}`: aya resolves calls into it to other functions; find the attribute `cold` (or a link_section) and remove it"
            ));
        }
    }
    judge(&mem_calls(&elf)?, &table.calls, &mut report);
    Ok(report)
}

/// A function of the object and its calls to mem* functions.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Attached by the agent, and not only called by other functions.
    entry: bool,
    calls: usize,
}

fn judge(functions: &[Function], allowed: &BTreeMap<String, usize>, report: &mut Report) {
    for f in functions.iter().filter(|f| f.calls > 0) {
        let may = if f.entry { 0 } else { allowed.get(&f.name).copied().unwrap_or(0) };
        if f.calls > may {
            let cure = if f.entry {
                "write fields one by one, or move big values to a per-CPU map".to_owned()
            } else {
                format!(
                    "copy less, or if it must be, set `\"{}\" = {}` in {TABLE} and say why in the commit",
                    f.name, f.calls
                )
            };
            report.findings.push(format!("weft-bpf: `{}` calls mem* {} times, {may} allowed: {cure}", f.name, f.calls));
        }
    }
    for (name, may) in allowed {
        let calls = functions.iter().find(|f| f.name == *name).map_or(0, |f| f.calls);
        if calls < *may {
            report.notes.push(format!("`{name}` calls mem* {calls} times and {may} are allowed: lower it in {TABLE}"));
        }
    }
}

/// Counts calls to mem* functions of each function, out of relocations and of calls that the linker resolved itself.
fn mem_calls(elf: &ElfFile64<'_, object::Endianness>) -> Result<Vec<Function>> {
    let mut functions = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(SHF_EXECINSTR) == 0 || section.size() == 0 {
            continue;
        }
        let code = section.data().context("read a section of the BPF object")?;
        let relocations: BTreeMap<u64, Relocation> = section.relocations().collect();
        let entry = section.name() != Ok(".text");
        for symbol in
            elf.symbols().filter(|s| s.section_index() == Some(section.index()) && s.kind() == SymbolKind::Text)
        {
            let raw = symbol.name().unwrap_or("?");
            // The functions themselves may be written by one another.
            if MEM.contains(&raw) {
                continue;
            }
            let range = symbol.address()..symbol.address() + symbol.size();
            let calls = call_targets(elf, code, range, section.index(), &relocations);
            let calls = calls.iter().filter(|name| MEM.contains(&name.as_str())).count();
            functions.push(Function { name: format!("{:#}", rustc_demangle::demangle(raw)), entry, calls });
        }
    }
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(functions)
}

/// Names of all functions of the object that a range of code calls, once for each call.
fn call_targets(
    elf: &ElfFile64<'_, object::Endianness>,
    code: &[u8],
    range: std::ops::Range<u64>,
    section: SectionIndex,
    relocations: &BTreeMap<u64, Relocation>,
) -> Vec<String> {
    let mut names = Vec::new();
    for at in range.step_by(INSN) {
        let Some(insn) = usize::try_from(at).ok().and_then(|at| code.get(at..at + INSN)) else { break };
        if insn[0] != CALL || insn[1] >> 4 != PSEUDO_CALL {
            continue;
        }
        let imm = i64::from(i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]));
        let step = INSN as i64;
        let target = match relocations.get(&at).map(Relocation::target) {
            // No relocation: a distance in instructions, counted from the next one.
            None => (section, at.cast_signed() + (imm + 1) * step),
            Some(RelocationTarget::Symbol(index)) => match elf.symbol_by_index(index) {
                // The whole section is meant: the place in it stands in the instruction.
                Ok(symbol) if symbol.kind() == SymbolKind::Section => match symbol.section_index() {
                    Some(section) => (section, (imm + 1) * step),
                    None => continue,
                },
                Ok(symbol) => {
                    names.extend(symbol.name().ok().map(str::to_owned));
                    continue;
                }
                Err(_) => continue,
            },
            Some(_) => continue,
        };
        let callee = elf.symbols().find(|s| {
            s.kind() == SymbolKind::Text && s.section_index() == Some(target.0) && s.address().cast_signed() == target.1
        });
        names.extend(callee.and_then(|s| s.name().ok().map(str::to_owned)));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, entry: bool, calls: usize) -> Function {
        Function { name: name.to_owned(), entry, calls }
    }

    fn verdict(functions: &[Function], allowed: &[(&str, usize)]) -> Report {
        let mut report = Report::default();
        judge(functions, &allowed.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect(), &mut report);
        report
    }

    #[test]
    fn an_entry_program_may_call_none_even_if_the_table_says_so() {
        let report = verdict(&[function("from_pod", true, 1)], &[("from_pod", 1)]);
        assert_eq!(report.findings.len(), 1);
    }

    #[test]
    fn a_function_may_call_what_the_table_allows_and_no_more() {
        assert_eq!(verdict(&[function("event", false, 2)], &[("event", 2)]), Report::default());
        assert_eq!(verdict(&[function("event", false, 3)], &[("event", 2)]).findings.len(), 1);
        assert_eq!(verdict(&[function("new", false, 1)], &[]).findings.len(), 1);
    }

    #[test]
    fn a_figure_that_became_too_high_is_noted() {
        let report = verdict(&[function("event", false, 1)], &[("event", 2), ("gone", 1)]);
        assert_eq!((report.findings.len(), report.notes.len()), (0, 2));
    }
}
