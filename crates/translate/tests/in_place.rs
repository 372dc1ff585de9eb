//! System instructions that compiled code carries out in place do what they do by the run loop, faults included.
#![allow(clippy::unwrap_used)]

#[path = "long_mode/faults.rs"]
mod faults;
mod long_mode;

use std::sync::Arc;
use sublet_engine::{DescriptorTable, Engine, Exit, Regs, Sregs, Vcpu, Vm};
use sublet_memory::RamBlock;
use sublet_translate::optimisations::Optimisation;
use sublet_translate::TranslateEngine;

const RAM: u64 = 4 << 20;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const CODE: u64 = 0x1_0000;
const HANDLERS: u64 = 0x1_8000;
const STACK: u64 = 0x3_0000;
const FAULTS: faults::Places = faults::Places { idt: IDT, handlers: HANDLERS, stack: STACK, code: CODE };
const INPUTS: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
const OTHER_TABLES: u64 = 0x22_0000;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Where frames lie in another order than their addresses, and one is missing.
const SHUFFLED: u64 = 0x40_0000;
const SHUFFLED_TABLE: u64 = 0x23_0000;
const SHUFFLED_FRAMES: u64 = 0x30_0000;
const MISSING: u64 = 40;

/// 4 MiB of RAM where they are, in pages of 2 MiB that are not global; behind them `SHUFFLED`, 64 pages.
fn machine(engine: &TranslateEngine, code: &[u8], inputs: &[u64]) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = engine.create_vm().unwrap();
    let ram = Arc::new(RamBlock::new(RAM).unwrap());
    vm.memory().set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
    vm.memslots_changed().unwrap();
    let put = |gpa: u64, value: u64| vm.memory().write(gpa, &value.to_le_bytes()).unwrap();
    for (tables, first) in [(TABLES, 0x87), (OTHER_TABLES, 0x20_0087)] {
        put(tables, (tables + 0x1000) | 7);
        put(tables + 0x1000, (tables + 0x2000) | 7);
        put(tables + 0x2000, first);
        put(tables + 0x2008, 0x20_0087);
        put(tables + 0x2010, SHUFFLED_TABLE | 7);
    }
    for page in (0..64).filter(|&page| page != MISSING) {
        // Of each four pages three lie behind one another.
        let frame = if page % 4 == 3 { 63 - page } else { page };
        put(SHUFFLED_TABLE + 8 * page, (SHUFFLED_FRAMES + 0x1000 * frame) | 7);
    }
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    faults::put(vm.memory(), &FAULTS);
    let mut program = code.to_vec();
    program.push(0xe9);
    program.extend((-(program.len() as i32 + 4)).to_le_bytes());
    vm.memory().write(CODE, &program).unwrap();
    (INPUTS..).step_by(8).zip(inputs).for_each(|(place, &input)| put(place, input));
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid(&engine.supported_cpuid().unwrap()).unwrap();
    let flat = long_mode::sregs(TABLES, 0);
    let sregs = Sregs {
        gdt: DescriptorTable { base: GDT, limit: 0xf },
        idt: DescriptorTable { base: IDT, limit: 0x1ff },
        cr4: flat.cr4 | CR4_OSXSAVE,
        ..flat
    };
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs.gpr[4] = STACK;
    regs.gpr[6] = INPUTS;
    regs.gpr[3] = OTHER_TABLES;
    regs.gpr[5] = INPUTS;
    vcpu.set_regs(&regs).unwrap();
    (vm, vcpu)
}

/// The registers after each of `steps` inputs, what RAM holds then, and how often the cache was entered.
fn trace(engine: &TranslateEngine, code: &[u8], inputs: &[u64], steps: usize) -> (Vec<String>, Vec<u8>, u64) {
    let (vm, mut vcpu) = machine(engine, code, inputs);
    let seen = (0..steps).map(|step| {
        let exit = vcpu.run().unwrap();
        assert!(matches!(exit, Exit::PioOut { port: 0x80, .. }), "step {step}: {exit:?}");
        format!("{exit:x?} {:x?}", vcpu.regs().unwrap())
    });
    let seen = seen.collect();
    let mut ram = vec![0; RAM as usize];
    vm.memory().read(0, &mut ram).unwrap();
    (seen, ram, vcpu.statistics().get("vcpu.cache_entries").copied().unwrap_or(0))
}

