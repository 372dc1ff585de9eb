//! Returns after a change of what is mapped, or of privilege: none goes where a call of before has foreseen it.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, MsrEntry, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

/// The program, and a function of it, in a large page that both address spaces have; a kernel sees it in the upper half too.
const MAIN: u64 = 0x1_0000;
const FUNCTION: u64 = 0x1_1000;
const KERNEL: u64 = 0xffff_ff80_0001_2000;
/// Two sets of tables. They differ in the frame of the page at `PLACE`, a program's.
const TABLES: [u64; 2] = [0x8_0000, 0x9_0000];
const FRAMES: [u64; 2] = [0x10_0000, 0x10_1000];
const PLACE: u64 = 0x40_0000;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;

/// What runs at `PLACE`: call RAX, and come back with the number of the frame.
fn caller(number: u8) -> [u8; 8] {
    [0xff, 0xd0, 0xb8, number, 0, 0, 0, 0xc3]
}

fn machine(engine: &TranslateEngine, main: &[u8], function: &[u8]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, bytes: &[u8]| vm.memory().write(gpa, bytes).unwrap();
    for (top, frame) in TABLES.into_iter().zip(FRAMES) {
        for (entry, value) in [
            (0, top + 0x1007),
            (0xff8, top + 0x1007),
            (0x1000, top + 0x2007),
            (0x2000, 0x83),
            (0x2010, top + 0x3007),
            (0x3000, frame + 7),
        ] {
            put(top + entry, &value.to_le_bytes());
        }
    }
    put(FRAMES[0], &caller(1));
    put(FRAMES[1], &caller(2));
    put(MAIN, main);
    put(FUNCTION, function);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES[0], 0)).unwrap();
    let mut regs = Regs { rip: MAIN, rflags: 2, ..Regs::default() };
    regs.gpr[4] = 0x4_0000;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

/// What the program puts out, which is the same without prediction.
fn output(main: &[u8], function: &[u8]) -> u64 {
    let of = |engine: TranslateEngine| match machine(&engine, main, function).1.run().unwrap() {
        Exit::PioOut { port: 0x80, data, .. } => data,
        other => panic!("{other:?}"),
    };
    let engine = || TranslateEngine::new().unwrap();
    let data = of(engine());
    assert_eq!(of(engine().without(Optimisation::ReturnStack)), data);
    data
}

/// `mov ebp,turns; l: <body>; dec ebp; jnz l; mov eax,ebx; out 0x80,eax`
fn loop_of(turns: u8, body: &[u8]) -> Vec<u8> {
    let back = 0u8.wrapping_sub(body.len() as u8 + 4);
    [&[0xbd, turns, 0, 0, 0], body, &[0xff, 0xcd, 0x75, back, 0x89, 0xd8, 0xe7, 0x80]].concat()
}

/// Calls `PLACE`, which calls the function, 20 times, and adds what comes back.
fn by_place() -> Vec<u8> {
    // mov eax,FUNCTION; mov edx,PLACE; call rdx; add ebx,eax
    loop_of(20, &[0xb8, 0, 0x10, 1, 0, 0xba, 0, 0, 0x40, 0, 0xff, 0xd2, 0x01, 0xc3])
}

#[test]
fn a_return_goes_to_what_is_mapped_by_then() {
    // ECX = the frame of an odd or even turn, and the bits of its entry; mov [entry],ecx; invlpg [PLACE]; ret
    let function = [
        &[0x89, 0xe9, 0x83, 0xe1, 1, 0xc1, 0xe1, 12, 0x8d, 0x89, 7, 0, 0x10, 0][..],
        &[0x89, 0x0c, 0x25, 0, 0x30, 8, 0, 0x0f, 0x01, 0x3c, 0x25, 0, 0, 0x40, 0, 0xc3],
    ]
    .concat();
    assert_eq!(output(&by_place(), &function), 10 + 20);
}

#[test]
fn a_return_goes_to_the_address_space_of_that_time() {
    // mov ecx,ebp; and ecx,1; shl ecx,16; lea ecx,[rcx+TABLES]; mov cr3,rcx; ret
    let function =
        [0x89, 0xe9, 0x83, 0xe1, 1, 0xc1, 0xe1, 16, 0x8d, 0x89, 0, 0, 8, 0, 0x0f, 0x22, 0xd9, 0xc3];
    assert_eq!(output(&by_place(), &function), 10 + 20);
}

#[test]
fn a_program_does_not_return_to_where_its_kernel_would() {
    // syscall; test ebp,ebp; jnz o; inc ebp; mov rax,KERNEL+5; push rax; ret; o: out 0x80,eax
    let program = [
        &[0x0f, 0x05, 0x85, 0xed, 0x75, 14, 0xff, 0xc5, 0x48, 0xb8][..],
        &(KERNEL + 5).to_le_bytes(),
        &[0x50, 0xc3, 0xe7, 0x80],
    ]
    .concat();
    // call k; k: add rsp,8; sysretq
    let kernel = [0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0x48, 0x0f, 0x07];
    let (vm, mut vcpu) = machine(&TranslateEngine::new().unwrap(), &[], &[]);
    vm.memory().write(KERNEL & 0xf_ffff, &kernel).unwrap();
    vm.memory().write(FRAMES[0], &program).unwrap();
    vcpu.set_sregs(&Sregs { efer: 0x501, ..long_mode::sregs(TABLES[0], 3) }).unwrap();
    let msrs = [(STAR, 0x10_0008 << 32), (LSTAR, KERNEL), (SFMASK, 0x25_7fd5)];
    vcpu.set_msrs(&msrs.map(|(index, value)| MsrEntry { index, value })).unwrap();
    let mut regs = Regs { rip: PLACE, rflags: 0x3002, ..Regs::default() };
    regs.gpr[4] = PLACE + 0xff0;
    vcpu.set_regs(&regs).unwrap();
    // A page fault, for which there is no handler.
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
}
