//! A few instructions from entry to exit: the shortest way through every layer of the engine.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const TABLES: u64 = 0x8_0000;

/// A VM in 64-bit mode at CPL 0 with the first 2 MiB mapped to themselves.
fn machine(code: &[u8]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let memory = vm.memory();
    memory.write(TABLES, &((TABLES + 0x1000) | 3).to_le_bytes()).unwrap();
    memory.write(TABLES + 0x1000, &((TABLES + 0x2000) | 3).to_le_bytes()).unwrap();
    memory.write(TABLES + 0x2000, &0x83u64.to_le_bytes()).unwrap();
    memory.write(CODE, code).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES, 0)).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = STACK;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

#[test]
fn a_loop_ends_in_an_out() {
    // xor eax,eax; mov ecx,1000; l: add eax,ecx; loop l; out 0x80,eax
    let (_vm, mut vcpu) = machine(&[0x31, 0xc0, 0xb9, 0xe8, 3, 0, 0, 0x01, 0xc8, 0xe2, 0xfc, 0xe7, 0x80]);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 500_500 });
}

#[test]
fn calls_and_the_stack() {
    // mov r10d,7; push r10; call f; pop r15; out 0x80,eax;  f: mov rax,[rsp+8]; add rax,[rsp+8]; ret
    let code = [
        0x41, 0xba, 7, 0, 0, 0, 0x41, 0x52, 0xe8, 4, 0, 0, 0, 0x41, 0x5f, 0xe7, 0x80, 0x48, 0x8b, 0x44, 0x24,
        8, 0x48, 0x03, 0x44, 0x24, 8, 0xc3,
    ];
    let (_vm, mut vcpu) = machine(&code);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 14 });
    let regs = vcpu.regs().unwrap();
    assert_eq!((regs.gpr[15], regs.gpr[4]), (7, STACK));
}

#[test]
fn port_and_device_reads_restart() {
    // in al,0x60; mov rbx,0x40000000 is unmapped, so: mov edx,eax; mov [0x5000],al; movzx ecx,byte [0x5000]; out 0x80,eax
    let code = [
        0xe4, 0x60, 0x88, 0x04, 0x25, 0, 0x50, 0, 0, 0x0f, 0xb6, 0x0c, 0x25, 0, 0x50, 0, 0, 0x89, 0xc8, 0xe7,
        0x80,
    ];
    let (_vm, mut vcpu) = machine(&code);
    assert_eq!(vcpu.run().unwrap(), Exit::PioIn { port: 0x60, size: 1 });
    vcpu.complete_read(0x5a);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 0x5a });
}

#[test]
fn code_that_rewrites_itself() {
    // mov byte [rip+1],2 (the immediate of the next mov); mov eax,1; out 0x80,eax
    let code = [0xc6, 0x05, 1, 0, 0, 0, 2, 0xb8, 1, 0, 0, 0, 0xe7, 0x80];
    let (_vm, mut vcpu) = machine(&code);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 2 });
}

#[test]
fn a_fault_without_handlers_shuts_down() {
    // ud2 with an empty IDT
    let (_vm, mut vcpu) = machine(&[0x0f, 0x0b]);
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
    // div by zero: a host signal on the way
    let (_vm, mut vcpu) = machine(&[0x31, 0xc9, 0xf7, 0xf1]);
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
}

#[test]
fn invlpg_ends_all_of_a_large_page() {
    // mov rbx,0x300000; mov rax,[rbx+0x1000]; mov byte [TABLES+0x2000+8+2],0; invlpg [rbx];
    // mov rax,[rbx+0x1000]; out 0x80,eax
    let code = [
        0xbb, 0, 0, 0x30, 0, 0x48, 0x8b, 0x83, 0, 0x10, 0, 0, 0xc6, 0x04, 0x25, 0x0a, 0x20, 0x08, 0, 0, 0x0f,
        0x01, 0x3b, 0x48, 0x8b, 0x83, 0, 0x10, 0, 0, 0xe7, 0x80,
    ];
    let (vm, mut vcpu) = machine(&code);
    let ram = Arc::new(RamBlock::new(4 << 20).unwrap());
    vm.memory().set_memslot(1, 0x20_0000, 4 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    // The second large page maps to 2 MiB, then to 0: where page 0x101 holds another value.
    vm.memory().write(TABLES + 0x2008, &0x20_0083u64.to_le_bytes()).unwrap();
    vm.memory().write(0x30_1000, &1u64.to_le_bytes()).unwrap();
    vm.memory().write(0x10_1000, &2u64.to_le_bytes()).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 2 });
}

#[test]
fn rip_relative_operands_reach_two_gigabytes_from_the_end_of_a_page() {
    // lea rax,[rip+0x7fffffff]; shr rax,12; out 0x80,eax
    let code = [0x48, 0x8d, 0x05, 0xff, 0xff, 0xff, 0x7f, 0x48, 0xc1, 0xe8, 12, 0xe7, 0x80];
    let (_vm, mut vcpu) = machine(&code);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 0x8_0010 });
}

#[test]
fn memory_that_goes_while_a_read_is_answered_is_not_stored_to() {
    // mov edi,0x201000; mov [rdi],al; mov esi,0x401000 (a device); movsb
    let code = [0xbf, 0, 0x10, 0x20, 0, 0x88, 0x07, 0xbe, 0, 0x10, 0x40, 0, 0xa4];
    let (vm, mut vcpu) = machine(&code);
    vm.memory().write(TABLES + 0x2008, &0x20_0083u64.to_le_bytes()).unwrap();
    vm.memory().write(TABLES + 0x2010, &0x40_0083u64.to_le_bytes()).unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(1, 0x20_0000, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::MmioRead { gpa: 0x40_1000, size: 1 });
    vm.memory().remove_memslot(1);
    vm.memslots_changed().unwrap();
    vcpu.complete_read(0x5a);
    assert_eq!(vcpu.run().unwrap(), Exit::MmioWrite { gpa: 0x20_1000, size: 1, data: 0x5a });
}
