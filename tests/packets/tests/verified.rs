//! Every program loads on this kernel, and says what the verifier counted and how large it became.
//!
//! The agent loads by aya, which drops the verifier's log of a load that succeeds. So the programs are loaded once more from the
//! same object with the log kept, and the kernel's tag of both must be the same: what is counted is what ships.
use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use aya_obj::{Object, generated::bpf_insn};
use cni_agent::datapath::{
    Datapath, object,
    syscall::{self, Code, ProgramFacts},
};

/// `BPF_JMP | BPF_CALL`: with [`PSEUDO_CALL`] as source register of a function of the program, else of a helper.
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
/// Loads of each program, of which the one in the middle counts.
const LOADS: usize = 5;

#[test]
fn verified() {
    let datapath = Datapath::load(None).expect("the object loads");
    let mut object = Object::parse(object::OBJECT).expect("parses, as it was loaded");
    let features = aya::features().btf().expect("BTF is in every kernel from 5.10");
    let btf = object.fixup_and_sanitize_btf(features).expect("types are in order").expect("the object has types");
    let btf = syscall::load_btf(&btf.to_bytes()).expect("the kernel takes the types");
    link(&mut object, &datapath);
    assert_eq!(object.programs.len(), object::HOOKS.len(), "each program is measured");
    for name in object::HOOKS {
        let program = &object.programs[name];
        let function = &object.functions[&program.function_key()];
        let insns: Vec<u8> = function.instructions.iter().flat_map(bytes).collect();
        let code = Code {
            insns: &insns,
            license: &program.license,
            btf: btf.as_fd(),
            func_info: (&function.func_info.func_info_bytes(), function.func_info_rec_size),
            line_info: (&function.line_info.line_info_bytes(), function.line_info_rec_size),
        };
        let shipped = syscall::program_facts(datapath.program(name).expect("is loaded")).expect("has facts");
        let mut times = [Duration::ZERO; LOADS];
        let mut log = String::new();
        for time in &mut times {
            let started = Instant::now();
            let loaded = syscall::load_counted(&code).unwrap_or_else(|e| panic!("{name} loads: {e}"));
            *time = started.elapsed();
            let facts = syscall::program_facts(loaded.0.as_fd()).expect("has facts");
            assert_eq!(shape(&facts), shape(&shipped), "{name}: this is not the program that the agent loads");
            log = loaded.1;
        }
        times.sort_unstable();
        let chain = deepest_chain(&function.instructions, &frames(&log), 0);
        println!(
            "verified: {name} insns={} xlated={} jited={} stack={} load_us={}",
            after(&log, "processed ").and_then(|n| n.parse::<u64>().ok()).expect("a kernel counts from 5.2 on"),
            shipped.xlated,
            shipped.jited,
            chain.iter().map(u32::to_string).collect::<Vec<_>>().join("+"),
            times[LOADS / 2].as_micros()
        );
    }
}

#[test]
fn of_two_chains_of_calls_the_deeper_one_is_verified_stack() {
    let call = |imm| bpf_insn { code: CALL, imm, ..insn(PSEUDO_CALL) };
    let exit = || bpf_insn { code: 0x95, ..insn(0) };
    // 0 calls 1 and 2; 2 calls 3. A helper's call (the second) is none of a function.
    let code = [call(3), insn(0), call(2), exit(), exit(), call(1), exit(), exit()];
    assert_eq!(deepest_chain(&code, &[100, 90, 40, 60], 0), [100, 40, 60]);
    assert_eq!(deepest_chain(&code, &[100, 130, 40, 60], 0), [100, 130]);
}

#[test]
fn the_log_of_a_verified_program_is_read() {
    let log = "verification time 15 usec\nstack depth 96+16+0\nprocessed 10 insns (limit 1000000) peak_states 1\n";
    assert_eq!(frames(log), [96, 16, 0]);
    assert_eq!(after(log, "processed "), Some("10"));
    let since_7_3 = "stack depth max 112\nsubprog 0 (main) main insns_self 6 insns_total 9 stack 96\n\
        subprog 1 (sub_3C_) static insns_self 3 insns_total 3 stack 16\nprocessed 10 insns\n";
    assert_eq!(frames(since_7_3), [96, 16]);
}

/// Resolves maps and calls, as aya does it.
fn link(object: &mut Object, datapath: &Datapath) {
    let maps = object.maps.clone();
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    let fds = datapath.map_fds().map(|(name, fd)| (name, fd.as_raw_fd(), &maps[name]));
    object.relocate_maps(fds, &text).expect("all maps are there");
    object.relocate_calls(&text).expect("all functions are there");
    object.sanitize_functions(aya::features());
}

fn bytes(insn: &bpf_insn) -> [u8; 8] {
    let [off0, off1] = insn.off.to_ne_bytes();
    let [imm0, imm1, imm2, imm3] = insn.imm.to_ne_bytes();
    [insn.code, insn.src_reg() << 4 | insn.dst_reg(), off0, off1, imm0, imm1, imm2, imm3]
}

fn shape(facts: &ProgramFacts) -> ([u8; 8], u32, u32) {
    (facts.tag, facts.xlated, facts.jited)
}

fn insn(src: u8) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(0, src);
    bpf_insn { code: CALL, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: 0 }
}

/// The word behind `before`.
fn after<'a>(log: &'a str, before: &str) -> Option<&'a str> {
    log.lines().find_map(|l| l.strip_prefix(before)).and_then(|l| l.split_whitespace().next())
}

/// Bytes of stack by function, in the order in which these stand in the code.
fn frames(log: &str) -> Vec<u32> {
    let depth = |n: &str| n.parse().unwrap_or_else(|_| panic!("`{n}` is no depth in {log}"));
    match after(log, "stack depth ").expect("the kernel says how deep the stack is") {
        // Since 7.3, a line for each function: `subprog 1 (its_name) static insns_self 4 insns_total 4 stack 16`.
        "max" => log.lines().filter_map(|l| l.strip_prefix("subprog ")?.rsplit(' ').next()).map(depth).collect(),
        text => text.split('+').map(depth).collect(),
    }
}

/// The frames of the chain of calls from a function that takes most, as the kernel weighs it: each in steps of 32 bytes.
fn deepest_chain(code: &[bpf_insn], frames: &[u32], function: usize) -> Vec<u32> {
    let is_call = |i: &bpf_insn| i.code == CALL && i.src_reg() == PSEUDO_CALL;
    let target = |(at, i): (usize, &bpf_insn)| at.checked_add_signed(i.imm as isize + 1).expect("calls stay inside");
    let calls = || code.iter().enumerate().filter(|(_, i)| is_call(i));
    let mut starts: Vec<usize> = calls().map(target).chain([0]).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), frames.len(), "one frame a function");
    let end = starts.get(function + 1).copied().unwrap_or(code.len());
    let below = calls()
        .filter(|(at, _)| (starts[function]..end).contains(at))
        .map(|call| starts.partition_point(|s| *s < target(call)))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|callee| deepest_chain(code, frames, callee))
        .max_by_key(|chain| chain.iter().map(|f| f.max(&1).next_multiple_of(32)).sum::<u32>());
    [frames[function]].into_iter().chain(below.unwrap_or_default()).collect()
}
