//! Whether the device takes an XDP program in its driver, as a later load balancer wants it.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use lab::{probe::Place, tool};
use serde_json::Value;

/// `r0 = XDP_PASS; exit`.
const PASS: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// Names of sections and of the program, and where they begin.
const NAMES: &[u8; 29] = b"\0xdp\0.symtab\0.strtab\0xdp_pass";
/// `XDP_ATTACHED_DRV` of linux/if_link.h.
const IN_THE_DRIVER: u64 = 1;

/// Attaches the program to `device`, or removes it, and looks whether that is so.
pub fn set(place: &Place, device: &str, on: bool) -> Result<()> {
    const FILE: &str = "/tmp/xdp_pass.o";
    fs::write(FILE, object()).context("write the XDP program")?;
    let program = if on { format!("object {FILE} section xdp") } else { "off".to_owned() };
    tool::succeeds(place, &format!("ip link set dev {device} xdpdrv {program}"))?;
    let shown: Value = serde_json::from_str(&tool::succeeds(place, &format!("ip -j -d link show dev {device}"))?)?;
    let wanted = if on { Some(IN_THE_DRIVER) } else { None };
    ensure!(shown[0]["xdp"]["mode"].as_u64() == wanted, "{device} has this of XDP: {}", shown[0]["xdp"]);
    Ok(())
}

/// An ELF file with the program: header, program, symbols, names, section headers.
fn object() -> Vec<u8> {
    const HEADER: u64 = 64;
    const SYMBOLS: u64 = HEADER + PASS.len() as u64;
    const STRINGS: u64 = SYMBOLS + 48;
    const SECTIONS: u64 = (STRINGS + NAMES.len() as u64 + 1).next_multiple_of(8);
    // Little endian, 64 bits, relocatable, for BPF (247).
    let mut file = [&b"\x7fELF\x02\x01\x01"[..], &[0; 9], &[1, 0, 247, 0, 1, 0, 0, 0], &[0; 16]].concat();
    file.extend(SECTIONS.to_le_bytes());
    // No flags; sizes of this header and of a section's, of which there are four; the last one holds the names.
    file.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 4, 0, 3, 0]);
    file.extend(PASS);
    file.extend([0; 24]);
    // A global function of the first section.
    file.extend([21, 0, 0, 0, 0x12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, PASS.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(NAMES);
    file.resize(SECTIONS as usize, 0);
    // Name, type, flags, offset, size, link, info, size of an entry.
    let sections: [[u64; 8]; 4] = [
        [0; 8],
        [1, 1, 6, HEADER, PASS.len() as u64, 0, 0, 0],
        [5, 2, 0, SYMBOLS, 48, 3, 1, 24],
        [13, 3, 0, STRINGS, NAMES.len() as u64 + 1, 0, 0, 0],
    ];
    for [name, kind, flags, offset, size, link, info, entry] in sections {
        // Two halves of 32 bits stand in one word.
        for word in [name | kind << 32, flags, 0, offset, size, link | info << 32, 8, entry] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}
