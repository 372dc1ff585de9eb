//! One page of code at several linear addresses: what a translation takes for the address of its code is right at
//! each of them, and nothing made for one serves another.
#![allow(clippy::unwrap_used)]

mod long_mode;

use std::sync::Arc;
use sublet_engine::{Engine, Exit, Regs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

const MAIN: u64 = 0x1_0000;
const TABLES: u64 = 0x8_0000;
const CODE_FRAME: u64 = 0x10_0000;
/// Of the page after the code, at the first and third place, and at the second.
const DATA_FRAMES: [u64; 2] = [0x10_1000, 0x10_2000];
/// Where the code lies. The third is that of a kernel, and needs addresses of more than 32 bits.
const PLACES: [u64; 3] = [0x40_0000, 0x60_0000, 0xffff_ff80_0040_0000];
const VALUES: [u32; 2] = [0x1234_5678, 0x0bad_cafe];
const TURNS: u32 = 50;
const ALL: u64 = 7;

/// Adds to EBX its own address, twice, and what lies at the start of the next page.
const CODE: [u8; 24] = [
    0x48, 0x8d, 0x05, 0, 0, 0, 0, // lea rax,[rip]
    0x03, 0x05, 0xf3, 0x0f, 0, 0, // add eax,[rip+0xff3]
    0xe8, 0, 0, 0, 0,    // call the next instruction
    0x5a, // pop rdx
    0x01, 0xd0, // add eax,edx
    0x01, 0xc3, // add ebx,eax
    0xc3, // ret
];

/// Calls the code at each place, many times, and puts out EBX.
fn main_code() -> Vec<u8> {
    let mut code = vec![0xbd]; // mov ebp,TURNS
    code.extend(TURNS.to_le_bytes());
    for place in PLACES {
        code.extend([0x48, 0xb8]); // mov rax,place; call rax
        code.extend(place.to_le_bytes());
        code.extend([0xff, 0xd0]);
    }
    let back = 0u8.wrapping_sub(code.len() as u8 - 5 + 4);
    code.extend([0xff, 0xcd, 0x75, back]); // dec ebp; jnz
    code.extend([0x89, 0xd8, 0xe7, 0x80]); // mov eax,ebx; out 0x80,eax
    code
}

fn expected() -> u64 {
    let of_place = |(number, &place): (usize, &u64)| {
        let addresses = (place as u32).wrapping_add(7).wrapping_add(place as u32).wrapping_add(18);
        addresses.wrapping_add(VALUES[number % 2])
    };
    let turn = PLACES.iter().enumerate().map(of_place).fold(0, u32::wrapping_add);
    u64::from(turn.wrapping_mul(TURNS))
}

fn machine(engine: &TranslateEngine, privilege: u8) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(2 << 20).unwrap());
    vm.memory().set_memslot(0, 0, 2 << 20, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    for (table, entry) in [
        (0, (TABLES + 0x1000) | ALL),
        (0xff8, (TABLES + 0x1000) | ALL),
        (0x1000, (TABLES + 0x2000) | ALL),
        (0x2000, 0x80 | ALL),
        (0x2010, (TABLES + 0x3000) | ALL),
        (0x2018, (TABLES + 0x4000) | ALL),
        (0x3000, CODE_FRAME | ALL),
        (0x3008, DATA_FRAMES[0] | ALL),
        (0x4000, CODE_FRAME | ALL),
        (0x4008, DATA_FRAMES[1] | ALL),
    ] {
        vm.memory().write(TABLES + table, &entry.to_le_bytes()).unwrap();
    }
    for (frame, value) in DATA_FRAMES.into_iter().zip(VALUES) {
        vm.memory().write(frame, &value.to_le_bytes()).unwrap();
    }
    vm.memory().write(CODE_FRAME, &CODE).unwrap();
    vm.memory().write(MAIN, &main_code()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_sregs(&long_mode::sregs(TABLES, privilege)).unwrap();
    let mut regs = Regs { rip: MAIN, rflags: 0x3002, ..Regs::default() };
    regs.gpr[4] = 0x4_0000;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

fn assert_right(engine: &TranslateEngine, privilege: u8) {
    let (_vm, mut vcpu) = machine(engine, privilege);
    assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: expected() });
}

fn translated(engine: &TranslateEngine) -> u64 {
    let (_vm, mut vcpu) = machine(engine, 0);
    vcpu.run().unwrap();
    vcpu.statistics()["translate.blocks"]
}

#[test]
fn a_kernels_code_knows_where_it_lies() {
    assert_right(&TranslateEngine::new().unwrap(), 0);
}

#[test]
fn a_programs_code_with_windows_knows_where_it_lies() {
    assert_right(&TranslateEngine::new().unwrap().without(Optimisation::WindowPolicy), 3);
}

#[test]
fn other_programs_code_may_lie_anywhere() {
    assert_right(&TranslateEngine::new().unwrap(), 3);
    assert_right(&TranslateEngine::new().unwrap().without(Optimisation::PlacedCode), 0);
}

#[test]
fn each_place_has_a_translation_of_its_own() {
    let engine = || TranslateEngine::new().unwrap();
    // The code's two blocks, for two places more.
    assert_eq!(translated(&engine()), translated(&engine().without(Optimisation::PlacedCode)) + 4);
}
