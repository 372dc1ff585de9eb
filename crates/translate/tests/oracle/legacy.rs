//! Cases of a few random instructions in 16- and 32-bit segments of a local descriptor table.
//!
//! Bytes are drawn, not encodings: any opcode of the first two maps with any prefixes, so that
//! mixed sizes, overrides, and what no assembler would write come up. What may not run natively
//! (it would call the host's kernel, or answer differently each time) is decoded and refused.

use crate::case::{Case, Class, CODE};
use crate::features::Features;
use crate::inputs;
use crate::rng::Rng;
use crate::segments::{self, Selectors, CODES, CS, DATAS, HIGH, SS, STACKS};
use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic};

/// Instructions of a case.
const MOST_INSTRUCTIONS: u64 = 3;
/// Draws for one instruction until one may run.
const MOST_DRAWS: usize = 5000;
/// Words put on the stack: frames for RETF and IRET, segment values for POP.
const STACK_WORDS: u64 = 24;
/// Bytes with a meaning of their own that opcodes are drawn without: VEX, EVEX, XOP (or LES, LDS,
/// BOUND, POP, which have draws of their own).
const PREFIXES: [u8; 11] = [0x66, 0x66, 0x67, 0x67, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0xf0];

/// Make a case; with `filter`, of an encoding whose name contains it. `None` when nothing was found.
pub fn generate(features: &Features, filter: Option<&str>, rng: &mut Rng) -> Option<Case> {
    let selectors = selectors(rng);
    let bits = if segments::entry(selectors[CS])?.wide { 32 } else { 16 };
    let start = code_offset(rng);
    let mut code = Vec::new();
    let mut names = Vec::new();
    for left in (0..=rng.below(MOST_INSTRUCTIONS)).rev() {
        let at = start + code.len() as u64;
        let (bytes, instruction) =
            (0..MOST_DRAWS).find_map(|_| draw(bits, at, start, features, filter, rng))?;
        names.push(format!("{:?}", instruction.code()));
        code.extend(bytes);
        let last =
            instruction.flow_control() != FlowControl::Next || undefined_flags(&names[names.len() - 1]) != 0;
        if left > 0 && last {
            break;
        }
    }
    Some(finish(bits, selectors, start, code, &names.join(" "), rng))
}

fn finish(bits: u32, selectors: Selectors, start: u64, code: Vec<u8>, names: &str, rng: &mut Rng) -> Case {
    let mut cpu = inputs::state(rng);
    cpu.truncate();
    cpu.fs_base = 0;
    cpu.gs_base = 0;
    for value in &mut cpu.gpr[..8] {
        *value = register(rng);
    }
    cpu.gpr[4] = stack_pointer(selectors[SS], rng);
    let base = u64::from(segments::entry(selectors[CS]).map_or(0, |code| code.base));
    cpu.rip = start + CODE - base;
    if rng.chance(20) {
        cpu.rflags |= inputs::DIRECTION;
    }
    let mut memory = vec![(CODE + start, code)];
    if let Some(words) = stack_words(selectors[SS], cpu.gpr[4], rng) {
        memory.push(words);
    }
    Case {
        class: if bits == 16 { Class::Segments16 } else { Class::Segments32 },
        name: names.to_owned(),
        bits,
        cpu,
        memory,
        selectors: Some(selectors),
        ignored: Vec::new(),
        ignored_flags: undefined_flags(names),
        any_address_in_page: true,
        any_fault: has_many_checks(names),
        partial_registers: Vec::new(),
    }
}

/// Flags that decimal adjustments leave undefined: those are carried out by compiled code, and no
/// host instruction of 64-bit code could say what this processor makes of them.
fn undefined_flags(names: &str) -> u64 {
    const SF_ZF_PF: u64 = 0xc4;
    const CF_AF: u64 = 0x11;
    const OF: u64 = 0x800;
    let has = |name: &str| names.split(' ').any(|code| code.starts_with(name));
    let mut flags = 0;
    if has("Aaa") || has("Aas") {
        flags |= SF_ZF_PF | OF;
    }
    if has("Aam") || has("Aad") {
        flags |= CF_AF | OF;
    }
    if has("Daa") || has("Das") {
        flags |= OF;
    }
    flags
}

