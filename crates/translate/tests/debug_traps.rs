//! When debug traps are taken: Intel SDM vol. 3A §6.8.3 "Masking Exceptions and Interrupts When
//! Switching Stacks", vol. 3B §18.3.1 "Debug Exception (#DB)—Interrupt Vector 1".

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, Regs, Segment, Sregs, Vcpu};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_8000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const VALUE: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;

/// A vCPU in flat 32-bit code whose #DB handler reports where it was called from, at port 0x80.
fn vcpu(code: &[u8]) -> Box<dyn Vcpu> {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, bytes: &[u8]| vm.memory().write(gpa, bytes).unwrap();
    put(GDT + 8, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
    put(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    put(IDT + 8, &(HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48).to_le_bytes());
    // pop eax; out 0x80, eax; hlt
    put(HANDLER, &[0x58, 0xe7, 0x80, 0xf4]);
    put(CODE, code);
    put(VALUE, &16u32.to_le_bytes());
    let mut vcpu = vm.create_vcpu(0).unwrap();
    start(vcpu.as_mut());
    vcpu
}

fn start(vcpu: &mut dyn Vcpu) {
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
        kind: 3,
        present: true,
        s: true,
        db: true,
        ..Segment::default()
    };
    let mut segments = [data; 6];
    segments[1] = Segment { selector: 8, kind: 11, ..data };
    let sregs = Sregs {
        segments,
        gdt: DescriptorTable { base: GDT, limit: 0x17 },
        idt: DescriptorTable { base: IDT, limit: 0x7ff },
        cr0: 0x33,
        ..Sregs::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = STACK;
    vcpu.set_regs(&regs).unwrap();
}

fn reported(vcpu: &mut dyn Vcpu) -> u64 {
    match vcpu.run().unwrap() {
        Exit::PioOut { port: 0x80, data, .. } => data,
        other => panic!("{other:?}"),
    }
}

/// Watch the 4 bytes at `VALUE` for reads and writes.
fn watch(vcpu: &mut dyn Vcpu) {
    let mut debug = vcpu.debug_regs().unwrap();
    debug[0] = VALUE;
    debug[5] = 0x400 | 0b1111 << 16 | 1;
    vcpu.set_debug_regs(&debug).unwrap();
}

#[test]
fn a_watched_load_of_ss_traps_after_the_next_instruction() {
    // mov ss, [VALUE]; nop; nop
    let mut vcpu = vcpu(&[0x8e, 0x15, 0x00, 0x00, 0x02, 0x00, 0x90, 0x90]);
    watch(vcpu.as_mut());
    assert_eq!(reported(vcpu.as_mut()), CODE + 7);
}

#[test]
fn another_watched_segment_load_traps_at_once() {
    // mov es, [VALUE]; nop; nop
    let mut vcpu = vcpu(&[0x8e, 0x05, 0x00, 0x00, 0x02, 0x00, 0x90, 0x90]);
    watch(vcpu.as_mut());
    assert_eq!(reported(vcpu.as_mut()), CODE + 6);
}

#[test]
fn what_a_load_of_ss_held_back_meets_a_software_interrupt() {
    // mov ss, [VALUE]; int 1: its handler is interrupted before its first instruction.
    let mut vcpu = vcpu(&[0x8e, 0x15, 0x00, 0x00, 0x02, 0x00, 0xcd, 0x01]);
    watch(vcpu.as_mut());
    assert_eq!(reported(vcpu.as_mut()), HANDLER);
}

#[test]
fn single_step_skips_the_instruction_after_a_load_of_ss() {
    // mov eax, ss; push 0x102; popf; mov ss, eax; nop; nop
    let mut vcpu = vcpu(&[0x8c, 0xd0, 0x68, 0x02, 0x01, 0, 0, 0x9d, 0x8e, 0xd0, 0x90, 0x90]);
    assert_eq!(reported(vcpu.as_mut()), CODE + 11);
}

#[test]
fn an_instruction_that_leaves_with_its_data_still_traps() {
    // push 0x102; popf; out 0x10, al; nop
    let mut vcpu = vcpu(&[0x68, 0x02, 0x01, 0, 0, 0x9d, 0xe6, 0x10, 0x90]);
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { port: 0x10, .. }));
    assert_eq!(reported(vcpu.as_mut()), CODE + 8);
}
