//! Translated 32-bit code whose segments have bases, limits and types: Intel SDM vol. 3A §5.3 "Limit
//! Checking" and §5.4 "Type Checking".

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, Regs, Segment, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x1_8000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const BASE: u64 = 0x2_0000;
const DATA_KIND: u8 = 3;
const READ_ONLY: u8 = 1;
const EXPAND_DOWN: u8 = 7;
const STACK_FAULT: u64 = 12;
const PROTECTION: u64 = 13;
/// What the code under test reports when nothing faulted.
const PASSED: u64 = 0x77;

fn segment(kind: u8, base: u64, limit: u32) -> Segment {
    let selector = if kind == 11 { 8 } else { 16 };
    Segment { base, limit, selector, kind, present: true, s: true, db: true, ..Segment::default() }
}

/// A present 32-bit interrupt gate.
fn gate(handler: u64) -> u64 {
    handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48
}

/// Run `code` and what reports success after it; returns the value reported, a vector on faults.
fn run(code: &[u8], segments: [Segment; 6], esp: u64) -> u64 {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    fill(vm.as_ref(), code);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    start(vcpu.as_mut(), segments, esp);
    match vcpu.run().unwrap() {
        Exit::PioOut { port: 0x80, data, .. } => data,
        other => panic!("{other:?}"),
    }
}