/// Whether an instruction may fault in several ways: far transfers, those that push or pop much, and
/// CALL, whose target may be beyond the limit of CS.
fn has_many_checks(names: &str) -> bool {
    const MANY: [&str; 12] = [
        "Call_", "Jmp_ptr", "Jmp_m16", "Retf", "Iret", "Push", "Pop", "Enter", "Bound", "Fldenv", "Cmps",
        "Movs",
    ];
    names.split(' ').any(|name| MANY.iter().any(|many| name.starts_with(many)))
}

fn selectors(rng: &mut Rng) -> Selectors {
    let index =
        |range: std::ops::Range<usize>, rng: &mut Rng| range.start + rng.below(range.len() as u64) as usize;
    let code = segments::selector(rng.below(CODES as u64) as usize);
    let stack = segments::selector(index(STACKS, rng));
    let mut data = || {
        let index = if rng.chance(10) { rng.below(CODES as u64) as usize } else { index(DATAS, rng) };
        let usable = segments::TABLE[index].present && !(index < CODES && segments::TABLE[index].restricted);
        if usable {
            segments::selector(index)
        } else {
            0
        }
    };
    [data(), code, stack, data(), data(), data()]
}

/// Where the code starts in its region: in the middle of the first page, or near an end.
fn code_offset(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.range(0xff0, 0xffe),
        _ => rng.range(0x400, 0xc00),
    }
}

/// Values that are offsets into segments, edges of 16 bits, selectors, or numbers.
fn register(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0..=4 => rng.below(0x1800),
        5 => rng.range(0xff0, 0x1010),
        6 => rng.range(HIGH, 0xffff),
        7 => u64::from(some_selector(rng)),
        8 => rng.range(0xfff0, 0x1_0010),
        _ => inputs::integer(rng) & 0xffff_ffff,
    }
}

/// Of the table, at any requested privilege; null, or past the table's end.
fn some_selector(rng: &mut Rng) -> u16 {
    match rng.below(10) {
        0 => rng.below(4) as u16,
        1 => segments::selector(segments::TABLE.len() + rng.below(3) as usize),
        2 => segments::selector(rng.below(segments::TABLE.len() as u64) as usize) & !3 | rng.below(4) as u16,
        _ => segments::selector(rng.below(segments::TABLE.len() as u64) as usize),
    }
}

fn stack_pointer(stack: u16, rng: &mut Rng) -> u64 {
    let base = segments::entry(stack).map_or(0, |stack| u64::from(stack.base));
    let in_region = match rng.below(6) {
        0 => rng.range(0, 0x40),
        1 => rng.range(0x13f0, 0x1410),
        _ => 0x1000 + 2 * rng.below(0x100),
    };
    let dirt = if rng.chance(30) { 0xabcd_0000 } else { 0 };
    match segments::entry(stack) {
        Some(stack) if !stack.wide => ((crate::case::STACK + in_region).wrapping_sub(base) & 0xffff) | dirt,
        _ => (crate::case::STACK + in_region).wrapping_sub(base) & 0xffff_ffff,
    }
}

/// Words at the top of the stack that make sense as offsets, selectors and flags.
fn stack_words(stack: u16, pointer: u64, rng: &mut Rng) -> Option<(u64, Vec<u8>)> {
    let stack = segments::entry(stack)?;
    let mask = if stack.wide { 0xffff_ffff } else { 0xffff };
    let at = (u64::from(stack.base) + (pointer & mask)) & 0xffff_ffff;
    let room = (crate::case::STACK + crate::case::TWO_PAGES).checked_sub(at)?;
    if at < crate::case::STACK || room < 2 * STACK_WORDS {
        return None;
    }
    let wide = rng.chance(50);
    let words = (0..STACK_WORDS).map(|index| match (wide && index % 2 == 1, rng.below(4)) {
        (true, _) => 0,
        (_, 0) => rng.below(0x1000) as u16,
        (_, 1) => segments::selector(rng.below(CODES as u64) as usize),
        (_, 2) => some_selector(rng),
        _ => (rng.next() & 0xdd7) as u16,
    });
    Some((at, words.flat_map(u16::to_le_bytes).collect()))
}

