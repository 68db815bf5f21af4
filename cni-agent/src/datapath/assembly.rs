//! BPF instructions (RFC 9669) for programs of a few lines, written by hand: what tries the kernel, and what the lab's nodes run beside ours.
use super::syscall::Insn;

/// Ends the program with register 0.
pub const EXIT: Insn = insn(0x95, 0, 0, 0);
/// `BPF_PSEUDO_MAP_FD`, in the place of a source.
pub const MAP_FD: u8 = 1;

/// Any.
pub const fn insn(code: u8, registers: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers, offset, immediate }
}
/// A number into a register.
pub const fn set(to: u8, number: i32) -> Insn {
    insn(0xb7, to, 0, number)
}
/// A register into another.
pub const fn copy(to: u8, from: u8) -> Insn {
    insn(0xbf, to | from << 4, 0, 0)
}
/// Adds a number.
pub const fn add(to: u8, number: i32) -> Insn {
    insn(0x07, to, 0, number)
}
/// Eight bytes of zeros at an offset from the frame pointer.
pub const fn store_zero(offset: i16) -> Insn {
    insn(0x7a, 10, offset, 0)
}
/// Calls a helper: arguments in registers 1 to 5, its answer in 0.
pub const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, helper)
}
/// Skips as many instructions if the register is 0.
pub const fn skip_if_zero(register: u8, instructions: i16) -> Insn {
    insn(0x15, register, instructions, 0)
}
/// A number of 64 bits, which takes two instructions; `kind` says what it is, such as [`MAP_FD`].
pub const fn wide(to: u8, kind: u8, number: u64) -> [Insn; 2] {
    [insn(0x18, to | kind << 4, 0, number as i32), insn(0, 0, 0, (number >> 32) as i32)]
}
