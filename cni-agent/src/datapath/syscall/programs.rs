//! Programs for tc: loaded, tried on a frame, and what the kernel says of one.
use std::{
    ffi::CStr,
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};

use super::{InfoByFd, OBJ_GET_INFO_BY_FD, address, bpf, owned, raw, short};

const PROG_LOAD: u32 = 5;
const PROG_TEST_RUN: u32 = 10;
const BTF_LOAD: u32 = 18;

/// `BPF_PROG_TYPE_SCHED_CLS` of `enum bpf_prog_type`.
const SCHED_CLS: u32 = 3;
/// `BPF_LOG_STATS` (Linux 5.2): nothing but what the verifier counted.
const LOG_STATS: u32 = 4;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Insn {
    /// Operation (RFC 9669 section 3).
    pub code: u8,
    /// Destination in the lower half, source in the upper one.
    pub registers: u8,
    /// Of a jump in instructions, of memory in bytes.
    pub offset: i16,
    /// A number that the operation takes.
    pub immediate: i32,
}

/// The head of `struct bpf_prog_info`, which has been the same since Linux 4.13.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProgramFacts {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// The kernel's number of the program.
    pub id: u32,
    /// A hash of the instructions as they were handed in, without the maps' descriptors.
    pub tag: [u8; 8],
    /// Bytes of machine code; 0: interpreted.
    pub jited: u32,
    /// Bytes of BPF instructions, as the verifier has rewritten them.
    pub xlated: u32,
}

/// A tc program's code, ready for the kernel: calls and maps are relocated.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Instructions, 8 bytes each.
    pub insns: &'a [u8],
    /// Its licence.
    pub license: &'a CStr,
    /// What [`load_btf`] gave for the object.
    pub btf: BorrowedFd<'a>,
    /// Records about functions, and the bytes of one.
    pub func_info: (&'a [u8], usize),
    /// Records about lines, and the bytes of one.
    pub line_info: (&'a [u8], usize),
}

/// Loads a program for tc. It goes with its descriptor.
pub fn load_probe(insns: &[Insn]) -> io::Result<OwnedFd> {
    load_small(c"weft_probe", insns)
}

/// The same, of another name, which has at most 15 characters.
pub(in crate::datapath) fn load_small(name: &CStr, insns: &[Insn]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let mut attr = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: insns.len() as u32,
        insns: address(insns.as_ptr()),
        license: address(license.as_ptr()),
        prog_name: short(name.to_bytes()),
        ..ProgLoad::zeroed()
    };
    // SAFETY: `insns` and `license` are alive, and the kernel gets the number of the former.
    unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)
}

/// Runs a program for tc once on a frame; what it returns.
pub(in crate::datapath) fn test_run(prog: BorrowedFd<'_>, frame: &[u8]) -> io::Result<i32> {
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: frame.len() as u32,
        data_in: address(frame.as_ptr()),
        repeat: 1,
        ..TestRun::zeroed()
    };
    // SAFETY: the kernel reads as many bytes as `frame` has, and writes none.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval.cast_signed())
}

/// Runs a program for tc once on a frame, and leaves there what it has made of it.
pub(in crate::datapath) fn test_run_on(prog: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<()> {
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: frame.len() as u32,
        data_size_out: frame.len() as u32,
        data_in: address(frame.as_ptr()),
        data_out: address(frame.as_mut_ptr()),
        repeat: 1,
        ..TestRun::zeroed()
    };
    // SAFETY: the kernel copies as many bytes as `frame` has, in before the run and out after it.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// How many instructions the verifier walked for a program; 0 where the kernel does not tell.
pub(in crate::datapath) fn verified_insns(prog: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info` up to the field.
    const WORD: usize = 216 / 4;
    let mut info = [0_u64; WORD / 2 + 1];
    let mut attr =
        InfoByFd { fd: raw(prog), len: size_of_val(&info) as u32, info: address(std::ptr::from_mut(&mut info)) };
    // SAFETY: `info` points to a live object of the length given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(bytemuck::must_cast_slice::<_, u32>(&info)[WORD])
}

/// Hands an object's type information to the kernel.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoad { btf: address(btf.as_ptr()), btf_size: btf.len() as u32, ..BtfLoad::zeroed() };
    // SAFETY: `btf` points to as many bytes as `btf_size` says.
    unsafe { bpf(BTF_LOAD, &mut attr) }.map(owned)
}

/// Loads a program without attaching it, and gives what the verifier counted: for measurements, as aya drops the log of a load
/// that succeeds, and kernels before 5.16 tell it nowhere else.
pub fn load_counted(code: &Code<'_>) -> io::Result<(OwnedFd, String)> {
    let mut log = vec![0_u8; 4096];
    let records = |(bytes, size): (&[u8], usize)| (address(bytes.as_ptr()), (bytes.len() / size) as u32, size as u32);
    let (func_info, func_info_cnt, func_info_rec_size) = records(code.func_info);
    let (line_info, line_info_cnt, line_info_rec_size) = records(code.line_info);
    let mut attr = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: (code.insns.len() / 8) as u32,
        insns: address(code.insns.as_ptr()),
        license: address(code.license.as_ptr()),
        log_level: LOG_STATS,
        log_size: log.len() as u32,
        log_buf: address(log.as_mut_ptr()),
        prog_btf_fd: raw(code.btf),
        func_info_rec_size,
        func_info,
        func_info_cnt,
        line_info_rec_size,
        line_info,
        line_info_cnt,
        ..ProgLoad::zeroed()
    };
    // SAFETY: every pointer is to a live buffer of at least the length given: counts are rounded down.
    let program = unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)?;
    let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
    Ok((program, text))
}

/// Sizes and tag of a program.
pub fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let mut facts = ProgramFacts::zeroed();
    let mut attr = InfoByFd {
        fd: raw(program),
        len: size_of::<ProgramFacts>() as u32,
        info: address(std::ptr::from_mut(&mut facts)),
    };
    // SAFETY: `info` points to a live object of the length given; its sizes are zero, so nothing is copied elsewhere.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(facts)
}