/// A kernel that saves its registers with `save`, changes them, and restores them with `restore`, both at [RDI].
/// Inputs: RDI, what is changed in XCOMP_BV and MXCSR of the image in between.
fn switching(save: [u8; 4], restore: [u8; 4]) -> Vec<u8> {
    [
        // mov eax,13; xor ecx,ecx; cpuid; xor ecx,ecx; xor edx,edx; xsetbv: all components that there are
        &[0xb8, 13, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xd1][..],
        // mov rdi,[rsi]; mov rbx,[rsi+8]; mov rbp,[rsi+16]; add rsi,24
        &[0x48, 0x8b, 0x3e, 0x48, 0x8b, 0x5e, 0x08, 0x48, 0x8b, 0x6e, 0x10, 0x48, 0x83, 0xc6, 0x18],
        // fninit; fld1; fldpi; movups xmm3,[rsi]; movups xmm12,[rsi-24]
        &[0xdb, 0xe3, 0xd9, 0xe8, 0xd9, 0xeb, 0x0f, 0x10, 0x1e, 0x44, 0x0f, 0x10, 0x66, 0xe8],
        // xor eax,eax; dec eax; mov edx,eax; <save>
        &[0x31, 0xc0, 0xff, 0xc8, 0x89, 0xc2],
        &save,
        // fldz; xorps xmm3,xmm3; xorps xmm12,xmm12; xor [rdi+520],rbx; xor [rdi+24],ebp
        &[0xd9, 0xee, 0x0f, 0x57, 0xdb, 0x45, 0x0f, 0x57, 0xe4],
        &[0x48, 0x31, 0x9f, 0x08, 2, 0, 0, 0x31, 0x6f, 0x18],
        &restore,
        // movq rbx,xmm3; movq rcx,xmm12; fnstsw ax; fistp qword [0x2f000]; mov rdx,[0x2f000]; out 0x80,eax
        &[0x66, 0x48, 0x0f, 0x7e, 0xdb, 0x66, 0x4c, 0x0f, 0x7e, 0xe1, 0xdf, 0xe0],
        &[0xdf, 0x3c, 0x25, 0, 0xf0, 2, 0, 0x48, 0x8b, 0x14, 0x25, 0, 0xf0, 2, 0, 0xe7, 0x80],
    ]
    .concat()
}

const XSAVEC: [u8; 4] = [0x48, 0x0f, 0xc7, 0x27];
const XSAVES: [u8; 4] = [0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x2f];
const XRSTORS: [u8; 4] = [0x48, 0x0f, 0xc7, 0x1f];

#[test]
fn registers_are_saved_and_restored() {
    // In one page, over two, at an address that is not aligned, over the end of what is mapped.
    let mut inputs = Vec::new();
    let missing = SHUFFLED + 0x1000 * MISSING;
    for place in [0x5_0000, 0x5_2f00, 0x5_4fc0, 0x5_6008, missing - 0x240, missing - 0x200, 1 << 47, 0x5_8000]
    {
        inputs.extend([place, 0, 0, place, 0, 0x20, place, 1 << 63, 0, place, 1 << 9, 0, place, 0, 1 << 31]);
    }
    let steps = inputs.len() / 3;
    for (save, restore) in [(XSAVEC, XRSTOR), (XSAVES, XRSTORS), (XSAVEC, XRSTORS)] {
        let code = switching(save, restore);
        let without = TranslateEngine::new().unwrap().without(Optimisation::InPlace);
        let (expected, expected_ram, all) = trace(&without, &code, &inputs, steps);
        let (seen, ram, left) = trace(&TranslateEngine::new().unwrap(), &code, &inputs, steps);
        for (step, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
            assert_eq!(seen, expected, "step {step}");
        }
        // Where a fault ends it, how much of the image has been written is not defined.
        let ram = &ram[..SHUFFLED_FRAMES as usize];
        let differs = ram.iter().zip(&expected_ram).position(|(one, other)| one != other);
        assert_eq!(differs, None);
        assert!(left + steps as u64 / 2 < all, "{left} of {all}");
        assert!(expected.iter().filter(|step| step.contains("data: 100d")).count() > 5);
        assert!(expected.iter().any(|step| step.contains("data: 100e")), "{expected:#?}");
    }
}

