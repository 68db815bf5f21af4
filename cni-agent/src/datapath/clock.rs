//! The programs' clock, read from user space: conntrack counts in jiffies, which the kernel shows to programs alone.
//!
//! The program is none of the object's: it has no hook and no map, needs no pin, and an agent that goes on with a former one's programs
//! needs it as well. It goes with its descriptor.
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::{
    assembly::{EXIT, add, call, copy, insn, set},
    load, syscall,
    syscall::Insn,
};

/// `BPF_FUNC_jiffies64`.
const JIFFIES64: i32 = 118;
/// Where `struct __sk_buff` has `data`…
const DATA: i16 = 76;
/// …and `data_end`.
const DATA_END: i16 = 80;
/// Bytes of the packet: what every kernel takes for an Ethernet frame.
const FRAME: usize = 64;

/// Writes `bpf_jiffies64` over the first 8 bytes of its packet.
const NOW: [Insn; 10] = [
    copy(6, 1),
    call(JIFFIES64),
    insn(0x61, 2 | 6 << 4, DATA, 0),
    insn(0x61, 3 | 6 << 4, DATA_END, 0),
    copy(4, 2),
    add(4, 8),
    // Past the store, if the packet ends before: r4 > r3.
    insn(0x2d, 4 | 3 << 4, 1, 0),
    insn(0x7b, 2, 0, 0),
    set(0, 0),
    EXIT,
];

/// Tells the programs' time.
#[derive(Debug)]
pub struct Clock {
    program: OwnedFd,
}

impl Clock {
    /// Loads the program.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn load() -> io::Result<Self> {
        load::raise_memlock_limit();
        Ok(Self { program: syscall::load_small(c"weft_now", &NOW)? })
    }

    /// `bpf_jiffies64` now.
    ///
    /// # Errors
    /// What the kernel says to `BPF_PROG_TEST_RUN`.
    pub fn now(&self) -> io::Result<u64> {
        let mut frame = [0_u8; FRAME];
        syscall::test_run_on(self.program.as_fd(), &mut frame)?;
        match frame.first_chunk() {
            Some(first) => Ok(u64::from_ne_bytes(*first)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