fn fill(vm: &dyn Vm, code: &[u8]) {
    let put = |gpa: u64, bytes: &[u8]| vm.memory().write(gpa, bytes).unwrap();
    put(GDT + 8, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    for vector in [STACK_FAULT, PROTECTION] {
        let handler = HANDLERS + 16 * vector;
        put(IDT + 8 * vector, &gate(handler).to_le_bytes());
        // mov al, vector; out 0x80, al
        put(handler, &[0xb0, vector as u8, 0xe6, 0x80]);
    }
    put(CODE, code);
    put(CODE + code.len() as u64, &[0xb0, PASSED as u8, 0xe6, 0x80]);
    put(BASE + 0x10, &[PASSED as u8; 4]);
}

fn start(vcpu: &mut dyn Vcpu, segments: [Segment; 6], esp: u64) {
    let sregs = Sregs {
        segments,
        gdt: DescriptorTable { base: GDT, limit: 0x17 },
        idt: DescriptorTable { base: IDT, limit: 0x7ff },
        cr0: 0x33,
        ..Sregs::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = esp;
    vcpu.set_regs(&regs).unwrap();
}

fn with(index: usize, changed: Segment) -> [Segment; 6] {
    let data = segment(DATA_KIND, 0, u32::MAX);
    let mut all = [data, segment(11, 0, u32::MAX), data, data, data, data];
    all[index] = changed;
    all
}

const CS: usize = 1;
const SS: usize = 2;
const DS: usize = 3;
const FS: usize = 4;
const GS: usize = 5;

/// `mov eax, prefix:[offset]`
fn load(prefix: u8, offset: u32) -> Vec<u8> {
    let mut code = vec![prefix, 0x8b, 0x05];
    code.extend(offset.to_le_bytes());
    code
}

/// `mov prefix:[offset], eax`
fn store(prefix: u8, offset: u32) -> Vec<u8> {
    let mut code = vec![prefix, 0x89, 0x05];
    code.extend(offset.to_le_bytes());
    code
}

const BY_DS: u8 = 0x3e;
const BY_CS: u8 = 0x2e;
const BY_SS: u8 = 0x36;
const BY_FS: u8 = 0x64;
const BY_GS: u8 = 0x65;

#[test]
fn limits_hold_for_loads_and_stores() {
    let small = |index| with(index, segment(DATA_KIND, BASE, 0xfff));
    let stack = 0x8_0000;
    for (index, prefix) in [(DS, BY_DS), (GS, BY_GS)] {
        assert_eq!(run(&load(prefix, 0xffc), small(index), stack), PASSED);
        assert_eq!(run(&load(prefix, 0xffd), small(index), stack), PROTECTION);
        assert_eq!(run(&store(prefix, 0x1000), small(index), stack), PROTECTION);
        assert_eq!(run(&store(prefix, 0xffff_fffe), small(index), stack), PROTECTION);
    }
}

#[test]
fn types_hold_for_loads_and_stores() {
    let stack = 0x8_0000;
    let read_only = with(DS, segment(READ_ONLY, 0, u32::MAX));
    assert_eq!(run(&load(BY_DS, 0x5000), read_only, stack), PASSED);
    assert_eq!(run(&store(BY_DS, 0x5000), read_only, stack), PROTECTION);
    let flat = with(DS, segment(DATA_KIND, 0, u32::MAX));
    assert_eq!(run(&load(BY_CS, 0x5000), flat, stack), PASSED);
    assert_eq!(run(&store(BY_CS, 0x5000), flat, stack), PROTECTION);
    let down = with(DS, segment(EXPAND_DOWN, 0, 0xfff));
    assert_eq!(run(&load(BY_DS, 0x1000), down, stack), PASSED);
    assert_eq!(run(&load(BY_DS, 0xfff), down, stack), PROTECTION);
    let null = with(GS, Segment { unusable: true, ..Segment::default() });
    assert_eq!(run(&load(BY_GS, 0), null, stack), PROTECTION);
}

#[test]
fn the_base_is_added() {
    let mut code = load(BY_GS, 0x10);
    code.extend([0xe6, 0x80]); // out 0x80, al
    assert_eq!(run(&code, with(GS, segment(DATA_KIND, BASE, 0xfff)), 0x8_0000), PASSED);
}

/// The handler needs a stack too: what overruns SS ends in a double fault and a shutdown, so that
/// only accesses beside the stack pointer are tried.
#[test]
fn the_stack_has_a_limit() {
    let small = with(SS, segment(DATA_KIND, BASE, 0xfff));
    assert_eq!(run(&[0x50, 0x58], small, 0x1000), PASSED); // push eax; pop eax
    assert_eq!(run(&load(BY_SS, 0xffd), small, 0x800), STACK_FAULT);
    // mov ebp, 0x2000; leave
    assert_eq!(run(&[0xbd, 0, 0x20, 0, 0, 0xc9], small, 0x800), STACK_FAULT);
}

/// CS keeps its type: reads through it pass, as in [`types_hold_for_loads_and_stores`].
#[test]
fn code_segments_may_be_execute_only() {
    let secret = with(CS, segment(9, 0, u32::MAX));
    assert_eq!(run(&load(BY_CS, 0x5000), secret, 0x8_0000), PROTECTION);
}

/// A code segment that ends after `code` and `extra` more bytes.
fn code_ending(code: &[u8], extra: i64) -> u64 {
    let last = CODE as i64 + code.len() as i64 - 1 + extra;
    run(code, with(CS, segment(11, 0, last as u32)), 0x3_0000)
}

#[test]
fn code_ends_at_the_limit_of_its_segment() {
    // What reports success after the code has 4 bytes: inside, the last one outside, all outside.
    assert_eq!(code_ending(&[0x90, 0x90], 4), PASSED);
    assert_eq!(code_ending(&[0x90, 0x90], 3), PROTECTION);
    assert_eq!(code_ending(&[0x90, 0x90], 0), PROTECTION);
}

#[test]
fn a_jump_leads_beyond_the_limit_of_its_segment_to_a_fault() {
    // jmp over 2 bytes; the success report follows.
    assert_eq!(code_ending(&[0xeb, 0x02, 0x90, 0x90], 4), PASSED);
    assert_eq!(code_ending(&[0xeb, 0x02, 0x90, 0x90], -1), PROTECTION);
}

#[test]
fn whole_segments_with_a_base_need_no_check() {
    let fs = segment(DATA_KIND, BASE, u32::MAX);
    assert_eq!(run(&load(BY_FS, 0x10), with(FS, fs), 0x3_0000), PASSED);
    let limited = segment(DATA_KIND, BASE, 0x12);
    assert_eq!(run(&load(BY_FS, 0x10), with(FS, limited), 0x3_0000), PROTECTION);
}