#[test]
fn strings_go_on_over_pages() {
    let missing = SHUFFLED + 0x1000 * MISSING;
    // RDI, RSI, RCX, RAX: long ones, overlapping ones, ones that end at or begin in a page that is not there,
    // elements on two pages, none at all.
    let inputs: Vec<[u64; 4]> = [
        [SHUFFLED, INPUTS, 0x5000, 0x0123_4567_89ab_cdef],
        [SHUFFLED + 0x1234, SHUFFLED, 0x3000, 0x55],
        [SHUFFLED + 0x7ffd, SHUFFLED + 0x9003, 0x900, 0x1122_3344_5566_7788],
        [SHUFFLED + 0x2001, SHUFFLED + 0x2000, 0x4001, 0x77],
        [missing - 0x2345, SHUFFLED, 0x2400, 0x99],
        [SHUFFLED, missing - 0x1800, 0x2000, 0x42],
        [missing, missing, 5, 1],
        [missing + 0x1ffc, SHUFFLED + 0xffc, 0x801, 0xaabb_ccdd_eeff_0011],
        [0x30_0000 + 0xffff, 0x38_0000, 0x6_0000 / 8, 0x2468],
        [SHUFFLED, SHUFFLED, 0, 3],
        [0x7fff_ffff_f800, SHUFFLED, 0x1000, 4],
    ]
    .to_vec();
    for string in
        [[0xf3, 0xa4, 0x90], [0xf3, 0x48, 0xa5], [0xf3, 0xaa, 0x90], [0xf3, 0x48, 0xab], [0x66, 0xf3, 0xab]]
    {
        assert!(faults_of_strings(string, &inputs) >= 2);
    }
}

#[test]
fn bytes_are_copied_over_the_ends_of_pages() {
    let missing = SHUFFLED + 0x1000 * MISSING;
    let inputs = [
        [SHUFFLED + 0x3123, SHUFFLED + 0x6fff, 0x1000, 1],
        [SHUFFLED + 0x5003, SHUFFLED + 0x8000, 0x1000, 2],
        [SHUFFLED + 0x3ffe, SHUFFLED + 0x3ffd, 0xfff, 3],
        [SHUFFLED + 0x7ff0, SHUFFLED + 0x8010, 0xfff, 4],
        [SHUFFLED + 0x6800, missing - 0x123, 0x200, 5],
        [missing - 0x80, SHUFFLED + 0x6f81, 0x100, 6],
        [0xffff_ffff_ffff_ff80, SHUFFLED, 0x100, 7],
        // Code, which the write TLB does not have.
        [CODE - 0x40, SHUFFLED + 0x2fe0, 0x40, 8],
        [CODE + 0xff0, SHUFFLED + 0x2fe0, 0x40, 9],
    ];
    // Once the TLBs have the pages, nothing but the pieces is left to do.
    assert!(faults_of_strings([0xf3, 0xa4, 0x90], &[inputs, inputs].concat()) >= 4);
}

/// Have a string instruction carried out with RDI, RSI, RCX and RAX as given, in place and by the run loop, and compare.
/// Returns how often it faulted.
fn faults_of_strings(string: [u8; 3], inputs: &[[u64; 4]]) -> usize {
    // mov rdi,[rbp]; mov rsi,[rbp+8]; mov rcx,[rbp+16]; mov rax,[rbp+24]; add rbp,32; <string>; out 0x80,eax
    let load = [
        0x48, 0x8b, 0x7d, 0, 0x48, 0x8b, 0x75, 8, 0x48, 0x8b, 0x4d, 16, 0x48, 0x8b, 0x45, 24, 0x48, 0x83,
        0xc5, 32,
    ];
    let code = [&load[..], &string, &[0xe7, 0x80]].concat();
    let without = TranslateEngine::new().unwrap().without(Optimisation::InPlace);
    let (expected, expected_ram, all) = trace(&without, &code, &inputs.concat(), inputs.len());
    let (seen, ram, left) = trace(&TranslateEngine::new().unwrap(), &code, &inputs.concat(), inputs.len());
    assert_eq!(seen, expected, "{string:x?}");
    assert_eq!(ram.iter().zip(&expected_ram).position(|(one, other)| one != other), None, "{string:x?}");
    assert!(left < all, "{left} of {all}");
    expected.iter().filter(|step| step.contains("data: 100e")).count()
}

#[test]
fn what_follows_a_load_of_cr3_comes_from_where_it_leads() {
    // mov cr3,rbx; mov eax,value; out 0x80,eax; the other tables have another frame there.
    let code = |value| [0x0f, 0x22, 0xdb, 0xb8, value, 0, 0, 0, 0xe7, 0x80];
    for engine in
        [TranslateEngine::new().unwrap(), TranslateEngine::new().unwrap().without(Optimisation::InPlace)]
    {
        let (vm, mut vcpu) = machine(&engine, &code(1), &[]);
        vm.memory().write(0x20_0000 + CODE, &code(2)).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::PioOut { port: 0x80, size: 4, data: 2 });
    }
}
