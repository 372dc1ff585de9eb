//! Links between blocks end with the mapping that they hold for: user code jumps into a page, many times, the
//! kernel maps another frame there, and the same jump has to find the other frame's code.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, MsrEntry, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::TranslateEngine;

/// The kernel's code, in a global page of the upper half, so that CR3 loads end user mappings only.
const KERNEL: u64 = 0xffff_ff80_0000_1000;
const KERNEL_FRAME: u64 = 0x1000;
const TABLES: u64 = 0x8_0000;
/// Where user code is. The page after it is mapped anew.
const USER: u64 = 0x40_0000;
/// Frames of `USER`, and of the next page before and after.
const FRAMES: [u64; 3] = [0x10_0000, 0x10_1000, 0x10_2000];
const NEXT_ENTRY: u64 = TABLES + 0x3000 + 8;
const PRESENT_WRITABLE_USER: u64 = 7;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// User code at `USER`; the next page holds `frames[0]` until a system call, `frames[1]` from then on.
fn machine(user: &[u8], frames: [&[u8]; 2]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    // mov [NEXT_ENTRY],rbx; mov rax,cr3; mov cr3,rax; sysretq
    let kernel =
        [0x48, 0x89, 0x1c, 0x25, 0x08, 0x30, 0x08, 0, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x48, 0x0f, 0x07];
    assert_eq!(NEXT_ENTRY, 0x8_3008);
    let vm = TranslateEngine::new().unwrap().create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    for (table, entry) in [
        (TABLES, (TABLES + 0x1000) | PRESENT_WRITABLE_USER),
        (TABLES + 0x1000, (TABLES + 0x2000) | PRESENT_WRITABLE_USER),
        (TABLES + 0xff8, (TABLES + 0x1000) | PRESENT_WRITABLE_USER),
        (TABLES + 0x2000, 0x183),
        (TABLES + 0x2010, (TABLES + 0x3000) | PRESENT_WRITABLE_USER),
        (TABLES + 0x3000, FRAMES[0] | PRESENT_WRITABLE_USER),
        (NEXT_ENTRY, FRAMES[1] | PRESENT_WRITABLE_USER),
    ] {
        vm.memory().write(table, &entry.to_le_bytes()).unwrap();
    }
    for (address, code) in
        [(KERNEL_FRAME, &kernel[..]), (FRAMES[0], user), (FRAMES[1], frames[0]), (FRAMES[2], frames[1])]
    {
        vm.memory().write(address, code).unwrap();
    }
    let vcpu = user_mode(&*vm);
    (vm, vcpu)
}

fn user_mode(vm: &dyn Vm) -> Box<dyn Vcpu> {
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let sregs = Sregs { efer: 0x501, ..long_mode::sregs(TABLES, 3) };
    vcpu.set_sregs(&sregs).unwrap();
    let msrs = [MsrEntry { index: STAR, value: 0x10_0008 << 32 }, MsrEntry { index: LSTAR, value: KERNEL }];
    vcpu.set_msrs(&msrs).unwrap();
    let mut regs = Regs { rip: USER, rflags: 0x3002, ..Regs::default() };
    regs.gpr[3] = FRAMES[2] | PRESENT_WRITABLE_USER;
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

fn outputs(vcpu: &mut dyn Vcpu) -> [Exit; 2] {
    [vcpu.run().unwrap(), vcpu.run().unwrap()]
}

fn output(data: u64) -> Exit {
    Exit::PioOut { port: 0x80, size: 4, data }
}

/// `mov ebp,50; l: <body>; dec ebp; jnz l; out 0x80,eax; syscall; jmp start`
fn fifty_times(body: &[u8]) -> Vec<u8> {
    let mut code = vec![0xbd, 50, 0, 0, 0];
    code.extend(body);
    code.extend([0xff, 0xcd, 0x75, 0u8.wrapping_sub(body.len() as u8 + 4), 0xe7, 0x80, 0x0f, 0x05]);
    let back = 0u8.wrapping_sub(code.len() as u8 + 2);
    code.extend([0xeb, back]);
    code
}

#[test]
fn a_link_to_another_page_of_a_program_ends_when_it_is_mapped_anew() {
    // mov rsp,USER+0xff0; call NEXT, from 17 bytes into the page;  NEXT: mov eax,1 or 2; ret
    let call = (0x1000u32 - 17).to_le_bytes();
    let user = fifty_times(&[&[0x48, 0xc7, 0xc4, 0xf0, 0x0f, 0x40, 0, 0xe8][..], &call].concat());
    let next = |value| [0xb8, value, 0, 0, 0, 0xc3];
    let (_vm, mut vcpu) = machine(&user, [&next(1), &next(2)]);
    assert_eq!(outputs(&mut *vcpu), [output(1), output(2)]);
}

#[test]
fn a_link_to_an_instruction_on_two_pages_ends_when_the_second_is_mapped_anew() {
    // jmp, which ends 10 bytes into the page, to its last 2 bytes: mov eax,imm32; jmp to after the first
    let jump = (0xffeu32 - 10).to_le_bytes();
    let mut user = fifty_times(&[&[0xe9][..], &jump].concat());
    user.resize(0xffe, 0x90);
    user.extend([0xb8, 0]);
    let back = 10u32.wrapping_sub(0x1008).to_le_bytes();
    let next = |value| [&[value, 0, 0, 0xe9][..], &back].concat();
    let (_vm, mut vcpu) = machine(&user, [&next(1), &next(2)]);
    assert_eq!(outputs(&mut *vcpu), [output(0x100), output(0x200)]);
}

#[test]
fn a_return_to_a_page_that_has_been_mapped_anew_finds_what_is_there() {
    // The next page calls 17 bytes into this one, as often as EBP says; the last call maps the page anew.
    let to_next = (0x1000u32 - 17).to_le_bytes();
    // mov ebp,50; mov rsp,USER+0xff0; jmp NEXT;  dec ebp; jnz return; syscall; return: ret
    let start = [0xbd, 50, 0, 0, 0, 0x48, 0xc7, 0xc4, 0xf0, 0x0f, 0x40, 0, 0xe9];
    let user = [&start[..], &to_next, &[0xff, 0xcd, 0x75, 2, 0x0f, 0x05, 0xc3]].concat();
    let calls = 17u32.wrapping_sub(0x1005).to_le_bytes();
    let again = 0u32.wrapping_sub(0x1015).to_le_bytes();
    // call USER+17; mov eax,1 or 2; test ebp,ebp; jnz NEXT; out 0x80,eax; jmp USER
    let next = |value| {
        let check = [0xb8, value, 0, 0, 0, 0x85, 0xed, 0x75, 0xf2, 0xe7, 0x80, 0xe9];
        [&[0xe8][..], &calls, &check, &again].concat()
    };
    let (_vm, mut vcpu) = machine(&user, [&next(1), &next(2)]);
    assert_eq!(outputs(&mut *vcpu), [output(2), output(2)]);
}
