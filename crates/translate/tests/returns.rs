//! Returns go where the guest's stack says, whatever the calls before have foreseen; see `emit/returns.rs`.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x8_0000;
const STACK: u64 = 0x4_0000;

/// A kernel's or a program's code, with 2 MiB mapped at their own addresses.
fn machine(code: &[u8], privilege: u8) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let tables = [(TABLES, TABLES + 0x1007), (TABLES + 0x1000, TABLES + 0x2007), (TABLES + 0x2000, 0x87)];
    for (table, entry) in tables {
        vm.memory().write(table, &entry.to_le_bytes()).unwrap();
    }
    vm.memory().write(CODE, code).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES, privilege)).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 0x3002, ..Regs::default() };
    regs.gpr[4] = STACK;
    regs.gpr[5] = 50;
    regs.gpr[6] = STACK + 0x800;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

/// What the code puts out at port 0x80, as a kernel's and as a program's.
fn output(code: &[u8]) -> u64 {
    let [kernel, program] = [0, 3].map(|privilege| match machine(code, privilege).1.run().unwrap() {
        Exit::PioOut { port: 0x80, data, .. } => data,
        other => panic!("{other:?}"),
    });
    assert_eq!(kernel, program);
    kernel
}

#[test]
fn a_return_address_that_the_callee_changes_counts() {
    // Every other call returns to what adds 2.
    let code = [
        0xe8, 17, 0, 0, 0, // l: call f
        0x83, 0xc3, 1, // add ebx,1
        0xeb, 3, // jmp on
        0x83, 0xc3, 2, // add ebx,2
        0xff, 0xcd, // on: dec ebp
        0x75, 0xef, // jnz l
        0x89, 0xd8, // mov eax,ebx
        0xe7, 0x80, // out 0x80,eax
        0x90, // nop
        0x40, 0xf6, 0xc5, 1, // f: test bpl,1
        0x74, 5, // jz return
        0x48, 0x83, 0x04, 0x24, 5,    // add qword [rsp],5
        0xc3, // return: ret
    ];
    assert_eq!(output(&code), 25 + 50);
}

#[test]
fn calls_nest_deeper_than_what_is_foreseen() {
    let code = [
        0xb9, 0xe8, 3, 0, 0, // mov ecx,1000
        0xe8, 4, 0, 0, 0, // call f
        0x89, 0xd8, // mov eax,ebx
        0xe7, 0x80, // out 0x80,eax
        0xff, 0xc9, // f: dec ecx
        0x74, 7, // jz return
        0xe8, 0xf7, 0xff, 0xff, 0xff, // call f
        0xff, 0xc3, // inc ebx
        0xc3, // return: ret
    ];
    assert_eq!(output(&code), 999);
}

#[test]
fn a_call_that_is_popped_leaves_the_others_right() {
    // Twice as many calls that never return as there are entries, each between a call and its return.
    let code = [
        0xe8, 11, 0, 0, 0, // l: call f
        0x83, 0xc3, 3, // add ebx,3
        0xff, 0xcd, // dec ebp
        0x75, 0xf4, // jnz l
        0x89, 0xd8, // mov eax,ebx
        0xe7, 0x80, // out 0x80,eax
        0xb9, 0, 1, 0, 0, // f: mov ecx,256
        0xe8, 0, 0, 0, 0,    // m: call the next instruction
        0x58, // pop rax
        0xff, 0xc9, // dec ecx
        0x75, 0xf6, // jnz m
        0xc3, // ret
    ];
    assert_eq!(output(&code), 150);
}

#[test]
fn code_behind_a_call_may_be_changed_before_the_return() {
    let code = [
        0xe8, 11, 0, 0, 0, // l: call f
        0x83, 0xc3, 0, // add ebx,0, 1 when first executed
        0xff, 0xcd, // dec ebp
        0x75, 0xf4, // jnz l
        0x89, 0xd8, // mov eax,ebx
        0xe7, 0x80, // out 0x80,eax
        0xfe, 0x05, 0xf1, 0xff, 0xff, 0xff, // f: inc byte [operand of add]
        0xc3, // ret
    ];
    assert_eq!(output(&code), 50 * 51 / 2);
}

#[test]
fn what_comes_after_a_call_runs_in_the_mode_that_the_callee_leaves() {
    // Every other call returns with the direction flag set.
    let code = [
        0xfc, // l: cld
        0xe8, 9, 0, 0, 0,    // call f
        0xac, // lodsb
        0xff, 0xcd, // dec ebp
        0x75, 0xf5, // jnz l
        0x89, 0xf0, // mov eax,esi
        0xe7, 0x80, // out 0x80,eax
        0x40, 0xf6, 0xc5, 1, // f: test bpl,1
        0x74, 1,    // jz return
        0xfd, // std
        0xc3, // return: ret
    ];
    assert_eq!(output(&code), STACK + 0x800);
}

#[test]
fn a_return_to_the_last_byte_of_the_address_space_faults() {
    // push -1; ret. There is no IDT.
    for privilege in [0, 3] {
        let (_vm, mut vcpu) = machine(&[0x6a, 0xff, 0xc3], privilege);
        assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
    }
}