/// Bytes that decode to an instruction that may run, at offset `at` of the code region; `start`
/// is where the case begins, to which nothing may jump back.
fn draw(
    bits: u32,
    at: u64,
    start: u64,
    features: &Features,
    filter: Option<&str>,
    rng: &mut Rng,
) -> Option<(Vec<u8>, Instruction)> {
    let mut bytes = candidate(rng);
    let mut decoder = Decoder::with_ip(bits, &bytes, at, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if !may_run(&instruction, &bytes, features) || jumps_back(&instruction, start) {
        return None;
    }
    if filter.is_some_and(|name| !format!("{:?}", instruction.code()).to_lowercase().contains(name)) {
        return None;
    }
    bytes.truncate(if instruction.is_invalid() { bytes.len() } else { instruction.len() });
    aim_far_branch(&instruction, &mut bytes, rng);
    Some((bytes, instruction))
}

/// Prefixes, an opcode, and bytes that make plausible ModRM, displacement and immediate.
fn candidate(rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rng.pick(&[0, 0, 1, 1, 2, 3])).map(|_| rng.pick(&PREFIXES)).collect();
    if rng.chance(15) {
        bytes.push(rng.pick(&[0xf2, 0xf3]));
    }
    if rng.chance(30) {
        bytes.push(0x0f);
    }
    bytes.push(rng.next() as u8);
    bytes.push(rng.next() as u8);
    let wide = rng.chance(40);
    for index in 0..8 {
        let byte = match (wide, index % 4) {
            (true, 2 | 3) => 0,
            (_, 1 | 3) => rng.pick(&[0, 0, 1, 2, 7, 0xf, 0x10, 0xff]),
            _ => rng.next() as u8,
        };
        bytes.push(byte);
    }
    bytes
}

fn may_run(instruction: &Instruction, bytes: &[u8], features: &Features) -> bool {
    let code = instruction.code();
    if instruction.is_invalid() {
        // Undefined in the first map is undefined for good; elsewhere this processor may know more. At the end
        // of a segment, or at 15 bytes, the rest of the instruction may be missed first.
        let prefixes = bytes.iter().take_while(|byte| PREFIXES.contains(byte) || matches!(byte, 0xf2 | 0xf3));
        let prefixes = prefixes.count();
        let opcode = bytes.get(prefixes);
        return instruction.ip() < 0xf00
            && prefixes < 3
            && opcode.is_some_and(|opcode| !matches!(opcode, 0x0f | 0x62 | 0x8f | 0xc4 | 0xc5));
    }
    let known = matches!(code.op_code().encoding(), EncodingKind::Legacy);
    let far_into_the_kernel = instruction.mnemonic() == Mnemonic::Int && instruction.immediate8() == 0x80;
    // Processors differ in what a REP prefix does to LOOPE and LOOPNE.
    let repeated = bytes.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)) && instruction.is_loopcc();
    let uncertain_length = matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1);
    known
        && !repeated
        && !uncertain_length
        && features.missing(code).is_none()
        && !far_into_the_kernel
        && !refused(instruction)
}

/// What would reach the host's kernel or hypervisor, or has another answer each time or each host.
fn refused(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let op = instruction.code().op_code();
    op.is_save_restore()
        || matches!(
            instruction.mnemonic(),
            // It may flush through code that is not readable, which the translator refuses.
            M::Clflush | M::Clflushopt | M::Clwb
            // Under some hypervisors the host reports INT1 as a fault, before the instruction.
            | M::Int1
                | M::Syscall
                | M::Sysenter
                | M::Sysexit
                | M::Sysret
                | M::Vmcall
                | M::Vmmcall
                | M::Getsec
                | M::Rdtsc
                | M::Rdtscp
                | M::Rdpmc
                | M::Rdrand
                | M::Rdseed
                | M::Rdpid
                | M::Cpuid
                | M::Xgetbv
                | M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Str
                | M::Smsw
                | M::Monitor
                | M::Mwait
                | M::Monitorx
                | M::Mwaitx
                | M::Rdpkru
                | M::Wrpkru
                | M::Fnstenv
                | M::Fstenv
                | M::Fnsave
                | M::Fsave
                | M::Xbegin
                | M::Xabort
        )
}

/// A near branch back into the case would loop for ever natively.
fn jumps_back(instruction: &Instruction, start: u64) -> bool {
    let near = instruction.is_jmp_short_or_near()
        || instruction.is_jcc_short_or_near()
        || instruction.is_call_near()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || instruction.is_jcx_short();
    let target = instruction.near_branch_target();
    near && target >= start && target < instruction.next_ip()
}

/// Give a direct far branch one of the table's code segments.
fn aim_far_branch(instruction: &Instruction, bytes: &mut [u8], rng: &mut Rng) {
    use Code as C;
    if matches!(instruction.code(), C::Jmp_ptr1616 | C::Jmp_ptr1632 | C::Call_ptr1616 | C::Call_ptr1632) {
        let selector = some_selector(rng).to_le_bytes();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&selector);
    }
}
