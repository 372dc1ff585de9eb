//! What must agree between two runs of a case, and the few things that need not.

use crate::case::{Case, Fault, Outcome, PAGE};
use crate::machine;
use std::fmt::Write;

/// CF PF AF ZF SF TF DF OF NT RF AC ID. IF and IOPL belong to the privilege level, not the case.
const COMPARED_FLAGS: u64 = 0x8d5 | 1 << 8 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 18 | 1 << 21;
/// The vector of `int3`, which ends a case that ran through.
const BREAKPOINT: u8 = 3;
/// Page-fault error code: the access came from privilege 3.
const ERROR_USER: u32 = 4;
/// Page-fault error code: the page was there, but not with these rights.
const ERROR_PRESENT: u32 = 1;
/// Linux's TASK_SIZE_MAX: for addresses from here on it always reports [`ERROR_PRESENT`], so that
/// programs do not learn what the kernel has mapped.
const KERNEL_ADDRESSES: u64 = (1 << 47) - 4096;

const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Differences, one a line; empty when the outcomes agree.
///
/// Flags that the architecture leaves undefined are compared too: both sides run on the same
/// processor. Not compared: `case.ignored_flags`, the x87 last-instruction pointers (not in [`Outcome`]), the bytes in
/// `case.ignored`, and in a page fault's error code the user bit for a guest at `privilege` 0 and
/// the present bit where Linux does not tell it.
pub fn differences(case: &Case, native: &Outcome, other: &Outcome, privilege: u8) -> String {
    let several = |outcome: &Outcome| matches!(outcome.fault.vector, 10..=14 | 17);
    if case.any_fault && several(native) && several(other) && native.cpu.rip == other.cpu.rip {
        return String::new();
    }
    let mut text = String::new();
    faults(&mut text, case, native, other, privilege);
    let (a, b) = (&native.cpu, &other.cpu);
    for (name, (x, y)) in GPR_NAMES.iter().zip(a.gpr.iter().zip(&b.gpr)) {
        line(&mut text, name, *x, *y);
    }
    line(&mut text, "rip", a.rip, b.rip);
    let flags = COMPARED_FLAGS & !case.ignored_flags;
    line(&mut text, "rflags", a.rflags & flags, b.rflags & flags);
    for (index, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        if let (Some(native), Some(other)) = (native.selectors, other.selectors) {
            // On its way back to privilege 3 the host's kernel clears null selectors.
            let told = |selector: u16| u64::from(if selector < 4 { 0 } else { selector });
            line(&mut text, name, told(native[index]), told(other[index]));
        }
    }
    line(&mut text, "fs base", a.fs_base, b.fs_base);
    line(&mut text, "gs base", a.gs_base, b.gs_base);
    line(&mut text, "mxcsr", u64::from(a.mxcsr), u64::from(b.mxcsr));
    x87(&mut text, native, other);
    let partial = |register| native.fault.vector != BREAKPOINT && case.partial_registers.contains(&register);
    for index in (0..8).filter(|index| !partial(32 + index)) {
        line(&mut text, &format!("k{index}"), a.mask[index], b.mask[index]);
    }
    for index in (0..32).filter(|index| !partial(*index)) {
        bytes(&mut text, &format!("zmm{index}"), &a.vector[index], &b.vector[index]);
    }
    memory(&mut text, case, native, other);
    text
}

fn line(text: &mut String, name: &str, native: u64, other: u64) {
    if native != other {
        let _ = writeln!(text, "    {name:8} native {native:#018x}   translated {other:#018x}");
    }
}

fn bytes(text: &mut String, name: &str, native: &[u8], other: &[u8]) {
    if native != other {
        let _ = writeln!(text, "    {name:8} native {}", hex(native));
        let _ = writeln!(text, "    {:8} transl {}", "", hex(other));
    }
}

/// Most significant byte first, as registers are written.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().rev().enumerate() {
        let gap = if index > 0 && (bytes.len() - index) % 8 == 0 { "_" } else { "" };
        let _ = write!(text, "{gap}{byte:02x}");
    }
    text
}

fn faults(text: &mut String, case: &Case, native: &Outcome, other: &Outcome, privilege: u8) {
    let mut ignored = 0;
    if native.fault.vector == 14 && privilege == 0 {
        ignored |= ERROR_USER;
    }
    let unseen = native.fault.address >= KERNEL_ADDRESSES
        || native.fault.address.wrapping_sub(machine::SYSTEM) < machine::MEMORY_BYTES;
    if native.fault.vector == 14 && unseen {
        ignored |= ERROR_PRESENT;
    }
    let address = if case.any_address_in_page { !(PAGE - 1) } else { u64::MAX };
    let told = |fault: Fault| Fault {
        error_code: fault.error_code & !ignored,
        address: fault.address & address,
        ..fault
    };
    let (expected, other) = (told(native.fault), told(other.fault));
    if expected != other {
        let _ = writeln!(text, "    fault    native {expected:x?}");
        let _ = writeln!(text, "    {:8} transl {other:x?}", "");
    }
}

fn x87(text: &mut String, native: &Outcome, other: &Outcome) {
    let (a, b) = (&native.cpu.x87, &other.cpu.x87);
    line(text, "fcw", u64::from(a.control), u64::from(b.control));
    line(text, "fsw", u64::from(a.status), u64::from(b.status));
    line(text, "ftw", u64::from(a.tag), u64::from(b.tag));
    for index in 0..8 {
        bytes(text, &format!("st{index}"), &a.st[index], &b.st[index]);
    }
}

fn memory(text: &mut String, case: &Case, native: &Outcome, other: &Outcome) {
    let ignored =
        |address: u64| case.ignored.iter().any(|(start, size)| address.wrapping_sub(*start) < *size);
    let mut addresses: Vec<u64> = native.memory.keys().chain(other.memory.keys()).copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let differ =
        |address: &u64| !ignored(*address) && native.memory.get(address) != other.memory.get(address);
    for address in addresses.into_iter().filter(differ).take(8) {
        let show = |byte: Option<&u8>| byte.map_or("as before".to_owned(), |byte| format!("{byte:#04x}"));
        let (a, b) = (show(native.memory.get(&address)), show(other.memory.get(&address)));
        let _ = writeln!(text, "    [{address:#x}] native {a}   translated {b}");
    }
}
